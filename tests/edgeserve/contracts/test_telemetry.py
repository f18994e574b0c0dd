from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.telemetry import (
    LATENCY_BOUNDS_US,
    LATENCY_BUCKETS,
    DeviceStats,
    ReleaseStats,
    decode_stats,
    encode_stats,
    latency_bucket,
)

UNTIMED = settings(deadline=None, max_examples=40)

DIGEST = "sha256:" + "a" * 64
COUNT = st.integers(0, 10_000)


@st.composite
def release_stats(draw: st.DrawFn) -> ReleaseStats:
    feedback = draw(COUNT)
    return ReleaseStats(
        model="m", release=DIGEST, requests=draw(COUNT), failures=draw(COUNT), feedback=feedback,
        correct=draw(st.integers(0, feedback)), latency=tuple(draw(COUNT) for _ in range(LATENCY_BUCKETS)),
    )  # fmt: skip


@UNTIMED
@given(st.lists(release_stats(), max_size=2))
def test_statistics_survive_the_round_trip(releases: list[ReleaseStats]) -> None:
    stats = DeviceStats(device="default.pi", started="x", releases=tuple(releases))
    assert decode_stats(encode_stats(stats), limit=1 << 16) == stats


@UNTIMED
@given(release_stats(), release_stats())
def test_growth_is_what_was_added(earlier: ReleaseStats, growth: ReleaseStats) -> None:
    later = ReleaseStats(
        model="m", release=DIGEST,
        requests=earlier.requests + growth.requests, failures=earlier.failures + growth.failures,
        feedback=earlier.feedback + growth.feedback, correct=earlier.correct + growth.correct,
        latency=tuple(old + new for old, new in zip(earlier.latency, growth.latency, strict=True)),
    )  # fmt: skip
    assert later.since(earlier) == growth
    if later != earlier:
        with pytest.raises(InputError):
            earlier.since(later)


@UNTIMED
@given(st.floats(0, 1e9))
def test_a_latency_falls_between_the_bounds_of_its_bucket(microseconds: float) -> None:
    bucket = latency_bucket(microseconds)
    bounds = (-1.0, *LATENCY_BOUNDS_US, float("inf"))
    assert bounds[bucket] < microseconds <= bounds[bucket + 1]


def test_the_bounds_grow() -> None:
    assert list(LATENCY_BOUNDS_US) == sorted(set(LATENCY_BOUNDS_US))


@pytest.mark.parametrize(
    "fields",
    [{"requests": -1}, {"feedback": 1, "correct": 2}, {"latency": (0,) * 3}, {"latency": (-1,) * LATENCY_BUCKETS}],
    ids=str,
)
def test_counters_that_cannot_be_are_refused(fields) -> None:
    with pytest.raises(InputError):
        ReleaseStats(model="m", release=DIGEST, **fields)
    wire = msgspec.msgpack.encode(
        {"device": "d", "started": "x", "releases": [{"model": "m", "release": DIGEST, **fields}]}
    )
    with pytest.raises(InputError, match="statistics are not valid"):
        decode_stats(wire, limit=1 << 16)


@UNTIMED
@given(st.binary(max_size=100))
def test_any_bytes_are_statistics_or_refused(data: bytes) -> None:
    try:
        decode_stats(data, limit=1 << 16)
    except InputError:
        return


GOOD = encode_stats(
    DeviceStats(device="default.pi", started="x", releases=(ReleaseStats(model="m", release=DIGEST, requests=9),))
)


@UNTIMED
@given(at=st.integers(0, len(GOOD) - 1), value=st.integers(0, 255))
def test_statistics_with_one_byte_replaced_are_read_or_refused(at: int, value: int) -> None:
    data = bytearray(GOOD)
    data[at] = value
    try:
        decode_stats(bytes(data), limit=1 << 16)
    except InputError:
        return


@pytest.mark.parametrize("data", [b"", b"\x91" * 100_000, b"\x81\xa6device" * 10_000], ids=["empty", "deep", "maps"])
def test_what_is_no_messagepack_is_refused(data: bytes) -> None:
    with pytest.raises(InputError):
        decode_stats(data, limit=1 << 20)


def test_the_limit_counts_bytes() -> None:
    with pytest.raises(InputError, match="at most 10 are allowed"):
        decode_stats(GOOD, limit=10)
