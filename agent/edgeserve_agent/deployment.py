"""One device's passage to a release, as data: states, what leads from one to the next, what a restart does.

Two rules of this file. Everything that changes the state of a deployment is in `TRANSITIONS`. Nothing here acts or
looks at a clock: `step` returns the effects, and the shell saves the new record before it carries out the first one.

A deployment may be cut off after any instruction. What keeps a device serving is the order: nothing touches
`slots.json` before `ACTIVATING`, by which time the variant lies complete on disk, has been tried in a child process and
is loaded beside the one that answers; and the slots that were there before stand in the journal until `COMMITTED`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple

import msgspec

from edgeserve.contracts.desired import Generation, ModelTarget
from edgeserve.contracts.errors import ConflictError
from edgeserve.contracts.limits import MAX_PROBATION_STARTS, MAX_REASON_CHARS, MAX_RECORD_WRITES
from edgeserve.contracts.reported import DeploymentState as State


class EventKind(str, Enum):
    """What can happen to a deployment."""

    ORDERED = "ordered"
    """The fleet, or a person at the device, wants the release."""
    ALREADY = "already"
    """The release answers requests as it is."""
    REFUSED = "refused"
    """It may not be tried here: quarantined or halted."""
    FETCHED = "fetched"
    """All blobs are here and verified."""
    KEPT = "kept"
    """The release was active here before and is still on disk, intact: no download and no trial is needed."""
    TRIED = "tried"
    """A child process loaded it and reproduced the golden set; of several variants the fastest here was picked."""
    READY = "ready"
    """It is loaded in the serving process beside what answers."""
    ACTIVATED = "activated"
    """`slots.json` names it, and the serving process, if there is one, answers with it."""
    PROVEN = "proven"
    """It served through its probation."""
    RESTORED = "restored"
    """The slots are as before."""
    FAILED = "failed"
    SUPERSEDED = "superseded"
    """A newer order names another release."""
    HALTED = "halted"
    """The fleet forbade the release or its rollout."""
    RESUMED = "resumed"
    """The agent started anew, before or after the switch: do the step again."""
    BOOTED = "booted"
    """The agent started anew with the candidate active: counts against the start budget."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something happened."""

    kind: EventKind
    reason: str = ""
    """For people: why it failed, was refused or ended."""
    blame: bool = False
    """The release itself is at fault: its digest goes into quarantine."""
    variant: str = ""
    """Manifest digest of the variant that was chosen (FETCHED, KEPT), or picked of several that were tried (TRIED)."""
    latency_ms: float = 0.0
    """Median of one row in the trial of that variant (TRIED); 0 = not measured."""
    downloaded: int = 0
    """Bytes that came over the network for it; counted against the device's daily limit."""

    def __post_init__(self) -> None:
        if self.blame and self.kind is not EventKind.FAILED:
            raise ValueError(f"{self.kind.value} is nobody's fault")


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A deployment, as the journal keeps it."""

    target: ModelTarget
    gen: Generation
    """Generation that was last seen to want it."""
    probation_s: float
    """Length of the probation: the fleet's wish or the device's own minimum, whichever is longer."""
    previous: str = ""
    """Release digest that answered when it was ordered; empty when none did."""
    state: State = State.IDLE
    variant: str = ""
    latency_ms: float = 0.0
    """Median of one row in its trial; 0 = not measured."""
    reason: str = ""
    blamed: bool = False
    writes: int = 0
    """Steps saved so far; more than MAX_RECORD_WRITES is a loop."""
    starts: int = 0
    """Starts with the candidate active."""

    @property
    def model(self) -> str:
        """The model it is about."""
        return self.target.model

    @property
    def release(self) -> str:
        """The release digest it is to lead to."""
        return self.target.release

    @property
    def in_flight(self) -> bool:
        """Whether there is something left to do."""
        return self.state is not State.IDLE and not self.state.is_terminal


@dataclass(frozen=True)
class Fetch:
    """Bring all blobs of the variants for this device here and verify them."""


@dataclass(frozen=True)
class Stage:
    """Unpack the variant and try it in a child process; of several, each, to pick the fastest."""


@dataclass(frozen=True)
class Prepare:
    """Verify the unpacked files again and load them in the serving process, beside what answers."""


@dataclass(frozen=True)
class Activate:
    """Write `slots.json` and let the loaded variant answer."""


@dataclass(frozen=True)
class StartProbation:
    """Watch the serving process from now on."""


@dataclass(frozen=True)
class Revert:
    """Put the slots back and let the previous variant answer."""


@dataclass(frozen=True)
class Tidy:
    """Drop what nothing refers to any more, in the serving process and on disk."""


Effect = Fetch | Stage | Prepare | Activate | StartProbation | Revert | Tidy

_E = EventKind

TRANSITIONS: Final[Mapping[tuple[State, EventKind], State]] = {
    (State.IDLE, _E.ORDERED): State.FETCHING,
    (State.IDLE, _E.ALREADY): State.COMMITTED,
    (State.IDLE, _E.REFUSED): State.REJECTED,
    # Before the switch, whatever goes wrong leaves nothing to undo.
    (State.FETCHING, _E.FETCHED): State.FETCHING,
    (State.FETCHING, _E.TRIED): State.STAGED,
    (State.FETCHING, _E.KEPT): State.STAGED,
    (State.FETCHING, _E.RESUMED): State.FETCHING,
    (State.FETCHING, _E.FAILED): State.REJECTED,
    (State.FETCHING, _E.HALTED): State.REJECTED,
    (State.FETCHING, _E.SUPERSEDED): State.IDLE,
    (State.STAGED, _E.READY): State.ACTIVATING,
    (State.STAGED, _E.RESUMED): State.STAGED,
    (State.STAGED, _E.FAILED): State.REJECTED,
    (State.STAGED, _E.HALTED): State.REJECTED,
    (State.STAGED, _E.SUPERSEDED): State.IDLE,
    # From here on slots.json may name the candidate: every way out but PROVEN leads through REVERTING.
    (State.ACTIVATING, _E.ACTIVATED): State.PROBATION,
    (State.ACTIVATING, _E.RESUMED): State.STAGED,
    (State.ACTIVATING, _E.BOOTED): State.ACTIVATING,
    (State.ACTIVATING, _E.FAILED): State.REVERTING,
    (State.ACTIVATING, _E.HALTED): State.REVERTING,
    (State.ACTIVATING, _E.SUPERSEDED): State.REVERTING,
    (State.PROBATION, _E.PROVEN): State.COMMITTED,
    (State.PROBATION, _E.BOOTED): State.PROBATION,
    (State.PROBATION, _E.FAILED): State.REVERTING,
    (State.PROBATION, _E.HALTED): State.REVERTING,
    (State.PROBATION, _E.SUPERSEDED): State.REVERTING,
    (State.REVERTING, _E.RESTORED): State.REVERTED,
    (State.REVERTING, _E.RESUMED): State.REVERTING,
    (State.REVERTING, _E.FAILED): State.REVERT_FAILED,
}


class OnRestart(NamedTuple):
    """What a start of the agent means for a deployment that was cut off."""

    before_switch: EventKind
    """`slots.json` does not name the candidate."""
    after_switch: EventKind
    """`slots.json` names the candidate as active."""


ON_RESTART: Final[Mapping[State, OnRestart]] = {
    # What is on disk is used again, hashes and all; a download goes on where it stopped.
    State.FETCHING: OnRestart(_E.RESUMED, _E.RESUMED),
    State.STAGED: OnRestart(_E.RESUMED, _E.RESUMED),
    # Not switched: nothing happened yet, so it is prepared once more. Switched: finish, but count it.
    State.ACTIVATING: OnRestart(_E.RESUMED, _E.BOOTED),
    # The probation begins anew, it never ends by a restart. Slots that name something else: go back.
    State.PROBATION: OnRestart(_E.FAILED, _E.BOOTED),
    State.REVERTING: OnRestart(_E.RESUMED, _E.RESUMED),
}

_ON_ENTRY: Final[Mapping[State, tuple[Effect, ...]]] = {
    State.IDLE: (Tidy(),),
    State.FETCHING: (Fetch(),),
    State.STAGED: (Prepare(),),
    State.ACTIVATING: (Activate(),),
    State.PROBATION: (StartProbation(),),
    State.COMMITTED: (Tidy(),),
    State.REVERTING: (Revert(),),
    State.REVERTED: (Tidy(),),
    State.REVERT_FAILED: (),
    State.REJECTED: (Tidy(),),
}


def step(record: Record, event: Event) -> tuple[Record, tuple[Effect, ...]]:
    """Move a deployment on.

    A record that was saved too often, or started too often with the candidate active, can only go back.

    Returns:
        The new record, to be saved before the first of the effects is carried out; then the effects, in order.

    Raises:
        ConflictError: The event is not possible in this state; nothing has changed.
    """
    event = _within_budget(record, event)
    state = TRANSITIONS.get((record.state, event.kind))
    if state is None:
        raise ConflictError(f"a deployment that is {record.state.value} cannot be {event.kind.value}")
    changed = msgspec.structs.replace(
        record,
        state=state,
        variant=event.variant or record.variant,
        latency_ms=event.latency_ms or record.latency_ms,
        reason=_short(event.reason) or record.reason,
        blamed=record.blamed or event.blame,
        writes=record.writes + 1,
        starts=record.starts + (event.kind in (EventKind.READY, EventKind.BOOTED)),
    )
    # Fetching is the one state of two steps: what came in is then unpacked and tried.
    return changed, (Stage(),) if event.kind is EventKind.FETCHED else _ON_ENTRY[state]


def restart(record: Record, active: str) -> Event | None:
    """What a start of the agent does to a deployment.

    Args:
        record: As it was saved.
        active: Release digest that `slots.json` names for the model; empty when none.
    """
    row = ON_RESTART.get(record.state)
    if row is None:
        return None
    kind = row.after_switch if active == record.release else row.before_switch
    return Event(kind=kind, reason="slots.json names another release" if kind is EventKind.FAILED else "")


def _within_budget(record: Record, event: Event) -> Event:
    if (record.state, event.kind) not in TRANSITIONS:
        return event
    if event.kind is EventKind.BOOTED and record.starts >= MAX_PROBATION_STARTS:
        reason = f"{record.starts} starts did not last through the probation"
        return Event(kind=EventKind.FAILED, reason=reason, blame=True)
    forward = TRANSITIONS[record.state, event.kind]
    if record.writes >= MAX_RECORD_WRITES and (forward is record.state or event.kind is EventKind.RESUMED):
        reason = f"gave up after {record.writes} steps without an end"
        # Before everything was fetched no byte of the release has run: it cannot be what ends every life.
        return Event(kind=EventKind.FAILED, reason=reason, blame=record.variant != "")
    return event


def _short(reason: str) -> str:
    """A reason as the journal can hold it many times over: bounded, and in characters that every encoding has."""
    return reason[:MAX_REASON_CHARS].encode("utf-8", "replace").decode()


def diagram() -> str:
    """The machine as a mermaid state diagram, drawn from the tables; dotted notes are restarts."""
    labels: dict[tuple[State, State], list[str]] = {}
    for (source, kind), target in TRANSITIONS.items():
        labels.setdefault((source, target), []).append(kind.value)
    lines = ["stateDiagram-v2", f"    [*] --> {_node(State.IDLE)}"]
    lines += [f'    state "{state.value}" as {_node(state)}' for state in State if _node(state) != state.value]
    lines += [
        f"    {_node(source)} --> {_node(target)}: {', '.join(kinds)}" for (source, target), kinds in labels.items()
    ]
    lines += [f"    {_node(state)} --> [*]" for state in State if state.is_terminal]
    for state, row in ON_RESTART.items():
        rule = row.before_switch.value
        if row.after_switch is not row.before_switch:
            rule += f" before the switch, {row.after_switch.value} after"
        lines.append(f"    note right of {_node(state)}: restart = {rule}")
    return "\n".join(lines) + "\n"


def _node(state: State) -> str:
    return state.value.replace("-", "_")


if __name__ == "__main__":
    print(diagram(), end="")
