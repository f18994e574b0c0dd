"""The golden set: what the float model answers, and a device must before it activates a variant."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from edgeserve import npz
from edgeserve.contracts.errors import DeviceError, InputError
from edgeserve.contracts.limits import MAX_GOLDEN_BYTES
from edgeserve.contracts.task import Kind, Task
from edgeserve.contracts.variant import Tolerance
from edgeserve.runtimes.base import LoadedModel, Tensors
from edgeserve.runtimes.rows import run_task
from edgeserve.task.decode import decode, judging_score
from edgeserve.task.score import agreement

_Numbers = npt.NDArray[np.float64]

_INPUT: Final = "in."
_OUTPUT: Final = "out."
_UNKNOWN: Final = Task(kind=Kind.TENSORS)
"""Of a variant without a task nothing is known: its outputs are compared number by number, never as classes."""


class GoldenMismatch(DeviceError):  # noqa: N818 - it names the finding
    """This device computes something else than the golden set says: the variant must not be activated here."""


@dataclass(frozen=True, kw_only=True)
class GoldenResult:
    """How well a variant reproduced a golden set."""

    rows: int
    """Answers that were compared: rows, or steps of a stateful model."""
    agreement: float
    """Mean of how far each answer is the golden one, 0..1 (`edgeserve.task.score.agreement`)."""
    max_abs_difference: float
    """Over all elements of all outputs."""


@dataclass(frozen=True, kw_only=True)
class Golden:
    """Inputs and expected outputs by name, numbers all; outputs hold no NaN.

    The first axis of every array counts the same rows, at least one; stateful models have `[sequence, step, ...]`.
    """

    inputs: Tensors
    outputs: Tensors

    def __post_init__(self) -> None:
        arrays = [*self.inputs.values(), *self.outputs.values()]
        if not self.inputs or not self.outputs:
            raise InputError("a golden set needs inputs and outputs")
        rows = {array.shape[:1] for array in arrays}
        if len(rows) != 1 or rows & {(), (0,)}:
            raise InputError("the arrays of a golden set must have the same number of rows, at least one")
        for name, array in (*self.inputs.items(), *self.outputs.items()):
            if array.dtype.kind not in "biuf":
                raise InputError(f"golden array {name[:80]!r} does not hold numbers")
        # Inputs may hold NaN, which is a missing value for trees.
        for name, array in self.outputs.items():
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
        model: The loaded variant; a built-in batch of 1 is fed row by row, a stateful one step by step.
        golden: What is expected.
        tolerance: Of this variant.
        task: Says what outputs mean and how state is carried; None compares the numbers (`Kind.TENSORS`).

    Raises:
        GoldenMismatch: An output is missing, has another shape, holds NaN, gives other answers than the tolerance
            allows, or lies outside the element-wise tolerance.
        InputError: The golden inputs are not those of the model, or the task does not fit its outputs.
        DeviceError: The runtime failed.
    """
    outputs = run_task(model, golden.inputs, task.state if task else {})
    for name, expected in golden.outputs.items():
        found = outputs.get(name)
        if found is None or found.shape != expected.shape:
            raise _mismatch(f"output {name!r} should have shape {list(expected.shape)}, has {_shape(outputs, name)}")
        if np.isnan(found).any():
            raise _mismatch(f"output {name!r} holds NaN in {np.isnan(found).sum()} of {found.size} elements")
    result = compare(golden.outputs, outputs, task)
    if result.agreement < tolerance.agreement:
        raise _mismatch(
            f"the answer agrees on {result.agreement:.1%} of {result.rows} rows, {tolerance.agreement:.1%} are needed"
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
    """Measure how far `found` is from `expected`, whose names it has in the same shapes, without NaN.

    Raises:
        InputError: The task does not fit the outputs.
    """
    task = task or _UNKNOWN
    # In the model's own order: a file has another, and a task may mean the first output.
    names = [name for name in found if name in expected]
    ours, theirs = (
        decode(task, {name: outputs[name] for name in names}, least_score=judging_score(task))
        for outputs in (found, expected)
    )
    agree = agreement(task, ours, theirs)
    with np.errstate(invalid="ignore"):
        furthest = max(_furthest(_numbers(expected, name), _numbers(found, name)) for name in expected)
    return GoldenResult(rows=len(agree), agreement=float(agree.mean()), max_abs_difference=furthest)


def _furthest(ours: _Numbers, theirs: _Numbers) -> float:
    # An infinity that is met exactly differs by nothing, not by NaN.
    return float(np.where(ours == theirs, 0.0, np.abs(ours - theirs)).max(initial=0.0))


def _numbers(outputs: Tensors, name: str) -> _Numbers:
    return outputs[name].astype(np.float64)


def _shape(outputs: Tensors, name: str) -> str:
    return str(list(outputs[name].shape)) if name in outputs else "no such output"


def _mismatch(message: str) -> GoldenMismatch:
    return GoldenMismatch(
        f"the golden set is not reproduced: {message}", hint="this hardware or runtime computes something else"
    )
