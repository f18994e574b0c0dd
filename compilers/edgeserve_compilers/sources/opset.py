"""Operator sets: what is too old for quantization is brought up, and proven to compute the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import onnx

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.limits import MAX_MODEL_FILE_BYTES
from edgeserve.runtimes.base import Tensor, Tensors
from edgeserve.runtimes.checks import first_line
from edgeserve_compilers.sources.agreement import SEEDS, TRIAL_BATCH, TRIAL_SIZES, require_agreement, trial_inputs
from edgeserve_compilers.sources.session import Session
from edgeserve_compilers.sources.signature import signature_of, trial_shapes

OLDEST_OPSET: Final = 13
"""Per-channel QuantizeLinear came with it."""
UPGRADED_OPSET: Final = 17
"""The newest that every runtime of the profiles loads."""
_OLDEST_RUN: Final = 7
"""ONNX Runtime runs no older operator set, so that an upgrade from one cannot be checked."""


def opset_of(model: onnx.ModelProto) -> int:
    """Version of the standard operator set; 0 = none is named."""
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def upgraded(model: onnx.ModelProto, where: str) -> onnx.ModelProto:
    """Return `model` itself, or its equal with opset 17 when it has less than 13.

    Raises:
        InputError: It cannot be upgraded, or computes something else when it is.
    """
    old = opset_of(model)
    if old >= OLDEST_OPSET:
        return model
    hint = f"export it again with opset {UPGRADED_OPSET}"
    try:
        result = onnx.version_converter.convert_version(model, UPGRADED_OPSET)
        onnx.checker.check_model(result)
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
        raise InputError(
            f"{where} has opset {old}, which cannot be upgraded to {UPGRADED_OPSET}: {first_line(error)}", hint=hint
        ) from error
    if old >= _OLDEST_RUN and result.ByteSize() < MAX_MODEL_FILE_BYTES:
        try:
            require_same(model, result, where=where)
        except InputError as error:
            raise InputError(
                f"{where} has opset {old}, and computes something else with {UPGRADED_OPSET}: {error.message}",
                hint=hint,
            ) from error
    return result


def require_same(before: onnx.ModelProto, after: onnx.ModelProto, *, where: str) -> bool:
    """Run both on random rows; whether it could be tried: not when `before` takes none of the sizes tried.

    Raises:
        InputError: They disagree, or `after` cannot be run.
    """
    signature = signature_of(before, where)
    changed = Session(after.SerializeToString(), where)
    try:
        original = Session(before.SerializeToString(), where)
    except InputError:
        return False
    for shapes in _distinct([trial_shapes(before, batch=TRIAL_BATCH, size=size) for size in TRIAL_SIZES]):
        try:
            rows = [trial_inputs(signature, seed, shapes=shapes) for seed in SEEDS]
            expected = [list(original.run(row).values()) for row in rows]
        except InputError:
            continue
        require_agreement(_recorded(expected), changed.run, rows, where=where)
        return True
    return False


def _recorded(answers: list[list[Tensor]]) -> Callable[[Tensors], list[Tensor]]:
    """Answers that are there already, one a call."""
    following = iter(answers)
    return lambda _: next(following)


def _distinct(shapes: list[dict[str, tuple[int, ...]]]) -> list[dict[str, tuple[int, ...]]]:
    return [each for index, each in enumerate(shapes) if each not in shapes[:index]]
