"""Run a product by its own runtime and hold it against the float model: accuracy, noise, latency."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.task import METRICS, WITHOUT_LABELS, Kind, Metric, Task
from edgeserve.runtimes.base import LoadedModel, Tensors
from edgeserve.runtimes.rows import run_sequences, run_task
from edgeserve.task.answers import Answers, Detections, Truth
from edgeserve.task.decode import decode, fields, judging_score
from edgeserve.task.score import Score, agreement, as_truth, score
from edgeserve_compilers.data.dataset import Dataset
from edgeserve_compilers.interval import drop_interval
from edgeserve_compilers.spec import FieldNoise, Measurement

_AGAINST_FLOAT: Final = frozenset({Metric.AGREEMENT, Metric.COSINE, Metric.SQNR})
"""Metrics whose truth is the float model's answer by definition, whatever labels there are."""
_WARM_UP: Final = 3
_PAIRS: Final = 100
_LATENCY_BUDGET_S: Final = 0.25
"""A slow model is timed on fewer calls, at least three."""
INFINITE_NOISE: Final = 1e20
_DROWNED_DB: Final = -200.0
"""Stand for infinite noise, which JSON does not have."""

Fields = Mapping[str, npt.NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The float model's answers on the rows that decide."""

    data: Dataset
    task: Task
    """With every name filled in, and the metric that is used."""
    outputs: Tensors
    fields: Fields
    answers: Answers
    truth: Truth
    """The labels, or the float model's own answers where there are none."""
    labelled: bool
    score: Score


def metric_of(task: Task, data: Dataset) -> str:
    """The metric that judges a task on these data.

    Raises:
        InputError: It needs labels, and there are none.
    """
    own_truth = {WITHOUT_LABELS[task.kind], Metric.AGREEMENT}
    if data.truth is not None:
        return task.metric or METRICS[task.kind][0].value
    if task.metric and task.metric not in {metric.value for metric in own_truth} | {Metric.SQNR.value}:
        if task.metric in (Metric.TOP1, Metric.TOP5, Metric.MAP):
            return WITHOUT_LABELS[task.kind].value  # the report says that labels were missing
        if ":" in task.metric:
            raise InputError(f"metric {task.metric} needs labels, {data.file} has none", hint="give labelled data")
    return task.metric or WITHOUT_LABELS[task.kind].value


def refer(model: LoadedModel, data: Dataset, task: Task) -> Reference:
    """Run the float model on the rows that decide.

    Raises:
        InputError: Its outputs are not those of the task, hold NaN, or do not fit the labels.
    """
    outputs = run_task(model, data.inputs, task.state)
    found = fields(task, outputs)
    broken = [name for name, array in found.items() if np.isnan(array).any()]
    if broken:
        rows = int(np.isnan(found[broken[0]]).reshape(len(found[broken[0]]), -1).any(axis=1).sum())
        raise InputError(
            f"the float model itself answers NaN on {rows} rows of {data.file}",
            hint="check the scale of the data and the export of the model",
        )
    _check_labels(task, found, data)
    answers = decode(task, outputs, least_score=judging_score(task))
    labelled = data.truth is not None and task.metric not in _AGAINST_FLOAT
    truth = data.truth if labelled and data.truth is not None else as_truth(task, answers)
    return Reference(
        data=data,
        task=task,
        outputs=outputs,
        fields=found,
        answers=answers,
        truth=truth,
        labelled=labelled,
        score=score(task, task.metric, answers, truth),
    )


def measure(model: LoadedModel, outputs: Tensors, baseline: LoadedModel, reference: Reference) -> Measurement:
    """Judge a loaded product.

    Args:
        model: The product.
        outputs: Its answers on the reference's rows.
        baseline: The form's float product, timed in turns with it; may be `model`.
        reference: The float model's answers.
    """
    task = reference.task
    answers = decode(task, outputs, least_score=judging_score(task))
    found = fields(task, outputs)
    ours = score(task, task.metric, answers, reference.truth)
    low, high, _method = drop_interval(ours, reference.score)
    latency_ms, float_latency_ms = _latencies(model, baseline, reference)
    return Measurement(
        value=ours.value,
        float_value=reference.score.value,
        drop=reference.score.value - ours.value,
        drop_low=low,
        drop_high=high,
        agreement=float(agreement(task, answers, reference.answers).mean()),
        fields=tuple(
            FieldNoise(field=name, sqnr_db=_decibels(noise_share(reference.fields[name], array)))
            for name, array in found.items()
        ),
        has_nan=any(array.dtype.kind == "f" and bool(np.isnan(array).any()) for array in outputs.values()),
        positives=_positives(task, answers),
        float_positives=_positives(task, reference.answers),
        latency_ms=latency_ms,
        float_latency_ms=float_latency_ms,
        executing_device=model.executing_device,
    )


def noise_share(expected: npt.NDArray[np.float64], found: npt.NDArray[np.float64]) -> float:
    """Noise power over signal power; infinite when `found` holds NaN or the signal is nothing but noise is there."""
    with np.errstate(invalid="ignore", over="ignore"):  # infinities are a finding, not a fault
        noise = float(np.square(expected - found).sum())
        signal = float(np.square(expected).sum())
    if not math.isfinite(noise):
        return math.inf
    if noise == 0:
        return 0.0
    return noise / signal if signal > 0 else math.inf


def worst_noise(task: Task, outputs: Tensors, expected: Fields) -> float:
    """`noise_share` of the noisiest decoded field, each judged by itself whatever the others' range; at most 1e20."""
    found = fields(task, outputs)
    shares = (noise_share(array, found[name]) for name, array in expected.items())
    return min(max(shares), INFINITE_NOISE)


def _positives(task: Task, answers: Answers) -> int:
    if task.boxes is None:
        return 0
    least = task.boxes.score
    return sum(int((answer.scores >= least).sum()) for answer in answers if isinstance(answer, Detections))


def _check_labels(task: Task, found: Fields, data: Dataset) -> None:
    scores = found.get("scores")
    if scores is None:
        return
    classes = scores.shape[-1]
    if task.labels and len(task.labels) != classes:
        raise InputError(
            f"{len(task.labels)} labels are given, the model scores {classes} classes",
            hint="name every class, in the order of the scores",
        )
    truth = data.truth
    if task.kind in (Kind.CLASSIFICATION, Kind.KEYWORDS) and isinstance(truth, np.ndarray) and truth.max() >= classes:
        raise InputError(
            f"{data.file}: labels go up to {truth.max()}, the model scores {classes} classes from 0",
            hint="number the classes from 0, in the order of the scores",
        )


def _latencies(model: LoadedModel, baseline: LoadedModel, reference: Reference) -> tuple[float, float]:
    """Median milliseconds of one call of each, in turns, so that a busy machine slows both alike."""
    data, state = reference.data, reference.task.state
    row = {name: array[:1, :1] if state else array[:1] for name, array in data.inputs.items()}

    def call(contender: LoadedModel) -> None:
        if state:
            run_sequences(contender, row, state)
        else:
            contender.run(row)

    contenders = [model] if model is baseline else [model, baseline]
    for contender in contenders * _WARM_UP:
        call(contender)
    spent: list[list[float]] = [[] for _ in contenders]
    end = time.perf_counter() + _LATENCY_BUDGET_S
    for turn in range(_PAIRS):
        for place in range(len(contenders))[:: 1 if turn % 2 else -1]:
            began = time.perf_counter()
            call(contenders[place])
            spent[place].append((time.perf_counter() - began) * 1e3)
        if turn >= _WARM_UP - 1 and time.perf_counter() > end:
            break
    medians = [statistics.median(times) for times in spent]
    return medians[0], medians[-1]


def _decibels(share: float) -> float | None:
    if share == 0:
        return None
    return -10 * math.log10(share) if math.isfinite(share) else _DROWNED_DB
