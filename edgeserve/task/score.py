"""How good answers are, against the truth or against the float model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.task import METRICS, Kind, Metric, Task
from edgeserve.task.answers import Answers, Detections, Truth
from edgeserve.task.average_precision import match
from edgeserve.task.boxes import claim, iou
from edgeserve.task.classes import CLASSIFIERS, INVALID, winners
from edgeserve.task.closeness import closeness
from edgeserve.task.distance import clean_share, cosines, powers, relative_errors, spread
from edgeserve.task.functions import call_function

__all__ = ["Score", "agreement", "as_truth", "score", "spread"]

Shares = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

_MATCHED: Final = np.array([0.5])
"""IoU from which two boxes show the same object, as in PASCAL VOC."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Score:
    """A metric over rows, ready to be computed over any choice of them."""

    value: float
    per_row: Shares | None
    """float64 [rows] whose mean is `value`; None when the metric is no mean over rows, as mean average precision."""
    over: Callable[[Rows], float]
    """The metric over a multiset of rows."""
    rows: int
    """How many there are."""

    def at(self, rows: Rows) -> float:
        """The metric over rows int64 [m], each as often as it occurs: for bootstrap and paired intervals."""
        return self.over(rows)


def score(task: Task, metric: str, answers: Answers, truth: Truth) -> Score:
    """Judge answers.

    Args:
        task: Says how answers are compared.
        metric: A `Metric` of the task's kind, or `module:function`, which is called with answers and truth and returns
            a number, larger is better. It is the user's own code.
        answers: As `decode` gives them; detections with `least_score=judging_score(task)`.
        truth: One a row, at least one.

    Raises:
        InputError: The metric does not judge this kind; answers and truth do not fit; the user's function cannot be
            imported, raised, or returned no finite number.
    """
    if len(answers) != len(truth) or not len(answers):
        raise InputError(f"{len(answers)} answers cannot be judged by {len(truth)} rows of truth")
    if ":" in metric:
        return _by_function(metric, answers, truth)
    known = [entry.value for entry in METRICS[task.kind]]
    if metric not in known:
        raise InputError(
            f"metric {metric[:80]!r} does not judge {task.kind.value}",
            hint=f"use {', '.join(known)} or module:function",
        )
    if metric == Metric.MAP:
        return _mean_average_precision(task, answers, truth)
    if metric == Metric.SQNR:
        return _signal_to_noise(answers, truth)
    per_row = _PER_ROW[Metric(metric)](task, answers, truth)
    return Score(
        value=float(per_row.mean()),
        per_row=per_row,
        over=lambda rows: float(per_row[rows].mean()),
        rows=len(per_row),
    )


def agreement(task: Task, found: Answers, expected: Answers) -> Shares:
    """How far each answer is the expected one: float64 [rows], 0..1.

    Classification, keywords: 1 where the same class wins; NaN agrees with nothing. Detection: F1 of the boxes with a
    counterpart, a box near `task.boxes.score` given the benefit of the doubt; decode both sides with
    `least_score=judging_score(task)`. Embedding: the cosine. Regression: 1 - error / scale. Tensors: 1 - noise power /
    signal power of the worst output. Custom: `closeness`.

    Raises:
        InputError: The answers do not fit.
    """
    return _agreement(task, found, as_truth(task, expected))


def as_truth(task: Task, answers: Answers) -> Truth:
    """The float model's answers as truth, where there are no labels.

    Detections keep their scores and those boxes that lie a little below `task.boxes.score`, so that a box near it is
    not judged by the side on which it fell.
    """
    if task.kind in CLASSIFIERS:
        return winners(np.array(answers, np.float64))
    if task.kind in (Kind.EMBEDDING, Kind.REGRESSION):
        return np.array(answers, np.float64)
    if task.kind is Kind.DETECTION:
        return [answer.above(_least(task) / 2) for answer in _detections(answers)]
    return list(answers)


def _by_function(name: str, answers: Answers, truth: Truth) -> Score:
    def over(rows: Rows) -> float:
        chosen = truth[rows] if isinstance(truth, np.ndarray) else [truth[row] for row in rows]
        value = call_function(name, [answers[row] for row in rows], chosen)
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise InputError(f"metric {name} returned {str(value)[:80]!r}", hint="return one finite number")
        return number

    return Score(value=over(np.arange(len(answers))), per_row=None, over=over, rows=len(answers))


def _mean_average_precision(task: Task, answers: Answers, truth: Truth) -> Score:
    matches = match(_detections(answers), [one.above(_least(task)) for one in _detections(truth)])
    every = np.ones(len(answers), np.int64)
    return Score(
        value=matches.mean_average_precision(every),
        per_row=None,
        over=lambda rows: matches.mean_average_precision(np.bincount(rows, minlength=len(every))),
        rows=len(answers),
    )


def _signal_to_noise(answers: Answers, truth: Truth) -> Score:
    """Over the rows together: one without signal would decide alone otherwise. Of the worst output."""
    noise, signal = powers(answers, truth)

    def over(rows: Rows) -> float:
        return float(clean_share(noise[rows].sum(axis=0), signal[rows].sum(axis=0)).min())

    return Score(value=over(np.arange(len(answers))), per_row=None, over=over, rows=len(answers))


def _right(answers: Answers, truth: Truth, *, among: int) -> Shares:
    """1 where the true class is one of the `among` with the highest scores; of equal scores the first is higher."""
    table, wanted = np.array(answers, np.float64), np.asarray(truth)
    rows, classes = table.shape
    if wanted.shape != (rows,) or wanted.dtype.kind not in "iu" or wanted.max() >= classes or wanted.min() < INVALID:
        raise InputError(
            f"labels must be class numbers from 0 to {classes - 1}, one for each of {rows} rows",
            hint="check the labels, and first_class if the model has a background class",
        )
    its_score = table[np.arange(rows), wanted][:, None]
    earlier = np.arange(classes) < wanted[:, None]
    higher = ((table > its_score) | ((table == its_score) & earlier)).sum(axis=1)
    valid = (wanted != INVALID) & ~np.isnan(table).any(axis=1)
    return np.asarray((higher < among) & valid, np.float64)


def _matched_boxes(task: Task, answers: Answers, truth: Truth) -> Shares:
    pairs = zip(_detections(answers), _detections(truth), strict=True)
    return np.array([_f1(ours, theirs, _least(task)) for ours, theirs in pairs])


def _f1(ours: Detections, theirs: Detections, least: float) -> float:
    """F1 of the boxes of at least `least`; each needs a counterpart of `least`, or of half its own score.

    So a box of 0.27 that falls to 0.23 below a `least` of 0.25 is not lost, one that falls from 0.9 to 0.23 is.
    """
    counted = int((ours.scores >= least).sum() + (theirs.scores >= least).sum())
    return (
        (_with_counterpart(ours, theirs, least) + _with_counterpart(theirs, ours, least)) / counted if counted else 1.0
    )


def _with_counterpart(boxes: Detections, among: Detections, least: float) -> int:
    boxes = boxes.above(least)
    overlaps = iou(boxes.boxes, among.boxes)
    overlaps[boxes.classes[:, None] != among.classes] = 0.0
    overlaps[among.scores < np.minimum(least, boxes.scores / 2)[:, None]] = 0.0
    return int((claim(overlaps, _MATCHED) >= 0).sum())


def _agreement(task: Task, answers: Answers, truth: Truth) -> Shares:
    if task.kind in CLASSIFIERS:
        return _right(answers, truth, among=1)
    if task.kind is Kind.DETECTION:
        return _matched_boxes(task, answers, truth)
    if task.kind is Kind.EMBEDDING:
        return np.asarray(cosines(answers, truth).clip(0.0, 1.0))
    if task.kind is Kind.REGRESSION:
        return np.asarray(1.0 - relative_errors(answers, truth, task.scale).clip(max=1.0).mean(axis=1))
    if task.kind is Kind.TENSORS:
        return np.asarray(clean_share(*powers(answers, truth)).min(axis=1))
    return np.array([closeness(ours, theirs) for ours, theirs in zip(answers, truth, strict=True)])


_PER_ROW: Final[dict[Metric, Callable[[Task, Answers, Truth], Shares]]] = {
    Metric.TOP1: lambda _, answers, truth: _right(answers, truth, among=1),
    Metric.TOP5: lambda _, answers, truth: _right(answers, truth, among=5),
    Metric.IOU: _matched_boxes,
    Metric.MAE: lambda task, answers, truth: 1.0 - relative_errors(answers, truth, task.scale).mean(axis=1),
    Metric.COSINE: lambda _, answers, truth: cosines(answers, truth),
    Metric.AGREEMENT: _agreement,
}


def _least(task: Task) -> float:
    assert task.boxes is not None, "Task checks that detection has boxes"
    return task.boxes.score


def _detections(rows: Answers | Truth) -> list[Detections]:
    found = [row for row in rows if isinstance(row, Detections)]
    if len(found) != len(rows):
        raise InputError("a detection task is judged by boxes for every row", hint="give the labels as boxes")
    return found
