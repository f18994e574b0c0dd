"""Small pictures of a model's inputs, for the examples of the report page: what it was given, made visible again."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from edgeserve.contracts.limits import REPORT_PICTURE_SIDE
from edgeserve.contracts.task import AudioInput, ImageInput, Task
from edgeserve.runtimes.base import Tensor

Pixels = npt.NDArray[np.uint8]

_WAVE_HEIGHT: Final = 80
_WAVE_INK: Final = (90, 97, 106)


def picture_of(task: Task, inputs: Mapping[str, Tensor], row: int) -> bytes | None:
    """Draw one row: the first image input with its normalisation undone, else the first sound as a waveform.

    Args:
        task: Says what the inputs are.
        inputs: Rows for each input, first axis = rows.
        row: Which one.

    Returns:
        A PNG file, no side longer than REPORT_PICTURE_SIDE; None when no input is a picture or a sound, when it does
        not have the shape that the task says, or when Pillow is not installed: no picture is no error.
    """
    for entry in task.inputs:
        name = entry.name or (next(iter(inputs)) if len(inputs) == 1 else "")
        array = inputs.get(name)
        if array is None or not 0 <= row < len(array):
            continue
        pixels = _pixels(entry, array[row]) if isinstance(entry, ImageInput) else _wave(entry, array[row])
        if pixels is not None:
            return _png(pixels)
    return None


def _pixels(entry: ImageInput, values: Tensor) -> Pixels | None:
    """Undo layout, std, mean, scale and colour order: uint8 [height, width] or [height, width, 3] in RGB."""
    channels = 1 if entry.color == "gray" else 3
    shape = (channels, *entry.size) if entry.layout == "nchw" else (*entry.size, channels)
    if values.size != channels * entry.size[0] * entry.size[1]:
        return None
    image = values.reshape(shape).astype(np.float64)
    if entry.layout == "nchw":
        image = image.transpose(1, 2, 0)
    if entry.std:
        image = image * np.array(entry.std)
    if entry.mean:
        image = image + np.array(entry.mean)
    image = np.nan_to_num(image / (entry.scale or 1.0), nan=0.0, posinf=255.0, neginf=0.0)
    pixels: Pixels = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    if entry.color == "bgr":
        pixels = pixels[:, :, ::-1]
    return pixels[:, :, 0] if channels == 1 else pixels


def _wave(entry: AudioInput, values: Tensor) -> Pixels | None:
    """A waveform as the range that each column of pixels spans; features as a map of values, time to the right."""
    flat = np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0)
    if not flat.size:
        return None
    if entry.features != "waveform":
        bands = entry.coefficients if entry.features == "mfcc" else entry.mels
        if flat.size % bands:
            return None
        table = flat.reshape(-1, bands).T[::-1]
        low, high = float(table.min()), float(table.max())
        shades: Pixels = np.rint(255 * (table - low) / ((high - low) or 1.0)).astype(np.uint8)
        return np.repeat(shades, max(_WAVE_HEIGHT // bands, 1), axis=0)
    samples = flat.reshape(-1)
    columns = np.array_split(samples / (float(np.abs(samples).max()) or 1.0), min(REPORT_PICTURE_SIDE, samples.size))
    canvas = np.full((_WAVE_HEIGHT, len(columns), 3), 255, np.uint8)
    middle = (_WAVE_HEIGHT - 1) / 2
    for x, column in enumerate(columns):
        top, bottom = (round(middle - middle * float(edge)) for edge in (column.max(), column.min()))
        canvas[top : bottom + 1, x] = _WAVE_INK
    return canvas


def _png(pixels: Pixels) -> bytes | None:
    try:
        from PIL import Image
    except ImportError:
        return None
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    picture.thumbnail((REPORT_PICTURE_SIDE, REPORT_PICTURE_SIDE))
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()
