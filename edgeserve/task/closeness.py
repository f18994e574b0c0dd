"""How alike two JSON-like answers of a user's own function are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np


def closeness(found: object, expected: object) -> float:
    """Compare two answers: 0 = nothing alike, 1 = the same.

    Numbers with a fraction are as close as 1 - |difference| / the larger, and lists of them as vectors, so that small
    elements do not decide. Other lists and objects count the mean of their elements and need the same length and keys.
    All else, whole numbers too since they may be classes, is the same or not. NaN is close to nothing.
    """
    if isinstance(found, np.ndarray) or isinstance(expected, np.ndarray):
        found, expected = np.asarray(found).tolist(), np.asarray(expected).tolist()
    if isinstance(found, Mapping) and isinstance(expected, Mapping):
        return (
            _mean([closeness(found[key], expected[key]) for key in found]) if found.keys() == expected.keys() else 0.0
        )
    if isinstance(found, list | tuple) and isinstance(expected, list | tuple):
        if len(found) != len(expected):
            return 0.0
        if any(map(_fraction, (*found, *expected))) and all(map(_number, (*found, *expected))):
            return _near([_float(one) for one in found], [_float(one) for one in expected])
        return _mean([closeness(ours, theirs) for ours, theirs in zip(found, expected, strict=True)])
    if _number(found) and _number(expected) and (_fraction(found) or _fraction(expected)):
        return _near([_float(found)], [_float(expected)])
    return float(bool(found == expected))


def _near(found: list[float], expected: list[float]) -> float:
    apart = sum(0.0 if ours == theirs else abs(ours - theirs) for ours, theirs in zip(found, expected, strict=True))
    size = sum(max(abs(ours), abs(theirs)) for ours, theirs in zip(found, expected, strict=True))
    if apart == 0:
        return 1.0
    return max(0.0, 1.0 - apart / size) if math.isfinite(apart) and math.isfinite(size) else 0.0


def _float(value: Any) -> float:  # noqa: ANN401 - a number
    try:
        return float(value)
    except OverflowError:  # a whole number beyond all floats is as far away as infinity
        return math.inf if value > 0 else -math.inf


def _number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool | np.bool_)


def _fraction(value: object) -> bool:
    return isinstance(value, float | np.floating)


def _mean(shares: list[float]) -> float:
    return sum(shares) / len(shares) if shares else 1.0
