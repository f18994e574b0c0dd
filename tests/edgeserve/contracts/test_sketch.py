from __future__ import annotations

import math
import statistics
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeserve.contracts.documents import encode
from edgeserve.contracts.errors import InputError
from edgeserve.contracts.limits import MAX_SKETCH_BYTES, SKETCH_FIELDS
from edgeserve.contracts.sketch import (
    QUANTILES,
    SHIFTED_PSI,
    STABLE_PSI,
    BaselineSketch,
    ClassCounts,
    Distribution,
    Running,
    psi,
    read_sketch,
)

EDGES = (-1.0, 0.0, 0.5, 10.0)
VALUES = st.lists(st.floats(-100, 100), max_size=60)
BINS = st.lists(st.integers(0, 1000), min_size=4, max_size=4)


def gathered(values: list[float]) -> Distribution:
    running = Running(EDGES)
    running.add(values)
    return running.distribution()


@given(values=VALUES)
def test_what_is_gathered_value_by_value_is_what_the_values_are(values: list[float]) -> None:
    found = gathered(values)
    assert found.count == len(values) == sum(found.counts)
    bounds = (-math.inf, *EDGES, math.inf)
    expected = [sum(low < value <= high for value in values) for low, high in pairwise(bounds)]
    assert list(found.counts) == expected
    if values:
        assert found.mean == pytest.approx(statistics.fmean(values), abs=1e-9)
        assert found.std == pytest.approx(statistics.pstdev(values), abs=1e-6)
        assert (found.min, found.max) == (min(values), max(values))
        assert all(found.min <= quantile <= found.max for quantile in found.quantiles)
        assert list(found.quantiles) == sorted(found.quantiles)


@given(one=VALUES, other=VALUES)
def test_sketches_of_parts_add_up_to_the_sketch_of_the_whole(one: list[float], other: list[float]) -> None:
    merged, whole = gathered(one).merged(gathered(other)), gathered(one + other)
    assert merged.counts == whole.counts
    assert (merged.count, merged.min, merged.max) == (whole.count, whole.min, whole.max)
    assert merged.mean == pytest.approx(whole.mean, abs=1e-9)
    assert merged.std == pytest.approx(whole.std, abs=1e-6)
    assert merged.quantiles == pytest.approx(whole.quantiles)


def test_quantiles_are_read_off_the_histogram() -> None:
    running = Running([25.0, 50.0, 75.0])
    running.add(range(1, 101))
    assert running.distribution().quantiles == pytest.approx([100 * share for share in QUANTILES], abs=1.1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e200])
def test_what_is_no_number_is_counted_apart(value: float) -> None:
    found = gathered([0.25, value])
    assert (found.count, found.invalid, found.mean) == (1, 1, 0.25)
    assert gathered([value]).merged(found).invalid == 2
    assert found.merged(gathered([value])).mean == 0.25


def test_sketches_of_two_baselines_do_not_merge() -> None:
    other = Running([0.0])
    with pytest.raises(InputError, match="different edges"):
        gathered([1.0]).merged(other.distribution())
    with pytest.raises(InputError, match="different classes"):
        ClassCounts(classes=(1,), counts=(2,)).merged(ClassCounts(classes=(2,), counts=(2,)))


def test_class_counts_add_up() -> None:
    day = ClassCounts(classes=(3, 1), counts=(5, 2), other=1)
    assert day.merged(day) == ClassCounts(classes=(3, 1), counts=(10, 4), other=2)
    assert day.bins == (5, 2, 1)


@given(expected=BINS, found=BINS)
def test_the_index_is_symmetric_and_never_negative(expected: list[int], found: list[int]) -> None:
    if not sum(expected) or not sum(found):
        with pytest.raises(InputError, match="nothing was counted"):
            psi(expected, found)
        return
    index = psi(expected, found)
    assert index >= 0
    assert index == pytest.approx(psi(found, expected))
    assert psi(expected, expected) == 0


def test_the_index_is_the_sum_over_the_bins_of_share_differences_times_log_ratios() -> None:
    exact = (0.3 - 0.5) * math.log(0.3 / 0.5) + (0.7 - 0.5) * math.log(0.7 / 0.5)
    assert psi([5_000_000, 5_000_000], [3_000_000, 7_000_000]) == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize(
    ("found", "low", "high"),
    [
        ([1010, 990, 1005, 995], 0.0, STABLE_PSI),
        ([700, 900, 1100, 1300], 0.0, STABLE_PSI),
        ([400, 700, 1300, 1600], STABLE_PSI, 1.0),
        ([0, 0, 0, 4000], SHIFTED_PSI, 20.0),
    ],
    ids=["the same", "a little", "shifted", "all in one bin"],
)
def test_the_index_grows_with_the_shift(found: list[int], low: float, high: float) -> None:
    assert low <= psi([1000] * 4, found) <= high


def test_the_index_of_other_bins_is_refused() -> None:
    with pytest.raises(InputError, match="2 and 3 bins"):
        psi([1, 2], [1, 2, 3])
    with pytest.raises(InputError, match="negative"):
        psi([1, 2], [3, -1])


WHOLE = {"count": 3, "edges": [0.0, 1.0], "counts": [1, 1, 1]}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"counts": [1, 2]}, "edges and one count more"),
        ({"edges": [], "counts": [3]}, "edges and one count more"),
        ({"edges": [1.0, 1.0]}, "must ascend"),
        ({"edges": [1.0, 0.0]}, "must ascend"),
        ({"count": 4}, "hold 3 values, 4 were counted"),
        ({"counts": [4, -1, 0]}, "negative"),
        ({"count": 1 << 60, "counts": [0, 1 << 60, 0]}, "above 2"),
        ({"quantiles": [0.0]}, "7 quantiles"),
        ({"invalid": -1}, "negative"),
    ],
)
def test_a_wrong_distribution_is_refused(change: dict[str, object], complaint: str) -> None:
    assert msgspec.convert(WHOLE, Distribution).count == 3
    document = {"rows": 3, "inputs": {"x": {**WHOLE, **change}}, "outputs": {}}
    with pytest.raises(InputError, match=complaint):
        read_sketch(encode(document))


@pytest.mark.parametrize(
    ("document", "complaint"),
    [
        ({"schema": 2, "rows": 1, "inputs": {}, "outputs": {}}, "schema 2"),
        ({"rows": 1, "inputs": {}, "outputs": {}, "classes": {"classes": [1], "counts": []}}, "a count for each"),
        ({"rows": 1, "inputs": {}, "outputs": {}, "classes": {"classes": [1, 1], "counts": [1, 1]}}, "twice"),
        ({"rows": 1, "inputs": {}, "outputs": {}, "classes": {"classes": [1], "counts": [-1]}}, "negative"),
        ({"rows": 1, "inputs": {f"x{n}": WHOLE for n in range(SKETCH_FIELDS + 1)}, "outputs": {}}, "at most 64"),
        ({"inputs": {}}, "rows"),
        ({"rows": "x" * MAX_SKETCH_BYTES}, "bytes"),
    ],
    ids=["schema", "counts", "class twice", "negative", "too many", "missing", "too long"],
)
def test_a_wrong_sketch_is_refused(document: dict[str, object], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        read_sketch(encode(document))


def test_a_sketch_survives_the_wire() -> None:
    whole = BaselineSketch(
        rows=2,
        inputs={"x": gathered([0.1, 7.0])},
        outputs={},
        fields={"top_score": gathered([0.9])},
        classes=ClassCounts(classes=(4,), counts=(2,)),
    )
    assert read_sketch(encode(whole)) == whole


def test_a_device_finds_drift_with_the_baseline_alone() -> None:
    baseline = gathered([number / 100 for number in range(-300, 1200)])
    same, shifted = Running(baseline.edges), Running(baseline.edges)
    for number in range(-300, 1200, 7):
        same.add([number / 100])
        shifted.add([number / 100 + 4])
    assert psi(baseline.counts, same.distribution().counts) < STABLE_PSI
    assert psi(baseline.counts, shifted.distribution().counts) > SHIFTED_PSI
