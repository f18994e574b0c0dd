"""A folder of pictures or WAV files: with `labels.csv`, with one sub-folder a class, or without labels.

`labels.csv` has a header. Columns: `file` (below the folder), then for what is true `label`, `class`, `class_index`,
`class_id`, `index`, `target`, `y`, `value` or the only one that begins with `class` or `label`; `split` is what
`#NAME` chooses. A class is one of the task's labels or a number; without labels in the task, names are numbered in
sorted order, over all splits. Sub-folders named `train`, `val`, `test` and the like are splits, each with a
sub-folder a class.
"""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.limits import MAX_ANNOTATION_BYTES, MAX_DATASET_FILES
from edgeserve.contracts.task import Kind, Task
from edgeserve.contracts.tensors import Signature
from edgeserve.task.answers import Truth
from edgeserve.task.classes import CLASSIFIERS
from edgeserve_compilers.data.dataset import Dataset
from edgeserve_compilers.data.media import Digest, File, found_in, inside, rows
from edgeserve_compilers.data.truth import NUMBERS, numbering, split_rows, unknown_split

LABELS: Final = "labels.csv"
_FILE: Final = ("file", "filename", "file_name", "path", "image", "audio", "wav", "clip")
_TRUTH: Final = ("label", "class", "class_index", "class_id", "index", "target", "y", "value")
_SPLIT: Final = "split"
_SPLITS: Final = ("val", "validation", "valid", "eval", "test", "train", "calib", "calibration")
"""Names of sub-folders that are splits, not classes; the first that is there is read when none is chosen."""
_MAX_DIGITS: Final = 9


@dataclass(frozen=True, kw_only=True)
class Line:
    """A row of labels.csv."""

    number: int
    file: str
    truth: str
    split: str


def load(path: Path, split: str, signature: Signature, task: Task) -> Dataset:
    """Read a folder; see `edgeserve_compilers.data.read.load`.

    Raises:
        InputError: No files, a line of labels.csv is wrong, a file is damaged, or there is no such split.
    """
    name = path.resolve().name + (f"#{split}" if split else "")
    digest = Digest()
    if (path / LABELS).is_file():
        table = path / LABELS
        lines = read_lines(digest.read(table, LABELS, MAX_ANNOTATION_BYTES), str(table))
        chosen = split_rows([line.split for line in lines], split, str(table))
        files = [File(name=lines[row].file, path=_below(path, lines[row], table)) for row in chosen]
        truth = _truth(lines, chosen, task, str(table))
    else:
        files, truth = classes(*_splits(path, split), task)
    prepared = rows(files, signature, task, digest, where=str(path))
    names = tuple(file.name for file in files)
    return Dataset(file=name, digest=digest.text(), inputs=prepared.inputs, truth=truth, names=names)


def classes(folder: Path, all_splits: list[Path], task: Task) -> tuple[list[File], Truth | None]:
    """Files of a folder with one sub-folder a class, or of a flat one, which says nothing of classes.

    Args:
        folder: What is read.
        all_splits: It and its siblings: classes are numbered over all of them.
        task: Its labels number the classes when it has some.

    Raises:
        InputError: It holds files beside sub-folders with files, or a class is not among the labels.
    """
    flat, found = found_in(folder), []
    for sub in _folders(folder):
        found += [(sub.name, file) for file in found_in(sub, f"{sub.name}/")]
        if len(found) > MAX_DATASET_FILES:
            raise InputError(f"{folder} holds more than {MAX_DATASET_FILES} files")
    if not found or task.kind not in CLASSIFIERS:
        return flat + [file for _, file in found], None
    if flat:
        raise InputError(
            f"{folder} holds {flat[0].name!r} beside sub-folders with files",
            hint=f"one sub-folder a class and nothing else, or a {LABELS}",
        )
    names = {sub.name for part in all_splits for sub in _folders(part) if found_in(sub)}
    numbers = numbering(names, task, str(folder))
    return [file for _, file in found], np.array([numbers[name] for name, _ in found], np.int64)


def read_lines(data: bytes, where: str) -> list[Line]:
    """Rows of a labels.csv.

    Raises:
        InputError: Not UTF-8 or CSV, no column `file`, a line of another length, a file twice, or no lines.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8: {error.reason} at byte {error.start}") from error
    head = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=head.count), strict=True)
    try:
        header = [cell.strip().lower() for cell in next(reader, [])]
        file, truth, split = _columns(header, where)
        lines: dict[str, Line] = {}
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                raise InputError(f"{where}: line {reader.line_num} has {len(cells)} columns, the header {len(header)}")
            line = Line(
                number=reader.line_num,
                file=cells[file].strip(),
                truth="" if truth is None else cells[truth].strip(),
                split="" if split is None else cells[split].strip(),
            )
            if line.file in lines:
                first = lines[line.file].number
                raise InputError(f"{where}: line {line.number} names {line.file[:120]!r}, as line {first} does")
            lines[line.file] = line
    except csv.Error as error:
        raise InputError(f"{where}: line {reader.line_num} is not CSV: {error}") from error
    if not lines:
        raise InputError(f"{where} names no files", hint="a header such as file,label and a line for each file")
    return list(lines.values())


def _columns(header: list[str], where: str) -> tuple[int, int | None, int | None]:
    file = next((name for name in _FILE if name in header), None)
    if file is None:
        raise InputError(
            f"{where}: no column {_FILE[0]!r} in the header {', '.join(header)[:200] or '(empty)'}",
            hint="the first line names the columns: file,label and optionally split",
        )
    truth: str | None = next((name for name in _TRUTH if name in header), None)
    alike = [name for name in header if name.startswith(("class", "label"))]
    if truth is None and len(alike) == 1:
        truth = alike[0]
    if truth is None and len(alike) > 1:
        raise InputError(f"{where}: {' and '.join(alike)} could be the classes", hint="name one of them label")
    return (
        header.index(file),
        None if truth is None else header.index(truth),
        header.index(_SPLIT) if _SPLIT in header else None,
    )


def _truth(lines: list[Line], chosen: list[int], task: Task, where: str) -> Truth | None:
    """What the chosen lines say, in the task's terms; None where none says anything or the task has no use for it."""
    picked = [lines[row] for row in chosen]
    if not any(line.truth for line in picked) or task.kind is Kind.TENSORS:
        return None
    empty = next((line for line in picked if not line.truth), None)
    if empty is not None:
        raise InputError(f"{where}: line {empty.number} has no label", hint="label every line of a split, or none")
    if task.kind in CLASSIFIERS:
        return _class_numbers(lines, picked, task, where)
    if task.kind in NUMBERS:
        return np.array([_number(line, where) for line in picked], np.float64)
    if task.kind is Kind.DETECTION:
        raise InputError(
            f"{where} has one label a picture, detection needs boxes", hint="give COCO or Ultralytics data"
        )
    return [_object(line.truth) for line in picked]


def _class_numbers(lines: list[Line], picked: list[Line], task: Task, where: str) -> Truth:
    if not all(line.truth in task.labels for line in picked) and all(_is_number(line.truth) for line in picked):
        return np.array([int(line.truth) for line in picked], np.int64)
    if task.labels:
        for line in picked:
            numbering([line.truth], task, f"{where}: line {line.number}")
    numbers = numbering((line.truth for line in (picked if task.labels else lines) if line.truth), task, where)
    return np.array([numbers[line.truth] for line in picked], np.int64)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS


def _number(line: Line, where: str) -> float:
    try:
        value = float(line.truth)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{where}: line {line.number}: {line.truth[:80]!r} is not a number")
    return value


def _object(text: str) -> Any:  # noqa: ANN401 - JSON
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _below(folder: Path, line: Line, table: Path) -> Path:
    path = inside(folder, line.file, f"{table}: line {line.number}")
    if not path.is_file():
        raise InputError(f"{table}: line {line.number}: there is no file {path}")
    return path


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(sub for sub in folder.iterdir() if sub.is_dir() and not sub.name.startswith("."))
    except OSError as error:
        raise InputError(f"cannot read {folder}: {error.strerror}") from error


def _splits(path: Path, split: str) -> tuple[Path, list[Path]]:
    """The folder that is read, and the folders of all splits."""
    subs = {sub.name: sub for sub in _folders(path)}
    are_splits = bool(subs) and all(name in _SPLITS for name in subs)
    if not are_splits and not split:
        return path, [path]
    if not are_splits:
        raise unknown_split(split, (), str(path))
    if split and split not in subs:
        raise unknown_split(split, sorted(subs), str(path))
    return subs[split or next(name for name in _SPLITS if name in subs)], list(subs.values())
