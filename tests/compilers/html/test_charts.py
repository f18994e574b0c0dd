from __future__ import annotations

import math
import re
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from edgeserve_compilers.html.charts import (
    WIDTH,
    Axis,
    Point,
    bars,
    histogram,
    interval,
    interval_scale,
    pareto,
    stacked,
    ticks,
)

FINITE = st.floats(-1e9, 1e9)
HOSTILE = "</title><script>alert(1)</script>&\"'"
X, Y = Axis(label="size, MB"), Axis(label="accuracy, %")


def parsed(chart: Markup) -> ET.Element:
    return ET.fromstring(chart)


def marks(chart: Markup) -> list[tuple[str, str]]:
    """Class and title of every mark, in the order they are drawn."""
    found = []
    for group in parsed(chart).iter("g"):
        title, shape = group[0], group[1]
        found.append((shape.attrib["class"].removeprefix("mark "), title.text or ""))
    return found


def point(x: float, y: float, kind: str, title: str = "") -> Point:
    return Point(x=x, y=y, kind=kind, title=title or f"{kind} {x} {y}")


def test_every_trial_is_a_mark_with_its_words_and_the_kept_one_is_drawn_last() -> None:
    points = [point(2, 0.7, "kept"), point(1, 0.5, "refused"), point(3, 0.71, "fit"), point(9, 0.72, "float")]
    chart = pareto("p", points, title="Sizes", x=X, y=Y, bound=0.69)
    assert sorted(marks(chart)) == sorted((one.kind, one.title) for one in points)
    assert marks(chart)[-1] == ("kept", "kept 2 0.7")


def test_the_front_joins_what_none_beats_and_never_what_was_refused() -> None:
    points = [point(1, 0.9, "refused"), point(2, 0.5, "kept"), point(3, 0.4, "fit"), point(4, 0.8, "float")]
    chart = pareto("p", points, title="t", x=X, y=Y, bound=0.45)
    path = re.search(r'class="front" d="([^"]*)"', chart)
    assert path is not None
    assert path[1].count("V") == 1, "two points: the kept one and the float one"


def test_a_trial_far_below_stands_on_the_edge_and_does_not_squeeze_the_others() -> None:
    points = [point(1, 0.74, "kept"), point(2, 0.75, "float"), point(1, 0.01, "refused")]
    chart = pareto("p", points, title="t", x=X, y=Y, bound=0.74, limit=0.7)
    shapes = {group[1].tag: float(group[1].attrib.get("cy", "0")) for group in parsed(chart).iter("g")}
    assert shapes["circle"] > 0
    assert {kind for kind, _ in marks(chart)} == {"kept", "float", "refused"}
    labels = [float(text.text or "") for text in parsed(chart).iter("text") if re.fullmatch(r"0\.\d+", text.text or "")]
    assert labels
    assert min(labels) > 0.7


@given(points=st.lists(st.tuples(st.floats(0, 1e9), FINITE, st.sampled_from(["kept", "fit", "refused", "float"]))))
def test_marks_stay_within_the_picture(points: list[tuple[float, float, str]]) -> None:
    made = [point(x, y, kind) for x, y, kind in points]
    chart = pareto("p", made, title="t", x=X, y=Y, bound=0.5)
    for circle in parsed(chart).iter("circle"):
        assert 0 <= float(circle.attrib["cx"]) <= WIDTH
        assert 0 <= float(circle.attrib["cy"]) <= 236
    assert "nan" not in chart
    assert "inf" not in chart


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 22, [0, 10, 20]),
        (70.6, 74.4, [71, 72, 73, 74]),
        (0, 0.004, [0, 0.001, 0.002, 0.003, 0.004]),
        (-2, 2, [-2, -1, 0, 1, 2]),
        (0.713, 0.744, [0.72, 0.73, 0.74]),
    ],
)
def test_ticks_are_round_numbers(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


@given(low=FINITE, span=st.floats(1e-6, 1e9))
def test_ticks_are_few_and_within(low: float, span: float) -> None:
    found = ticks(low, low + span)
    slack = span * 1e-6 + 1e-9
    assert len(found) <= 6
    assert found == sorted(found)
    assert all(low - slack <= tick <= low + span + slack for tick in found)


@pytest.mark.parametrize(("low", "high"), [(0, 0), (1, 1), (math.nan, 1), (0, math.inf)])
def test_a_range_without_width_has_one_tick(low: float, high: float) -> None:
    assert len(ticks(low, high)) == 1


def test_layers_are_bars_whose_length_is_the_logarithm() -> None:
    chart = bars(
        "b", [("a", 1e-1, False), ("b", 1e-2, True), ("c", 1e-3, False), ("d", 0.0, False)], title="t", label="l"
    )
    drawn = [(rect.attrib["class"], float(rect.attrib["width"])) for rect in parsed(chart).iter("rect")]
    assert [kind for kind, _ in drawn] == ["bar", "bar marked", "bar", "bar"]
    widths = [width for _, width in drawn]
    assert widths[0] == pytest.approx(2 * widths[1], rel=0.02)
    assert widths[3] <= widths[2] < widths[1]
    assert ("bar marked", "b: 0.01, stays in float") in [(kind, title) for kind, title in marks(chart)]


@given(noises=st.lists(st.floats(0, allow_nan=False), min_size=1, max_size=12))
def test_noise_of_any_size_has_a_bar(noises: list[float]) -> None:
    chart = bars("b", [(f"layer {n}", noise, False) for n, noise in enumerate(noises)], title="t", label="l")
    widths = [float(rect.attrib["width"]) for rect in parsed(chart).iter("rect")]
    assert len(widths) == len(noises)
    assert all(0 < width < WIDTH for width in widths)


def test_a_histogram_shows_tails_beside_a_peak() -> None:
    buckets = [(-1.0, 0.0, 1), (0.0, 1.0, 1_000_000), (1.0, 2.0, 0)]
    chart = histogram("h", buckets, title="t", x=Axis(label="x"))
    heights = [float(rect.attrib["height"]) for rect in parsed(chart).iter("rect")]
    assert heights[0] > 5
    assert heights[2] == 0
    assert [title for _, title in marks(chart)] == ["-1 to 0: 1", "0 to 1: 1000000", "1 to 2: 0"]


@pytest.mark.parametrize("buckets", [[(0.0, 0.0, 5)], [(1.0, 2.0, 0)], [(-1e30, 1e30, 1)]], ids=str)
def test_odd_histograms_are_drawn(buckets: list[tuple[float, float, int]]) -> None:
    chart = histogram("h", buckets, title="t", x=Axis(label="x"))
    assert len(list(parsed(chart).iter("rect"))) == 1
    assert "nan" not in chart


def test_parts_of_a_bar_are_as_wide_as_their_shares() -> None:
    chart = stacked("s", {"int8": 30, "float": 10}, title="t")
    widths = {rect.attrib["class"]: float(rect.attrib["width"]) for rect in parsed(chart).iter("rect")}
    assert widths == {"form form-int8": 538, "form form-float": 178}


def test_what_lies_beyond_the_bound_has_another_colour() -> None:
    def lines(low: float, high: float) -> list[str]:
        chart = interval("i", low, (low + high) / 2, high, bound=0.01, scale=(-0.01, 0.03), title="t")
        return [line.attrib["class"] for line in parsed(chart).iter("line") if "range" in line.attrib["class"]]

    assert lines(-0.002, 0.006) == ["range"]
    assert lines(0.002, 0.02) == ["range", "range over"]
    assert lines(0.015, 0.02) == ["range over"]


@given(ends=st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1))), bound=st.floats(0, 0.5))
def test_a_scale_holds_nothing_lost_and_the_bound(ends: list[tuple[float, float]], bound: float) -> None:
    low, high = interval_scale(ends, bound)
    assert low < 0 <= bound < high


@pytest.mark.parametrize(
    "chart",
    [
        pareto(
            "p", [point(1, 1, "kept", HOSTILE)], title=HOSTILE, x=Axis(label=HOSTILE), y=Axis(label=HOSTILE), bound=1
        ),
        bars("b", [(HOSTILE, 0.1, False)], title=HOSTILE, label=HOSTILE),
        histogram("h", [(0, 1, 1)], title=HOSTILE, x=Axis(label=HOSTILE)),
        stacked("s", {"float": 1}, title=HOSTILE),
        interval("i", 0, 0, 0, bound=0.01, scale=(-1, 1), title=HOSTILE),
    ],
    ids=["pareto", "bars", "histogram", "stacked", "interval"],
)
def test_every_chart_escapes_names_and_says_what_it_is(chart: Markup) -> None:
    root = parsed(chart)
    assert "<script" not in chart
    assert "style=" not in chart
    assert root.attrib["role"] == "img"
    named = root.attrib["aria-labelledby"].split()
    assert [(child.tag, child.attrib["id"]) for child in root[:2]] == [("title", named[0]), ("desc", named[1])]
    assert root[0].text == HOSTILE
