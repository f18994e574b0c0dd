from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from edgeserve import npz
from edgeserve.contracts.errors import DeviceError, InputError
from edgeserve.contracts.limits import MAX_GOLDEN_BYTES
from edgeserve.contracts.task import Boxes, Kind, Task
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve.contracts.variant import Tolerance
from edgeserve.golden import Golden, GoldenMismatch, compare, reproduce
from edgeserve.runtimes.base import ONE_DEVICE, Tensor, Tensors
from edgeserve.runtimes.rows import run_sequences

ROWS, CLASSES = 32, 10
RANDOM = np.random.default_rng(7)
LOGITS = (RANDOM.standard_normal((ROWS, CLASSES)) * 3).astype(np.float32)
GOLDEN = Golden(inputs={"x": np.arange(ROWS, dtype=np.float32)[:, None]}, outputs={"logits": LOGITS})
INT8 = Tolerance(rtol=1e-3, atol=0.2, agreement=0.9)
FOREIGN = Tolerance(agreement=0.9)


class Table:
    """A device that looks its answers up: row `i` of `answers` for input `i`."""

    executing_device = "CPU"
    fallback = ""
    placement = ONE_DEVICE

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
@pytest.mark.parametrize("task", [Task(), None], ids=["classes", "no task"])
def test_the_share_of_rows_that_may_disagree_is_exact(wrong: int, passes: bool, task: Task | None) -> None:
    answers = LOGITS.copy()
    answers[:wrong] = -answers[:wrong]
    if passes:
        assert reproduce(Table(answers), GOLDEN, FOREIGN, task).agreement == (ROWS - wrong) / ROWS
    else:
        with pytest.raises(GoldenMismatch, match=r"87\.5%.*90\.0%"):
            reproduce(Table(answers), GOLDEN, FOREIGN, task)


def test_without_a_task_outputs_are_compared_number_by_number_and_never_as_classes() -> None:
    assert reproduce(Table(noisy(0.15)), GOLDEN, FOREIGN, None).agreement > 0.99
    with pytest.raises(GoldenMismatch, match="agrees on"):
        reproduce(Table(LOGITS + 20), GOLDEN, FOREIGN, None)
    one_number = Golden(inputs=GOLDEN.inputs, outputs={"logits": LOGITS[:, :1]})
    assert reproduce(Table(LOGITS[:, :1]), one_number, FOREIGN, None).agreement == 1


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


DETECTOR = Task(kind=Kind.DETECTION, boxes=Boxes(layout="channels-first"))
PLACES = np.stack([np.arange(6) * 40 + 20, np.full(6, 50), np.full(6, 30), np.full(6, 60)])
SCORES = RANDOM.permuted(np.tile(np.array([0.27, 0, 0, 0.05])[:, None], (ROWS, 1, 6)), axis=1)
HEADS = np.concatenate([np.tile(PLACES, (ROWS, 1, 1)), SCORES], axis=1).astype(np.float32)
BOXED = Golden(inputs=GOLDEN.inputs, outputs={"head": HEADS})


def detector(answers: np.ndarray) -> Table:
    return Table(answers.astype(np.float32), name="head")


def jittered() -> np.ndarray:
    """Boxes moved by up to 3 pixels of 30, scores up to 0.04: some fall below the 0.25 from which they are shown."""
    random = np.random.default_rng(11)
    found = HEADS.copy()
    found[:, :4] += random.uniform(-3, 3, found[:, :4].shape)
    found[:, 4:] += random.uniform(-0.04, 0.04, found[:, 4:].shape)
    return found


def test_a_detector_with_a_little_jitter_passes() -> None:
    assert (jittered()[:, 4:].max(axis=1) < DETECTOR.boxes.score).any()
    assert reproduce(detector(jittered()), BOXED, FOREIGN, DETECTOR).agreement == 1


DETECTED = {
    "permuted classes": np.concatenate([HEADS[:, :4], np.roll(HEADS[:, 4:], 1, axis=1)], axis=1),
    "boxes elsewhere": HEADS + np.array([0, 40, 0, 0, 0, 0, 0, 0])[:, None],
    "sides exchanged": HEADS[:, [1, 0, 3, 2, 4, 5, 6, 7]],
    "nothing found": HEADS * np.array([1, 1, 1, 1, 0, 0, 0, 0])[:, None],
    "pictures exchanged": np.roll(HEADS, 1, axis=0),
}


@pytest.mark.parametrize("answers", DETECTED.values(), ids=DETECTED)
def test_a_detector_that_is_wrong_fails(answers: np.ndarray) -> None:
    with pytest.raises(GoldenMismatch, match="agrees on"):
        reproduce(detector(answers), BOXED, Tolerance(agreement=0.8), DETECTOR)


class Decay:
    """Carries a running mean from step to step, or forgets it."""

    executing_device = "CPU"
    fallback = ""
    placement = ONE_DEVICE
    signature = Signature(
        inputs=tuple(TensorSpec(name=name, datatype=Datatype.FP32, shape=(-1, 2)) for name in ("x", "mean")),
        outputs=tuple(TensorSpec(name=name, datatype=Datatype.FP32, shape=(-1, 2)) for name in ("mean_now", "y")),
    )

    def __init__(self, *, forgets: bool = False, noise: float = 0.0) -> None:
        self._forgets, self._noise = forgets, noise

    def run(self, inputs: Mapping[str, Tensor]) -> Tensors:
        mean = np.float32(0.5) * (inputs["mean"] + inputs["x"])
        return {"mean_now": mean * (not self._forgets), "y": mean + np.float32(self._noise)}

    def close(self) -> None:
        return


STEPS = RANDOM.standard_normal((3, 20, 2)).astype(np.float32) + 2
RECURRENT = Task(kind=Kind.REGRESSION, scale=1, state={"mean": "mean_now"})


def test_a_stateful_model_is_held_to_every_step_of_its_sequences() -> None:
    golden = Golden(inputs={"x": STEPS}, outputs=run_sequences(Decay(), {"x": STEPS}, RECURRENT.state))
    golden = Golden.load(golden.dump())
    assert list(golden.outputs) == ["y"]
    result = reproduce(Decay(noise=0.01), golden, FOREIGN, RECURRENT)
    assert (result.rows, golden.rows) == (60, 3)
    assert result.agreement == pytest.approx(0.99, abs=1e-4)
    with pytest.raises(GoldenMismatch, match="of 60 rows"):
        reproduce(Decay(forgets=True), golden, FOREIGN, RECURRENT)


@pytest.mark.parametrize("kind", [Kind.EMBEDDING, Kind.REGRESSION, Kind.TENSORS, Kind.KEYWORDS])
def test_every_kind_passes_with_noise_and_fails_with_the_answers_of_other_rows(kind: Kind) -> None:
    assert reproduce(Table(noisy(0.15)), GOLDEN, FOREIGN, Task(kind=kind)).agreement > 0.95
    with pytest.raises(GoldenMismatch, match="agrees on"):
        reproduce(Table(np.roll(LOGITS, 1, axis=0)), GOLDEN, Tolerance(agreement=0.8), Task(kind=kind))


class Backwards(Table):
    """Lists its second output first."""

    def run(self, inputs: Mapping[str, Tensor]) -> Tensors:
        first = super().run(inputs)["logits"]
        return {"logits": first, "also": first[:, ::-1]}


def test_the_first_output_is_the_models_first_whatever_the_order_in_the_file() -> None:
    answers = LOGITS.copy()
    answers[:, 3] = 99
    golden = Golden(inputs=GOLDEN.inputs, outputs={"also": LOGITS, "logits": answers})
    assert compare(golden.outputs, Backwards(answers).run(golden.inputs), Task()).agreement == 1


@pytest.mark.parametrize("texts", [np.array(["a"]), np.array([b"a"], object)], ids=["texts", "bytes"])
def test_golden_arrays_hold_numbers(texts: np.ndarray) -> None:
    for inputs, outputs in (({"x": texts}, {"y": np.zeros(1)}), ({"x": np.zeros(1)}, {"y": texts})):
        with pytest.raises(InputError, match="does not hold numbers"):
            Golden(inputs=inputs, outputs=outputs)


def test_numbers_that_are_missing_may_be_inputs() -> None:
    Golden(inputs={"x": np.full((1, 2), np.nan)}, outputs={"y": np.zeros((1, 2))})


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
        ({"in.x": np.zeros((1, 1)), "out.y": np.full((1, 1), "cat")}, "'out.y' of golden set has dtype"),
        ({"x": np.zeros((1, 1))}, "names start with"),
    ],
    ids=["nothing", "no outputs", "rows differ", "no rows", "scalars", "NaN", "texts", "names"],
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
