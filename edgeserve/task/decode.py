"""From outputs to answers, as the task says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.task import Kind, Task
from edgeserve.runtimes.base import Tensor
from edgeserve.task.answers import Answers
from edgeserve.task.classes import CLASSIFIERS, scored_output, scores
from edgeserve.task.detection import detect, propose
from edgeserve.task.functions import call_function

_MAP_SCORE: Final = 0.01
"""Where precision over recall is followed down to: below it a detector finds little but false boxes."""


def decode(task: Task, outputs: Mapping[str, Tensor], *, least_score: float | None = None) -> Answers:
    """Turn outputs into answers.

    Args:
        task: What the outputs mean.
        outputs: As `edgeserve.runtimes.rows.run_task` returns them: first axis = rows, or [sequence, step, ...] for
            stateful tasks, which gives one answer a step, sequence by sequence.
        least_score: Detection only: keep boxes from this score on, instead of `task.boxes.score`. `judging_score` for
            answers that will be scored or compared.

    Raises:
        InputError: The outputs are not those of such a task, or the user's function cannot be imported or failed.
    """
    flat = _rows(task, outputs)
    if task.kind in CLASSIFIERS:
        return list(scores(task, flat))
    if task.kind is Kind.DETECTION:
        return list(detect(task, flat, least_score=least_score))
    if task.kind in (Kind.EMBEDDING, Kind.REGRESSION):
        return list(_vectors(task, flat))
    if task.kind is Kind.CUSTOM:
        return [call_function(task.function, row) for row in _each(flat)]
    return list(_each(_numeric(flat)))


def judging_score(task: Task) -> float | None:
    """The `least_score` to decode answers with that will be judged: low enough for every metric and comparison."""
    return None if task.boxes is None else min(_MAP_SCORE, task.boxes.score / 2)


def fields(task: Task, outputs: Mapping[str, Tensor]) -> dict[str, npt.NDArray[np.float64]]:
    """Decode without leaving anything out; the noise of each field is judged by itself.

    One output may join values of different ranges: noise in the scores hides behind coordinates of hundreds of pixels.
    Nothing is left out: 64 pictures with 3549 boxes of 80 classes are 150 MB, so give it a bounded number of rows.

    Returns:
        float64 arrays, first axis = rows (steps of stateful tasks). Classification, keywords: `scores` [rows, classes].
        Detection: `boxes` [rows, n, 4] corners in pixels, `scores` [rows, n, classes] and, where there is one,
        `objectness` [rows, n]. Embedding, regression: `vector` [rows, n]. Tensors, custom: each numeric output by name.

    Raises:
        InputError: The outputs are not those of such a task.
    """
    flat = _rows(task, outputs)
    if task.kind in CLASSIFIERS:
        return {"scores": scores(task, flat)}
    if task.kind is Kind.DETECTION:
        proposals = propose(task, flat, np.float64)
        objectness = {} if proposals.objectness is None else {"objectness": proposals.objectness}
        found = {"boxes": proposals.boxes, "scores": proposals.scores, **objectness}
        return {name: array.astype(np.float64) for name, array in found.items()}
    if task.kind in (Kind.EMBEDDING, Kind.REGRESSION):
        table = _vectors(task, flat)
        return {"vector": table.reshape(len(table), -1)}
    return _numeric(flat)


def _rows(task: Task, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Outputs with one first axis for rows; sequences are laid end to end."""
    if not task.stateful:
        return dict(outputs)
    short = [name for name, array in outputs.items() if array.ndim < 2]
    if short:
        raise InputError(f"outputs of a stateful model are [sequence, step, ...], {', '.join(short)} are not")
    return {name: array.reshape(-1, *array.shape[2:]) for name, array in outputs.items()}


def _vectors(task: Task, outputs: Mapping[str, Tensor]) -> npt.NDArray[np.float64]:
    name, array = scored_output(task, outputs)
    if not array.ndim or array.dtype.kind not in "biuf":
        raise InputError(
            f"output {name[:80]!r} has shape {list(array.shape)} ({array.dtype}): {task.kind.value} reads numbers",
            hint="name the output that holds them",
        )
    return array.astype(np.float64)


def _numeric(outputs: Mapping[str, Tensor]) -> dict[str, npt.NDArray[np.float64]]:
    found = {name: array.astype(np.float64) for name, array in outputs.items() if array.dtype.kind in "biuf"}
    if not found:
        raise InputError("the model has no output that holds numbers")
    return found


def _each(outputs: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """The outputs row by row."""
    rows = min((len(array) for array in outputs.values()), default=0)
    return [{name: array[row] for name, array in outputs.items()} for row in range(rows)]
