"""What operators order: releases made known, rollouts written down, begun and interrupted."""

from __future__ import annotations

import secrets
from hashlib import sha256
from typing import Any

import msgspec
from sqlalchemy import Connection, func, insert, select

from edgeserve.contracts.documents import encode
from edgeserve.contracts.errors import ConflictError, InputError, NotFoundError
from edgeserve.contracts.names import digest as checked_digest
from edgeserve.contracts.oci import ReleaseIdentity
from edgeserve.contracts.rollout import RolloutSpec
from edgeserve_fleet.desired import Director
from edgeserve_fleet.lifecycle import apply, find_rollout, note, spec_of
from edgeserve_fleet.planning import VariantNeeds, active_rollout, make_plan, materialise, problems
from edgeserve_fleet.rollout import RolloutEvent, RolloutRecord
from edgeserve_fleet.schema import assignments, idempotency, releases, rollout_devices, rollouts


def add_release(
    connection: Connection,
    digest: str,
    identity: ReleaseIdentity,
    *,
    index_size: int,
    variants: list[dict[str, Any]],
    actor: str,
    now: float,
) -> None:
    """Make a release known; the same one again changes nothing.

    Raises:
        InputError: A variant does not say what it needs (`planning.VariantNeeds`).
        ConflictError: Its name and version are another release's, or its counter is not the highest of its name.
    """
    if connection.execute(select(releases.c.digest).where(releases.c.digest == checked_digest(digest))).first():
        return
    try:
        msgspec.convert(variants, tuple[VariantNeeds, ...])
    except msgspec.ValidationError as error:
        raise InputError(f"variants of {identity.name}:{identity.version} are not valid: {error}") from error
    label = f"{identity.name}:{identity.version}"
    of_name = releases.c.model == identity.name
    if connection.execute(select(releases.c.digest).where(of_name, releases.c.version == identity.version)).first():
        raise ConflictError(f"{label} is another release", hint="a release never changes: take a new version")
    highest = connection.execute(select(func.max(releases.c.counter)).where(of_name)).scalar_one()
    if highest is not None and identity.counter <= highest:
        raise ConflictError(
            f"{label} has the counter {identity.counter}, but a release of that name has {highest}",
            hint="the counter of a newer release is higher: compile it again",
        )
    connection.execute(
        insert(releases).values(
            digest=digest,
            model=identity.name,
            version=identity.version,
            counter=identity.counter,
            index_size=index_size,
            variants=encode(variants).decode(),
            added_at=now,
            added_by=actor,
        )
    )
    note(connection, now, actor, "release.add", label, digest)


def create(connection: Connection, spec: RolloutSpec, *, actor: str, key: str, now: float) -> str:
    """Write an order down; returns the id of the rollout. The same key and order again return the same one.

    Raises:
        NotFoundError: The release is not known.
        InputError: The release is of another model.
        ConflictError: The key was used with another order.
    """
    body = encode(spec)
    digest = sha256(body).hexdigest()
    if key:
        used = connection.execute(select(idempotency).where(idempotency.c.key == key)).one_or_none()
        if used is not None and used.body_sha256 != digest:
            raise ConflictError("this idempotency key was used with another order", hint="use a new key")
        if used is not None:
            return str(used.rollout)
    check_release(connection, spec)
    rollout = f"r-{secrets.token_hex(5)}"
    connection.execute(
        insert(rollouts).values(
            rollout=rollout,
            model=spec.model,
            release=spec.release,
            spec=body.decode(),
            state=RolloutRecord(waves=len(spec.waves)).state.value,
            waves=len(spec.waves),
            created_at=now,
            created_by=actor,
        )
    )
    if key:
        connection.execute(insert(idempotency).values(key=key, body_sha256=digest, rollout=rollout, at=now))
    note(connection, now, actor, "rollout.create", rollout, body.decode())
    return rollout


def start(connection: Connection, director: Director, rollout: str, *, actor: str, now: float) -> tuple[str, ...]:
    """Validate a draft and schedule it; returns what keeps it from starting, and then it is a draft still.

    Raises:
        NotFoundError: There is no such rollout.
        ConflictError: It is no draft.
    """
    row = apply(connection, director, rollout, RolloutEvent.START, now)
    spec = spec_of(row)
    found = make_plan(connection, spec, now)
    reasons = problems(connection, spec, found, rollout)
    if not reasons:
        materialise(connection, rollout, spec, found, now)
    event = RolloutEvent.INVALID if reasons else RolloutEvent.VALID
    apply(connection, director, rollout, event, now, "; ".join(reasons))
    note(connection, now, actor, "rollout.start", rollout, "; ".join(reasons))
    return reasons


def intervene(
    connection: Connection, director: Director, rollout: str, event: RolloutEvent, *, actor: str, now: float
) -> None:
    """Pause, resume, abort or roll back.

    Raises:
        NotFoundError: There is no such rollout.
        ConflictError: Its state does not allow it, or its devices belong to another rollout by now.
    """
    if event is RolloutEvent.ROLL_BACK:
        _check_rollback(connection, rollout, find_rollout(connection, rollout).model)
    apply(connection, director, rollout, event, now, f"{event.value} by {actor}")
    note(connection, now, actor, f"rollout.{event.value}", rollout)


def check_release(connection: Connection, spec: RolloutSpec) -> None:
    """Refuse an order whose release is not known or of another model.

    Raises:
        NotFoundError: The release is not known.
        InputError: The release is of another model.
    """
    model = connection.execute(select(releases.c.model).where(releases.c.digest == spec.release)).scalar()
    if model is None:
        raise NotFoundError(f"release {spec.release} is not known", hint="edgeserve fleet publish RELEASE")
    if model != spec.model:
        raise InputError(f"release {spec.release[:19]} is one of {model}, not of {spec.model}")


def _check_rollback(connection: Connection, rollout: str, model: str) -> None:
    other = active_rollout(connection, model, rollout)
    if other:
        raise ConflictError(f"rollout {other} of {model} has not ended", hint="roll that one back, or abort it first")
    started = connection.execute(select(rollout_devices).where(rollout_devices.c.rollout == rollout)).first()
    holds = connection.execute(select(assignments).where(assignments.c.rollout == rollout)).first()
    if started is not None and holds is None:
        raise ConflictError(
            f"no device is held by rollout {rollout} any more: later ones took over", hint="roll the latest one back"
        )
