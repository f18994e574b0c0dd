"""The baseline sketch of a compilation: the rows that it was judged on, and the float model's answers to them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from edgeserve.contracts.documents import encode
from edgeserve.contracts.limits import MAX_SKETCH_BYTES, SKETCH_BINS, SKETCH_CLASSES, SKETCH_FIELDS, SKETCH_VALUES
from edgeserve.contracts.sketch import LARGEST, QUANTILES, BaselineSketch, ClassCounts, Distribution
from edgeserve.contracts.task import Kind, Task
from edgeserve.runtimes.base import Tensor
from edgeserve.task.answers import Answers, Detections

Floats = npt.NDArray[np.float64]

_DIGITS: Final = 6
"""Significant digits of an edge: keeps the sketch small. Values are counted by the rounded edges."""


def sketch(task: Task, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor], answers: Answers) -> BaselineSketch:
    """Summarise the rows that a model was judged on, in at most MAX_SKETCH_BYTES of JSON: the last outputs go first.

    Args:
        task: Says what the answers are.
        inputs: Rows for each input, first axis = rows.
        outputs: The float model's.
        answers: As `edgeserve.task.decode.decode` made them of `outputs`.
    """
    fields, classes = _decoded(task, answers)
    decoded = {name: distribution(values) for name, values in fields.items() if values.size}
    numeric = [("in", name) for name in inputs if _numeric(inputs[name])]
    numeric += [("out", name) for name in outputs if _numeric(outputs[name])]
    made = {
        (side, name): distribution((inputs if side == "in" else outputs)[name])
        for side, name in numeric[: SKETCH_FIELDS - len(decoded)]
    }
    while True:
        found = BaselineSketch(
            rows=len(next(iter(inputs.values()), ())),
            inputs={name: entry for (side, name), entry in made.items() if side == "in"},
            outputs={name: entry for (side, name), entry in made.items() if side == "out"},
            fields=decoded,
            classes=classes,
            omitted=len(inputs) + len(outputs) - len(made),
        )
        if not made or len(encode(found)) <= MAX_SKETCH_BYTES:
            return found
        made.popitem()


def distribution(array: Tensor) -> Distribution:
    """Summarise the elements of an array; of more than SKETCH_VALUES, as many drawn at random (always the same).

    The edges of its histogram are the array's own quantiles, each rounded to six digits and taken once: a value that
    is very frequent then has a bin of its own.
    """
    values = array.reshape(-1)
    if values.size > SKETCH_VALUES:  # even steps would see one colour of a picture only
        values = values[np.random.default_rng(0).integers(values.size, size=SKETCH_VALUES)]
    numbers: Floats = values.astype(np.float64)
    valid = numbers[np.abs(numbers) < LARGEST]
    invalid = numbers.size - valid.size
    if not valid.size:
        return Distribution(count=0, invalid=invalid, edges=(0.0,), counts=(0, 0))
    edges = _edges(valid)
    counts = np.bincount(np.searchsorted(edges, valid, side="left"), minlength=len(edges) + 1)
    return Distribution(
        count=valid.size,
        invalid=invalid,
        mean=_rounded(valid.mean()),
        std=_rounded(valid.std()),
        min=float(valid.min()),
        max=float(valid.max()),
        quantiles=tuple(map(_rounded, np.quantile(valid, QUANTILES))),
        edges=tuple(edges.tolist()),
        counts=tuple(counts.tolist()),
    )


def _numeric(array: Tensor) -> bool:
    return array.dtype.kind in "biuf" and array.size > 0


def _edges(valid: Floats) -> Floats:
    """Edges of bins that hold equally many values, as far as values can be told apart.

    The first bin ends just below the least value and the last begins at the greatest: both are empty here, and a device
    counts in them what the baseline never saw.
    """
    bins = SKETCH_BINS - 2
    low, high = float(valid.min()), float(valid.max())
    inner = np.quantile(valid, np.arange(1, bins) / bins, method="lower")
    rounded = [min(max(_rounded(edge), low), high) for edge in inner]
    return np.unique([math.nextafter(low, -math.inf), *rounded, high])


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def _decoded(task: Task, answers: Answers) -> tuple[dict[str, Floats], ClassCounts | None]:
    """Numbers and classes of the answers."""
    if task.kind in (Kind.CLASSIFICATION, Kind.KEYWORDS):
        scores = np.stack([np.asarray(answer, np.float64) for answer in answers])
        sound = ~np.isnan(scores).any(axis=1)
        return {"top_score": _shown(task, scores).max(axis=1)}, _counts(scores.argmax(axis=1)[sound])
    if task.kind is Kind.DETECTION:
        assert task.boxes is not None, "a detection task has boxes"
        found = [answer.above(task.boxes.score) for answer in answers if isinstance(answer, Detections)]
        fields = {
            "boxes": np.array([len(boxes) for boxes in found], np.float64),
            "box_score": np.concatenate([boxes.scores for boxes in found]).astype(np.float64),
        }
        return fields, _counts(np.concatenate([boxes.classes for boxes in found]))
    if task.kind is Kind.EMBEDDING:
        return {"norm": np.array([np.linalg.norm(np.asarray(answer, np.float64)) for answer in answers])}, None
    return {}, None


def _shown(task: Task, scores: Floats) -> Floats:
    """Scores [rows, classes] as clients see them."""
    if not task.softmax:
        return scores
    with np.errstate(invalid="ignore"):  # infinite scores give NaN, which is counted as invalid
        powers: Floats = np.exp(scores - scores.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def _counts(classes: npt.NDArray[np.int64]) -> ClassCounts:
    numbers, counts = np.unique(classes, return_counts=True)
    order = np.lexsort((numbers, -counts))
    kept, rest = order[:SKETCH_CLASSES], order[SKETCH_CLASSES:]
    return ClassCounts(
        classes=tuple(numbers[kept].tolist()), counts=tuple(counts[kept].tolist()), other=int(counts[rest].sum())
    )
