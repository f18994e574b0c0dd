from __future__ import annotations

import numpy as np
import pytest

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.task import Task
from edgeserve.task import INVALID, correct, predictions, scores

OUTPUTS = {"logits": np.array([[1, 3, 2], [9, 0, 0]], np.float32), "embedding": np.zeros((2, 64), np.float32)}


def test_the_first_output_is_scored_unless_the_task_names_another() -> None:
    np.testing.assert_array_equal(predictions(Task(), OUTPUTS), [1, 0])
    assert scores(Task(output="embedding"), OUTPUTS).shape == (2, 64)


def test_axes_of_one_between_rows_and_classes_do_not_matter() -> None:
    np.testing.assert_array_equal(predictions(Task(), {"y": OUTPUTS["logits"].reshape(2, 1, 1, 3)}), [1, 0])


@pytest.mark.parametrize(
    ("shape", "output"),
    [((2,), ""), ((2, 1), ""), ((2, 4, 3), ""), ((), ""), ((2, 3), "other")],
    ids=["no classes", "one class", "many scores a row", "scalar", "no such output"],
)
def test_what_is_no_classifier_is_refused(shape: tuple[int, ...], output: str) -> None:
    with pytest.raises(InputError):
        predictions(Task(output=output), {"y": np.zeros(shape)})


def test_a_row_with_nan_agrees_with_nothing_not_even_itself() -> None:
    table = {"y": np.array([[np.nan, 1.0], [0.0, 1.0]])}
    predicted = predictions(Task(), table)
    np.testing.assert_array_equal(predicted, [INVALID, 1])
    np.testing.assert_array_equal(correct(predicted, predicted), [False, True])


def test_infinite_scores_are_scores() -> None:
    np.testing.assert_array_equal(predictions(Task(), {"y": np.array([[-np.inf, 1.0], [np.inf, 1.0]])}), [1, 0])
