from __future__ import annotations

import io
import subprocess
import sys
import wave

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.limits import MAX_MEDIA_BYTES
from edgeserve.contracts.task import AudioInput, ImageInput, Kind, Resize, Task
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve.task.prepare import Geometry, media_type, prepare


def takes(*inputs: tuple[str, tuple[int, ...]], datatype: Datatype = Datatype.FP32) -> Signature:
    return Signature(
        inputs=tuple(TensorSpec(name=name, datatype=datatype, shape=shape) for name, shape in inputs),
        outputs=(TensorSpec(name="out", datatype=Datatype.FP32, shape=(-1, 3)),),
    )


def picture(width: int = 8, height: int = 4, kind: str = "PNG", mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((width, height), 50).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def wav(samples: list[int], rate: int = 16_000) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.array(samples, "<i2").tobytes())
    return buffer.getvalue()


IMAGE = Task(inputs=(ImageInput(size=(4, 4)),))
SOUND = Task(kind=Kind.KEYWORDS, inputs=(AudioInput(samples=4),))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (picture(kind="JPEG"), "image/jpeg"),
        (picture(), "image/png"),
        (picture(kind="BMP"), "image/bmp"),
        (picture(kind="WEBP"), "image/webp"),
        (wav([1]), "audio/wav"),
        (picture(kind="GIF"), ""),
        (b"", ""),
        (b"RIFF", ""),
    ],
)
def test_files_are_known_by_their_first_bytes(data: bytes, expected: str) -> None:
    assert media_type(data) == expected


def test_a_picture_becomes_one_row_and_says_where_it_lies() -> None:
    task = Task(inputs=(ImageInput(size=(4, 4), resize=Resize.LETTERBOX),))
    prepared = prepare(task, takes(("image", (-1, 3, 4, 4))), picture(8, 4), what="a.png")
    assert {name: (row.shape, row.dtype) for name, row in prepared.inputs.items()} == {
        "image": ((1, 3, 4, 4), np.float32)
    }
    assert prepared.geometry == Geometry(picture=(8, 4), scale=(0.5, 0.5), offset=(0, 1))
    np.testing.assert_array_equal(prepared.geometry.to_model([[0, 0, 8, 4]]), [[0, 1, 4, 3]])
    np.testing.assert_array_equal(
        prepared.geometry.to_picture([[0, 1, 4, 3], [-9, 0, 99, 2]]), [[0, 0, 8, 4], [0, 0, 8, 2]]
    )


@given(
    boxes=st.lists(st.tuples(*[st.floats(0, 1)] * 4), max_size=5),
    size=st.tuples(st.integers(1, 2000), st.integers(1, 2000)),
    scale=st.tuples(st.floats(0.01, 10), st.floats(0.01, 10)),
    offset=st.tuples(st.floats(-500, 500), st.floats(-500, 500)),
)
def test_boxes_come_back_from_the_model(boxes, size, scale, offset) -> None:
    geometry = Geometry(picture=size, scale=scale, offset=offset)
    corners = np.array(boxes).reshape(-1, 4) * (*size, *size)
    there = geometry.to_model(corners)
    assert there.shape == (len(boxes), 4)
    np.testing.assert_allclose(geometry.to_picture(there), corners, atol=1e-6)


def test_every_described_input_gets_its_own_row() -> None:
    task = Task(inputs=(ImageInput(name="small", size=(2, 2)), ImageInput(name="large", size=(4, 6), layout="nhwc")))
    signature = takes(("small", (-1, 3, 2, 2)), ("large", (-1, 4, 6, 3)), ("number", (-1, 1)))
    prepared = prepare(task, signature, picture(), what="a.png")
    assert {name: row.shape for name, row in prepared.inputs.items()} == {"small": (1, 3, 2, 2), "large": (1, 4, 6, 3)}


@pytest.mark.parametrize("shape", [(-1, 4), (-1, 4, 1), (-1, 2, 2), (-1, -1), (1, 1, -1)])
def test_sound_takes_the_shape_of_the_input(shape: tuple[int, ...]) -> None:
    prepared = prepare(SOUND, takes(("wave", shape)), wav([16_384, 0, -16_384]), what="a.wav")
    assert prepared.geometry is None
    assert prepared.inputs["wave"].reshape(-1).tolist() == [0.5, 0, -0.5, 0]
    assert len(prepared.inputs["wave"].shape) == len(shape)


def test_sound_in_steps_is_one_sequence() -> None:
    task = Task(kind=Kind.REGRESSION, inputs=(AudioInput(name="x", chunk=2, context=1),), state={"s": "out"})
    prepared = prepare(task, takes(("x", (-1, 3)), ("s", (-1, 3))), wav([8_192, 16_384, 0, -16_384]), what="a.wav")
    assert prepared.inputs["x"].tolist() == [[[0, 0.25, 0.5], [0.5, 0, -0.5]]]


def test_datatypes_are_those_of_the_model() -> None:
    for datatype, name in ((Datatype.UINT8, "uint8"), (Datatype.FP16, "float16")):
        prepared = prepare(IMAGE, takes(("image", (-1, 3, 4, 4)), datatype=datatype), picture(), what="a.png")
        assert prepared.inputs["image"].dtype == name


def test_gray_fits_an_input_without_a_channel_axis() -> None:
    task = Task(inputs=(ImageInput(size=(4, 4), color="gray"),))
    assert prepare(task, takes(("image", (-1, 4, 4))), picture(), what="a.png").inputs["image"].shape == (1, 4, 4)


@pytest.mark.parametrize(
    ("task", "data", "message"),
    [
        (IMAGE, wav([1]), "a.bin is audio/wav, the task takes image"),
        (SOUND, picture(), "a.bin is image/png, the task takes audio"),
        (IMAGE, b"hello", "a.bin is no file of a known kind"),
        (IMAGE, b"\x89PNG\r\n\x1a\n", "a.bin cannot be read as a picture"),
        (Task(), picture(), "describes no input that takes one"),
        (Task(inputs=(ImageInput(name="other", size=(4, 4)),)), picture(), "describes an input 'other'"),
        (Task(inputs=(ImageInput(size=(4, 5)),)), picture(), r"rows of shape \[3, 4, 5\], input 'in' .* \[3, 4, 4\]"),
        (Task(inputs=(ImageInput(size=(4, 4), layout="nhwc"),)), picture(), r"rows of shape \[4, 4, 3\]"),
        (IMAGE, bytes(MAX_MEDIA_BYTES + 1), "67108865 bytes"),
    ],
    ids=["sound", "picture", "text", "cut", "no inputs", "name", "size", "layout", "too large"],
)
def test_what_the_task_does_not_take_is_refused(task: Task, data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        prepare(task, takes(("in", (-1, 3, 4, 4))), data, what="a.bin")


def test_a_server_may_take_less_than_the_compiler() -> None:
    with pytest.raises(InputError, match="more than 31 pixels"):
        prepare(IMAGE, takes(("x", (-1, 3, 4, 4))), picture(8, 4), what="a.png", most_pixels=31)
    with pytest.raises(InputError, match="at most 3 are taken"):
        prepare(SOUND, takes(("x", (-1, 4))), wav([1] * 9), what="a.wav", most_samples=3)
    assert prepare(SOUND, takes(("x", (-1, 4))), wav([1] * 9), what="a.wav", most_samples=4).inputs["x"].size == 4


def test_the_way_in_does_not_import_the_image_library_until_it_is_needed() -> None:
    code = "import sys, edgeserve.task.prepare; sys.exit('PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_the_image_library_the_error_names_the_extra() -> None:
    code = f"""
import sys
sys.modules['PIL'] = None
from edgeserve.contracts.errors import DeviceError
from edgeserve.contracts.task import ImageInput
from edgeserve.task import image
try:
    image.read(ImageInput(size=(4, 4)), {picture()!r}, what='a.png')
except DeviceError as error:
    sys.exit(error.hint != "pip install 'edgeserve[media]'")
sys.exit(2)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
