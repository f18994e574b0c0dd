"""From rows to views."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, func, select

from edgeserve.contracts.desired import Generation
from edgeserve.contracts.errors import NotFoundError
from edgeserve.contracts.names import is_digest
from edgeserve.contracts.reported import ModelReport
from edgeserve.contracts.rollout import RolloutSpec
from edgeserve_fleet import telemetry
from edgeserve_fleet.gate import Evidence, Verdict, judge
from edgeserve_fleet.lifecycle import spec_of
from edgeserve_fleet.planning import labels_of
from edgeserve_fleet.reports import serving, stored_report
from edgeserve_fleet.rollout import DeviceState, RolloutState
from edgeserve_fleet.schema import (
    assignments,
    audit,
    devices,
    halts,
    increments,
    releases,
    rollout_devices,
    rollout_waves,
    rollouts,
    verdicts,
)
from edgeserve_fleet.views import (
    AuditView,
    DeviceView,
    ModelView,
    PlanDevice,
    PlanView,
    ReleaseView,
    RolloutDeviceView,
    RolloutView,
    StatsView,
    VerdictView,
    WaveView,
)
from edgeserve_fleet.waves import Plan

_VARIANTS = msgspec.json.Decoder(tuple[dict[str, object], ...])


def device_views(connection: Connection, device: str = "") -> list[DeviceView]:
    """All devices by name, or the one that is named, or none."""
    only = (devices.c.device == device) if device else (devices.c.device != "")
    wanted: dict[str, list[Row[Any]]] = {}
    for row in connection.execute(
        select(assignments, releases.c.version)
        .join(releases, releases.c.digest == assignments.c.release)
        .join(devices, devices.c.device == assignments.c.device)
        .where(only)
    ):
        wanted.setdefault(row.device, []).append(row)
    stats: dict[str, list[StatsView]] = {}
    for row in connection.execute(
        select(
            increments.c.device,
            increments.c.model,
            increments.c.release,
            *(
                telemetry.summed(increments.c[name]).label(name)
                for name in ("requests", "failures", "feedback", "correct")
            ),
        )
        .where(increments.c.device == device if device else increments.c.device != "")
        .group_by(increments.c.device, increments.c.model, increments.c.release)
        .order_by(increments.c.model, func.max(increments.c.id))
    ):
        stats.setdefault(row.device, []).append(
            StatsView(
                model=row.model,
                release=row.release,
                requests=int(row.requests),
                failures=int(row.failures),
                feedback=int(row.feedback),
                correct=int(row.correct),
            )
        )
    rows = connection.execute(select(devices).where(only).order_by(devices.c.device))
    return [_device(row, wanted.get(row.device, []), stats.get(row.device, [])) for row in rows]


def release_views(connection: Connection) -> list[ReleaseView]:
    """All releases: by name, newest first."""
    halted = set(connection.scalars(select(halts.c.release)))
    return [
        ReleaseView(
            name=row.model,
            version=row.version,
            digest=row.digest,
            counter=row.counter,
            index_size=row.index_size,
            variants=_VARIANTS.decode(row.variants),
            added_at=row.added_at,
            added_by=row.added_by,
            halted=row.digest in halted,
        )
        for row in connection.execute(select(releases).order_by(releases.c.model, releases.c.counter.desc()))
    ]


def resolve_release(known: list[ReleaseView], text: str) -> ReleaseView:
    """The release that `text` names: `name:version`, `name:latest`, `name@sha256:...` or `sha256:...`.

    Raises:
        NotFoundError: None is named so.
    """
    if is_digest(text):
        found = [view for view in known if view.digest == text]
    elif "@" in text:
        name, _, digest = text.partition("@")
        found = [view for view in known if (view.name, view.digest) == (name, digest)]
    else:
        name, _, version = text.partition(":")
        of_name = [view for view in known if view.name == name]  # newest first
        exact = [view for view in of_name if view.version == version]
        found = exact or (of_name if version == "latest" else [])
    if not found:
        raise NotFoundError(
            f"no release is named {text[:160]!a}",
            hint="publish it first, and write NAME:VERSION, NAME:latest or NAME@sha256:...",
        )
    return found[0]


def rollout_views(connection: Connection) -> list[RolloutView]:
    """All rollouts, newest first, without devices and verdicts."""
    counts: dict[str, Counter[str]] = {}
    for row in connection.execute(
        select(rollout_devices.c.rollout, rollout_devices.c.state, func.count().label("devices")).group_by(
            rollout_devices.c.rollout, rollout_devices.c.state
        )
    ):
        counts.setdefault(row.rollout, Counter())[row.state] = row.devices
    return [_rollout(connection, row, counts.get(row.rollout, Counter())) for row in _rollout_rows(connection)]


def rollout_view(connection: Connection, row: Row[Any], now: float) -> RolloutView:
    """One rollout with everything."""
    members = connection.execute(
        select(rollout_devices, devices.c.reported)
        .join(devices, devices.c.device == rollout_devices.c.device)
        .where(rollout_devices.c.rollout == row.rollout)
        .order_by(rollout_devices.c.wave, rollout_devices.c.device)
    ).all()
    view = _rollout(connection, row, Counter(member.state for member in members))
    present = None
    if RolloutState(row.state).is_running:
        spec = spec_of(row)
        evidence = telemetry.evidence(connection, row, now, spec.wave_deadline_s)
        present = VerdictView(wave=row.wave, at=now, verdict=judge(spec.gate, evidence), evidence=evidence)
    return msgspec.structs.replace(
        view,
        devices=tuple(_member(member, serving(member, row.model)) for member in members),
        verdicts=tuple(
            VerdictView(
                wave=verdict.wave,
                at=verdict.at,
                verdict=msgspec.json.decode(verdict.verdict, type=Verdict),
                evidence=msgspec.json.decode(verdict.evidence, type=Evidence),
            )
            for verdict in connection.execute(
                select(verdicts).where(verdicts.c.rollout == row.rollout).order_by(verdicts.c.judgement)
            )
        ),
        now=present,
    )


def plan_view(connection: Connection, spec: RolloutSpec, found: Plan, problems: tuple[str, ...]) -> PlanView:
    """A plan with the reason for each device."""
    said = [
        PlanDevice(device=device, wave=number, included=True, reason=f"joins in wave {number}")
        for number, members in enumerate(found.waves, 1)
        for device in members
    ]
    said += [PlanDevice(device=d, wave=0, included=False, reason="has the release already") for d in found.already]
    said += [
        PlanDevice(device=d, wave=0, included=False, reason="beyond the last wave: serves as control")
        for d in found.control
    ]
    said += [PlanDevice(device=d, wave=0, included=False, reason=reason) for d, reason in sorted(found.out.items())]
    return PlanView(
        model=spec.model,
        release=spec.release,
        version=_version(connection, spec.release),
        waves=found.waves,
        already=found.already,
        control=found.control,
        devices=tuple(said),
        problems=problems,
    )


def audit_views(connection: Connection, limit: int) -> list[AuditView]:
    """The latest lines of the audit log, newest first."""
    rows = connection.execute(select(audit).order_by(audit.c.id.desc()).limit(limit))
    return [
        AuditView(at=row.at, actor=row.actor, action=row.action, subject=row.subject, detail=row.detail) for row in rows
    ]


def _device(row: Row[Any], wanted: list[Row[Any]], stats: list[StatsView]) -> DeviceView:
    reported = stored_report(row) if row.reported is not None else None
    reports = {report.model: report for report in reported.models} if reported else {}
    targets = {target.model: target for target in wanted}
    return DeviceView(
        device=row.device,
        profile=row.profile,
        labels=labels_of(row),
        enrolled_at=row.enrolled_at,
        revoked=bool(row.revoked_at),
        online=row.online,
        last_seen=row.last_seen,
        gen=str(Generation(row.term, row.n)),
        gen_seen=str(Generation(row.seen_term, row.seen_n)),
        agent=reported.agent if reported else "",
        facts=reported.facts if reported else None,
        models=tuple(
            _model(reports.get(model, ModelReport(model=model)), targets.get(model))
            for model in sorted(reports.keys() | targets.keys())
        ),
        stats=tuple(stats),
        quarantined=reported.quarantined if reported else (),
        http_url=reported.http_url if reported else "",
        insecure=reported.insecure if reported else False,
        free_bytes=reported.free_bytes if reported else 0,
        error=reported.error if reported else "",
    )


def _model(report: ModelReport, target: Row[Any] | None) -> ModelView:
    return ModelView(
        model=report.model,
        active=report.active,
        version=report.version,
        target=report.target,
        precision=report.precision,
        executing_device=report.executing_device,
        previous=report.previous,
        state=report.state.value,
        release=report.release,
        reason=report.reason,
        desired=target.release if target is not None else "",
        desired_version=target.version if target is not None else "",
        rollout=target.rollout if target is not None else "",
    )


def _rollout_rows(connection: Connection) -> list[Row[Any]]:
    return list(connection.execute(select(rollouts).order_by(rollouts.c.created_at.desc(), rollouts.c.rollout)))


def _rollout(connection: Connection, row: Row[Any], counts: Counter[str]) -> RolloutView:
    state = RolloutState(row.state)
    waves = connection.execute(
        select(rollout_waves).where(rollout_waves.c.rollout == row.rollout).order_by(rollout_waves.c.wave)
    )
    return RolloutView(
        rollout=row.rollout,
        model=row.model,
        release=row.release,
        version=_version(connection, row.release),
        state=state.shown,
        phase=state.value if state.is_running else "",
        wave=row.wave,
        reason=row.reason,
        spec=spec_of(row),
        created_at=row.created_at,
        created_by=row.created_by,
        started_at=row.started_at,
        ended_at=row.ended_at,
        counts=dict(counts),
        waves=tuple(
            WaveView(wave=wave.wave, size=wave.size, started_at=wave.started_at, passed_at=wave.passed_at)
            for wave in waves
        ),
        devices=(),
        verdicts=(),
    )


def _member(row: Row[Any], active: str) -> RolloutDeviceView:
    return RolloutDeviceView(
        device=row.device,
        wave=row.wave,
        state=DeviceState(row.state),
        phase=row.phase,
        reason=row.reason,
        previous=row.previous,
        active=active,
        offered_at=row.offered_at,
        changed_at=row.changed_at,
        acknowledged=row.acknowledged,
    )


def _version(connection: Connection, digest: str) -> str:
    return connection.execute(select(releases.c.version).where(releases.c.digest == digest)).scalar() or ""
