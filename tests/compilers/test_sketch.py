from __future__ import annotations

import numpy as np
import pytest

from edgeserve.contracts.documents import encode
from edgeserve.contracts.limits import MAX_SKETCH_BYTES, SKETCH_BINS, SKETCH_CLASSES, SKETCH_FIELDS, SKETCH_VALUES
from edgeserve.contracts.sketch import SHIFTED_PSI, STABLE_PSI, Running, psi, read_sketch
from edgeserve.contracts.task import Boxes, Kind, Task
from edgeserve.task.answers import Detections
from edgeserve_compilers.sketch import distribution, sketch

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.standard_normal((50, 3, 4, 4)).astype(np.float32)
SCORES = RANDOM.standard_normal((50, 10)).astype(np.float32)


def test_inputs_outputs_and_answers_of_a_classifier_are_summarised() -> None:
    found = sketch(Task(softmax=True), {"image": IMAGES}, {"logits": SCORES}, list(SCORES.astype(np.float64)))
    assert found.rows == 50
    image, logits, top = found.inputs["image"], found.outputs["logits"], found.fields["top_score"]
    assert (image.count, logits.count, top.count) == (IMAGES.size, 500, 50)
    assert image.mean == pytest.approx(IMAGES.mean(), rel=1e-4)
    assert image.std == pytest.approx(IMAGES.std(), rel=1e-4)
    assert (image.min, image.max) == (IMAGES.min(), IMAGES.max())
    assert image.quantiles[3] == pytest.approx(np.median(IMAGES), abs=1e-4)
    powers = np.exp(SCORES.astype(np.float64))
    assert top.max == pytest.approx((powers.max(axis=1) / powers.sum(axis=1)).max())
    assert found.classes is not None
    counts = np.bincount(SCORES.argmax(axis=1), minlength=10)
    assert dict(zip(found.classes.classes, found.classes.counts, strict=True)) == {
        number: count for number, count in enumerate(counts.tolist()) if count
    }
    assert list(found.classes.counts) == sorted(found.classes.counts, reverse=True)
    assert read_sketch(encode(found)) == found


def test_bins_hold_about_the_same_number_and_values_are_counted_as_a_device_counts_them() -> None:
    found = distribution(IMAGES)
    assert len(found.counts) == SKETCH_BINS
    assert (found.counts[0], found.counts[-1]) == (0, 0)
    assert min(found.counts[1:-1]) > 0.8 * IMAGES.size / SKETCH_BINS
    running = Running(found.edges)
    running.add(IMAGES.reshape(-1).tolist())
    assert running.distribution().counts == found.counts


@pytest.mark.parametrize(
    ("array", "counts"),
    [
        (np.full((4, 3), 7.0, np.float32), (0, 12, 0)),
        (np.array([[True], [False], [True]]), (0, 1, 2, 0)),
        (np.arange(6, dtype=np.uint8), (0, 1, 1, 1, 1, 1, 1, 0)),
        (np.array([np.nan, np.inf]), (0, 0)),
    ],
    ids=["constant", "bool", "few whole numbers", "nothing valid"],
)
def test_edges_are_taken_once(array: np.ndarray, counts: tuple[int, ...]) -> None:
    found = distribution(array)
    assert found.counts == counts
    assert found.count + found.invalid == array.size


@pytest.mark.parametrize(("value", "place"), [(-1.0, 0), (1.1, -1), (0.0, 1), (1.0, -2)])
def test_what_the_baseline_never_saw_has_a_bin_on_each_side(value: float, place: int) -> None:
    running = Running(distribution(np.linspace(0, 1, 1000)).edges)
    running.add([value])
    assert running.distribution().counts[place] == 1


def test_a_frequent_value_has_a_bin_of_its_own() -> None:
    values = np.concatenate([np.zeros(600), np.linspace(0.001, 5, 400)])
    found = distribution(values)
    assert found.counts[found.edges.index(0.0)] == 600


def test_a_large_tensor_is_sampled_from_everywhere() -> None:
    size = 3 * SKETCH_VALUES
    colours = np.zeros((size // 3, 3), np.float32)
    colours[:, 1], colours[:, 2] = 1, 2
    found = distribution(colours)
    assert found.count == SKETCH_VALUES
    assert found.mean == pytest.approx(1, abs=0.01)
    assert found == distribution(colours)


def test_detections_are_counted_a_picture_at_the_tasks_score() -> None:
    def boxes(scores: list[float], classes: list[int]) -> Detections:
        corners = np.zeros((len(scores), 4), np.float32)
        return Detections(boxes=corners, scores=np.array(scores, np.float32), classes=np.array(classes, np.int64))

    task = Task(kind=Kind.DETECTION, boxes=Boxes(score=0.25))
    answers = [boxes([0.9, 0.5, 0.1], [2, 2, 0]), boxes([], []), boxes([0.3], [7])]
    found = sketch(task, {"image": IMAGES[:3]}, {"boxes": SCORES[:3]}, answers)
    assert (found.fields["boxes"].count, found.fields["boxes"].mean, found.fields["boxes"].max) == (3, 1.0, 2.0)
    assert found.fields["box_score"].count == 3
    assert found.classes is not None
    assert (found.classes.classes, found.classes.counts) == ((2, 7), (2, 1))


def test_a_detector_that_finds_nothing_has_no_scores_to_count() -> None:
    nothing = Detections(
        boxes=np.zeros((0, 4), np.float32), scores=np.zeros(0, np.float32), classes=np.zeros(0, np.int64)
    )
    task = Task(kind=Kind.DETECTION, boxes=Boxes())
    found = sketch(task, {"image": IMAGES[:1]}, {"boxes": SCORES[:1]}, [nothing])
    assert set(found.fields) == {"boxes"}
    assert found.classes is not None
    assert found.classes.counts == ()


def test_an_embedding_has_a_length() -> None:
    found = sketch(Task(kind=Kind.EMBEDDING), {"x": IMAGES}, {"e": SCORES}, list(SCORES.astype(np.float64)))
    assert found.fields["norm"].mean == pytest.approx(np.linalg.norm(SCORES, axis=1).mean(), rel=1e-4)
    assert found.classes is None


@pytest.mark.parametrize("kind", [Kind.REGRESSION, Kind.TENSORS])
def test_other_kinds_have_their_outputs(kind: Kind) -> None:
    found = sketch(Task(kind=kind), {"x": IMAGES}, {"y": SCORES}, list(SCORES))
    assert (found.fields, found.classes) == ({}, None)
    assert found.outputs["y"].count == 500


def test_a_row_without_a_class_counts_for_none() -> None:
    scores = np.array([[0.1, 0.9], [np.nan, 0.5], [0.2, np.inf]])
    found = sketch(Task(softmax=True), {"x": IMAGES[:3]}, {"y": scores}, list(scores))
    assert found.classes is not None
    assert (found.classes.classes, found.classes.counts) == ((1,), (2,))
    assert found.fields["top_score"].invalid == 2


def test_text_is_left_out_and_said_so() -> None:
    text = np.array([["a"]] * 50, object)
    found = sketch(Task(), {"image": IMAGES, "text": text}, {"logits": SCORES}, list(SCORES.astype(np.float64)))
    assert set(found.inputs) == {"image"}
    assert found.omitted == 1


def test_classes_beyond_the_most_frequent_are_counted_together() -> None:
    scores = np.eye(400)
    scores = np.concatenate([scores, scores[:300]])
    found = sketch(Task(), {"x": np.zeros((700, 1))}, {"y": scores}, list(scores))
    assert found.classes is not None
    assert len(found.classes.classes) == SKETCH_CLASSES
    assert set(found.classes.counts) == {2}
    assert found.classes.other == 700 - 2 * SKETCH_CLASSES


def test_the_sketch_of_a_model_with_very_many_long_names_still_fits() -> None:
    inputs = {f"{number:03d}" + "ü" * 253: RANDOM.standard_normal((300, 2)) * 1e-7 for number in range(100)}
    scores = RANDOM.standard_normal((300, 1000))
    found = sketch(Task(), inputs, {"scores": scores}, list(scores))
    assert len(encode(found)) <= MAX_SKETCH_BYTES
    assert 20 < len(found.inputs) < SKETCH_FIELDS
    assert found.omitted == 101 - len(found.inputs) - len(found.outputs)


def test_drift_of_the_input_is_found_and_more_of_the_same_is_not() -> None:
    baseline = distribution(RANDOM.normal(0.5, 0.1, 5000))
    for mean, drifted in ((0.5, False), (0.62, True)):
        running = Running(baseline.edges)
        running.add(RANDOM.normal(mean, 0.1, 1000).tolist())
        index = psi(baseline.counts, running.distribution().counts)
        assert index > SHIFTED_PSI if drifted else index < STABLE_PSI
