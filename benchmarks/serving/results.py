"""Writes the page: each bound with what was measured, then the peers, then how, then what was not measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from findings import OWN, RAW, Figure, Findings
from rounds import ARRANGEMENTS
from servers import GRPC, JSON, SHM, TCP, UDS, WAYS

NO_GRPC = "edgeserve without gRPC"
NAMES = {SHM: "shared memory", UDS: "binary, Unix socket", TCP: "binary, TCP", JSON: "JSON, TCP", GRPC: "gRPC, TCP"}
NOISE = 1.1
HTTP_FACTOR = 10
"""A peer's HTTP must cost this many times as much CPU on the tiny model."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One bound."""

    what: str
    bound: float
    figure: Figure | None
    unit: str = ""
    digits: int = 1
    at_least: bool = False
    reason: str = ""
    """Why there is no figure."""

    @property
    def verdict(self) -> str:
        if self.figure is None:
            return f"not measured: {self.reason}"
        median = self.figure.median
        return "held" if (median >= self.bound if self.at_least else median <= self.bound) else "**MISSED**"

    def markdown(self) -> str:
        sign = "≥" if self.at_least else "≤"
        measured = f"{self.figure.text(self.digits)} {self.unit}".strip() if self.figure else ""
        return f"| {self.what} | {sign} {self.bound:g} {self.unit} | {measured} | {self.verdict} |"


def bounds(findings: Findings) -> list[Line]:
    """Every bound that is held against the bare runtime."""
    own_grpc = findings.facts.get("edgeserve's gRPC") != "grpcio"
    return [*_added(findings, own_grpc), *_single(findings), *_big(findings, own_grpc), *_alone(findings)]


def _added(findings: Findings, own_grpc: bool) -> Iterator[Line]:
    for way, bound in {SHM: 5, UDS: 8, TCP: 10, JSON: 12, GRPC: 60 if own_grpc else 250}.items():
        yield Line(
            what=f"tiny model, 32 connections, {NAMES[way]}: CPU of a request over raw",
            bound=bound,
            figure=findings.paired(
                lambda served, raw: served - raw, (OWN, f"mlp32/{way}", "cpu_us"), (RAW, "mlp", "cpu_us")
            ),
            unit="µs",
            reason=_why(findings, OWN, f"mlp32/{way}"),
        )


def _single(findings: Findings) -> Iterator[Line]:
    columns = (OWN, f"mlp1/{UDS}", "min_us"), (RAW, "mlp", "min_us")
    for kind, name in (("python", "echo by the same event loop"), ("c", "echo by a C program")):
        yield Line(
            what=f"tiny model, 1 connection, {NAMES[UDS]}: shortest request over raw + {name} of the same bytes",
            bound=4,
            figure=findings.paired(lambda served, raw, echo: served - raw - echo, *columns, ("echo", kind, "min_us")),
            unit="µs",
            reason=_why(findings, OWN, f"mlp1/{UDS}"),
        )
    yield Line(
        what="tiny model while a CNN keeps a core busy, 1 connection: median",
        bound=60,
        figure=findings.median(OWN, "beside", "p50_us"),
        unit="µs",
        reason=_why(findings, OWN, "beside"),
    )


def _big(findings: Findings, own_grpc: bool) -> Iterator[Line]:
    for way, bound in {SHM: 1.03, UDS: 1.06, TCP: 1.06, GRPC: 1.12 if own_grpc else 1.30}.items():
        yield Line(
            what=f"CNN, {NAMES[way]}: CPU over raw",
            bound=bound,
            figure=findings.paired(
                lambda served, raw: served / raw, (OWN, f"cnn1/{way}", "cpu_us"), (RAW, "cnn", "cpu_us")
            ),
            unit="x",
            digits=3,
            reason=_why(findings, OWN, f"cnn1/{way}"),
        )
    best = best_arrangement(findings)
    for row, name in ((f"all/{SHM}", NAMES[SHM]), (f"all/{UDS}", NAMES[UDS]), ("all/served", NAMES[TCP])):
        yield Line(
            what=f"CNN on all cores, {name}: requests/s over the best raw arrangement",
            bound=0.97,
            figure=findings.paired(lambda served, raw: served / raw, (OWN, row, "rps"), (RAW, f"all/{best}", "rps")),
            unit="x",
            digits=3,
            at_least=True,
            reason=_why(findings, OWN, row),
        )


def _alone(findings: Findings) -> Iterator[Line]:
    for label, name, start, loaded in ((NO_GRPC, "", 20, 30), (OWN, ", gRPC on", 40, 90)):
        for when, column, bound in (("at start", "start_mb", start), ("after load", "load_mb", loaded)):
            yield Line(
                what=f"memory over raw with the same three models{name}, {when}",
                bound=bound,
                figure=findings.paired(
                    lambda served, raw: served - raw, (label, "memory", column), (RAW, "memory", column)
                ),
                unit="MB",
                reason=_why(findings, label, "memory"),
            )
    for row, name, bound in (("first/cli", "`edgeserve serve`", 1.7), ("first/daemon", "the daemon", 1.4)):
        yield Line(
            what=f"start to first answer, {name}: CPU over raw import, load and call",
            bound=bound,
            figure=findings.paired(lambda served, raw: served / raw, (OWN, row, "cpu_ms"), (RAW, "first", "cpu_ms")),
            unit="x",
            digits=2,
            reason=_why(findings, OWN, row),
        )
    for label, name in ((NO_GRPC, ""), (OWN, ", gRPC on")):
        rest = findings.get(label, "rest", "cpu_us_per_s")
        figure = findings.median(label, "rest", "cpu_us_per_s") if rest else None
        yield Line(
            what=f"at rest{name}: CPU", bound=200, figure=figure, unit="µs/s", reason=_why(findings, label, "rest")
        )


def best_arrangement(findings: Findings) -> str:
    def rate(name: str) -> float:
        found = findings.median(RAW, f"all/{name}", "rps")
        return found.median if found else 0

    return max(ARRANGEMENTS, key=rate)


def _why(findings: Findings, server: str, row: str) -> str:
    return findings.missing.get(f"{server}|{row}") or findings.missing.get(server) or "not part of this run"


# Peers ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One row of the table of peers."""

    what: str
    row: str
    name: str
    more_is_better: bool = False


COMPARED = [
    *(Compared(what=f"tiny model, {NAMES[w]}, 32 connections: CPU, µs", row=f"mlp32/{w}", name="cpu_us") for w in WAYS),
    *(
        Compared(what=f"tiny model, {NAMES[w]}, 1 connection: median, µs", row=f"mlp1/{w}", name="p50_us")
        for w in (UDS, TCP, JSON)
    ),
    Compared(what="tiny model while a CNN keeps a core busy: median, µs", row="beside", name="p50_us"),
    *(Compared(what=f"CNN, {NAMES[w]}, 1 connection: CPU, µs", row=f"cnn1/{w}", name="cpu_us") for w in WAYS),
    Compared(what="CNN on all cores, requests/s", row="all/served", name="rps", more_is_better=True),
    Compared(what="memory at start, three models, MB", row="memory", name="start_mb"),
    Compared(what="memory after load, MB", row="memory", name="load_mb"),
    Compared(what="start to first answer, three models: CPU, ms", row="first/three", name="cpu_ms"),
    Compared(what="at rest: CPU, µs/s", row="rest", name="cpu_us_per_s"),
]


def peers_table(findings: Findings, peers: Sequence[str]) -> tuple[str, list[str]]:
    """The table, and the rows on which a peer is not beaten, or not by enough."""
    lines = ["| | edgeserve | " + " | ".join(peers) + " |", "|---|--:|" + "--:|" * len(peers)]
    lost, compared = [], 0
    for one in COMPARED:
        # Without gRPC only where this build has none; the peers that have it had it on.
        own = findings.median(OWN, one.row, one.name) or findings.median(NO_GRPC, one.row, one.name)
        cells = [f"{own.median:.4g}" if own else ""]
        for peer in peers:
            found = findings.median(peer, one.row, one.name)
            if found is None:
                cells.append("failed" if findings.missing.get(f"{peer}|{one.row}", "").startswith("failed") else "")
                continue
            if own is None:
                cells.append(f"{found.median:.4g}")
                continue
            compared += 1
            if not own.median:
                cells.append(f"{found.median:.4g}")
                continue
            ratio = found.median / own.median
            cells.append(f"{found.median:.4g} ({ratio:.2g}x)")
            better = ratio < 1 if one.more_is_better else ratio > 1
            enough = one.row not in (f"mlp32/{TCP}", f"mlp32/{JSON}") or ratio >= HTTP_FACTOR
            if not better or not enough:
                lost.append(f"{peer}, {one.what}: {ratio:.2g}x" + (f" (wanted: {HTTP_FACTOR}x)" if better else ""))
        lines.append(f"| {one.what} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + f"\n\n{compared} comparisons.", lost


# The page -------------------------------------------------------------------------------------------------------------

METHOD = """\
`benchmarks/serving/` and `benchmarks/loadgen.c` are all of it. Models (`models.py`, random weights): `tiny` 4 to 3
numbers, `CNN` like a MobileNetV2 of width 0.6, 602 KB in, 4 KB out; a keyword spotter is loaded beside them. All
servers and the bare runtime compute with the same version of onnxruntime, one thread inside a call, no spinning. A
closed loop: each connection sends its next request when it has the answer. Server on one core, client on another;
rows "on all cores" and "while a CNN ..." leave both to the kernel. All servers are up, all but one paused (SIGSTOP);
each round visits each once, in alternating order, and the bare runtime right before and right after edgeserve. CPU is
user and system time of the server's process tree (/proc/PID/stat) over all requests that were answered, warm-up and
drain included. Figures are medians of the rounds with their order-statistic 95 % interval; differences and ratios are
taken within a round. The last answer of every row of every round was compared with what the bare runtime computes.
Memory is the proportional set size with nothing else up, after each model has answered once and after load in every
way. A start counts to the first right answer; raw is `import onnxruntime`, load and one call;
`OPENBLAS_NUM_THREADS=1` for all. edgeserve runs with all checks, metrics and limits on. Peers are set up in their own
favour (`peers.py`); their ratios are to edgeserve, above 1 in its favour except for requests/s."""


def page(findings: Findings, peers: Sequence[str]) -> str:
    lines = bounds(findings)
    missed = sum(line.verdict == "**MISSED**" for line in lines)
    absent = sum(line.figure is None for line in lines)
    parts = ["# The model server beside the bare runtime and its peers", "Written by `make bench-serving`."]
    parts.append(" ".join(f"{name}: {value}." for name, value in findings.facts.items()))
    parts.append(
        f"## Bounds\n\n{len(lines) - missed - absent} held, {missed} missed, {absent} not measured. "
        "Judged by the median.\n\n| what | bound | measured | |\n|---|--:|--:|---|\n"
        + "\n".join(line.markdown() for line in lines)
    )
    parts.append("The bare runtime in the same run:\n\n" + _raw(findings))
    parts.append(_quiet(findings))
    if peers:
        table, lost = peers_table(findings, peers)
        beaten = "Every peer is beaten on every row." if not lost else "Not beaten, or not by enough:\n\n"
        parts.append(f"## Peers\n\n{table} {beaten}" + "\n".join(f"- {one}" for one in lost))
    parts.append(f"## Method\n\n{METHOD}")
    parts.append("## Not measured\n\n" + _absent(findings))
    return "\n\n".join(part for part in parts if part) + "\n"


def _quiet(findings: Findings) -> str:
    """Whether something else ran: a call on a core of its own lasts as long as the CPU time that it takes."""
    share = findings.paired(lambda wall, cpu: wall / cpu, (RAW, "cnn", "p50_us"), (RAW, "cnn", "cpu_us"))
    if share is None or share.median < NOISE:
        return ""
    return (
        f"**Other work ran on this machine meanwhile**: the bare runtime's call took {share.median:.2f} times its CPU "
        "time. Latencies and throughputs of this run mean little."
    )


def _raw(findings: Findings) -> str:
    rows = [(f"{name}, CPU of a call", RAW, key, "cpu_us", "µs", 2) for name, key in (("tiny", "mlp"), ("CNN", "cnn"))]
    rows += [("tiny, shortest call", RAW, "mlp", "min_us", "µs", 2)]
    rows += [(f"echo of these bytes, {kind}, shortest", "echo", kind, "min_us", "µs", 2) for kind in ("c", "python")]
    rows += [(f"CNN on all cores, {name}", RAW, f"all/{name}", "rps", "calls/s", 0) for name in ARRANGEMENTS]
    rows += [(f"memory {when}", RAW, "memory", f"{when}_mb", "MB", 1) for when in ("start", "load")]
    rows += [("import, load and first call, CPU", RAW, "first", "cpu_ms", "ms", 1)]
    lines = ["| | |", "|---|--:|"]
    for what, server, row, name, unit, digits in rows:
        found = findings.median(server, row, name)
        if found:
            lines.append(f"| {what} | {found.text(digits)} {unit} |")
    return "\n".join(lines)


def _absent(findings: Findings) -> str:
    by_reason: dict[str, list[str]] = {}
    for what, reason in findings.missing.items():
        by_reason.setdefault(f"{what.partition('|')[0]}: {reason}", []).append(what.partition("|")[2])
    lines = []
    for text, rows in by_reason.items():
        named = ", ".join(row for row in rows if row)
        lines.append(f"- {text}" + (f" ({named})" if named else ""))
    return "\n".join(lines) or "Nothing that was asked for."
