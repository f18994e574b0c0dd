"""A task prefilled from what the author's export wrote into the model: Ultralytics' `metadata_props`.

Keys and values as `ultralytics/engine/exporter.py` writes them: `task`, `names` and `args` (Python literals), `imgsz`,
`channels`, `end2end`. Nothing of it is trusted: it is parsed as literals, bounded, and dropped where it does not fit
the model.
"""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Mapping
from typing import Final

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.limits import MAX_CLASSES, MAX_TASK_BYTES
from edgeserve.contracts.task import Boxes, Filter, ImageInput, Kind, Resize, Task
from edgeserve.contracts.tensors import Signature
from edgeserve.task.model_toml import check_task

_TASKS: Final = ("detect", "classify", "segment", "pose", "obb")
_SCALE: Final = 1 / 255
_NMS_IOU: Final = 0.7
_MOST: Final = 300
"""Defaults of Ultralytics' `predict` and `val`."""


def task_from_metadata(metadata: Mapping[str, str], signature: Signature) -> Task | None:
    """What an export says of its model.

    Detection and classification become whole tasks; of segmentation, pose and oriented boxes only the preprocessing is
    known here, and the outputs are held against the float model number by number.

    Args:
        metadata: As the source found it.
        signature: Of the model.

    Returns:
        The task, checked against the model; None where nothing is known or what is there does not fit.
    """
    what = metadata.get("task", "")
    size = _size(metadata.get("imgsz", ""))
    if what not in _TASKS or size is None or "names" not in metadata:
        return None
    kind = {"detect": Kind.DETECTION, "classify": Kind.CLASSIFICATION}.get(what, Kind.TENSORS)
    labels = _names(metadata["names"])
    with contextlib.suppress(InputError):  # someone else's keys of the same names, or an export that was changed later
        return check_task(
            Task(
                kind=kind,
                labels=labels,
                inputs=(_image(what, size, gray=metadata.get("channels") == "1"),),
                boxes=_boxes(metadata) if kind is Kind.DETECTION else None,
            ),
            signature,
        )
    return None


def _image(what: str, size: tuple[int, int], *, gray: bool) -> ImageInput:
    color = "gray" if gray else "rgb"
    if what == "classify":  # torchvision: shorter side to the size, then the centre
        side = max(size)
        return ImageInput(size=size, resize=Resize.CROP, shorter_side=side, color=color, scale=_SCALE)
    return ImageInput(size=size, resize=Resize.LETTERBOX, filter=Filter.BILINEAR, color=color, scale=_SCALE)


def _boxes(metadata: Mapping[str, str]) -> Boxes:
    arguments = _literal(metadata.get("args", ""))
    suppressed = isinstance(arguments, dict) and arguments.get("nms") is True
    if suppressed or metadata.get("end2end") == "True":
        return Boxes(layout="end-to-end", format="xyxy", most=_MOST)
    return Boxes(layout="channels-first", nms_iou=_NMS_IOU, most=_MOST)


def _names(text: str) -> tuple[str, ...]:
    """Names in the order of their numbers; none where they are not 0, 1, 2 and so on."""
    names = _literal(text)
    if isinstance(names, list | tuple):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or len(names) > MAX_CLASSES or set(names) != set(range(len(names))):
        return ()
    return tuple(str(names[number])[:200] for number in range(len(names)))


def _size(text: str) -> tuple[int, int] | None:
    """Height and width."""
    size = _literal(text)
    if type(size) is int:
        size = [size, size]
    if isinstance(size, list | tuple) and len(size) == 2 and all(type(side) is int for side in size):
        return size[0], size[1]
    return None


def _literal(text: str) -> object:
    if len(text) > MAX_TASK_BYTES:
        return None
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None
