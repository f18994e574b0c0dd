"""The golden set: what the float model answers, and a device must before it activates a variant."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from edgeserve import npz
from edgeserve.contracts.errors import DeviceError, InputError
from edgeserve.contracts.limits import MAX_GOLDEN_BYTES
from edgeserve.contracts.task import Task
from edgeserve.contracts.variant import Tolerance
from edgeserve.runtimes.base import LoadedModel, Tensors
from edgeserve.runtimes.rows import run_rows
from edgeserve.task import correct, predictions

_INPUT: Final = "in."
_OUTPUT: Final = "out."


class GoldenMismatch(DeviceError):  # noqa: N818 - it names the finding
    """This device computes something else than the golden set says: the variant must not be activated here."""


@dataclass(frozen=True, kw_only=True)
class GoldenResult:
    """How well a variant reproduced a golden set."""

    rows: int
    agreement: float
    """Share of rows whose arg-max is that of the golden outputs."""
    max_abs_difference: float
    """Over all elements of all outputs."""


@dataclass(frozen=True, kw_only=True)
class Golden:
    """Inputs and expected outputs by name; the first axis of every array counts the same rows, at least one."""

    inputs: Tensors
    outputs: Tensors

    def __post_init__(self) -> None:
        arrays = [*self.inputs.values(), *self.outputs.values()]
        if not self.inputs or not self.outputs:
            raise InputError("a golden set needs inputs and outputs")
        rows = {array.shape[:1] for array in arrays}
        if len(rows) != 1 or rows & {(), (0,)}:
            raise InputError("the arrays of a golden set must have the same number of rows, at least one")
        for name, array in self.outputs.items():
            if array.dtype.kind not in "biuf":
                raise InputError(f"golden output {name[:80]!r} does not hold numbers")
            if np.isnan(array).any():
                raise InputError(f"golden output {name[:80]!r} holds NaN, which nothing can reproduce")

    @property
    def rows(self) -> int:
        """How many inputs there are."""
        return len(next(iter(self.inputs.values())))

    @staticmethod
    def load(data: bytes | Path) -> Golden:
        """Read an npz of `in.NAME` and `out.NAME`.

        Raises:
            InputError: Not such a file, damaged, larger than `MAX_GOLDEN_BYTES` (unpacked, too), or holds objects.
        """
        arrays = npz.load(data, what="golden set", limit=MAX_GOLDEN_BYTES)
        for name in arrays:
            if not name.startswith((_INPUT, _OUTPUT)):
                raise InputError(f"golden set holds {name[:80]!r}: names start with {_INPUT!r} or {_OUTPUT!r}")
        return Golden(
            inputs={name.removeprefix(_INPUT): array for name, array in arrays.items() if name.startswith(_INPUT)},
            outputs={name.removeprefix(_OUTPUT): array for name, array in arrays.items() if name.startswith(_OUTPUT)},
        )

    def dump(self) -> bytes:
        """The npz; the same arrays give the same bytes."""
        return npz.dump(
            {f"{_INPUT}{name}": array for name, array in self.inputs.items()}
            | {f"{_OUTPUT}{name}": array for name, array in self.outputs.items()}
        )


def reproduce(model: LoadedModel, golden: Golden, tolerance: Tolerance, task: Task | None) -> GoldenResult:
    """Run the golden inputs and hold the outputs against the golden ones.

    Args:
        model: The loaded variant; a built-in batch of 1 is fed row by row.
        golden: What is expected.
        tolerance: Of this variant.
        task: Says which output is scored; without it the first.

    Raises:
        GoldenMismatch: An output is missing, has another shape, holds NaN, disagrees in arg-max on too many rows, or
            lies outside the element-wise tolerance.
        InputError: The golden inputs are not those of the model.
        DeviceError: The runtime failed.
    """
    outputs = run_rows(model, golden.inputs)
    for name, expected in golden.outputs.items():
        found = outputs.get(name)
        if found is None or found.shape != expected.shape:
            raise _mismatch(f"output {name!r} should have shape {list(expected.shape)}, has {_shape(outputs, name)}")
        if np.isnan(found).any():
            raise _mismatch(f"output {name!r} holds NaN in {np.isnan(found).sum()} of {found.size} elements")
    result = compare(golden.outputs, outputs, task)
    if result.agreement < tolerance.agreement:
        raise _mismatch(
            f"arg-max agrees on {result.agreement:.1%} of {result.rows} rows, {tolerance.agreement:.1%} are needed"
        )
    if tolerance.element_wise:
        for name in golden.outputs:
            if not np.allclose(_numbers(outputs, name), _numbers(golden.outputs, name), tolerance.rtol, tolerance.atol):
                raise _mismatch(
                    f"output {name!r} differs by up to {result.max_abs_difference:.6g}, "
                    f"allowed are {tolerance.atol:.6g} and {tolerance.rtol:.6g} of the value"
                )
    return result


def compare(expected: Tensors, found: Tensors, task: Task | None) -> GoldenResult:
    """Measure how far `found` is from `expected`: same names and shapes, no NaN.

    Raises:
        InputError: The scored output is not one of a classifier.
    """
    scored = task or Task()
    agree = correct(predictions(scored, found), predictions(scored, expected))
    # An infinity that is met exactly differs by nothing, not by NaN.
    apart = (
        np.where(ours == theirs, 0.0, np.abs(ours - theirs))
        for ours, theirs in ((_numbers(expected, name), _numbers(found, name)) for name in expected)
    )
    with np.errstate(invalid="ignore"):
        furthest = max(float(difference.max()) for difference in apart)
    return GoldenResult(rows=len(agree), agreement=float(agree.mean()), max_abs_difference=furthest)


def _numbers(outputs: Tensors, name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return outputs[name].astype(np.float64)


def _shape(outputs: Tensors, name: str) -> str:
    return str(list(outputs[name].shape)) if name in outputs else "no such output"


def _mismatch(message: str) -> GoldenMismatch:
    return GoldenMismatch(
        f"the golden set is not reproduced: {message}", hint="this hardware or runtime computes something else"
    )
