"""The report page: one HTML file that loads nothing, runs nothing and can be kept with the release."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Final

import jinja2
from markupsafe import Markup

from edgeserve_compilers.html import view, words
from edgeserve_compilers.report import Provenance, Report

_CLASSES_SHOWN: Final = 40
_CHARACTERS: Final = 400
"""Of a text that comes from a model, a converter or a file name."""


def render(
    report: Report,
    *,
    pictures: Mapping[str, Sequence[bytes]] = {},
    provenance: Provenance | None = None,
) -> str:
    """Write the page.

    It carries its own content security policy: no script, no network, its one style sheet by hash, pictures as data.

    Args:
        report: Of a compilation, whether a release came of it or not.
        pictures: PNG files by `TARGET (FORM)`, or by `TargetReport.title` where that is the title of one form only, in
            the order of its examples; `b""` where there is none. What is no PNG, and what comes after
            REPORT_PICTURE_BYTES, is left out.
        provenance: From what and with what it was made, if the page shall say so.

    Returns:
        A whole HTML document; same arguments, same text.
    """
    folder = resources.files("edgeserve_compilers.html")
    style = (folder / "style.css").read_text("utf-8")
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "bytes": words.size,
        "count": words.count,
        "decibels": words.decibels,
        "milliseconds": words.milliseconds,
        "short": words.short,
        "small": words.small,
        "bounded": lambda text: words.short(str(text), _CHARACTERS),
    }
    template = environment.from_string((folder / "report.html.j2").read_text("utf-8"))
    classes = sorted(report.baseline.classes, key=lambda entry: entry.agreement) if report.baseline else []
    return template.render(
        report=report,
        provenance=provenance,
        headline=view.headline(report),
        targets=view.targets(report, pictures),
        metric=words.metric_name(report.metric),
        value=lambda number: words.value(number, report.metric),
        drop=lambda number, unit=True: words.drop(number, report.metric, unit=unit),
        share=words.share,
        times=words.times,
        classes=classes[:_CLASSES_SHOWN],
        classes_left=len(classes[_CLASSES_SHOWN:]),
        style=Markup(style),  # noqa: S704 - our own file
        policy=_policy(style),
    )


def _policy(style: str) -> str:
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
