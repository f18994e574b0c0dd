"""Class scores: from the output of a classifier to one row of scores and one class a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.task import Kind, Task
from edgeserve.runtimes.base import Tensor

Predictions = npt.NDArray[np.int64]

CLASSIFIERS: Final = (Kind.CLASSIFICATION, Kind.KEYWORDS)
"""Kinds whose answer is a class."""
INVALID: Final = -1
"""Class of a row with a score that is not a number: it agrees with nothing."""


def scores(task: Task, outputs: Mapping[str, Tensor]) -> npt.NDArray[np.float64]:
    """Take the class scores out of a model's outputs.

    Args:
        task: Names the output (without a name it is the first) and the place of class 0 in it.
        outputs: As `LoadedModel.run` returns them, first axis = rows.

    Returns:
        float64 [rows, classes].

    Raises:
        InputError: The output is not there, or has not one score a class for each row, or fewer than two classes.
    """
    name, array = scored_output(task, outputs)
    places = array.shape[-1] if array.ndim >= 2 else 0
    classes = places - task.first_class
    if classes < 2 or array.size != array.shape[0] * places or array.dtype.kind not in "biuf":
        raise InputError(
            f"output {name[:80]!r} has shape {list(array.shape)} ({array.dtype}): "
            f"a classifier gives [rows, {2 + task.first_class} or more] numbers",
            hint="name the output that holds the class scores",
        )
    return array.reshape(array.shape[0], places)[:, task.first_class :].astype(np.float64)


def scored_output(task: Task, outputs: Mapping[str, Tensor], name: str = "") -> tuple[str, Tensor]:
    """Find the output called `name`, else the task's own, else the first.

    Raises:
        InputError: There is no such output.
    """
    name = name or task.output or next(iter(outputs), "")
    if name not in outputs:
        raise InputError(f"the task reads output {name[:80]!r}", hint=f"the model has {', '.join(outputs) or 'none'}")
    return name, outputs[name]


def winners(table: npt.NDArray[np.float64]) -> Predictions:
    """The class of each row of scores [rows, classes]: int64 [rows], of equals the first, `INVALID` with NaN."""
    return np.where(np.isnan(table).any(axis=1), INVALID, table.argmax(axis=1))


def predictions(task: Task, outputs: Mapping[str, Tensor]) -> Predictions:
    """The class of each row: int64 [rows], `INVALID` where a score is not a number.

    Raises:
        InputError: As `scores`.
    """
    return winners(scores(task, outputs))


def softmax(row: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Probabilities of logits [classes] without NaN; infinite ones share all of it."""
    highest = row.max()
    powers = np.exp(row - highest) if np.isfinite(highest) else (row == highest).astype(np.float64)
    result: npt.NDArray[np.float64] = powers / powers.sum()
    return result
