from __future__ import annotations

import sys
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.task import METRICS, Boxes, Kind, Metric, Task
from edgeserve.task.answers import Detections
from edgeserve.task.closeness import closeness
from edgeserve.task.score import agreement, as_truth, score, spread

ROWS = 12
TASKS = {
    Kind.CLASSIFICATION: Task(),
    Kind.KEYWORDS: Task(kind=Kind.KEYWORDS),
    Kind.DETECTION: Task(kind=Kind.DETECTION, boxes=Boxes()),
    Kind.EMBEDDING: Task(kind=Kind.EMBEDDING),
    Kind.REGRESSION: Task(kind=Kind.REGRESSION),
    Kind.TENSORS: Task(kind=Kind.TENSORS),
    Kind.CUSTOM: Task(kind=Kind.CUSTOM, function="m:f"),
}
JUDGED = [(kind, metric) for kind, metrics in METRICS.items() for metric in metrics]
DETECTOR = TASKS[Kind.DETECTION]


def boxes(*found: tuple[float, float, int]) -> Detections:
    """Boxes 10 pixels wide, one a (place, score, class)."""
    return Detections(
        boxes=np.array([[place, 0, place + 10, 10] for place, _, _ in found], np.float32).reshape(-1, 4),
        scores=np.array([share for _, share, _ in found], np.float32),
        classes=np.array([number for _, _, number in found], np.int64),
    )


def answers_of(kind: Kind, seed: int) -> list:
    random = np.random.default_rng(seed)
    if kind is Kind.DETECTION:
        return [
            boxes(
                *(
                    (40 * place + random.uniform(0, 4), random.uniform(0.3, 0.9), random.integers(0, 3))
                    for place in range(row % 4)
                )
            )
            for row in range(ROWS)
        ]
    if kind is Kind.TENSORS:
        return [{"y": random.standard_normal((2, 3)), "z": random.standard_normal(4)} for _ in range(ROWS)]
    if kind is Kind.CUSTOM:
        return [{"name": str(random.choice(["a", "b"])), "size": float(random.uniform(1, 2))} for _ in range(ROWS)]
    return list(random.standard_normal((ROWS, 8)))


@pytest.mark.parametrize(("kind", "metric"), JUDGED)
def test_truth_scores_one_against_itself_by_every_metric(kind: Kind, metric: Metric) -> None:
    answers = answers_of(kind, 1)
    found = score(TASKS[kind], metric.value, answers, as_truth(TASKS[kind], answers))
    assert found.value == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize(("kind", "metric"), JUDGED)
@given(seed=st.integers(0, 99))
def test_every_metric_is_the_same_over_all_rows_and_below_one_for_other_answers(kind, metric, seed: int) -> None:
    answers, truth = answers_of(kind, seed), as_truth(TASKS[kind], answers_of(kind, seed + 1000))
    found = score(TASKS[kind], metric.value, answers, truth)
    assert found.at(np.arange(ROWS)) == pytest.approx(found.value, abs=1e-12)
    assert found.value < 1 or metric is Metric.TOP5
    if found.per_row is not None:
        assert found.per_row.shape == (ROWS,)
        assert found.per_row.mean() == pytest.approx(found.value, abs=1e-12)
    assert (found.per_row is None) == (metric in (Metric.MAP, Metric.SQNR))


@pytest.mark.parametrize(("kind", "metric"), JUDGED)
def test_over_some_rows_a_metric_is_what_it_is_without_the_others(kind: Kind, metric: Metric) -> None:
    # The scale of regression is a property of all the truth: fixed here, so that both sides have the same.
    task = Task(kind=kind, scale=2.0) if kind is Kind.REGRESSION else TASKS[kind]
    answers, truth = answers_of(kind, 5), as_truth(task, answers_of(kind, 6))
    rows = np.array([3, 3, 7, 1])
    some = truth[rows] if isinstance(truth, np.ndarray) else [truth[row] for row in rows]
    alone = score(task, metric.value, [answers[row] for row in rows], some)
    assert score(task, metric.value, answers, truth).at(rows) == pytest.approx(alone.value, abs=1e-12)


def test_top_1_and_top_5_count_labels() -> None:
    answers = list(np.array([[3.0, 2, 1, 0, -1, -2, -3]] * 4))
    truth = np.array([0, 4, 5, 6])
    assert score(Task(), "top1", answers, truth).per_row.tolist() == [1, 0, 0, 0]
    assert score(Task(), "top5", answers, truth).per_row.tolist() == [1, 1, 0, 0]


def test_of_equal_scores_the_first_wins_as_when_it_serves() -> None:
    answers = [np.zeros(7)] * 7
    assert score(Task(), "top1", answers, np.arange(7)).per_row.tolist() == [1, 0, 0, 0, 0, 0, 0]
    assert score(Task(), "top5", answers, np.arange(7)).per_row.tolist() == [1, 1, 1, 1, 1, 0, 0]


@pytest.mark.parametrize("metric", ["top1", "top5", "agreement"])
def test_a_score_that_is_not_a_number_is_never_right(metric: str) -> None:
    answers = [np.array([np.nan, 1.0]), np.array([0.0, 1.0])]
    assert score(Task(), metric, answers, as_truth(Task(), answers)).per_row.tolist() == [0, 1]


@pytest.mark.parametrize("labels", [[0, 7], [0, -2], [0, 1, 2], [0.0, 1.0], [[0, 1]]])
def test_labels_that_are_no_classes_of_the_model_are_refused(labels) -> None:
    with pytest.raises(InputError, match=r"class numbers from 0 to 6|cannot be judged"):
        score(Task(), "top1", [np.zeros(7)] * 2, np.array(labels))


@pytest.mark.parametrize(
    ("kind", "metric"), [(Kind.CLASSIFICATION, "map"), (Kind.DETECTION, "top1"), (Kind.CUSTOM, "x")]
)
def test_a_metric_of_another_kind_is_refused(kind: Kind, metric: str) -> None:
    answers = answers_of(kind, 0)
    with pytest.raises(InputError, match="does not judge"):
        score(TASKS[kind], metric, answers, as_truth(TASKS[kind], answers))


def test_nothing_cannot_be_judged() -> None:
    with pytest.raises(InputError, match="0 answers"):
        score(Task(), "top1", [], np.zeros(0, np.int64))


BOXED = {
    "both empty": ([], [], 1.0),
    "one lost": ([], [(0, 0.9, 0)], 0.0),
    "one extra": ([(0, 0.9, 0), (50, 0.9, 0)], [(0, 0.9, 0)], 2 / 3),
    "another class": ([(0, 0.9, 1)], [(0, 0.9, 0)], 0.0),
    "small jitter": ([(1, 0.8, 0)], [(0, 0.9, 0)], 1.0),
    "far": ([(4, 0.9, 0)], [(0, 0.9, 0)], 0.0),
    "just below the score": ([(0, 0.23, 0)], [(0, 0.27, 0)], 1.0),
    "just above the score": ([(0, 0.27, 0)], [(0, 0.23, 0)], 1.0),
    "fell from high": ([(0, 0.23, 0)], [(0, 0.9, 0)], 0.0),
    "both below": ([(0, 0.1, 0)], [(90, 0.2, 0)], 1.0),
    "one for two": ([(0, 0.9, 0)], [(0, 0.9, 0), (1, 0.8, 0)], 2 / 3),
}


@pytest.mark.parametrize(("found", "expected", "share"), BOXED.values(), ids=BOXED)
def test_boxes_agree_by_their_counterparts(found, expected, share: float) -> None:
    ours, theirs = [boxes(*found)], [boxes(*expected)]
    assert agreement(DETECTOR, ours, theirs)[0] == pytest.approx(share)
    assert agreement(DETECTOR, theirs, ours)[0] == pytest.approx(share)
    assert score(DETECTOR, "iou", ours, as_truth(DETECTOR, theirs)).value == pytest.approx(share)


def test_a_labelled_box_is_found_only_by_one_that_is_shown() -> None:
    labelled = [boxes((0, 1.0, 0))]
    assert score(DETECTOR, "iou", [boxes((0, 0.26, 0))], labelled).value == 1
    assert score(DETECTOR, "iou", [boxes((0, 0.24, 0))], labelled).value == 0


def test_mean_average_precision_holds_against_what_the_float_model_shows_only() -> None:
    answers = [boxes((0, 0.9, 0), (50, 0.2, 0))]
    assert score(DETECTOR, "map", [boxes((0, 0.9, 0))], as_truth(DETECTOR, answers)).value == pytest.approx(1.0)


def test_boxes_are_judged_by_boxes() -> None:
    with pytest.raises(InputError, match="boxes for every row"):
        score(DETECTOR, "map", [boxes()], [3])


@pytest.mark.parametrize(
    ("found", "expected", "share"),
    [
        ([3, 4], [3, 4], 1),
        ([6, 8], [3, 4], 1),
        ([3, 0], [3, 4], 0.6),
        ([4, -3], [3, 4], 0),
        ([-3, -4], [3, 4], 0),
        ([0, 0], [3, 4], 0),
        ([0, 0], [0, 0], 1),
        ([np.nan, 1], [3, 4], 0),
        ([np.inf, 1], [3, 4], 0),
    ],
)
def test_vectors_agree_by_their_direction(found, expected, share: float) -> None:
    pair = [np.array(found, float)], [np.array(expected, float)]
    assert agreement(TASKS[Kind.EMBEDDING], *pair)[0] == pytest.approx(share)


def test_an_opposite_vector_scores_minus_one() -> None:
    assert score(TASKS[Kind.EMBEDDING], "cosine", [np.array([-2.0, 0])], np.array([[1.0, 0]])).value == -1


def test_errors_count_in_units_of_the_scale() -> None:
    answers, truth = [np.array([1.0]), np.array([9.0])], np.array([2.0, 4.0])
    task = Task(kind=Kind.REGRESSION, scale=2)
    np.testing.assert_allclose(score(task, "mae", answers, truth).per_row, [0.5, -1.5])
    np.testing.assert_allclose(score(task, "agreement", answers, truth).per_row, [0.5, 0])


@pytest.mark.parametrize(
    ("truth", "expected"),
    [([1.0, 2, 9], 8 / 3), ([[0.0, 100], [2, 100]], 0.5), ([5.0, 5], 0), ([1.0, np.nan, 3], 1), ([np.inf], 0)],
    ids=["one number", "each column by itself", "constant", "NaN", "nothing finite"],
)
def test_spread_is_the_mean_deviation_from_the_median(truth, expected: float) -> None:
    assert spread(np.array(truth)) == pytest.approx(expected)


@pytest.mark.parametrize(("truth", "found", "share"), [([4.0, 4.0], [4.0, 3.0], 0.875), ([0.0, 0.0], [0.0, 0.5], 0.75)])
def test_truth_without_spread_is_judged_by_its_size(truth, found, share: float) -> None:
    assert score(Task(kind=Kind.REGRESSION), "mae", [np.array(one) for one in found], np.array(truth)).value == share


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_number_that_is_none_is_wholly_wrong(bad: float) -> None:
    task = Task(kind=Kind.REGRESSION, scale=10)
    assert score(task, "mae", [np.array(bad), np.array(1.0)], np.array([1.0, 1.0])).per_row.tolist() == [0, 1]


@pytest.mark.parametrize("kind", [Kind.REGRESSION, Kind.EMBEDDING])
def test_labels_of_another_size_are_refused(kind: Kind) -> None:
    with pytest.raises(InputError, match="answers 2 numbers a row, the labels have 3"):
        score(Task(kind=kind), METRICS[kind][0].value, [np.zeros(2)], np.zeros((1, 3)))


def test_tensors_score_by_the_worst_output() -> None:
    task = TASKS[Kind.TENSORS]
    truth = [{"y": np.array([10.0, 0]), "z": np.array([2.0])}]
    found = [{"y": np.array([10.0, 1]), "z": np.array([1.0])}]
    assert agreement(task, found, truth)[0] == pytest.approx(0.75)
    assert score(task, "sqnr", found, truth).value == pytest.approx(0.75)
    assert score(task, "sqnr", [{"y": truth[0]["y"], "z": np.array([9.0])}], truth).value == 0


def test_a_row_without_signal_does_not_decide_the_noise_of_all() -> None:
    task = TASKS[Kind.TENSORS]
    truth, found = (
        [{"y": np.zeros(2)}, {"y": np.array([10.0, 0])}],
        [{"y": np.array([0.1, 0])}, {"y": np.array([10.0, 0])}],
    )
    assert agreement(task, found, truth).tolist() == [0, 1]
    assert score(task, "sqnr", found, truth).value == pytest.approx(0.9999)


@pytest.mark.parametrize(("bad", "share"), [(np.inf, 1.0), (-np.inf, 0.0), (1.0, 0.0), (np.nan, 0.0), (1e300, 0.0)])
def test_an_infinity_is_met_by_infinity_only(bad: float, share: float) -> None:
    assert agreement(TASKS[Kind.TENSORS], [{"y": np.array([bad, 1])}], [{"y": np.array([np.inf, 1])}])[0] == share


@pytest.mark.parametrize(
    ("found", "expected"), [({"y": np.zeros(2)}, {"y": np.zeros(3)}), ({"x": np.zeros(2)}, {"y": np.zeros(2)})]
)
def test_tensors_of_other_names_or_shapes_are_refused(found, expected) -> None:
    with pytest.raises(InputError, match="'y' should have shape"):
        agreement(TASKS[Kind.TENSORS], [found], [expected])


def test_labels_of_the_only_output_need_no_name() -> None:
    truth = np.array([[1.0, 2], [3, 4]])
    assert score(TASKS[Kind.TENSORS], "sqnr", [{"y": one} for one in truth], truth).value == 1
    with pytest.raises(InputError, match="2 outputs must name them"):
        score(TASKS[Kind.TENSORS], "sqnr", [{"y": one, "z": one} for one in truth], truth)


@pytest.mark.parametrize(
    ("found", "expected", "share"),
    [
        ("cat", "cat", 1.0),
        ("cat", "dog", 0.0),
        (3, 4, 0.0),
        (3, 3, 1.0),
        (True, 1.0, 1.0),
        (1.0, 0.75, 0.75),
        (1.0, -1.0, 0.0),
        (np.float32(1), 0.75, 0.75),
        (0.0, 0.0, 1.0),
        (np.nan, np.nan, 0.0),
        (np.inf, np.inf, 1.0),
        ([100.0, 0.1], [100.0, -0.1], 1 - 0.2 / 100.1),
        (np.array([1.0, 2.0]), [1.0, 2.0], 1.0),
        (np.array([1, 2]), np.array([1, 3]), 0.5),
        ([1.0], [1.0, 2.0], 0.0),
        ({"a": 1, "b": "x"}, {"a": 1, "b": "y"}, 0.5),
        ({"a": 1}, {"b": 1}, 0.0),
        ([], [], 1.0),
        ({}, {}, 1.0),
        (None, None, 1.0),
        ([["a", 1.0]], [["a", 0.5]], 0.75),
        ([10**400, 0.5], [1, 0.5], 0.0),
        ([-(10**400), 0.5], [10**400, 0.5], 0.0),
    ],
)
def test_answers_of_the_users_function_are_as_close_as_their_parts(found, expected, share: float) -> None:
    assert closeness(found, expected) == pytest.approx(share)
    assert closeness(expected, found) == pytest.approx(share)


@pytest.fixture
def own_metric(tmp_path, monkeypatch):
    name = "edgeserve_test_metric"
    (tmp_path / f"{name}.py").write_text(
        "def share(answers, truth):\n    return sum(a.argmax() == t for a, t in zip(answers, truth)) / len(truth)\n"
        "def nan(answers, truth):\n    return float('nan')\n"
        "def text(answers, truth):\n    return 'good'\n",
        encoding="ascii",
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    sys.modules.pop(name, None)


def test_the_users_metric_is_called_for_any_choice_of_rows(own_metric: str) -> None:
    answers, truth = list(np.eye(3)), np.array([0, 1, 0])
    found = score(Task(), f"{own_metric}:share", answers, truth)
    assert (found.value, found.per_row) == (pytest.approx(2 / 3), None)
    assert found.at(np.array([2, 2, 2, 0])) == 0.25


@pytest.mark.parametrize("function", ["nan", "text"])
def test_a_metric_that_gives_no_number_is_refused(own_metric: str, function: str) -> None:
    with pytest.raises(InputError, match=f"{function} returned"):
        score(Task(), f"{own_metric}:{function}", [np.zeros(2)], np.zeros(1, np.int64))


def test_resampling_mean_average_precision_of_many_pictures_takes_seconds() -> None:
    random = np.random.default_rng(0)
    truth = [boxes(*((40 * place, 1.0, place) for place in range(7))) for _ in range(1000)]
    answers = [
        boxes(*((40 * (place % 20) + random.uniform(0, 4), random.uniform(), place % 7) for place in range(60)))
        for _ in truth
    ]
    found = score(DETECTOR, "map", answers, truth)
    began = time.process_time()
    for _ in range(200):
        found.at(random.integers(0, len(truth), len(truth)))
    assert time.process_time() - began < 10
