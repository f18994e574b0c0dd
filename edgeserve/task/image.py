"""Pictures to tensors: decode, turn upright, resize, lay out, normalise. The only module that imports Pillow.

Pillow decodes and does the antialiased resize; everything else is integer arithmetic and float32 tables, so that the
same file gives the same tensor on every machine. What a picture is turned into before anything else:

* The first frame, upright (EXIF orientation), 8 bits a channel; of 16 bits the high byte, as OpenCV reads them.
* Alpha is dropped and the colours below it stay, as `Image.convert("RGB")` and `cv2.imread` do, which models were
  trained with.
* Gray is ITU-R BT.601 luma (Pillow's `L`), CMYK becomes RGB without a colour profile.
"""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.limits import MAX_IMAGE_PIXELS
from edgeserve.contracts.task import Filter, ImageInput, Resize
from edgeserve.plugins import missing
from edgeserve.runtimes.base import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels = npt.NDArray[np.uint8]
"""[height, width, channels]"""

_FORMATS: Final = ("BMP", "JPEG", "PNG", "WEBP")
_COEFFICIENT_BITS: Final = 11
"""Fixed-point digits of OpenCV's bilinear weights."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where a picture lies in a model's input, in pixels of the input."""

    width: int
    height: int
    """Size of the whole picture after the resize."""
    left: int
    top: int
    """Of the resized picture; negative where it is cut."""


def place(entry: ImageInput, width: int, height: int) -> Placement:
    """Plan the resize of a picture of `width` and `height`.

    `crop` rounds as torchvision does (long side down, corner to the nearest), `letterbox` as Ultralytics does (sides to
    the nearest, the smaller half of the filling first).
    """
    rows, columns = entry.size
    if entry.resize is Resize.STRETCH:
        return Placement(width=columns, height=rows, left=0, top=0)
    if entry.resize is Resize.CROP:
        if entry.shorter_side:
            part, whole = entry.shorter_side, min(width, height)
        else:  # the scale that just covers the cut: the larger of rows / height and columns / width
            part, whole = (rows, height) if rows * width >= columns * height else (columns, width)
        new_width, new_height = max(width * part // whole, columns), max(height * part // whole, rows)
        left, top = round((new_width - columns) / 2), round((new_height - rows) / 2)
        return Placement(width=new_width, height=new_height, left=-left, top=-top)
    part, whole = (rows, height) if rows * width <= columns * height else (columns, width)
    new_width = min(max(1, (2 * width * part + whole) // (2 * whole)), columns)
    new_height = min(max(1, (2 * height * part + whole) // (2 * whole)), rows)
    corner = ((columns - new_width) // 2, (rows - new_height) // 2) if entry.align == "center" else (0, 0)
    return Placement(width=new_width, height=new_height, left=corner[0], top=corner[1])


def read(
    entry: ImageInput, data: bytes, *, what: str, most: int = MAX_IMAGE_PIXELS
) -> tuple[Pixels, tuple[int, int], Placement]:
    """Decode a picture and give it the size that the model takes.

    Args:
        entry: Says how.
        data: A JPEG, PNG, BMP or WebP file.
        what: Name of the file for errors.
        most: Pixels that it may have.

    Returns:
        uint8 [height, width, channels] in the order of `color`; width and height of the upright picture; where it lies.

    Raises:
        InputError: Not such a file, damaged, or too many pixels.
        DeviceError: Pillow is not installed.
    """
    picture = _decoded(data, gray=entry.color == "gray", what=what, most=most)
    width, height = picture.size
    placement = place(entry, width, height)
    if placement.width * placement.height > max(most, entry.size[0] * entry.size[1]):
        raise InputError(
            f"{what} has {width}x{height} pixels: too long for its width to be resized", hint="cut the picture"
        )
    resized = _resized(picture, placement, entry.filter)
    pixels = _cut(resized, entry, placement)
    return pixels[:, :, ::-1] if entry.color == "bgr" else pixels, (width, height), placement


def normalise(entry: ImageInput, pixels: Pixels, dtype: npt.DTypeLike) -> Tensor:
    """Scale, centre and lay out: `(pixel * scale - mean) / std` in float32 in this order, then cast to `dtype`.

    Args:
        entry: Says how.
        pixels: As from `read`.
        dtype: Of the model's input.

    Returns:
        [1, channels, height, width] or [1, height, width, channels], C-contiguous.
    """
    table = _table(entry, np.dtype(dtype).str)
    planes = [table[channel][pixels[:, :, channel]] for channel in range(pixels.shape[2])]
    return np.stack(planes, axis=0 if entry.layout == "nchw" else -1)[None]


def resize_bilinear(pixels: Pixels, width: int, height: int) -> Pixels:
    """Resize with the four neighbours of half-pixel centres, in the fixed-point arithmetic of OpenCV's INTER_LINEAR.

    Args:
        pixels: uint8 [height, width, channels].
        width: Of the result.
        height: Of the result.
    """
    left, right, left_weight, right_weight = _neighbours(pixels.shape[1], width, clamp=True)
    upper, lower, upper_weight, lower_weight = _neighbours(pixels.shape[0], height, clamp=False)
    rows, places = np.unique(np.concatenate([upper, lower]), return_inverse=True)
    wide = pixels[rows].astype(np.int32)
    wide = wide[:, left] * left_weight[:, None] + wide[:, right] * right_weight[:, None]
    wide >>= 4
    above, below = wide[places[:height]], wide[places[height:]]
    above *= upper_weight[:, None, None]
    below *= lower_weight[:, None, None]
    rounded: Pixels = ((above >> 16) + (below >> 16) + 2 >> 2).astype(np.uint8)
    return rounded


def resize_nearest(pixels: Pixels, width: int, height: int) -> Pixels:
    """Resize by taking the pixel whose area holds the centre of the new one, as Pillow's NEAREST does.

    Args:
        pixels: uint8 [height, width, channels].
        width: Of the result.
        height: Of the result.
    """
    rows = (2 * np.arange(height) + 1) * pixels.shape[0] // (2 * height)
    columns = (2 * np.arange(width) + 1) * pixels.shape[1] // (2 * width)
    chosen: Pixels = pixels[rows[:, None], columns]
    return chosen


def _neighbours(size: int, wanted: int, *, clamp: bool) -> tuple[npt.NDArray[np.int32], ...]:
    """First and second neighbour of each new pixel and their weights, which add up to 2048 but for rounding.

    `clamp` moves the whole weight to the border pixel (OpenCV's columns), else only places are held inside (its rows).
    """
    scale = 1.0 / (wanted / size)
    centres = ((np.arange(wanted) + 0.5) * scale - 0.5).astype(np.float32)
    first = np.floor(centres).astype(np.int32)
    share = centres - first.astype(np.float32)
    if clamp:
        outside = (first < 0) | (first >= size - 1)
        share[outside] = 0
    scaled = [np.rint(weight * np.float32(1 << _COEFFICIENT_BITS)) for weight in (np.float32(1) - share, share)]
    places = [np.clip(place, 0, size - 1) for place in (first, first + 1)]
    return places[0], places[1], scaled[0].astype(np.int32), scaled[1].astype(np.int32)


def _resized(picture: Image, placement: Placement, how: Filter) -> Pixels:
    size = (placement.width, placement.height)
    if size == picture.size:
        return _array(picture)
    if how is Filter.ANTIALIAS:
        return _array(picture.resize(size, _pillow()[0].Resampling.BILINEAR))
    return (resize_bilinear if how is Filter.BILINEAR else resize_nearest)(_array(picture), *size)


def _cut(resized: Pixels, entry: ImageInput, placement: Placement) -> Pixels:
    rows, columns = entry.size
    if entry.resize is Resize.CROP:
        return resized[-placement.top : rows - placement.top, -placement.left : columns - placement.left]
    if resized.shape[:2] == entry.size:
        return resized
    filled = np.full((rows, columns, resized.shape[2]), entry.pad, np.uint8)
    filled[placement.top : placement.top + placement.height, placement.left : placement.left + placement.width] = (
        resized
    )
    return filled


def _array(picture: Image) -> Pixels:
    pixels = np.asarray(picture)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


@functools.lru_cache(maxsize=64)
def _table(entry: ImageInput, dtype: str) -> Tensor:
    """[channels, 256]: what each pixel value becomes."""
    channels = 1 if entry.color == "gray" else 3
    mean = np.array(entry.mean or (0.0,) * channels, np.float32)[:, None]
    std = np.array(entry.std or (1.0,) * channels, np.float32)[:, None]
    values = (np.arange(256, dtype=np.float32) * np.float32(entry.scale) - mean) / std
    kind = np.dtype(dtype)
    table: Tensor = (values if kind.kind == "f" else np.rint(values)).astype(kind)
    table.setflags(write=False)
    return table


def _decoded(data: bytes, *, gray: bool, what: str, most: int) -> Image:
    image, operations = _pillow()
    try:
        with image.open(io.BytesIO(data), formats=_FORMATS) as file:
            if file.width * file.height > most:
                raise _too_large(what, most)
            file.load()
            operations.exif_transpose(file, in_place=True)  # it would copy what is upright already
            return _eight_bits(file, gray=gray)
    except (InputError, MemoryError):
        raise
    except (image.DecompressionBombError, image.DecompressionBombWarning):
        raise _too_large(what, most) from None
    except Exception as error:  # decoders of damaged files raise what they like, struct.error among it
        raise InputError(
            f"{what} cannot be read as a picture: {str(error)[:200] or type(error).__name__}",
            hint="it must be a whole JPEG, PNG, BMP or WebP file; replace it or take it out of the data",
        ) from error


def _eight_bits(picture: Image, *, gray: bool) -> Image:
    if picture.mode.startswith(("I", "F")):  # one channel of 16 bits; older Pillow reads PNGs of 16 bits as `I`
        deep = np.asarray(picture)
        if deep.dtype.kind not in "iu" or deep.min() < 0 or deep.max() > 0xFFFF:
            raise ValueError(f"its pixels have the mode {picture.mode}")
        picture = _pillow()[0].fromarray((deep >> 8).astype(np.uint8))
    elif picture.mode in ("P", "PA"):
        picture = picture.convert("RGBA")  # straight to RGB, Pillow warns of a palette with transparency
    mode = "L" if gray else "RGB"
    return picture if picture.mode == mode else picture.convert(mode)


def _too_large(what: str, most: int) -> InputError:
    return InputError(f"{what} has more than {most} pixels", hint="make the picture smaller")


def _pillow() -> tuple[Any, Any]:
    """`PIL.Image` and `PIL.ImageOps`."""
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise missing(error, "reading pictures") from error
    return Image, ImageOps
