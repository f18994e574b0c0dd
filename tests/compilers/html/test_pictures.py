from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from edgeserve.contracts.limits import REPORT_PICTURE_SIDE
from edgeserve.contracts.task import AudioInput, ImageInput, Task
from edgeserve_compilers.html.pictures import picture_of

RANDOM = np.random.default_rng(0)


def opened(data: bytes | None) -> np.ndarray:
    assert data is not None
    assert data.startswith(b"\x89PNG")
    return np.asarray(Image.open(io.BytesIO(data)))


def prepared(entry: ImageInput, pixels: np.ndarray) -> np.ndarray:
    """One row as the task's preprocessing makes it of RGB (or gray) pixels that have the size already."""
    values = pixels.astype(np.float64)
    if entry.color == "bgr":
        values = values[:, :, ::-1]
    values = values * entry.scale
    values = (values - np.array(entry.mean or 0)) / np.array(entry.std or 1)
    return (values.transpose(2, 0, 1) if entry.layout == "nchw" else values)[None].astype(np.float32)


@pytest.mark.parametrize(
    "entry",
    [
        ImageInput(size=(24, 32)),
        ImageInput(size=(24, 32), layout="nhwc"),
        ImageInput(size=(24, 32), color="bgr", mean=(10.0, 20.0, 30.0)),
        ImageInput(size=(24, 32), scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        ImageInput(size=(24, 32), color="gray", scale=1 / 127.5, mean=(1.0,)),
        ImageInput(size=(24, 32), color="gray", layout="nhwc"),
    ],
    ids=["plain", "nhwc", "bgr and mean", "imagenet", "gray -1 to 1", "gray nhwc"],
)
def test_the_normalisation_is_undone(entry: ImageInput) -> None:
    pixels = RANDOM.integers(0, 256, (24, 32, 1 if entry.color == "gray" else 3), np.uint8)
    found = opened(picture_of(Task(inputs=(entry,)), {"x": prepared(entry, pixels)}, 0))
    assert np.array_equal(found, pixels[:, :, 0] if entry.color == "gray" else pixels)


def test_large_pictures_become_small() -> None:
    entry = ImageInput(size=(300, 600))
    found = opened(picture_of(Task(inputs=(entry,)), {"x": np.zeros((2, 3, 300, 600), np.float32)}, 1))
    assert found.shape == (REPORT_PICTURE_SIDE // 2, REPORT_PICTURE_SIDE, 3)


def test_the_input_is_found_by_name_and_the_row_by_number() -> None:
    task = Task(inputs=(ImageInput(name="right", size=(4, 4)),))
    rows = np.stack([np.full((3, 4, 4), value, np.float32) for value in (1, 2, 3)])
    inputs = {"left": np.zeros_like(rows), "right": rows}
    assert {int(opened(picture_of(task, inputs, row)).max()) for row in range(3)} == {1, 2, 3}
    assert picture_of(task, inputs, 3) is None
    assert picture_of(task, inputs, -1) is None


@pytest.mark.parametrize(
    ("task", "inputs"),
    [
        (Task(), {"x": np.zeros((1, 3, 4, 4))}),
        (Task(inputs=(ImageInput(size=(4, 4)),)), {"x": np.zeros((1, 3, 5, 5))}),
        (Task(inputs=(ImageInput(size=(4, 4)),)), {"x": np.zeros((1, 3, 4, 4)), "y": np.zeros((1, 1))}),
        (Task(inputs=(ImageInput(name="z", size=(4, 4)),)), {"x": np.zeros((1, 3, 4, 4))}),
        (Task(inputs=(AudioInput(),)), {"x": np.zeros((1, 0))}),
        (Task(inputs=(AudioInput(features="mfcc", coefficients=10),)), {"x": np.zeros((1, 7, 7))}),
    ],
    ids=["no picture", "another size", "which input", "another name", "no samples", "other features"],
)
def test_what_cannot_be_drawn_has_no_picture(task: Task, inputs: dict[str, np.ndarray]) -> None:
    assert picture_of(task, inputs, 0) is None


def test_values_that_are_no_numbers_are_drawn_dark() -> None:
    rows = np.full((1, 3, 4, 4), np.nan, np.float32)
    assert opened(picture_of(Task(inputs=(ImageInput(size=(4, 4)),)), {"x": rows}, 0)).max() == 0


def test_a_loud_sound_fills_the_waveform_where_it_is_loud() -> None:
    sound = np.zeros((1, 16_000), np.float32)
    sound[0, 8000:] = np.sin(np.arange(8000))
    found = opened(picture_of(Task(inputs=(AudioInput(),)), {"x": sound}, 0))
    ink = (found[:, :, 0] < 255).sum(axis=0)
    assert found.shape[1] == REPORT_PICTURE_SIDE
    assert ink[:70].max() <= 2
    assert ink[90:].min() > 60


@pytest.mark.parametrize("features", ["mfcc", "log-mel"])
def test_features_of_sound_are_a_map(features: str) -> None:
    entry = AudioInput(features=features, mels=40, coefficients=10)
    bands = 10 if features == "mfcc" else 40
    values = np.zeros((1, 49, bands, 1), np.float32)
    values[0, :, 0] = 1
    found = opened(picture_of(Task(inputs=(entry,)), {"x": values}, 0))
    assert found.shape == (80, 49)
    assert (found[-1] == 255).all(), "the first band lies at the bottom"
    assert (found[0] == 0).all()
