from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from edgeserve import npz
from edgeserve.contracts.errors import DeviceError, InputError
from edgeserve.contracts.limits import MAX_GOLDEN_BYTES
from edgeserve.contracts.task import Task
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve.contracts.variant import Tolerance
from edgeserve.golden import Golden, GoldenMismatch, reproduce
from edgeserve.runtimes.base import Tensor, Tensors

ROWS, CLASSES = 32, 10
RANDOM = np.random.default_rng(7)
LOGITS = (RANDOM.standard_normal((ROWS, CLASSES)) * 3).astype(np.float32)
GOLDEN = Golden(inputs={"x": np.arange(ROWS, dtype=np.float32)[:, None]}, outputs={"logits": LOGITS})
INT8 = Tolerance(rtol=1e-3, atol=0.2, agreement=0.9)
FOREIGN = Tolerance(agreement=0.9)


class Table:
    """A device that looks its answers up: row `i` of `answers` for input `i`."""

    executing_device = "CPU"

    def __init__(self, answers: np.ndarray, *, batch: int = -1, name: str = "logits") -> None:
        self.signature = Signature(
            inputs=(TensorSpec(name="x", datatype=Datatype.FP32, shape=(batch, 1)),),
            outputs=(TensorSpec(name=name, datatype=Datatype.FP32, shape=(batch, *answers.shape[1:])),),
        )
        self._answers = answers

    def run(self, inputs: Mapping[str, Tensor]) -> Tensors:
        return {self.signature.outputs[0].name: self._answers[inputs["x"][:, 0].astype(int)]}

    def close(self) -> None:
        return


def noisy(largest: float) -> np.ndarray:
    """The golden answers with noise that moves no arg-max: what int8 kernels of another CPU do."""
    noise = np.random.default_rng(3).uniform(-largest, largest, LOGITS.shape).astype(np.float32)
    found = LOGITS + noise
    best = LOGITS.argmax(axis=1)
    found[np.arange(ROWS), best] = np.maximum(found.max(axis=1), LOGITS.max(axis=1))
    return found


@pytest.mark.parametrize("batch", [-1, 1], ids=["any batch", "batch of 1"])
@pytest.mark.parametrize("tolerance", [INT8, FOREIGN], ids=["element-wise", "agreement"])
def test_int8_noise_passes(batch: int, tolerance: Tolerance) -> None:
    result = reproduce(Table(noisy(0.15), batch=batch), GOLDEN, tolerance, Task())
    assert (result.rows, result.agreement) == (ROWS, 1.0)
    assert 0 < result.max_abs_difference < 0.2


@pytest.mark.parametrize("tolerance", [INT8, FOREIGN, Tolerance(agreement=0.51)], ids=str)
def test_permuted_labels_fail(tolerance: Tolerance) -> None:
    with pytest.raises(GoldenMismatch, match=r"agrees on 0\.0% of 32 rows"):
        reproduce(Table(np.roll(LOGITS, 1, axis=1)), GOLDEN, tolerance, Task())


def test_noise_beyond_the_tolerance_fails_with_numbers_though_every_arg_max_is_right() -> None:
    scaled = LOGITS * np.float32(1.5)
    assert reproduce(Table(scaled), GOLDEN, FOREIGN, Task()).agreement == 1.0
    with pytest.raises(GoldenMismatch, match=r"'logits' differs by up to \d.*allowed are 0\.2"):
        reproduce(Table(scaled), GOLDEN, INT8, Task())


@pytest.mark.parametrize(("wrong", "passes"), [(3, True), (4, False)])
def test_the_share_of_rows_that_may_disagree_is_exact(wrong: int, passes: bool) -> None:
    answers = LOGITS.copy()
    answers[:wrong] = np.roll(answers[:wrong], 1, axis=1)
    if passes:
        assert reproduce(Table(answers), GOLDEN, FOREIGN, None).agreement == (ROWS - wrong) / ROWS
    else:
        with pytest.raises(GoldenMismatch, match=r"87\.5%.*90\.0%"):
            reproduce(Table(answers), GOLDEN, FOREIGN, None)


def test_one_nan_fails_whatever_the_tolerance() -> None:
    answers = LOGITS.copy()
    answers[5, LOGITS[5].argmin()] = np.nan
    with pytest.raises(GoldenMismatch, match="NaN in 1 of 320"):
        reproduce(Table(answers), GOLDEN, Tolerance(rtol=1e9, atol=1e9, agreement=0.51), Task())


@pytest.mark.parametrize("model", [Table(LOGITS[:, :9]), Table(LOGITS, name="scores")], ids=["shape", "name"])
def test_an_output_that_is_not_there_fails(model: Table) -> None:
    with pytest.raises(GoldenMismatch, match="should have shape"):
        reproduce(model, GOLDEN, FOREIGN, Task())


def test_infinity_is_reproduced_by_infinity_only() -> None:
    answers = LOGITS.copy()
    answers[0, 0] = -np.inf
    golden = Golden(inputs=GOLDEN.inputs, outputs={"logits": answers})
    assert reproduce(Table(answers), golden, INT8, Task()).max_abs_difference == 0
    with pytest.raises(GoldenMismatch):
        reproduce(Table(LOGITS), golden, INT8, Task())


def test_a_mismatch_is_an_error_of_the_device() -> None:
    assert issubclass(GoldenMismatch, DeviceError)


def test_dump_and_load_are_inverse_and_deterministic() -> None:
    data = GOLDEN.dump()
    back = Golden.load(data)
    assert data == GOLDEN.dump() == back.dump()
    assert back.rows == ROWS
    np.testing.assert_array_equal(back.outputs["logits"], LOGITS)
    np.testing.assert_array_equal(back.inputs["x"], GOLDEN.inputs["x"])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "needs inputs and outputs"),
        ({"in.x": np.zeros((2, 1))}, "needs inputs and outputs"),
        ({"in.x": np.zeros((2, 1)), "out.y": np.zeros((3, 1))}, "same number of rows"),
        ({"in.x": np.zeros((0, 1)), "out.y": np.zeros((0, 1))}, "at least one"),
        ({"in.x": np.zeros(()), "out.y": np.zeros(())}, "at least one"),
        ({"in.x": np.zeros((1, 1)), "out.y": np.full((1, 1), np.nan)}, "'y' holds NaN"),
        ({"x": np.zeros((1, 1))}, "names start with"),
    ],
    ids=["nothing", "no outputs", "rows differ", "no rows", "scalars", "NaN", "names"],
)
def test_a_golden_set_that_cannot_be_one_is_refused(arrays, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Golden.load(npz.dump(arrays))


@pytest.mark.parametrize(
    "data",
    [b"not a zip", npz.dump({"in.x": np.zeros(MAX_GOLDEN_BYTES, np.uint8), "out.y": np.zeros(1)}), GOLDEN.dump()[:-9]],
    ids=["text", "bomb", "cut"],
)
def test_bytes_that_are_no_golden_set_are_refused(data: bytes) -> None:
    with pytest.raises(InputError, match="golden set"):
        Golden.load(data)
