"""Ranges of activations: measured once on the calibration rows, then cut by any calibrator.

The model runs once with every tensor as an output. Kept are extremes, the mean of the rows' extremes, a histogram of
samples and means by channel: memory does not grow with the rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from edgeserve.contracts.limits import CALIBRATION_BATCH_BYTES
from edgeserve.runtimes.base import Tensors

Range = tuple[float, float]
CALIBRATORS: Final = ("minmax", "mse", "percentile 99.99", "percentile 99.9", "moving average")
"""No calibrator wins everywhere: `minmax` is best on well-behaved models, the others clip what stands out. `mse` cuts
where the error of clipping and that of rounding together are smallest (Banner et al., 2019, arXiv:1810.05723)."""

_BINS: Final = 8192
_SAMPLES: Final = 16384
"""Of one tensor and row that enter the histogram: 100 rows make 1.6 million, of which 99.99 % leaves 160."""
_BATCH: Final = 32
NOTHING: Final = 1e-20
"""What is no larger counts as zero: bins of a histogram would have no width in single precision, and products of such
scales are no normal float32."""
_SHRINK: Final = np.linspace(0.2, 1.0, 33)
_Floats = npt.NDArray[np.float64]


class Statistics:
    """What is known of one tensor's values."""

    def __init__(self) -> None:
        self.low, self.high = np.inf, -np.inf
        self.rows = 0
        self.channel_mean: _Floats | None = None
        """Mean by channel, of tensors that a layer with weights reads."""
        self._row_lows, self._row_highs = 0.0, 0.0
        self._bound = 0.0
        """The histogram spans -bound to bound, a power of two: it grows by adding pairs of bins, exactly."""
        self._counts = np.zeros(_BINS)
        self._zeros = 0

    def add(self, array: npt.NDArray[np.float32], rows: int, channels: int | None) -> None:
        """Take the values of `rows` rows in; `channels` is the axis of the channels."""
        per_row = array.reshape(rows, -1) if array.ndim and array.shape[0] == rows else array.reshape(1, -1)
        if not per_row.size:
            return
        lows, highs = per_row.min(axis=1), per_row.max(axis=1)
        if not (np.isfinite(lows).all() and np.isfinite(highs).all()):
            raise ValueError("the float model computes values that are not finite on the calibration rows")
        self.low, self.high = min(self.low, float(lows.min())), max(self.high, float(highs.max()))
        self._row_lows += float(lows.sum(dtype=np.float64))
        self._row_highs += float(highs.sum(dtype=np.float64))
        weight = len(lows)
        if channels is not None:
            axes = tuple(axis for axis in range(array.ndim) if axis != channels % array.ndim)
            mean = array.mean(axis=axes).astype(np.float64)
            before = 0.0 if self.channel_mean is None else self.channel_mean
            self.channel_mean = before + (mean - before) * (weight / (self.rows + weight))
        self.rows += weight
        self._count(array.ravel()[:: max(1, array.size // (_SAMPLES * weight)) | 1])

    def _count(self, samples: npt.NDArray[np.float32]) -> None:
        largest = float(np.abs(samples).max())
        if largest < NOTHING:
            self._zeros += samples.size
            return
        if largest > self._bound:
            bound = float(2.0 ** np.ceil(np.log2(largest)))
            for _ in range(int(np.log2(bound / self._bound)) if self._bound else 0):
                if not self._counts.any():
                    break
                halved = np.zeros(_BINS)
                halved[_BINS // 4 : 3 * _BINS // 4] = self._counts.reshape(-1, 2).sum(axis=1)
                self._counts = halved
            self._bound = bound
        nonzero = samples[samples != 0]
        self._zeros += samples.size - nonzero.size
        place = ((nonzero + np.float32(self._bound)) * np.float32(_BINS / 2 / self._bound)).astype(np.int32)
        self._counts += np.bincount(np.minimum(place, _BINS - 1), minlength=_BINS)

    def cut(self, calibrator: str, *, symmetric: bool) -> Range:
        """The range that a calibrator leaves.

        Args:
            calibrator: One of `CALIBRATORS`.
            symmetric: The grid will have as many steps below zero as above.
        """
        if calibrator == "minmax":
            return self.low, self.high
        if calibrator == "moving average":
            return self._row_lows / self.rows, self._row_highs / self.rows
        if calibrator.startswith("percentile "):
            return self._percentile(float(calibrator.removeprefix("percentile ")))
        if calibrator == "mse":
            return self._least_error(symmetric=symmetric)
        raise KeyError(calibrator)

    def _centres(self) -> _Floats:
        return np.asarray((np.arange(_BINS) + 0.5) * (2 * self._bound / _BINS) - self._bound, np.float64)

    def _percentile(self, share: float) -> Range:
        total = self._counts.sum() + self._zeros
        if not total or not self._bound:
            return self.low, self.high
        tail = total * (1 - share / 100) / 2
        counts = self._counts.copy()
        counts[_BINS // 2] += self._zeros
        edges = np.linspace(-self._bound, self._bound, _BINS + 1)
        first = int(np.searchsorted(np.cumsum(counts), tail, side="right"))
        last = _BINS - int(np.searchsorted(np.cumsum(counts[::-1]), tail, side="right"))
        return max(float(edges[first]), self.low), min(float(edges[last]), self.high)

    def _least_error(self, *, symmetric: bool) -> Range:
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        inside = self._counts.sum()  # zero itself is on every grid and has no error
        if not inside:
            return low, high
        if symmetric:
            ends = max(-low, high) * _SHRINK
            cost = self._clipped(-ends, below=True) + self._clipped(ends, below=False)
            best = float(ends[int(np.argmin(cost + inside * (ends / 127) ** 2 / 12))])
            return max(-best, low), min(best, high)
        lows, highs = low * _SHRINK, high * _SHRINK
        cost = self._clipped(lows, below=True)[:, None] + self._clipped(highs, below=False)[None, :]
        cost += inside * ((highs[None, :] - lows[:, None]) / 255) ** 2 / 12
        row, column = np.unravel_index(int(np.argmin(cost)), cost.shape)
        return float(lows[row]), float(highs[column])

    def _clipped(self, ends: _Floats, *, below: bool) -> _Floats:
        """Squared error of what lies beyond each end."""
        distance = (ends[:, None] - self._centres()) * (1 if below else -1)
        squares: _Floats = np.square(np.maximum(distance, 0)) @ self._counts
        return squares


def measure(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    rows: Tensors,
    *,
    channels: Mapping[str, int],
    one_by_one: bool,
    fixed: int | None,
    ranks: Mapping[str, int],
) -> dict[str, Statistics]:
    """Run the calibration rows and return what is known of each float tensor.

    Args:
        model: The prepared float model.
        tensors: Names of the tensors to measure, inputs among them; those that do not hold float32 are left out.
        rows: Calibration rows by input.
        channels: Axis of the channels of tensors whose means by channel are wanted.
        one_by_one: Run single rows (stateful models).
        fixed: Batch that is built in.
        ranks: Rank of each input; rows with one axis more hold whole inputs (states whose batch is not first).
    """
    session = _session(model, tensors)
    names = [value.name for value in session.get_outputs()]
    found: dict[str, Statistics] = {}
    for feed, count in _feeds(session, names, rows, one_by_one=one_by_one, fixed=fixed, ranks=ranks):
        values = dict(zip(names, session.run(names, feed), strict=True)) | feed
        for name in tensors:
            array = values.get(name)
            if isinstance(array, np.ndarray) and array.dtype == np.float32:
                found.setdefault(name, Statistics()).add(array, count, channels.get(name))
    return {name: statistics for name, statistics in found.items() if statistics.rows}


def _session(model: onnx.ModelProto, tensors: Sequence[str]) -> Any:  # noqa: ANN401
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    present = {value.name for value in [*shown.graph.output, *shown.graph.input]}
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors if name not in present)
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    settings.enable_mem_pattern = False
    settings.log_severity_level = 4
    return onnxruntime.InferenceSession(shown.SerializeToString(), settings, providers=["CPUExecutionProvider"])


def _feeds(
    session: Any,  # noqa: ANN401
    names: Sequence[str],
    rows: Tensors,
    *,
    one_by_one: bool,
    fixed: int | None,
    ranks: Mapping[str, int],
) -> Iterator[tuple[Tensors, int]]:
    total = len(next(iter(rows.values())))
    wanted = {value.name for value in session.get_inputs()}
    rows = {name: array for name, array in rows.items() if name in wanted}

    def feed(start: int, stop: int) -> Tensors:
        return {
            name: np.ascontiguousarray(array[start] if array.ndim > ranks[name] else array[start:stop])
            for name, array in rows.items()
        }

    size = fixed or 1
    if not one_by_one and fixed is None:
        held = sum(getattr(array, "nbytes", 0) for array in session.run(names, feed(0, 1)))
        size = max(1, min(_BATCH, CALIBRATION_BATCH_BYTES // max(held, 1)))
    for start in range(0, total - (fixed or 1) + 1, size):
        stop = min(start + size, total)
        yield feed(start, stop), stop - start
