"""Who is in the fleet: enrolment, revocation, tokens."""

from __future__ import annotations

import hmac
import secrets
from hashlib import sha256
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from edgeserve.contracts import topics
from edgeserve.contracts.documents import encode
from edgeserve.contracts.errors import ConflictError, InputError
from edgeserve.contracts.limits import MAX_LABELS
from edgeserve.contracts.names import device_id
from edgeserve.contracts.names import labels as checked_labels
from edgeserve_fleet.desired import Director, queue
from edgeserve_fleet.lifecycle import move, note
from edgeserve_fleet.reports import enrolled
from edgeserve_fleet.rollout import FOLLOWED, UNTOUCHED, DeviceEvent
from edgeserve_fleet.schema import devices, retired_installs, rollout_devices


def enrol(
    connection: Connection,
    director: Director,
    device: str,
    *,
    labels: dict[str, str],
    profile: str,
    actor: str,
    now: float,
) -> str:
    """Let a device in; returns its token, of which only the hash is kept.

    Raises:
        InputError: Not a device id, or a label that is not allowed.
        ConflictError: It is enrolled.
    """
    device_id(device)
    if len(checked_labels(labels)) > MAX_LABELS:
        raise InputError(f"device {device} has {len(labels)} labels, at most {MAX_LABELS} are allowed")
    token = secrets.token_urlsafe(32)
    values: dict[str, Any] = {
        "profile": profile,
        "labels": encode(labels).decode(),
        "token_sha256": _hash(token),
        "enrolled_at": now,
        "revoked_at": 0.0,
    }
    row = connection.execute(select(devices.c.revoked_at).where(devices.c.device == device)).one_or_none()
    if row is None:
        connection.execute(insert(devices).values(device=device, **values))
    elif row.revoked_at:
        # Perhaps another board: whatever it says is newer than what its predecessor said.
        forget = {"install_id": "", "reported": None, "online": False, "presence_epoch": 0, "last_seen": 0.0}
        connection.execute(update(devices).where(devices.c.device == device).values(**values, **forget))
        connection.execute(delete(retired_installs).where(retired_installs.c.device == device))
    else:
        raise ConflictError(f"device {device} is enrolled already", hint="revoke it first for a new token")
    director.issue(connection, device, now)
    note(connection, now, actor, "device.enrol", device, profile)
    return token


def revoke(connection: Connection, device: str, *, actor: str, now: float) -> None:
    """End a device's token, remove its document from the broker, and take it out of its rollouts.

    Raises:
        NotFoundError: It is not enrolled.
    """
    enrolled(connection, device)
    values = {"token_sha256": None, "revoked_at": now, "online": False}
    connection.execute(update(devices).where(devices.c.device == device).values(values))
    open_states = [state.value for state in FOLLOWED | UNTOUCHED]
    members = connection.execute(
        select(rollout_devices).where(rollout_devices.c.device == device, rollout_devices.c.state.in_(open_states))
    ).all()
    for member in members:
        move(connection, member, DeviceEvent.SUPERSEDE, now, reason="the device was revoked")
    queue(connection, topics.desired(device), b"", now, retain=True)
    note(connection, now, actor, "device.revoke", device)


def authenticate(connection: Connection, token: str) -> str | None:
    """The device that a token belongs to."""
    digest = _hash(token)
    row = connection.execute(
        select(devices.c.device, devices.c.token_sha256).where(devices.c.token_sha256 == digest)
    ).one_or_none()
    return row.device if row is not None and hmac.compare_digest(row.token_sha256, digest) else None


def _hash(token: str) -> str:
    return sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
