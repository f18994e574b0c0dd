"""Figures in words: how the report page writes numbers. Pure."""

from __future__ import annotations

import math
from typing import Final

from edgeserve.contracts.task import Metric

_NOTHING: Final = "\u2013"
_MINUS: Final = "\u2212"
_SHARES: Final = (Metric.TOP1.value, Metric.TOP5.value, Metric.IOU.value, Metric.AGREEMENT.value)
_NAMES: Final = {
    Metric.TOP1.value: "top-1 accuracy",
    Metric.TOP5.value: "top-5 accuracy",
    Metric.MAP.value: "mAP 50\u201395",
    Metric.IOU.value: "box agreement (F1 at IoU 0.5)",
    Metric.MAE.value: "1 \u2212 relative absolute error",
    Metric.COSINE.value: "cosine similarity",
    Metric.SQNR.value: "1 \u2212 noise share",
    Metric.AGREEMENT.value: "agreement with the float model",
}


def metric_name(metric: str) -> str:
    """A metric for people; `module:function` as it is."""
    return _NAMES.get(metric, metric)


def is_share(metric: str) -> bool:
    """Whether a metric counts rows (or boxes), so that per cent and points are its units."""
    return metric in _SHARES


def value(number: float, metric: str) -> str:
    """A metric's value: `98.42 %` of a share, else `0.5123`."""
    if not math.isfinite(number):
        return "not a number"
    return f"{_signed(f'{100 * number:.2f}')} %" if is_share(metric) else _signed(f"{number:.4f}")


def share(number: float) -> str:
    """A share of rows: `97.4 %`, `100 %`."""
    return f"{100 * number:.4g} %" if math.isfinite(number) else "not a number"


def drop(number: float, metric: str, *, unit: bool = True) -> str:
    """A loss of the metric: `0.42 points` of a share, else `0.0042`; negative = a gain."""
    if not math.isfinite(number):
        return "not a number"
    if not is_share(metric):
        return _signed(f"{number:.4f}")
    return _signed(f"{100 * number:.2f}") + (" points" if unit else "")


def size(count: int) -> str:
    """Bytes in decimal units, as file managers and data sheets have them."""
    if count < 1000:
        return f"{count} B"
    for unit, length in (("kB", 1e3), ("MB", 1e6)):
        if count < 999.5 * length:
            return f"{_three(count / length)} {unit}"
    return f"{_three(count / 1e9)} GB"


def milliseconds(number: float) -> str:
    """A duration given in milliseconds; below 1 in microseconds."""
    if not math.isfinite(number):
        return _NOTHING
    if number < 0.9995:
        return f"{1000 * number:.0f} µs"
    return f"{_three(number)} ms"


def times(new: float, old: float, *, better: str, worse: str) -> str:
    """How much better the new is where less is better: `3.9x smaller`, `1.2x larger`, `same`."""
    if not (new > 0 and old > 0 and math.isfinite(new) and math.isfinite(old)):
        return _NOTHING
    factor = old / new
    if 0.995 < factor < 1.005:
        return "same"
    return f"{_three(factor)}\u00d7 {better}" if factor > 1 else f"{_three(1 / factor)}\u00d7 {worse}"


def decibels(number: float | None) -> str:
    """A signal to noise ratio."""
    return "no noise" if number is None else _signed(f"{number:.1f}") + " dB"


def count(number: int) -> str:
    """A whole number with thin spaces between thousands."""
    return f"{number:,}".replace(",", "\u202f")


def small(number: float) -> str:
    """A number of any size in three digits: `0.0123`, `1.2e-05`."""
    return _signed(f"{number:.3g}")


def short(text: str, most: int = 60) -> str:
    """The text, its middle left out when it is longer than `most`."""
    if len(text) <= most:
        return text
    head = most * 2 // 3
    return f"{text[:head]}…{text[len(text) - (most - head - 1) :]}"


def _three(number: float) -> str:
    """Three digits, no exponent."""
    digits = 2 if number < 9.995 else 1 if number < 99.95 else 0
    return f"{number:.{digits}f}"


def _signed(text: str) -> str:
    if text.startswith("-"):
        bare = text[1:]
        return bare if not bare.strip("0.") else _MINUS + bare
    return text
