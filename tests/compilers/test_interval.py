from __future__ import annotations

import math
from itertools import product

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgeserve.task.score import Score
from edgeserve_compilers.interval import MEAN_METHOD, METHOD, METRIC_METHOD, drop_interval, paired_interval

Floats = npt.NDArray[np.float64]
SHARES = arrays.arrays(np.float64, st.integers(1, 40), elements=st.floats(0, 1, width=32))
COUNTS = st.integers(0, 500)


@given(both=COUNTS, first=COUNTS, second=COUNTS, neither=COUNTS)
def test_it_holds_the_difference_and_stays_within_one(both: int, first: int, second: int, neither: int) -> None:
    low, high = paired_interval(both=both, first_only=first, second_only=second, neither=neither)
    n = both + first + second + neither
    difference = (first - second) / n if n else 0.0
    assert -1 <= low <= difference + 1e-12
    assert difference - 1e-12 <= high <= 1


@given(both=COUNTS, first=COUNTS, second=COUNTS, neither=COUNTS)
def test_swapping_the_two_mirrors_it(both: int, first: int, second: int, neither: int) -> None:
    low, high = paired_interval(both=both, first_only=first, second_only=second, neither=neither)
    mirrored = paired_interval(both=both, first_only=second, second_only=first, neither=neither)
    assert mirrored == pytest.approx((-high, -low))


def test_it_has_a_width_when_no_row_differs_and_narrows_with_rows() -> None:
    widths = []
    for rows in (20, 200, 2000):
        low, high = paired_interval(both=rows, first_only=0, second_only=0, neither=0)
        assert low < 0 < high
        widths.append(high - low)
    assert widths == sorted(widths, reverse=True)


def test_pairing_makes_it_narrower_than_two_separate_samples() -> None:
    paired = paired_interval(both=80, first_only=5, second_only=5, neither=10)
    unrelated = paired_interval(both=72, first_only=13, second_only=13, neither=2)
    assert paired[1] - paired[0] < unrelated[1] - unrelated[0]


def test_no_rows_say_nothing() -> None:
    assert paired_interval(both=0, first_only=0, second_only=0, neither=0) == (-1.0, 1.0)


@pytest.mark.parametrize(
    ("truth", "at_most"),
    [
        ((0.70, 0.10, 0.05, 0.15), 0.98),
        ((0.40, 0.20, 0.20, 0.20), 0.98),
        ((0.90, 0.03, 0.01, 0.06), 1.0),
        ((0.95, 0.02, 0.02, 0.01), 1.0),
    ],
    ids=str,
)
def test_it_covers_the_truth_at_least_95_times_in_100(truth: tuple[float, float, float, float], at_most: float) -> None:
    """Exact coverage, summed over every outcome of 30 rows. Where rows hardly ever differ, it is wider than need be."""
    n, (both, first, second, neither) = 30, truth
    covered = 0.0
    for a, b, c in product(range(n + 1), repeat=3):
        d = n - a - b - c
        if d < 0:
            continue
        ways = math.comb(n, a) * math.comb(n - a, b) * math.comb(n - a - b, c)
        chance = ways * both**a * first**b * second**c * neither**d
        low, high = paired_interval(both=a, first_only=b, second_only=c, neither=d)
        covered += chance * (low <= first - second <= high)
    assert 0.945 <= covered <= at_most


def of_rows(per_row: Floats) -> Score:
    return Score(
        value=float(per_row.mean()), per_row=per_row, over=lambda rows: float(per_row[rows].mean()), rows=len(per_row)
    )


def of_sums(noise: Floats, signal: Floats) -> Score:
    """A metric that is no mean of rows: a ratio of sums."""

    def over(rows: npt.NDArray[np.int64]) -> float:
        return float(1 - noise[rows].sum() / signal[rows].sum())

    return Score(value=over(np.arange(len(noise))), per_row=None, over=over, rows=len(noise))


def test_rows_that_are_right_or_wrong_get_newcombes_interval() -> None:
    floats = np.array([1.0] * 85 + [0.0] * 15)
    ours = np.array([1.0] * 80 + [0.0] * 5 + [1.0] * 5 + [0.0] * 10)
    low, high, method = drop_interval(of_rows(ours), of_rows(floats))
    assert (low, high) == paired_interval(both=80, first_only=5, second_only=5, neither=10)
    assert method == METHOD


@settings(max_examples=50)
@given(floats=SHARES, seed=st.integers(0, 9), data=st.data())
def test_the_interval_of_graded_rows_holds_the_drop_and_is_the_same_for_the_same_seed(
    floats: Floats, seed: int, data: st.DataObject
) -> None:
    ours = data.draw(arrays.arrays(np.float64, floats.shape, elements=st.floats(0, 1, width=32)))
    first = drop_interval(of_rows(ours), of_rows(floats), seed=seed)
    low, high, method = first
    assert low <= floats.mean() - ours.mean() <= high
    assert low < high
    assert first == drop_interval(of_rows(ours), of_rows(floats), seed=seed)
    assert method in (METHOD, MEAN_METHOD)


def test_a_loss_of_the_one_is_a_gain_of_the_other() -> None:
    random = np.random.default_rng(8)
    ours, floats = random.random(300), random.random(300)
    low, high, _ = drop_interval(of_rows(ours), of_rows(floats))
    gain_low, gain_high, _ = drop_interval(of_rows(floats), of_rows(ours))
    assert (-gain_high, -gain_low) == pytest.approx((low, high), abs=0.004)


@pytest.mark.parametrize("constant", [0.0, 0.25], ids=["no row differs", "all rows differ alike"])
def test_rows_that_all_differ_alike_still_leave_room_for_those_that_were_not_seen(constant: float) -> None:
    for rows in (10, 1000):
        floats = np.linspace(0.3, 0.9, rows)
        expected = (constant - 3 / rows, constant + 3 / rows, MEAN_METHOD)
        assert drop_interval(of_rows(floats - constant), of_rows(floats)) == pytest.approx(expected)
        ones = np.ones(rows)
        low, high, method = drop_interval(of_sums(ones, 4 * ones), of_sums(ones, 4 * ones))
        assert (low, high, method) == (pytest.approx(-3 / rows), pytest.approx(3 / rows), METRIC_METHOD)


def test_the_method_does_not_depend_on_whether_the_two_differ() -> None:
    graded = of_rows(np.linspace(0.2, 0.8, 30))
    other = of_rows(np.linspace(0.1, 0.9, 30))
    assert drop_interval(graded, graded)[2] == drop_interval(other, graded)[2] == MEAN_METHOD


def test_a_metric_that_says_nothing_of_any_resample_leaves_everything_open() -> None:
    silent = Score(value=0.5, per_row=None, over=lambda rows: math.nan, rows=10)
    assert drop_interval(silent, silent)[:2] == (-1.0, 1.0)


def test_the_mean_of_graded_rows_is_covered_about_95_times_in_100() -> None:
    """Skewed losses, as quantization makes them: most rows lose nothing, some a lot."""
    random = np.random.default_rng(1)
    truth = 0.3 * 2 / (2 + 5)
    covered = 0
    for _ in range(400):
        loss = random.beta(2, 5, 120) * (random.random(120) < 0.3)
        floats = 0.5 + random.random(120) / 2
        low, high, method = drop_interval(of_rows(floats - loss), of_rows(floats))
        covered += low <= truth <= high
        assert method == MEAN_METHOD
    assert 0.925 <= covered / 400 <= 0.975


def test_a_metric_that_is_no_mean_is_covered_about_95_times_in_100() -> None:
    random = np.random.default_rng(2)
    covered = 0
    for _ in range(300):
        signal = random.gamma(4, 1, 150)
        noises = [signal * random.uniform(0, 2 * share, 150) for share in (0.10, 0.04)]
        low, high, method = drop_interval(of_sums(noises[0], signal), of_sums(noises[1], signal))
        covered += low <= 0.06 <= high
        assert method == METRIC_METHOD
    assert 0.91 <= covered / 300 <= 0.98
