"""The baseline sketch: what went into a model and came out when it was judged, so that a device can tell a change.

`sketch.json` of a release. A device makes the same sketch of its own traffic with no model and no data of the compiler:

    running = Running(baseline.inputs["image"].edges)     # the baseline's own edges
    running.add(values)                                   # a request at a time; every k-th value will do
    drift = psi(baseline.inputs["image"].counts, running.distribution().counts)

Sketches with the same edges merge by addition (`Distribution.merged`, `ClassCounts.merged`): of hours into a day, of
devices into a fleet. Pure: standard library only.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from edgeserve.contracts import documents
from edgeserve.contracts.errors import InputError
from edgeserve.contracts.limits import MAX_COUNT, MAX_SKETCH_BYTES, SKETCH_BINS, SKETCH_CLASSES, SKETCH_FIELDS

QUANTILES: Final = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
"""Shares whose quantiles a `Distribution` has."""
STABLE_PSI: Final = 0.1
"""Below it two distributions count as the same (Siddiqi, "Credit Risk Scorecards", 2006)."""
SHIFTED_PSI: Final = 0.25
"""Above it they count as different."""

LARGEST: Final = 1e150
"""Values of this size and above count as invalid: their squares do not fit a float64."""

_SMOOTHING: Final = 0.5
"""Added to each bin, as Jeffreys' prior does: an empty bin is rare, not impossible."""


class Distribution(msgspec.Struct, frozen=True, kw_only=True):
    """Numbers, summarised.

    Bin `i` of the histogram holds the values above `edges[i - 1]` and up to `edges[i]`; the first has no lower end and
    the last no upper one, so every number has a bin.
    """

    count: int
    """Valid values: the sum of `counts`."""
    invalid: int = 0
    """NaN, infinite and larger than `LARGEST`: they are in nothing else."""
    mean: float = 0.0
    std: float = 0.0
    """Of the population (divided by `count`)."""
    min: float = 0.0
    max: float = 0.0
    quantiles: tuple[float, ...] = (0.0,) * len(QUANTILES)
    """At `QUANTILES`; after a merge they are read off the histogram."""
    edges: tuple[float, ...]
    """Ascending; those of the baseline, ever after."""
    counts: tuple[int, ...]
    """One more than `edges`."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.edges) < SKETCH_BINS or len(self.counts) != len(self.edges) + 1:
            raise InputError(f"a histogram has 1 to {SKETCH_BINS - 1} edges and one count more, not {len(self.counts)}")
        if any(low >= high for low, high in zip(self.edges, self.edges[1:])):  # noqa: B905 - pairs of neighbours
            raise InputError("the edges of a histogram must ascend")
        numbers = (self.mean, self.std, self.min, self.max, *self.quantiles, *self.edges)
        if not all(map(math.isfinite, numbers)) or len(self.quantiles) != len(QUANTILES):
            raise InputError(f"a distribution has {len(QUANTILES)} quantiles, and every number of it is finite")
        if min(self.counts) < 0 or self.invalid < 0 or max(self.count, self.invalid) > MAX_COUNT:
            raise InputError("a count is negative or above 2^53")
        if sum(self.counts) != self.count:
            raise InputError(f"the bins of a histogram hold {sum(self.counts)} values, {self.count} were counted")

    def merged(self, other: Distribution) -> Distribution:
        """The distribution of the values of both. Means and variances join exactly (Chan, Golub, LeVeque 1979).

        Raises:
            InputError: The edges differ: they are not sketches of one baseline.
        """
        if self.edges != other.edges:
            raise InputError("histograms with different edges cannot be merged", hint="both must be of one baseline")
        if not self.count or not other.count:
            whole = self if self.count else other
            return msgspec.structs.replace(whole, invalid=self.invalid + other.invalid)
        count = self.count + other.count
        apart = other.mean - self.mean
        square = self.count * self.std**2 + other.count * other.std**2 + apart**2 * self.count * other.count / count
        counts = tuple(one + another for one, another in zip(self.counts, other.counts, strict=True))
        low, high = min(self.min, other.min), max(self.max, other.max)
        return Distribution(
            count=count,
            invalid=self.invalid + other.invalid,
            mean=self.mean + apart * other.count / count,
            std=math.sqrt(square / count),
            min=low,
            max=high,
            quantiles=_quantiles(self.edges, counts, low, high),
            edges=self.edges,
            counts=counts,
        )


class ClassCounts(msgspec.Struct, frozen=True, kw_only=True):
    """How often each class was the answer (detection: how many boxes it had)."""

    classes: tuple[int, ...]
    """Class numbers that are counted one by one; those of the baseline, ever after."""
    counts: tuple[int, ...]
    """As many."""
    other: int = 0
    """Answers of any other class."""

    def __post_init__(self) -> None:
        if len(self.classes) != len(self.counts) or len(self.classes) > SKETCH_CLASSES:
            raise InputError(f"class counts need a count for each of at most {SKETCH_CLASSES} classes")
        if len(set(self.classes)) != len(self.classes):
            raise InputError("class counts name a class twice")
        if min((*self.counts, self.other)) < 0 or max((*self.counts, self.other)) > MAX_COUNT:
            raise InputError("a count is negative or above 2^53")

    @property
    def bins(self) -> tuple[int, ...]:
        """Counts of the classes and of all others: what `psi` compares."""
        return (*self.counts, self.other)

    def merged(self, other: ClassCounts) -> ClassCounts:
        """The counts of both.

        Raises:
            InputError: They count different classes.
        """
        if self.classes != other.classes:
            raise InputError("counts of different classes cannot be merged", hint="both must be of one baseline")
        counts = tuple(one + another for one, another in zip(self.counts, other.counts, strict=True))
        return ClassCounts(classes=self.classes, counts=counts, other=self.other + other.other)


class BaselineSketch(msgspec.Struct, frozen=True, kw_only=True):
    """`sketch.json` of a release: of the validation rows and the float model's answers to them.

    `fields` by the task's kind: classification and keywords `top_score`; detection `boxes` (a picture, at the task's
    score) and `box_score`; embedding `norm`. Top scores are as clients are shown them: after the task's softmax.
    """

    schema: int = 1
    rows: int
    inputs: dict[str, Distribution]
    """Elements of each numeric input, as the model gets them."""
    outputs: dict[str, Distribution]
    """Elements of each numeric output."""
    fields: dict[str, Distribution] = {}
    """Of decoded answers, one value a row (or box)."""
    classes: ClassCounts | None = None
    omitted: int = 0
    """Tensors that are not here, because they are not numbers or were too many."""

    def __post_init__(self) -> None:
        if self.schema != 1:
            raise InputError(f"the sketch has schema {self.schema}, this edgeserve reads 1", hint="update edgeserve")
        count = len(self.inputs) + len(self.outputs) + len(self.fields)
        if count > SKETCH_FIELDS:
            raise InputError(f"the sketch has {count} distributions, at most {SKETCH_FIELDS} are allowed")


class Running:
    """Gathers a `Distribution` value by value (Welford 1962). A histogram's edges come from the baseline."""

    def __init__(self, edges: Sequence[float]) -> None:
        self._edges = tuple(edges)
        self._counts = [0] * (len(self._edges) + 1)
        self._count = self._invalid = 0
        self._mean = self._square = 0.0
        self._min, self._max = math.inf, -math.inf

    def add(self, values: Iterable[float]) -> None:
        """Count more values."""
        for value in values:
            if not -LARGEST < value < LARGEST:
                self._invalid += 1
                continue
            self._counts[bisect.bisect_left(self._edges, value)] += 1
            self._count += 1
            apart = value - self._mean
            self._mean += apart / self._count
            self._square += apart * (value - self._mean)
            self._min, self._max = min(self._min, value), max(self._max, value)

    def distribution(self) -> Distribution:
        """What was gathered so far."""
        if not self._count:
            return Distribution(count=0, invalid=self._invalid, edges=self._edges, counts=tuple(self._counts))
        return Distribution(
            count=self._count,
            invalid=self._invalid,
            mean=self._mean,
            std=math.sqrt(max(self._square, 0.0) / self._count),
            min=self._min,
            max=self._max,
            quantiles=_quantiles(self._edges, self._counts, self._min, self._max),
            edges=self._edges,
            counts=tuple(self._counts),
        )


def psi(expected: Sequence[int], found: Sequence[int]) -> float:
    """Population stability index: sum of (q - p) ln(q / p) over the bins, p and q the shares of baseline and now.

    Symmetric and never negative; 0 = the same shares. See `STABLE_PSI` and `SHIFTED_PSI`. Few values alone make it
    large: of two samples of one distribution it is about (bins - 1) (1 / n + 1 / m), so wait for some hundred values.

    Args:
        expected: Counts of the baseline, bin by bin.
        found: Counts of now, of the same bins.

    Raises:
        InputError: The bins are not as many, a count is negative, or one side counted nothing: no data is no stability.
    """
    if len(expected) != len(found):
        raise InputError(
            f"{len(expected)} and {len(found)} bins cannot be compared", hint="both must be of one baseline"
        )
    if not sum(expected) or not sum(found) or min((*expected, *found)) < 0:
        raise InputError("nothing was counted on one side, or a count is negative", hint="wait for data")
    before, now = _shares(expected), _shares(found)
    return math.fsum((q - p) * math.log(q / p) for p, q in zip(before, now, strict=True))


def read_sketch(data: bytes) -> BaselineSketch:
    """Read `sketch.json`.

    Raises:
        InputError: Too large, not JSON, or not a sketch.
    """
    return documents.decode(data, BaselineSketch, what="sketch.json", limit=MAX_SKETCH_BYTES)


def _shares(counts: Sequence[int]) -> list[float]:
    total = sum(counts) + _SMOOTHING * len(counts)
    return [(count + _SMOOTHING) / total for count in counts]


def _quantiles(edges: Sequence[float], counts: Sequence[int], low: float, high: float) -> tuple[float, ...]:
    """Read off a histogram, as if values were spread evenly in each bin."""
    ends = [low, *(min(max(edge, low), high) for edge in edges), high]
    found = []
    for share in QUANTILES:
        left = share * sum(counts)
        for start, end, count in zip(ends, ends[1:], counts):  # noqa: B905 - ends has one more
            if left <= count:
                found.append(start + (end - start) * left / count if count else start)
                break
            left -= count
        else:
            found.append(high)
    return tuple(found)
