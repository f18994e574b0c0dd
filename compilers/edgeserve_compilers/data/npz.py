"""Rows as arrays in one `.npz`: tensors as the model takes them, or sound.

* An input: by its name, or `x` for the only one: [rows, ...]; of a stateful task [sequence, step, ...].
* An input that takes sound: by name, `x`, or the only int16 array with two axes: [rows, samples] waveforms (int16, or
  floats from -1 to 1), which go through the task's features unless the model takes such rows as they are.
* `labels` or `y`: class numbers or names [rows]; for regression and embedding numbers [rows, ...]; of a stateful task
  [sequence, step, ...]. `labels` as text beside a `y`: names of the classes in the order of their numbers.
* `labels_json`: uint8 bytes of a JSON list with one item a row (a step of a stateful task). Detection: lists of
  {"box": [x1, y1, x2, y2], "class": number} in pixels of the model's input.
* `split` text [rows], or `is_calib` bool [rows]: what `#NAME` chooses; `is_calib` gives `#calib` and `#eval`.
* Text named `clip`, `file`, `name` and the like: where a row is from, shown in reports.

Any other array is an error, since it may be a mistyped name. Only when `#NAME` names an array as the truth, the rest
is left alone: then the user has said what counts. `#eval,scores` chooses a split and the truth.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

import numpy as np

from edgeserve import npz
from edgeserve.contracts.errors import InputError
from edgeserve.contracts.limits import MAX_DATASET_BYTES
from edgeserve.contracts.task import AudioInput, Task
from edgeserve.contracts.tensors import Signature, TensorSpec
from edgeserve.runtimes.base import Tensor, Tensors
from edgeserve.runtimes.checks import check_file
from edgeserve.task import audio
from edgeserve.task.answers import Truth
from edgeserve.task.prepare import sound_row, tensor_inputs
from edgeserve_compilers.data.columns import TEXT, Columns, described, strings
from edgeserve_compilers.data.dataset import Dataset
from edgeserve_compilers.data.npz_truth import JSON, LABELS, take_truth
from edgeserve_compilers.data.truth import split_rows, unknown_split

_ONLY_INPUT: Final = "x"
_SPLIT: Final = "split"
_IS_CALIB: Final = "is_calib"
_SOURCES: Final = (
    "clip",
    "clips",
    "file",
    "file_name",
    "filename",
    "files",
    "id",
    "ids",
    "name",
    "names",
    "path",
    "paths",
)
"""Text arrays that say where rows are from."""


def load(path: Path, split: str, signature: Signature, task: Task) -> Dataset:
    """Read an npz file; see `edgeserve_compilers.data.read.load`.

    Raises:
        InputError: Not an npz, too large, holds objects; an array is missing or unknown, has another shape, datatype or
            number of rows than the model takes, or holds NaN; labels do not fit the task; or there is no such split.
    """
    check_file(path, what="data")
    arrays = npz.load(path, what=str(path), limit=MAX_DATASET_BYTES, text=True)
    where = str(path)
    columns = Columns(arrays, where)
    inputs = _inputs(columns, signature, task)
    count = _count(inputs, where)
    chosen, truth_name = _choice(columns, split, count)
    truth = take_truth(columns, truth_name, next(iter(inputs.values())).shape[: 2 if task.state else 1], task)
    names = _names(columns, count)
    if not truth_name:
        columns.refuse_rest([*inputs, *LABELS, JSON, _SPLIT, _IS_CALIB])
    if len(chosen) < count:
        truth = None if truth is None else _rows_of(truth, chosen, len(truth) // count)
        inputs = {name: array[chosen] for name, array in inputs.items()}
        names = tuple(names[row] for row in chosen) if names else ()
    return Dataset(
        file=path.name + (f"#{split}" if split else ""), digest=_digest(path), inputs=inputs, truth=truth, names=names
    )


def _inputs(columns: Columns, signature: Signature, task: Task) -> Tensors:
    specs = tensor_inputs(task, signature)
    sounds = {entry.name: entry for entry in task.inputs if isinstance(entry, AudioInput)}
    inputs = {}
    for spec in specs:
        name = _array_name(columns, spec, only=len(specs) == 1, sound=spec.name in sounds)
        array = columns.take(name)
        entry = sounds.get(spec.name)
        if entry is not None and _is_sound(array, spec, task):
            array = _features(array, entry, spec, f"{columns.where}: array {name!r}")
        _check_array(array, name, spec, task, columns.where)
        inputs[spec.name] = array
    return inputs


def _array_name(columns: Columns, spec: TensorSpec, *, only: bool, sound: bool) -> str:
    if spec.name in columns.left:
        return spec.name
    if only and _ONLY_INPUT in columns.left:
        return _ONLY_INPUT
    waves = [name for name, array in columns.left.items() if array.dtype == np.int16 and array.ndim == 2]
    if only and sound and len(waves) == 1:
        return waves[0]
    raise InputError(
        f"{columns.where} has no array {spec.name!r}, it has {', '.join(columns.names) or 'none'}",
        hint=f"the model takes {_expected(spec)}",
    )


def _is_sound(array: Tensor, spec: TensorSpec, task: Task) -> bool:
    """Whether it is [rows, samples] of a waveform, and not what the model takes already."""
    if array.ndim != 2 or (array.dtype != np.int16 and array.dtype.kind != "f"):
        return False
    fits = not task.state and array.dtype.name == spec.datatype.numpy_name and _row(spec).accepts(array.shape[1:])
    return not fits


def _features(array: Tensor, entry: AudioInput, spec: TensorSpec, where: str) -> Tensor:
    if not array.size:
        raise InputError(f"{where} has no rows or no samples")
    if array.dtype.kind == "f":
        _check_finite(array, where)
    first = sound_row(entry, spec, audio.sound(array[0]), what=f"{where} row 0")
    if first.nbytes * len(array) > MAX_DATASET_BYTES:
        raise InputError(
            f"{where}: features of {len(array)} rows do not fit {MAX_DATASET_BYTES} bytes", hint="fewer rows"
        )
    features = np.empty((len(array), *first.shape), first.dtype)
    for row, samples in enumerate(array):
        features[row] = sound_row(entry, spec, audio.sound(samples), what=f"{where} row {row}")
    return features


def _check_array(array: Tensor, name: str, spec: TensorSpec, task: Task, file: str) -> None:
    where = f"{file}: array {name!r}"
    if array.dtype.name != spec.datatype.numpy_name:
        raise InputError(
            f"{where} has dtype {array.dtype}, expected {spec.datatype.numpy_name}",
            hint=f"array.astype({spec.datatype.numpy_name!r}), if the values are what the model was trained on",
        )
    axes = ("sequences", "steps") if task.state else ("rows",)
    if array.ndim < len(axes) or not _row(spec).accepts(array.shape[len(axes) :]):
        expected = ", ".join([*axes, *map(str, spec.shape[1:])])
        raise InputError(
            f"{where} has shape {list(array.shape)}, expected [{expected}]",
            hint=f"the model takes {_expected(spec)}, -1 varies",
        )
    if 0 in array.shape[: len(axes)]:
        raise InputError(f"{where} has no rows")
    if array.dtype.kind == "f":
        _check_finite(array, where)


def _check_finite(array: Tensor, where: str) -> None:
    bad = int(np.count_nonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1)))
    if bad:
        raise InputError(f"{where} holds NaN or infinity in {bad} of {len(array)} rows", hint="drop these rows")


def _count(inputs: Tensors, where: str) -> int:
    counts = {name: len(array) for name, array in inputs.items()}
    if len(set(counts.values())) != 1:
        raise InputError(f"{where}: arrays differ in rows: {', '.join(f'{n} {c}' for n, c in counts.items())}")
    return next(iter(counts.values()))


def _choice(columns: Columns, split: str, count: int) -> tuple[list[int], str]:
    """Rows that `#NAME` chooses, and the array that it names as the truth."""
    values: list[str] | None = None
    if _SPLIT in columns.left:
        values = columns.texts(_SPLIT, count)
    if _IS_CALIB in columns.left:
        flags = columns.take(_IS_CALIB)
        if flags.dtype != np.bool_ or flags.shape != (count,):
            raise InputError(f"{columns.where}: array {_IS_CALIB!r} has {described(flags)}, expected bool [{count}]")
        if values is not None:
            raise InputError(f"{columns.where} holds both {_SPLIT!r} and {_IS_CALIB!r}", hint="keep one")
        values = ["calib" if flag else "eval" for flag in flags]
    parts = [part for part in split.split(",") if part]
    truth = [part for part in parts if part in columns.left and part not in (values or ())]
    names = [part for part in parts if part not in truth]
    if len(truth) > 1 or len(names) > 1:
        raise InputError(f"{columns.where}: #{split[:80]} chooses more than one split or truth")
    if names and values is None:
        raise unknown_split(names[0], (), columns.where)
    return split_rows(values or [""] * count, names[0] if names else "", columns.where), truth[0] if truth else ""


def _rows_of(truth: Truth, rows: list[int], steps: int) -> Truth:
    """Truth of some rows, of `steps` entries each."""
    places = (np.array(rows)[:, None] * steps + np.arange(steps)).reshape(-1)
    return [truth[place] for place in places] if isinstance(truth, list) else truth[places]


def _names(columns: Columns, count: int) -> tuple[str, ...]:
    names: tuple[str, ...] = ()
    for name in _SOURCES:
        if name in columns.left and columns.left[name].dtype.kind in TEXT:
            array = columns.take(name)
            if array.shape == (count,) and not names:
                names = tuple(strings(array, f"{columns.where}: array {name!r}"))
    return names


def _row(spec: TensorSpec) -> TensorSpec:
    return TensorSpec(name=spec.name, datatype=spec.datatype, shape=spec.shape[1:])


def _expected(spec: TensorSpec) -> str:
    return f"{spec.name} {spec.datatype.numpy_name}{list(spec.shape)}"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        state = hashlib.sha256()
        while block := file.read(1 << 20):
            state.update(block)
    return "sha256:" + state.hexdigest()
