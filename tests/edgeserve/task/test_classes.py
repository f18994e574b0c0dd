from __future__ import annotations

import numpy as np
import pytest

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.task import Task
from edgeserve.task.classes import INVALID, predictions, scores, softmax

OUTPUTS = {"logits": np.array([[1, 3, 2], [9, 0, 0]], np.float32), "embedding": np.zeros((2, 64), np.float32)}


def test_the_first_output_is_scored_unless_the_task_names_another() -> None:
    np.testing.assert_array_equal(predictions(Task(), OUTPUTS), [1, 0])
    assert scores(Task(output="embedding"), OUTPUTS).shape == (2, 64)


def test_axes_of_one_between_rows_and_classes_do_not_matter() -> None:
    np.testing.assert_array_equal(predictions(Task(), {"y": OUTPUTS["logits"].reshape(2, 1, 1, 3)}), [1, 0])


def test_a_background_class_is_never_the_answer_and_classes_are_counted_without_it() -> None:
    np.testing.assert_array_equal(predictions(Task(first_class=1), OUTPUTS), [0, 0])
    assert scores(Task(first_class=1), OUTPUTS).shape == (2, 2)


@pytest.mark.parametrize(
    ("outputs", "task"),
    [
        ({"y": np.zeros(2)}, Task()),
        ({"y": np.zeros((2, 1))}, Task()),
        ({"y": np.zeros((2, 2))}, Task(first_class=1)),
        ({"y": np.zeros((2, 4, 3))}, Task()),
        ({"y": np.zeros(())}, Task()),
        ({"y": np.array([["cat", "dog"]])}, Task()),
        ({"y": np.zeros((2, 3))}, Task(output="other")),
        ({}, Task()),
    ],
    ids=["no classes", "one class", "background", "many scores a row", "scalar", "texts", "no such output", "none"],
)
def test_what_is_no_classifier_is_refused(outputs, task: Task) -> None:
    with pytest.raises(InputError) as caught:
        predictions(task, outputs)
    assert caught.value.hint


def test_a_row_with_nan_has_no_class() -> None:
    table = {"y": np.array([[np.nan, 1.0], [0.0, 1.0]])}
    np.testing.assert_array_equal(predictions(Task(), table), [INVALID, 1])


def test_infinite_scores_are_scores() -> None:
    np.testing.assert_array_equal(predictions(Task(), {"y": np.array([[-np.inf, 1.0], [np.inf, 1.0]])}), [1, 0])


@pytest.mark.parametrize(
    ("logits", "expected"),
    [
        ([0.0, 0.0], [0.5, 0.5]),
        ([1000.0, 0.0], [1.0, 0.0]),
        ([-np.inf, 0.0], [0.0, 1.0]),
        ([np.inf, 0.0, np.inf], [0.5, 0.0, 0.5]),
        ([np.log(3.0), 0.0], [0.75, 0.25]),
    ],
)
def test_softmax_gives_probabilities_of_any_logits(logits: list[float], expected: list[float]) -> None:
    np.testing.assert_allclose(softmax(np.array(logits)), expected)
