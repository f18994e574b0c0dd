"""From the outputs of a detector to boxes: every layout of `edgeserve.contracts.task.Boxes`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.limits import DETECTION_CANDIDATES, DETECTION_ROWS, MAX_CLASSES
from edgeserve.contracts.task import Boxes, ImageInput, Task
from edgeserve.runtimes.base import Tensor
from edgeserve.task.answers import Detections
from edgeserve.task.boxes import Floats, suppress, to_corners
from edgeserve.task.classes import scored_output


@dataclass(frozen=True, kw_only=True, eq=False)
class Proposals:
    """What a detector proposes for each of `rows` pictures, before anything is left out."""

    boxes: Floats
    """[rows, n, 4] corners in pixels of the model's input."""
    scores: Floats
    """[rows, n, classes] without objectness; [rows, n, 1] where `classes` says which, and nothing overlaps."""
    objectness: Floats | None = None
    """[rows, n]."""
    classes: npt.NDArray[np.int64] | None = None
    """[rows, n]: `end-to-end`, and `split` with an output of classes."""


def detect(task: Task, outputs: Mapping[str, Tensor], *, least_score: float | None = None) -> list[Detections]:
    """Boxes of every picture: score, class-wise non-maximum suppression, the best `most`.

    A box counts once for each class that reaches `least_score`. Boxes and scores that are not finite are left out.

    Args:
        task: A detection task.
        outputs: As the runtime gives them, first axis = pictures.
        least_score: Instead of `task.boxes.score`.

    Raises:
        InputError: The outputs do not have the layout, or the layout needs the input's size and the task has none.
    """
    settings = _settings(task)
    least = settings.score if least_score is None else least_score
    found: list[Detections] = []
    for part in _parts(task, settings, outputs):
        proposals = propose(task, part, np.float32)
        found += [_pick(settings, proposals, picture, least) for picture in range(len(proposals.boxes))]
    return found


def propose(task: Task, outputs: Mapping[str, Tensor], dtype: type[np.floating[Any]]) -> Proposals:
    """Decode all boxes and scores of all pictures, computed in `dtype`.

    Raises:
        InputError: As `detect`.
    """
    settings = _settings(task)
    (name, array), *others = _read(task, settings, outputs)
    main = _three_axes(array, name).astype(dtype)
    # Of one number a box, the axis may be left out.
    rest = [_three_axes(array[..., None] if array.ndim == 2 else array, name).astype(dtype) for name, array in others]
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is left out later
        return _LAYOUTS[settings.layout](task, settings, main, rest)


def _pick(settings: Boxes, proposals: Proposals, picture: int, least: float) -> Detections:
    boxes, scores = proposals.boxes[picture], proposals.scores[picture]
    with np.errstate(invalid="ignore"):
        if proposals.objectness is not None:
            scores = np.multiply(scores, proposals.objectness[picture][:, None])
        places, classes = np.nonzero(scores >= least)
    values = scores[places, classes]
    if proposals.classes is not None:
        classes = proposals.classes[picture][places]
    usable = np.isfinite(boxes[places]).all(axis=1) & np.isfinite(values) & (classes >= 0)
    places, classes, values = places[usable], classes[usable], values[usable]
    if len(values) > DETECTION_CANDIDATES:
        best = np.sort(np.argsort(-values, kind="stable")[:DETECTION_CANDIDATES])
        places, classes, values = places[best], classes[best], values[best]
    if proposals.classes is not None:
        kept = np.argsort(-values, kind="stable")[: settings.most]
    else:
        kept = suppress(boxes[places], values, classes, overlap=settings.nms_iou, most=settings.most)
    return Detections(
        boxes=boxes[places[kept]].astype(np.float32),
        scores=values[kept].astype(np.float32),
        classes=classes[kept].astype(np.int64),
    )


def _grid(task: Task, settings: Boxes, array: Floats, _: Sequence[Floats]) -> Proposals:
    # Ge et al., "YOLOX: Exceeding YOLO Series in 2021", section 2.1: offset from the cell's corner, log of the size.
    corners, sides = _cells(task, settings, array.dtype)
    array = _at_least(5, settings, _cells_last(array, len(corners), settings, "5 + classes"))
    centre = (array[..., :2] + corners) * sides
    size = np.exp(array[..., 2:4]) * sides
    boxes = to_corners(np.concatenate([centre, size], axis=-1), "cxcywh")
    return _scored(settings, boxes, array[..., 5:], array[..., 4])


def _decoded(task: Task, settings: Boxes, array: Floats, _: Sequence[Floats]) -> Proposals:
    array = _at_least(5, settings, array)
    boxes = _pixels(task, settings, to_corners(array[..., :4], settings.format))
    return _scored(settings, boxes, array[..., 5:], array[..., 4])


def _channels_first(task: Task, settings: Boxes, array: Floats, _: Sequence[Floats]) -> Proposals:
    array = _at_least(4, settings, array.transpose(0, 2, 1))
    boxes = _pixels(task, settings, to_corners(array[..., :4], settings.format))
    return _scored(settings, boxes, array[..., 4:], None)


def _end_to_end(task: Task, settings: Boxes, array: Floats, _: Sequence[Floats]) -> Proposals:
    if array.shape[-1] != 6:
        raise _wrong(settings, array, "[rows, boxes, 6]")
    # Corners by definition; only their order may differ.
    boxes = to_corners(array[..., :4], "yxyx" if settings.format == "yxyx" else "xyxy")
    scores = _sigmoid(array[..., 4:5]) if settings.logits else array[..., 4:5]
    return Proposals(
        boxes=_pixels(task, settings, boxes), scores=scores, classes=_class_numbers(settings, array[..., 5])
    )


def _distances(task: Task, settings: Boxes, array: Floats, others: Sequence[Floats]) -> Proposals:
    # Tian et al., "FCOS: Fully Convolutional One-Stage Object Detection", 2019: distances from the cell's centre to the
    # left, top, right and bottom; Li et al., "Generalized Focal Loss", 2020, section 3.2: as distributions over bins.
    corners, sides = _cells(task, settings, array.dtype)
    array = _at_least(4 * settings.bins, settings, _cells_last(array, len(corners), settings, "4 bins + classes"))
    distances, scores = array[..., : 4 * settings.bins], array[..., 4 * settings.bins :]
    if others:
        scores = _cells_last(others[0], len(corners), settings, "classes")
    if settings.bins > 1:
        shares = distances.reshape(*distances.shape[:2], 4, settings.bins)
        shares = np.exp(shares - shares.max(axis=-1, keepdims=True))
        distances = shares @ np.arange(settings.bins, dtype=array.dtype) / shares.sum(axis=-1)
    centre = corners + array.dtype.type(0.5)
    boxes = np.concatenate([(centre - distances[..., :2]) * sides, (centre + distances[..., 2:]) * sides], axis=-1)
    return _scored(settings, boxes, scores, None)


def _split(task: Task, settings: Boxes, array: Floats, others: Sequence[Floats]) -> Proposals:
    if array.shape[-1] != 4:
        raise _wrong(settings, array, "[rows, boxes, 4]")
    boxes = _pixels(task, settings, to_corners(array, settings.format))
    scores, *classes = others  # `Boxes` checks that split names its scores
    if not classes:
        return _scored(settings, boxes, scores, None)
    if {scores.shape, classes[0].shape} != {(*boxes.shape[:2], 1)}:
        raise _wrong(settings, scores, f"scores and classes {list(boxes.shape[:2])}, one a box")
    return Proposals(
        boxes=boxes,
        scores=_sigmoid(scores) if settings.logits else scores,
        classes=_class_numbers(settings, classes[0][..., 0]),
    )


_Layout = Callable[[Task, Boxes, Floats, Sequence[Floats]], Proposals]
_LAYOUTS: Final[dict[str, _Layout]] = {
    "grid": _grid,
    "decoded": _decoded,
    "channels-first": _channels_first,
    "end-to-end": _end_to_end,
    "distances": _distances,
    "split": _split,
}


def _scored(settings: Boxes, boxes: Floats, scores: Floats, objectness: Floats | None) -> Proposals:
    if boxes.shape[-1] != 4 or scores.shape[:2] != boxes.shape[:2] or scores.shape[-1] <= settings.background:
        raise InputError(
            f"boxes: layout {settings.layout} finds boxes {list(boxes.shape)} with scores {list(scores.shape)}",
            hint="every box needs four numbers and one score a class: see `layout`, `output` and `scores`",
        )
    if settings.logits:
        scores, objectness = _sigmoid(scores), None if objectness is None else _sigmoid(objectness)
    return Proposals(boxes=boxes, scores=scores[..., int(settings.background) :], objectness=objectness)


def _class_numbers(settings: Boxes, values: Floats) -> npt.NDArray[np.int64]:
    """Places in the labels of what an output calls its classes; negative where that is none."""
    values = values.round() - int(settings.background)
    return np.where((values >= 0) & (values < MAX_CLASSES), values, -1).astype(np.int64)


def _at_least(columns: int, settings: Boxes, array: Floats) -> Floats:
    if array.shape[-1] < columns:
        raise _wrong(settings, array, f"at least {columns} numbers a box")
    return array


def _cells(task: Task, settings: Boxes, dtype: np.dtype[Any]) -> tuple[Floats, Floats]:
    """Corner of each cell [cells, 2] in cells, x first, and its side [cells, 1] in pixels, level by level."""
    height, width = _input_size(task, settings)
    corners, sides = [], []
    for stride in settings.strides:
        rows, columns = np.indices((-(-height // stride), -(-width // stride)))
        corners.append(np.stack([columns.ravel(), rows.ravel()], axis=1))
        sides.append(np.full((rows.size, 1), stride))
    return np.concatenate(corners).astype(dtype), np.concatenate(sides).astype(dtype)


def _cells_last(array: Floats, cells: int, settings: Boxes, wanted: str) -> Floats:
    """Bring [rows, cells, n] or [rows, n, cells] to the first form."""
    if array.shape[1] == cells:
        return array
    if array.shape[2] == cells:
        return np.swapaxes(array, 1, 2)
    raise _wrong(
        settings, array, f"[rows, {cells}, {wanted}] for strides {', '.join(map(str, settings.strides))} at this size"
    )


def _pixels(task: Task, settings: Boxes, boxes: Floats) -> Floats:
    if not settings.normalised:
        return boxes
    height, width = _input_size(task, settings)
    result: Floats = boxes * np.array([width, height, width, height], boxes.dtype)
    return result


def _input_size(task: Task, settings: Boxes) -> tuple[int, int]:
    size = next((entry.size for entry in task.inputs if isinstance(entry, ImageInput)), None)
    if size is None:
        what = "normalised boxes need" if settings.normalised else f"layout {settings.layout} needs"
        raise InputError(
            f"boxes: {what} the size of the model's input, and the task describes no image input",
            hint='add an input with type = "image" and size = [height, width]',
        )
    return size


def _settings(task: Task) -> Boxes:
    if task.boxes is None:
        raise InputError(f"a {task.kind.value} task has no boxes", hint='kind = "detection" and a table [boxes]')
    return task.boxes


def _three_axes(array: Tensor, name: str) -> Tensor:
    """Drop axes of one between [rows, boxes, n]: SSDs give boxes as [rows, boxes, 1, 4]."""
    if array.ndim > 3:
        spare = [axis for axis in range(1, array.ndim - 1) if array.shape[axis] == 1][: array.ndim - 3]
        array = array.squeeze(tuple(spare))
    if array.ndim != 3 or array.dtype.kind not in "biuf":
        raise InputError(
            f"output {name[:80]!r} has shape {list(array.shape)} ({array.dtype}): a detector gives [rows, boxes, n]",
            hint="name the output that holds the boxes",
        )
    return array


def _read(task: Task, settings: Boxes, outputs: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    """The output with the boxes, then those that hold scores and classes alone."""
    names = [settings.output, *filter(None, (settings.scores, settings.classes))]
    return [scored_output(task, outputs, name) for name in names]


def _parts(task: Task, settings: Boxes, outputs: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The outputs that are read, a few pictures at a time: bounds the memory of what is computed from them."""
    read = dict(_read(task, settings, outputs))
    if any(array.ndim < 2 for array in read.values()):
        raise InputError(f"a detector's outputs have an axis of rows and one of boxes, {', '.join(read)} have not")
    for start in range(0, min(map(len, read.values())), DETECTION_ROWS):
        yield {name: array[start : start + DETECTION_ROWS] for name, array in read.items()}


def _sigmoid(values: Floats) -> Floats:
    result: Floats = 1 / (1 + np.exp(-values))
    return result


def _wrong(settings: Boxes, array: Floats, wanted: str) -> InputError:
    return InputError(
        f"boxes: layout {settings.layout} reads {wanted}, the output has {list(array.shape)}",
        hint="another `layout`, `output` or `strides` fits this model",
    )
