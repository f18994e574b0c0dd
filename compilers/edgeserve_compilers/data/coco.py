"""Boxes of pictures in one JSON file: COCO's own form, and a shorter one with a picture's boxes beside its name.

COCO (https://cocodataset.org/#format-data): `images`, `annotations` with bbox = [left, top, width, height],
`categories`; crowds are skipped. The shorter: `classes` = names in order, and `images` with `file` and `boxes` = rows
of class number, left, top, right, bottom. All in pixels of the picture. In both an image may have a `split`, which
`#NAME` chooses. Categories are matched with the task's labels by name; without labels they are numbered in the order
of their ids.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.limits import MAX_ANNOTATION_BYTES
from edgeserve.contracts.task import Kind, Task
from edgeserve.contracts.tensors import Signature
from edgeserve_compilers.data.dataset import Dataset
from edgeserve_compilers.data.media import Digest, File, inside, picture_input, rows
from edgeserve_compilers.data.truth import as_objects, detections, numbering, split_rows

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels of the picture."""

_CORNERS: Final = "class_id, x1, y1, x2, y2"
"""What `box_format` of the shorter form begins with when it is there."""


class Picture(msgspec.Struct, frozen=True, kw_only=True):
    """A picture with its boxes."""

    file: str
    split: str = ""
    boxes: tuple[tuple[int, float, float, float, float], ...] = ()
    """Class number (a place in the names), then the corners."""


class _Image(msgspec.Struct, frozen=True):
    id: int | str
    file_name: str
    split: str = ""


class _Annotation(msgspec.Struct, frozen=True):
    image_id: int | str
    category_id: int
    bbox: Box
    iscrowd: int = 0


class _Category(msgspec.Struct, frozen=True):
    id: int
    name: str


class _Coco(msgspec.Struct, frozen=True):
    images: list[_Image]
    annotations: list[_Annotation] = []
    categories: list[_Category] = []


class _Short(msgspec.Struct, frozen=True):
    classes: list[str]
    images: list[Picture]
    box_format: str = _CORNERS


class _Kind(msgspec.Struct, frozen=True):
    classes: msgspec.Raw = msgspec.Raw(b"")
    annotations: msgspec.Raw = msgspec.Raw(b"")


def load(path: Path, split: str, signature: Signature, task: Task) -> Dataset:
    """Read a COCO file; see `edgeserve_compilers.data.read.load`.

    Raises:
        InputError: Not such a file, a picture is missing or damaged, a category is not among the labels, or there is no
            such split.
    """
    digest = Digest()
    entry = picture_input(task, str(path))
    names, pictures = parse(digest.read(path, path.name, MAX_ANNOTATION_BYTES), str(path))
    chosen = [pictures[row] for row in split_rows([picture.split for picture in pictures], split, str(path))]
    folders = _folders(path)
    files = [File(name=picture.file, path=_found(folders, picture.file, str(path))) for picture in chosen]
    numbers = _numbers(names, task, str(path))
    prepared = rows(files, signature, task, digest, where=str(path))
    truth = []
    for picture, geometry in zip(chosen, prepared.geometries, strict=True):
        assert geometry is not None, "picture_input made sure that pictures are taken"
        corners = [box[1:] for box in picture.boxes]
        classes = [numbers[box[0]] for box in picture.boxes]
        truth.append(detections(corners, classes, geometry, entry, where=f"{path}: {picture.file}"))
    return Dataset(
        file=path.name + (f"#{split}" if split else ""),
        digest=digest.text(),
        inputs=prepared.inputs,
        truth=for_kind(task, truth),
        names=tuple(file.name for file in files),
    )


def for_kind(task: Task, truth: list[Any]) -> list[Any] | None:
    """True boxes as the task's kind takes them; None where it has no use for boxes."""
    if task.kind is Kind.CUSTOM:
        return [as_objects(found) for found in truth]
    return truth if task.kind is Kind.DETECTION else None


def parse(data: bytes, where: str) -> tuple[list[str], list[Picture]]:
    """Names of the classes and the pictures of a JSON file of either form.

    Raises:
        InputError: Not JSON, not of such a form, or a reference leads nowhere.
    """
    try:
        kind = msgspec.json.decode(data, type=_Kind)
        if bytes(kind.classes) and not bytes(kind.annotations):
            return _short(msgspec.json.decode(data, type=_Short), where)
        return _coco(msgspec.json.decode(data, type=_Coco), where)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{where} is not COCO JSON: {str(error)[:200] or 'nested too deeply'}") from error


def _coco(document: _Coco, where: str) -> tuple[list[str], list[Picture]]:
    categories = sorted(document.categories, key=lambda category: category.id)
    places = {category.id: place for place, category in enumerate(categories)}
    if len(places) != len(categories):
        raise InputError(f"{where}: two categories have one id")
    boxes: dict[int | str, list[tuple[int, float, float, float, float]]] = {image.id: [] for image in document.images}
    if len(boxes) != len(document.images):
        raise InputError(f"{where}: two images have one id")
    for number, annotation in enumerate(document.annotations):
        if annotation.image_id not in boxes or annotation.category_id not in places:
            missing = "an image" if annotation.image_id not in boxes else "a category"
            raise InputError(f"{where}: annotations[{number}] names {missing} id that is not there")
        left, top, width, height = annotation.bbox
        if not annotation.iscrowd:
            boxes[annotation.image_id].append(
                (places[annotation.category_id], left, top, left + width, top + height),
            )
    pictures = [
        Picture(file=image.file_name, split=image.split, boxes=tuple(boxes[image.id])) for image in document.images
    ]
    return [category.name for category in categories], pictures


def _short(document: _Short, where: str) -> tuple[list[str], list[Picture]]:
    if not document.box_format.startswith(_CORNERS):
        raise InputError(
            f"{where}: box_format is {document.box_format[:80]!r}", hint=f"it must begin with {_CORNERS!r}"
        )
    for picture in document.images:
        bad = [box[0] for box in picture.boxes if not 0 <= box[0] < len(document.classes)]
        if bad:
            raise InputError(
                f"{where}: {picture.file[:120]!r} has a box of class {bad[0]}, there are {len(document.classes)}"
            )
    return document.classes, document.images


def _numbers(names: list[str], task: Task, where: str) -> list[int]:
    """Class number of the task for each class of the file."""
    if not task.labels:
        return list(range(len(names)))
    numbers = numbering(names, task, where)
    return [numbers[name] for name in names]


def _folders(path: Path) -> list[Path]:
    """Where pictures may lie: beside the file, in `images`, or as for COCO's own annotations/instances_val2017.json."""
    folder = path.parent
    found = [folder, folder / "images"]
    if folder.resolve().name == "annotations":
        root = folder.resolve().parent
        found += [root, root / "images", root / path.stem.rpartition("_")[2]]
    return found


def _found(folders: list[Path], name: str, where: str) -> Path:
    for folder in folders:
        path = inside(folder, name, where)
        if path.is_file():
            return path
    raise InputError(f"{where}: there is no picture {name[:120]!r}", hint="pictures lie beside the file or in images/")
