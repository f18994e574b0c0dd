"""Why a device has a release, or has it not: in plain sentences, the most decisive first."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, select

from edgeserve.contracts.errors import NotFoundError
from edgeserve.contracts.limits import SEEN_LATELY_S
from edgeserve.contracts.reported import DeploymentState
from edgeserve_fleet.lifecycle import is_halted, spec_of
from edgeserve_fleet.observation import has_committed, model_report
from edgeserve_fleet.planning import misfit, selectable
from edgeserve_fleet.reports import stored_report
from edgeserve_fleet.rollout import DeviceState, RolloutState
from edgeserve_fleet.schema import assignments, devices, releases, rollout_devices, rollouts
from edgeserve_fleet.waves import mismatch

_RECENT_ROLLOUTS = 5


def explain(connection: Connection, device: str, now: float) -> list[str]:
    """Sentences about one device.

    Raises:
        NotFoundError: It was never enrolled.
    """
    row = connection.execute(select(devices).where(devices.c.device == device)).one_or_none()
    if row is None:
        raise NotFoundError(f"device {device[:130]!a} is not enrolled", hint="edgeserve fleet enroll DEVICE")
    said = [*_contact(row, now)]
    wanted = connection.execute(
        select(assignments).where(assignments.c.device == device).order_by(assignments.c.model)
    ).all()
    if not any(target.release for target in wanted):
        said.append("The fleet wants no release of it: it has been in no rollout that offered it one.")
    for target in wanted:
        if target.release:
            said += _target(connection, row, target)
    recent = connection.execute(
        select(rollouts).order_by(rollouts.c.created_at.desc(), rollouts.c.rollout).limit(_RECENT_ROLLOUTS)
    ).all()
    for rollout in recent:
        said += _rollout(connection, row, rollout)
    return said


def name(connection: Connection, digest: str) -> str:
    """A release as people call it."""
    row = connection.execute(select(releases).where(releases.c.digest == digest)).one_or_none()
    return f"{row.model}:{row.version}" if row is not None else digest[:19] or "nothing"


def _contact(row: Row[Any], now: float) -> list[str]:
    if row.revoked_at:
        return ["It was revoked: it gets no documents, and what it says is ignored."]
    if not row.last_seen:
        return [
            "It has never been heard since it was enrolled: is the agent running, with the address and token it got?"
        ]
    if row.online or row.last_seen > now - SEEN_LATELY_S:  # one that polls is never online for the broker
        return []
    return [
        f"It is offline: last heard {now - row.last_seen:.0f} s ago. It acts on its desired document when it returns."
    ]


def _target(connection: Connection, row: Row[Any], target: Row[Any]) -> list[str]:
    release = name(connection, target.release)
    by = f" (rollout {target.rollout})" if target.rollout else ""
    said = [f"The fleet wants {release}{by}."]
    if target.previous:
        said.append(f"That is a return from {name(connection, target.previous)}, which was rolled back.")
    if is_halted(connection, target.release):
        said.append(f"{release} is halted: no device may activate it.")
    if row.reported is None:
        return [*said, "It has not reported yet."]
    reported = stored_report(row)
    report = model_report(reported, target.model)
    if has_committed(report, target.release):
        return [*said, f"It serves {release} and has committed it."]
    if report.active:
        said.append(f"It serves {name(connection, report.active)}.")
    else:
        said.append(f"It serves no release of {target.model}.")
    if (row.seen_term, row.seen_n) < (row.term, row.n):
        said.append("It has not seen its latest desired document yet.")
    if report.release == target.release and report.state is not DeploymentState.IDLE:
        because = f": {report.reason}" if report.reason else ""
        said.append(f"Its deployment of {release} is {report.state.value}{because}.")
    if target.release in reported.quarantined:
        said.append(f"It has quarantined {release} after a failure and will not try it again by itself.")
    if reported.error:
        said.append(f"Its last problem: {reported.error}.")
    return said


def _rollout(connection: Connection, row: Row[Any], rollout: Row[Any]) -> list[str]:
    release, state = name(connection, rollout.release), RolloutState(rollout.state)
    subject = f"Rollout {rollout.rollout} of {release} is {state.shown}"
    member = connection.execute(
        select(rollout_devices).where(
            rollout_devices.c.rollout == rollout.rollout, rollout_devices.c.device == row.device
        )
    ).one_or_none()
    if member is None:
        spec = spec_of(rollout)
        reason = mismatch(spec.selector, selectable(row)) or misfit(connection, row, spec.release)
        if not reason and state is RolloutState.DRAFT:
            reason = "it is planned when it starts"
        return [
            f"{subject}; the device is not in it: {reason or 'it was enrolled or labelled after the plan was made'}."
        ]
    said = f"{subject}; the device is {member.state}"
    if member.state == DeviceState.PLANNED.value:
        said += f": it joins in wave {member.wave}, the rollout is in wave {rollout.wave}"
    elif member.reason:
        said += f": {member.reason}"
    because = f" ({rollout.reason})" if rollout.reason and state is not RolloutState.SUCCEEDED else ""
    return [f"{said}.{because}"]
