"""The documents that go down: computed from the database, signed, and put into the outbox in the same transaction.

Every signed desired document has a generation of its own, so a device that reports one with another digest tells that
this database was restored from an older copy.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from edgeserve.contracts import topics
from edgeserve.contracts.desired import ACK_TYPE, DESIRED_TYPE, HALT_TYPE, Desired, Generation, Halt, ModelTarget
from edgeserve.contracts.documents import encode
from edgeserve.contracts.errors import InputError
from edgeserve.contracts.limits import DESIRED_LIFETIME_S, MAX_DESIRED_BYTES, MAX_HALTED_RELEASES
from edgeserve.contracts.reported import Ack
from edgeserve.trust.envelope import sign
from edgeserve.trust.keys import SigningKey
from edgeserve_fleet.schema import assignments, devices, halt_document, halts, outbox, releases

_ACK_EXPIRY_S = 3600


@dataclass(frozen=True, kw_only=True)
class Director:
    """Signs in the manager's name.

    Args:
        key: Its public half is pinned in every device.
        issuer: Name of the manager in the documents.
        registry_url: Where devices fetch releases.
    """

    key: SigningKey
    issuer: str
    registry_url: str

    def issue(self, connection: Connection, device: str, now: float, *, above: Generation | None = None) -> Generation:
        """Sign what the device should be, under the next generation, and queue it.

        Args:
            connection: In a writing transaction.
            device: Device id.
            now: Unix seconds.
            above: A generation that the device has seen and this database has not: the term rises over it.

        Raises:
            InputError: The device is to have more models than a document holds.
        """
        row = connection.execute(select(devices.c.term, devices.c.n).where(devices.c.device == device)).one()
        gen = Generation(row.term, row.n + 1)
        if above is not None:
            gen = Generation(max(above.term, row.term) + 1, 1)
        document = Desired(
            id=secrets.token_hex(8),
            issuer=self.issuer,
            device=device,
            gen=gen,
            issued_at=now,
            expires_at=now + DESIRED_LIFETIME_S,
            registry=self.registry_url,
            models=_targets(connection, device),
        )
        envelope = sign(document, payload_type=DESIRED_TYPE, key=self.key)
        if len(envelope) > MAX_DESIRED_BYTES:
            raise InputError(
                f"the desired document of {device} has {len(envelope)} bytes, at most {MAX_DESIRED_BYTES} are allowed",
                hint=f"it names {len(document.models)} models: give the device fewer",
            )
        connection.execute(
            update(devices)
            .where(devices.c.device == device)
            .values(
                term=gen.term,
                n=gen.n,
                envelope=envelope,
                payload_digest="sha256:" + sha256(encode(document)).hexdigest(),
                signed_at=now,
            )
        )
        queue(connection, topics.desired(device), envelope, now, retain=True)
        return gen

    def issue_halt(self, connection: Connection, now: float, *, term: int = 0) -> None:
        """Sign the list of halted releases, with a higher version or at least `term`, and queue it.

        The oldest are left out when there are more than fit: the manager itself never offers any of them again.
        """
        before = connection.execute(select(halt_document.c.term, halt_document.c.version)).one_or_none()
        version = 1 if before is None or term > before.term else before.version + 1
        term = max(term, 0 if before is None else before.term)
        newest = select(halts.c.release).order_by(halts.c.at.desc(), halts.c.release).limit(MAX_HALTED_RELEASES)
        document = Halt(
            id=secrets.token_hex(8),
            issuer=self.issuer,
            term=term,
            version=version,
            releases=tuple(connection.scalars(newest)),  # not the rollout: it is also what asks for the way back
        )
        envelope = sign(document, payload_type=HALT_TYPE, key=self.key)
        connection.execute(delete(halt_document))
        connection.execute(insert(halt_document).values(id=1, term=term, version=version, envelope=envelope))
        queue(connection, topics.HALT, envelope, now, retain=True)

    def raise_halt(self, connection: Connection, now: float, term: int) -> None:
        """Sign the halt list anew when its term is below `term`: a restored database forgot its version, too."""
        row = connection.execute(select(halt_document.c.term)).one_or_none()
        if row is None or row.term < term:
            self.issue_halt(connection, now, term=term)

    def queue_ack(self, connection: Connection, ack: Ack, now: float) -> None:
        """Sign and queue the acknowledgement of a device's events."""
        envelope = sign(ack, payload_type=ACK_TYPE, key=self.key)
        queue(connection, topics.ack(ack.device), envelope, now, retain=False, expiry_s=_ACK_EXPIRY_S)


def queue(connection: Connection, topic: str, payload: bytes, now: float, *, retain: bool, expiry_s: int = 0) -> None:
    """Put a message into the outbox. It replaces what still waits there for its topic: documents are whole."""
    connection.execute(delete(outbox).where(outbox.c.topic == topic))
    connection.execute(
        insert(outbox).values(topic=topic, payload=payload, retain=retain, expiry_s=expiry_s, created_at=now)
    )


def assign(
    connection: Connection,
    device: str,
    model: str,
    *,
    release: str,
    rollout: str,
    previous: str = "",
    probation_s: float = 0.0,
) -> None:
    """Say what a model of a device should be; an empty `release` wants nothing, which removes nothing."""
    values = {"release": release, "rollout": rollout, "previous": previous, "probation_s": probation_s}
    row = (assignments.c.device == device) & (assignments.c.model == model)
    if not connection.execute(update(assignments).where(row).values(values)).rowcount:
        connection.execute(insert(assignments).values(device=device, model=model, **values))


def assignment(connection: Connection, device: str, model: str) -> Row[Any] | None:
    """What a model of a device should be."""
    row = (assignments.c.device == device) & (assignments.c.model == model)
    return connection.execute(select(assignments).where(row)).one_or_none()


def _targets(connection: Connection, device: str) -> tuple[ModelTarget, ...]:
    rows = connection.execute(
        select(assignments, releases.c.version, releases.c.counter, releases.c.index_size)
        .join(releases, releases.c.digest == assignments.c.release)
        .where(assignments.c.device == device)
        .order_by(assignments.c.model)
    )
    return tuple(
        ModelTarget(
            model=row.model,
            release=row.release,
            version=row.version,
            counter=row.counter,
            index_size=row.index_size,
            rollout=row.rollout,
            previous=row.previous,
            probation_s=row.probation_s,
        )
        for row in rows
    )
