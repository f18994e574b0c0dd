"""The fleet manager's application service: all that the API, the command line and the broker side can ask for."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import Any

from sqlalchemy import Connection, delete, select

from edgeserve.contracts import topics
from edgeserve.contracts.errors import ConflictError, InputError, NotFoundError
from edgeserve.contracts.limits import MAX_REPORT_BYTES
from edgeserve.contracts.oci import ReleaseIdentity
from edgeserve.contracts.rollout import RolloutSpec
from edgeserve.contracts.telemetry import decode_stats
from edgeserve.trust.keys import SigningKey
from edgeserve_fleet import enrolment, orders, queries, reports, telemetry, why
from edgeserve_fleet.database import Database
from edgeserve_fleet.desired import Director, queue
from edgeserve_fleet.lifecycle import find_rollout
from edgeserve_fleet.planning import make_plan, problems
from edgeserve_fleet.reconciler import Reconciler
from edgeserve_fleet.rollout import RolloutEvent
from edgeserve_fleet.schema import devices, halt_document, outbox
from edgeserve_fleet.views import AuditView, DeviceView, OutboxRow, PlanView, ReleaseView, RolloutView


class Fleet:
    """The fleet. Thread-safe; every writing call is one transaction unless it is inside `batch`.

    Args:
        database: Where everything is.
        key: Signs what goes down; its public half is pinned in the devices.
        issuer: Name of this manager in signed documents.
        registry_url: Where devices fetch releases.
        clock: Unix seconds.
    """

    def __init__(
        self,
        database: Database,
        *,
        key: SigningKey,
        issuer: str,
        registry_url: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._director = Director(key=key, issuer=issuer, registry_url=registry_url)
        self._clock = clock
        self._reconciler = Reconciler(database, self._director)

    # Devices ---------------------------------------------------------------------------------------

    def enrol(self, device: str, *, labels: dict[str, str], profile: str = "", actor: str) -> str:
        """Let a device in; returns its token, of which only the hash is kept.

        A device that was revoked may be enrolled anew; the fleet then wants of it what it wanted before.

        Raises:
            InputError: Not a device id, or a label that is not allowed.
            ConflictError: It is enrolled.
        """
        with self._database.transaction() as connection:
            return enrolment.enrol(
                connection, self._director, device, labels=labels, profile=profile, actor=actor, now=self._clock()
            )

    def revoke(self, device: str, *, actor: str) -> None:
        """Shut a device out: its token ends, its document is removed from the broker, it leaves its rollouts.

        Raises:
            NotFoundError: It is not enrolled.
        """
        with self._database.transaction() as connection:
            enrolment.revoke(connection, device, actor=actor, now=self._clock())

    def authenticate(self, token: str) -> str | None:
        """The device that a token belongs to."""
        with self._database.reading() as connection:
            return enrolment.authenticate(connection, token)

    def devices(self) -> list[DeviceView]:
        """All devices, by name."""
        with self._database.reading() as connection:
            return queries.device_views(connection)

    def device(self, device: str) -> DeviceView:
        """One device.

        Raises:
            NotFoundError: It was never enrolled.
        """
        with self._database.reading() as connection:
            found = queries.device_views(connection, device)
        if not device or not found:
            raise NotFoundError(f"device {device[:130]!a} is not enrolled", hint="edgeserve fleet enroll DEVICE")
        return found[0]

    def why(self, device: str) -> list[str]:
        """Why the device has a release, or has it not, in sentences.

        Raises:
            NotFoundError: It was never enrolled.
        """
        with self._database.reading() as connection:
            return why.explain(connection, device, self._clock())

    # Releases --------------------------------------------------------------------------------------

    def add_release(
        self,
        *,
        digest: str,
        identity: ReleaseIdentity,
        index_size: int,
        variants: list[dict[str, Any]],
        actor: str,
    ) -> ReleaseView:
        """Make a release known; the same one again changes nothing.

        Raises:
            InputError: A variant does not say what it needs (`planning.VariantNeeds`).
            ConflictError: Its name and version are another release's, or its counter is not the highest of its name.
        """
        with self._database.transaction() as connection:
            orders.add_release(
                connection,
                digest,
                identity,
                index_size=index_size,
                variants=variants,
                actor=actor,
                now=self._clock(),
            )
            return queries.resolve_release(queries.release_views(connection), digest)

    def releases(self) -> list[ReleaseView]:
        """All releases: by name, newest first."""
        with self._database.reading() as connection:
            return queries.release_views(connection)

    def resolve_release(self, text: str) -> ReleaseView:
        """The release that `text` names: `name:version`, `name:latest`, `name@sha256:...` or `sha256:...`.

        Raises:
            NotFoundError: None is named so.
        """
        return queries.resolve_release(self.releases(), text)

    # Rollouts --------------------------------------------------------------------------------------

    def create_rollout(self, spec: RolloutSpec, *, actor: str, idempotency_key: str = "") -> RolloutView:
        """Write an order down; `start` begins it. The same key and order again return the rollout that it made.

        Raises:
            NotFoundError: The release is not known.
            InputError: The release is of another model.
            ConflictError: The key was used with another order.
        """
        with self._database.transaction() as connection:
            now = self._clock()
            rollout = orders.create(connection, spec, actor=actor, key=idempotency_key, now=now)
            return self._view(connection, rollout)

    def plan(self, spec: RolloutSpec) -> PlanView:
        """What a rollout would do now: who joins in which wave, why others do not, what would keep it from starting.

        Raises:
            NotFoundError: The release is not known.
            InputError: The release is of another model.
        """
        with self._database.reading() as connection:
            orders.check_release(connection, spec)
            found = make_plan(connection, spec, self._clock())
            return queries.plan_view(connection, spec, found, problems(connection, spec, found))

    def start(self, rollout_id: str, *, actor: str) -> RolloutView:
        """Validate a draft and schedule it; the next tick begins its first wave.

        Raises:
            NotFoundError: There is no such rollout.
            ConflictError: It is no draft, or something keeps it from starting; it is a draft still, with the reason.
        """
        with self._database.transaction() as connection:
            reasons = orders.start(connection, self._director, rollout_id, actor=actor, now=self._clock())
            view = self._view(connection, rollout_id)
        if reasons:
            raise ConflictError(f"rollout {rollout_id} cannot start: {reasons[0]}")
        return view

    def pause(self, rollout_id: str, *, actor: str) -> RolloutView:
        """Offer the release to no further device until `resume`; those that were offered it go on."""
        return self._intervene(rollout_id, RolloutEvent.PAUSE, actor)

    def resume(self, rollout_id: str, *, actor: str) -> RolloutView:
        """Go on with the wave. Failures so far are accepted: only new ones fail the gate."""
        return self._intervene(rollout_id, RolloutEvent.RESUME, actor)

    def abort(self, rollout_id: str, *, actor: str) -> RolloutView:
        """End it where it is: devices keep what they have."""
        return self._intervene(rollout_id, RolloutEvent.ABORT, actor)

    def rollback(self, rollout_id: str, *, actor: str) -> RolloutView:
        """Return every touched device to what it had, and halt the release."""
        return self._intervene(rollout_id, RolloutEvent.ROLL_BACK, actor)

    def rollouts(self) -> list[RolloutView]:
        """All rollouts, newest first, without devices and verdicts."""
        with self._database.reading() as connection:
            return queries.rollout_views(connection)

    def rollout(self, rollout_id: str) -> RolloutView:
        """One rollout with devices, verdicts and evidence.

        Raises:
            NotFoundError: There is no such rollout.
        """
        with self._database.reading() as connection:
            return self._view(connection, rollout_id)

    def audit(self, limit: int = 100) -> list[AuditView]:
        """The latest lines of the audit log, newest first."""
        with self._database.reading() as connection:
            return queries.audit_views(connection, limit)

    # Documents -------------------------------------------------------------------------------------

    def desired(self, device: str) -> tuple[str, bytes]:
        """ETag and signed envelope of the device's desired document, for devices that poll.

        Raises:
            NotFoundError: It is not enrolled.
        """
        with self._database.transaction() as connection:
            row = reports.enrolled(connection, device)
            reports.heard(connection, device, self._clock())
        return row.payload_digest.partition(":")[2], row.envelope

    def halt(self) -> tuple[str, bytes] | None:
        """ETag and signed envelope of the halt list; None while nothing was ever halted."""
        with self._database.reading() as connection:
            row = connection.execute(select(halt_document)).one_or_none()
        return None if row is None else (sha256(row.envelope).hexdigest(), row.envelope)

    # What devices say ------------------------------------------------------------------------------

    def apply_reported(self, device: str, payload: bytes, *, live: bool = True) -> None:
        """Take in a reported document; see `reports.apply_reported`."""
        with self._database.transaction() as connection:
            reports.apply_reported(connection, self._director, device, payload, self._clock(), live=live)

    def apply_presence(self, device: str, payload: bytes, *, live: bool = True) -> None:
        """Take in a birth or last will; see `reports.apply_presence`."""
        with self._database.transaction() as connection:
            reports.apply_presence(connection, device, payload, self._clock(), live=live)

    def apply_events(self, device: str, payloads: list[bytes]) -> None:
        """Take in events and queue their acknowledgement; see `reports.apply_events`."""
        with self._database.transaction() as connection:
            reports.apply_events(connection, self._director, device, payloads, self._clock())

    def apply_stats(self, device: str, payload: bytes) -> None:
        """Take in cumulative counters.

        Raises:
            InputError: They are not valid, of another device, or name a release twice.
            NotFoundError: The device is not enrolled.
        """
        stats = decode_stats(payload, limit=MAX_REPORT_BYTES)
        if stats.device != device:
            raise InputError(f"statistics of {device[:130]!a} name the device {stats.device[:130]!a}")
        if len({(row.model, row.release) for row in stats.releases}) != len(stats.releases):
            raise InputError(f"statistics of {device[:130]!a} name a release twice")
        with self._database.transaction() as connection:
            telemetry.store(connection, reports.enrolled(connection, device), stats, self._clock())

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Make all calls of this thread inside one transaction; one that raises is undone alone."""
        with self._database.transaction():
            yield

    # Engine ----------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Move every rollout as far as it can go now."""
        self._reconciler.tick(self._clock())

    def pending_outbox(self, limit: int) -> list[OutboxRow]:
        """Messages that wait for the broker, in the order in which they must be published."""
        with self._database.reading() as connection:
            rows = connection.execute(select(outbox).order_by(outbox.c.id).limit(limit)).all()
        return [
            OutboxRow(id=row.id, topic=row.topic, payload=row.payload, retain=row.retain, expiry_s=row.expiry_s)
            for row in rows
        ]

    def mark_published(self, ids: Iterable[int]) -> None:
        """The broker has acknowledged these."""
        with self._database.transaction() as connection:
            connection.execute(delete(outbox).where(outbox.c.id.in_(list(ids))))

    def resync(self, *, newest_s: float = math.inf) -> None:
        """Queue retained documents again, since the broker may have lost them.

        Args:
            newest_s: Only desired documents that were signed in the last so many seconds; default: all.
        """
        now = self._clock()
        with self._database.transaction() as connection:
            young = (devices.c.revoked_at == 0) & (devices.c.signed_at >= max(0.0, now - newest_s))
            for row in connection.execute(select(devices.c.device, devices.c.envelope).where(young)).all():
                queue(connection, topics.desired(row.device), row.envelope, now, retain=True)
            halted = connection.execute(select(halt_document.c.envelope)).scalar()
            if halted is not None:
                queue(connection, topics.HALT, halted, now, retain=True)

    def version(self) -> int:
        """A number that rises with every change."""
        return self._database.version()

    def wait_for_change(self, since: int, timeout_s: float) -> int:
        """Block until `version` is not `since` or the time is over; returns it."""
        return self._database.wait_for_change(since, timeout_s)

    def _view(self, connection: Connection, rollout: str) -> RolloutView:
        return queries.rollout_view(connection, find_rollout(connection, rollout), self._clock())

    def _intervene(self, rollout: str, event: RolloutEvent, actor: str) -> RolloutView:
        with self._database.transaction() as connection:
            orders.intervene(connection, self._director, rollout, event, actor=actor, now=self._clock())
            return self._view(connection, rollout)
