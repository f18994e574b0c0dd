from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.limits import DETECTION_CANDIDATES, DETECTION_ROWS
from edgeserve.contracts.task import Boxes, ImageInput, Kind, Task
from edgeserve.task.detection import detect

HEIGHT, WIDTH = 32, 64
STRIDES = (8, 16)
CELLS = 4 * 8 + 2 * 4
IMAGE = (ImageInput(size=(HEIGHT, WIDTH)),)


def task(*, sized: bool = True, **settings) -> Task:
    boxes = Boxes(**{"strides": STRIDES, **settings})
    return Task(kind=Kind.DETECTION, boxes=boxes, inputs=IMAGE if sized else ())


def logit(share: float) -> float:
    return float(np.log(share / (1 - share)))


def row(*numbers: float) -> dict[str, np.ndarray]:
    return {"y": np.array([[numbers]], np.float32)}


def in_cell(cell: int, numbers: list[float]) -> np.ndarray:
    """One picture whose other cells hold nothing."""
    table = np.zeros((1, CELLS, len(numbers)), np.float32)
    table[0, cell] = numbers
    return table


# Each says in its own layout: one box of class 1, score 0.8, from (8, 4) to (24, 20).
SAME = {
    "grid": (
        {"layout": "grid"},
        # Cell (1, 1) of stride 8 lies at (8, 8): centre (16, 12) is offset (1, 0.5), 16 pixels are 2 cells.
        {"y": in_cell(9, [1, 0.5, np.log(2), np.log(2), 0.8, 0, 1])},
    ),
    "grid, second level, logits": (
        {"layout": "grid", "logits": True, "score": 0.7},
        {"y": np.where(in_cell(32, [1] * 7) > 0, [1, 0.75, 0, 0, logit(0.8), -99, 99], [0, 0, 0, 0, -99, -99, -99])},
    ),
    "decoded": ({"layout": "decoded"}, row(16, 12, 16, 16, 0.8, 0, 1)),
    "decoded, corners": ({"layout": "decoded", "format": "xyxy"}, row(8, 4, 24, 20, 1, 0, 0.8)),
    "decoded, normalised": ({"layout": "decoded", "normalised": True}, row(0.25, 0.375, 0.25, 0.5, 0.8, 0, 1)),
    "channels first": ({"layout": "channels-first"}, {"y": np.array([[[16], [12], [16], [16], [0.1], [0.8]]])}),
    "end to end": ({"layout": "end-to-end"}, row(8, 4, 24, 20, 0.8, 1)),
    "end to end, y first": ({"layout": "end-to-end", "format": "yxyx", "background": True}, row(4, 8, 20, 24, 0.8, 2)),
    "distances": ({"layout": "distances"}, {"y": in_cell(9, [0.5, 1, 1.5, 1, 0, 0.8])}),
    "distances, channels first": (
        {"layout": "distances"},
        {"y": in_cell(9, [0.5, 1, 1.5, 1, 0, 0.8]).transpose(0, 2, 1)},
    ),
    "distances, bins": (
        # Half of the weight on bin 0 and half on 1 is 0.5; all of it on 1 is 1; on 1 and 2 is 1.5.
        {"layout": "distances", "bins": 3},
        {"y": in_cell(9, [0, 0, -99, -99, 0, -99, -99, 0, 0, -99, 0, -99, 0, 0.8])},
    ),
    "distances, two outputs": (
        {"layout": "distances", "scores": "s", "logits": True},
        {"y": in_cell(9, [0.5, 1, 1.5, 1]), "s": np.where(in_cell(9, [1, 1]) > 0, [-99, logit(0.8)], -99)},
    ),
    "split": ({"layout": "split", "scores": "s"}, {"y": np.array([[[16, 12, 16, 16]]]), "s": np.array([[[0, 0.8]]])}),
    "split, SSD": (
        {"layout": "split", "scores": "s", "format": "yxyx", "normalised": True, "background": True},
        {"y": np.array([[[[4 / 32, 8 / 64, 20 / 32, 24 / 64]]]]), "s": np.array([[[0.9, 0, 0.8]]])},
    ),
    "split, left and top": (
        {"layout": "split", "scores": "s", "format": "xywh", "output": "b"},
        {"s": np.array([[[0, 0.8]]]), "b": np.array([[[8, 4, 16, 16]]])},
    ),
    "split, TensorFlow's four outputs": (
        {"layout": "split", "format": "yxyx", "normalised": True, "output": "b", "scores": "s", "classes": "c"},
        {
            "n": np.array([1.0]),
            "b": np.array([[[4 / 32, 8 / 64, 20 / 32, 24 / 64], [0, 0, 0, 0]]]),
            "c": np.array([[1.0, 0.0]]),
            "s": np.array([[0.8, 0.0]]),
        },
    ),
    "split, classes from 1 on": (
        {"layout": "split", "format": "xyxy", "scores": "s", "classes": "c", "background": True, "logits": True},
        {"y": np.array([[[8, 4, 24, 20]]]), "c": np.array([[2]]), "s": np.array([[logit(0.8)]])},
    ),
}


@pytest.mark.parametrize(("settings", "outputs"), SAME.values(), ids=SAME)
def test_every_layout_finds_the_same_box(settings, outputs) -> None:
    (found,) = detect(task(**settings), outputs)
    np.testing.assert_allclose(found.boxes, [[8, 4, 24, 20]], atol=1e-4)
    np.testing.assert_allclose(found.scores, [0.8], rtol=1e-5)
    np.testing.assert_array_equal(found.classes, [1])
    assert (found.boxes.dtype, found.scores.dtype, found.classes.dtype) == (np.float32, np.float32, np.int64)


def test_scores_of_one_class_need_no_axis_of_their_own() -> None:
    outputs = {"y": np.array([[[8, 4, 24, 20]]]), "s": np.array([[0.8]])}
    (found,) = detect(task(layout="split", scores="s", format="xyxy"), outputs)
    np.testing.assert_array_equal(found.classes, [0])


def test_a_box_counts_once_for_each_class_that_is_sure_enough() -> None:
    (found,) = detect(task(layout="decoded"), row(16, 12, 16, 16, 1, 0.3, 0.2, 0.6))
    assert found.classes.tolist() == [2, 0]


@pytest.mark.parametrize(("overlap", "count"), [(0.3, 1), (0.9, 2)])
def test_of_boxes_that_overlap_too_much_the_better_stays(overlap: float, count: int) -> None:
    table = np.array([[[0, 0, 10, 10, 0.7, 1], [0, 0, 10, 8, 0.9, 1]]], np.float32)
    (found,) = detect(task(layout="decoded", format="xyxy", nms_iou=overlap), {"y": table})
    assert len(found) == count
    np.testing.assert_array_equal(found.boxes[0], [0, 0, 10, 8])


def test_end_to_end_boxes_may_overlap_and_come_best_first() -> None:
    table = np.array([[[0, 0, 9, 9, 0.3, 1], [0, 0, 9, 9, 0.9, 1], [0, 0, 0, 0, 0, 0]]], np.float32)
    (found,) = detect(task(layout="end-to-end"), {"y": table})
    np.testing.assert_allclose(found.scores, [0.9, 0.3])


def test_boxes_with_one_class_each_may_overlap() -> None:
    alike = {"y": np.array([[[8.0, 4, 24, 20]] * 2]), "s": np.array([[0.5, 0.8]]), "c": np.array([[1, 1]])}
    (found,) = detect(task(layout="split", format="xyxy", scores="s", classes="c"), alike)
    assert found.scores.tolist() == pytest.approx([0.8, 0.5])


def test_outputs_that_are_not_read_may_have_any_shape() -> None:
    outputs = {"count": np.zeros(1), **row(8, 4, 24, 20, 0.8, 1)}
    (found,) = detect(task(layout="end-to-end", output="y"), outputs)
    assert found.boxes.tolist() == [[8, 4, 24, 20]]


def test_no_more_boxes_are_kept_than_the_task_allows() -> None:
    table = np.zeros((1, 50, 6), np.float32)
    table[0, :, 0] = np.arange(50) * 10
    table[0, :, 2:4], table[0, :, 4], table[0, :, 5] = 5, np.linspace(0.3, 0.9, 50), 1
    (found,) = detect(task(layout="decoded", most=7), {"y": table})
    np.testing.assert_allclose(found.scores, np.linspace(0.3, 0.9, 50)[:-8:-1], rtol=1e-6)


def test_the_best_candidates_are_looked_at_when_there_are_too_many() -> None:
    count = DETECTION_CANDIDATES + 50
    table = np.zeros((1, count, 6), np.float32)
    table[0, :, 0] = np.arange(count) * 10
    table[0, :, 2:4], table[0, :, 4], table[0, :, 5] = 5, np.linspace(0.3, 0.9, count), 1
    (found,) = detect(task(layout="decoded", most=10_000), {"y": table})
    assert len(found) == DETECTION_CANDIDATES
    assert found.scores.min() == pytest.approx(table[0, 50, 4])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 2, 4, 5])
def test_what_is_not_finite_is_no_box(bad: float, place: int) -> None:
    numbers = [16, 12, 16, 16, 0.8, 1.0]
    numbers[place] = bad
    assert [len(one) for one in detect(task(layout="decoded"), row(*numbers))] == [0]


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -1, 1e30, -1e30])
def test_an_end_to_end_class_that_is_none_is_no_box(bad: float, background: bool) -> None:
    (found,) = detect(task(layout="end-to-end", background=background), row(8, 4, 24, 20, 0.8, bad))
    assert not len(found)


def test_a_size_beyond_all_numbers_is_no_box_and_no_warning() -> None:
    assert [len(one) for one in detect(task(layout="grid"), {"y": in_cell(9, [1, 1, 999, 999, 1, 1])})] == [0]


def test_pictures_are_decoded_one_as_the_other() -> None:
    table = np.random.default_rng(0).uniform(0, 1, (2 * DETECTION_ROWS + 3, 30, 8)).astype(np.float32)
    table[..., :4] *= 60
    together = detect(task(layout="decoded"), {"y": table})
    assert len(together) == len(table)
    for picture, found in enumerate(together):
        (alone,) = detect(task(layout="decoded"), {"y": table[picture : picture + 1]})
        np.testing.assert_array_equal(found.boxes, alone.boxes)
        np.testing.assert_array_equal(found.scores, alone.scores)


SCORES = arrays.arrays(np.float32, (1, 12, 3), elements=st.sampled_from([0, 0.05, 0.2, 0.3, 0.5, 0.9]))
PLACES = arrays.arrays(np.float32, (1, 12, 4), elements=st.sampled_from([1, 2, 4, 8]))


@given(PLACES, SCORES, st.sampled_from([0.05, 0.2, 0.3]), st.sampled_from([0.3, 0.5]))
def test_decoding_from_a_lower_score_on_adds_boxes_and_changes_none(places, scores, low: float, high: float) -> None:
    detector = task(layout="split", scores="s", most=10)
    outputs = {"y": places, "s": scores}
    (few,), (many,) = (detect(detector, outputs, least_score=least) for least in (high, low))
    kept = many.above(high)
    np.testing.assert_array_equal(kept.boxes, few.boxes)
    np.testing.assert_array_equal(kept.classes, few.classes)


WRONG = {
    "no size": ({"layout": "grid", "sized": False}, {"y": np.zeros((1, CELLS, 6))}, "size of the model's input"),
    "no size for shares": ({"normalised": True, "sized": False}, {"y": np.zeros((1, 3, 6))}, "normalised boxes need"),
    "other cells": ({"layout": "grid"}, {"y": np.zeros((1, CELLS + 1, 6))}, f"{CELLS}, 5"),
    "other strides": ({"layout": "distances", "strides": (8,)}, {"y": np.zeros((1, CELLS, 6))}, "strides 8"),
    "two axes": ({}, {"y": np.zeros((1, 6))}, "[rows, boxes, n]"),
    "one axis": ({}, {"y": np.zeros(6)}, "axis of rows"),
    "texts": ({}, {"y": np.full((1, 2, 6), "a")}, "[rows, boxes, n]"),
    "no scores": ({}, {"y": np.zeros((1, 3, 5))}, "with scores [1, 3, 0]"),
    "only background": ({"background": True}, {"y": np.zeros((1, 3, 6))}, "with scores [1, 3, 1]"),
    "not six": ({"layout": "end-to-end"}, {"y": np.zeros((1, 3, 7))}, "[rows, boxes, 6]"),
    "too few bins": ({"layout": "distances", "bins": 8}, {"y": np.zeros((1, CELLS, 9))}, "at least 32"),
    "not four": ({"layout": "split", "scores": "s"}, {"y": np.zeros((1, 3, 5)), "s": np.zeros((1, 3, 2))}, "4]"),
    "unlike": ({"layout": "split", "scores": "s"}, {"y": np.zeros((1, 3, 4)), "s": np.zeros((1, 2, 2))}, "[1, 2, 2]"),
    "missing scores": ({"layout": "split", "scores": "s"}, {"y": np.zeros((1, 3, 4))}, "'s'"),
    "no objectness": ({}, {"y": np.zeros((1, 3, 4))}, "at least 5 numbers a box"),
    "grid without objectness": ({"layout": "grid"}, {"y": np.zeros((1, CELLS, 4))}, "at least 5 numbers a box"),
    "three rows": (
        {"layout": "channels-first", "format": "yxyx"},
        {"y": np.zeros((1, 3, 9))},
        "at least 4 numbers a box",
    ),
    "classes of other boxes": (
        {"layout": "split", "scores": "s", "classes": "c"},
        {"y": np.zeros((1, 3, 4)), "s": np.zeros((1, 3)), "c": np.zeros((1, 2))},
        "[1, 3], one a box",
    ),
    "scores of every class beside classes": (
        {"layout": "split", "scores": "s", "classes": "c"},
        {"y": np.zeros((1, 3, 4)), "s": np.zeros((1, 3, 2)), "c": np.zeros((1, 3))},
        "one a box",
    ),
    "missing boxes": ({"output": "b"}, {"y": np.zeros((1, 3, 6))}, "'b'"),
}


@pytest.mark.parametrize(("settings", "outputs", "says"), WRONG.values(), ids=WRONG)
def test_outputs_of_another_layout_are_refused(settings, outputs, says: str) -> None:
    with pytest.raises(InputError) as caught:
        detect(task(**settings), outputs)
    assert says in caught.value.message
