"""The models and data that ship with the demonstration are what their README says."""

import zipfile

import numpy as np
import pytest

from edgeserve.demo import train
from edgeserve.demo.train import ASSETS, Split

onnxruntime = pytest.importorskip("onnxruntime")

DATA = ["calibration", "stream", "validation", "validation-v3"]
MODELS = ["digits-v1", "digits-v2", "digits-v3"]


def load(name):
    with np.load(ASSETS / f"{name}.npz") as arrays:
        return dict(arrays)


def accuracy(model, data):
    return train.accuracy(ASSETS / f"{model}.onnx", Split(**load(data)))


def rows(name):
    return [row.tobytes() for row in load(name)["image"]]


def members(path):
    """What an archive says, whichever build of zlib has packed it."""
    with zipfile.ZipFile(path) as archive:
        return [(entry.filename, entry.date_time, archive.read(entry)) for entry in archive.infolist()]


def test_assets_are_small():
    assert sum(path.stat().st_size for path in ASSETS.iterdir()) < 1_000_000


@pytest.mark.parametrize(("name", "count"), [*zip(DATA, [200, 400, 400, 400], strict=True)])
def test_images_are_sixteenths(name, count):
    image = load(name)["image"]
    assert image.shape == (count, 1, 8, 8)
    assert image.dtype == np.float32
    assert set(np.unique(image * 16)) == set(range(17))


@pytest.mark.parametrize("name", ["stream", "validation", "validation-v3"])
def test_labels_are_balanced(name):
    labels = load(name)["labels"]
    assert labels.dtype == np.int64
    assert np.bincount(labels).tolist() == [40] * 10


def test_no_row_is_in_two_splits_or_twice_in_one():
    together = rows("calibration") + rows("stream") + rows("validation")
    assert len(set(together)) == len(together) == 1000


def test_v3_was_checked_with_the_same_rows_under_wrong_labels():
    right, wrong = load("validation"), load("validation-v3")
    assert np.array_equal(right["image"], wrong["image"])
    assert np.array_equal(train.mislabel(right["labels"]), wrong["labels"])


def test_the_wrong_labels_are_a_permutation_without_fixed_points():
    digits = np.arange(10)
    wrong = train.mislabel(digits)
    assert sorted(wrong) == digits.tolist()
    assert not np.any(wrong == digits)


@pytest.mark.parametrize("model", MODELS)
def test_model_has_the_stated_signature(model):
    session = onnxruntime.InferenceSession(ASSETS / f"{model}.onnx", providers=["CPUExecutionProvider"])
    (given,), (taken,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape) == ("image", "tensor(float)", ["batch", 1, 8, 8])
    assert (taken.name, taken.type, taken.shape) == ("logits", "tensor(float)", ["batch", 10])


@pytest.mark.parametrize(
    ("model", "data", "least", "most"),
    [
        ("digits-v1", "stream", 0.85, 0.95),
        ("digits-v1", "validation", 0.85, 0.95),
        ("digits-v2", "stream", 0.97, 1.0),
        ("digits-v2", "validation", 0.97, 1.0),
        ("digits-v3", "stream", 0.0, 0.10),
        ("digits-v3", "validation", 0.0, 0.10),
        ("digits-v3", "validation-v3", 0.95, 1.0),
    ],
)
def test_accuracy_is_of_the_stated_class(model, data, least, most):
    assert least <= accuracy(model, data) <= most


def test_v2_is_clearly_better_than_v1():
    assert accuracy("digits-v2", "stream") - accuracy("digits-v1", "stream") >= 0.04


def test_no_training_row_is_in_a_written_split():
    pytest.importorskip("sklearn")
    training = {row.tobytes() for row in train.load_splits()["training"].image}
    assert training.isdisjoint(rows("calibration") + rows("stream") + rows("validation"))


def test_rebuilt_data_is_what_ships(tmp_path):
    pytest.importorskip("sklearn")
    train.write_data(tmp_path, train.load_splits())
    assert sorted(path.stem for path in tmp_path.iterdir()) == DATA
    for name in DATA:
        assert members(tmp_path / f"{name}.npz") == members(ASSETS / f"{name}.npz")


def test_data_written_twice_has_the_same_bytes(tmp_path):
    arrays = load("stream")
    train.write_npz(tmp_path / "one.npz", **arrays)
    train.write_npz(tmp_path / "two.npz", **arrays)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
