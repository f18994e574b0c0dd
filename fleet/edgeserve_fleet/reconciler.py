"""The engine: looks at every rollout that moves and does the next thing. Stateless: what it does follows from the
database and the time, so it can be killed anywhere and started again."""

from __future__ import annotations

import logging
from typing import Any, Final

from sqlalchemy import Connection, Row, func, select

from edgeserve.contracts.errors import EdgeServeError, InputError
from edgeserve.contracts.limits import DESIRED_LIFETIME_S, DISPATCH_BATCH
from edgeserve_fleet import telemetry
from edgeserve_fleet.database import Database
from edgeserve_fleet.desired import Director
from edgeserve_fleet.gate import Outcome, enough_committed, judge
from edgeserve_fleet.lifecycle import apply, find_rollout, move, note, offer, recall, record_verdict, spec_of
from edgeserve_fleet.reports import serving
from edgeserve_fleet.rollout import (
    ON_FAIL,
    PENDING,
    RUNNING,
    TOUCHED,
    DeviceEvent,
    DeviceState,
    RolloutEvent,
    RolloutState,
)
from edgeserve_fleet.schema import devices, rollout_devices, rollouts

_log = logging.getLogger(__name__)

MANAGER: Final = "manager"
"""Who acts, in the audit log, when no person does."""

_MAX_STEPS: Final = 64
"""Steps of one rollout in a tick, so that one cannot keep the others waiting."""
_PRUNE_EVERY_S: Final = 600.0
_MOVING: Final = tuple(state.value for state in (*RUNNING, RolloutState.SCHEDULED, RolloutState.ROLLING_BACK))


class Reconciler:
    """Moves rollouts; one transaction a step."""

    def __init__(self, database: Database, director: Director) -> None:
        self._database = database
        self._director = director
        self._pruned_at = 0.0
        self._problems: dict[str, str] = {}  # of rollouts that cannot go on: each is logged once

    def tick(self, now: float) -> None:
        """Do all that can be done now."""
        with self._database.reading() as connection:
            moving = list(connection.scalars(select(rollouts.c.rollout).where(rollouts.c.state.in_(_MOVING))))
        for rollout in moving:
            try:
                self._advance(rollout, now)
                self._problems.pop(rollout, None)
            except Exception as error:  # noqa: BLE001, PERF203 - one rollout that cannot go on must not stop the others
                if self._problems.get(rollout) != str(error):
                    unexpected = None if isinstance(error, EdgeServeError) else error
                    _log.error("rollout %s cannot go on: %s", rollout, error, exc_info=unexpected)
                self._problems[rollout] = str(error)
        self._renew(now)
        if now >= self._pruned_at + _PRUNE_EVERY_S:
            with self._database.transaction() as connection:
                telemetry.prune(connection, now)
            self._pruned_at = now

    def _advance(self, rollout: str, now: float) -> None:
        for _ in range(_MAX_STEPS):
            with self._database.transaction() as connection:
                if not self._step(connection, find_rollout(connection, rollout), now):
                    return

    def _step(self, connection: Connection, row: Row[Any], now: float) -> bool:
        """Do the next thing for one rollout; False when it has to wait."""
        state = RolloutState(row.state)
        if state is RolloutState.SCHEDULED:
            return self._apply(connection, row, RolloutEvent.BEGIN, now)
        if state is RolloutState.DISPATCHING:
            return self._dispatch(connection, row, now)
        if state is RolloutState.OBSERVING:
            return self._observe(connection, row, now)
        if state is RolloutState.JUDGING:
            return self._judge(connection, row, now)
        if state is RolloutState.ROLLING_BACK:
            return self._roll_back(connection, row, now)
        return False

    def _dispatch(self, connection: Connection, row: Row[Any], now: float) -> bool:
        planned = connection.execute(
            select(rollout_devices, devices.c.reported)
            .join(devices, devices.c.device == rollout_devices.c.device)
            .where(
                rollout_devices.c.rollout == row.rollout,
                rollout_devices.c.state == DeviceState.PLANNED.value,
                rollout_devices.c.wave <= row.wave,
            )
            .limit(DISPATCH_BATCH)
        ).all()
        if not planned:
            return self._apply(connection, row, RolloutEvent.DISPATCHED, now)
        for member in planned:
            try:
                with connection.begin_nested():
                    offer(connection, self._director, row, member, serving(member, row.model), now)
            except InputError as error:  # noqa: PERF203 - each device can be refused
                move(connection, member, DeviceEvent.SUPERSEDE, now, reason=f"it cannot be offered: {error.message}")
        return True

    def _observe(self, connection: Connection, row: Row[Any], now: float) -> bool:
        """Go on to the judgement when there is something to decide: a failure at once, the rest after the watching."""
        spec = spec_of(row)
        if now >= row.wave_started_at + spec.wave_deadline_s:
            self._silence(connection, row, now)
            return self._apply(connection, row, RolloutEvent.OBSERVED, now, "the wave's deadline has passed")
        evidence = telemetry.evidence(connection, row, now, spec.wave_deadline_s)
        outcome = judge(spec.gate, evidence).outcome
        watched = enough_committed(spec.gate, evidence) and now >= self._last_commit(connection, row) + spec.observe_s
        if outcome is Outcome.FAIL or (watched and (outcome is Outcome.PASS or not row.extended)):
            return self._apply(connection, row, RolloutEvent.OBSERVED, now)
        return False

    def _judge(self, connection: Connection, row: Row[Any], now: float) -> bool:
        spec = spec_of(row)
        evidence = telemetry.evidence(connection, row, now, spec.wave_deadline_s)
        verdict = judge(spec.gate, evidence)
        record_verdict(connection, row, evidence, verdict, now)
        reason = f"wave {row.wave}: {verdict.outcome.value}: {'; '.join(verdict.reasons)}"
        if verdict.outcome is Outcome.PASS:
            event = RolloutEvent.COMPLETE if row.wave == row.waves else RolloutEvent.ADVANCE
        elif verdict.outcome is Outcome.FAIL:
            event = ON_FAIL[spec.on_fail]
        elif now >= row.wave_started_at + spec.wave_deadline_s:
            event = RolloutEvent.PAUSE
        else:
            event = RolloutEvent.EXTEND
        note(connection, now, MANAGER, f"rollout.{event.value}", row.rollout, reason)
        return self._apply(connection, row, event, now, reason)

    def _roll_back(self, connection: Connection, row: Row[Any], now: float) -> bool:
        touched = connection.execute(
            select(rollout_devices)
            .where(
                rollout_devices.c.rollout == row.rollout,
                rollout_devices.c.state.in_([state.value for state in TOUCHED]),
            )
            .limit(DISPATCH_BATCH)
        ).all()
        for member in touched:
            recall(connection, self._director, row, member, now)
        if touched:
            return True
        away = connection.execute(
            select(func.count())
            .select_from(rollout_devices.join(devices, devices.c.device == rollout_devices.c.device))
            .where(
                rollout_devices.c.rollout == row.rollout,
                rollout_devices.c.state == DeviceState.RETURNING.value,
                # One that was never seen since has nothing to take back; its desired document waits for it.
                devices.c.last_seen > rollout_devices.c.offered_at,
            )
        ).scalar_one()
        if away:
            return False
        note(connection, now, MANAGER, "rollout.returned", row.rollout)
        return self._apply(connection, row, RolloutEvent.RETURNED, now, row.reason)

    def _silence(self, connection: Connection, row: Row[Any], now: float) -> None:
        """Devices that were seen since the offer and have no result have failed."""
        silent = connection.execute(
            select(rollout_devices)
            .join(devices, devices.c.device == rollout_devices.c.device)
            .where(
                rollout_devices.c.rollout == row.rollout,
                rollout_devices.c.state.in_([state.value for state in PENDING]),
                devices.c.last_seen > rollout_devices.c.offered_at,
            )
        ).all()
        for member in silent:
            reason = f"no result by the deadline; last: {member.phase or member.state}"
            move(connection, member, DeviceEvent.SILENCE, now, reason=reason)

    def _last_commit(self, connection: Connection, row: Row[Any]) -> float:
        """When the wave's last device committed; its start when none of it has."""
        found = connection.execute(
            select(func.max(rollout_devices.c.changed_at)).where(
                rollout_devices.c.rollout == row.rollout,
                rollout_devices.c.state == DeviceState.COMMITTED.value,
            )
        ).scalar_one()
        return max(float(row.wave_started_at), found or 0.0)

    def _renew(self, now: float) -> None:
        """Sign documents again before they expire."""
        with self._database.reading() as connection:
            old = list(
                connection.scalars(
                    select(devices.c.device)
                    .where(devices.c.revoked_at == 0, devices.c.signed_at < now - DESIRED_LIFETIME_S / 2)
                    .limit(DISPATCH_BATCH)
                )
            )
        if old:
            with self._database.transaction() as connection:
                for device in old:
                    self._director.issue(connection, device, now)

    def _apply(self, connection: Connection, row: Row[Any], event: RolloutEvent, now: float, reason: str = "") -> bool:
        apply(connection, self._director, row.rollout, event, now, reason)
        return True
