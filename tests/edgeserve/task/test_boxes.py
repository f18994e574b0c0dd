from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeserve.task.boxes import claim, iou, suppress, to_corners


@st.composite
def scenes(draw, most: int = 12):
    """Boxes on a coarse grid, so that many overlap and some are equal, or without area."""
    count = draw(st.integers(0, most))
    numbers = st.lists(st.integers(0, 6), min_size=4, max_size=4)
    corners = np.array(draw(st.lists(numbers, min_size=count, max_size=count)), np.float32).reshape(count, 4)
    corners[:, 2:] += corners[:, :2]
    scores = draw(st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.5, 0.9]), min_size=count, max_size=count))
    classes = draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))
    return corners, np.array(scores, np.float32), np.array(classes, np.int64)


@pytest.mark.parametrize(
    ("layout", "box"),
    [("xyxy", [1, 2, 5, 10]), ("yxyx", [2, 1, 10, 5]), ("xywh", [1, 2, 4, 8]), ("cxcywh", [3, 6, 4, 8])],
)
def test_every_format_becomes_corners(layout: str, box: list[int]) -> None:
    np.testing.assert_array_equal(to_corners(np.array([[box]], np.float32), layout), [[[1, 2, 5, 10]]])


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([0, 0, 2, 2], [0, 0, 2, 2], 1.0),
        ([0, 0, 2, 2], [1, 1, 3, 3], 1 / 7),
        ([0, 0, 2, 2], [0, 0, 2, 1], 0.5),
        ([0, 0, 2, 2], [2, 0, 4, 2], 0.0),
        ([0, 0, 0, 0], [0, 0, 0, 0], 0.0),
        ([2, 2, 0, 0], [2, 2, 0, 0], 0.0),
    ],
    ids=["equal", "corner", "half", "touching", "no area", "swapped"],
)
def test_iou_is_shared_area_over_joint_area(first, second, expected: float) -> None:
    assert iou(np.array([first], np.float32), np.array([second], np.float32))[0, 0] == pytest.approx(expected)


@given(scenes(), scenes())
def test_iou_is_symmetric_and_bounded(first, second) -> None:
    table = iou(first[0], second[0])
    np.testing.assert_array_equal(table, iou(second[0], first[0]).T)
    assert table.shape == (len(first[0]), len(second[0]))
    assert ((table >= 0) & (table <= 1)).all()


def greedy(boxes, scores, classes, overlap: float) -> list[int]:
    """Every pair, in plain Python."""
    kept: list[int] = []
    for place in sorted(range(len(scores)), key=lambda one: (-scores[one], one)):
        rivals = [one for one in kept if classes[one] == classes[place]]
        if all(iou(boxes[[one]], boxes[[place]])[0, 0] <= overlap for one in rivals):
            kept.append(place)
    return kept


@given(scenes(), st.sampled_from([0.1, 0.3, 0.5, 0.65, 1.0]), st.integers(1, 12))
def test_suppression_keeps_what_comparing_every_pair_keeps(scene, overlap: float, most: int) -> None:
    boxes, scores, classes = scene
    found = suppress(boxes, scores, classes, overlap=overlap, most=most)
    assert found.tolist() == greedy(boxes, scores, classes, overlap)[:most]


def test_boxes_of_other_classes_are_not_suppressed() -> None:
    boxes = np.array([[0, 0, 9, 9]] * 3, np.float32)
    kept = suppress(boxes, np.array([0.5, 0.9, 0.7]), np.array([0, 1, 0]), overlap=0.5, most=9)
    assert kept.tolist() == [1, 2]


def test_the_best_box_claims_the_counterpart_and_the_next_gets_what_is_left() -> None:
    overlaps = np.array([[0.8, 0.6], [0.9, 0.0], [0.7, 0.55]])
    np.testing.assert_array_equal(claim(overlaps, np.array([0.5, 0.75, 0.95])), [[0, -1, 1], [0, -1, -1], [-1] * 3])


@given(scenes(), scenes())
def test_no_counterpart_is_claimed_twice(first, second) -> None:
    for row in claim(iou(first[0], second[0]), np.array([0.25, 0.5])):
        taken = row[row >= 0]
        assert len(set(taken.tolist())) == len(taken)
