"""What a run found, as text, as JUnit XML and as a table for the documentation."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final
from xml.sax.saxutils import escape, quoteattr

from edgeserve.conformance.check import CHECKS, Check, Level
from edgeserve.conformance.run import Outcome, Report, Verdict

_NOT_XML: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def outcome_lines(outcome: Outcome, *, verbose: bool = False) -> list[str]:
    """One outcome as text: a failure with what was sent, expected and came, a skip with its reason when `verbose`."""
    lines = [f"{outcome.verdict.value}  {outcome.level.value:<9}  {outcome.id}: {outcome.title}"]
    if outcome.verdict is Verdict.FAIL:
        lines += [
            f"      sent      {outcome.sent}",
            f"      expected  {outcome.expected}",
            f"      got       {outcome.got}",
        ]
        lines.append(f"      source    {outcome.source}")
    elif outcome.verdict is Verdict.SKIP and verbose:
        lines.append(f"      {outcome.reason}")
    return lines


def summary_lines(report: Report) -> list[str]:
    """Counts by level, why checks were skipped, and the sentence that matters."""
    server = report.server or "a server without metadata"
    lines = ["", f"{server} at {report.url}, models {', '.join(report.models)}", ""]
    lines.append(f"{'':<10}{'pass':>6}{'fail':>6}{'skip':>6}")
    for level in Level:
        counts = [report.count(verdict, level) for verdict in (Verdict.PASS, Verdict.FAIL, Verdict.SKIP)]
        lines.append(f"{level.value:<10}" + "".join(f"{count:>6}" for count in counts))
    reasons: dict[str, int] = {}
    for outcome in report.outcomes:
        if outcome.verdict is Verdict.SKIP:
            reasons[outcome.reason] = reasons.get(outcome.reason, 0) + 1
    if reasons:
        lines += ["", "skipped:"]
        lines += [f"  {count:>3}  {reason}" for reason, count in sorted(reasons.items(), key=lambda item: -item[1])]
    failed = report.count(Verdict.FAIL, Level.MUST)
    verdict = "every MUST is kept" if not failed else f"{failed} MUST not kept"
    if report.gone_after:
        lines += ["", f"the server is gone since {report.gone_after}: nothing was checked from there on"]
    lines += ["", f"{verdict} ({report.count(Verdict.PASS, Level.MUST)} checked)"]
    return lines


def junit(report: Report) -> str:
    """The run as JUnit XML: a test case for each check, a class for each area."""
    cases = []
    for outcome in report.outcomes:
        area, name = outcome.id.split(".", 1)
        head = (
            f'  <testcase classname={quoteattr(f"conformance.{area}")} name={quoteattr(name)} time="{outcome.seconds}">'
        )
        if outcome.verdict is Verdict.FAIL:
            text = f"sent {outcome.sent}\nexpected {outcome.expected}\ngot {outcome.got}\nsource {outcome.source}"
            message = f"{outcome.level.value}: {outcome.title}"
            body = f"<failure message={_attribute(message)}>{escape(_printable(text))}</failure>"
        elif outcome.verdict is Verdict.SKIP:
            body = f"<skipped message={_attribute(outcome.reason)}/>"
        else:
            body = ""
        cases.append(f"{head}{body}</testcase>")
    counts = (
        f'tests="{len(report.outcomes)}" failures="{report.count(Verdict.FAIL)}" skipped="{report.count(Verdict.SKIP)}"'
    )
    suite = f'<testsuite name={_attribute(f"conformance of {report.url}")} {counts} errors="0">'
    return "\n".join(('<?xml version="1.0" encoding="UTF-8"?>', suite, *cases, "</testsuite>", ""))


def checks_table(checks: Iterable[Check] | None = None) -> str:
    """All checks as Markdown, a table for each area."""
    import edgeserve.conformance.checks  # noqa: F401 - fills CHECKS

    areas: dict[str, list[Check]] = {}
    for check in CHECKS.values() if checks is None else checks:
        areas.setdefault(check.area, []).append(check)
    parts = []
    for area, members in areas.items():
        rows = "".join(
            f"| `{check.id}` | {check.level.value} | {_cell(check.title)} | {_cell(check.source)} |\n"
            for check in members
        )
        extensions = sorted({check.extension for check in members if check.extension})
        needs = f"Extension: {', '.join(f'`{name}`' for name in extensions)}.\n\n" if extensions else ""
        parts.append(f"### `{area}`\n\n{needs}| check | level | requirement | source |\n|---|---|---|---|\n{rows}")
    return "\n".join(parts)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _attribute(text: str) -> str:
    return quoteattr(_printable(text))


def _printable(text: str) -> str:
    """XML 1.0 has neither control characters nor surrogates, not even escaped (section 2.2)."""
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)
