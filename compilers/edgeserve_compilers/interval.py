"""The 95 % interval of the difference of two metrics that were measured on the same rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import NormalDist
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from edgeserve.contracts.limits import BOOTSTRAP_BLOCK, BOOTSTRAP_METRIC_RESAMPLES, BOOTSTRAP_RESAMPLES

METHOD: Final = "Newcombe 1998, paired, method 10, 95 %"
MEAN_METHOD: Final = (
    f"paired bootstrap of the mean difference, BCa, {BOOTSTRAP_RESAMPLES} resamples, "
    "rule of three where none differs, 95 %"
)
METRIC_METHOD: Final = (
    f"paired bootstrap over the rows, percentile, {BOOTSTRAP_METRIC_RESAMPLES} resamples, "
    "rule of three where none differs, 95 %"
)

_Z: Final = 1.959963984540054
_NORMAL: Final = NormalDist()

Floats = npt.NDArray[np.float64]


class Judged(Protocol):
    """What an interval needs of a metric: `edgeserve.task.score.Score`."""

    @property
    def value(self) -> float:
        """Of all rows."""

    @property
    def rows(self) -> int:
        """How many rows there are."""

    @property
    def per_row(self) -> Floats | None:
        """float64 [rows] whose mean is `value`; None for a metric that is no mean, such as mAP."""

    def at(self, rows: npt.NDArray[np.int64]) -> float:
        """Of some rows, int64 [m]; a row may be named more than once."""


def drop_interval(ours: Judged, floats: Judged, *, seed: int = 0) -> tuple[float, float, str]:
    """95 % interval of `floats.value - ours.value`, and the method that gave it.

    Rows that are right or wrong: Newcombe's. Means of graded rows: bias-corrected and accelerated (BCa) bootstrap of
    the mean difference. Other metrics: percentile bootstrap that computes both anew on the same resampled rows.
    Efron B, Tibshirani RJ, "An Introduction to the Bootstrap" (1993), chapters 13 and 14.

    A bootstrap of rows that all differ alike has no width, as if nothing else could be in the rows that were not seen.
    The rule of three then says how many may be otherwise: 3 of n, each of them wholly wrong (Hanley JA, Lippman-Hand A,
    "If nothing goes wrong, is everything all right?", JAMA 249:1743-1745, 1983).

    Args:
        ours: The variant's score.
        floats: The float model's, of the same rows.
        seed: Same seed, same interval.

    Returns:
        Lower end, upper end (they hold the difference itself), method: always the same for one metric.
    """
    rows, difference = floats.rows, floats.value - ours.value
    if ours.per_row is not None and floats.per_row is not None:
        if _binary(ours.per_row) and _binary(floats.per_row):
            return *_newcombe(ours.per_row == 1, floats.per_row == 1), METHOD
        low, high = _bca(floats.per_row - ours.per_row, np.random.default_rng(seed))
        method = MEAN_METHOD
    else:
        low, high = _percentile(ours, floats, rows, np.random.default_rng(seed))
        method = METRIC_METHOD
    if not low < high:
        half = min(3 / rows, 1.0)
        low, high = difference - half, difference + half
    return min(low, difference), max(high, difference), method


def paired_interval(*, both: int, first_only: int, second_only: int, neither: int) -> tuple[float, float]:
    """Interval of p(first) - p(second) from rows that both judged.

    Newcombe RG, "Improved confidence intervals for the difference between binomial proportions based on paired
    data", Statistics in Medicine 17:2635-2650 (1998), method 10: Wilson score intervals of the two proportions,
    joined with their correlation. Unlike Wald's it has a width when no row differs, and stays within -1..1.

    Args:
        both: Rows that both have right.
        first_only: Rows that only the first has right.
        second_only: Rows that only the second has right.
        neither: Rows that both have wrong.

    Returns:
        Lower and upper end.
    """
    n = both + first_only + second_only + neither
    if n == 0:
        return -1.0, 1.0
    p1, p2 = (both + first_only) / n, (both + second_only) / n
    low1, high1 = _wilson(p1, n)
    low2, high2 = _wilson(p2, n)
    phi = _correlation(both, first_only, second_only, neither)
    below = math.sqrt(max((p1 - low1) ** 2 - 2 * phi * (p1 - low1) * (high2 - p2) + (high2 - p2) ** 2, 0.0))
    above = math.sqrt(max((high1 - p1) ** 2 - 2 * phi * (high1 - p1) * (p2 - low2) + (p2 - low2) ** 2, 0.0))
    return max(p1 - p2 - below, -1.0), min(p1 - p2 + above, 1.0)


def _binary(values: Floats) -> bool:
    return bool(np.isin(values, (0.0, 1.0)).all())


def _newcombe(ours: npt.NDArray[np.bool_], floats: npt.NDArray[np.bool_]) -> tuple[float, float]:
    return paired_interval(
        both=int(np.count_nonzero(floats & ours)),
        first_only=int(np.count_nonzero(floats & ~ours)),
        second_only=int(np.count_nonzero(~floats & ours)),
        neither=int(np.count_nonzero(~floats & ~ours)),
    )


def _bca(differences: Floats, random: np.random.Generator) -> tuple[float, float]:
    """Of the mean: Efron and Tibshirani (14.9, 14.14, 14.15); the jackknife of a mean has a closed form."""
    mean = float(differences.mean())
    centred = differences - mean
    spread = float((centred**2).sum())
    if math.sqrt(spread / len(centred)) <= 1e-12 * max(1.0, abs(mean)):
        return mean, mean
    means = np.concatenate([differences[rows].mean(axis=1) for rows in _draws(len(differences), random)])
    below = (np.count_nonzero(means < mean) + np.count_nonzero(means == mean) / 2) / len(means)
    bias = _NORMAL.inv_cdf(min(max(below, 1 / len(means)), 1 - 1 / len(means)))
    acceleration = float((centred**3).sum()) / (6 * spread**1.5)
    shares = [_NORMAL.cdf(bias + (bias + z) / (1 - acceleration * (bias + z))) for z in (-_Z, _Z)]
    low, high = np.quantile(means, shares)
    return float(low), float(high)


def _draws(rows: int, random: np.random.Generator) -> Iterator[npt.NDArray[np.int64]]:
    """Row numbers of all resamples, int64 [some, rows], as many at once as memory allows."""
    at_once = max(BOOTSTRAP_BLOCK // rows, 1)
    for start in range(0, BOOTSTRAP_RESAMPLES, at_once):
        yield random.integers(rows, size=(min(at_once, BOOTSTRAP_RESAMPLES - start), rows))


def _percentile(ours: Judged, floats: Judged, rows: int, random: np.random.Generator) -> tuple[float, float]:
    differences = []
    for _ in range(BOOTSTRAP_METRIC_RESAMPLES):
        drawn = random.integers(rows, size=rows)
        differences.append(floats.at(drawn) - ours.at(drawn))
    finite = np.array([value for value in differences if math.isfinite(value)])
    if not len(finite):
        return -1.0, 1.0  # the metric says nothing of any resample
    low, high = np.quantile(finite, (0.025, 0.975))
    return float(low), float(high)


def _wilson(p: float, n: int) -> tuple[float, float]:
    z2 = _Z * _Z
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def _correlation(both: int, first_only: int, second_only: int, neither: int) -> float:
    margins = (both + first_only) * (second_only + neither) * (both + second_only) * (first_only + neither)
    if margins == 0:
        return 0.0
    determinant = both * neither - first_only * second_only
    n = both + first_only + second_only + neither
    corrected = max(determinant - n / 2, 0.0) if determinant > 0 else float(determinant)
    return corrected / math.sqrt(margins)
