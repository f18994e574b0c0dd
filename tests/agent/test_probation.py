from __future__ import annotations

import msgspec
import pytest

from edgeserve.contracts.desired import Generation, ModelTarget
from edgeserve.contracts.limits import SERVING_START_S
from edgeserve.contracts.reported import DeploymentState
from edgeserve.contracts.telemetry import ReleaseStats
from edgeserve_agent.control import ServedRelease, ServingStats, ServingStatus
from edgeserve_agent.deployment import EventKind, Record
from edgeserve_agent.probation import Observation, Watch, observe

OLD, NEW = (f"sha256:{digit * 64}" for digit in "ab")
RECORD = Record(
    target=ModelTarget(model="digits", release=NEW, version="2", counter=2, index_size=9),
    gen=Generation(1, 1),
    probation_s=10.0,
    state=DeploymentState.PROBATION,
)
SILENT = Observation(status=None, stats=None)


def seen(
    active: str | None = NEW, *, requests: int = 0, failures: int = 0, crashes: int = 0, started: str = "life-1"
) -> Observation:
    served = ServedRelease(
        model="digits", version="x", release=active or "", variant=NEW, active=True, executing_device="CPU"
    )
    status = ServingStatus(pid=1, started=started, http_url="", releases=(served,) if active else ())
    stats = ReleaseStats(model="digits", release=NEW, requests=requests, failures=failures, crashes=crashes)
    return Observation(status=status, stats=ServingStats(started=started, releases=(stats,)))


def run(*looks: tuple[float, Observation], share: float = 0.05):
    watch = Watch(answered=0.0)
    for now, observation in looks:
        judged = observe(RECORD, watch, observation, now, share)
        if not isinstance(judged, Watch):
            return judged
        watch = judged
    return None


@pytest.mark.parametrize(
    ("looks", "kind", "words"),
    [
        ([(0, seen()), (9.9, seen())], None, ""),
        ([(0, seen()), (10, seen())], EventKind.PROVEN, ""),
        ([(5, seen()), (14, seen())], None, ""),
        ([(0, SILENT), (5, seen(None)), (6, seen()), (16, seen())], EventKind.PROVEN, ""),
        ([(0, seen()), (5, SILENT), (10, seen())], EventKind.PROVEN, ""),
        ([(0, seen()), (9, seen(started="life-2")), (18, seen(started="life-2"))], None, ""),
        ([(0, seen()), (SERVING_START_S + 1, SILENT)], EventKind.FAILED, "did not answer"),
        ([(SERVING_START_S + 1, seen(None))], EventKind.FAILED, "did not answer"),
        ([(0, seen(OLD))], EventKind.FAILED, "answers with"),
        ([(0, seen()), (1, seen(None))], EventKind.FAILED, "no more"),
        ([(0, seen()), (1, seen(requests=100, failures=5))], None, ""),
        ([(0, seen()), (1, seen(requests=100, failures=6))], EventKind.FAILED, "6 of 100"),
        ([(0, seen()), (1, seen(requests=1, failures=1))], None, ""),
        ([(0, seen()), (1, seen(requests=2, failures=2))], EventKind.FAILED, "2 of 2"),
        ([(0, seen()), (1, seen(crashes=1))], EventKind.FAILED, "crashed 1 times"),
        ([(0, seen(crashes=2)), (1, seen(crashes=2))], None, ""),
        ([(0, seen(requests=50, failures=50)), (1, seen(requests=60, failures=50))], None, ""),
    ],
    ids=[
        "not long enough", "long enough", "counts from the first answer", "slow start", "busy for a moment",
        "a new life counts anew", "silent", "never ready", "another release", "readiness lost", "few failures",
        "too many failures", "one failure is no share", "all fail", "a worker crashed, without a request",
        "crashes before it", "failures before it",
    ],
)  # fmt: skip
def test_a_probation_ends_as_it_should(looks, kind, words):
    event = run(*looks)
    assert (event.kind if event else None) is kind
    if event is not None and kind is EventKind.FAILED:
        assert words in event.reason
        assert event.blame


def test_a_threshold_of_zero_tolerates_no_failure():
    event = run((0, seen()), (1, seen(requests=1000, failures=1)), share=0.0)
    assert event is not None
    assert event.kind is EventKind.FAILED


def test_the_device_counts_the_whole_of_its_probation():
    longer = msgspec.structs.replace(RECORD, probation_s=1000.0)
    assert isinstance(
        observe(longer, Watch(answered=0.0, ready_since=0.0, started="life-1"), seen(), 999.0, 0.05), Watch
    )
