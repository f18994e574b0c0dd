"""What the manager shows: frozen structs that the API encodes as JSON. Times are Unix seconds of the manager's clock;
an empty string or 0 means that there is none."""

from __future__ import annotations

import msgspec

from edgeserve.contracts.device import DeviceFacts
from edgeserve.contracts.rollout import RolloutSpec
from edgeserve_fleet.gate import Evidence, Verdict
from edgeserve_fleet.rollout import DeviceState


class StatsView(msgspec.Struct, frozen=True, kw_only=True):
    """What one release did on one device, as far as statistics are kept."""

    model: str
    release: str
    requests: int
    failures: int
    feedback: int
    correct: int


class ModelView(msgspec.Struct, frozen=True, kw_only=True):
    """One model of one device: what it reported, and what is wanted of it."""

    model: str
    active: str
    """Release digest that answers requests."""
    version: str
    target: str
    precision: str
    executing_device: str
    previous: str
    state: str
    """State of the latest deployment, in the device's words."""
    release: str
    """Release digest of the latest deployment."""
    reason: str
    desired: str
    """Release digest that the fleet wants; empty when it wants nothing."""
    desired_version: str
    rollout: str
    """Rollout that wants it."""


class DeviceView(msgspec.Struct, frozen=True, kw_only=True):
    """One device."""

    device: str
    profile: str
    labels: dict[str, str]
    enrolled_at: float
    revoked: bool
    online: bool
    """As the broker says; a device that polls has `last_seen`."""
    last_seen: float
    gen: str
    """Generation of its desired document."""
    gen_seen: str
    agent: str
    facts: DeviceFacts | None
    models: tuple[ModelView, ...]
    stats: tuple[StatsView, ...]
    quarantined: tuple[str, ...]
    http_url: str
    insecure: bool
    free_bytes: int
    error: str


class ReleaseView(msgspec.Struct, frozen=True, kw_only=True):
    """One release."""

    name: str
    """The model's."""
    version: str
    digest: str
    counter: int
    index_size: int
    variants: tuple[dict[str, object], ...]
    added_at: float
    added_by: str
    halted: bool


class WaveView(msgspec.Struct, frozen=True, kw_only=True):
    """One wave of a rollout."""

    wave: int
    """From 1."""
    size: int
    """Devices in it and all before it."""
    started_at: float
    passed_at: float


class RolloutDeviceView(msgspec.Struct, frozen=True, kw_only=True):
    """One device in a rollout."""

    device: str
    wave: int
    """0: in no wave (it has the release already, or is left out as control)."""
    state: DeviceState
    phase: str
    """State of the deployment while it is in progress, in the device's words."""
    reason: str
    previous: str
    """Release digest that a rollback returns it to."""
    active: str
    """Release digest that it reports now."""
    offered_at: float
    changed_at: float
    acknowledged: bool
    """A failure that an operator resumed over."""


class VerdictView(msgspec.Struct, frozen=True, kw_only=True):
    """One judgement of a wave, with all that it rests on."""

    wave: int
    at: float
    verdict: Verdict
    evidence: Evidence


class RolloutView(msgspec.Struct, frozen=True, kw_only=True):
    """One rollout."""

    rollout: str
    model: str
    release: str
    version: str
    state: str
    """draft, validating, scheduled, running, paused, succeeded, aborted, rolling-back or rolled-back."""
    phase: str
    """While running: dispatching, observing or judging."""
    wave: int
    """Current wave, from 1; 0 before the first."""
    reason: str
    """Why it is where it is."""
    spec: RolloutSpec
    created_at: float
    created_by: str
    started_at: float
    ended_at: float
    counts: dict[str, int]
    """Devices by state."""
    waves: tuple[WaveView, ...]
    devices: tuple[RolloutDeviceView, ...]
    """Empty in lists."""
    verdicts: tuple[VerdictView, ...]
    """Oldest first; empty in lists."""
    now: VerdictView | None = None
    """What the gate would say now; only while running, and not in lists."""


class PlanDevice(msgspec.Struct, frozen=True, kw_only=True):
    """Why a device is in or out of a rollout."""

    device: str
    wave: int
    """0: in none."""
    included: bool
    reason: str


class PlanView(msgspec.Struct, frozen=True, kw_only=True):
    """What a rollout would do."""

    model: str
    release: str
    version: str
    waves: tuple[tuple[str, ...], ...]
    """Devices that join in each wave."""
    already: tuple[str, ...]
    control: tuple[str, ...]
    """Selected, but in no wave."""
    devices: tuple[PlanDevice, ...]
    problems: tuple[str, ...]
    """What would keep it from starting."""


class AuditView(msgspec.Struct, frozen=True, kw_only=True):
    """Who did what, when, to what."""

    at: float
    actor: str
    action: str
    subject: str
    detail: str


class OutboxRow(msgspec.Struct, frozen=True, kw_only=True):
    """A message that must reach the broker at least once, in the order of `id`."""

    id: int
    topic: str
    payload: bytes
    retain: bool
    expiry_s: int
    """Seconds after which the broker may drop it; 0 = never."""
