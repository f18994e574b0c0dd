from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.limits import MAX_WAVES
from edgeserve.contracts.rollout import GateSpec, RolloutSpec, Wave, parse_waves

UNTIMED = settings(deadline=None, max_examples=40)

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "waves"),
    [
        ("1,3,6", (Wave(count=1), Wave(count=3), Wave(count=6))),
        (" 1 , 10% ,100% ", (Wave(count=1), Wave(percent=10), Wave(percent=100))),
        ("0.5%", (Wave(percent=0.5),)),
    ],
)
def test_waves_are_read_as_an_operator_writes_them(text: str, waves: tuple[Wave, ...]) -> None:
    assert parse_waves(text) == waves


@pytest.mark.parametrize(
    "text", ["", ",", "1,", "one", "0", "-1", "0%", "-5%", "101%", "%", "nan%", "inf%", "1.5", "1e9%", "\x1b[31m"],
    ids=ascii,
)  # fmt: skip
def test_what_is_no_wave_is_refused(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_waves(text)
    assert "\x1b" not in caught.value.message


@UNTIMED
@given(st.text(alphabet="0123456789%,. -+en", max_size=20))
def test_any_text_is_waves_or_refused(text: str) -> None:
    try:
        waves = parse_waves(text)
    except InputError:
        return
    assert len(waves) == text.count(",") + 1
    assert all((wave.count > 0) != (0 < wave.percent <= 100) for wave in waves)


@UNTIMED
@given(percent=st.floats(0.01, 100), devices=st.integers(0, 100_000))
def test_a_share_rounds_up_and_never_passes_the_fleet(percent: float, devices: int) -> None:
    size = Wave(percent=percent).size(devices)
    assert size <= devices
    assert (size >= 1) == (devices >= 1)
    if devices:
        assert size >= math.floor(percent / 100 * devices - devices * 1e-5)
        assert size <= math.ceil(percent / 100 * devices) or size == 1
    assert Wave(percent=100).size(devices) == devices


@UNTIMED
@given(count=st.integers(1, 1000), devices=st.integers(0, 1000))
def test_a_count_is_at_most_the_fleet(count: int, devices: int) -> None:
    assert Wave(count=count).size(devices) == min(count, devices)


@UNTIMED
@given(small=st.floats(0.01, 100), large=st.floats(0.01, 100), devices=st.integers(0, 1000))
def test_a_larger_share_is_never_fewer_devices(small: float, large: float, devices: int) -> None:
    small, large = sorted((small, large))
    assert Wave(percent=small).size(devices) <= Wave(percent=large).size(devices)


@pytest.mark.parametrize("text", ["3,1", "3,3", "50%,10%", "5,10%,3", "10%,5,5%", "1,1"])
def test_waves_that_do_not_grow_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="cumulative"):
        RolloutSpec(model="m", release=DIGEST, waves=parse_waves(text))


@pytest.mark.parametrize("waves", [(), tuple(Wave(count=n + 1) for n in range(MAX_WAVES + 1))], ids=["none", "many"])
def test_a_rollout_has_some_waves(waves: tuple[Wave, ...]) -> None:
    with pytest.raises(InputError, match="waves"):
        RolloutSpec(model="m", release=DIGEST, waves=waves)


@pytest.mark.parametrize(
    "fields",
    [{"model": "../m"}, {"release": "v1"}, {"probation_s": -1}, {"probation_s": math.nan}, {"observe_s": math.inf},
     {"wave_deadline_s": 0}, {"wave_deadline_s": math.nan}],
    ids=str,
)  # fmt: skip
def test_an_order_that_makes_no_sense_is_refused(fields) -> None:
    with pytest.raises(InputError):
        RolloutSpec(**{"model": "m", "release": DIGEST, "waves": (Wave(count=1),), **fields})


@pytest.mark.parametrize(
    "fields",
    [{"margin": 0}, {"margin": 1}, {"margin": math.nan}, {"min_samples": -1}, {"confidence": 1}, {"confidence": 0.4},
     {"min_committed": 0}, {"min_committed": 1.1}, {"max_failed": 1}, {"max_failed": -0.1}, {"max_failed": math.nan}],
    ids=str,
)  # fmt: skip
def test_a_gate_that_would_always_or_never_open_is_refused(fields) -> None:
    with pytest.raises(InputError):
        GateSpec(**fields)
