"""The desired document: everything the fleet wants of one device, whole and signed, never a delta."""

from __future__ import annotations

from typing import Final

import msgspec

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.limits import MAX_COUNT, MAX_MODELS_PER_DEVICE
from edgeserve.contracts.names import device_id, digest, model_name, version_name

DESIRED_TYPE: Final = "application/vnd.edgeserve.desired.v1+json"
HALT_TYPE: Final = "application/vnd.edgeserve.halt.v1+json"
ACK_TYPE: Final = "application/vnd.edgeserve.ack.v1+json"
"""DSSE payload types of the signed documents."""


class Generation(msgspec.Struct, frozen=True, order=True):
    """Total order of desired documents of one device: `term` first, then `n`.

    The manager raises `term` when a device has seen more than its database knows (it was restored from an older copy).
    """

    term: int
    n: int

    def __post_init__(self) -> None:
        if not (0 <= self.term <= MAX_COUNT and 0 <= self.n <= MAX_COUNT):
            raise InputError(f"generation {self.term}.{self.n} is not between 0 and 2^53")

    def __str__(self) -> str:
        return f"{self.term}.{self.n}"


NEVER: Final = Generation(0, 0)
"""What a device has seen before it has seen anything."""


class ModelTarget(msgspec.Struct, frozen=True, kw_only=True):
    """What one model of a device should be."""

    model: str
    release: str
    """Release digest: the digest of its image index blob."""
    version: str
    counter: int
    index_size: int
    """Length of the image index blob in bytes: a download never exceeds it."""
    rollout: str = ""
    """Rollout that asked for it; empty when an operator did directly."""
    previous: str = ""
    """Digest that a fleet rollback returns from; informs, never decides."""
    probation_s: float = 30.0
    """Probation that the fleet asks for; the device takes the longer of this and its own minimum."""

    def __post_init__(self) -> None:
        model_name(self.model)
        digest(self.release)
        version_name(self.version)
        if self.previous:
            digest(self.previous)
        if not 0 < self.index_size <= 1 << 20:
            raise InputError(f"release {self.version} of {self.model} declares an index of {self.index_size} bytes")
        if not 0 <= self.probation_s <= 7 * 24 * 3600:
            raise InputError(f"probation of {self.probation_s} s is not between 0 and 7 days")


class Desired(msgspec.Struct, frozen=True, kw_only=True):
    """The payload of the signed desired document."""

    id: str
    """Unique; names this document in logs."""
    issuer: str
    device: str
    gen: Generation
    issued_at: float
    """Unix seconds of the manager; raises the device's time floor, orders nothing."""
    expires_at: float
    registry: str
    """Base URL of the OCI distribution API, such as `http://127.0.0.1:8080`; artefacts are under `/v2/MODEL/`."""
    models: tuple[ModelTarget, ...] = ()
    """A model that is not named stays as it is: absence never removes."""
    force: tuple[str, ...] = ()
    """Quarantined release digests that may be tried once more."""

    def __post_init__(self) -> None:
        device_id(self.device)
        if len(self.models) > MAX_MODELS_PER_DEVICE:
            raise InputError(f"desired document names {len(self.models)} models, at most {MAX_MODELS_PER_DEVICE}")
        if len({target.model for target in self.models}) != len(self.models):
            raise InputError("desired document names a model twice")
        if not self.registry.startswith(("http://", "https://")):
            raise InputError(f"registry {self.registry[:80]!r} is not an http or https URL")


class Halt(msgspec.Struct, frozen=True, kw_only=True):
    """Releases and rollouts that no device may activate. `version` only grows."""

    id: str
    issuer: str
    term: int
    version: int
    releases: tuple[str, ...] = ()
    rollouts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for release in self.releases:
            digest(release)
