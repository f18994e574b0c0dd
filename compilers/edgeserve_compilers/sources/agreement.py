"""Holding a converted model against its original: exit codes of converters prove nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve.runtimes.base import Tensor, Tensors

SEEDS: Final = (0, 1, 2)
"""Trial inputs on which a conversion has to agree."""
TRIAL_BATCH: Final = 2
TRIAL_SIZES: Final = (8, 64, 256, 512, 1, 4096)
"""Tried for dimensions that may vary, apart from the batch, until the original takes them."""
_RELATIVE: Final = 1e-3
"""Of the largest value of an output: float32 implementations of one deep network were seen to differ by 1e-4 of it."""
_ABSOLUTE: Final = 1e-5
_SAME_NUMBERS: Final = 0.9
"""Share of integers (classes, indices) that must be equal: near ties may fall either way."""


def trial_inputs(signature: Signature, seed: int, *, shapes: Mapping[str, tuple[int, ...]] | None = None) -> Tensors:
    """Random rows: floats ~ N(0, 1), bytes over their range, other integers 0 or 1 (as indices they are always valid).

    Dimensions that may vary are those of `shapes`; without it, they become 2.

    Raises:
        InputError: An input takes text, for which there are no random rows.
    """
    random = np.random.default_rng(seed)
    chosen = shapes or {}
    return {spec.name: _trial(spec, random, chosen.get(spec.name)) for spec in signature.inputs}


def difference(expected: Tensor, found: Tensor) -> str:
    """Say how two arrays differ more than rounding explains; empty = they do not."""
    if expected.shape != found.shape:
        return f"shape {list(found.shape)} instead of {list(expected.shape)}"
    if expected.size == 0:
        return ""
    if expected.dtype.kind in "fc":
        want, have = expected.astype(np.float64), found.astype(np.float64)
        finite = np.isfinite(want)
        if not np.array_equal(finite, np.isfinite(have)) or not np.array_equal(np.isnan(want), np.isnan(have)):
            return "NaN or infinity in other places"
        if not finite.any():
            return ""
        error = float(np.abs(want[finite] - have[finite]).max())
        bound = _RELATIVE * float(np.abs(want[finite]).max()) + _ABSOLUTE
        return f"values that differ by up to {error:.3g} where {bound:.3g} is rounding" if error > bound else ""
    equal = float((expected == found).mean())
    return f"{1 - equal:.0%} other values" if equal < _SAME_NUMBERS else ""


def require_agreement(
    reference: Callable[[Tensors], Sequence[Tensor]],
    converted: Callable[[Tensors], Tensors],
    inputs: Sequence[Tensors],
    *,
    where: str,
) -> None:
    """Run both on `inputs` and compare output by output, in order.

    Raises:
        InputError: They disagree, or the converted model fails.
    """
    for rows in inputs:
        expected = reference(rows)
        found = converted(rows)
        if len(expected) != len(found):
            raise _disagrees(where, f"{len(found)} outputs instead of {len(expected)}")
        for want, (name, have) in zip(expected, found.items(), strict=True):
            if text := difference(np.asarray(want), np.asarray(have)):
                raise _disagrees(where, f"output {name!r} has {text}")


def _disagrees(where: str, what: str) -> InputError:
    return InputError(
        f"{where} was converted to ONNX, but does not compute the same: {what}",
        hint="export it as ONNX with its own framework, and give that file",
    )


def _trial(spec: TensorSpec, random: np.random.Generator, shape: tuple[int, ...] | None) -> Tensor:
    if spec.datatype is Datatype.BYTES:
        raise InputError(f"input {spec.name!r} takes text, which cannot be tried")
    dimensions = shape or tuple(TRIAL_BATCH if size == -1 else size for size in spec.shape)
    kind = np.dtype(spec.datatype.numpy_name)
    if kind.kind == "f":
        return np.asarray(random.standard_normal(dimensions), kind)
    return np.asarray(random.integers(0, 256 if kind == np.uint8 else 2, dimensions), kind)
