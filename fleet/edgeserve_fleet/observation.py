"""What a report says about a device in a rollout. Pure: the truth is the report, and the answer depends only on the
offer and the latest report, so that lost, doubled or late reports end in the same state."""

from __future__ import annotations

from dataclasses import dataclass

from edgeserve.contracts.desired import Generation
from edgeserve.contracts.reported import DeploymentState, Fence, ModelReport, Reported
from edgeserve_fleet.rollout import DEVICE_TRANSITIONS, TOUCHED, DeviceEvent, DeviceState


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What a device was offered, or recalled to."""

    model: str
    release: str
    previous: str
    """Release digest to return to; empty when there is none."""
    gen: Generation
    """Generation of the document that made the offer or the recall: older reports do not answer it."""
    state: DeviceState
    committed: Fence | None
    """Earliest report or event that said that the device had committed."""


_ENDED = {
    DeploymentState.REJECTED: DeviceEvent.REJECT,
    DeploymentState.REVERTED: DeviceEvent.REVERT,
    DeploymentState.REVERT_FAILED: DeviceEvent.REVERT,
}


def observe(offer: Offer, reported: Reported) -> DeviceEvent | None:
    """The event that `reported` is for a device with `offer`; None when it changes nothing."""
    report = model_report(reported, offer.model)
    if offer.state in TOUCHED:
        event = _touched(offer, reported, report)
    elif offer.state in (DeviceState.RETURNING, DeviceState.LEFT):
        event = _recalled(offer, reported, report)
    else:
        return None
    return event if event in DEVICE_TRANSITIONS[offer.state] else None


def has_committed(report: ModelReport, release: str) -> bool:
    """Whether the device answers with `release` and its passage to it has ended well."""
    if report.active != release:
        return False
    return report.state is DeploymentState.IDLE or (
        report.state is DeploymentState.COMMITTED and report.release in ("", release)
    )


def model_report(reported: Reported, model: str) -> ModelReport:
    """What `reported` says about `model`; an empty report when it says nothing."""
    for report in reported.models:
        if report.model == model:
            return report
    return ModelReport(model=model)


def is_deploying(report: ModelReport, release: str) -> bool:
    """Whether the device is on its way to `release`, or on its way back from it."""
    return report.release == release and report.state is not DeploymentState.IDLE and not report.state.is_terminal


def _touched(offer: Offer, reported: Reported, report: ModelReport) -> DeviceEvent | None:
    if offer.committed is not None and offer.committed.install_id != reported.fence.install_id:
        return DeviceEvent.RESET
    if reported.gen_seen < offer.gen:
        return None
    if has_committed(report, offer.release):
        return DeviceEvent.COMMIT
    # A device whose server is just starting reports no active release: that is not another one.
    other = report.active not in ("", offer.release) and not is_deploying(report, offer.release)
    if other and offer.committed is not None and reported.fence.follows(offer.committed):
        return DeviceEvent.DIVERGE
    if report.release != offer.release:
        return None
    if report.state in _ENDED:
        return _ENDED[report.state]
    return DeviceEvent.PROGRESS if is_deploying(report, offer.release) else None


def _recalled(offer: Offer, reported: Reported, report: ModelReport) -> DeviceEvent | None:
    if reported.gen_seen < offer.gen or is_deploying(report, offer.release):
        return None
    if offer.previous:
        return DeviceEvent.ARRIVE if report.active == offer.previous else None
    kept = report.active == offer.release or (
        report.release == offer.release and report.state is DeploymentState.COMMITTED
    )
    return DeviceEvent.STAY if kept else DeviceEvent.ARRIVE
