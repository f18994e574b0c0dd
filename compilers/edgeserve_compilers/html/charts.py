"""Charts as inline SVG. Pure: numbers in, escaped markup out. Colours are classes, so that the page's style decides.

Each chart has a title and a description for those who do not see it; what a point stands for is its own `<title>`.
Nothing here uses `style` attributes, which a strict content security policy forbids.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from markupsafe import Markup, escape

from edgeserve_compilers.html.words import short

WIDTH: Final = 360
"""Of most charts, in units that are pixels where the page is wide enough."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 14, 26, 36
_TICKS: Final = 4
_BAR, _GAP = 16, 6
_CHARACTERS: Final = 400
"""Of a title: names come from models and may have any length."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One trial in a scatter plot."""

    x: float
    y: float
    kind: str
    """Class of its mark: `kept`, `fit`, `refused` or `float`."""
    title: str


@dataclass(frozen=True, kw_only=True)
class Axis:
    """What an axis shows and how its numbers are written."""

    label: str
    text: Callable[[float], str] = "{:g}".format


def pareto(
    name: str, points: Sequence[Point], *, title: str, x: Axis, y: Axis, bound: float, limit: float | None = None
) -> Markup:
    """Every point, the front of those that none beats in both, and the line that must be reached.

    Points far below the line would squeeze all others together: they stand on the bottom edge as a triangle.

    Args:
        name: Unique in the page, for its ids.
        points: Less x and more y is better.
        title: What the chart is, in words.
        x: Begins at 0.
        y: Its range is that of the points, and of the bound.
        bound: Least y that may be packed.
        limit: Least y shown in place; None = all.
    """
    height = 236
    values = [point.y for point in points if limit is None or point.y >= limit]
    low, high = _range([*values, bound], 0.12)
    x_high = max([point.x for point in points], default=1.0) * 1.1 or 1.0
    plot = _Plot(WIDTH, height, 0.0, x_high, low, high)
    below = min(max(plot.y(bound), _TOP), height - _BOTTOM)
    parts = [
        _rect("beyond", _LEFT, below, WIDTH - _LEFT - _RIGHT, height - _BOTTOM - below),
        plot.axes(x, y),
        _line("bound", _LEFT, below, WIDTH - _RIGHT, below),
        _text("bound-label", WIDTH - _RIGHT, below + 13, "below the bound", "end"),
        _front([point for point in points if point.kind != "refused"], plot),
    ]
    parts += [
        _mark(point, plot.x(point.x), plot.y(point.y), height - _BOTTOM, outside=point.y < low)
        for point in sorted(points, key=lambda point: _ORDER.index(point.kind))
    ]
    counted = f"{len(points)} trials, {sum(point.kind == 'refused' for point in points)} of them refused."
    best = "; ".join(point.title for point in points if point.kind == "kept") or "none"
    return _svg(name, WIDTH, height, title, f"{counted} Kept: {best}", parts)


def bars(name: str, entries: Sequence[tuple[str, float, bool]], *, title: str, label: str) -> Markup:
    """Horizontal bars on a logarithmic scale.

    Args:
        name: Unique in the page.
        entries: Name, value (0 has no bar), and whether it is marked.
        title: What the chart is.
        label: Of the values.
    """
    left, right = 172, 54
    height = _TOP + len(entries) * (_BAR + _GAP) + 6
    positive = [value for _, value, _ in entries if 0 < value < math.inf]
    low = math.floor(math.log10(min(positive, default=0.1)))
    high = max(math.ceil(math.log10(max(positive, default=1.0))), low + 1)
    span = WIDTH - left - right
    parts = [_text("axis-label", 0, 13, f"{label}, log scale", "start")]
    for number, (text, value, marked) in enumerate(entries):
        top = _TOP + number * (_BAR + _GAP)
        share = (math.log10(value) - low) / (high - low) if 0 < value < math.inf else float(value > 0)
        kind = "bar marked" if marked else "bar"
        bar = _rect(kind, left, top, max(span * min(share, 1.0), 1.5), _BAR)
        shown = _text("tick", left - 8, top + 12, short(text, 26), "end")
        figure = _text("tick", left + max(span * min(share, 1.0), 1.5) + 5, top + 12, f"{value:.1e}", "start")
        suffix = ", stays in float" if marked else ""
        parts.append(_titled(f"{text}: {value:.3g}{suffix}", bar + shown + figure))
    return _svg(name, WIDTH, height, title, f"{len(entries)} layers, the noisiest first.", parts)


def histogram(name: str, buckets: Sequence[tuple[float, float, int]], *, title: str, x: Axis) -> Markup:
    """Bars of counts over a value, counts on a logarithmic scale so that the tails are seen.

    Args:
        name: Unique in the page.
        buckets: Low, high, count; ascending.
        title: What the chart is.
        x: Of the values.
    """
    height = 236
    low, high = buckets[0][0], buckets[-1][1]
    if not low < high:
        low, high = low - 0.5, high + 0.5
    most = max(count for _, _, count in buckets)
    decades = max(math.ceil(math.log10(most + 1)), 1)
    plot = _Plot(WIDTH, height, low, high, 0.0, float(decades))
    y = Axis(label="elements, log scale", text=lambda power: _power(power))
    parts = [plot.axes(x, y, y_ticks=[float(power) for power in range(0, decades + 1, -(-decades // 4))])]
    for start, end, count in buckets:
        top = plot.y(math.log10(count + 1))
        width = max(plot.x(end) - plot.x(start) - 1, 1.0)
        bar = _rect("bar", plot.x(start) + 0.5, top, width, height - _BOTTOM - top)
        parts.append(_titled(f"{start:.3g} to {end:.3g}: {count}", bar))
    if low < 0 < high:
        parts.append(_line("zero", plot.x(0), _TOP, plot.x(0), height - _BOTTOM))
    total = sum(count for _, _, count in buckets)
    return _svg(name, WIDTH, height, title, f"{total} differences from {low:.3g} to {high:.3g}.", parts)


def stacked(name: str, shares: Mapping[str, int], *, title: str) -> Markup:
    """One bar of parts, each as wide as its share; its class is `form-` and the part's name."""
    width, height = 720, 14
    total = sum(shares.values()) or 1
    parts: list[Markup] = []
    at = 0.0
    for form, count in shares.items():
        part = width * count / total
        parts.append(_titled(f"{form}: {count}", _rect(f"form form-{form}", at, 0, max(part - 2, 1.0), height)))
        at += part
    described = ", ".join(f"{count} {form}" for form, count in shares.items())
    return _svg(name, width, height, title, described, parts, stretch=True)


def interval(
    name: str, low: float, middle: float, high: float, *, bound: float, scale: tuple[float, float], title: str
) -> Markup:
    """A value with its interval, between nothing lost and the bound.

    Args:
        name: Unique in the page.
        low: Lower end.
        middle: The value.
        high: Upper end.
        bound: Most that may be lost.
        scale: Values at the two edges, the same for all intervals that are compared; what lies beyond is cut off.
        title: The figures in words.
    """
    width, height, pad = 200, 26, 6

    def at(value: float) -> float:
        share = (value - scale[0]) / (scale[1] - scale[0])
        return pad + (width - 2 * pad) * min(max(share, 0.0), 1.0)

    inside, outside = min(high, bound), max(low, bound)
    parts = [
        _rect("beyond", at(bound), 0, width - at(bound), height),
        _line("zero", at(0), 0, at(0), height),
        _line("bound", at(bound), 0, at(bound), height),
    ]
    if low < inside:
        parts.append(_line("range", at(low), height / 2, at(inside), height / 2))
    if outside < high:
        parts.append(_line("range over", at(outside), height / 2, at(high), height / 2))
    over = " over" if middle > bound else ""
    parts.append(
        Markup('<circle class="middle{}" cx="{:.1f}" cy="{:.1f}" r="4.5"/>').format(over, at(middle), height / 2)
    )
    return _svg(name, width, height, title, "", parts)


def interval_scale(intervals: Iterable[tuple[float, float]], bound: float) -> tuple[float, float]:
    """Edges that hold 0, the bound and most of every interval, so that one of them cannot hide the others."""
    unit = max(bound, 0.0025)
    lows, highs = zip(*intervals, strict=True) if (intervals := list(intervals)) else ((0.0,), (0.0,))
    return max(min(*lows, -0.4 * unit), -3 * unit), min(max(*highs, 1.4 * unit), 4 * unit)


_ORDER: Final = ("refused", "fit", "float", "kept")
"""Kinds of marks, the ones on top last."""


class _Plot:
    """Values to places, and the two axes."""

    def __init__(self, width: int, height: int, x_low: float, x_high: float, y_low: float, y_high: float) -> None:
        self._width, self._height = width, height
        self._x, self._y = (x_low, x_high), (y_low, y_high)

    def x(self, value: float) -> float:
        low, high = self._x
        return _LEFT + (self._width - _LEFT - _RIGHT) * (value - low) / (high - low)

    def y(self, value: float) -> float:
        low, high = self._y
        return self._height - _BOTTOM - (self._height - _TOP - _BOTTOM) * (value - low) / (high - low)

    def axes(self, x: Axis, y: Axis, *, y_ticks: Sequence[float] | None = None) -> Markup:
        bottom = self._height - _BOTTOM
        parts = [_text("axis-label", 2, 12, y.label, "start")]
        for value in ticks(*self._y) if y_ticks is None else y_ticks:
            parts.append(_line("grid", _LEFT, self.y(value), self._width - _RIGHT, self.y(value)))
            parts.append(_text("tick", _LEFT - 6, self.y(value) + 4, y.text(value), "end"))
        for value in ticks(*self._x):
            parts.append(_text("tick", self.x(value), bottom + 15, x.text(value), "middle"))
            parts.append(_line("axis", self.x(value), bottom, self.x(value), bottom + 4))
        parts.append(_line("axis", _LEFT, bottom, self._width - _RIGHT, bottom))
        parts.append(_text("axis-label", self._width - _RIGHT, self._height - 4, x.label, "end"))
        return Markup("").join(parts)


def ticks(low: float, high: float) -> list[float]:
    """Round numbers from `low` to `high`, about four: 1, 2 or 5 times a power of ten apart."""
    span = high - low
    if not (span > 0 and math.isfinite(span)):
        return [low]
    rough = span / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _range(values: Sequence[float], margin: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = (high - low) * margin or max(abs(high) * 0.01, 1e-6)
    return low - room, high + room


def _front(points: Sequence[Point], plot: _Plot) -> Markup:
    """Points that none beats in both, joined in steps."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.x, -point.y)):
        if not front or point.y > front[-1].y:
            front.append(point)
    if len(front) < 2:
        return Markup("")
    path = f"M{plot.x(front[0].x):.1f} {plot.y(front[0].y):.1f}"
    path += "".join(f"H{plot.x(point.x):.1f}V{plot.y(point.y):.1f}" for point in front[1:])
    return Markup('<path class="front" d="{}"/>').format(path)


def _mark(point: Point, x: float, y: float, bottom: float, *, outside: bool) -> Markup:
    if outside:
        path = f"M{x - 5:.1f} {bottom - 9:.1f}h10l-5 8z"
        return _titled(point.title, Markup('<path class="mark {}" d="{}"/>').format(point.kind, path))
    if point.kind == "float":
        path = f"M{x:.1f} {y - 6:.1f}l6 6l-6 6l-6 -6z"
        return _titled(point.title, Markup('<path class="mark float" d="{}"/>').format(path))
    radius = 6.5 if point.kind == "kept" else 4.5
    circle = Markup('<circle class="mark {}" cx="{:.1f}" cy="{:.1f}" r="{}"/>').format(point.kind, x, y, radius)
    return _titled(point.title, circle)


def _power(exponent: float) -> str:
    return "0" if exponent == 0 else str(10 ** int(exponent)) if exponent < 4 else f"1e{int(exponent)}"


def _svg(
    name: str, width: int, height: int, title: str, described: str, parts: Iterable[Markup], *, stretch: bool = False
) -> Markup:
    aspect = Markup(' preserveAspectRatio="none"') if stretch else ""
    return Markup(
        '<svg role="img" viewBox="0 0 {w} {h}" width="{w}" height="{h}"{aspect} aria-labelledby="{n}-t {n}-d">'
        '<title id="{n}-t">{title}</title><desc id="{n}-d">{desc}</desc>{parts}</svg>'
    ).format(
        w=width,
        h=height,
        aspect=aspect,
        n=name,
        title=short(title, _CHARACTERS),
        desc=short(described, _CHARACTERS),
        parts=Markup("").join(parts),
    )


def _titled(title: str, content: Markup) -> Markup:
    return Markup("<g><title>{}</title>{}</g>").format(short(title, _CHARACTERS), content)


def _rect(kind: str, x: float, y: float, width: float, height: float) -> Markup:
    return Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>').format(
        kind, x, y, max(width, 0.0), max(height, 0.0)
    )


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(kind, x1, y1, x2, y2)


def _text(kind: str, x: float, y: float, text: str, anchor: str) -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
        kind, x, y, anchor, escape(text)
    )
