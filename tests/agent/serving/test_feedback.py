from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.limits import MAX_FEEDBACK_ROWS, MAX_REQUEST_ID_CHARS
from edgeserve.contracts.task import Kind, Task
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve_agent.serving.feedback import Classifier, FeedbackRing, Judgement, Verdict

SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", datatype=Datatype.FP32, shape=(-1,)),),
    outputs=(
        TensorSpec(name="extra", datatype=Datatype.FP32, shape=(-1, 2)),
        TensorSpec(name="scores", datatype=Datatype.FP32, shape=(-1, 3)),
    ),
)
CLASSIFIER = Classifier(Task(output="scores", labels=("cat", "dog", "owl")), SIGNATURE)


def scores(*classes: int):
    return {"extra": np.zeros((len(classes), 2)), "scores": np.eye(3, dtype=np.float32)[list(classes)]}


def ring_with(*ids: str, size: int = 10) -> FeedbackRing[str]:
    ring: FeedbackRing[str] = FeedbackRing(size)
    for request_id in ids:
        ring.remember(request_id, "r1", CLASSIFIER, scores(1))
    return ring


@pytest.mark.parametrize(("label", "correct"), [(1, 1), (0, 0), ("dog", 1), ("owl", 0), ([1], 1)])
def test_a_label_is_compared_with_the_prediction_of_the_tasks_output(label, correct: int):
    assert ring_with("a").judge([("a", label)]) == [Judgement(Verdict.COUNTED, "r1", 1, correct)]


def test_each_row_of_a_batch_is_judged():
    ring: FeedbackRing[str] = FeedbackRing()
    ring.remember("a", "r1", CLASSIFIER, scores(0, 1, 2, 2))
    assert ring.judge([("a", [0, "dog", 1, 2])]) == [Judgement(Verdict.COUNTED, "r1", 4, 3)]


def test_the_same_feedback_is_never_counted_twice():
    ring = ring_with("a")
    assert [one.verdict for one in ring.judge([("a", 1), ("a", 1)])] == [Verdict.COUNTED, Verdict.DUPLICATE]
    assert [one.verdict for one in ring.judge([("a", 1)])] == [Verdict.DUPLICATE]


def test_an_id_that_comes_again_stands_for_its_latest_answer():
    ring = ring_with("a")
    ring.judge([("a", 1)])
    ring.remember("a", "r2", CLASSIFIER, scores(2))
    assert ring.judge([("a", 2)]) == [Judgement(Verdict.COUNTED, "r2", 1, 1)]


@pytest.mark.parametrize(
    ("label", "says"),
    [
        (3, "0 to 2"),
        (-1, "0 to 2"),
        ("bird", "not one of the task's 3 labels"),
        ([1, 1], "2 labels"),
        ([], "0 labels"),
    ],
)
def test_a_label_that_is_none_refuses_the_whole_batch(label, says: str):
    ring = ring_with("a", "b")
    with pytest.raises(InputError) as caught:
        ring.judge([("a", 1), ("b", label)])
    assert says in caught.value.message
    assert [one.verdict for one in ring.judge([("a", 1), ("b", 1)])] == [Verdict.COUNTED] * 2


def test_a_task_that_scores_an_output_the_model_lacks_is_refused():
    with pytest.raises(InputError, match="'nope' is not one of the model's"):
        Classifier(Task(output="nope"), SIGNATURE)


@pytest.mark.parametrize(
    ("request_id", "outputs"),
    [
        pytest.param("", scores(1), id="no id"),
        pytest.param("a" * (MAX_REQUEST_ID_CHARS + 1), scores(1), id="long id"),
        pytest.param("a", scores(*[1] * (MAX_FEEDBACK_ROWS + 1)), id="too many rows"),
        pytest.param("a", {"extra": np.zeros((0, 2)), "scores": np.zeros((0, 3))}, id="no rows"),
        pytest.param("a", {"extra": np.zeros((1, 2)), "scores": np.zeros((1, 2, 3))}, id="not scores of rows"),
    ],
)
def test_what_cannot_be_judged_is_not_remembered(request_id: str, outputs):
    ring: FeedbackRing[str] = FeedbackRing()
    ring.remember(request_id, "r1", CLASSIFIER, outputs)
    assert ring.judge([(request_id, 1)]) == [Judgement(Verdict.UNKNOWN)]


@pytest.mark.parametrize(
    ("task", "classes"),
    [(Task(output="scores", first_class=1), 2), (Task(output="scores", kind=Kind.EMBEDDING), 0)],
    ids=["background", "no classes"],
)
def test_only_what_the_task_calls_a_class_is_one(task: Task, classes: int):
    predicted, count = Classifier(task, SIGNATURE).predict(scores(0, 1, 2))
    assert (len(predicted), count) == (3 if classes else 0, classes)
    assert predicted == ([0, 0, 1] if classes else [])


def test_a_score_that_is_not_a_number_is_never_right():
    ring: FeedbackRing[str] = FeedbackRing()
    ring.remember("a", "r1", CLASSIFIER, {"extra": np.zeros((1, 2)), "scores": np.full((1, 3), np.nan)})
    assert [ring.judge([("a", 0)])[0].correct] == [0]


@given(st.lists(st.sampled_from("abcdefgh"), max_size=40), st.integers(1, 4))
def test_the_ring_knows_the_latest_ids_and_no_more(ids: list[str], size: int):
    ring = ring_with(*ids, size=size)
    latest = list(dict.fromkeys(reversed(ids)))[:size]
    known = {one for one in "abcdefgh" if ring.judge([(one, 1)])[0].verdict is Verdict.COUNTED}
    assert known == set(latest)
