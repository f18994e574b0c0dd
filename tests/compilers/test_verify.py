"""Golden tolerances hold what they must hold: noise of another CPU passes, a wrong model fails."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.task import Boxes, ImageInput, Kind, Task
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve.golden import GoldenMismatch, reproduce
from edgeserve.runtimes.base import ONE_DEVICE, Tensor, Tensors
from edgeserve.task.decode import fields
from edgeserve_compilers.data.dataset import Dataset
from edgeserve_compilers.tolerance import golden_rows, golden_set, tolerance
from edgeserve_compilers.verify import measure, metric_of, noise_share, refer, worst_noise

ROWS, CLASSES = 200, 10
X = np.arange(ROWS, dtype=np.float32)[:, None]
LOGITS = (np.random.default_rng(1).standard_normal((ROWS, CLASSES)) * 4).astype(np.float32)
STEP = 0.1
"""Of the int8 grid of the scores."""
QUANTIZED = (np.round(LOGITS / STEP) * STEP).astype(np.float32)


class Table:
    executing_device = "CPU"
    fallback = ""
    placement = ONE_DEVICE
    signature = Signature(
        inputs=(TensorSpec(name="x", datatype=Datatype.FP32, shape=(-1, 1)),),
        outputs=(TensorSpec(name="y", datatype=Datatype.FP32, shape=(-1, CLASSES)),),
    )

    def __init__(self, answers: np.ndarray) -> None:
        self._answers = answers

    def run(self, inputs: Mapping[str, Tensor]) -> Tensors:
        return {"y": self._answers[inputs["x"][:, 0].astype(int)]}

    def close(self) -> None:
        return


def dataset(labels: np.ndarray | None) -> Dataset:
    return Dataset(file="v.npz", digest="sha256:00", inputs={"x": X}, truth=labels)


TOP1, AGREEMENT = (Task(output="y", metric=metric) for metric in ("top1", "agreement"))
REFERENCE = refer(Table(LOGITS), dataset(None), AGREEMENT)


@pytest.mark.parametrize("native", [True, False], ids=["element-wise", "agreement only"])
def test_other_rounding_passes_and_permuted_labels_fail(native: bool) -> None:
    limits = tolerance({"y": QUANTIZED}, REFERENCE, native=native)
    assert limits.element_wise is native
    golden = golden_set(REFERENCE)
    flips = np.random.default_rng(2).choice([-STEP, 0, STEP], LOGITS.shape, p=[0.05, 0.9, 0.05]).astype(np.float32)
    assert reproduce(Table(QUANTIZED + flips), golden, limits, TOP1).rows == 32
    for wrong in (np.roll(QUANTIZED, 1, axis=1), -QUANTIZED, np.zeros_like(QUANTIZED), np.full_like(QUANTIZED, np.nan)):
        with pytest.raises(GoldenMismatch):
            reproduce(Table(wrong), golden, limits, TOP1)


def test_only_the_machine_that_measured_may_be_held_to_numbers() -> None:
    scaled = Table(QUANTIZED * np.float32(2))
    native, foreign = (tolerance({"y": QUANTIZED}, REFERENCE, native=native) for native in (True, False))
    reproduce(scaled, golden_set(REFERENCE), foreign, TOP1)
    with pytest.raises(GoldenMismatch, match="differs by up to"):
        reproduce(scaled, golden_set(REFERENCE), native, TOP1)


def test_a_float_variant_still_leaves_room_for_another_summation_order() -> None:
    limits = tolerance({"y": LOGITS}, REFERENCE, native=True)
    assert limits.element_wise
    reproduce(Table(LOGITS * np.float32(1 + 1e-5)), golden_set(REFERENCE), limits, TOP1)


def test_a_variant_that_agrees_badly_never_gets_a_tolerance_below_one_half() -> None:
    random = np.random.default_rng(3).standard_normal(LOGITS.shape).astype(np.float32)
    assert tolerance({"y": random}, REFERENCE, native=False).agreement == pytest.approx(0.51)


def test_golden_rows_are_spread_over_the_data() -> None:
    rows = golden_rows(REFERENCE)
    assert (len(rows), rows[0], rows[-1]) == (32, 0, ROWS - 1)
    assert len(set(np.diff(rows).tolist())) <= 2


def test_accuracy_is_held_against_labels_where_there_are_some() -> None:
    labels = LOGITS.argmax(axis=1)
    labels[:20] = (labels[:20] + 1) % CLASSES
    reference = refer(Table(LOGITS), dataset(labels), TOP1)
    answers = LOGITS.copy()
    answers[20:30] = np.roll(answers[20:30], 1, axis=1)
    found = measure(Table(answers), {"y": answers}, Table(LOGITS), reference)
    assert (found.float_value, found.value) == pytest.approx((0.9, 0.85))
    assert found.drop == pytest.approx(0.05)
    assert found.drop_low < 0.05 < found.drop_high
    assert found.agreement == pytest.approx(0.95)
    assert not found.has_nan


def test_agreement_is_with_the_float_model_even_where_there_are_labels() -> None:
    wrong = (LOGITS.argmax(axis=1) + 1) % CLASSES
    reference = refer(Table(LOGITS), dataset(wrong), AGREEMENT)
    found = measure(Table(QUANTIZED), {"y": QUANTIZED}, Table(LOGITS), reference)
    assert (reference.labelled, found.float_value) == (False, 1.0)
    assert found.value == found.agreement > 0.9


def test_without_labels_the_float_model_is_the_truth() -> None:
    found = measure(Table(QUANTIZED), {"y": QUANTIZED}, Table(LOGITS), REFERENCE)
    assert found.float_value == 1.0
    assert found.value == found.agreement
    assert found.sqnr_db == pytest.approx(10 * np.log10(16 / (STEP**2 / 12)), abs=1)
    same = measure(Table(LOGITS), {"y": LOGITS}, Table(LOGITS), REFERENCE)
    assert (same.value, same.drop, same.sqnr_db) == (1.0, 0.0, None)


def test_nan_is_seen_and_counts_as_wrong() -> None:
    answers = LOGITS.copy()
    answers[:50] = np.nan
    found = measure(Table(answers), {"y": answers}, Table(LOGITS), REFERENCE)
    assert found.has_nan
    assert found.value == 0.75


@pytest.mark.parametrize(
    ("answers", "labels", "task", "message"),
    [
        (np.where(LOGITS > 9, np.nan, LOGITS), None, AGREEMENT, "float model itself answers NaN"),
        (LOGITS, np.full(ROWS, CLASSES), TOP1, "labels go up to 10, the model scores 10 classes"),
        (
            LOGITS,
            None,
            Task(output="y", metric="agreement", labels=("cat", "dog")),
            "2 labels are given, the model scores 10",
        ),
        (LOGITS[:, :1], None, AGREEMENT, r"2 or more"),
    ],
    ids=["NaN", "label too large", "label names", "one class"],
)
def test_a_float_model_that_cannot_be_a_reference_is_refused(answers, labels, task: Task, message: str) -> None:
    with pytest.raises(InputError, match=message):
        refer(Table(answers), dataset(labels), task)


@pytest.mark.parametrize(
    ("task", "labels", "expected"),
    [
        (Task(), np.zeros(ROWS, np.int64), "top1"),
        (Task(), None, "agreement"),
        (Task(metric="top5"), np.zeros(ROWS, np.int64), "top5"),
        (Task(metric="top5"), None, "agreement"),
        (Task(kind=Kind.DETECTION, boxes=Boxes()), None, "iou"),
        (Task(kind=Kind.DETECTION, boxes=Boxes(), metric="map"), None, "iou"),
        (Task(kind=Kind.REGRESSION), None, "mae"),
        (Task(kind=Kind.TENSORS), None, "sqnr"),
        (Task(metric="mine.metrics:f1"), np.zeros(ROWS, np.int64), "mine.metrics:f1"),
    ],
)
def test_labels_decide_what_can_be_measured(task: Task, labels: np.ndarray | None, expected: str) -> None:
    assert metric_of(task, dataset(labels)) == expected


def test_a_metric_of_the_users_needs_labels() -> None:
    with pytest.raises(InputError, match=r"mine.metrics:f1 needs labels, v.npz has none"):
        metric_of(Task(metric="mine.metrics:f1"), dataset(None))


@pytest.mark.parametrize(
    ("found", "share"),
    [([3.0, 4.0], 0.0), ([3.0, 4.5], 0.01), ([0.0, 0.0], 1.0), ([np.nan, 4.0], np.inf), ([np.inf, 4.0], np.inf)],
)
def test_noise_is_a_share_of_the_signal(found: list[float], share: float) -> None:
    assert noise_share(np.array([3.0, 4.0]), np.array(found)) == pytest.approx(share)


def test_noise_over_silence_is_infinite() -> None:
    assert noise_share(np.zeros(3), np.ones(3)) == np.inf
    assert noise_share(np.zeros(3), np.zeros(3)) == 0


def test_each_field_is_judged_by_itself() -> None:
    """Scores between 0 and 1 beside boxes in hundreds of pixels: their loss drowns in a ratio over all."""
    task = Task(
        kind=Kind.DETECTION,
        output="y",
        metric="iou",
        inputs=(ImageInput(size=(64, 64)),),
        boxes=Boxes(layout="decoded"),
    )
    rows = np.zeros((4, 9, 7))
    rows[..., :4] = 200
    rows[..., 4:] = 0.5
    lost = rows.copy()
    lost[..., 4:] = 0
    assert noise_share(rows, lost) < 1e-4
    assert worst_noise(task, {"y": lost}, fields(task, {"y": rows})) == pytest.approx(1.0)
