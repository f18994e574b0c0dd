"""What is true of rows, from annotators' words: class names to numbers, boxes of pictures to the model's pixels."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.task import ImageInput, Kind, Task
from edgeserve.task.answers import Detections
from edgeserve.task.prepare import Geometry

NUMBERS: Final = (Kind.REGRESSION, Kind.EMBEDDING)
"""Kinds whose truth is a number or a vector."""
_FARTHEST: Final = 1e9
"""Pixels: no picture is as wide, and float32 holds it."""


def numbering(names: Iterable[str], task: Task, where: str) -> dict[str, int]:
    """Class number of each name: its place in the task's labels, or among the sorted names when the task has none.

    Raises:
        InputError: A name is not among the labels.
    """
    found = sorted(set(names))
    if not task.labels:
        return {name: number for number, name in enumerate(found)}
    places = {label: number for number, label in enumerate(task.labels)}
    unknown = [name for name in found if name not in places]
    if unknown:
        close = difflib.get_close_matches(unknown[0], task.labels, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "labels in model.toml must have every class of the data"
        raise InputError(f"{where}: class {unknown[0][:80]!r} is not among the {len(places)} labels", hint=hint)
    return {name: places[name] for name in found}


def split_rows(values: Sequence[str], split: str, where: str) -> list[int]:
    """Rows whose value is `split`; all rows when it is empty.

    Raises:
        InputError: No row has this value.
    """
    if not split:
        return list(range(len(values)))
    rows = [row for row, value in enumerate(values) if value == split]
    if not rows:
        raise unknown_split(split, sorted(set(values)), where)
    return rows


def unknown_split(split: str, known: Sequence[str], where: str) -> InputError:
    """The error for a `#NAME` that the data do not have."""
    names = [name for name in known if name]
    choice = f"choose {', '.join(f'#{name}' for name in names[:20])}" if names else "leave # and the name out"
    return InputError(f"{where} has no split {split[:80]!r}", hint=choice)


def check_corners(corners: npt.ArrayLike, where: str) -> npt.NDArray[np.float64]:
    """The corners as [n, 4].

    Raises:
        InputError: One is beyond any picture, or not a number.
    """
    boxes = np.asarray(corners, np.float64).reshape(-1, 4)
    if not (np.abs(boxes) <= _FARTHEST).all():
        raise InputError(f"{where} holds a box beyond {_FARTHEST:.0f} pixels")
    return boxes


def detections(
    corners: npt.ArrayLike, classes: Sequence[int], geometry: Geometry, entry: ImageInput, *, where: str
) -> Detections:
    """True boxes of a picture in pixels of the model's input; what lies outside of it is cut off, or dropped.

    Args:
        corners: [n, 4], left, top, right, bottom in pixels of the upright picture.
        classes: Class number of each.
        geometry: Of the picture.
        entry: The input that takes it.
        where: What holds the boxes, for errors.

    Raises:
        InputError: A corner is not a number that can be.
    """
    height, width = entry.size
    boxes = np.clip(geometry.to_model(check_corners(corners, where)), 0, (width, height, width, height))
    seen = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    return Detections(
        boxes=boxes[seen].astype(np.float32),
        scores=np.ones(int(seen.sum()), np.float32),
        classes=np.asarray(classes, np.int64).reshape(-1)[seen],
    )


def as_objects(found: Detections) -> list[Mapping[str, Any]]:
    """The boxes as JSON-able objects, for a task of the kind `custom`."""
    pairs = zip(found.boxes.tolist(), found.classes.tolist(), strict=True)
    return [{"box": box, "class": number} for box, number in pairs]
