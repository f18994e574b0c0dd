from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from edgeserve.contracts.errors import DeviceError, InputError
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve.runtimes.base import ONE_DEVICE, Tensor, Tensors
from edgeserve.runtimes.rows import run_rows, run_sequences, run_task, unroll


class Doubling:
    """Doubles `x`; remembers how many rows each call had."""

    executing_device = "CPU"
    fallback = ""
    placement = ONE_DEVICE

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


class Counting:
    """Adds what it is fed to its state, whose batch axis is in the middle; remembers what each call was fed."""

    executing_device = "CPU"
    fallback = ""
    placement = ONE_DEVICE
    signature = Signature(
        inputs=(
            TensorSpec(name="x", datatype=Datatype.FP32, shape=(-1, 2)),
            TensorSpec(name="state", datatype=Datatype.FP32, shape=(3, -1, 2)),
        ),
        outputs=(
            TensorSpec(name="sum", datatype=Datatype.FP32, shape=(-1, 2)),
            TensorSpec(name="next", datatype=Datatype.FP32, shape=(3, -1, 2)),
        ),
    )

    def __init__(self, *, grows: bool = False) -> None:
        self.fed: list[Tensors] = []
        self._grows = grows

    def run(self, inputs: Mapping[str, Tensor]) -> Tensors:
        for spec in self.signature.inputs:
            assert spec.accepts(inputs[spec.name].shape)
            assert inputs[spec.name].flags.c_contiguous
        self.fed.append(dict(inputs))
        after = inputs["state"] + inputs["x"]
        following = np.concatenate([after, after], axis=1) if self._grows else after
        return {"sum": after[0], "next": following.astype(np.float64)}

    def close(self) -> None:
        return


SEQUENCES = np.arange(24, dtype=np.float32).reshape(2, 6, 2)
STATE = {"state": "next"}


def test_state_starts_at_zeros_and_is_carried_within_a_sequence() -> None:
    model = Counting()
    outputs = run_sequences(model, {"x": SEQUENCES}, STATE)
    assert list(outputs) == ["sum"]
    np.testing.assert_array_equal(outputs["sum"], SEQUENCES.cumsum(axis=1))
    assert {fed["x"].shape for fed in model.fed} == {(1, 2)}
    assert {(fed["state"].shape, fed["state"].dtype.name) for fed in model.fed} == {((3, 1, 2), "float32")}


def test_sequences_need_not_lie_in_memory_as_they_are_fed() -> None:
    crosswise = np.asfortranarray(SEQUENCES)
    np.testing.assert_array_equal(run_sequences(Counting(), {"x": crosswise}, STATE)["sum"], SEQUENCES.cumsum(axis=1))


def test_a_model_without_a_batch_axis_is_fed_steps_as_they_are() -> None:
    class Bare(Counting):
        signature = Signature(
            inputs=(
                TensorSpec(name="x", datatype=Datatype.FP32, shape=(2,)),
                TensorSpec(name="state", datatype=Datatype.FP32, shape=(3, 1, 2)),
            ),
            outputs=Counting.signature.outputs,
        )

    outputs = run_sequences(Bare(), {"x": SEQUENCES}, STATE)
    np.testing.assert_array_equal(outputs["sum"], SEQUENCES.cumsum(axis=1))


def test_unrolled_rows_are_what_the_model_was_fed() -> None:
    model = Counting()
    rows = unroll(model, {"x": SEQUENCES}, STATE)
    assert {name: array.shape for name, array in rows.items()} == {"x": (12, 2), "state": (12, 3, 1, 2)}
    for step, fed in enumerate(model.fed):
        np.testing.assert_array_equal(rows["x"][step], fed["x"][0])
        np.testing.assert_array_equal(rows["state"][step], fed["state"])
    assert rows["state"][5].any()
    assert not rows["state"][[0, 6]].any()


def test_a_task_without_state_runs_rows_and_one_with_state_sequences() -> None:
    data = np.ones((3, 2), np.float32)
    np.testing.assert_array_equal(run_task(Doubling(-1), {"x": data}, {})["y"], data * 2)
    assert run_task(Counting(), {"x": SEQUENCES}, STATE)["sum"].shape == (2, 6, 2)


@pytest.mark.parametrize(
    ("inputs", "state", "says"),
    [
        ({"x": SEQUENCES}, {"h": "next"}, "names h, which"),
        ({"x": SEQUENCES}, {"state": "h"}, "names h, which"),
        ({"x": SEQUENCES, "state": SEQUENCES}, STATE, "the data have state, x, the model takes x"),
        ({}, STATE, "no inputs"),
        ({"x": SEQUENCES[0, 0]}, STATE, r"\[sequence, step, ...\]"),
        ({"x": SEQUENCES[:, :0]}, STATE, "not empty"),
    ],
    ids=["input", "output", "state in the data", "nothing", "no sequences", "no steps"],
)
def test_sequences_that_do_not_fit_the_model_are_refused(inputs, state, says: str) -> None:
    with pytest.raises(InputError, match=says):
        run_sequences(Counting(), inputs, state)


def test_state_that_changes_its_shape_is_found_out() -> None:
    with pytest.raises(DeviceError, match=r"goes in as \[3, 1, 2\] and comes out as \[3, 2, 2\]"):
        run_sequences(Counting(grows=True), {"x": SEQUENCES}, STATE)


def test_silero_carries_its_state_as_it_did_elsewhere(realdata: Path, tmp_path: Path) -> None:
    import onnx
    from onnx import numpy_helper

    from edgeserve.runtimes.base import RuntimeOptions
    from edgeserve.runtimes.onnx import OnnxRuntime

    built = onnx.load(realdata / "models" / "silero_vad_16k_op15.onnx")
    rate = next(one for one in built.graph.input if one.name == "sr")
    built.graph.input.remove(rate)
    built.graph.initializer.append(numpy_helper.from_array(np.array(16_000, np.int64), "sr"))
    onnx.save(built, tmp_path / "vad.onnx")
    with np.load(realdata / "data" / "vad_streams_8x50s.npz") as stored:
        samples = stored["streams_int16_16khz"][:2, : 300 * 512].astype(np.float32) / 32768
        expected = stored["float_prob_carried_state"][:2, :300]
    chunks = samples.reshape(2, 300, 512)
    before = np.concatenate([np.zeros((2, 1, 64), np.float32), chunks[:, :-1, -64:]], axis=1)
    model = OnnxRuntime().load(tmp_path / "vad.onnx", RuntimeOptions())
    steps = {"input": np.concatenate([before, chunks], axis=2)}
    outputs = run_sequences(model, steps, {"state": "stateN"})
    np.testing.assert_allclose(outputs["output"][..., 0], expected, atol=1e-4)
