"""From cumulative counters to what a gate may count: growth, with the time of the manager that received it."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from sqlalchemy import (
    ColumnElement,
    Connection,
    Float,
    Row,
    Select,
    and_,
    bindparam,
    case,
    cast,
    delete,
    func,
    insert,
    or_,
    select,
    update,
)

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.limits import EVENTS_RETENTION_S, STATS_RETENTION_S
from edgeserve.contracts.telemetry import LATENCY_BUCKETS, DeviceStats, ReleaseStats
from edgeserve_fleet.gate import Comparison, Evidence, Samples
from edgeserve_fleet.rollout import ACTIVE, FAILURES, FOLLOWED, UNTOUCHED, DeviceState
from edgeserve_fleet.schema import counters, devices, events, increments, rollout_devices, rollouts

_REFRESH_S: Final = 3600.0
"""Counters that stand still are written again after this, so that `prune` does not take their life for ended."""


def store(connection: Connection, device: Row[Any], stats: DeviceStats, now: float) -> None:
    """Add what grew since the device's last message of the same life; a late or doubled message adds nothing."""
    before = {
        (row.model, row.release): row
        for row in connection.execute(_KNOWN, {"which": device.device, "life": stats.started})
    }
    for current in stats.releases:
        row = before.get((current.model, current.release))
        earlier = _counters(row) if row is not None else ReleaseStats(model=current.model, release=current.release)
        try:
            growth = current.since(earlier)
        except InputError:  # older than what is stored
            continue
        idle = not (growth.requests or growth.failures or growth.feedback)
        if idle and row is not None and now < row.received_at + _REFRESH_S:
            continue
        _save(connection, device.device, stats.started, current, now, known=row is not None)
        if not idle:
            window = {"covers_from": device.stats_at, "received_at": now}
            values = {"device": device.device, "started": stats.started} | window | _values(growth)
            connection.execute(insert(increments), values)
    connection.execute(_STATS_CAME, {"which": device.device, "at": now})


def evidence(connection: Connection, rollout: Row[Any], now: float, deadline_s: float) -> Evidence:
    """What is known now about the wave that runs and those before it.

    Args:
        connection: To read from.
        rollout: Its row.
        now: Unix seconds.
        deadline_s: Seconds from the wave's start for which a device that is online is waited for, though unheard.
    """
    waiting = now < rollout.wave_started_at + deadline_s
    counts = connection.execute(
        _COUNTS, {"which": rollout.rollout, "current": rollout.wave, "waiting": 1 if waiting else 0}
    )
    offered = counted = fresh = committed = failed = 0
    for row in counts:
        state = DeviceState(row.state)
        settled = state in FAILURES or state is DeviceState.COMMITTED
        offered += row.devices
        if (state in FAILURES and row.acknowledged) or not (row.counted or settled):
            continue
        counted += row.devices
        fresh += row.devices if row.fresh else 0
        committed += row.devices if state is DeviceState.COMMITTED else 0
        failed += row.devices if state in FAILURES else 0
    of_wave = _comparison(connection, rollout, rollout.wave_started_at)
    same = rollout.window_start == rollout.wave_started_at
    return Evidence(
        offered=offered,
        counted=counted,
        fresh=fresh,
        committed=committed,
        failed=failed,
        wave=of_wave,
        rollout=of_wave if same else _comparison(connection, rollout, rollout.window_start),
    )


def summed(column: ColumnElement[Any]) -> ColumnElement[float]:
    """Sum that cannot overflow, whatever devices claim; exact up to 2^53."""
    return func.sum(cast(column, Float))


def prune(connection: Connection, now: float) -> None:
    """Forget old statistics and events; not those that a rollout may still judge by."""
    oldest = connection.execute(
        select(func.min(rollouts.c.window_start)).where(
            rollouts.c.state.in_([state.value for state in ACTIVE]), rollouts.c.window_start > 0
        )
    ).scalar_one()
    horizon = now - STATS_RETENTION_S if oldest is None else min(now - STATS_RETENTION_S, oldest)
    connection.execute(delete(increments).where(increments.c.received_at < horizon))
    connection.execute(delete(counters).where(counters.c.received_at < horizon))
    connection.execute(delete(events).where(events.c.received_at < now - EVENTS_RETENTION_S))


def _comparison(connection: Connection, rollout: Row[Any], since: float) -> Comparison:
    window = {"which": rollout.rollout, "of_model": rollout.model, "of_release": rollout.release, "since": since}
    row = connection.execute(_COMPARISON, window).one()
    return Comparison(
        touched=Samples(correct=int(row[0]), total=int(row[1])),
        control=Samples(correct=int(row[2]), total=int(row[3])),
        control_devices=connection.execute(_CONTROL, window).scalar_one(),
    )


def _counts_statement() -> Select[Any]:
    # Seen since the offer: heard, or its report answers the document that made the offer.
    seen = or_(
        devices.c.last_seen > rollout_devices.c.offered_at,
        devices.c.seen_term > rollout_devices.c.gen_term,
        and_(devices.c.seen_term == rollout_devices.c.gen_term, devices.c.seen_n >= rollout_devices.c.gen_n),
    )
    return (
        select(
            rollout_devices.c.state,
            rollout_devices.c.acknowledged,
            (rollout_devices.c.wave == bindparam("current")).label("fresh"),
            or_(seen, and_(devices.c.online, bindparam("waiting") == 1)).label("counted"),
            func.count().label("devices"),
        )
        .join(devices, devices.c.device == rollout_devices.c.device)
        .where(
            rollout_devices.c.rollout == bindparam("which"),
            rollout_devices.c.state.in_([state.value for state in FOLLOWED]),
            # A device that had the release before proves nothing, unless it lost it.
            or_(rollout_devices.c.offered_at > 0, rollout_devices.c.state == DeviceState.DIVERGED.value),
        )
        .group_by("state", "acknowledged", "fresh", "counted")
    )


def _comparison_statement() -> Select[Any]:
    untouched = rollout_devices.c.state.in_([state.value for state in UNTOUCHED])
    on_release = increments.c.release == bindparam("of_release")
    touched = and_(on_release, ~untouched)
    # A device was control for as long as it had not been offered the release.
    control = and_(
        ~on_release,
        or_(
            untouched,
            and_(rollout_devices.c.offered_at > 0, increments.c.received_at <= rollout_devices.c.offered_at),
        ),
    )

    def total(column: Any, which: Any) -> Any:  # noqa: ANN401 - SQL expressions
        return func.coalesce(summed(case((which, column), else_=0)), 0)

    return (
        select(
            total(increments.c.correct, touched),
            total(increments.c.feedback, touched),
            total(increments.c.correct, control),
            total(increments.c.feedback, control),
        )
        .join(
            rollout_devices,
            and_(
                rollout_devices.c.rollout == bindparam("which"),
                rollout_devices.c.device == increments.c.device,
            ),
        )
        .where(
            increments.c.model == bindparam("of_model"),
            increments.c.received_at > bindparam("since"),
            # Growth that began before the window is not of the window: one message a device is given up for that.
            increments.c.covers_from >= bindparam("since"),
        )
    )


def _control_statement() -> Select[Any]:
    serves_another = (
        select(counters.c.device)
        .where(
            counters.c.device == rollout_devices.c.device,
            counters.c.model == bindparam("of_model"),
            counters.c.release != bindparam("of_release"),
        )
        .exists()
    )
    return (
        select(func.count())
        .select_from(rollout_devices.join(devices, devices.c.device == rollout_devices.c.device))
        .where(
            rollout_devices.c.rollout == bindparam("which"),
            rollout_devices.c.state.in_([state.value for state in UNTOUCHED]),
            devices.c.revoked_at == 0,
            or_(devices.c.online, devices.c.last_seen > bindparam("since")),
            serves_another,
        )
    )


def _counters(row: Row[Any]) -> ReleaseStats:
    return ReleaseStats(
        model=row.model,
        release=row.release,
        requests=row.requests,
        failures=row.failures,
        feedback=row.feedback,
        correct=row.correct,
        latency=msgspec.json.decode(row.latency, type=tuple[int, ...]) if row.latency else (0,) * LATENCY_BUCKETS,
    )


def _values(stats: ReleaseStats) -> dict[str, Any]:
    return {
        "model": stats.model,
        "release": stats.release,
        "requests": stats.requests,
        "failures": stats.failures,
        "feedback": stats.feedback,
        "correct": stats.correct,
        "latency": msgspec.json.encode(stats.latency).decode(),
    }


def _save(connection: Connection, device: str, started: str, stats: ReleaseStats, now: float, *, known: bool) -> None:
    values = {"received_at": now} | _values(stats)
    if not known:
        connection.execute(insert(counters), {"device": device, "started": started} | values)
        return
    key = {"which": device, "life": started, "of_model": values.pop("model"), "of_release": values.pop("release")}
    connection.execute(_ADVANCE, key | values)


# Built once: building a statement costs more than running it, and these run with every message or tick.
_KNOWN: Final = select(counters).where(counters.c.device == bindparam("which"), counters.c.started == bindparam("life"))
_ADVANCE: Final = (
    update(counters)
    .where(
        counters.c.device == bindparam("which"),
        counters.c.started == bindparam("life"),
        counters.c.model == bindparam("of_model"),
        counters.c.release == bindparam("of_release"),
    )
    .values(
        {name: bindparam(name) for name in ("received_at", "requests", "failures", "feedback", "correct", "latency")}
    )
)
_STATS_CAME: Final = (
    update(devices)
    .where(devices.c.device == bindparam("which"))
    .values(stats_at=bindparam("at"), last_seen=bindparam("at"))
)
_COUNTS: Final = _counts_statement()
_COMPARISON: Final = _comparison_statement()
_CONTROL: Final = _control_statement()
