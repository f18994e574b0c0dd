from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgeserve.contracts.errors import InputError, NotFoundError
from edgeserve.contracts.task import AudioInput, Boxes, Kind, Task
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve_compilers.data.dataset import overlap
from edgeserve_compilers.data.read import load as load_data


def spec(name: str, shape: tuple[int, ...] = (-1, 1, 8, 8)) -> TensorSpec:
    return TensorSpec(name=name, datatype=Datatype.FP32, shape=shape)


def takes(*inputs: TensorSpec) -> Signature:
    return Signature(inputs=inputs, outputs=(spec("logits", (-1, 10)),))


CLASSIFIES = Task()


def load(path: Path, signature: Signature, task: Task = CLASSIFIES):
    return load_data(path, signature, task)


IMAGE = takes(spec("image"))
GOOD = np.random.default_rng(0).random((6, 1, 8, 8), np.float32)
LABELS = np.arange(6)


def written(folder: Path, **arrays: np.ndarray) -> Path:
    path = folder / "rows.npz"
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("arrays", [{"image": GOOD, "labels": LABELS}, {"x": GOOD, "y": LABELS}], ids=["names", "x, y"])
def test_rows_and_labels_are_read(tmp_path: Path, arrays) -> None:
    data = load(written(tmp_path, **arrays), IMAGE)
    assert (data.file, data.rows, list(data.inputs)) == ("rows.npz", 6, ["image"])
    np.testing.assert_array_equal(data.inputs["image"], GOOD)
    np.testing.assert_array_equal(data.truth, LABELS)
    assert load(written(tmp_path, image=GOOD), IMAGE).truth is None


def test_a_model_with_several_inputs_wants_each_by_name(tmp_path: Path) -> None:
    two = takes(spec("left", (-1, 3)), spec("right", (1, 2)))
    left, right = np.zeros((4, 3), np.float32), np.ones((4, 2), np.float32)
    assert list(load(written(tmp_path, right=right, left=left), two).inputs) == ["left", "right"]
    with pytest.raises(InputError, match="no array 'right'"):
        load(written(tmp_path, left=left, x=right), two)
    with pytest.raises(InputError, match="differ in rows: left 4, right 3"):
        load(written(tmp_path, left=left, right=right[:3]), two)


NAN = GOOD.copy()
NAN[[1, 4], 0, 0, 0] = np.nan, np.inf


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"picture": GOOD}, "no array 'image', it has picture"),
        ({}, "no array 'image', it has none"),
        ({"image": GOOD, "ids": LABELS}, "array 'ids' that means nothing here"),
        ({"image": GOOD[:, :, :7]}, r"array 'image' has shape \[6, 1, 7, 8\], expected \[rows, 1, 8, 8\]"),
        ({"image": GOOD[:, 0]}, r"shape \[6, 8, 8\]"),
        ({"image": np.float32(1)}, r"shape \[\]"),
        ({"image": GOOD.astype(np.float64)}, "dtype float64, expected float32"),
        ({"image": (GOOD * 255).astype(np.uint8)}, "dtype uint8, expected float32"),
        ({"image": NAN}, "array 'image' holds NaN or infinity in 2 of 6 rows"),
        ({"image": GOOD[:0]}, "no rows"),
        ({"image": GOOD, "labels": LABELS[:5]}, r"'labels' has dtype int64 and shape \[5\], expected int64 \[6\]"),
        ({"image": GOOD, "labels": LABELS.astype(np.float32)}, "dtype float32"),
        ({"image": GOOD, "labels": np.eye(6, dtype=int)}, r"shape \[6, 6\]"),
        ({"image": GOOD, "labels": LABELS - 1}, "negative class"),
        ({"image": GOOD, "labels": LABELS, "y": LABELS}, "both 'labels' and 'y'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_data_that_do_not_fit_are_refused_with_file_array_and_expectation(tmp_path: Path, arrays, message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        load(written(tmp_path, **arrays), IMAGE)
    assert "rows.npz" in raised.value.message


def test_pickle_is_never_loaded(tmp_path: Path) -> None:
    path = tmp_path / "rows.npz"
    np.savez(path, image=np.array([{"a": 1}], object))
    with pytest.raises(InputError, match="pickle"):
        load(path, IMAGE)


def test_what_is_no_npz_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"absent\.npz"):
        load(tmp_path / "absent.npz", IMAGE)
    (tmp_path / "rows.csv").write_text("1,2")
    with pytest.raises(InputError, match=r"rows\.csv is not data"):
        load(tmp_path / "rows.csv", IMAGE)
    (tmp_path / "rows.npz").write_text("1,2")
    with pytest.raises(InputError, match="not an npz"):
        load(tmp_path / "rows.npz", IMAGE)


def test_rows_in_both_files_are_counted(tmp_path: Path) -> None:
    data = load(written(tmp_path, image=GOOD), IMAGE)
    others = load(written(tmp_path, image=np.concatenate([GOOD[2:5], GOOD[:1] + 1])), IMAGE)
    assert overlap(others, data) == 3
    assert overlap(data, others) == 3
    assert overlap(load(written(tmp_path, image=GOOD + 9), IMAGE), data) == 0


BOXES = Task(kind=Kind.DETECTION, boxes=Boxes(output="logits"))
NUMBERS = Task(kind=Kind.REGRESSION)
CUSTOM = Task(kind=Kind.CUSTOM, function="mine:decode")
SPLIT = np.array(["train", "val", "val", "train", "test", "val"])


def as_json(rows: object) -> np.ndarray:
    return np.frombuffer(json.dumps(rows).encode(), np.uint8)


@pytest.mark.parametrize(
    ("more", "split", "rows"),
    [
        ({"is_calib": np.arange(6) < 2}, "#calib", [0, 1]),
        ({"is_calib": np.arange(6) < 2}, "#eval", [2, 3, 4, 5]),
        ({"is_calib": np.arange(6) < 2}, "", [0, 1, 2, 3, 4, 5]),
        ({"split": SPLIT}, "#val", [1, 2, 5]),
        ({"split": SPLIT.astype("S")}, "#test", [4]),
    ],
)
def test_a_split_is_chosen_behind_the_file(tmp_path: Path, more, split: str, rows: list[int]) -> None:
    clips = np.array([f"{row}.wav" for row in range(6)])
    path = written(tmp_path, x=GOOD, y=LABELS, clip=clips, **more)
    data = load(Path(f"{path}{split}"), IMAGE)
    np.testing.assert_array_equal(data.inputs["image"], GOOD[rows])
    assert data.truth.tolist() == rows
    assert data.names == tuple(clips[rows])
    assert data.file == f"rows.npz{split}"


@pytest.mark.parametrize(
    ("arrays", "split", "message", "hint"),
    [
        ({"split": SPLIT}, "#vla", "no split 'vla'", "#test, #train, #val"),
        ({"is_calib": LABELS > 2}, "#train", "no split 'train'", "#calib, #eval"),
        ({}, "#val", "no split 'val'", "leave # and the name out"),
        ({"is_calib": LABELS}, "", "'is_calib' has dtype int64", ""),
        ({"split": SPLIT[:5]}, "", r"'split' has dtype <U5 and shape \[5\], expected text \[6\]", ""),
        ({"split": LABELS}, "", "'split' has dtype int64", ""),
        ({"split": SPLIT, "is_calib": LABELS > 2}, "", "both 'split' and 'is_calib'", ""),
        ({"lables": LABELS}, "", "array 'lables' that means nothing", "did you mean 'labels'"),
        ({"note": np.array(["a"] * 6)}, "", "array 'note' that means nothing", ""),
        ({"a": LABELS, "b": LABELS}, "#a,b", "more than one", ""),
    ],
)
def test_splits_and_names_that_are_not_there_are_refused(tmp_path: Path, arrays, split, message, hint) -> None:
    path = written(tmp_path, x=GOOD, **arrays)
    with pytest.raises(InputError, match=message) as raised:
        load(Path(f"{path}{split}"), IMAGE)
    assert hint in raised.value.hint


def test_an_array_is_the_truth_when_it_is_chosen(tmp_path: Path) -> None:
    path = written(tmp_path, x=GOOD, y=LABELS, better=LABELS[::-1], other=np.zeros(3), is_calib=LABELS < 2)
    assert load(Path(f"{path}#better"), IMAGE).truth.tolist() == [5, 4, 3, 2, 1, 0]
    assert load(Path(f"{path}#calib,better"), IMAGE).truth.tolist() == [5, 4]


@pytest.mark.parametrize(
    ("arrays", "labels", "expected"),
    [
        ({"y": LABELS % 3, "labels": np.array(["a", "b", "c"])}, (), [0, 1, 2, 0, 1, 2]),
        ({"y": LABELS % 3, "labels": np.array(["a", "b", "c"])}, ("c", "b", "a"), [2, 1, 0, 2, 1, 0]),
        ({"labels": np.array(list("babaab"))}, (), [1, 0, 1, 0, 0, 1]),
        ({"y": np.array(list("babaab"), "S")}, ("b", "a"), [0, 1, 0, 1, 1, 0]),
    ],
    ids=["names", "names in another order", "a name a row", "bytes"],
)
def test_names_of_classes_are_matched_with_the_labels(tmp_path: Path, arrays, labels, expected: list[int]) -> None:
    assert load(written(tmp_path, x=GOOD, **arrays), IMAGE, Task(labels=labels)).truth.tolist() == expected


@pytest.mark.parametrize(
    ("task", "arrays", "expected"),
    [
        (NUMBERS, {"y": LABELS / 2}, [0, 0.5, 1, 1.5, 2, 2.5]),
        (NUMBERS, {"y": np.ones((6, 2), np.float32)}, [[1, 1]] * 6),
        (CUSTOM, {"labels_json": as_json([{"a": row} for row in range(6)])}, [{"a": row} for row in range(6)]),
        (CUSTOM, {"y": LABELS}, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_truth_is_what_the_task_takes(tmp_path: Path, task: Task, arrays, expected) -> None:
    truth = load(written(tmp_path, x=GOOD, **arrays), IMAGE, task).truth
    assert (truth if isinstance(truth, list) else truth.tolist()) == expected


def test_true_boxes_are_a_json_list(tmp_path: Path) -> None:
    rows = [[{"box": [1, 2, 3, 4.5], "class": 7}], [], [], [], [], []]
    truth = load(written(tmp_path, x=GOOD, labels_json=as_json(rows)), IMAGE, BOXES).truth
    assert (truth[0].boxes.tolist(), truth[0].classes.tolist(), truth[0].scores.tolist()) == (
        [[1, 2, 3, 4.5]],
        [7],
        [1],
    )
    assert [len(found) for found in truth] == [1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("task", "arrays", "message"),
    [
        (BOXES, {"labels": LABELS}, "expected boxes as labels_json"),
        (BOXES, {"labels_json": as_json([])}, "0 items for 6 rows"),
        (BOXES, {"labels_json": as_json([{}] * 6)}, "Expected `array`"),
        (BOXES, {"labels_json": as_json([[{"box": [1, 2, 3], "class": 1}]] + [[]] * 5)}, "length 4"),
        (BOXES, {"labels_json": as_json([[{"box": [1, 2, 3, 1e30], "class": 1}]] + [[]] * 5)}, "beyond"),
        (BOXES, {"labels_json": as_json([[{"box": [1, 2, 3, 4], "class": -1}]] + [[]] * 5)}, "class -1"),
        (BOXES, {"labels_json": LABELS}, r"expected uint8 \[bytes\]"),
        (CUSTOM, {"labels_json": np.frombuffer(b"[" * 5000, np.uint8)}, "labels_json"),
        (Task(), {"labels_json": as_json([1] * 6)}, "classification takes numbers"),
        (NUMBERS, {"y": np.full(6, np.nan)}, "NaN"),
        (NUMBERS, {"y": SPLIT}, "expected numbers"),
        (Task(labels=("a", "b")), {"y": np.array(list("aabbac"))}, "class 'c' is not among the 2 labels"),
        (Task(), {"y": LABELS, "labels": np.array(["a", "b"])}, "class 5, 'labels' names 2"),
    ],
)
def test_truth_that_the_task_does_not_take_is_refused(tmp_path: Path, task: Task, arrays, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(written(tmp_path, x=GOOD, **arrays), IMAGE, task)


STEPS = takes(spec("x", (-1, 5)), spec("h", (1, -1, 8)))
CARRIES = Task(kind=Kind.REGRESSION, state={"h": "hN"}, inputs=(AudioInput(name="x", chunk=3, context=2),))


def test_stateful_rows_are_sequences_and_truth_is_one_a_step(tmp_path: Path) -> None:
    rows = np.random.default_rng(1).random((4, 3, 5), np.float32)
    path = written(tmp_path, x=rows, y=np.arange(12).reshape(4, 3), is_calib=np.arange(4) % 2 > 0)
    data = load(path, STEPS, CARRIES)
    assert (data.rows, list(data.inputs), data.truth.tolist()) == (4, ["x"], list(range(12)))
    half = load(Path(f"{path}#calib"), STEPS, CARRIES)
    assert half.truth.tolist() == [3, 4, 5, 9, 10, 11]
    np.testing.assert_array_equal(half.inputs["x"], rows[[1, 3]])
    with pytest.raises(InputError, match=r"expected \[sequences, steps, 5\]"):
        load(written(tmp_path, x=rows[..., :4]), STEPS, CARRIES)
    with pytest.raises(InputError, match=r"expected numbers \[4, 3"):
        load(written(tmp_path, x=rows, y=np.arange(4)), STEPS, CARRIES)


@pytest.mark.parametrize("name", ["x", "anything"])
def test_waveforms_go_through_the_features(tmp_path: Path, name: str) -> None:
    waves = np.array([[8_192, 16_384, 0, -16_384, 0, 0], [0] * 6], np.int16)
    data = load(written(tmp_path, **{name: waves}), STEPS, CARRIES)
    assert data.inputs["x"].tolist() == [[[0, 0, 0.25, 0.5, 0], [0.5, 0, -0.5, 0, 0]], [[0] * 5] * 2]
    if name == "x":
        floats = load(written(tmp_path, x=waves / 32_768), STEPS, CARRIES)
        np.testing.assert_array_equal(floats.inputs["x"], data.inputs["x"])


def test_rows_that_the_model_takes_as_they_are_are_no_sound(tmp_path: Path) -> None:
    rows = np.array([[0.5, -0.25, 0.125]], np.float32)
    task = Task(kind=Kind.KEYWORDS, inputs=(AudioInput(name="x", samples=3, peak=True),))
    np.testing.assert_array_equal(load(written(tmp_path, x=rows), takes(spec("x", (-1, 3))), task).inputs["x"], rows)


def test_constants_need_no_rows(tmp_path: Path) -> None:
    two = takes(spec("image"), spec("rate", ()))
    assert list(load(written(tmp_path, image=GOOD), two, Task(constants={"rate": 1.0})).inputs) == ["image"]
