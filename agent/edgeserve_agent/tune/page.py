"""The report as one HTML page that loads nothing and runs nothing. Pure: a report in, escaped markup out."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

from edgeserve_agent.tune.report import Trial, TuneReport, clients, in_words

_WIDTH, _HEIGHT = 760, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 18, 30, 44
_CHARACTERS: Final = 400
_STYLE: Final = """
:root { color-scheme: light dark; --page: #f7f7f5; --surface: #fff; --ink: #17191c; --quiet: #5a616a; --line: #e2e3e1;
  --hair: #ededea; --accent: #1459b8; --accent-soft: #dbe8f9; --over: #b42318; --over-soft: #fbeceb;
  --neutral: #b4b9c0; }
@media (prefers-color-scheme: dark) { :root { --page: #121417; --surface: #1a1d21; --ink: #e7e9eb; --quiet: #a0a8b1;
  --line: #30353b; --hair: #25292e; --accent: #78aef5; --accent-soft: #1d3350; --over: #ff8f84; --over-soft: #3a1f1d;
  --neutral: #59616a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); overflow-wrap: anywhere;
  font-variant-numeric: tabular-nums;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main, footer { max-width: 1080px; margin: 0 auto; padding: 0 24px; }
h1, h2, p, dl, ul { margin: 0; }
h1 { font-size: 30px; line-height: 1.2; font-weight: 650; padding-top: 40px; }
h2 { font-size: 20px; font-weight: 650; margin-top: 40px; }
.quiet, footer, dt { color: var(--quiet); font-size: 13px; }
.verdict { margin-top: 24px; padding: 18px 22px; border-radius: 10px; border-left: 5px solid var(--accent);
  background: var(--accent-soft); }
.verdict.failed { border-color: var(--over); background: var(--over-soft); }
.verdict p:first-child { font-size: 19px; font-weight: 600; }
.facts { display: flex; flex-wrap: wrap; gap: 14px 40px; margin-top: 22px; }
dd { margin: 0; font-weight: 550; }
.panel { background: var(--surface); border: 1px solid var(--line); border-radius: 10px; padding: 18px 20px;
  margin-top: 14px; overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { text-align: left; vertical-align: top; padding: 8px 12px; border-top: 1px solid var(--hair); }
thead th { border-top: 0; color: var(--quiet); font-weight: 500; font-size: 13px; white-space: nowrap; }
td.number, th.number { text-align: right; white-space: nowrap; }
tr.chosen > * { background: var(--accent-soft); }
tr.over > * { color: var(--quiet); }
pre { margin: 0; font: 13.5px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; white-space: pre-wrap; }
svg { width: 100%; height: auto; max-width: 760px; }
svg text { font: 11px system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif; fill: var(--quiet); }
svg .grid { stroke: var(--hair); } svg .axis { stroke: var(--neutral); }
svg .bound { stroke: var(--over); stroke-dasharray: 4 3; } svg .beyond { fill: var(--over); opacity: 0.06; }
svg .front { fill: none; stroke: var(--accent); stroke-opacity: 0.45; stroke-width: 1.5; }
svg .mark { stroke-width: 1.75; } svg .mark.chosen { fill: var(--accent); stroke: var(--surface); }
svg .mark.fit { fill: var(--accent-soft); stroke: var(--accent); }
svg .mark.over { fill: none; stroke: var(--neutral); }
footer { padding-top: 32px; padding-bottom: 48px; }
"""


def render(report: TuneReport, settings: str) -> str:
    """Write the page.

    Args:
        report: What was found.
        settings: The chosen configuration as TOML; empty when there is none.

    Returns:
        A whole document with its own content security policy; same arguments, same text.
    """
    digest = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    title = f"Tuning of {_short(report.model)}"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">
<title>{title}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>{title}</h1>
{_verdict(report)}
{_facts(report)}
<h2>Throughput against tail latency</h2>
<div class="panel">{scatter(report)}
<p class="quiet">Each mark is one configuration at one number of clients; both axes are logarithmic. The line joins what
nothing beats in both.</p></div>
{f'<h2>Settings</h2><div class="panel"><pre>{escape(settings)}</pre></div>' if settings else ""}
<h2>What was tried</h2>
<div class="panel">{_table(report)}</div>
<h2>How it was measured</h2>
<div class="panel"><ul>{"".join(f"<li>{_short(line)}</li>" for line in method(report))}</ul></div>
</main>
<footer>Written by <code>edgeserve tune</code>.</footer>
</body>
</html>
"""


def method(report: TuneReport) -> list[str]:
    """What was measured and how sure it is, a sentence each."""
    wanted = report.wanted
    measured = sum(trial.rounds for trial in report.trials)
    loads = ", ".join(map(str, wanted.concurrencies))
    lines = [
        f"{len(report.trials)} of {report.possible} configurations, {measured} measurements in {report.spent_s:.0f} s",
        "interleaved: in each round one after the other, each in a process of its own",
        f"closed loop with {loads} clients, {1e3 * report.window_s:.0f} ms or longer at each load",
        "medians over the rounds, intervals by order statistics",
        f"batching {report.batching}",
        *(f"runtime {name} was passed over: {why}" for name, why in report.passed_over.items()),
        *report.notes,
    ]
    return [line[0].upper() + line[1:] for line in lines]


def scatter(report: TuneReport) -> str:
    """The frontier as SVG."""
    loads = [(trial, load) for trial in report.trials for load in trial.loads if load.requests and load.tail_ms > 0]
    if not loads:
        return "<p>Nothing was measured.</p>"
    bound = report.wanted.latency_ms
    x = _Log([load.tail_ms for _, load in loads] + ([bound] if bound else []), _LEFT, _WIDTH - _RIGHT)
    y = _Log([load.throughput for _, load in loads], _HEIGHT - _BOTTOM, _TOP)
    parts = ['<text x="2" y="14">requests/s</text>', *_axes(x, y, report.wanted.percentile)]
    if bound:
        at = x.at(bound)
        parts.append(
            f'<rect class="beyond" x="{at:.1f}" y="{_TOP}" width="{max(_WIDTH - _RIGHT - at, 0):.1f}" '
            f'height="{_HEIGHT - _TOP - _BOTTOM}"/>'
            f'<line class="bound" x1="{at:.1f}" y1="{_TOP}" x2="{at:.1f}" y2="{_HEIGHT - _BOTTOM}"/>'
        )
    if len(report.frontier) > 1:
        first, *rest = report.frontier
        path = f"M{x.at(first.tail_ms):.1f} {y.at(first.throughput):.1f}"
        path += "".join(f"H{x.at(one.tail_ms):.1f}V{y.at(one.throughput):.1f}" for one in rest)
        parts.append(f'<path class="front" d="{path}"/>')
    for trial, load in sorted(loads, key=lambda pair: pair[0].is_chosen):
        over = trial.best_at is None or (bound is not None and load.tail_ms > bound)
        kind = "chosen" if trial.is_chosen else "over" if over else "fit"
        said = (
            f"{trial.title}, {clients(load.concurrency)}: {load.throughput:.4g} requests/s, "
            f"p{report.wanted.percentile:g} {load.tail_ms:.3g} ms"
        )
        parts.append(
            f'<circle class="mark {kind}" cx="{x.at(load.tail_ms):.1f}" cy="{y.at(load.throughput):.1f}" '
            f'r="{6.5 if trial.is_chosen else 4.5}"><title>{_short(said)}</title></circle>'
        )
    described = f"{len(loads)} loads of {len(report.trials)} configurations; chosen: {report.chosen or 'none'}"
    return (
        f'<svg role="img" viewBox="0 0 {_WIDTH} {_HEIGHT}" aria-labelledby="plot-t plot-d">'
        f'<title id="plot-t">Throughput against tail latency</title><desc id="plot-d">{_short(described)}</desc>'
        + "".join(parts)
        + "</svg>"
    )


def _verdict(report: TuneReport) -> str:
    winner = report.winner
    if winner is None:
        near = _short(report.nearest)
        return f'<div class="verdict failed"><p>Nothing meets the bounds.</p><p>Nearest: {near}</p></div>'
    better = report.against_default
    said = (
        in_words(better, report.wanted.objective)
        if better
        else "what is served anyway, and nothing was shown to be better"
    )
    return f'<div class="verdict"><p>{_short(winner.title)}</p><p>{_short(said)}</p></div>'


def _facts(report: TuneReport) -> str:
    wanted = report.wanted
    bound = f"p{wanted.percentile:g} up to {wanted.latency_ms:g} ms" if wanted.latency_ms else "none"
    facts = {
        "Model": f"{report.model} {report.version}",
        "Runtime": f"{report.runtime} on {report.device}",
        "Machine": f"{report.cpu}, {report.cores} cores, {report.memory_bytes / 1e9:.1f} GB",
        "Objective": wanted.objective,
        "Latency bound": bound,
        "Memory budget": f"{wanted.memory_bytes / 1e6:.0f} MB",
    }
    return (
        '<dl class="facts">'
        + "".join(f"<div><dt>{name}</dt><dd>{_short(value)}</dd></div>" for name, value in facts.items())
        + "</dl>"
    )


def _table(report: TuneReport) -> str:
    heads = (
        "Configuration",
        "Clients",
        "Requests/s",
        "p50 ms",
        f"p{report.wanted.percentile:g} ms",
        "CPU ms",
        "MB",
        "Rounds",
    )
    head = "".join(f'<th scope="col"{" class=number" if index else ""}>{one}</th>' for index, one in enumerate(heads))
    rows = "".join(_row(trial) for trial in report.trials)
    return f'<table><thead><tr>{head}<th scope="col">Verdict</th></tr></thead><tbody>{rows}</tbody></table>'


def _row(trial: Trial) -> str:
    load = next((one for one in trial.loads if one.concurrency == trial.best_at), None) or (trial.loads or (None,))[-1]
    figures: Sequence[str] = [""] * 5
    if load is not None:
        figures = (
            str(load.concurrency),
            f"{load.throughput:.4g}",
            f"{load.p50_ms:.3g}",
            f"{load.tail_ms:.3g}",
            f"{load.cpu_ms:.3g}",
        )
    cells = "".join(
        f'<td class="number">{one}</td>' for one in (*figures, f"{trial.memory_bytes / 1e6:.0f}", str(trial.rounds))
    )
    kind = "chosen" if trial.is_chosen else "over" if trial.best_at is None else ""
    return f'<tr class="{kind}"><th scope="row">{_short(trial.title)}</th>{cells}<td>{_short(trial.verdict)}</td></tr>'


class _Log:
    """Values to places on a logarithmic axis."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        low, high = min(values), max(values)
        if high < 1.2 * low:
            low, high = low / 1.1, high * 1.1
        self._low, self._high = math.log(low) - 0.05, math.log(high) + 0.05
        self._start, self._end = start, end

    def at(self, value: float) -> float:
        share = (math.log(value) - self._low) / (self._high - self._low)
        return self._start + (self._end - self._start) * share

    def ticks(self) -> Iterable[float]:
        """1, 2 and 5 times powers of ten."""
        low, high = math.exp(self._low), math.exp(self._high)
        for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1):
            for factor in (1, 2, 5):
                value = factor * 10.0**power
                if low <= value <= high:
                    yield value


def _axes(x: _Log, y: _Log, percentile: float) -> Iterable[str]:
    bottom = _HEIGHT - _BOTTOM
    for value in y.ticks():
        at = y.at(value)
        yield f'<line class="grid" x1="{_LEFT}" y1="{at:.1f}" x2="{_WIDTH - _RIGHT}" y2="{at:.1f}"/>'
        yield f'<text x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{value:g}</text>'
    for value in x.ticks():
        at = x.at(value)
        yield f'<line class="axis" x1="{at:.1f}" y1="{bottom}" x2="{at:.1f}" y2="{bottom + 4}"/>'
        yield f'<text x="{at:.1f}" y="{bottom + 16}" text-anchor="middle">{value:g}</text>'
    yield f'<line class="axis" x1="{_LEFT}" y1="{bottom}" x2="{_WIDTH - _RIGHT}" y2="{bottom}"/>'
    yield f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 6}" text-anchor="end">p{percentile:g} latency, ms</text>'


def _short(text: str) -> str:
    """Escaped, and cut where names that come from elsewhere are too long."""
    return escape(text if len(text) <= _CHARACTERS else text[: _CHARACTERS - 1] + "\u2026")
