"""Ranges of a TFLite model's tensors on calibration rows, measured once for any number of candidates.

ai-edge-quantizer's own calibrator is not used: it keeps a moving average, in which the last twenty rows decide.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import numpy as np
import numpy.typing as npt
from ai_edge_litert.interpreter import Interpreter

from edgeserve.runtimes.base import Tensors
from edgeserve.runtimes.litert_stderr import hush

Range = tuple[float, float]
Samples = npt.NDArray[np.float32]

_SAMPLES: Final = 1 << 16
"""Values kept of one tensor over all rows, evenly spread: 100 MB for a detector of 400 tensors."""
_BINS: Final = 2048
_STEPS: Final = 255
_CLIPPINGS: Final = np.linspace(0.3, 1.0, 36)


class Measured:
    """What was seen of each tensor: its extremes, exactly, and a sample of its values."""

    def __init__(
        self, model: bytes, rows: Iterable[Tensors], count: int, tensors: frozenset[str], averaged: Mapping[str, int]
    ) -> None:
        """Run the rows.

        Args:
            model: Float TFLite file.
            rows: One call each: inputs by name in the order of the model's signature.
            count: How many there are.
            tensors: Those whose range is measured.
            averaged: Those of them whose channels are averaged, with the number of channels (last axis).
        """
        hush(lambda content: Interpreter(model_content=content))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that keeping all tensors takes memory is known
            interpreter = Interpreter(model_content=model, experimental_preserve_all_tensors=True)
        interpreter.allocate_tensors()
        inputs = [detail["index"] for detail in interpreter.get_input_details()]
        places = {
            detail["name"]: detail["index"] for detail in interpreter.get_tensor_details() if detail["name"] in tensors
        }
        self._extremes: dict[str, Range] = {}
        self._samples: dict[str, list[Samples]] = {}
        self.means: dict[str, npt.NDArray[np.float64]] = {}
        """Mean of each channel of `averaged`."""
        share = max(1, _SAMPLES // max(1, count))
        for row in rows:
            for index, array in zip(inputs, row.values(), strict=True):
                interpreter.set_tensor(index, array)
            interpreter.reset_all_variables()
            interpreter.invoke()
            for name, index in places.items():
                values = interpreter.get_tensor(index)
                self._see(name, values.ravel(), share)
                if channels := averaged.get(name):
                    mean = values.reshape(-1, channels).mean(axis=0, dtype=np.float64) / count
                    self.means[name] = self.means.get(name, np.float64(0)) + mean

    def ranges(self, how: str, lowest: Mapping[str, float] | None = None) -> dict[str, Range]:
        """Range of each tensor.

        Args:
            how: `minmax`, `percentile-P` (share in percent of the values inside), or `mse` (clipped where the noise
                power of 255 steps over the sample is least).
            lowest: Tensors whose values below a bound need not be told apart.
        """
        find = _method(how)
        found = {}
        for name, (low, high) in self._extremes.items():
            bound = (lowest or {}).get(name, -np.inf)
            sample = np.maximum(np.concatenate(self._samples[name]), np.float32(bound))
            found[name] = find(sample, (max(low, bound), max(high, bound)))
        return found

    def _see(self, name: str, values: Samples, share: int) -> None:
        if not values.size:
            return
        low, high = float(values.min()), float(values.max())
        before = self._extremes.get(name, (low, high))
        self._extremes[name] = (min(low, before[0]), max(high, before[1]))
        # An odd step, so that it does not stay on the same channels.
        step = max(1, values.size // share) | 1
        self._samples.setdefault(name, []).append(values[::step].copy())


def _method(how: str) -> Callable[[Samples, Range], Range]:
    if how == "minmax":
        return lambda _sample, extremes: extremes
    if how == "mse":
        return _least_noise
    tail = (100 - float(how.removeprefix("percentile-"))) / 2
    return lambda sample, extremes: _percentile(sample, extremes, tail)


def _percentile(sample: Samples, extremes: Range, tail: float) -> Range:
    low, high = (float(value) for value in np.percentile(sample, [tail, 100 - tail]))
    return (low, high) if low < high else extremes


def _least_noise(sample: Samples, extremes: Range) -> Range:
    low, high = min(extremes[0], 0.0), max(extremes[1], 0.0)
    if not low < high:
        return extremes
    counts, edges = np.histogram(sample, _BINS, (low, high))
    values = (edges[:-1] + edges[1:]) / 2
    noise = [_noise(values, counts, low * clip, high * clip) for clip in _CLIPPINGS]
    best = float(_CLIPPINGS[int(np.argmin(noise))])
    return low * best, high * best


def _noise(values: npt.NDArray[np.float64], counts: npt.NDArray[np.intp], low: float, high: float) -> float:
    step = (high - low) / _STEPS
    zero = round(-low / step)
    rounded = (np.clip(np.round(values / step) + zero, 0, _STEPS) - zero) * step
    # Within a bin values are spread, so that rounding costs step^2 / 12 at least.
    return float((counts * (np.square(values - rounded) + step * step / 12)).sum())
