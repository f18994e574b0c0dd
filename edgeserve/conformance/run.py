"""Run checks one after another and judge the outcome."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from typing import Final

import msgspec

from edgeserve.conformance.check import CHECKS, Check, Level, NoAnswer, Skip, Violation
from edgeserve.conformance.target import Target
from edgeserve.contracts.errors import InputError

_LAST_BREATH_S: Final = 1.0
"""Seconds in which a server that crashed is surely gone."""


class Verdict(str, Enum):
    """What became of a check."""

    PASS = "PASS"  # noqa: S105 - no password
    FAIL = "FAIL"
    SKIP = "SKIP"


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """One check and what became of it."""

    id: str
    title: str
    area: str
    level: Level
    source: str
    verdict: Verdict
    reason: str = ""
    """Why it was skipped."""
    sent: str = ""
    expected: str = ""
    got: str = ""
    """What was sent, expected and came, of a check that failed."""
    seconds: float = 0.0


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All outcomes of one run."""

    url: str
    server: str
    """Name and version as the server says."""
    extensions: list[str]
    models: list[str]
    outcomes: list[Outcome]
    gone_after: str = ""
    """The check after which the server answered no more; nothing was checked from there on."""

    def count(self, verdict: Verdict, level: Level | None = None) -> int:
        """How many checks ended so."""
        return sum(outcome.verdict is verdict and level in (None, outcome.level) for outcome in self.outcomes)

    def conforms(self, *, strict: bool = False) -> bool:
        """No MUST failed and the server is still there; with `strict`, nothing failed."""
        return not self.gone_after and self.count(Verdict.FAIL, None if strict else Level.MUST) == 0


def chosen(only: Sequence[str] = (), skip: Sequence[str] = ()) -> list[Check]:
    """Checks of the named areas and ids, all when nothing is named; without those to `skip`.

    Raises:
        InputError: A name is neither an area nor an id.
    """
    import edgeserve.conformance.checks  # noqa: F401 - fills CHECKS

    areas = dict.fromkeys(check.area for check in CHECKS.values())
    for name in (*only, *skip):
        if name not in areas and name not in CHECKS:
            raise InputError(
                f"there is no area or check {name!r}", hint=f"areas are {', '.join(areas)}; --list shows all checks"
            )
    return [
        check
        for check in CHECKS.values()
        if (not only or check.area in only or check.id in only) and check.area not in skip and check.id not in skip
    ]


def run(target: Target, checks: Iterable[Check], *, done: Callable[[Outcome], None] | None = None) -> Report:
    """Run checks and report; `done` is called with each outcome as it is known.

    Raises:
        InputError: No model is found to check with.
        TransientError: Nothing listens at the server's address.
    """
    target.http.reach()
    models = [model.name for model in target.models]
    outcomes: list[Outcome] = []
    gone_after = ""
    named = (target.metadata.get("name"), target.metadata.get("version"))  # asked while it lives
    for check in checks:
        if gone_after:
            outcome = _described(check, Verdict.SKIP, reason=f"the server is gone since {gone_after}")
        else:
            outcome, silent = _outcome(target, check)
            if silent and not _reachable(target):
                gone_after = check.id
        outcomes.append(outcome)
        if done is not None:
            done(outcome)
    return Report(
        url=target.http.url,
        server=" ".join(str(part) for part in named if part),
        extensions=sorted(target.extensions),
        models=models,
        outcomes=outcomes,
        gone_after=gone_after,
    )


def _reachable(target: Target) -> bool:
    """Ask for liveness, after a while: a process that is ending may still take connections."""
    target.pause(_LAST_BREATH_S)
    try:
        target.http.get("/v2/health/live")
    except Violation:
        return False
    return True


def _outcome(target: Target, check: Check) -> tuple[Outcome, bool]:
    """What became of a check, and whether the server gave no answer at all."""
    began = time.perf_counter()
    verdict, silent = Verdict.PASS, False
    details: dict[str, str] = {}
    try:
        if check.extension and check.extension not in target.extensions:
            raise Skip(f"the server does not list the extension {check.extension!r}")
        if check.needs_grpc:
            target.grpc  # noqa: B018 - raises Skip when there is none
        check.body(target)
    except Violation as violation:
        verdict, silent = Verdict.FAIL, isinstance(violation, NoAnswer)
        details = {"sent": violation.sent, "expected": violation.expected, "got": violation.got}
    except Skip as skip:
        verdict, details = Verdict.SKIP, {"reason": str(skip)}
    except Exception as error:  # noqa: BLE001 - one check that cannot read an answer must not end the others
        verdict = Verdict.FAIL
        details = {"expected": "an answer that can be read", "got": f"{type(error).__name__}: {error}"}
    return _described(check, verdict, seconds=round(time.perf_counter() - began, 4), **details), silent


def _described(check: Check, verdict: Verdict, *, seconds: float = 0.0, **details: str) -> Outcome:
    return Outcome(
        id=check.id,
        title=check.title,
        area=check.area,
        level=check.level,
        source=check.source,
        verdict=verdict,
        seconds=seconds,
        **details,
    )
