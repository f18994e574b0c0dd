"""Ultralytics' `data.yaml` (https://docs.ultralytics.com/datasets/detect/): `path`, `train`, `val`, `test`, `names`.

A split is a folder, a list of folders, or a .txt with a picture a line. Boxes of `images/a/b.jpg` are in
`labels/a/b.txt`: class, centre, width and height as shares of the picture; a polygon counts as the box around it.
Nothing is downloaded. For classification a split is a folder with one sub-folder a class. `#NAME` chooses the split,
`val` by itself.
"""

from __future__ import annotations

import math
from pathlib import Path, PurePosixPath
from typing import Any, Final

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.limits import MAX_ANNOTATION_BYTES, MAX_CLASSES, MAX_DATASET_FILES, MAX_TASK_BYTES
from edgeserve.contracts.task import Kind, Task
from edgeserve.contracts.tensors import Signature
from edgeserve.plugins import missing
from edgeserve.task.answers import Truth
from edgeserve.task.classes import CLASSIFIERS
from edgeserve_compilers.data import coco, folder
from edgeserve_compilers.data.dataset import Dataset
from edgeserve_compilers.data.media import Digest, File, inside, is_media, picture_input, rows
from edgeserve_compilers.data.truth import detections, numbering, unknown_split

_DEFAULT: Final = "val"
_SPLITS: Final = ("train", "val", "test")
_SLACK: Final = 0.01
"""Shares may pass 0 and 1 by this much, as rounding of annotation tools makes them."""

Labelled = tuple[int, float, float, float, float]
"""Class number, then left, top, right, bottom as shares of the picture."""


def load(path: Path, split: str, signature: Signature, task: Task) -> Dataset:
    """Read what a data.yaml names; see `edgeserve_compilers.data.read.load`.

    Raises:
        InputError: Not such a file, a label is wrong, a picture is missing or damaged, or there is no such split.
        DeviceError: PyYAML is not installed.
    """
    digest = Digest()
    document = _document(digest.read(path, path.name, MAX_TASK_BYTES), str(path))
    known = [name for name in _SPLITS if document.get(name)]
    wanted = split or _DEFAULT
    if not known:
        raise InputError(f"{path} names no pictures", hint="such as val: images/val")
    if wanted not in known:
        raise unknown_split(wanted, known, str(path))
    root = _root(document, path)
    sources = {name: _sources(root, document[name], f"{path}: {name}") for name in known}
    for source in sources[wanted]:
        if not source.exists():
            raise InputError(
                f"{path}: {wanted}: there is no {source}", hint="nothing is downloaded: fetch the data first"
            )
    truth: Truth | None = None
    if task.kind in CLASSIFIERS:
        if len(sources[wanted]) != 1 or not sources[wanted][0].is_dir():
            raise InputError(f"{path}: {wanted} is not one folder", hint="with one sub-folder a class")
        parts = [part for group in sources.values() for part in group if part.is_dir()]
        files, truth = folder.classes(sources[wanted][0], parts, task)
        prepared = rows(files, signature, task, digest, where=str(path))
    else:
        entry = picture_input(task, str(path))
        files = [file for source in sources[wanted] for file in _pictures(source, root, digest)]
        prepared = rows(files, signature, task, digest, where=str(path))
        numbers = _numbers(document, task, str(path))
        labels = [_boxes(file, numbers, digest) for file in files]
        if any(boxes is not None for boxes in labels) and task.kind in (Kind.DETECTION, Kind.CUSTOM):
            found = []
            for boxes, geometry in zip(labels, prepared.geometries, strict=True):
                assert geometry is not None, "picture_input made sure that pictures are taken"
                width, height = geometry.picture
                corners = [(x1 * width, y1 * height, x2 * width, y2 * height) for _, x1, y1, x2, y2 in boxes or ()]
                found.append(detections(corners, [box[0] for box in boxes or ()], geometry, entry, where=str(path)))
            truth = coco.for_kind(task, found)
    return Dataset(
        file=f"{path.name}#{wanted}",
        digest=digest.text(),
        inputs=prepared.inputs,
        truth=truth,
        names=tuple(file.name for file in files),
    )


def parse_labels(text: str, classes: int, where: str) -> list[Labelled]:
    """Boxes of one label file.

    Raises:
        InputError: A line is not a class and a box or polygon in shares of the picture.
    """
    boxes = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            label, *shares = (float(part) for part in line.split())
        except ValueError:
            raise InputError(f"{where}: line {number} is not numbers") from None
        if len(shares) != 4 and (len(shares) < 6 or len(shares) % 2):
            raise InputError(f"{where}: line {number} has {len(shares)} numbers after the class, a box has 4")
        if not all(-_SLACK <= share <= 1 + _SLACK for share in shares):  # nor is NaN
            raise InputError(f"{where}: line {number} is not in shares of the picture", hint="divide by its sides")
        if not math.isfinite(label) or label % 1 or not 0 <= label < classes:
            raise InputError(f"{where}: line {number} has class {label:g}, names has {classes}")
        if len(shares) == 4:
            x, y, width, height = shares
            boxes.append((int(label), x - width / 2, y - height / 2, x + width / 2, y + height / 2))
        else:
            across, down = shares[::2], shares[1::2]
            boxes.append((int(label), min(across), min(down), max(across), max(down)))
    return boxes


def _document(data: bytes, where: str) -> dict[str, Any]:
    try:
        import yaml
    except ImportError as error:
        raise missing(error, f"reading {where}") from error
    try:
        document = yaml.safe_load(data)
    except (yaml.YAMLError, ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{where} is not YAML: {str(error)[:200] or 'nested too deeply'}") from error
    if not isinstance(document, dict):
        raise InputError(f"{where} is not a table of keys", hint="path, train, val, names")
    return document


def _names(document: dict[str, Any], where: str) -> list[str]:
    names = document.get("names")
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or len(names) > MAX_CLASSES or set(names) != set(range(len(names))):
        raise InputError(f"{where}: names is not a name for each of 0, 1, 2 ...", hint="names: {0: person, 1: bicycle}")
    if not all(isinstance(name, str | int | float) for name in names.values()):
        raise InputError(f"{where}: names holds something that is not a name")
    return [str(names[number]) for number in range(len(names))]


def _numbers(document: dict[str, Any], task: Task, where: str) -> list[int]:
    """Class number of the task for each class of the file."""
    names = _names(document, where)
    if not task.labels:
        return list(range(len(names)))
    numbers = numbering(names, task, where)
    return [numbers[name] for name in names]


def _root(document: dict[str, Any], path: Path) -> Path:
    """The folder that `path` names, from which splits are named."""
    named = document.get("path") or ""
    if not isinstance(named, str):
        raise InputError(f"{path}: path is not the name of a folder")
    return path.parent / named


def _sources(root: Path, value: object, where: str) -> list[Path]:
    """Folders and lists of pictures that a split names; they may not be there."""
    texts = value if isinstance(value, list) else [value]
    found = []
    for text in texts:
        if not isinstance(text, str):
            raise InputError(f"{where} is not a path or a list of paths")
        if text.startswith("../") and ".." not in PurePosixPath(text[3:]).parts:
            text = text[3:]  # Roboflow writes paths from the folder beside, as Ultralytics knows
        whole = Path(text)
        below = whole.is_absolute() and ".." not in whole.parts and whole.is_relative_to(root)
        found.append(whole if below else inside(root, text, where))
    return found


def _pictures(source: Path, root: Path, digest: Digest) -> list[File]:
    if source.is_dir():
        paths = []
        for path in source.rglob("*"):
            if is_media(path) and path.is_file():
                paths.append(path)
            if len(paths) > MAX_DATASET_FILES:
                raise InputError(f"{source} holds more than {MAX_DATASET_FILES} files")
        return [File(name=path.relative_to(source).as_posix(), path=path) for path in sorted(paths)]
    try:
        lines = digest.read(source, source.name, MAX_ANNOTATION_BYTES).decode().split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{source} is not a list of pictures: {error.reason}") from error
    names = [line.strip() for line in lines if line.strip()]
    return [File(name=name, path=_listed(name, source, root)) for name in names]


def _listed(name: str, source: Path, root: Path) -> Path:
    path = Path(name)
    if not path.is_absolute() or ".." in path.parts or not path.is_relative_to(root.absolute()):
        path = inside(source.parent, name, str(source))
    if not path.is_file():
        raise InputError(f"{source}: there is no picture {path}")
    return path


def _boxes(file: File, numbers: list[int], digest: Digest) -> list[Labelled] | None:
    """What the label file of a picture says; None when there is none, which means no objects if others have one."""
    path = file.path
    parts = list(path.parts)
    if "images" in parts[:-1]:
        place = len(parts) - 1 - parts[::-1].index("images")
        parts[place] = "labels"
    label = Path(*parts).with_suffix(".txt")
    if not label.is_file():
        return None
    try:
        text = digest.read(label, label.name, MAX_TASK_BYTES).decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{label} is not text: {error.reason}") from error
    return [(numbers[box[0]], *box[1:]) for box in parse_labels(text, len(numbers), str(label))]
