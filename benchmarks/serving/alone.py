"""What is measured with nothing else up: memory, CPU at rest, and the cost of a start."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import procs
from bench import HERE, NAMES, PYTHON, Bench
from client import WrongAnswerError, measure
from findings import OWN, RAW, Findings
from rounds import RawProcess
from servers import WAYS, Daemon, Edgeserve, NotStartedError, Server, UnsupportedError

SETTLE_S = 1.0


def memory_and_rest(bench: Bench, findings: Findings, server: Server, label: str, repeats: int) -> None:
    """PSS when each model has answered once, CPU at rest after that, PSS after load in every way the server has."""
    for findings.round in range(repeats):
        try:
            server.start(bench.all_cores)
        except NotStartedError as reason:
            findings.lack(label, "", f"did not start: {reason}")
            return
        try:
            time.sleep(SETTLE_S)
            findings.add(label, "memory", start_mb=sum(map(procs.pss_mb, server.pids)))
            findings.add(label, "rest", cpu_us_per_s=rest(bench, server))
            load(bench, server)
            time.sleep(SETTLE_S)
            findings.add(label, "memory", load_mb=sum(map(procs.pss_mb, server.pids)))
        except WrongAnswerError as reason:
            findings.lack(label, "memory", f"failed under load: {str(reason)[:200]}")
        finally:
            server.stop()


def rest(bench: Bench, server: Server) -> float:
    """Microseconds of CPU in a second without requests."""
    secs = bench.durations.idle
    before = sum(map(procs.run_ns, server.pids))
    time.sleep(secs)
    return (sum(map(procs.run_ns, server.pids)) - before) / 1e3 / secs


def load(bench: Bench, server: Server) -> None:
    """Each model in each way, on many connections."""
    for way in WAYS:
        for name, connections in zip(NAMES, (32, 8, 8), strict=True):
            with contextlib.suppress(UnsupportedError):
                target = server.target(bench.models[name], way)
                measure(bench, server.pids, target, connections=connections, secs=bench.durations.tiny)


def raw_memory(bench: Bench, findings: Findings, repeats: int) -> None:
    """The same of a process with the three models and nothing around them; as many callers as cores."""
    for findings.round in range(repeats):
        raw = RawProcess(bench, bench.all_cores)
        try:
            time.sleep(SETTLE_S)
            findings.add(RAW, "memory", start_mb=procs.pss_mb(raw.pid))
            for name in NAMES:
                raw.ask(
                    do="throughput", name=name, secs=bench.durations.tiny, callers=len(bench.all_cores), threads=1,
                    spin=False,
                )  # fmt: skip
            findings.add(RAW, "memory", load_mb=procs.pss_mb(raw.pid))
        finally:
            raw.stop()


def starts(bench: Bench, findings: Findings, peers: list[Callable[[], Server]]) -> None:
    """CPU and time from nothing to the first right answer; a start before the counted ones fills the page cache."""
    state = bench.folder / "state"
    subprocess.run([PYTHON, HERE / "device.py", state, bench.model_file("mlp")], check=True)
    contenders: list[tuple[str, int, Callable[[], Server]]] = [
        ("first/cli", bench.durations.starts, lambda: Edgeserve(bench, grpc=False, only="mlp")),
        ("first/daemon", bench.durations.starts, lambda: Daemon(bench, state)),
        ("first/three", min(bench.durations.starts, 3), lambda: Edgeserve(bench)),
        *(("first/three", min(bench.durations.starts, 3), make) for make in peers),
    ]
    for findings.round in range(-1, bench.durations.starts):
        found = _raw_first(bench)
        if findings.round >= 0:
            findings.add(RAW, "first", cpu_ms=found * 1e3)
        for row, repeats, make in contenders:
            if findings.round < repeats:
                _first(bench, findings, make(), row)
    findings.round = 0


def _raw_first(bench: Bench) -> float:
    shape = map(str, bench.models["mlp"].shape)
    command = ["taskset", "-c", str(bench.server_cores[0]), PYTHON, HERE / "raw_first.py", bench.model_file("mlp")]
    ran = subprocess.run(
        [str(part) for part in (*command, *shape)],
        capture_output=True,
        text=True,
        check=True,
        env=procs.environment_of({}),
    )
    return float(ran.stdout)


def _first(bench: Bench, findings: Findings, server: Server, row: str) -> None:
    name = OWN if server.name.startswith(OWN) else server.name
    if f"{name}|{row}" in findings.missing:
        return
    begin = time.perf_counter()
    try:
        server.launch(bench.server_cores)
        server.first_answer()
    except NotStartedError as reason:
        findings.lack(name, row, f"did not start: {reason}")
        return
    wall = time.perf_counter() - begin
    cpu = server.kill_and_count()
    if findings.round >= 0:
        findings.add(name, row, cpu_ms=cpu * 1e3, wall_ms=wall * 1e3)


def scratch_folder(root: Path) -> Path:
    """Where runs keep their files."""
    return root / ".cache" / "benchmarks" / "serving"
