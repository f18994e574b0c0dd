from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.rollout import GateSpec
from edgeserve_fleet.gate import Comparison, Evidence, Outcome, Samples, difference, enough_committed, judge, wilson

# Newcombe (1998), Statistics in Medicine 17:873-890, table II, method 10; the first three have p1 < 1 and p2 > 0.
PUBLISHED = [
    (Samples(56, 70), Samples(48, 80), 0.0524, 0.3339),
    (Samples(9, 10), Samples(3, 10), 0.1705, 0.8090),
    (Samples(5, 56), Samples(0, 29), -0.0381, 0.1926),
    (Samples(0, 10), Samples(0, 20), -0.1611, 0.2775),
    (Samples(0, 10), Samples(0, 10), -0.2775, 0.2775),
    (Samples(10, 10), Samples(0, 20), 0.6791, 1.0),
    (Samples(10, 10), Samples(0, 10), 0.6075, 1.0),
]


@pytest.mark.parametrize(("first", "second", "low", "high"), PUBLISHED, ids=lambda value: str(value))
def test_the_interval_is_the_published_one(first, second, low, high):
    assert difference(first, second, 0.95) == pytest.approx((low, high), abs=6e-5)


proportions = st.integers(1, 5000).flatmap(
    lambda total: st.integers(0, total).map(lambda correct: Samples(correct, total))
)


@given(proportions, proportions, st.floats(0.5, 0.999))
def test_the_interval_holds_the_difference_stays_in_bounds_and_turns_with_its_sides(first, second, confidence):
    low, high = difference(first, second, confidence)
    assert -1 - 1e-9 <= low <= first.correct / first.total - second.correct / second.total + 1e-9
    assert high <= 1 + 1e-9
    assert difference(second, first, confidence) == pytest.approx((-high, -low), abs=1e-9)


@given(proportions, st.floats(0.5, 0.98))
def test_more_confidence_is_a_wider_interval(samples, confidence):
    narrow, wide = wilson(samples, confidence), wilson(samples, confidence + 0.015)
    assert wide[0] <= narrow[0] + 1e-12
    assert wide[1] >= narrow[1] - 1e-12


def comparison(touched: tuple[int, int] = (0, 0), control: tuple[int, int] = (0, 0), devices: int = 0) -> Comparison:
    return Comparison(
        touched=Samples(*touched), control=Samples(*control), control_devices=devices or min(control[1], 1)
    )


ONE = {"offered": 1, "counted": 1, "fresh": 1, "committed": 1}
CASES = {
    "nothing was offered": (GateSpec(), Evidence(), Outcome.INCONCLUSIVE),
    "offered but not seen": (GateSpec(), Evidence(offered=3), Outcome.INCONCLUSIVE),
    "commits without control": (GateSpec(), Evidence(**ONE), Outcome.PASS),
    "only earlier waves were seen": (
        GateSpec(),
        Evidence(offered=2, counted=1, fresh=0, committed=1),
        Outcome.INCONCLUSIVE,
    ),
    "one is under way": (GateSpec(), Evidence(offered=2, counted=2, fresh=2, committed=1), Outcome.INCONCLUSIVE),
    "one is under way, enough are there": (
        GateSpec(min_committed=0.5),
        Evidence(offered=2, counted=2, fresh=2, committed=1),
        Outcome.PASS,
    ),
    "one failed": (GateSpec(), Evidence(offered=20, counted=20, fresh=20, committed=19, failed=1), Outcome.FAIL),
    "one failed, one may": (
        GateSpec(max_failed=0.05, min_committed=0.95),
        Evidence(offered=20, counted=20, fresh=20, committed=19, failed=1),
        Outcome.PASS,
    ),
    "one failed, one may, but all must commit": (
        GateSpec(max_failed=0.05),
        Evidence(offered=20, counted=20, fresh=20, committed=19, failed=1),
        Outcome.FAIL,
    ),
    "a share that floats cannot hold": (
        GateSpec(min_committed=0.55, max_failed=0.45),
        Evidence(offered=20, counted=20, fresh=20, committed=11, failed=9),
        Outcome.PASS,
    ),
    "a failure outweighs that nothing was seen": (
        GateSpec(),
        Evidence(offered=2, counted=1, fresh=0, failed=1),
        Outcome.FAIL,
    ),
    "control serves, no feedback": (
        GateSpec(),
        Evidence(**ONE, wave=comparison(devices=1000)),
        Outcome.INCONCLUSIVE,
    ),
    "control serves, none is asked for": (
        GateSpec(min_samples=0),
        Evidence(**ONE, wave=comparison(devices=1000)),
        Outcome.PASS,
    ),
    "none is asked for, but it is bad": (
        GateSpec(min_samples=0),
        Evidence(**ONE, wave=comparison((20, 200), (190, 200))),
        Outcome.FAIL,
    ),
    "none is asked for, and it is unclear": (
        GateSpec(min_samples=0),
        Evidence(**ONE, wave=comparison((180, 200), (182, 200))),
        Outcome.PASS,
    ),
    "199 samples": (GateSpec(), Evidence(**ONE, wave=comparison((0, 199), (199, 199))), Outcome.INCONCLUSIVE),
    "200 samples, bad": (GateSpec(), Evidence(**ONE, wave=comparison((20, 200), (190, 200))), Outcome.FAIL),
    "touched feedback only": (GateSpec(), Evidence(**ONE, wave=comparison((0, 900), devices=5)), Outcome.INCONCLUSIVE),
    "equal and many": (GateSpec(), Evidence(**ONE, wave=comparison((1900, 2000), (1900, 2000))), Outcome.PASS),
    "equal and few": (GateSpec(), Evidence(**ONE, wave=comparison((180, 200), (180, 200))), Outcome.INCONCLUSIVE),
    "worse within the margin": (
        GateSpec(),
        Evidence(**ONE, wave=comparison((9400, 10000), (9500, 10000))),
        Outcome.PASS,
    ),
    "bad in the whole rollout only": (
        GateSpec(),
        Evidence(**ONE, rollout=comparison((100, 1000), (950, 1000))),
        Outcome.FAIL,
    ),
    "unclear in the whole rollout": (
        GateSpec(),
        Evidence(**ONE, rollout=comparison((180, 200), (182, 200))),
        Outcome.PASS,
    ),
}


@pytest.mark.parametrize(("spec", "evidence", "outcome"), CASES.values(), ids=CASES.keys())
def test_the_verdict_follows_from_the_evidence(spec, evidence, outcome):
    verdict = judge(spec, evidence)
    assert verdict.outcome is outcome
    assert verdict.reasons
    assert all(verdict.reasons)


@st.composite
def evidences(draw: st.DrawFn) -> Evidence:
    counted = draw(st.integers(0, 30))
    committed = draw(st.integers(0, counted))

    def drawn() -> Comparison:
        return Comparison(
            touched=draw(proportions) if draw(st.booleans()) else Samples(),
            control=draw(proportions) if draw(st.booleans()) else Samples(),
            control_devices=draw(st.integers(0, 2)),
        )

    return Evidence(
        offered=counted + draw(st.integers(0, 3)),
        counted=counted,
        fresh=draw(st.integers(0, counted)),
        committed=committed,
        failed=draw(st.integers(0, counted - committed)),
        wave=drawn(),
        rollout=drawn(),
    )


specs = st.builds(
    GateSpec,
    margin=st.floats(0.001, 0.5),
    min_samples=st.integers(1, 500),
    confidence=st.floats(0.5, 0.999),
    min_committed=st.floats(0.01, 1),
    max_failed=st.floats(0, 0.99),
)


@given(specs, evidences())
def test_pass_is_never_given_without_data(spec, evidence):
    if judge(spec, evidence).outcome is Outcome.PASS:
        assert evidence.fresh >= 1
        assert evidence.committed >= spec.min_committed * evidence.counted - 1e-6
        assert enough_committed(spec, evidence)
        if evidence.wave.has_control:
            assert min(evidence.wave.touched.total, evidence.wave.control.total) >= spec.min_samples


@given(specs, evidences())
def test_the_same_evidence_gives_the_same_verdict(spec, evidence):
    assert judge(spec, evidence) == judge(spec, evidence)


@pytest.mark.parametrize("pair", [(3, 2), (-1, 2), (1, -1)])
def test_impossible_samples_are_refused(pair):
    with pytest.raises(InputError):
        Samples(*pair)


def test_impossible_evidence_is_refused():
    with pytest.raises(InputError):
        Evidence(offered=1, counted=1, committed=1, failed=1)
