"""Run a product by its own runtime and hold it against the float model: accuracy, noise, latency, golden tolerance."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.limits import GOLDEN_ROWS, MAX_GOLDEN_BYTES
from edgeserve.contracts.task import Task
from edgeserve.contracts.variant import Tolerance
from edgeserve.golden import Golden, compare
from edgeserve.runtimes.base import LoadedModel, Tensors
from edgeserve.runtimes.rows import run_rows
from edgeserve.task import Correct, Predictions, correct, predictions, scores
from edgeserve_compilers.data import Dataset
from edgeserve_compilers.interval import paired_interval
from edgeserve_compilers.spec import Measurement

_WARM_UP: Final = 3
_PAIRS: Final = 100
_LATENCY_BUDGET_S: Final = 0.5
"""A slow model is timed on fewer calls, at least three."""
_ATOL_MARGIN: Final = 3.0
"""Over many rows the largest difference from float is at least half a step of the int8 grid of the scores; kernels of
another CPU may round to the next step, twice that much further off."""
_FLOAT_NOISE: Final = 1e-3
"""Of a value, and of the largest score: what summing in another order changes in float32, with room."""
_AGREEMENT_ROWS: Final = 2
"""Rows near a tie that another CPU may decide differently."""
_LEAST_AGREEMENT: Final = 0.51
"""A tolerance below one half would pass a model that is wrong more often than right."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The float model's answers on the rows that decide."""

    data: Dataset
    task: Task
    outputs: Tensors
    predictions: Predictions
    truth: Predictions
    """The labels, or the float model's own predictions where there are none."""

    @property
    def right(self) -> Correct:
        """Rows that the float model has right."""
        return correct(self.predictions, self.truth)


def refer(model: LoadedModel, data: Dataset, task: Task) -> Reference:
    """Run the float model on the rows that decide.

    Raises:
        InputError: The model is not a classifier, answers NaN, or does not fit the labels.
    """
    outputs = run_rows(model, data.inputs)
    table = scores(task, outputs)
    if np.isnan(table).any():
        raise InputError(
            f"the float model itself answers NaN on {int(np.isnan(table).any(axis=1).sum())} rows of {data.file}",
            hint="check the scale of the data and the export of the model",
        )
    classes = table.shape[1]
    if task.labels and len(task.labels) != classes:
        raise InputError(f"{len(task.labels)} labels are given, the model scores {classes} classes")
    if data.labels is not None and data.labels.max() >= classes:
        raise InputError(f"{data.file}: labels go up to {data.labels.max()}, the model scores {classes} classes from 0")
    predicted = predictions(task, outputs)
    truth = predicted if data.labels is None else data.labels
    return Reference(data=data, task=task, outputs=outputs, predictions=predicted, truth=truth)


def measure(model: LoadedModel, outputs: Tensors, baseline: LoadedModel, reference: Reference) -> Measurement:
    """Judge a loaded product.

    Args:
        model: The product.
        outputs: Its answers on the reference's rows.
        baseline: The target's float form, timed in turns with it; may be `model`.
        reference: The float model's answers.
    """
    predicted = predictions(reference.task, outputs)
    ours, theirs = correct(predicted, reference.truth), reference.right
    low, high = paired_interval(
        both=int((theirs & ours).sum()),
        first_only=int((theirs & ~ours).sum()),
        second_only=int((~theirs & ours).sum()),
        neither=int((~theirs & ~ours).sum()),
    )
    table = scores(reference.task, outputs)
    latency_ms, float_latency_ms = _latencies(model, baseline, reference.data.take(slice(0, 1)))
    return Measurement(
        value=float(ours.mean()),
        float_value=float(theirs.mean()),
        drop=float(theirs.mean() - ours.mean()),
        drop_low=low,
        drop_high=high,
        agreement=float(correct(predicted, reference.predictions).mean()),
        sqnr_db=_sqnr_db(scores(reference.task, reference.outputs), table),
        has_nan=any(bool(np.isnan(array).any()) for array in outputs.values()),
        latency_ms=latency_ms,
        float_latency_ms=float_latency_ms,
        executing_device=model.executing_device,
    )


def golden_rows(reference: Reference) -> npt.NDArray[np.int64]:
    """Which rows make the golden set: evenly spread over the data, so that sorted classes are all met."""
    arrays = [*reference.data.inputs.values(), *reference.outputs.values()]
    row_bytes = sum(array.nbytes for array in arrays) // reference.data.rows
    count = min(GOLDEN_ROWS, reference.data.rows, max(1, (MAX_GOLDEN_BYTES // 2) // max(row_bytes, 1)))
    return np.linspace(0, reference.data.rows - 1, count).astype(np.int64)


def golden_set(reference: Reference) -> Golden:
    """Some of the rows with the float model's answers."""
    rows = golden_rows(reference)
    return Golden(
        inputs=reference.data.take(rows), outputs={name: array[rows] for name, array in reference.outputs.items()}
    )


def tolerance(outputs: Tensors, reference: Reference, *, native: bool) -> Tolerance:
    """What a device must reach on the golden set, from how far this product is from the float model there.

    Args:
        outputs: The product's answers on the reference's rows.
        reference: The float model's answers.
        native: Whether this machine ran the product as devices will. What did not is held to agreement only.
    """
    rows = golden_rows(reference)
    expected = {name: array[rows] for name, array in reference.outputs.items()}
    apart = compare(expected, {name: array[rows] for name, array in outputs.items()}, reference.task)
    agreement = max(apart.agreement - _AGREEMENT_ROWS / len(rows), _LEAST_AGREEMENT)
    if not native:
        return Tolerance(agreement=agreement)
    finite = (np.abs(array[np.isfinite(array)].astype(np.float64)) for array in expected.values())
    largest = max((float(values.max()) for values in finite if values.size), default=0.0)
    atol = max(_ATOL_MARGIN * apart.max_abs_difference, _FLOAT_NOISE * largest, _FLOAT_NOISE * _FLOAT_NOISE)
    return Tolerance(rtol=_FLOAT_NOISE, atol=atol, agreement=agreement)


def _latencies(model: LoadedModel, baseline: LoadedModel, row: Tensors) -> tuple[float, float]:
    """Median milliseconds of one call of each, in turns, so that a busy machine slows both alike."""
    contenders = [model] if model is baseline else [model, baseline]
    for contender in contenders * _WARM_UP:
        contender.run(row)
    spent: list[list[float]] = [[] for _ in contenders]
    end = time.perf_counter() + _LATENCY_BUDGET_S
    for turn in range(_PAIRS):
        for place in range(len(contenders))[:: 1 if turn % 2 else -1]:
            began = time.perf_counter()
            contenders[place].run(row)
            spent[place].append((time.perf_counter() - began) * 1e3)
        if turn >= _WARM_UP - 1 and time.perf_counter() > end:
            break
    medians = [statistics.median(times) for times in spent]
    return medians[0], medians[-1]


def _sqnr_db(expected: npt.NDArray[np.float64], found: npt.NDArray[np.float64]) -> float | None:
    noise = float(np.square(expected - found).sum())
    signal = float(np.square(expected).sum())
    if noise == 0 or signal == 0 or not math.isfinite(noise / signal):
        return None
    return 10 * math.log10(signal / noise)
