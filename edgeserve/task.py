"""What the outputs of a model mean: from tensors to predictions, for compile, golden set and serving alike."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.task import Task
from edgeserve.runtimes.base import Tensor

Predictions = npt.NDArray[np.int64]
Correct = npt.NDArray[np.bool_]

INVALID = -1
"""Prediction of a row with a score that is not a number: it agrees with nothing."""


def scores(task: Task, outputs: Mapping[str, Tensor]) -> npt.NDArray[np.float64]:
    """Take the class scores out of a model's outputs.

    Args:
        task: Names the output; without a name it is the first.
        outputs: As `LoadedModel.run` returns them, first axis = rows.

    Returns:
        float64 [rows, classes].

    Raises:
        InputError: The output is not there, or has not one score a class for each row, or fewer than two classes.
    """
    name = task.output or next(iter(outputs), "")
    if name not in outputs:
        raise InputError(f"the task scores output {name[:80]!r}", hint=f"the model has {', '.join(outputs)}")
    array = outputs[name]
    classes = array.shape[-1] if array.ndim >= 2 else 0
    if classes < 2 or array.size != array.shape[0] * classes:
        raise InputError(
            f"output {name[:80]!r} has shape {list(array.shape)}: a classifier gives [rows, 2 or more classes]",
            hint="name the output that holds the class scores",
        )
    return array.reshape(array.shape[0], classes).astype(np.float64)


def predictions(task: Task, outputs: Mapping[str, Tensor]) -> Predictions:
    """The class of each row: int64 [rows], `INVALID` where a score is not a number.

    Raises:
        InputError: As `scores`.
    """
    table = scores(task, outputs)
    return np.where(np.isnan(table).any(axis=1), INVALID, table.argmax(axis=1))


def correct(predicted: Predictions, truth: Predictions) -> Correct:
    """Tell for each row whether the prediction is the true class (or another model's prediction): bool [rows]."""
    right: Correct = (predicted == truth) & (predicted != INVALID)
    return right
