from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from edgeserve.contracts.errors import DeviceError, InputError
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve.runtimes.base import Tensor, Tensors
from edgeserve.runtimes.rows import run_rows


class Doubling:
    """Doubles `x`; remembers how many rows each call had."""

    executing_device = "CPU"

    def __init__(self, batch: int, *, lost: int = 0) -> None:
        spec = TensorSpec(name="x", datatype=Datatype.FP32, shape=(batch, 2))
        self.signature = Signature(
            inputs=(spec,), outputs=(TensorSpec(name="y", datatype=Datatype.FP32, shape=(-1, 2)),)
        )
        self.calls: list[int] = []
        self._lost = lost

    def run(self, inputs: Mapping[str, Tensor]) -> Tensors:
        self.calls.append(len(inputs["x"]))
        return {"y": inputs["x"][self._lost :] * 2}

    def close(self) -> None:
        return


@pytest.mark.parametrize(
    ("batch", "rows", "calls"),
    [(-1, 3, [3]), (-1, 130, [64, 64, 2]), (1, 3, [1, 1, 1]), (4, 8, [4, 4])],
    ids=["few", "many", "row by row", "built-in batch"],
)
def test_rows_come_back_in_order_whatever_the_batch(batch: int, rows: int, calls: list[int]) -> None:
    model = Doubling(batch)
    data = np.arange(rows * 2, dtype=np.float32).reshape(rows, 2)
    np.testing.assert_array_equal(run_rows(model, {"x": data})["y"], data * 2)
    assert model.calls == calls


@pytest.mark.parametrize(("batch", "rows"), [(4, 6), (-1, 0), (1, 0)])
def test_rows_that_do_not_fill_a_call_are_refused(batch: int, rows: int) -> None:
    with pytest.raises(InputError, match=f"{rows} rows"):
        run_rows(Doubling(batch), {"x": np.zeros((rows, 2), np.float32)})


def test_inputs_of_different_length_are_refused() -> None:
    with pytest.raises(InputError, match="different numbers of rows"):
        run_rows(Doubling(-1), {"x": np.zeros((2, 2)), "z": np.zeros((3, 2))})


def test_a_model_that_loses_rows_is_found_out() -> None:
    with pytest.raises(DeviceError, match="'y' has shape"):
        run_rows(Doubling(-1, lost=1), {"x": np.zeros((2, 2), np.float32)})
