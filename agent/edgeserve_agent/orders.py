"""What may come down: every document is checked here, whether MQTT or HTTP brought it, and whoever sent it.

Pure but for the signature: the journal and the time are arguments.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgeserve.contracts.desired import ACK_TYPE, DESIRED_TYPE, HALT_TYPE, Desired, Halt
from edgeserve.contracts.errors import TrustError
from edgeserve.contracts.limits import MAX_DESIRED_BYTES, MAX_HALT_BYTES, MAX_REPORT_BYTES
from edgeserve.contracts.reported import Ack
from edgeserve.trust import envelope
from edgeserve.trust.keys import PublicKey
from edgeserve_agent.journal import Journal


@dataclass(frozen=True, kw_only=True)
class Accepted:
    """A desired document that is new to this device."""

    desired: Desired
    digest: str
    """sha256 digest of its signed payload."""


def accept_desired(data: bytes, *, key: PublicKey, device: str, journal: Journal, now: float) -> Accepted | None:
    """Check a desired document as it came.

    Args:
        data: The DSSE envelope.
        key: The manager's key, pinned in `agent.toml`.
        device: Who we are.
        journal: What was seen before.
        now: Unix seconds by the device's clock.

    Returns:
        None when it is the one that is known.

    Raises:
        InputError: Too large, or not a document.
        TrustError: Not signed by the pinned key, for another device, expired, or of an older generation.
    """
    # 1. Signed by the pinned key, as a desired document.
    verified = envelope.verify(
        data, payload_type=DESIRED_TYPE, key=key, kind=Desired, what="desired document", limit=MAX_DESIRED_BYTES
    )
    desired = verified.document
    # 2. For this device.
    if desired.device != device:
        raise TrustError(f"desired document {desired.id[:80]!r} is for {desired.device}, this is {device}")
    # 3. Not older than what was seen; an equal generation changes nothing.
    seen = journal.gen_seen
    if journal.desired is not None and desired.gen == seen:
        return None
    if desired.gen < seen:
        raise TrustError(
            f"desired document of generation {desired.gen} is older than {seen}, which this device has seen",
            hint="a manager that was restored from a copy raises its term when it reads this device's report",
        )
    # 4. Not expired, by the later of the clock and the times that signed documents proved.
    if desired.expires_at <= max(now, journal.time_floor):
        raise TrustError(f"desired document of generation {desired.gen} has expired", hint="check the device's clock")
    return Accepted(desired=desired, digest=verified.payload_digest)


def accept_halt(data: bytes, *, key: PublicKey, journal: Journal) -> Halt | None:
    """Check a halt list as it came; None when it is not newer than the known one.

    Raises:
        InputError: Too large, or not a document.
        TrustError: Not signed by the pinned key.
    """
    halt = envelope.verify(
        data, payload_type=HALT_TYPE, key=key, kind=Halt, what="halt list", limit=MAX_HALT_BYTES
    ).document
    known = journal.halt
    return halt if known is None or (halt.term, halt.version) > (known.term, known.version) else None


def accept_ack(data: bytes, *, key: PublicKey, device: str) -> Ack:
    """Check an acknowledgement as it came.

    Raises:
        InputError: Too large, or not a document.
        TrustError: Not signed by the pinned key, or for another device.
    """
    ack = envelope.verify(
        data, payload_type=ACK_TYPE, key=key, kind=Ack, what="acknowledgement", limit=MAX_REPORT_BYTES
    ).document
    if ack.device != device:
        raise TrustError(f"acknowledgement is for {ack.device}, this is {device}")
    return ack
