from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeserve_compilers.html import words

MINUS = "\N{MINUS SIGN}"


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (5_690_000, "5.69 MB"), (21_940_112, "21.9 MB"),
     (999_499, "999 kB"), (999_500, "1.00 MB"), (2_500_000_000, "2.50 GB")],
)  # fmt: skip
def test_sizes(count: int, text: str) -> None:
    assert words.size(count) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0.042, "42 µs"), (0.9994, "999 µs"), (1.0, "1.00 ms"), (12.345, "12.3 ms"), (1234.0, "1234 ms")],
)
def test_durations(number: float, text: str) -> None:
    assert words.milliseconds(number) == text


@pytest.mark.parametrize(
    ("number", "metric", "text"),
    [
        (0.98421, "top1", "98.42 %"),
        (0.51234, "map", "0.5123"),
        (-0.5, "mae", f"{MINUS}0.5000"),
        (0.7, "mine:recall", "0.7000"),
        (math.nan, "top1", "not a number"),
    ],
)
def test_values(number: float, metric: str, text: str) -> None:
    assert words.value(number, metric) == text


@pytest.mark.parametrize(
    ("number", "metric", "text"),
    [
        (0.0042, "top1", "0.42 points"),
        (-0.0042, "top1", f"{MINUS}0.42 points"),
        (-0.000001, "top1", "0.00 points"),
        (0.0042, "map", "0.0042"),
        (math.inf, "map", "not a number"),
    ],
)
def test_drops(number: float, metric: str, text: str) -> None:
    assert words.drop(number, metric) == text


@pytest.mark.parametrize(
    ("new", "old", "text"),
    [(1, 4, "4.00\N{MULTIPLICATION SIGN} smaller"), (4, 1, "4.00\N{MULTIPLICATION SIGN} larger"), (1, 1.001, "same"),
     (0, 1, "\N{EN DASH}"), (1, math.nan, "\N{EN DASH}")],
)  # fmt: skip
def test_comparisons(new: float, old: float, text: str) -> None:
    assert words.times(new, old, better="smaller", worse="larger") == text


@given(text=st.text(), most=st.integers(5, 80))
def test_long_texts_keep_both_ends(text: str, most: int) -> None:
    found = words.short(text, most)
    assert len(found) == min(most, len(text))
    assert (found == text) == (len(text) <= most)
    assert (text[:1], text[-1:]) == (found[:1], found[-1:])


def test_noise_shares_and_counts() -> None:
    assert words.decibels(None) == "no noise"
    assert words.decibels(-3.21) == f"{MINUS}3.2 dB"
    assert words.share(1.0) == "100 %"
    assert words.share(0.9744) == "97.44 %"
    assert words.count(1234567) == "1\u202f234\u202f567"
    assert words.metric_name("top1") == "top-1 accuracy"
    assert words.metric_name("mine:recall") == "mine:recall"
