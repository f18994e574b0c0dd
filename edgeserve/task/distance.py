"""How far numbers are from what they should be: errors over a scale, cosine, noise over signal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeserve.contracts.errors import InputError
from edgeserve.task.answers import Answers, Truth

Numbers = npt.NDArray[np.float64]


def spread(truth: Truth) -> float:
    """Mean absolute deviation of numbers [rows, ...] from their median over the rows; only of finite ones."""
    table = _table(truth)
    table = np.where(np.isfinite(table), table, np.nan)
    table = table[:, ~np.isnan(table).all(axis=0)]
    return float(np.nanmean(np.abs(table - np.nanmedian(table, axis=0)))) if table.size else 0.0


def relative_errors(answers: Answers, truth: Truth, scale: float) -> Numbers:
    """Absolute errors over `scale`: float64 [rows, n]; 1 where either number is not finite and they are not equal.

    Args:
        answers: Numbers, one array a row.
        truth: The same numbers as they should be.
        scale: 0 = the spread of the truth; without any spread its mean size, and 1 where that is 0, too.

    Raises:
        InputError: They have different numbers of elements.
    """
    ours, theirs = _pair(answers, truth)
    sizes = np.abs(theirs[np.isfinite(theirs)])
    scale = scale or spread(theirs) or (float(sizes.mean()) if sizes.size else 0.0) or 1.0
    with np.errstate(invalid="ignore", over="ignore"):
        errors = np.abs(ours - theirs) / scale
    return np.where(ours == theirs, 0.0, np.where(np.isfinite(errors), errors, 1.0))


def cosines(answers: Answers, truth: Truth) -> Numbers:
    """Cosine of the angle between two vectors: float64 [rows], -1..1.

    Equal vectors have 1, of length 0, too; otherwise it is 0 where one has no length or is not finite.

    Raises:
        InputError: They have different numbers of elements.
    """
    ours, theirs = _pair(answers, truth)
    with np.errstate(invalid="ignore", over="ignore"):
        lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
        dots = (ours * theirs).sum(axis=1)
    usable = np.isfinite(dots) & np.isfinite(lengths) & (lengths > 0)
    found = np.divide(dots, lengths, out=np.zeros_like(dots), where=usable).clip(-1.0, 1.0)
    return np.where((ours == theirs).all(axis=1), 1.0, found)


def powers(answers: list[Any], truth: Truth) -> tuple[Numbers, Numbers]:
    """Power of the noise and of the signal of each output: float64 [rows, outputs] twice.

    An infinity that is met exactly is neither; one that is missed, and NaN, is endless noise.

    Args:
        answers: Outputs by name, one mapping a row.
        truth: The same as they should be; a bare array stands for a model's only output.

    Raises:
        InputError: An output is missing or has another shape.
    """
    noise, signal = [], []
    for found, expected in zip(answers, truth, strict=True):
        pairs = [_same_shape(found, name, values) for name, values in _by_name(expected, found).items()]
        with np.errstate(invalid="ignore", over="ignore"):
            noise.append([_power(np.where(ours == theirs, 0.0, ours - theirs)) for ours, theirs in pairs])
            signal.append([_power(np.where(np.isfinite(theirs), theirs, 0.0)) for _, theirs in pairs])
    return np.array(noise), np.array(signal)


def clean_share(noise: Numbers, signal: Numbers) -> Numbers:
    """1 - noise power / signal power, not below 0; 1 without noise."""
    usable = (signal > 0) & np.isfinite(noise)
    ratio = np.divide(noise, signal, out=np.ones_like(noise), where=usable)
    return np.where(noise == 0, 1.0, 1.0 - ratio.clip(max=1.0))


def _power(values: Numbers) -> float:
    total = float(np.square(values).sum())
    return total if math.isfinite(total) else math.inf


def _table(numbers: Truth | Answers) -> Numbers:
    table = np.asarray(numbers, np.float64)
    return table.reshape(len(table), -1)


def _pair(answers: Answers, truth: Truth) -> tuple[Numbers, Numbers]:
    ours, theirs = _table(answers), _table(truth)
    if ours.shape != theirs.shape:
        raise InputError(
            f"the model answers {ours.shape[1]} numbers a row, the labels have {theirs.shape[1]}",
            hint="name the output that the labels are for",
        )
    return ours, theirs


def _by_name(expected: object, found: Mapping[str, Numbers]) -> Mapping[str, object]:
    if isinstance(expected, Mapping):
        return expected
    if len(found) != 1:
        raise InputError(
            f"labels of a model with {len(found)} outputs must name them", hint=f"outputs: {', '.join(found)}"
        )
    return dict.fromkeys(found, expected)


def _same_shape(found: Mapping[str, Numbers], name: str, expected: object) -> tuple[Numbers, Numbers]:
    ours, theirs = found.get(name), np.asarray(expected, np.float64)
    if ours is None or ours.shape != theirs.shape:
        shape = "no such output" if ours is None else list(ours.shape)
        raise InputError(f"output {name[:80]!r} should have shape {list(theirs.shape)}, has {shape}")
    return ours, theirs
