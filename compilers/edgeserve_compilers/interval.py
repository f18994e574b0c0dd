"""The 95 % interval of a paired difference of proportions."""

from __future__ import annotations

import math
from typing import Final

METHOD: Final = "Newcombe 1998, paired, method 10, 95 %"
_Z: Final = 1.959963984540054


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
