"""What an npz file says is true of its rows, in the task's terms."""

from __future__ import annotations

import math
from typing import Any, Final

import msgspec
import numpy as np

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.task import Kind, Task
from edgeserve.runtimes.base import Tensor
from edgeserve.task.answers import Detections, Truth
from edgeserve.task.classes import CLASSIFIERS
from edgeserve_compilers.data.columns import TEXT, Columns, described
from edgeserve_compilers.data.columns import strings as text_of
from edgeserve_compilers.data.truth import NUMBERS, check_corners, numbering

LABELS: Final = ("labels", "y")
JSON: Final = "labels_json"


def take_truth(columns: Columns, chosen: str, axes: tuple[int, ...], task: Task) -> Truth | None:
    """Take the truth out of the arrays.

    Args:
        columns: Inputs and splits are taken out already.
        chosen: Name of the array that the user chose; empty = `labels`, `y` or `labels_json`.
        axes: Length of the first axes of the inputs: rows, or sequences and steps.
        task: Says what truth is.

    Returns:
        One a row, or one a step, sequence by sequence; None when there is none or the task has no use for it.

    Raises:
        InputError: It does not fit the task or the rows, or there are two.
    """
    given: list[str] = [name for name in (*LABELS, JSON) if name in columns.left]
    classes: list[str] | None = None
    if {"labels", "y"} <= set(given) and columns.left["labels"].dtype.kind in TEXT:
        classes = columns.texts("labels")
        given.remove("labels")
    if chosen:
        given = [chosen]
    if len(given) > 1:
        raise InputError(f"{columns.where} holds both {given[0]!r} and {given[1]!r}", hint="keep one")
    if not given:
        return None
    name = given[0]
    array = columns.take(name)
    where = f"{columns.where}: array {name!r}"
    if task.kind is Kind.TENSORS:
        return None
    if name == JSON:
        return _objects(array, math.prod(axes), task, where)
    shape = array.shape[: len(axes)]
    if task.kind in CLASSIFIERS and array.shape == axes and array.dtype.kind in "iu" + TEXT:
        return _class_numbers(array, classes, task, where)
    if task.kind in NUMBERS and shape == axes and array.dtype.kind in "iuf":
        numbers = array.astype(np.float64).reshape(-1, *array.shape[len(axes) :])
        if not np.isfinite(numbers).all():
            raise InputError(f"{where} holds NaN or infinity", hint="drop these rows")
        return numbers
    if task.kind is Kind.CUSTOM and shape == axes and array.dtype.kind in "biuf":
        objects: list[Any] = array.reshape(-1, *array.shape[len(axes) :]).tolist()
        return objects
    sizes = ", ".join(map(str, axes))
    expected = {
        Kind.DETECTION: f"boxes as {JSON}",
        Kind.REGRESSION: f"numbers [{sizes}, ...]",
        Kind.EMBEDDING: f"numbers [{sizes}, ...]",
        Kind.CUSTOM: f"numbers [{sizes}, ...] or {JSON}",
    }.get(task.kind, f"int64 [{sizes}]")
    raise InputError(f"{where} has {described(array)}, expected {expected}", hint=f"the task is {task.kind.value}")


def _class_numbers(array: Tensor, classes: list[str] | None, task: Task, where: str) -> Truth:
    if array.dtype.kind in TEXT:
        names = text_of(array, where)
        places = numbering(names, task, where)
        return np.array([places[name] for name in names], np.int64)
    labels = array.astype(np.int64).reshape(-1)
    if labels.min() < 0:
        raise InputError(f"{where} holds a negative class number")
    if classes is None:
        return labels
    if labels.max() >= len(classes):
        raise InputError(f"{where} holds class {labels.max()}, 'labels' names {len(classes)}")
    if not task.labels:
        return labels
    places = numbering(classes, task, where)
    return np.array([places[name] for name in classes], np.int64)[labels]


def _objects(array: Tensor, count: int, task: Task, where: str) -> Truth:
    if array.dtype != np.uint8 or array.ndim != 1:
        raise InputError(
            f"{where} has {described(array)}, expected uint8 [bytes]",
            hint="np.frombuffer(json.dumps(list_of_objects).encode(), np.uint8)",
        )
    if task.kind not in (Kind.DETECTION, Kind.CUSTOM):
        raise InputError(f"{where} holds objects, {task.kind.value} takes numbers", hint="give labels as an array")
    try:
        objects: list[Any]
        if task.kind is Kind.CUSTOM:
            objects = msgspec.json.decode(array.tobytes(), type=list[Any])
        else:
            objects = [
                _detections(boxes, where) for boxes in msgspec.json.decode(array.tobytes(), type=list[list[_Box]])
            ]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{where}: {str(error)[:200] or 'nested too deeply'}") from error
    if len(objects) != count:
        raise InputError(f"{where} has {len(objects)} items for {count} rows")
    return objects


class _Box(msgspec.Struct, frozen=True):
    box: tuple[float, float, float, float]
    number: int = msgspec.field(name="class")


def _detections(boxes: list[_Box], where: str) -> Detections:
    bad = next((box.number for box in boxes if not 0 <= box.number < 1 << 31), None)
    if bad is not None:
        raise InputError(f"{where} holds class {bad}")
    return Detections(
        boxes=check_corners([box.box for box in boxes], where).astype(np.float32),
        scores=np.ones(len(boxes), np.float32),
        classes=np.array([box.number for box in boxes], np.int64),
    )
