"""What devices say, put into the database: checked, fenced, and compared with what the fleet wanted.

Everything here may come twice, late, or in another order; each function leaves the same state for it.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from sqlalchemy import Connection, Row, bindparam, insert, select, update

from edgeserve.contracts.desired import NEVER, Generation
from edgeserve.contracts.documents import decode
from edgeserve.contracts.errors import InputError, NotFoundError
from edgeserve.contracts.limits import MAX_REASON_CHARS, MAX_REPORT_BYTES
from edgeserve.contracts.names import model_name
from edgeserve.contracts.reported import Ack, DeploymentState, Event, Fence, Presence, Reported
from edgeserve_fleet.desired import Director
from edgeserve_fleet.lifecycle import move, note
from edgeserve_fleet.observation import Offer, model_report, observe
from edgeserve_fleet.rollout import FOLLOWED, DeviceEvent, DeviceState
from edgeserve_fleet.schema import assignments, devices, events, retired_installs, rollout_devices, rollouts

_MAX_STEPS: Final = 3
"""One report moves a device by at most: state directory lost, deployed, committed."""

# Built once: every message runs them, and building a statement costs more than running it.
_DEVICE: Final = select(devices).where(devices.c.device == bindparam("which"))
_HEARD: Final = update(devices).where(devices.c.device == bindparam("which")).values(last_seen=bindparam("last_seen"))
_MEMBERS: Final = (
    select(rollout_devices, rollouts.c.model, rollouts.c.release)
    .join(rollouts, rollouts.c.rollout == rollout_devices.c.rollout)
    .join(
        assignments,
        (assignments.c.device == rollout_devices.c.device)
        & (assignments.c.model == rollouts.c.model)
        & (assignments.c.rollout == rollout_devices.c.rollout),
    )
    .where(
        rollout_devices.c.device == bindparam("which"),
        rollout_devices.c.state.in_([state.value for state in FOLLOWED]),
    )
)


def enrolled(connection: Connection, device: str) -> Row[Any]:
    """The row of a device that may speak.

    Raises:
        NotFoundError: It was never enrolled, or it was revoked.
    """
    row = connection.execute(_DEVICE, {"which": device}).one_or_none()
    if row is None or row.revoked_at:
        raise NotFoundError(f"device {device[:130]!a} is not enrolled", hint="edgeserve fleet enroll DEVICE")
    return row


def read_reported(device: str, payload: bytes) -> Reported:
    """Decode and check a reported document.

    Raises:
        InputError: It is not valid, or it is of another device.
    """
    reported = decode(payload, Reported, what="reported document", limit=MAX_REPORT_BYTES)
    _same_device(device, reported.device, "reported document")
    for report in reported.models:
        model_name(report.model)
    if len({report.model for report in reported.models}) != len(reported.models):
        raise InputError("reported document names a model twice")
    if reported.http_url and not reported.http_url.startswith(("http://", "https://")):
        raise InputError(f"reported document has the address {reported.http_url[:80]!r}, which is not http or https")
    return reported


def apply_reported(
    connection: Connection, director: Director, device: str, payload: bytes, now: float, *, live: bool
) -> None:
    """Store a report unless a later one is stored already, and draw its consequences.

    Args:
        connection: In a writing transaction.
        director: Signs what must be signed anew.
        device: Who said it, as the broker or the token knows.
        payload: The document.
        now: Unix seconds.
        live: It comes from the device now, not from what the broker retained.

    Raises:
        InputError: It is not valid.
        NotFoundError: The device is not enrolled.
    """
    reported = read_reported(device, payload)
    row = enrolled(connection, device)
    if live:
        heard(connection, device, now)
    if not _is_new(connection, row, reported.fence, now):
        return
    connection.execute(
        update(devices)
        .where(devices.c.device == device)
        .values(
            install_id=reported.fence.install_id,
            epoch=reported.fence.epoch,
            seq=reported.fence.seq,
            reported=payload,
            seen_term=reported.gen_seen.term,
            seen_n=reported.gen_seen.n,
        )
    )
    _outbid(connection, director, row, reported, now)
    _review(connection, device, reported, now)


def apply_presence(connection: Connection, device: str, payload: bytes, now: float, *, live: bool) -> None:
    """Store whether the device is connected; a last will of an earlier start is ignored.

    Raises:
        InputError: It is not valid.
        NotFoundError: The device is not enrolled.
    """
    presence = decode(payload, Presence, what="presence document", limit=MAX_REPORT_BYTES)
    Fence(install_id="presence", epoch=presence.epoch, seq=0)  # the epoch is in its bounds
    row = enrolled(connection, device)
    if not presence.on and presence.epoch < row.presence_epoch:
        return
    if (row.online, row.presence_epoch) != (presence.on, presence.epoch):
        connection.execute(
            update(devices).where(devices.c.device == device).values(online=presence.on, presence_epoch=presence.epoch)
        )
    if presence.on and live:
        heard(connection, device, now)


def apply_events(connection: Connection, director: Director, device: str, payloads: list[bytes], now: float) -> None:
    """Store events, each once, and acknowledge them.

    Raises:
        InputError: One is not valid; none is stored.
        NotFoundError: The device is not enrolled.
    """
    parsed = [decode(payload, Event, what="event", limit=MAX_REPORT_BYTES) for payload in payloads]
    for event in parsed:
        _same_device(device, event.device, "event")
        model_name(event.model)
    row = enrolled(connection, device)
    heard(connection, device, now)
    for event in parsed:
        _store(connection, event, now, current=event.fence.install_id == row.install_id)
    for install_id in dict.fromkeys(event.fence.install_id for event in parsed):
        director.queue_ack(connection, _latest(connection, device, install_id), now)
    if row.reported is not None and parsed:
        _review(connection, device, stored_report(row), now)


def heard(connection: Connection, device: str, now: float) -> None:
    """Remember that the device spoke now."""
    connection.execute(_HEARD, {"which": device, "last_seen": now})


def stored_report(row: Row[Any]) -> Reported:
    """The latest report of a device that has one."""
    return msgspec.json.decode(row.reported, type=Reported)


def serving(row: Row[Any], model: str) -> str:
    """Release digest that the device reported to serve; empty when none or unknown."""
    return model_report(stored_report(row), model).active if row.reported is not None else ""


def _is_new(connection: Connection, row: Row[Any], fence: Fence, now: float) -> bool:
    """Whether a report with this fence may replace what is stored; notes a new installation."""
    if not row.install_id:
        return True
    if fence.install_id == row.install_id:
        return fence.follows(Fence(install_id=row.install_id, epoch=row.epoch, seq=row.seq))
    same = (retired_installs.c.device == row.device) & (retired_installs.c.install_id == fence.install_id)
    if connection.execute(select(retired_installs).where(same)).first() is not None:
        return False
    connection.execute(insert(retired_installs).values(device=row.device, install_id=row.install_id, at=now))
    detail = f"installation {fence.install_id} replaces {row.install_id}, whose reports are ignored from now on"
    note(connection, now, row.device, "device.reinstalled", row.device, detail)
    return True


def _outbid(connection: Connection, director: Director, row: Row[Any], reported: Reported, now: float) -> None:
    """Raise the term when the device has seen what this database does not know: it was restored from an older copy."""
    own, seen = Generation(row.term, row.n), reported.gen_seen
    other = seen == own != NEVER and reported.desired_seen not in ("", row.payload_digest)
    if not (seen > own or other):
        return
    gen = director.issue(connection, row.device, now, above=seen)
    director.raise_halt(connection, now, gen.term)
    connection.execute(
        update(rollout_devices)
        .where(
            rollout_devices.c.device == row.device,
            rollout_devices.c.state.in_([state.value for state in FOLLOWED]),
        )
        .values(gen_term=gen.term, gen_n=gen.n)
    )
    detail = f"the device has seen generation {seen}, this database knows {own}: signed again as {gen}"
    note(connection, now, "manager", "database.restored", row.device, detail)


def _store(connection: Connection, event: Event, now: float, *, current: bool) -> None:
    fence = event.fence
    stored = connection.execute(
        select(events.c.seq).where(
            events.c.device == event.device,
            events.c.install_id == fence.install_id,
            events.c.epoch == fence.epoch,
            events.c.seq == fence.seq,
        )
    ).first()
    if stored is not None:
        return
    connection.execute(
        insert(events).values(
            device=event.device,
            install_id=fence.install_id,
            epoch=fence.epoch,
            seq=fence.seq,
            model=event.model,
            release=event.release,
            rollout=event.rollout,
            state=event.state.value,
            reason=event.reason[:MAX_REASON_CHARS],
            received_at=now,
        )
    )
    if event.state is not DeploymentState.COMMITTED or not current:
        return
    for member in _members(connection, event.device):
        if member.rollout == event.rollout and member.release == event.release:
            _remember_commit(connection, member, fence)


def _latest(connection: Connection, device: str, install_id: str) -> Ack:
    """The acknowledgement of all that is stored of an installation."""
    row = connection.execute(
        select(events.c.epoch, events.c.seq)
        .where(events.c.device == device, events.c.install_id == install_id)
        .order_by(events.c.epoch.desc(), events.c.seq.desc())
        .limit(1)
    ).one()
    return Ack(device=device, install_id=install_id, epoch=row.epoch, seq=row.seq)


def _review(connection: Connection, device: str, reported: Reported, now: float) -> None:
    """Move the device in every rollout that has it, as far as its latest report says."""
    for _ in range(_MAX_STEPS):
        if not sum(_review_member(connection, member, reported, now) for member in _members(connection, device)):
            return


def _review_member(connection: Connection, member: Row[Any], reported: Reported, now: float) -> bool:
    report = model_report(reported, member.model)
    event = observe(_offer(member), reported)
    if event is None:
        return False
    values: dict[str, Any] = {"reason": report.reason[:MAX_REASON_CHARS] if report.release == member.release else ""}
    if event is DeviceEvent.PROGRESS:
        values["phase"] = report.state.value
        if (member.state, member.phase) == (DeviceState.IN_PROGRESS.value, report.state.value):
            return False
    if event is DeviceEvent.DIVERGE:
        values["reason"] = f"it had committed, and now serves {report.active or 'nothing'}"
    if event is DeviceEvent.RESET:
        values |= {"offered_at": now, "committed_install": "", "committed_epoch": 0, "committed_seq": 0}
        values["reason"] = "its state directory was lost"
    if event in (DeviceEvent.ARRIVE, DeviceEvent.STAY):
        values["reason"] = member.reason
    before = member.state
    after: DeviceState = move(connection, member, event, now, **values)
    if event is DeviceEvent.COMMIT:
        _remember_commit(connection, member, reported.fence)
    return bool(after.value != before)


def _members(connection: Connection, device: str) -> list[Row[Any]]:
    """The device in every rollout that its assignments come from."""
    return list(connection.execute(_MEMBERS, {"which": device}))


def _offer(member: Row[Any]) -> Offer:
    return Offer(
        model=member.model,
        release=member.release,
        previous=member.previous,
        gen=Generation(member.gen_term, member.gen_n),
        state=DeviceState(member.state),
        committed=_commit_fence(member),
    )


def _commit_fence(member: Row[Any]) -> Fence | None:
    if not member.committed_install:
        return None
    return Fence(install_id=member.committed_install, epoch=member.committed_epoch, seq=member.committed_seq)


def _remember_commit(connection: Connection, member: Row[Any], fence: Fence) -> None:
    """Keep the earliest report or event that said that the device had committed."""
    known = _commit_fence(member)
    if known is not None and known.install_id == fence.install_id and not known.follows(fence):
        return
    connection.execute(
        update(rollout_devices)
        .where(rollout_devices.c.rollout == member.rollout, rollout_devices.c.device == member.device)
        .values(committed_install=fence.install_id, committed_epoch=fence.epoch, committed_seq=fence.seq)
    )


def _same_device(topic: str, payload: str, what: str) -> None:
    if topic != payload:
        raise InputError(f"{what} of {topic[:130]!a} names the device {payload[:130]!a}")
