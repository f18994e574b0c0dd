"""Throughput against tail latency in characters, for a terminal. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from edgeserve_agent.tune.report import TuneReport

_WIDTH, _HEIGHT = 64, 16
_RANK: Final = " .o*@"
"""Marks, those on top last."""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One measured load of one configuration."""

    tail_ms: float
    throughput: float
    sign: str


def marks(report: TuneReport) -> list[Mark]:
    """All that was measured: `@` chosen, `*` on the frontier, `o` other, `.` what breaks a constraint."""
    front = {(point.title, point.concurrency) for point in report.frontier}
    bound = report.wanted.latency_ms
    found = []
    for trial in report.trials:
        for load in trial.loads:
            over = bound is not None and load.tail_ms > bound
            sign = "." if trial.best_at is None or over else "*" if (trial.title, load.concurrency) in front else "o"
            found.append(Mark(tail_ms=load.tail_ms, throughput=load.throughput, sign="@" if trial.is_chosen else sign))
    return found


def plot(report: TuneReport) -> str:
    """The plot, both axes logarithmic, and what its marks mean; empty when nothing was measured."""
    return draw(marks(report), percentile=report.wanted.percentile, bound_ms=report.wanted.latency_ms)


def draw(shown: Sequence[Mark], *, percentile: float, bound_ms: float | None) -> str:
    """Put marks on a grid of characters.

    Args:
        shown: What to draw.
        percentile: Of the latency, for the label.
        bound_ms: Drawn as a line of `|`; None = none.
    """
    shown = [mark for mark in shown if mark.tail_ms > 0 and mark.throughput > 0]
    if not shown:
        return ""
    x = _Axis([mark.tail_ms for mark in shown] + ([bound_ms] if bound_ms else []), _WIDTH)
    y = _Axis([mark.throughput for mark in shown], _HEIGHT)
    grid = [[" "] * _WIDTH for _ in range(_HEIGHT)]
    if bound_ms:
        for row in grid:
            row[x.cell(bound_ms)] = "|"
    for mark in sorted(shown, key=lambda mark: _RANK.index(mark.sign)):
        grid[_HEIGHT - 1 - y.cell(mark.throughput)][x.cell(mark.tail_ms)] = mark.sign
    labels = {0: f"{y.high:.4g}", _HEIGHT - 1: f"{y.low:.4g}"}
    margin = max(map(len, labels.values()))
    lines = ["requests/s"]
    lines += [f"{labels.get(number, ''):>{margin}} |{''.join(row)}".rstrip() for number, row in enumerate(grid)]
    lines.append(" " * margin + " +" + "-" * _WIDTH)
    low, high = f"{x.low:.4g}", f"{x.high:.4g} ms p{percentile:g}"
    lines.append(" " * (margin + 2) + low + high.rjust(_WIDTH - len(low)))
    bound = "  | latency bound" if bound_ms else ""
    lines.append(" " * (margin + 2) + f"@ chosen  * frontier  o other  . breaks a bound{bound}")
    return "\n".join(lines)


class _Axis:
    def __init__(self, values: Sequence[float], cells: int) -> None:
        self.low, self.high = min(values), max(values)
        self._cells = cells

    def cell(self, value: float) -> int:
        low, high = math.log(self.low), math.log(self.high)
        if high <= low:
            return self._cells // 2
        share = (math.log(value) - low) / (high - low)
        return min(self._cells - 1, max(0, round(share * (self._cells - 1))))
