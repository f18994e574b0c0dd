"""From the database to a plan of waves, and from a plan to the rows of a rollout."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import Connection, Row, insert, select, update

from edgeserve.contracts.limits import SEEN_LATELY_S
from edgeserve.contracts.reported import Fence
from edgeserve.contracts.rollout import RolloutSpec
from edgeserve.contracts.variant import Selector
from edgeserve_devices.match import lacking
from edgeserve_fleet.desired import assignment
from edgeserve_fleet.lifecycle import can_return, is_halted
from edgeserve_fleet.observation import has_committed, model_report
from edgeserve_fleet.reports import stored_report
from edgeserve_fleet.rollout import ACTIVE, DeviceState
from edgeserve_fleet.schema import assignments, devices, releases, rollout_devices, rollout_waves, rollouts
from edgeserve_fleet.waves import Candidate, Plan, plan


class VariantNeeds(msgspec.Struct, frozen=True, kw_only=True):
    """What the manager keeps of a variant to match it with devices."""

    target: str
    precision: str
    runtime: str
    memory_bytes: int
    selector: Selector


def labels_of(row: Row[Any]) -> dict[str, str]:
    """A device's labels, as it was enrolled with."""
    return msgspec.json.decode(row.labels, type=dict[str, str]) if row.labels else {}


def selectable(row: Row[Any]) -> dict[str, str]:
    """What a selector can ask for: the labels, and `profile` and `device` unless a label has that name."""
    return {"profile": row.profile, "device": row.device} | labels_of(row)


def make_plan(connection: Connection, spec: RolloutSpec, now: float) -> Plan:
    """Who would get the release when, as things are now."""
    rows = connection.execute(select(devices).where(devices.c.revoked_at == 0).order_by(devices.c.device)).all()
    wanted = {
        row.device: row.release
        for row in connection.execute(select(assignments).where(assignments.c.model == spec.model))
    }
    variants = _variants(connection, spec.release)
    candidates = [
        Candidate(
            device=row.device,
            labels=selectable(row),
            reachable=row.online or row.last_seen > now - SEEN_LATELY_S,
            has_release=wanted.get(row.device) == spec.release and _serves(row, spec),
            misfit=_misfit(row, variants),
        )
        for row in rows
    ]
    return plan(candidates, spec, spec.release)


def misfit(connection: Connection, row: Row[Any], release: str) -> str:
    """Why no variant of a release runs on a device; empty when one does, or that is not known."""
    return _misfit(row, _variants(connection, release))


def problems(connection: Connection, spec: RolloutSpec, found: Plan, rollout: str = "") -> tuple[str, ...]:
    """What keeps a rollout from starting; empty when it may."""
    said = []
    if is_halted(connection, spec.release):
        said.append("the release was rolled back before and is halted: publish a corrected one under a new version")
    other = active_rollout(connection, spec.model, rollout)
    if other:
        said.append(f"rollout {other} of {spec.model} has not ended: wait, or abort it")
    if not found.waves:
        served = f"; {len(found.already)} have the release already" if found.already else ""
        said.append(f"no device would get the release{served}: see why each is in or out with `rollout plan`")
    return tuple(said)


def active_rollout(connection: Connection, model: str, besides: str = "") -> str:
    """Another rollout of the model that has not ended; empty when there is none."""
    found = connection.execute(
        select(rollouts.c.rollout).where(
            rollouts.c.model == model,
            rollouts.c.rollout != besides,
            rollouts.c.state.in_([state.value for state in ACTIVE]),
        )
    ).first()
    return found.rollout if found is not None else ""


def materialise(connection: Connection, rollout: str, spec: RolloutSpec, found: Plan, now: float) -> None:
    """Write the plan's rows: waves, and every device that is selected."""
    connection.execute(update(rollouts).where(rollouts.c.rollout == rollout).values(waves=len(found.waves)))
    size = 0
    for number, members in enumerate(found.waves, 1):
        size += len(members)
        connection.execute(insert(rollout_waves).values(rollout=rollout, wave=number, size=size))
        _insert(connection, rollout, members, DeviceState.PLANNED, now, wave=number)
    _insert(connection, rollout, found.control, DeviceState.HELD_OUT, now)
    for device in found.already:
        _insert(connection, rollout, (device,), DeviceState.ALREADY, now, **_before(connection, device, spec))
        same = (assignments.c.device == device) & (assignments.c.model == spec.model)
        connection.execute(update(assignments).where(same).values(rollout=rollout))


def _insert(
    connection: Connection,
    rollout: str,
    members: tuple[str, ...],
    state: DeviceState,
    now: float,
    **values: Any,  # noqa: ANN401 - columns of several types
) -> None:
    if members:
        rows = [
            {"rollout": rollout, "device": device, "state": state.value, "changed_at": now} | values
            for device in members
        ]
        connection.execute(insert(rollout_devices), rows)


def _before(connection: Connection, device: str, spec: RolloutSpec) -> dict[str, Any]:
    """What a device that has the release already would return to, and since when it is known to have it."""
    row = connection.execute(select(devices).where(devices.c.device == device)).one()
    kept = model_report(stored_report(row), spec.model).previous
    held = assignment(connection, device, spec.model)
    fence = Fence(install_id=row.install_id, epoch=row.epoch, seq=row.seq)
    return {
        "previous": kept if kept != spec.release and can_return(connection, kept) else "",
        "reason": f"since rollout {held.rollout}" if held is not None and held.rollout else "",
        "gen_term": row.seen_term,
        "gen_n": row.seen_n,
        "committed_install": fence.install_id,
        "committed_epoch": fence.epoch,
        "committed_seq": fence.seq,
    }


def _variants(connection: Connection, release: str) -> tuple[VariantNeeds, ...]:
    stored = connection.execute(select(releases.c.variants).where(releases.c.digest == release)).scalar()
    return msgspec.json.decode(stored or "[]", type=tuple[VariantNeeds, ...])


def _misfit(row: Row[Any], variants: tuple[VariantNeeds, ...]) -> str:
    """Why no variant runs on the device, as the device itself would find; empty when one does or it never reported."""
    if row.reported is None:
        return ""
    facts = stored_report(row).facts
    reasons = [(variant, lacking(variant, facts)) for variant in variants]
    if not variants or not all(reason for _, reason in reasons):
        return ""
    return "no variant fits: " + "; ".join(
        f"{variant.target} {variant.precision}: {reason}" for variant, reason in reasons
    )


def _serves(row: Row[Any], spec: RolloutSpec) -> bool:
    return row.reported is not None and has_committed(model_report(stored_report(row), spec.model), spec.release)
