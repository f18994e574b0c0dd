"""What the report page shows, taken from a report: headline, rows and charts. Pure."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from markupsafe import Markup

from edgeserve.contracts.limits import REPORT_PICTURE_BYTES
from edgeserve_compilers.html import charts, words
from edgeserve_compilers.report import Example, Report, TargetReport
from edgeserve_compilers.spec import FLOAT, Measurement, PrecisionChoice, Trial

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_LAYERS_SHOWN: Final = 12
_FAR_BELOW: Final = 8
"""A trial that loses more than this many times the bound stands on the edge of its chart."""
_FORMS: Final = ("int8", "int4", "fp16", "float")


@dataclass(frozen=True, kw_only=True)
class Headline:
    """May this be shipped?"""

    state: str
    """`ready`, `look` (packed, but something must be looked at) or `failed`."""
    text: str
    reasons: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One row of the table of what was tried."""

    trial: Trial
    kind: str
    """`kept`, `fit`, `refused`; `float` when the float form is none of the first two."""
    outcome: str


@dataclass(frozen=True, kw_only=True)
class Shown:
    """An example with its picture as a data URL, or without."""

    example: Example
    picture: str


@dataclass(frozen=True, kw_only=True)
class TargetView:
    """One form of a target: all that its section and its row of the summary show."""

    anchor: str
    title: str
    report: TargetReport
    kept: Trial | None
    found: Measurement | None
    """Of the kept trial."""
    attempts: tuple[Attempt, ...]
    examples: tuple[Shown, ...]
    interval: Markup
    placement: Markup
    shares: dict[str, int]
    """Operations of the kept product by numeric form."""
    figures: tuple[tuple[str, Markup], ...]
    """Caption and chart."""
    sensitivity: Markup


def title(report: Report, target: TargetReport) -> str:
    """The target, and its form where the report has several of the target."""
    alike = [other for other in report.targets if other.target == target.target]
    return f"{target.target} ({target.form})" if len(alike) > 1 and target.form else target.title


def headline(report: Report) -> Headline:
    """What a stranger must know first."""
    missing = [target for target in report.targets if target.kept is None]
    failed = [title(report, target) for target in missing if target.required]
    bound = words.drop(report.options.max_accuracy_drop, report.metric)
    reasons = [f"Could not be judged: {text}" for text in report.unjudged]
    for target in report.targets:
        name = title(report, target)
        reasons += [f"{name}{text}" for text in _doubts(target, report)]
        reasons += [f"{name}: {text}" for text in target.findings]
    reasons += report.warnings
    metric = words.metric_name(report.metric)
    count = len(report.targets) - len(missing)
    if failed or not count:
        named = " and ".join(failed) or "any target"
        text = f"No release: there is no variant for {named} within {bound} of the float model."
        return Headline(state="failed", text=text, reasons=tuple(reasons))
    variants = "The variant keeps" if count == 1 else f"All {count} variants keep"
    text = f"{variants} {metric} within {bound} of the float model."
    return Headline(state="look" if reasons else "ready", text=text, reasons=tuple(reasons))


def _doubts(target: TargetReport, report: Report) -> list[str]:
    """What of a form must be looked at, to be read after its name."""
    kept, most = target.kept, report.options.max_accuracy_drop
    if kept is None:
        return [f" has no variant: {target.verdict.why}"]
    if kept.measurement is None:
        return [": what was packed was not measured"]
    doubts = []
    in_float = kept.candidate == FLOAT
    if in_float and report.options.precision is not PrecisionChoice.FP32:
        doubts.append(f" is packed in float: {target.verdict.why}")
    same = in_float and kept.measurement.drop == 0  # held against itself, an interval says nothing
    if kept.measurement.drop_high > most and not same:
        worst, bound = (words.drop(number, report.metric) for number in (kept.measurement.drop_high, most))
        doubts.append(f": the drop may be as large as {worst}, the bound is {bound}")
    return doubts


def targets(report: Report, pictures: Mapping[str, Sequence[bytes]]) -> list[TargetView]:
    """One view for each form, in the order of the report."""
    bound = report.options.max_accuracy_drop
    measured = [target.kept.measurement for target in report.targets if target.kept and target.kept.measurement]
    scale = charts.interval_scale([(found.drop_low, found.drop_high) for found in measured], bound)
    room = [REPORT_PICTURE_BYTES]
    views = []
    for number, target in enumerate(report.targets, 1):
        kept = target.kept
        found = kept.measurement if kept else None
        shares = {form: kept.placement[form] for form in _FORMS if kept.placement.get(form)} if kept else {}
        anchor = f"t{number}"
        views.append(
            TargetView(
                anchor=anchor,
                title=title(report, target),
                report=target,
                kept=kept,
                found=found,
                attempts=_attempts(target),
                examples=_examples(target.examples, _pictures_of(target, report, pictures), room),
                interval=_interval(f"{anchor}-i", found, report, scale),
                placement=charts.stacked(f"{anchor}-p", shares, title="Operations by numeric form")
                if shares
                else Markup(""),
                shares=shares,
                figures=_figures(anchor, target, report),
                sensitivity=_sensitivity(f"{anchor}-n", target),
            )
        )
    return views


def _interval(name: str, found: Measurement | None, report: Report, scale: tuple[float, float]) -> Markup:
    if found is None or not all(map(math.isfinite, (found.drop, found.drop_low, found.drop_high))):
        return Markup("")
    low, high = (words.drop(end, report.metric, unit=False) for end in (found.drop_low, found.drop_high))
    title = f"Drop {words.drop(found.drop, report.metric)}, 95 % interval {low} to {high}"
    bound = report.options.max_accuracy_drop
    return charts.interval(name, found.drop_low, found.drop, found.drop_high, bound=bound, scale=scale, title=title)


def _attempts(target: TargetReport) -> tuple[Attempt, ...]:
    """The kept one first, then those that would have done, the least loss first; those never measured last."""
    made = []
    for trial in target.trials:
        kind = _kind(target, trial)
        outcome = "; ".join(trial.refused)
        if kind == "kept":
            outcome = target.verdict.why
        elif not trial.refused:
            outcome = "holds the bound" if trial.candidate != FLOAT else "the float form"
        made.append(Attempt(trial=trial, kind=kind, outcome=outcome))

    def place(attempt: Attempt) -> tuple[int, float]:
        found = attempt.trial.measurement
        loss = found.drop if found and math.isfinite(found.drop) else math.inf
        return ("kept", "fit", "float", "refused").index(attempt.kind), loss

    return tuple(sorted(made, key=place))


def _kind(target: TargetReport, trial: Trial) -> str:
    if trial.candidate == target.verdict.kept:
        return "kept"
    if trial.refused:
        return "refused"
    return "float" if trial.candidate == FLOAT else "fit"


def _pictures_of(target: TargetReport, report: Report, pictures: Mapping[str, Sequence[bytes]]) -> Sequence[bytes]:
    """By the full name; by the title only where it cannot mean another form."""
    alone = sum(other.title == target.title for other in report.targets) == 1
    by_title = pictures.get(target.title, ()) if alone else ()
    return pictures.get(f"{target.target} ({target.form})", by_title)


def _examples(examples: Sequence[Example], pictures: Sequence[bytes], room: list[int]) -> tuple[Shown, ...]:
    """`room` holds the bytes that pictures may still take, and is lessened."""
    shown = []
    for number, example in enumerate(examples):
        picture = pictures[number] if number < len(pictures) else b""
        url = ""
        if picture.startswith(_PNG) and len(picture) <= room[0]:
            room[0] -= len(picture)
            url = "data:image/png;base64," + base64.b64encode(picture).decode()
        shown.append(Shown(example=example, picture=url))
    return tuple(shown)


def _figures(anchor: str, target: TargetReport, report: Report) -> tuple[tuple[str, Markup], ...]:
    figures = []
    if any(trial.measurement for trial in target.trials):
        figures.append(("Size and accuracy", _scatter(f"{anchor}-s", target, report, by_size=True)))
        caption = "Latency and accuracy" + ("" if target.native else " (host proxy)")
        figures.append((caption, _scatter(f"{anchor}-l", target, report, by_size=False)))
    if target.differences:
        buckets = [(bucket.low, bucket.high, bucket.count) for bucket in target.differences]
        axis = charts.Axis(label="variant \u2212 float", text=lambda value: words.small(value))
        chart = charts.histogram(f"{anchor}-h", buckets, title="Differences from the float model's outputs", x=axis)
        figures.append(("Differences from float", chart))
    return tuple(figures)


def _sensitivity(name: str, target: TargetReport) -> Markup:
    if not target.sensitivity:
        return Markup("")
    stays = set(target.kept.candidate.float_layers) if target.kept else set()
    entries = [(entry.layer, entry.noise, entry.layer in stays) for entry in target.sensitivity[:_LAYERS_SHOWN]]
    title = f"Noise that quantizing one layer alone adds, {len(target.sensitivity)} layers ranked"
    return charts.bars(name, entries, title=title, label="noise / signal when it alone is quantized")


def _scatter(name: str, target: TargetReport, report: Report, *, by_size: bool) -> Markup:
    tried = [(trial, trial.measurement) for trial in target.trials if trial.measurement is not None]
    tried = [(trial, found) for trial, found in tried if math.isfinite(found.value)]
    floats = tried[0][1].float_value if tried else 0.0
    widest = max([trial.size_bytes if by_size else found.latency_ms for trial, found in tried], default=1)
    unit, length = _size_unit(widest) if by_size else _time_unit(widest)
    points = [
        charts.Point(
            x=(trial.size_bytes if by_size else found.latency_ms) / length,
            y=found.value,
            kind=_kind(target, trial),
            title=_title(trial, found, report.metric),
        )
        for trial, found in tried
    ]
    bound = report.options.max_accuracy_drop
    x = charts.Axis(label=f"{'size' if by_size else 'latency of one row'}, {unit}")
    share = words.is_share(report.metric)
    y = charts.Axis(
        label=words.metric_name(report.metric) + (", %" if share else ""), text=_percent if share else _plain
    )
    return charts.pareto(
        name,
        points,
        title=f"{title(report, target)}: {'size' if by_size else 'latency'} and accuracy of every trial",
        x=x,
        y=y,
        bound=floats - bound,
        limit=floats - _FAR_BELOW * max(bound, 0.0025),
    )


def _title(trial: Trial, found: Measurement, metric: str) -> str:
    parts = [
        trial.candidate.title,
        words.value(found.value, metric),
        words.size(trial.size_bytes),
        words.milliseconds(found.latency_ms),
        *trial.refused,
    ]
    return " · ".join(words.short(part, 200) for part in parts)


def _percent(value: float) -> str:
    return f"{100 * value:g}"


def _plain(value: float) -> str:
    return f"{value:g}"


def _size_unit(largest: float) -> tuple[str, float]:
    return ("MB", 1e6) if largest >= 1e6 else ("kB", 1e3) if largest >= 1e3 else ("bytes", 1.0)


def _time_unit(largest: float) -> tuple[str, float]:
    return ("ms", 1.0) if largest >= 1 else ("µs", 1e-3)
