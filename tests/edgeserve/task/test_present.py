from __future__ import annotations

import json

import numpy as np
import pytest

from edgeserve.contracts.task import Boxes, Kind, Task
from edgeserve.task.answers import Detections
from edgeserve.task.prepare import Geometry
from edgeserve.task.present import describe, describe_truth, present

PETS = Task(labels=("cat", "dog", "owl"))
DETECTOR = Task(kind=Kind.DETECTION, boxes=Boxes(), labels=("person", "dog"))
FOUND = Detections(
    boxes=np.array([[8, 4, 24, 20], [0, 0, 4, 4], [1, 1, 3, 3], [9, 9, 9, 9]], np.float32),
    scores=np.array([0.75, 0.5, 0.25, 0.125], np.float32),
    classes=np.array([0, 1, 0, 1]),
)


def test_a_class_has_label_index_and_score_best_first() -> None:
    assert present(PETS, np.array([0.25, 0.5, 0.125]), None) == {
        "classes": [
            {"label": "dog", "index": 1, "score": 0.5},
            {"label": "cat", "index": 0, "score": 0.25},
            {"label": "owl", "index": 2, "score": 0.125},
        ]
    }


def test_five_classes_are_shown_and_those_without_a_name_by_number() -> None:
    shown = present(PETS, np.arange(9.0), None)["classes"]
    assert [one["label"] for one in shown] == ["class 8", "class 7", "class 6", "class 5", "class 4"]


def test_logits_are_shown_as_probabilities() -> None:
    shown = present(Task(softmax=True), np.array([0.0, np.log(3)]), None)["classes"]
    assert [one["score"] for one in shown] == pytest.approx([0.75, 0.25])


def test_boxes_are_shown_from_the_tasks_score_on_in_pixels_of_the_picture() -> None:
    geometry = Geometry(picture=(100, 100), scale=(0.5, 0.25), offset=(4.0, 0.0))
    shown = present(DETECTOR, FOUND, geometry)["boxes"]
    assert shown[0] == {"label": "person", "index": 0, "score": 0.75, "box": [8.0, 16.0, 40.0, 80.0]}
    assert [one["label"] for one in shown] == ["person", "dog", "person"]
    assert present(DETECTOR, FOUND, None)["boxes"][0]["box"] == [8, 4, 24, 20]


@pytest.mark.parametrize(
    ("kind", "answer", "expected"),
    [
        (Kind.EMBEDDING, np.array([1.0, np.nan]), {"vector": [1.0, None]}),
        (Kind.REGRESSION, np.array([2.5]), {"values": [2.5]}),
        (Kind.REGRESSION, np.float64(2.5), {"values": 2.5}),
        (Kind.TENSORS, {"y": np.array([[1.0], [np.inf]])}, {"outputs": {"y": [[1.0], [None]]}}),
        (Kind.CLASSIFICATION, np.array([np.nan, 1.0]), {"classes": []}),
    ],
)
def test_other_answers_are_plain_json(kind: Kind, answer, expected) -> None:
    shown = present(Task(kind=kind), answer, None)
    assert shown == expected
    json.dumps(shown, allow_nan=False)


def test_what_the_users_function_returned_becomes_json() -> None:
    answer = {"at": (np.int64(3), np.float32(0.5)), 7: [np.array([1, 2])], "none": None, "nan": float("nan")}
    shown = present(Task(kind=Kind.CUSTOM, function="m:f"), answer, None)
    assert json.loads(json.dumps(shown, allow_nan=False)) == {
        "answer": {"at": [3, 0.5], "7": [[1, 2]], "none": None, "nan": None}
    }


@pytest.mark.parametrize(
    ("task", "answer", "words"),
    [
        (PETS, np.array([0.1, 0.93, 0.2]), "dog 0.93"),
        (PETS, np.array([np.nan, 0.93, 0.2]), "no class: a score is NaN"),
        (Task(softmax=True), np.array([0.0, np.log(3)]), "class 1 0.75"),
        (DETECTOR, FOUND, "3 boxes: 2 person, 1 dog"),
        (DETECTOR, FOUND.above(0.7), "1 box: 1 person"),
        (DETECTOR, FOUND.above(0.9), "0 boxes"),
        (Task(kind=Kind.REGRESSION), np.array([0.53]), "0.53"),
        (Task(kind=Kind.EMBEDDING), np.arange(9) / 3, "[0, 0.3333, 0.6667, 1, 1.333, ...]"),
        (Task(kind=Kind.TENSORS), {"y": np.array([1.0, 2.0]), "z": np.array(3.0)}, "y [1, 2], z 3"),
        (Task(kind=Kind.CUSTOM, function="m:f"), "x" * 99, "x" * 57 + "..."),
    ],
)
def test_an_answer_in_words(task: Task, answer, words: str) -> None:
    assert describe(task, answer) == words


@pytest.mark.parametrize(
    ("task", "truth", "words"),
    [
        (PETS, np.int64(1), "dog"),
        (PETS, 7, "class 7"),
        (PETS, -1, "no class"),
        (DETECTOR, FOUND, "3 boxes: 2 person, 1 dog"),
        (Task(kind=Kind.REGRESSION), np.float64(0.5), "0.5"),
    ],
)
def test_truth_in_words(task: Task, truth, words: str) -> None:
    assert describe_truth(task, truth) == words
