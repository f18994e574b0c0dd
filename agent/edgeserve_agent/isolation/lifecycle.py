"""When a worker process is started again, as data: states, what leads from one to the next, back-off, crash budget.

Pure: it neither acts nor looks at a clock. Everything that changes the state is in `TRANSITIONS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from edgeserve.contracts.errors import ConflictError
from edgeserve.contracts.limits import (
    ISOLATION_BACKOFF_FIRST_S,
    ISOLATION_BACKOFF_MAX_S,
    ISOLATION_CRASH_WINDOW_S,
    ISOLATION_CRASHES,
)


class State(str, Enum):
    """Of a model that is served from a worker process."""

    STARTING = "starting"
    """A worker process loads the model."""
    SERVING = "serving"
    WAITING = "waiting"
    """The worker is gone; the next one is started when `due`."""
    FAILED = "failed"
    """It crashed more often than the budget allows and stays down."""
    CLOSED = "closed"


class EventKind(str, Enum):
    """What can happen to it."""

    STARTED = "started"
    """The worker has loaded the model."""
    ENDED = "ended"
    """The worker ended unasked, or could not load the model."""
    SPENT = "spent"
    """It ended unasked once more than the budget allows; `step` makes it of ENDED."""
    DUE = "due"
    """The back-off has passed."""
    CLOSED = "closed"


_S, _E = State, EventKind

TRANSITIONS: Final[Mapping[tuple[State, EventKind], State]] = {
    (_S.STARTING, _E.STARTED): _S.SERVING,
    (_S.STARTING, _E.ENDED): _S.WAITING,
    (_S.STARTING, _E.SPENT): _S.FAILED,
    (_S.STARTING, _E.CLOSED): _S.CLOSED,
    (_S.SERVING, _E.ENDED): _S.WAITING,
    (_S.SERVING, _E.SPENT): _S.FAILED,
    (_S.SERVING, _E.CLOSED): _S.CLOSED,
    (_S.WAITING, _E.DUE): _S.STARTING,
    (_S.WAITING, _E.CLOSED): _S.CLOSED,
    (_S.FAILED, _E.CLOSED): _S.CLOSED,
    # What was under way when the model was closed changes nothing any more.
    (_S.CLOSED, _E.STARTED): _S.CLOSED,
    (_S.CLOSED, _E.ENDED): _S.CLOSED,
    (_S.CLOSED, _E.SPENT): _S.CLOSED,
    (_S.CLOSED, _E.DUE): _S.CLOSED,
    (_S.CLOSED, _E.CLOSED): _S.CLOSED,
}


@dataclass(frozen=True, kw_only=True)
class RestartPolicy:
    """How often and how soon; seconds."""

    first_s: float = ISOLATION_BACKOFF_FIRST_S
    longest_s: float = ISOLATION_BACKOFF_MAX_S
    crashes: int = ISOLATION_CRASHES
    """Within `window_s`; each is followed by a restart, one more by none."""
    window_s: float = ISOLATION_CRASH_WINDOW_S

    def delay_s(self, crash: int) -> float:
        """Back-off after the `crash`-th crash of the window, counted from 1."""
        return min(self.longest_s, self.first_s * 2.0 ** min(crash - 1, 60))


@dataclass(frozen=True, kw_only=True)
class Lifecycle:
    """A model and the recent past of its worker processes."""

    state: State = State.STARTING
    crashes: tuple[float, ...] = ()
    """Monotonic seconds of those within the window, oldest first."""
    due: float = 0.0
    """When a WAITING model is started again, monotonic seconds."""


def step(life: Lifecycle, event: EventKind, *, now: float, policy: RestartPolicy) -> Lifecycle:
    """Move on.

    Args:
        life: As it was.
        event: What happened.
        now: Monotonic seconds.
        policy: Back-off and budget.

    Raises:
        ConflictError: The event is not possible in this state.
    """
    crashes = life.crashes
    if event is EventKind.ENDED:
        crashes = (*(crash for crash in crashes if now - crash < policy.window_s), now)
        event = EventKind.SPENT if len(crashes) > policy.crashes else event
    state = TRANSITIONS.get((life.state, event))
    if state is None:
        raise ConflictError(f"a worker that is {life.state.value} cannot be {event.value}")
    due = now + policy.delay_s(len(crashes)) if state is State.WAITING else 0.0
    return Lifecycle(state=state, crashes=crashes, due=due)
