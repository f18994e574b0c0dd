"""A rollout as the operator wrote it: what, to whom, in which waves, held to which gate."""

from __future__ import annotations

from enum import Enum
from itertools import combinations

import msgspec

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.limits import GATE_MIN_SAMPLES, MAX_COUNT, MAX_WAVES
from edgeserve.contracts.names import digest, model_name


class Wave(msgspec.Struct, frozen=True, kw_only=True):
    """A cumulative slice of the fleet: exactly one of `count` and `percent` is set."""

    count: int = 0
    percent: float = 0.0

    def __post_init__(self) -> None:
        if (self.count > 0) == (self.percent > 0) or not 0 <= self.count <= MAX_COUNT or not 0 <= self.percent <= 100:
            raise InputError("a wave is a positive count of devices or a percentage from 0 to 100, such as 5 or 10%")

    def size(self, devices: int) -> int:
        """Devices in this wave and all before it, out of `devices`; a percentage rounds up, so none is empty."""
        wanted = self.count or -(-int(self.percent * 1000) * devices // 100_000)
        return max(1, min(wanted, devices)) if devices else 0


class GateSpec(msgspec.Struct, frozen=True, kw_only=True):
    """When a wave is good. Thresholds are values, checked here, never strings read at evaluation."""

    margin: float = 0.03
    """Non-inferiority margin: an accuracy loss (touched minus untouched) below `-margin` fails."""
    min_samples: int = GATE_MIN_SAMPLES
    """Feedback samples that both sides need before the gate decides. 0 = the operator asks for none: commits decide,
    and feedback can only fail a wave, once both sides have the default number."""
    confidence: float = 0.95
    min_committed: float = 1.0
    """Share of the wave's devices, offered and seen since, that must have committed."""
    max_failed: float = 0.0
    """Share of the wave's devices that may reject or revert before the gate fails."""

    def __post_init__(self) -> None:
        if not 0 < self.margin < 1:
            raise InputError(f"gate margin {self.margin} must be between 0 and 1")
        if not 0 <= self.min_samples <= MAX_COUNT:
            raise InputError(f"gate cannot ask for {self.min_samples} samples")
        if not 0.5 <= self.confidence < 1:
            raise InputError(f"gate confidence {self.confidence} must be from 0.5 to below 1")
        if not 0 < self.min_committed <= 1 or not 0 <= self.max_failed < 1:
            raise InputError("gate shares must be between 0 and 1")


class OnFail(str, Enum):
    """What the fleet does when a gate fails."""

    ROLLBACK = "rollback"
    PAUSE = "pause"
    ABORT = "abort"


class RolloutSpec(msgspec.Struct, frozen=True, kw_only=True):
    """The order. Durations are seconds."""

    model: str
    release: str
    selector: dict[str, str] = {}
    """Labels that a device must all carry; empty selects every device."""
    waves: tuple[Wave, ...]
    gate: GateSpec = GateSpec()
    on_fail: OnFail = OnFail.ROLLBACK
    probation_s: float = 30.0
    observe_s: float = 10.0
    """Time that a wave is watched at the least after its last device committed."""
    wave_deadline_s: float = 3600.0
    """A wave without a verdict by then: silent devices have failed, missing evidence pauses the rollout."""

    def __post_init__(self) -> None:
        model_name(self.model)
        digest(self.release)
        if not 1 <= len(self.waves) <= MAX_WAVES:
            raise InputError(f"a rollout has 1 to {MAX_WAVES} waves, not {len(self.waves)}")
        for earlier, later in combinations(self.waves, 2):
            if (later.count and earlier.count and later.count <= earlier.count) or (
                later.percent and earlier.percent and later.percent <= earlier.percent
            ):
                raise InputError("waves are cumulative: each must be larger than the one before, such as 1,3,6")
        for name, value in (("probation", self.probation_s), ("observe", self.observe_s)):
            if not 0 <= value <= 7 * 24 * 3600:
                raise InputError(f"{name} of {value} s is not between 0 and 7 days")
        if not 0 < self.wave_deadline_s <= 30 * 24 * 3600:
            raise InputError(f"wave deadline of {self.wave_deadline_s} s is not between 0 and 30 days")


def parse_waves(text: str) -> tuple[Wave, ...]:
    """Read waves as an operator writes them: `1,3,6` or `1,10%,50%,100%`.

    Raises:
        InputError: A part is neither a count nor a percentage.
    """
    waves = []
    for part in text.split(","):
        word = part.strip()
        try:
            waves.append(Wave(percent=float(word[:-1])) if word.endswith("%") else Wave(count=int(word)))
        except ValueError:
            raise InputError(
                f"wave {word[:40]!r} is neither a count nor a percentage", hint="write 1,3,6 or 1,10%,100%"
            ) from None
    return tuple(waves)
