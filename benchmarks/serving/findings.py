"""What was measured: figures by server, row and name, one value a round; and what was not, with the reason."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

OWN, RAW = "edgeserve", "raw"


@dataclass(frozen=True)
class Figure:
    """A median of rounds, with the interval that holds the true one in at least 95 of 100 runs."""

    median: float
    low: float
    high: float
    count: int

    def text(self, digits: int = 1) -> str:
        if self.count == 1:
            return f"{self.median:.{digits}f}"
        return f"{self.median:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def figure(values: Sequence[float]) -> Figure:
    """Median and its order-statistic interval, which assumes nothing of how the values are distributed.

    The k-th smallest and k-th largest of n values hold the median with probability 1 - 2 P(Binomial(n, 1/2) < k); the
    largest k for which that is 0.95 is taken: the second and eighth of nine. Below six values it is the range.
    """
    ordered, n = sorted(values), len(values)
    k, below = 0, 0.0
    while True:
        below += math.comb(n, k) / 2**n
        if 2 * below > 0.05:
            break
        k += 1
    k = max(k, 1)
    return Figure(statistics.median(ordered), ordered[k - 1], ordered[n - k], n)


@dataclass
class Findings:
    """Everything of a run."""

    values: dict[str, list[float | None]] = field(default_factory=dict)
    """By `server|row|name`; a round in which it was not measured has None."""
    missing: dict[str, str] = field(default_factory=dict)
    """By `server|row` or `server`: why there is no figure."""
    facts: dict[str, str] = field(default_factory=dict)
    round: int = 0

    def add(self, server: str, row: str, **figures: float) -> None:
        for name, value in figures.items():
            column = self.values.setdefault(f"{server}|{row}|{name}", [])
            column += [None] * (self.round + 1 - len(column))
            column[self.round] = value

    def lack(self, server: str, row: str, reason: str) -> None:
        # Of paths only the last part: the page says nothing of where it was made.
        text = re.sub(r"/[\w./+-]*/", "", " ".join(reason.split())).replace("|", "/")
        self.missing.setdefault(f"{server}|{row}" if row else server, text)

    def get(self, server: str, row: str, name: str) -> list[float]:
        return [value for value in self.values.get(f"{server}|{row}|{name}", []) if value is not None]

    def paired(self, combine: Callable[..., float], *columns: tuple[str, str, str]) -> Figure | None:
        """Combine figures of the same round, then take the median: what drifts between rounds cancels."""
        found = [self.values.get("|".join(column), []) for column in columns]
        rounds = [row for row in zip(*found, strict=False) if None not in row]
        return figure([combine(*row) for row in rounds]) if rounds else None

    def median(self, server: str, row: str, name: str) -> Figure | None:
        found = self.get(server, row, name)
        return figure(found) if found else None

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(self.__dict__))

    @classmethod
    def load(cls, path: Path) -> Findings:
        return cls(**json.loads(path.read_text()))
