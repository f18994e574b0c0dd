from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeserve.contracts.errors import InputError, NotFoundError
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve_compilers.data import load, overlap


def spec(name: str, shape: tuple[int, ...] = (-1, 1, 8, 8)) -> TensorSpec:
    return TensorSpec(name=name, datatype=Datatype.FP32, shape=shape)


def takes(*inputs: TensorSpec) -> Signature:
    return Signature(inputs=inputs, outputs=(spec("logits", (-1, 10)),))


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
    np.testing.assert_array_equal(data.labels, LABELS)
    assert load(written(tmp_path, image=GOOD), IMAGE).labels is None


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
        ({"image": GOOD, "ids": LABELS}, "array 'ids' that the model does not take"),
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
    with pytest.raises(InputError, match=r"rows\.csv is not an \.npz"):
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
