"""What a device says is so: the reported document, its events and its presence."""

from __future__ import annotations

from enum import Enum

import msgspec

from edgeserve.contracts.desired import NEVER, Generation
from edgeserve.contracts.device import DeviceFacts
from edgeserve.contracts.errors import InputError
from edgeserve.contracts.limits import MAX_COUNT
from edgeserve.contracts.names import device_id, digest


class DeploymentState(str, Enum):
    """States of one device's passage to a release (the table is `edgeserve_agent.deployment`)."""

    IDLE = "idle"
    FETCHING = "fetching"
    STAGED = "staged"
    ACTIVATING = "activating"
    PROBATION = "probation"
    COMMITTED = "committed"
    REVERTING = "reverting"
    REVERTED = "reverted"
    REVERT_FAILED = "revert-failed"
    REJECTED = "rejected"
    """Refused before it touched what serves: verification, match, space or golden set."""

    @property
    def is_terminal(self) -> bool:
        """Whether the deployment has ended."""
        return self in _TERMINAL


_TERMINAL = frozenset(
    {
        DeploymentState.COMMITTED,
        DeploymentState.REVERTED,
        DeploymentState.REVERT_FAILED,
        DeploymentState.REJECTED,
    }
)


class Fence(msgspec.Struct, frozen=True, kw_only=True):
    """Position of a report in the life of one installation. Reports are applied by compare-and-swap on it.

    `install_id` changes when the state directory was lost; `epoch` counts starts of the agent; `seq` counts
    reports of one epoch.
    """

    install_id: str
    epoch: int
    seq: int

    def __post_init__(self) -> None:
        if not 1 <= len(self.install_id) <= 64 or not self.install_id.isascii():
            raise InputError("an install id has 1 to 64 ASCII characters")
        if not (0 <= self.epoch <= MAX_COUNT and 0 <= self.seq <= MAX_COUNT):
            raise InputError(f"fence {self.epoch}.{self.seq} is not between 0 and 2^53")

    def follows(self, other: Fence | None) -> bool:
        """Tell whether a report with this fence may replace one with `other`."""
        if other is None or other.install_id != self.install_id:
            return True
        return (self.epoch, self.seq) > (other.epoch, other.seq)


class ModelReport(msgspec.Struct, frozen=True, kw_only=True):
    """One model of a device."""

    model: str
    active: str = ""
    """Release digest that answers requests; empty when none does."""
    version: str = ""
    variant: str = ""
    """Manifest digest of the active variant."""
    target: str = ""
    precision: str = ""
    previous: str = ""
    """Release digest that is kept on disk to return to."""
    executing_device: str = ""
    """What runs it, in the runtime's words, with ` (simulated)` behind it where the hardware is simulated."""
    fallback: str = ""
    """Why `executing_device` is not the device that the variant is for, one sentence; empty = it is."""
    latency_ms: float = 0.0
    """Median of one row in the trial that picked the active variant on this device; 0 = not measured."""
    state: DeploymentState = DeploymentState.IDLE
    release: str = ""
    """Release digest of the latest deployment."""
    rollout: str = ""
    reason: str = ""
    """Why the latest deployment was rejected or reverted."""
    progress: str = ""
    """What a long step of the latest deployment is at just now, such as building an engine; empty = nothing long."""


class Reported(msgspec.Struct, frozen=True, kw_only=True):
    """The whole reported document: the only truth about success."""

    device: str
    fence: Fence
    agent: str
    """Version of edgeserve."""
    gen_seen: Generation = NEVER
    desired_seen: str = ""
    """sha256 digest of the payload of the desired document with `gen_seen`: two documents of one generation tell
    the manager that its database was restored."""
    models: tuple[ModelReport, ...] = ()
    quarantined: tuple[str, ...] = ()
    facts: DeviceFacts
    http_url: str = ""
    insecure: bool = False
    free_bytes: int = 0
    error: str = ""
    """Last problem that is not a deployment's: a refused document, a full disk."""

    def __post_init__(self) -> None:
        device_id(self.device)
        for report in self.models:
            for name in (report.active, report.previous, report.release):
                if name:
                    digest(name)


class Presence(msgspec.Struct, frozen=True, kw_only=True):
    """Birth and last will; an `off` whose epoch is older than the last `on` is ignored."""

    on: bool
    epoch: int


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One transition of a deployment. Terminal ones stay in the device's journal until acknowledged."""

    device: str
    fence: Fence
    model: str
    release: str
    rollout: str
    state: DeploymentState
    reason: str = ""

    def __post_init__(self) -> None:
        device_id(self.device)
        digest(self.release)


class Ack(msgspec.Struct, frozen=True, kw_only=True):
    """Cumulative acknowledgement: all events of `install_id` up to `(epoch, seq)` are stored by the manager."""

    device: str
    install_id: str
    epoch: int
    seq: int
