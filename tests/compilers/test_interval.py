from __future__ import annotations

import math
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeserve_compilers.interval import paired_interval

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
