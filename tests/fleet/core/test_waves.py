from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeserve.contracts.rollout import RolloutSpec, parse_waves
from edgeserve_fleet.waves import Candidate, plan

SEED = "sha256:" + "1" * 64


def spec(waves: str, **selector: str) -> RolloutSpec:
    return RolloutSpec(model="m", release=SEED, waves=parse_waves(waves), selector=selector)


def devices(count: int, **fields: object) -> list[Candidate]:
    return [
        Candidate(**{"device": f"t.d{n}", "labels": {}, "reachable": True, "has_release": False} | fields)
        for n in range(count)
    ]


@pytest.mark.parametrize(
    ("waves", "count", "sizes", "control"),
    [
        ("1,3,6", 6, [1, 2, 3], 0),
        ("1,3,6", 4, [1, 2, 1], 0),
        ("1,3,6", 2, [1, 1], 0),
        ("1,3", 6, [1, 2], 3),
        ("10%,50%,100%", 10, [1, 4, 5], 0),
        ("1%,100%", 3, [1, 2], 0),
        ("5,10%,100%", 20, [5, 15], 0),
        ("100%", 0, [], 0),
    ],
)
def test_waves_are_cumulative_and_none_is_empty(waves, count, sizes, control):
    found = plan(devices(count), spec(waves), SEED)
    assert [len(wave) for wave in found.waves] == sizes
    assert len(found.control) == control


def test_unreachable_devices_come_last():
    some = [
        *devices(3, reachable=False),
        *(Candidate(device=f"t.up{n}", labels={}, reachable=True, has_release=False) for n in range(3)),
    ]
    found = plan(some, spec("3,6"), SEED)
    assert set(found.waves[0]) == {"t.up0", "t.up1", "t.up2"}


def test_the_order_differs_between_releases_so_the_canary_is_not_always_the_same():
    canaries = {plan(devices(20), spec("1"), f"sha256:{n:064x}").waves[0][0] for n in range(20)}
    assert len(canaries) > 5


def test_each_device_that_stays_out_has_a_reason():
    some = [
        Candidate(device="t.a", labels={"site": "x"}, reachable=True, has_release=False),
        Candidate(device="t.b", labels={}, reachable=True, has_release=False),
        Candidate(device="t.c", labels={"site": "x"}, reachable=True, has_release=False, misfit="no NPU"),
        Candidate(device="t.d", labels={"site": "x"}, reachable=True, has_release=True),
    ]
    found = plan(some, spec("100%", site="x"), SEED)
    assert found.waves == (("t.a",),)
    assert found.already == ("t.d",)
    assert found.out == {"t.b": "the selector asks for site=x, the device has no site", "t.c": "no NPU"}


candidates = st.lists(
    st.builds(
        Candidate,
        device=st.integers(0, 99).map(lambda n: f"t.d{n}"),
        labels=st.sampled_from([{}, {"site": "x"}, {"site": "y"}]),
        reachable=st.booleans(),
        has_release=st.booleans(),
    ),
    unique_by=lambda candidate: candidate.device,
    max_size=40,
)


@given(
    candidates, st.sampled_from(["1,3,6", "10%,100%", "2", "1,50%"]), st.sampled_from([{}, {"site": "x"}]), st.randoms()
)
def test_every_device_has_exactly_one_place_and_the_order_of_asking_does_not_matter(some, waves, selector, random):
    found = plan(some, spec(waves, **selector), SEED)
    placed = [*(d for wave in found.waves for d in wave), *found.already, *found.control, *found.out]
    assert sorted(placed) == sorted(candidate.device for candidate in some)
    shuffled = list(some)
    random.shuffle(shuffled)
    assert plan(shuffled, spec(waves, **selector), SEED) == found


@given(candidates, candidates)
def test_a_device_keeps_its_rank_when_others_come_and_go(some, others):
    def order(present: list[Candidate]) -> list[str]:
        found = plan(present, spec("100%"), SEED)
        return [device for wave in found.waves for device in wave]

    known = {candidate.device for candidate in some}
    more = [*some, *(candidate for candidate in others if candidate.device not in known)]
    alone = order(some)
    assert [device for device in order(more) if device in set(alone)] == alone
