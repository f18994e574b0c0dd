from __future__ import annotations

import numpy as np
import pytest

from edgeserve import npz
from edgeserve.contracts.errors import InputError
from edgeserve.contracts.limits import TUNE_REQUESTS
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve.runtimes.null import NullModel
from edgeserve_agent.tune.inputs import difference, made_up_requests, read_requests


def signature(*shapes: tuple[int, ...], datatype: Datatype = Datatype.FP32) -> Signature:
    specs = tuple(TensorSpec(name=f"x{number}", datatype=datatype, shape=shape) for number, shape in enumerate(shapes))
    return Signature(inputs=specs, outputs=(TensorSpec(name="y", datatype=Datatype.FP32, shape=(-1, 1)),))


def written(path, **arrays):
    path.write_bytes(npz.dump(arrays))
    return path


def test_each_row_is_a_request(tmp_path):
    rows = np.arange(12, dtype=np.float32).reshape(3, 4)
    found = read_requests(written(tmp_path / "i.npz", x0=rows), signature((-1, 4)))
    assert [one["x0"].tolist() for one in found] == [[row] for row in rows.tolist()]


def test_a_batch_that_is_built_in_takes_as_many_rows(tmp_path):
    rows = np.arange(20, dtype=np.float32).reshape(5, 4)
    found = read_requests(written(tmp_path / "i.npz", x0=rows), signature((2, 4)))
    assert [one["x0"].tolist() for one in found] == [rows[:2].tolist(), rows[2:4].tolist()]


def test_x_stands_for_the_only_input_and_numbers_are_converted(tmp_path):
    found = read_requests(written(tmp_path / "i.npz", x=np.ones((1, 4))), signature((-1, 4)))
    assert found[0]["x0"].dtype == np.float32


def test_no_more_requests_are_kept_than_the_limit(tmp_path):
    path = written(tmp_path / "i.npz", x0=np.zeros((TUNE_REQUESTS + 5, 1), np.float32))
    assert len(read_requests(path, signature((-1, 1)))) == TUNE_REQUESTS


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"other": np.zeros((1, 4), np.float32)}, "has no array 'x0'"),
        ({"x0": np.zeros((2, 4), np.float32), "x1": np.zeros((3, 1), np.float32)}, "different numbers"),
        ({"x0": np.zeros((0, 4), np.float32), "x1": np.zeros((0, 1), np.float32)}, "no rows"),
        ({"x0": np.zeros((2, 5), np.float32), "x1": np.zeros((2, 1), np.float32)}, r"make \[1, 5\]"),
        ({"x0": np.zeros((2, 4), bool), "x1": np.full((2, 1), 1j)}, "npz|complex"),
    ],
)
def test_a_file_that_does_not_fit_says_why(tmp_path, arrays, message):
    path = tmp_path / "i.npz"
    np.savez(path, **arrays)
    with pytest.raises(InputError, match=message):
        read_requests(path, signature((-1, 4), (-1, 1)))


def test_floats_are_not_made_into_indices(tmp_path):
    with pytest.raises(InputError, match="the model takes INT64"):
        read_requests(written(tmp_path / "i.npz", x0=np.ones((1, 4))), signature((-1, 4), datatype=Datatype.INT64))


class Table(NullModel):
    """Takes only indices below its size."""

    def run(self, inputs):
        if inputs["x0"].max() > 3:
            raise InputError("index beyond the table")
        return super().run(inputs)


def test_a_model_that_does_not_take_random_numbers_gets_zeros():
    spec = signature((-1, 4), datatype=Datatype.INT64)
    assert made_up_requests(NullModel(spec, "here"), spec)[0]["x0"].any()
    assert not made_up_requests(Table(spec, "here"), spec)[0]["x0"].any()


@pytest.mark.parametrize(
    ("found", "expected", "share"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.2], [1.0, 2.0], 0.1),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([1.0], [1.0, 2.0], float("inf")),
        ([float("nan"), 1.0], [1.0, 1.0], float("inf")),
        ([float("nan"), 1.0], [float("nan"), 1.0], 0.0),
    ],
)
def test_a_difference_is_a_share_of_the_largest_number(found, expected, share):
    assert difference({"y": np.array(found)}, {"y": np.array(expected)}) == pytest.approx(share)
    assert difference({}, {"y": np.array(expected)}) == float("inf")
