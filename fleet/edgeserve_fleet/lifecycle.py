"""The state machines on the database: each function carries one event out, with what belongs to it, in the caller's
transaction."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import Connection, Row, func, insert, select, update

from edgeserve.contracts.documents import encode
from edgeserve.contracts.errors import NotFoundError
from edgeserve.contracts.rollout import RolloutSpec
from edgeserve_fleet.desired import Director, assign, assignment
from edgeserve_fleet.gate import Evidence, Verdict
from edgeserve_fleet.rollout import (
    ENDED,
    FAILURES,
    DeviceEvent,
    DeviceState,
    RolloutEvent,
    RolloutRecord,
    RolloutState,
    step,
    step_device,
)
from edgeserve_fleet.schema import audit, halts, releases, rollout_devices, rollout_waves, rollouts, verdicts


def find_rollout(connection: Connection, rollout: str) -> Row[Any]:
    """The rollout's row.

    Raises:
        NotFoundError: There is none.
    """
    row = connection.execute(select(rollouts).where(rollouts.c.rollout == rollout)).one_or_none()
    if row is None:
        raise NotFoundError(f"no rollout is named {rollout[:80]!a}", hint="edgeserve fleet rollout status")
    return row


def spec_of(row: Row[Any]) -> RolloutSpec:
    """The order of a rollout."""
    return msgspec.json.decode(row.spec, type=RolloutSpec)


def apply(
    connection: Connection, director: Director, rollout: str, event: RolloutEvent, now: float, reason: str = ""
) -> Row[Any]:
    """Let `event` happen to a rollout; returns its new row.

    Raises:
        ConflictError: Its state does not allow it.
    """
    row = find_rollout(connection, rollout)
    before = RolloutRecord(state=RolloutState(row.state), wave=row.wave, waves=row.waves, reason=row.reason)
    after = step(before, event, reason)
    values: dict[str, Any] = {"state": after.state.value, "wave": after.wave, "reason": after.reason}
    if event is RolloutEvent.BEGIN:
        values |= {"started_at": now, "window_start": now}
    if event in (RolloutEvent.ADVANCE, RolloutEvent.COMPLETE):
        _wave(connection, rollout, before.wave, passed_at=now)
    if event in (RolloutEvent.BEGIN, RolloutEvent.ADVANCE):
        values |= {"wave_started_at": now, "extended": False}
        _wave(connection, rollout, after.wave, started_at=now)
    if event is RolloutEvent.RESUME:  # what went wrong so far is accepted: only what is new counts
        values |= {"window_start": now, "wave_started_at": now, "extended": False}
        _acknowledge(connection, rollout)
    if event is RolloutEvent.EXTEND:
        values |= {"extended": True}
    if event is RolloutEvent.ROLL_BACK:
        halt(connection, director, row.release, rollout, now)
    if after.state in ENDED or after.state is RolloutState.ROLLING_BACK:
        _cancel_planned(connection, rollout, now)
    values["ended_at"] = now if after.state in ENDED else 0.0
    connection.execute(update(rollouts).where(rollouts.c.rollout == rollout).values(values))
    return find_rollout(connection, rollout)


def halt(connection: Connection, director: Director, release: str, rollout: str, now: float) -> None:
    """Put a release on the list that no device may activate."""
    if is_halted(connection, release):
        return
    connection.execute(insert(halts).values(release=release, rollout=rollout, at=now))
    director.issue_halt(connection, now)


def is_halted(connection: Connection, release: str) -> bool:
    """Whether no device may activate the release."""
    return connection.execute(select(halts.c.release).where(halts.c.release == release)).first() is not None


def can_return(connection: Connection, release: str) -> bool:
    """Whether a device can be sent back to a release: the fleet knows it, and it is not halted."""
    known = connection.execute(select(releases.c.digest).where(releases.c.digest == release)).first() is not None
    return known and not is_halted(connection, release)


def offer(
    connection: Connection, director: Director, rollout: Row[Any], member: Row[Any], serving: str, now: float
) -> None:
    """Give one planned device the release; what it had is kept for the way back.

    Args:
        connection: In a writing transaction.
        director: Signs.
        rollout: Its row.
        member: The device's row in it.
        serving: Release digest that answers on the device now; empty when none does.
        now: Unix seconds.
    """
    spec = spec_of(rollout)
    _leave_others(connection, rollout, member.device, now)
    # What it serves is the truth; what it was assigned may never have arrived, or was refused.
    held = assignment(connection, member.device, spec.model)
    had = (serving, held.release if held is not None else "")
    previous = next((digest for digest in had if digest != spec.release and can_return(connection, digest)), "")
    assign(
        connection,
        member.device,
        spec.model,
        release=spec.release,
        rollout=rollout.rollout,
        probation_s=spec.probation_s,
    )
    gen = director.issue(connection, member.device, now)
    move(connection, member, DeviceEvent.OFFER, now, previous=previous, offered_at=now, gen_term=gen.term, gen_n=gen.n)


def recall(connection: Connection, director: Director, rollout: Row[Any], member: Row[Any], now: float) -> None:
    """Send one touched device back to what it had, unless another rollout has it by now."""
    spec = spec_of(rollout)
    held = assignment(connection, member.device, spec.model)
    if held is None or held.rollout != rollout.rollout:
        move(connection, member, DeviceEvent.SUPERSEDE, now, reason="it was assigned by someone else since")
        return
    back = member.previous if can_return(connection, member.previous) else ""
    assign(
        connection,
        member.device,
        spec.model,
        release=back,
        rollout=rollout.rollout,
        previous=spec.release if back else "",
        probation_s=spec.probation_s,
    )
    gen = director.issue(connection, member.device, now)
    reason = f"{member.state}: {member.reason}" if member.reason else member.state
    move(connection, member, DeviceEvent.RECALL, now, previous=back, reason=reason, gen_term=gen.term, gen_n=gen.n)


def move(connection: Connection, member: Row[Any], event: DeviceEvent, now: float, **values: Any) -> DeviceState:  # noqa: ANN401 - columns of several types
    """Let `event` happen to one device of a rollout, and set `values` beside its new state.

    Raises:
        ConflictError: Its state does not allow it.
    """
    state = step_device(DeviceState(member.state), event)
    values = {"state": state.value, "phase": "", "reason": "", "changed_at": now, "acknowledged": False} | values
    same = (rollout_devices.c.rollout == member.rollout) & (rollout_devices.c.device == member.device)
    connection.execute(update(rollout_devices).where(same).values(values))
    return state


def record_verdict(connection: Connection, rollout: Row[Any], evidence: Evidence, verdict: Verdict, now: float) -> None:
    """Store a verdict with all that it rests on."""
    number = connection.execute(
        select(func.coalesce(func.max(verdicts.c.judgement), 0)).where(verdicts.c.rollout == rollout.rollout)
    ).scalar_one()
    connection.execute(
        insert(verdicts).values(
            rollout=rollout.rollout,
            judgement=number + 1,
            wave=rollout.wave,
            at=now,
            verdict=encode(verdict).decode(),
            evidence=encode(evidence).decode(),
        )
    )


def note(connection: Connection, now: float, actor: str, action: str, subject: str, detail: str = "") -> None:
    """Add a line to the audit log."""
    connection.execute(insert(audit).values(at=now, actor=actor, action=action, subject=subject, detail=detail))


def _wave(connection: Connection, rollout: str, wave: int, **values: float) -> None:
    same = (rollout_waves.c.rollout == rollout) & (rollout_waves.c.wave == wave)
    connection.execute(update(rollout_waves).where(same).values(values))


def _acknowledge(connection: Connection, rollout: str) -> None:
    failed = rollout_devices.c.state.in_([state.value for state in FAILURES])
    connection.execute(
        update(rollout_devices).where(rollout_devices.c.rollout == rollout, failed).values(acknowledged=True)
    )


def _cancel_planned(connection: Connection, rollout: str, now: float) -> None:
    planned = rollout_devices.c.state == DeviceState.PLANNED.value
    after = step_device(DeviceState.PLANNED, DeviceEvent.SUPERSEDE)
    connection.execute(
        update(rollout_devices)
        .where(rollout_devices.c.rollout == rollout, planned)
        .values(state=after.value, changed_at=now, reason="the rollout ended before its turn")
    )


def _leave_others(connection: Connection, rollout: Row[Any], device: str, now: float) -> None:
    """Take the device out of earlier rollouts of the model that had no result from it."""
    open_states = (DeviceState.OFFERED, DeviceState.IN_PROGRESS, DeviceState.SILENT, DeviceState.RETURNING)
    members = connection.execute(
        select(rollout_devices)
        .join(rollouts, rollouts.c.rollout == rollout_devices.c.rollout)
        .where(
            rollout_devices.c.device == device,
            rollout_devices.c.state.in_([state.value for state in open_states]),
            rollouts.c.model == rollout.model,
            rollouts.c.rollout != rollout.rollout,
        )
    ).all()
    for member in members:
        move(connection, member, DeviceEvent.SUPERSEDE, now, reason=f"rollout {rollout.rollout} took over")
