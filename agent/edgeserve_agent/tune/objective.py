"""What is better: constraints, comparisons beyond noise, and the frontier of what nothing beats. Pure.

Measurements that are compared were made in the same rounds, one after the other, so that what else the machine did met
both. Their ratio in each round is what counts; its median has an interval by order statistics, which assumes nothing
of how measurements scatter (David and Nagaraja, "Order Statistics", 2003, section 7.1).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from statistics import median
from typing import Final

from edgeserve_agent.tune.space import Configuration, Space

COVERAGE: Final = 0.99
"""Of an interval that must hold the median: the best of many tried looks better than it is, so 0.95 is too little."""
ROUNDS: Final = 8
"""The fewest rounds whose range holds the median with this probability: 1 - 2 / 2**8."""
LEAST_GAIN: Final = 1.02
"""Less than 2 % is no reason for anything."""
_POLISHES: Final = 20
NEAR: Final = 0.9
"""A configuration whose worth is below this share of the best one's is not looked at again."""


class Objective(str, Enum):
    """What is sought."""

    THROUGHPUT = "throughput"
    """Most requests a second, at the load where the bound still holds."""
    LATENCY = "latency"
    """Least tail latency, as geometric mean over the loads."""
    CPU = "cpu"
    """Least CPU time a request, at a load where the bound holds."""


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What is sought, and what must hold."""

    objective: Objective = Objective.THROUGHPUT
    percentile: float = 99.0
    latency_ms: float | None = None
    """Most that the percentile may be; None = no bound."""
    memory_bytes: int | None = None
    """Most private memory of the process; None = no bound."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One window of load: so many clients, each of which sends its next request when it has its answer."""

    concurrency: int
    requests: int
    """Answered in the window."""
    throughput: float
    """Requests a second."""
    p50_ms: float
    tail_ms: float
    """At the goal's percentile; of fewer requests than that needs, the slowest."""
    cpu_ms: float
    """CPU time of the process, a request."""
    failed: int = 0


@dataclass(frozen=True, kw_only=True)
class Round:
    """What one configuration did in one round."""

    number: int
    """Configurations with the same number were measured one after the other."""
    samples: tuple[Sample, ...]


@dataclass(frozen=True, kw_only=True)
class Point:
    """A configuration and all that was measured of it."""

    configuration: Configuration
    rounds: tuple[Round, ...] = ()
    memory_bytes: int = 0
    """Largest that was seen."""
    refused: str = ""
    """Why it cannot be served at all."""

    def levels(self) -> tuple[Sample, ...]:
        """For each load the medians over all rounds; requests and failures are sums."""
        loads = dict.fromkeys(sample.concurrency for one in self.rounds for sample in one.samples)
        return tuple(_medians([_at(one, load) for one in self.rounds]) for load in loads)


@dataclass(frozen=True, kw_only=True)
class Gain:
    """How many times better one configuration is than another."""

    ratio: float
    """Median over the rounds that both were measured in."""
    low: float
    high: float
    coverage: float
    """Probability that the interval holds the true median."""
    rounds: int

    @property
    def certain(self) -> bool:
        """It is better beyond noise."""
        return self.coverage >= COVERAGE and self.low > 1 and self.ratio >= LEAST_GAIN


def operating(point: Point, goal: Goal) -> Sample | None:
    """The load at which it does best without breaking a constraint; None = it breaks one at every load."""
    if point.refused or (goal.memory_bytes is not None and point.memory_bytes > goal.memory_bytes):
        return None
    allowed = [
        level
        for level in point.levels()
        if not level.failed and level.requests and (goal.latency_ms is None or level.tail_ms <= goal.latency_ms)
    ]
    if goal.objective is Objective.LATENCY:
        return max(allowed, key=lambda level: level.concurrency, default=None)
    return max(allowed, key=lambda level: _benefit(level, goal), default=None)


def excess(point: Point, goal: Goal) -> float:
    """By what factor it misses the constraints at the load where it misses them least; up to 1 = it meets them."""
    if point.refused or not point.rounds:
        return math.inf
    worst_memory = point.memory_bytes / goal.memory_bytes if goal.memory_bytes else 0.0
    tails = [level.tail_ms for level in point.levels() if not level.failed and level.requests]
    tail = min(tails, default=math.inf)
    over = tail / goal.latency_ms if goal.latency_ms else (0.0 if tails else math.inf)
    return max(worst_memory, over)


def worths(points: Iterable[Point], goal: Goal) -> dict[Configuration, float]:
    """How good each is that meets the constraints, more being better, without what the rounds did to all alike.

    Median polish (Tukey, "Exploratory Data Analysis", 1977, chapter 11) of the logarithms over configurations and
    rounds: configurations that met different rounds can be compared as long as others met both.
    """
    table: dict[Configuration, dict[int, float]] = {}
    for point in points:
        level = operating(point, goal)
        if level is not None:
            table[point.configuration] = {
                one.number: math.log(_of_round(one, level.concurrency, goal)) for one in point.rounds
            }
    numbers = sorted({number for row in table.values() for number in row})
    worth = dict.fromkeys(table, 0.0)
    effect = dict.fromkeys(numbers, 0.0)
    for _ in range(_POLISHES):
        for one, row in table.items():
            worth[one] = median(value - effect[number] for number, value in row.items())
        for number in numbers:
            effect[number] = median(row[number] - worth[one] for one, row in table.items() if number in row)
    return {one: math.exp(value) for one, value in worth.items()}


def gain(one: Point, other: Point, goal: Goal) -> Gain | None:
    """How many times better `one` is than `other`; None = they have no round in common, or one breaks a constraint."""
    ours, theirs = operating(one, goal), operating(other, goal)
    if ours is None or theirs is None:
        return None
    rounds = {found.number: found for found in other.rounds}
    ratios = [
        _of_round(found, ours.concurrency, goal) / _of_round(rounds[found.number], theirs.concurrency, goal)
        for found in one.rounds
        if found.number in rounds
    ]
    if not ratios:
        return None
    low, high, coverage = median_interval(ratios)
    return Gain(ratio=median(ratios), low=low, high=high, coverage=coverage, rounds=len(ratios))


def is_better(one: Point, other: Point, goal: Goal) -> bool:
    """Whether `one` is better than `other` beyond noise."""
    found = gain(one, other, goal)
    return found is not None and found.certain


def choose(space: Space, goal: Goal, points: Iterable[Point]) -> Point | None:
    """The simplest that the best does not beat beyond noise; None = all break a constraint.

    What is served anyway stays unless something was shown to beat it, and batching is taken only where it was shown to
    beat the best without it. What was not shown is not chosen, however good it looks.
    """
    points = list(points)
    worth = worths(points, goal)
    allowed = [point for point in points if point.configuration in worth]
    if not allowed:
        return None
    rival = _unchallenged(space, worth, allowed)
    proven = [point for point in allowed if point is rival or is_better(point, rival, goal)]
    best = best_of(space, worth, proven)
    plain = [point for point in proven if not point.configuration.batch]
    asked = [point for point in proven if worth[point.configuration] >= NEAR * worth[best.configuration]]
    asked += [rival, *([best_of(space, worth, plain)] if plain else [])]
    tied = [point for point in asked if not is_better(best, point, goal)]
    return min(tied, key=lambda point: space.simplicity(point.configuration))


def _unchallenged(space: Space, worth: Mapping[Configuration, float], allowed: Sequence[Point]) -> Point:
    """What is chosen when nothing is shown to be better.

    The default; where it breaks a constraint, the best without batching; where all those do, the best.
    """
    default = [point for point in allowed if point.configuration == space.default]
    plain = [point for point in allowed if not point.configuration.batch]
    return best_of(space, worth, default or plain or allowed)


def best_of(space: Space, worth: Mapping[Configuration, float], points: Sequence[Point]) -> Point:
    """The one that is worth most; of equal ones the simplest."""
    return min(points, key=lambda point: (-worth[point.configuration], space.simplicity(point.configuration)))


def frontier(points: Iterable[Point], goal: Goal) -> list[tuple[Configuration, Sample]]:
    """Loads of configurations within memory that none beats in both throughput and tail latency, by latency."""
    reached = [
        (point.configuration, level)
        for point in points
        if not point.refused and (goal.memory_bytes is None or point.memory_bytes <= goal.memory_bytes)
        for level in point.levels()
        if level.requests and not level.failed
    ]
    front: list[tuple[Configuration, Sample]] = []
    for configuration, level in sorted(reached, key=lambda pair: (pair[1].tail_ms, -pair[1].throughput)):
        if not front or level.throughput > front[-1][1].throughput:
            front.append((configuration, level))
    return front


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The narrowest interval of order statistics that holds the median with COVERAGE, else their range.

    Returns:
        Lower end, upper end, probability.
    """
    ordered = sorted(values)
    n = len(ordered)
    cut, below = 0, 1.0  # `below`: of 2**n outcomes, those with at most `cut` values on one side
    while 2 * (cut + 2) <= n and 1 - 2 * (below + math.comb(n, cut + 1)) / 2**n >= COVERAGE:
        cut += 1
        below += math.comb(n, cut)
    return ordered[cut], ordered[n - 1 - cut], max(0.0, 1 - 2 * below / 2**n)


def _benefit(sample: Sample, goal: Goal) -> float:
    match goal.objective:
        case Objective.THROUGHPUT:
            return sample.throughput
        case Objective.LATENCY:
            return 1 / max(sample.tail_ms, 1e-9)
        case Objective.CPU:
            return 1 / max(sample.cpu_ms, 1e-9)


def _of_round(one: Round, concurrency: int, goal: Goal) -> float:
    if goal.objective is Objective.LATENCY:
        return math.exp(sum(math.log(_benefit(sample, goal)) for sample in one.samples) / len(one.samples))
    return max(_benefit(_at(one, concurrency), goal), 1e-12)


def _at(one: Round, concurrency: int) -> Sample:
    return next(sample for sample in one.samples if sample.concurrency == concurrency)


def _medians(samples: Sequence[Sample]) -> Sample:
    return Sample(
        concurrency=samples[0].concurrency,
        requests=sum(sample.requests for sample in samples),
        throughput=median(sample.throughput for sample in samples),
        p50_ms=median(sample.p50_ms for sample in samples),
        tail_ms=median(sample.tail_ms for sample in samples),
        cpu_ms=median(sample.cpu_ms for sample in samples),
        failed=sum(sample.failed for sample in samples),
    )
