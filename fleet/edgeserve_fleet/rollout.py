"""The rollout's state machine and that of one device in it, as tables. Everything that changes either state is here.

Pure: no clock, no database. `step` and `step_device` take what happened and return the new state; what is not in the
table raises and changes nothing. The reconciler carries the effects out and saves them with the state, in one
transaction. Running has three phases a wave, which are states of their own:

    dispatching   the wave's devices are being offered the release
    observing     they deploy; then they are watched
    judging       the gate decides

`docs/state-machines.md` is drawn from these tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final, TypeVar

from edgeserve.contracts.errors import ConflictError
from edgeserve.contracts.rollout import OnFail


class RolloutState(str, Enum):
    """States of a rollout."""

    DRAFT = "draft"
    VALIDATING = "validating"
    SCHEDULED = "scheduled"
    DISPATCHING = "dispatching"
    OBSERVING = "observing"
    JUDGING = "judging"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    ABORTED = "aborted"
    ROLLING_BACK = "rolling-back"
    ROLLED_BACK = "rolled-back"

    @property
    def is_running(self) -> bool:
        """Whether it is in a phase of a wave."""
        return self in RUNNING

    @property
    def is_active(self) -> bool:
        """Whether it still moves devices or may do so again: it then excludes others of its model."""
        return self in ACTIVE

    @property
    def shown(self) -> str:
        """The state without the phase."""
        return "running" if self.is_running else self.value


RUNNING: Final = frozenset({RolloutState.DISPATCHING, RolloutState.OBSERVING, RolloutState.JUDGING})
ACTIVE: Final = RUNNING | {
    RolloutState.VALIDATING,
    RolloutState.SCHEDULED,
    RolloutState.PAUSED,
    RolloutState.ROLLING_BACK,
}
ENDED: Final = frozenset({RolloutState.SUCCEEDED, RolloutState.ABORTED, RolloutState.ROLLED_BACK})


class RolloutEvent(str, Enum):
    """What can happen to a rollout."""

    START = "start"
    VALID = "valid"
    INVALID = "invalid"
    BEGIN = "begin"
    DISPATCHED = "dispatched"
    OBSERVED = "observed"
    EXTEND = "extend"
    ADVANCE = "advance"
    COMPLETE = "complete"
    PAUSE = "pause"
    RESUME = "resume"
    ABORT = "abort"
    ROLL_BACK = "roll-back"
    RETURNED = "returned"


_S, _E = RolloutState, RolloutEvent
_INTERRUPT: Final = {_E.PAUSE: _S.PAUSED, _E.ABORT: _S.ABORTED, _E.ROLL_BACK: _S.ROLLING_BACK}

TRANSITIONS: Final[Mapping[RolloutState, Mapping[RolloutEvent, RolloutState]]] = {
    _S.DRAFT: {_E.START: _S.VALIDATING, _E.ABORT: _S.ABORTED},
    _S.VALIDATING: {_E.VALID: _S.SCHEDULED, _E.INVALID: _S.DRAFT},
    _S.SCHEDULED: {_E.BEGIN: _S.DISPATCHING, _E.ABORT: _S.ABORTED},
    _S.DISPATCHING: {_E.DISPATCHED: _S.OBSERVING, **_INTERRUPT},
    _S.OBSERVING: {_E.OBSERVED: _S.JUDGING, **_INTERRUPT},
    _S.JUDGING: {_E.EXTEND: _S.OBSERVING, _E.ADVANCE: _S.DISPATCHING, _E.COMPLETE: _S.SUCCEEDED, **_INTERRUPT},
    _S.PAUSED: {_E.RESUME: _S.DISPATCHING, _E.ABORT: _S.ABORTED, _E.ROLL_BACK: _S.ROLLING_BACK},
    _S.SUCCEEDED: {_E.ROLL_BACK: _S.ROLLING_BACK},
    _S.ABORTED: {_E.ROLL_BACK: _S.ROLLING_BACK},
    # Abort is the way out when a touched device never comes back to report.
    _S.ROLLING_BACK: {_E.RETURNED: _S.ROLLED_BACK, _E.ABORT: _S.ABORTED},
    _S.ROLLED_BACK: {},
}

ON_FAIL: Final[Mapping[OnFail, RolloutEvent]] = {
    OnFail.ROLLBACK: _E.ROLL_BACK,
    OnFail.PAUSE: _E.PAUSE,
    OnFail.ABORT: _E.ABORT,
}
"""What a gate that failed does to the rollout."""


@dataclass(frozen=True, kw_only=True)
class RolloutRecord:
    """Where a rollout is."""

    state: RolloutState = RolloutState.DRAFT
    wave: int = 0
    """Current wave, from 1; 0 before the first."""
    waves: int
    reason: str = ""
    """Why it is here; the latest event that gave a reason."""

    def __post_init__(self) -> None:
        if not 0 <= self.wave <= self.waves:
            raise ValueError(f"wave {self.wave} of {self.waves}")


def step(record: RolloutRecord, event: RolloutEvent, reason: str = "") -> RolloutRecord:
    """The record after `event`.

    Raises:
        ConflictError: The state does not allow it, or the wave does not: the last one completes, the others advance.
    """
    state = TRANSITIONS[record.state].get(event)
    if state is None or (
        event in (_E.ADVANCE, _E.COMPLETE) and (event is _E.COMPLETE) != (record.wave == record.waves)
    ):
        allowed = ", ".join(sorted(kind.value for kind in TRANSITIONS[record.state]))
        raise ConflictError(
            f"a rollout that is {record.state.shown} does not allow {event.value}",
            hint=f"possible now: {allowed}" if allowed else "it has ended; create another rollout",
        )
    wave = record.wave + (event in (_E.BEGIN, _E.ADVANCE))
    return replace(record, state=state, wave=wave, reason=reason)


class DeviceState(str, Enum):
    """States of one device in one rollout."""

    PLANNED = "planned"
    HELD_OUT = "held-out"
    """Selected, but in no wave: it keeps what it has and serves as control."""
    ALREADY = "already"
    """Had the release before."""
    OFFERED = "offered"
    IN_PROGRESS = "in-progress"
    COMMITTED = "committed"
    REJECTED = "rejected"
    REVERTED = "reverted"
    SILENT = "silent"
    """Seen after the offer, but without a result at the wave's deadline."""
    DIVERGED = "diverged"
    """Had the release, and later reported another."""
    SUPERSEDED = "superseded"
    """Out of this rollout's hands: it ended before the offer, another took over, or the device was revoked."""
    RETURNING = "returning"
    RETURNED = "returned"
    LEFT = "left"
    """Rolled back, but it had nothing to return to, and serves the release still."""


class DeviceEvent(str, Enum):
    """What can happen to a device in a rollout."""

    OFFER = "offer"
    PROGRESS = "progress"
    COMMIT = "commit"
    REJECT = "reject"
    REVERT = "revert"
    SILENCE = "silence"
    DIVERGE = "diverge"
    RESET = "reset"
    """Its state directory was lost: the offer stands anew."""
    SUPERSEDE = "supersede"
    RECALL = "recall"
    ARRIVE = "arrive"
    STAY = "stay"


FAILURES: Final = frozenset({DeviceState.REJECTED, DeviceState.REVERTED, DeviceState.SILENT, DeviceState.DIVERGED})
"""What the gate counts as failed."""
SUCCESSES: Final = frozenset({DeviceState.COMMITTED, DeviceState.ALREADY})
PENDING: Final = frozenset({DeviceState.OFFERED, DeviceState.IN_PROGRESS})
UNTOUCHED: Final = frozenset({DeviceState.PLANNED, DeviceState.HELD_OUT})
TOUCHED: Final = FAILURES | SUCCESSES | PENDING
"""Devices that a rollback recalls."""
FOLLOWED: Final = TOUCHED | {DeviceState.RETURNING, DeviceState.LEFT}
"""Devices whose reports move their state."""

_D, _V = DeviceState, DeviceEvent
# A device can come back from every failure (`force`, a late report, an operator on site): its report is the truth.
_REPORTS: Final = {
    _V.PROGRESS: _D.IN_PROGRESS,
    _V.COMMIT: _D.COMMITTED,
    _V.REJECT: _D.REJECTED,
    _V.REVERT: _D.REVERTED,
    _V.DIVERGE: _D.DIVERGED,
}


def _except(row: Mapping[DeviceEvent, DeviceState], event: DeviceEvent) -> dict[DeviceEvent, DeviceState]:
    """What is said again is no event: it would undo the judgement or count as a new failure after a resume."""
    return {kind: after for kind, after in row.items() if kind is not event}


_FATE: Final = {_V.RESET: _D.OFFERED, _V.SUPERSEDE: _D.SUPERSEDED, _V.RECALL: _D.RETURNING}

DEVICE_TRANSITIONS: Final[Mapping[DeviceState, Mapping[DeviceEvent, DeviceState]]] = {
    _D.PLANNED: {_V.OFFER: _D.OFFERED, _V.SUPERSEDE: _D.SUPERSEDED},
    _D.HELD_OUT: {_V.SUPERSEDE: _D.SUPERSEDED},
    _D.ALREADY: {_V.DIVERGE: _D.DIVERGED, **_FATE},
    _D.OFFERED: {**_REPORTS, _V.SILENCE: _D.SILENT, **_FATE},
    _D.IN_PROGRESS: {**_REPORTS, _V.SILENCE: _D.SILENT, **_FATE},
    _D.COMMITTED: {_V.DIVERGE: _D.DIVERGED, **_FATE},
    _D.REJECTED: {**_except(_REPORTS, _V.REJECT), **_FATE},
    _D.REVERTED: {**_except(_REPORTS, _V.REVERT), **_FATE},
    _D.SILENT: {**_except(_REPORTS, _V.PROGRESS), **_FATE},
    _D.DIVERGED: {_V.COMMIT: _D.COMMITTED, **_FATE},
    _D.SUPERSEDED: {},
    _D.RETURNING: {_V.ARRIVE: _D.RETURNED, _V.STAY: _D.LEFT, _V.SUPERSEDE: _D.SUPERSEDED},
    _D.RETURNED: {},
    _D.LEFT: {_V.ARRIVE: _D.RETURNED, _V.SUPERSEDE: _D.SUPERSEDED},
}


def step_device(state: DeviceState, event: DeviceEvent) -> DeviceState:
    """The device's state after `event`.

    Raises:
        ConflictError: The state does not allow it.
    """
    after = DEVICE_TRANSITIONS[state].get(event)
    if after is None:
        raise ConflictError(f"a device that is {state.value} in a rollout does not allow {event.value}")
    return after


def diagram() -> str:
    """Both tables as one Mermaid state diagram."""
    return "\n".join(
        [
            "stateDiagram-v2",
            '    state "Rollout" as rollout {',
            *_drawn("", RolloutState.DRAFT, TRANSITIONS),
            "    }",
            '    state "One device in a rollout" as device {',
            *_drawn("device_", DeviceState.PLANNED, DEVICE_TRANSITIONS),
            "    }",
        ]
    )


_StateT = TypeVar("_StateT", bound=Enum)
_EventT = TypeVar("_EventT", bound=Enum)


def _drawn(prefix: str, first: _StateT, table: Mapping[_StateT, Mapping[_EventT, _StateT]]) -> list[str]:
    def name(state: Enum) -> str:
        return prefix + str(state.value).replace("-", "_")

    lines = [f'        state "{state.value}" as {name(state)}' for state in table]
    lines.append(f"        [*] --> {name(first)}")
    for state, row in table.items():
        joined: dict[_StateT, list[str]] = {}
        for event, after in row.items():
            joined.setdefault(after, []).append(str(event.value))
        lines += [f"        {name(state)} --> {name(after)}: {', '.join(events)}" for after, events in joined.items()]
        if not row:
            lines.append(f"        {name(state)} --> [*]")
    return lines
