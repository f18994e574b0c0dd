"""A file to the tensors of one row. The one way in for calibration, validation, golden set and serving."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.limits import MAX_IMAGE_PIXELS, MAX_MEDIA_BYTES
from edgeserve.contracts.task import AudioInput, ImageInput, Task
from edgeserve.contracts.tensors import Signature, TensorSpec
from edgeserve.runtimes.base import Tensor, Tensors
from edgeserve.task import audio, image

Coordinates = npt.NDArray[np.float64]
"""[n, 4], left, top, right, bottom"""


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """How pixels of the model's input relate to those of the picture: `model = picture * scale + offset`, (x, y)."""

    picture: tuple[int, int]
    """Width and height of the upright picture."""
    scale: tuple[float, float]
    offset: tuple[float, float]

    def to_picture(self, boxes: npt.ArrayLike) -> Coordinates:
        """Boxes [n, 4] (left, top, right, bottom) in pixels of the model's input to the picture's, clipped to it."""
        corners = (_corners(boxes) - self.offset) / self.scale
        return np.clip(corners, 0, self.picture).reshape(-1, 4)

    def to_model(self, boxes: npt.ArrayLike) -> Coordinates:
        """Boxes [n, 4] (left, top, right, bottom) in pixels of the picture to the model's input's; not clipped."""
        return (_corners(boxes) * self.scale + self.offset).reshape(-1, 4)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """One file, ready for the model."""

    inputs: Tensors
    """One row for each input that the task describes, [1, ...]; sound with `chunk`: [1, steps, context + chunk]."""
    geometry: Geometry | None
    """Of the first picture; None for sound."""


_LFS: Final = b"version https://git-lfs"
_SIGNATURES: Final = (
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"BM", "image/bmp"),
)


def media_type(data: bytes) -> str:
    """What a file is by its first bytes: `image/jpeg`, `image/png`, `image/bmp`, `image/webp`, `audio/wav`, or ``."""
    for start, name in _SIGNATURES:
        if data.startswith(start):
            return name
    if data[:4] == b"RIFF":
        return {b"WAVE": "audio/wav", b"WEBP": "image/webp"}.get(data[8:12], "")
    return ""


def tensor_inputs(task: Task, signature: Signature) -> tuple[TensorSpec, ...]:
    """Inputs that data must give: all of the model's but state, which starts at zero, and constants."""
    return tuple(spec for spec in signature.inputs if spec.name not in task.state and spec.name not in task.constants)


def input_spec(entry: ImageInput | AudioInput, task: Task, signature: Signature) -> TensorSpec:
    """The model's input that `entry` describes.

    Raises:
        InputError: There is none of this name, or it has no name and the model has several.
    """
    specs = tensor_inputs(task, signature)
    found = [spec for spec in specs if entry.name in ("", spec.name)]
    if len(found) == 1:
        return found[0]
    names = ", ".join(spec.name for spec in specs) or "none"
    if entry.name:
        raise InputError(f"the task describes an input {entry.name[:80]!r}", hint=f"the model has {names}")
    raise InputError("[[inputs]] has no name, and the model has not one input", hint=f"name = one of {names}")


def prepare(
    task: Task,
    signature: Signature,
    data: bytes,
    *,
    what: str,
    most_pixels: int = MAX_IMAGE_PIXELS,
    most_samples: int = MAX_MEDIA_BYTES,
) -> Prepared:
    """Turn a picture or WAV file into the tensors of one row.

    Args:
        task: Describes the inputs.
        signature: Of the model: gives datatypes and shapes.
        data: Content of the file.
        what: Name of the file for errors.
        most_pixels: That a picture may have.
        most_samples: Of the part of the sound that is needed, all channels together.

    Raises:
        InputError: Not such a file, damaged or too large, not what the task takes, or it does not fit the model.
        DeviceError: The image library is not installed.
    """
    if len(data) > MAX_MEDIA_BYTES:
        raise InputError(f"{what} has {len(data)} bytes, at most {MAX_MEDIA_BYTES} are allowed")
    wanted = {"image" if isinstance(entry, ImageInput) else "audio" for entry in task.inputs}
    if not wanted:
        raise InputError(
            f"{what} is a file, and the task describes no input that takes one",
            hint='add [[inputs]] with type = "image" or "audio" to model.toml, or give tensors (.npz)',
        )
    if data.startswith(_LFS):
        raise InputError(
            f"{what} is a Git LFS pointer, not the file that it stands for",
            hint="run 'git lfs pull' in the repository that it came from",
        )
    found = media_type(data)
    if found.partition("/")[0] not in wanted:
        raise InputError(
            f"{what} is {found or 'no file of a known kind'}, the task takes {' and '.join(sorted(wanted))}",
            hint="pictures are JPEG, PNG, BMP or WebP, sound is WAV",
        )
    inputs: Tensors = {}
    geometry = None
    for entry in task.inputs:
        spec = input_spec(entry, task, signature)
        if isinstance(entry, AudioInput):
            if found == "audio/wav":
                window = None if entry.chunk else entry.samples
                samples = audio.read_wav(data, rate=entry.rate, what=what, window=window, most=most_samples)
                inputs[spec.name] = sound_row(entry, spec, samples, what=what)[None]
        elif found != "audio/wav":
            pixels, size, placement = image.read(entry, data, what=what, most=most_pixels)
            row = image.normalise(entry, pixels, spec.datatype.numpy_name)
            inputs[spec.name] = row.reshape(1, *row_shape(entry, row.shape[1:], spec))
            geometry = geometry or _geometry(size, placement)
    return Prepared(inputs=inputs, geometry=geometry)


def sound_row(entry: AudioInput, spec: TensorSpec, samples: audio.Sound, *, what: str) -> Tensor:
    """Features of mono sound in the shape and datatype of the model's input, without the first axis.

    Args:
        entry: Says which features.
        spec: The model's input.
        samples: As from `audio.read_wav` or `audio.sound`.
        what: Name of the file for errors.

    Raises:
        InputError: The features do not fit the input, or are not numbers.
    """
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        values = audio.features(entry, samples)
        row = values.astype(spec.datatype.numpy_name)
    if not np.isfinite(row).all():
        raise InputError(
            f"{what} gives features that are not numbers", hint="its samples are out of any sensible range"
        )
    shape = row_shape(entry, audio.feature_shape(entry), spec)
    return row.reshape(len(row), *shape) if entry.chunk else row.reshape(shape)


def row_shape(entry: ImageInput | AudioInput, shape: tuple[int, ...], spec: TensorSpec) -> tuple[int, ...]:
    """The shape that a row of `shape` takes in the model's input.

    Sound is laid out anew when the elements are as many ([49, 10], [49, 10, 1] and [490] are all one to it); of a
    picture only axes of size 1 may differ.

    Raises:
        InputError: It does not fit.
    """
    wanted = spec.shape[1:]
    if TensorSpec(name=spec.name, datatype=spec.datatype, shape=wanted).accepts(shape):
        return shape
    if isinstance(entry, AudioInput):
        known, rest = math.prod(size for size in wanted if size >= 0), wanted.count(-1)
        filled, left = divmod(math.prod(shape), known) if known else (0, 1)
        if left == 0 and rest <= 1 and (rest or filled == 1):
            return tuple(filled if size == -1 else size for size in wanted)
    elif -1 not in wanted and [size for size in shape if size != 1] == [size for size in wanted if size != 1]:
        return wanted
    raise InputError(
        f"[[inputs]] gives rows of shape {list(shape)}, input {spec.name!r} of the model takes {list(wanted)}",
        hint="size and layout of a picture, samples and features of sound must fit the model",
    )


def _geometry(size: tuple[int, int], placement: image.Placement) -> Geometry:
    return Geometry(
        picture=size,
        scale=(placement.width / size[0], placement.height / size[1]),
        offset=(float(placement.left), float(placement.top)),
    )


def _corners(boxes: npt.ArrayLike) -> Coordinates:
    """[n, 2 corners, 2 coordinates]"""
    return np.asarray(boxes, np.float64).reshape(-1, 2, 2)
