"""Files of pictures or sound to rows of tensors by the task's preprocessing, and a digest of all that was read."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np

from edgeserve.contracts.errors import InputError, NotFoundError
from edgeserve.contracts.limits import MAX_DATASET_BYTES, MAX_DATASET_FILES, MAX_MEDIA_BYTES
from edgeserve.contracts.task import AudioInput, ImageInput, Task
from edgeserve.contracts.tensors import Signature
from edgeserve.runtimes.base import Tensor, Tensors
from edgeserve.task.prepare import Geometry, Prepared, prepare, tensor_inputs

SUFFIXES: Final = (".bmp", ".jpeg", ".jpg", ".png", ".wav", ".webp")


@dataclass(frozen=True, kw_only=True)
class Digest:
    """SHA-256 over names and contents, in the order in which they were read."""

    state: Any = field(default_factory=hashlib.sha256)

    def read(self, path: Path, name: str, limit: int) -> bytes:
        """Content of a file of at most `limit` bytes, taken into the digest as `name`.

        Raises:
            NotFoundError: There is no such file.
            InputError: Cannot be read, or is larger.
        """
        try:
            with path.open("rb") as file:
                data = file.read(limit + 1)
        except FileNotFoundError:
            raise NotFoundError(f"there is no file {path}") from None
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read {path}: {error}") from error
        if len(data) > limit:
            raise InputError(f"{path} has more than {limit} bytes")
        for part in (name.encode(errors="surrogateescape"), data):
            self.state.update(len(part).to_bytes(8, "big"))
            self.state.update(part)
        return data

    def text(self) -> str:
        """`sha256:` and the digest so far."""
        return "sha256:" + str(self.state.hexdigest())


@dataclass(frozen=True, kw_only=True)
class File:
    """One row to come."""

    name: str
    """As the data call it, with `/`."""
    path: Path


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What the files became."""

    inputs: Tensors
    geometries: tuple[Geometry | None, ...]


def rows(files: Sequence[File], signature: Signature, task: Task, digest: Digest, *, where: str) -> Rows:
    """Prepare every file. Sound of a stateful task is padded with silence to the longest sequence.

    Args:
        files: In the order of the rows.
        signature: Of the model.
        task: Describes every input that needs data.
        digest: Takes in what is read.
        where: Name of the data for errors.

    Raises:
        InputError: No files or too many, one is damaged or does not fit the task, or they do not fit memory.
        DeviceError: The image library is not installed.
    """
    _check_task(task, signature, where)
    if not files:
        raise InputError(f"{where} holds no pictures or WAV files", hint=f"looked for {', '.join(SUFFIXES)}")
    if len(files) > MAX_DATASET_FILES:
        raise InputError(f"{where} holds {len(files)} files, at most {MAX_DATASET_FILES} are read")
    geometries = []
    parts: dict[str, list[Tensor]] = {spec.name: [] for spec in tensor_inputs(task, signature)}
    whole: Tensors = {}
    total = 0
    for number, file in enumerate(files):
        prepared = _prepared(file, signature, task, digest)
        geometries.append(prepared.geometry)
        size = sum(row.nbytes for row in prepared.inputs.values())
        total += size
        if total > MAX_DATASET_BYTES or (not task.stateful and size * len(files) > MAX_DATASET_BYTES):
            raise InputError(
                f"{where}: {len(files)} rows of {size} bytes do not fit the {MAX_DATASET_BYTES} bytes that are allowed",
                hint="a few hundred rows calibrate, a few thousand judge: give fewer files",
            )
        for name, row in prepared.inputs.items():
            if task.stateful:
                parts[name].append(row[0])
                continue
            if number == 0:
                whole[name] = np.empty((len(files), *row.shape[1:]), row.dtype)
            if whole[name].shape[1:] != row.shape[1:]:
                raise InputError(f"{file.path} gives a row of {list(row.shape[1:])}, those before it differ")
            whole[name][number] = row[0]
    if task.stateful:
        whole = {name: _padded(sequences, where) for name, sequences in parts.items()}
    return Rows(inputs=whole, geometries=tuple(geometries))


def inside(folder: Path, name: str, where: str) -> Path:
    """The file `name` below `folder`.

    Raises:
        InputError: The name leads out of it.
    """
    plain = PurePosixPath(name.replace("\\", "/"))
    if plain.is_absolute() or ".." in plain.parts or not plain.parts or "\0" in name or ":" in plain.parts[0]:
        raise InputError(f"{where}: file {name[:120]!r} leads out of {folder}", hint="name files below the data")
    return folder.joinpath(*plain.parts)


def found_in(folder: Path, name: str = "") -> list[File]:
    """Pictures and WAV files that lie in `folder` itself, sorted; `name` stands before their names.

    Raises:
        InputError: The folder cannot be read.
    """
    try:
        files = [path for path in folder.iterdir() if is_media(path) and path.is_file()]
    except OSError as error:
        raise InputError(f"cannot read {folder}: {error.strerror}") from error
    return [File(name=f"{name}{path.name}", path=path) for path in sorted(files, key=lambda path: path.name)]


def is_media(path: Path) -> bool:
    """Whether the name is that of a picture or WAV file."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def picture_input(task: Task, where: str) -> ImageInput:
    """The input that takes pictures.

    Raises:
        InputError: The task has none.
    """
    for entry in task.inputs:
        if isinstance(entry, ImageInput):
            return entry
    raise InputError(f"{where} holds pictures, and the task describes no input that takes them", hint=_DESCRIBE)


_DESCRIBE: Final = 'add [[inputs]] with type = "image" or "audio" to model.toml'


def _check_task(task: Task, signature: Signature, where: str) -> None:
    described = {entry.name for entry in task.inputs}
    missing = [spec.name for spec in tensor_inputs(task, signature) if spec.name not in described]
    if missing:
        raise InputError(
            f"{where} holds files, and the task does not say how they become input {missing[0]!r}",
            hint=f"{_DESCRIBE}, or give tensors (.npz)",
        )
    if task.stateful and not all(isinstance(entry, AudioInput) and entry.chunk for entry in task.inputs):
        raise InputError(
            f"{where}: the task carries state, and a file is not a sequence of steps",
            hint="give sound with chunk in [[inputs]], or an .npz of [sequence, step, ...]",
        )


def _prepared(file: File, signature: Signature, task: Task, digest: Digest) -> Prepared:
    data = digest.read(file.path, file.name, MAX_MEDIA_BYTES)
    prepared = prepare(task, signature, data, what=str(file.path))
    if len(prepared.inputs) != len(task.inputs):
        raise InputError(f"{file.path} is one file, the task takes pictures and sound together", hint="give an .npz")
    return prepared


def _padded(sequences: list[Tensor], where: str) -> Tensor:
    steps = max(len(sequence) for sequence in sequences)
    size = len(sequences) * steps * sequences[0][0].nbytes
    if size > MAX_DATASET_BYTES:
        raise InputError(
            f"{where}: {len(sequences)} sequences of {steps} steps have {size} bytes", hint="cut the sound"
        )
    whole = np.zeros((len(sequences), steps, *sequences[0].shape[1:]), sequences[0].dtype)
    for row, sequence in enumerate(sequences):
        whole[row, : len(sequence)] = sequence
    return whole
