"""Whether a release on probation may stay. Pure: time and observations are arguments."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from edgeserve.contracts.limits import SERVING_START_S
from edgeserve.contracts.telemetry import ReleaseStats
from edgeserve_agent.control import ServingStats, ServingStatus
from edgeserve_agent.deployment import Event, EventKind, Record

MIN_REQUESTS: Final = 20
"""Requests before a share of failures means something: 1 of 20 is the default threshold."""


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What the serving process says; None when it does not answer."""

    status: ServingStatus | None
    stats: ServingStats | None

    def of(self, record: Record) -> ReleaseStats | None:
        """Counters of the release on probation."""
        releases = self.stats.releases if self.stats else ()
        return next((one for one in releases if (one.model, one.release) == (record.model, record.release)), None)


@dataclass(frozen=True, kw_only=True)
class Watch:
    """One probation. Times are monotonic seconds."""

    answered: float
    """When the serving process last answered with the candidate active, or the probation began."""
    ready_since: float | None = None
    """When the candidate was first seen to answer in this life of the serving process."""
    started: str = ""
    """That life."""
    first: ReleaseStats | None = None
    """Counters at `ready_since`."""


def observe(record: Record, watch: Watch, seen: Observation, now: float, max_failure_share: float) -> Watch | Event:
    """Look once.

    Args:
        record: The deployment, in probation.
        watch: What the last look left.
        seen: What the serving process says now.
        now: Monotonic seconds.
        max_failure_share: The device's own threshold, 0 to 1.

    Returns:
        The event that ends the probation, or what the next look needs.
    """
    answering = _active(record.model, seen.status) if seen.status else None
    if seen.status is not None and answering != record.release and (answering or watch.ready_since is not None):
        return _failed(f"the server answers with {answering}" if answering else "the server answers no more")
    if seen.status is None or answering is None:
        # Starting, loading or busy; a process that died is seen by its supervisor.
        if now - watch.answered > SERVING_START_S:
            return _failed(f"the server did not answer with it for {SERVING_START_S:g} s")
        return watch
    if watch.ready_since is None or watch.started != seen.status.started:
        return Watch(answered=now, ready_since=now, started=seen.status.started, first=seen.of(record))
    grown = _growth(watch.first, seen.of(record))
    if grown is not None and grown.crashes:
        return _failed(f"its worker process crashed {grown.crashes} times")
    requests, failures = (grown.requests, grown.failures) if grown is not None else (0, 0)
    if failures > max_failure_share * max(requests, MIN_REQUESTS):
        return _failed(f"{failures} of {requests} requests failed, {max_failure_share:.0%} are allowed")
    if now - watch.ready_since >= record.probation_s:
        return Event(kind=EventKind.PROVEN)
    return replace(watch, answered=now)


def _active(model: str, status: ServingStatus) -> str | None:
    return next((one.release for one in status.releases if one.active and one.model == model), None)


def _growth(first: ReleaseStats | None, latest: ReleaseStats | None) -> ReleaseStats | None:
    return latest if first is None or latest is None else latest.since(first)


def _failed(reason: str) -> Event:
    return Event(kind=EventKind.FAILED, reason=f"in probation: {reason}", blame=True)
