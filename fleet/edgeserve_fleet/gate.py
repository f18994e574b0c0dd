"""The gate between two waves: evidence in, verdict out. Pure, and it fails closed: missing data are INCONCLUSIVE.

Accuracy is held to a non-inferiority test on the answers that users corrected: the devices that were touched by the
rollout, on its release, against the untouched ones in the same window. The interval of the difference is Newcombe's
hybrid score interval (R. G. Newcombe, "Interval estimation for the difference between independent proportions:
comparison of eleven methods", Statistics in Medicine 17 (1998) 873-890, method 10), which is honest near 0 and 1 where
the textbook interval is not.
"""

from __future__ import annotations

import math
from enum import Enum
from statistics import NormalDist
from typing import Final

import msgspec

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.limits import GATE_MIN_SAMPLES
from edgeserve.contracts.rollout import GateSpec

_ROUNDING: Final = 1e-9
"""Shares are floats and counts are not: 55 % of 20 devices are 11, not 11.000000000000002."""


class Outcome(str, Enum):
    """What a gate can say."""

    PASS = "pass"  # noqa: S105 - not a password
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


class Samples(msgspec.Struct, frozen=True):
    """Feedback: answers that were right, out of those that were labelled."""

    correct: int = 0
    total: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.correct <= self.total:
            raise InputError(f"{self.correct} right answers out of {self.total} cannot be")


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Touched against untouched devices in one window."""

    touched: Samples = Samples()
    """On the rollout's release."""
    control: Samples = Samples()
    """On any other release of the model."""
    control_devices: int = 0
    """Untouched devices, seen since, that serve another release of the model: 0 = there is no control group. One that
    is there but sends no feedback is missing data, which never passes."""

    @property
    def has_control(self) -> bool:
        """Whether there is anything to compare with."""
        return self.control_devices > 0 or self.control.total > 0


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """All that a verdict rests on; stored with it. Device counts are of the wave and all before it."""

    offered: int = 0
    counted: int = 0
    """Offered and seen since, and until the deadline those that are online: the denominator of the shares."""
    fresh: int = 0
    """How many of `counted` joined in this wave."""
    committed: int = 0
    failed: int = 0
    """Rejected, reverted, silent or diverged, without those that an operator resumed over."""
    wave: Comparison = Comparison()
    """Since the wave began."""
    rollout: Comparison = Comparison()
    """Since the rollout began or was resumed: finished waves stay watched."""

    def __post_init__(self) -> None:
        if min(self.counted, self.committed, self.failed) < 0 or self.committed + self.failed > self.counted:
            raise InputError(f"{self.committed} committed and {self.failed} failed of {self.counted} cannot be")


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What the gate says, and why."""

    outcome: Outcome
    reasons: tuple[str, ...]
    interval: tuple[float, float] | None = None
    """Accuracy of touched minus untouched devices since the wave began, where both have enough samples."""


def wilson(samples: Samples, confidence: float) -> tuple[float, float]:
    """Wilson's score interval of one proportion, without continuity correction (1927). `samples.total` > 0."""
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    n, p = samples.total, samples.correct / samples.total
    centre, half = 2 * n * p + z * z, z * math.sqrt(z * z + 4 * n * p * (1 - p))
    width = 2 * (n + z * z)
    return max(0.0, (centre - half) / width), min(1.0, (centre + half) / width)


def difference(first: Samples, second: Samples, confidence: float) -> tuple[float, float]:
    """Newcombe's interval (method 10) of the first proportion minus the second. Both totals must be > 0."""
    p1, p2 = first.correct / first.total, second.correct / second.total
    (l1, u1), (l2, u2) = wilson(first, confidence), wilson(second, confidence)
    delta = p1 - p2
    return delta - math.hypot(p1 - l1, u2 - p2), delta + math.hypot(u1 - p1, p2 - l2)


def judge(spec: GateSpec, evidence: Evidence) -> Verdict:
    """The verdict on a wave: any FAIL fails it, then anything INCONCLUSIVE holds it, and only the rest passes."""
    accuracy, reason, interval = _compare(spec, evidence.wave, "in this wave")
    findings = [_deployments(spec, evidence), (accuracy, reason)]
    if evidence.rollout != evidence.wave:
        monitor, monitor_reason, _ = _compare(spec, evidence.rollout, "in the whole rollout")
        if monitor is Outcome.FAIL:  # finished waves can fail a rollout; they passed already, so no more is asked
            findings.append((monitor, monitor_reason))
    for outcome in (Outcome.FAIL, Outcome.INCONCLUSIVE):
        reasons = tuple(text for found, text in findings if found is outcome)
        if reasons:
            return Verdict(outcome=outcome, reasons=reasons, interval=interval)
    return Verdict(outcome=Outcome.PASS, reasons=tuple(text for _, text in findings), interval=interval)


def enough_committed(spec: GateSpec, evidence: Evidence) -> bool:
    """Whether the wave's devices have deployed, so that the time of watching them begins."""
    return _deployments(spec, evidence)[0] is Outcome.PASS


def _deployments(spec: GateSpec, evidence: Evidence) -> tuple[Outcome, str]:
    counted, committed, failed = evidence.counted, evidence.committed, evidence.failed
    if failed > spec.max_failed * counted + _ROUNDING:
        return Outcome.FAIL, f"{failed} of {counted} devices failed, at most {spec.max_failed:.0%} may"
    if not evidence.fresh:
        return Outcome.INCONCLUSIVE, "no device of this wave has been seen since it was offered the release"
    if counted - failed < spec.min_committed * counted - _ROUNDING:
        return (
            Outcome.FAIL,
            f"{failed} of {counted} devices failed, so {spec.min_committed:.0%} cannot commit any more",
        )
    if committed < spec.min_committed * counted - _ROUNDING:
        return Outcome.INCONCLUSIVE, f"{committed} of {counted} devices have committed, {spec.min_committed:.0%} must"
    return Outcome.PASS, f"{committed} of {counted} devices have committed"


def _compare(spec: GateSpec, comparison: Comparison, where: str) -> tuple[Outcome, str, tuple[float, float] | None]:
    touched, control = comparison.touched, comparison.control
    needed = spec.min_samples or GATE_MIN_SAMPLES
    if min(touched.total, control.total) < needed:
        have = f"{touched.total} touched and {control.total} untouched samples {where}, {needed} each"
        if not comparison.has_control:
            return Outcome.PASS, f"no untouched device serves another release {where}: commits decide", None
        if not spec.min_samples:
            return Outcome.PASS, f"{have} to compare, but none are required: commits decide", None
        return Outcome.INCONCLUSIVE, f"{have} needed", None
    low, high = interval = difference(touched, control, spec.confidence)
    text = (
        f"accuracy {touched.correct / touched.total:.3f} of {touched.total} touched against "
        f"{control.correct / control.total:.3f} of {control.total} untouched samples {where}: "
        f"difference {low:+.3f} to {high:+.3f}, margin {-spec.margin:+.3f}"
    )
    if high < -spec.margin:
        return Outcome.FAIL, text, interval
    good = low > -spec.margin or not spec.min_samples
    return (Outcome.PASS if good else Outcome.INCONCLUSIVE), text, interval
