from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgeserve.contracts.errors import EdgeServeError, InputError
from edgeserve.contracts.task import Filter, ImageInput, Resize
from edgeserve.task import image
from edgeserve.task.image import Placement, place


def saved(picture: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def png(pixels, **options) -> bytes:
    return saved(Image.fromarray(np.asarray(pixels, np.uint8)), **options)


def stretch(height: int, width: int, **options) -> ImageInput:
    return ImageInput(size=(height, width), resize=Resize.STRETCH, **options)


def pixels(entry: ImageInput, data: bytes) -> np.ndarray:
    return image.read(entry, data, what="a.png")[0]


RAMP = png([[0, 100]])


@pytest.mark.parametrize(
    ("how", "width", "expected"),
    [
        # centres of the new pixels lie at -0.25, 0.25, 0.75 and 1.25 of the old ones
        (Filter.BILINEAR, 4, [0, 25, 75, 100]),
        (Filter.ANTIALIAS, 4, [0, 25, 75, 100]),
        (Filter.NEAREST, 4, [0, 0, 100, 100]),
        (Filter.NEAREST, 3, [0, 100, 100]),
        (Filter.BILINEAR, 1, [50]),
        (Filter.NEAREST, 1, [100]),
    ],
)
def test_a_row_of_two_pixels_is_resized_as_by_hand(how: Filter, width: int, expected: list[int]) -> None:
    entry = stretch(1, width, filter=how, color="gray")
    assert pixels(entry, RAMP)[0, :, 0].tolist() == expected


def test_antialias_averages_what_shrinks_and_bilinear_does_not() -> None:
    data = png([[0, 0, 0, 240, 0, 0, 0, 0]])
    assert pixels(stretch(1, 2, filter=Filter.BILINEAR, color="gray"), data)[0, :, 0].tolist() == [0, 0]
    # triangles of half-width 4 around 2 and 6: six pixels inside the border with weights that add up to 3.5; the bright
    # one, whose centre is 3.5, has 0.625 and 0.375 of them
    assert pixels(stretch(1, 2, filter=Filter.ANTIALIAS, color="gray"), data)[0, :, 0].tolist() == [43, 26]


def test_bilinear_is_the_fixed_point_arithmetic_of_opencv() -> None:
    """Expected values are cv2.resize(..., interpolation=cv2.INTER_LINEAR) of OpenCV 4.10 and 5.0."""
    source = (np.arange(5 * 7 * 3) * 37 % 256).astype(np.uint8).reshape(5, 7, 3)
    assert image.resize_bilinear(source, 4, 3)[:, :, 0].tolist() == [
        [44, 207, 177, 115],
        [60, 222, 192, 130],
        [74, 87, 207, 145],
    ]
    assert image.resize_bilinear(source, 9, 6)[:2, :, 1].tolist() == [
        [37, 111, 83, 28, 114, 200, 144, 117, 191],
        [44, 117, 90, 34, 121, 207, 151, 124, 198],
    ]


@pytest.mark.parametrize(
    ("entry", "width", "height", "expected"),
    [
        (ImageInput(size=(10, 20)), 7, 9, Placement(width=20, height=10, left=0, top=0)),
        (
            ImageInput(size=(224, 224), resize=Resize.CROP, shorter_side=256),
            500,
            375,
            Placement(width=341, height=256, left=-58, top=-16),
        ),
        (
            ImageInput(size=(224, 224), resize=Resize.CROP, shorter_side=256),
            256,
            256,
            Placement(width=256, height=256, left=-16, top=-16),
        ),
        (ImageInput(size=(100, 50), resize=Resize.CROP), 200, 200, Placement(width=100, height=100, left=-25, top=0)),
        (
            ImageInput(size=(416, 416), resize=Resize.LETTERBOX, align="top-left"),
            640,
            426,
            Placement(width=416, height=277, left=0, top=0),
        ),
        (
            ImageInput(size=(640, 640), resize=Resize.LETTERBOX),
            333,
            500,
            Placement(width=426, height=640, left=107, top=0),
        ),
        (ImageInput(size=(64, 64), resize=Resize.LETTERBOX), 10_000, 1, Placement(width=64, height=1, left=0, top=31)),
    ],
)
def test_pictures_are_placed_as_torchvision_and_ultralytics_do(
    entry, width: int, height: int, expected: Placement
) -> None:
    assert place(entry, width, height) == expected


@given(
    entry=st.builds(
        lambda size, resize, more: ImageInput(
            size=size, resize=resize, shorter_side=max(size) + more if resize is Resize.CROP and more else 0
        ),
        st.tuples(st.integers(1, 500), st.integers(1, 500)),
        st.sampled_from(Resize),
        st.integers(0, 50),
    ),
    width=st.integers(1, 3000),
    height=st.integers(1, 3000),
)
def test_a_crop_covers_the_input_and_a_letterbox_lies_within(entry: ImageInput, width: int, height: int) -> None:
    placed = place(entry, width, height)
    rows, columns = entry.size
    right, bottom = placed.left + placed.width, placed.top + placed.height
    if entry.resize is Resize.CROP:
        assert placed.left <= 0 <= columns <= right
        assert placed.top <= 0 <= rows <= bottom
    else:
        assert 0 <= placed.left < right <= columns
        assert 0 <= placed.top < bottom <= rows


def test_a_letterbox_is_filled_and_a_crop_is_cut() -> None:
    data = png(np.full((2, 4), 200))
    box = ImageInput(size=(4, 4), resize=Resize.LETTERBOX, pad=7, color="gray")
    assert pixels(box, data)[:, :, 0].tolist() == [[7] * 4, [200] * 4, [200] * 4, [7] * 4]
    cut = ImageInput(size=(2, 2), resize=Resize.CROP, color="gray")
    assert pixels(cut, png([[1, 2, 3, 4], [5, 6, 7, 8]]))[:, :, 0].tolist() == [[2, 3], [6, 7]]


def test_normalising_is_scale_then_mean_then_std_in_float32() -> None:
    entry = stretch(1, 1, scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    data = png([[[10, 20, 30]]])
    one = np.float32
    expected = [
        (one(value) * one(1 / 255) - one(mean)) / one(std)
        for value, mean, std in zip((10, 20, 30), entry.mean, entry.std, strict=True)
    ]
    row = image.normalise(entry, pixels(entry, data), "float32")
    assert (row.shape, row.dtype, row.reshape(-1).tolist()) == ((1, 3, 1, 1), np.float32, expected)
    assert row.flags.c_contiguous


def test_layout_and_colour_order() -> None:
    data = png([[[10, 20, 30], [40, 50, 60]]])
    first = image.normalise(stretch(1, 2, color="bgr"), pixels(stretch(1, 2, color="bgr"), data), "float32")
    assert first.tolist() == [[[[30, 60]], [[20, 50]], [[10, 40]]]]
    last = image.normalise(stretch(1, 2, layout="nhwc"), pixels(stretch(1, 2), data), "uint8")
    assert (last.dtype, last.tolist()) == (np.uint8, [[[[10, 20, 30], [40, 50, 60]]]])
    assert last.flags.c_contiguous


def test_whole_numbers_become_int8_by_a_mean_of_128() -> None:
    entry = stretch(1, 3, mean=(128.0,), color="gray")
    assert image.normalise(entry, pixels(entry, png([[0, 128, 255]])), "int8").reshape(-1).tolist() == [-128, 0, 127]


RED = (200, 10, 30)


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        (Image.new("RGB", (1, 1), RED), RED),
        (Image.new("RGBA", (1, 1), (*RED, 0)), RED),
        (Image.new("RGBA", (1, 1), (*RED, 128)), RED),
        (Image.new("RGB", (1, 1), RED).convert("P", palette=Image.Palette.ADAPTIVE), RED),
        (Image.new("L", (1, 1), 77), (77, 77, 77)),
        (Image.new("LA", (1, 1), (77, 3)), (77, 77, 77)),
        (Image.new("1", (1, 1), 1), (255, 255, 255)),
        (Image.fromarray(np.array([[0x1234]], np.uint16)), (0x12, 0x12, 0x12)),
    ],
    ids=["rgb", "alpha 0", "alpha half", "palette", "gray", "gray alpha", "bits", "16 bits"],
)
def test_every_kind_of_png_becomes_eight_bit_colours(picture: Image.Image, expected: tuple[int, ...]) -> None:
    assert pixels(stretch(1, 1), saved(picture))[0, 0].tolist() == list(expected)


def test_a_palette_with_transparency_is_read_without_a_warning() -> None:
    picture = Image.new("RGB", (2, 1), RED).convert("P", palette=Image.Palette.ADAPTIVE)
    assert pixels(stretch(1, 2), saved(picture, transparency=bytes([0, 128])))[0, 0].tolist() == list(RED)


def test_cmyk_jpeg_bmp_and_webp_are_read() -> None:
    for data in (
        saved(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG"),
        saved(Image.new("RGB", (8, 8), (255, 255, 255)), "BMP"),
        saved(Image.new("RGB", (8, 8), (255, 255, 255)), "WEBP", lossless=True),
    ):
        assert pixels(stretch(8, 8), data).min() >= 250


@pytest.mark.parametrize(
    ("orientation", "expected"), [(1, [[1, 2], [3, 4]]), (3, [[4, 3], [2, 1]]), (6, [[3, 1], [4, 2]])]
)
def test_exif_turns_a_picture_upright(orientation: int, expected: list[list[int]]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(Image.fromarray(np.array([[1, 2], [3, 4]], np.uint8)), exif=exif)
    assert pixels(stretch(2, 2, color="gray"), data)[:, :, 0].tolist() == expected


def declaring(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims a size."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cannot be read as a picture"),
        (b"hello", "cannot be read as a picture"),
        (png(np.random.default_rng(0).integers(0, 256, (40, 40)))[:-600], "cannot be read as a picture"),
        (declaring(100, 100), "cannot be read as a picture"),
        (declaring(20_000, 10_000), "more than 100000000 pixels"),
        (declaring(9_900, 9_900), "more than 100000000 pixels|cannot be read"),
        (declaring(65_000, 65_000), "more than 100000000 pixels"),
        (saved(Image.new("RGB", (1, 1)), "GIF"), "cannot be read as a picture"),
    ],
    ids=["empty", "text", "cut", "no pixels", "200 MP", "98 MP", "4 GP", "gif"],
)
def test_a_file_that_is_no_picture_is_refused_by_name(data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        pixels(stretch(2, 2), data)
    assert "a.png" in raised.value.message


def test_a_strip_that_would_grow_beyond_all_bounds_is_refused() -> None:
    entry = ImageInput(size=(256, 256), resize=Resize.CROP)
    with pytest.raises(InputError, match="too long for its width"):
        image.read(entry, png(np.zeros((1, 2_000_000))), what="a.png")


def test_a_caller_may_allow_fewer_pixels_but_never_fewer_than_the_model_takes() -> None:
    with pytest.raises(InputError, match="more than 99 pixels"):
        image.read(stretch(2, 2), png(np.zeros((10, 10))), what="a.png", most=99)
    found, _, _ = image.read(stretch(20, 20), png(np.zeros((9, 11))), what="a.png", most=99)
    assert found.shape[:2] == (20, 20)


GOOD = [png(np.arange(48).reshape(4, 4, 3)), saved(Image.new("RGB", (8, 8), RED), "JPEG")]


@given(data=st.sampled_from(GOOD), place=st.integers(0, 10_000), byte=st.integers(0, 255), cut=st.integers(0, 200))
def test_damaged_pictures_raise_nothing_else(data: bytes, place: int, byte: int, cut: int) -> None:
    broken = bytearray(data)
    broken[place % len(broken)] = byte
    try:
        found = pixels(stretch(4, 4), bytes(broken[: len(broken) - cut]))
    except EdgeServeError:
        return
    assert found.shape == (4, 4, 3)
