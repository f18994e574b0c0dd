from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeserve.contracts.task import Boxes, Filter, ImageInput, Kind, Resize, Task
from edgeserve.task.answers import Detections
from edgeserve.task.average_precision import match
from edgeserve.task.boxes import iou

THRESHOLDS = np.linspace(0.5, 0.95, 10)


def detections(*boxes: tuple[int, float, int]) -> Detections:
    """Boxes 10 pixels wide, one a (place, score, class); a place further by one is an IoU of 9/11."""
    return Detections(
        boxes=np.array([[place, 0, place + 10, 10] for place, _, _ in boxes], np.float32).reshape(-1, 4),
        scores=np.array([score for _, score, _ in boxes], np.float32),
        classes=np.array([number for _, _, number in boxes], np.int64),
    )


def mean_average_precision(found, truth) -> float:
    return match(found, truth).mean_average_precision(np.ones(len(found), np.int64))


def by_definition(found, truth) -> float:
    """Box by box, class by class, threshold by threshold, recall point by recall point."""
    averages = []
    for number in sorted({one for picture in truth for one in picture.classes.tolist()}):
        for threshold in THRESHOLDS:
            hits = []
            for ours, theirs in zip(found, truth, strict=True):
                free = [place for place, one in enumerate(theirs.classes) if one == number]
                for box in np.argsort(-ours.scores, kind="stable"):
                    if ours.classes[box] != number:
                        continue
                    overlap = {one: iou(ours.boxes[[box]], theirs.boxes[[one]])[0, 0] for one in free}
                    best = max(overlap, key=lambda one: overlap[one], default=None)
                    hit = best is not None and overlap[best] >= threshold
                    free = [one for one in free if not hit or one != best]
                    hits.append((ours.scores[box], hit))
            hits.sort(key=lambda one: -one[0])
            total = sum((picture.classes == number).sum() for picture in truth)
            curve = [(sum(hit for _, hit in hits[: n + 1]), n + 1) for n in range(len(hits))]
            points = [
                max((good / seen for good, seen in curve if 100 * good >= point * total), default=0.0)
                for point in range(101)
            ]
            averages.append(np.mean(points))
    return float(np.mean(averages))


@st.composite
def pictures(draw):
    """Pictures with boxes near each other, scores all different."""
    count = draw(st.integers(1, 4))
    spots = st.tuples(st.integers(0, 8), st.integers(0, 2))
    truth = [
        detections(*((place * 3, 1.0, number) for place, number in draw(st.lists(spots, max_size=4))))
        for _ in range(count)
    ]
    places = [draw(st.lists(st.tuples(st.integers(0, 26), st.integers(0, 2)), max_size=6)) for _ in range(count)]
    order = draw(st.permutations(range(sum(map(len, places)))))
    scores = iter((1 + np.array(order, np.float64)) / (len(order) + 1))
    found = [detections(*((place, float(next(scores)), number) for place, number in one)) for one in places]
    return found, truth


@given(pictures())
def test_it_is_what_the_definition_says(scene) -> None:
    found, truth = scene
    if any(map(len, truth)):
        assert mean_average_precision(found, truth) == pytest.approx(by_definition(found, truth), abs=1e-12)


@given(pictures(), st.data())
def test_a_picture_that_counts_twice_is_two_pictures(scene, data) -> None:
    found, truth = scene
    chosen = np.array(data.draw(st.lists(st.integers(0, len(found) - 1), min_size=1, max_size=6)))
    times = np.bincount(chosen, minlength=len(found))
    again = mean_average_precision([found[one] for one in chosen], [truth[one] for one in chosen])
    assert match(found, truth).mean_average_precision(times) == pytest.approx(again, abs=1e-12)


@given(pictures())
def test_truth_found_exactly_is_perfect(scene) -> None:
    _, truth = scene
    assert mean_average_precision(truth, truth) == pytest.approx(1.0, abs=1e-12)


def test_without_true_boxes_only_silence_is_right() -> None:
    assert mean_average_precision([detections()], [detections()]) == 1.0
    assert mean_average_precision([detections((0, 0.5, 0))], [detections()]) == 0.0


def test_a_worse_box_before_the_right_one_costs_half() -> None:
    # Precision is 1/2 at every recall, at every threshold.
    found = [detections((50, 0.9, 0), (0, 0.8, 0))]
    assert mean_average_precision(found, [detections((0, 1, 0))]) == pytest.approx(0.5)


def test_the_101st_box_of_a_class_in_a_picture_does_not_count() -> None:
    truth = [detections((5000, 1, 0))]
    crowd = [(20 * place, 0.9, 0) for place in range(99)]
    assert mean_average_precision([detections(*crowd, (5000, 0.5, 0))], truth) == pytest.approx(0.01)
    assert mean_average_precision([detections(*crowd, (4000, 0.9, 0), (5000, 0.5, 0))], truth) == 0.0
    others = [(place, score, 1) for place, score, _ in crowd]
    assert mean_average_precision([detections(*others, (4000, 0.9, 1), (5000, 0.5, 0))], truth) == pytest.approx(1.0)


def test_yolox_nano_on_coco_scores_what_was_measured_elsewhere(realdata: Path) -> None:
    from edgeserve.runtimes.base import RuntimeOptions
    from edgeserve.runtimes.onnx import OnnxRuntime
    from edgeserve.task.decode import decode, judging_score
    from edgeserve.task.prepare import prepare
    from edgeserve.task.score import score

    image = ImageInput(
        name="images",
        size=(416, 416),
        resize=Resize.LETTERBOX,
        align="top-left",
        color="bgr",
        filter=Filter.ANTIALIAS,
    )
    task = Task(kind=Kind.DETECTION, boxes=Boxes(layout="grid"), inputs=(image,))
    folder = realdata / "data" / "coco128"
    listed = [one for one in json.loads((folder / "annotations.json").read_bytes())["images"] if one["split"] == "eval"]
    model = OnnxRuntime().load(realdata / "models" / "yolox_nano.onnx", RuntimeOptions())
    answers, truth = [], []
    for entry in listed:
        row = prepare(task, model.signature, (folder / entry["file"]).read_bytes(), what=entry["file"])
        answers += decode(task, model.run(row.inputs), least_score=judging_score(task))
        table = np.array(entry["boxes"]).reshape(-1, 5)
        truth.append(
            Detections(
                boxes=row.geometry.to_model(table[:, 1:]).astype(np.float32),
                scores=np.ones(len(table), np.float32),
                classes=table[:, 0].astype(np.int64),
            )
        )
    # The folder's README has 0.3472 with another program for letterbox and score.
    assert score(task, "map", answers, truth).value == pytest.approx(0.3472, abs=0.003)
