"""Counters that a device sends: cumulative since the start of its serving process, so a lost message loses nothing.

MessagePack on the wire. Two stats of the same device and `started` are compared by subtraction; stats of several
devices merge by addition.
"""

from __future__ import annotations

import bisect
from typing import Final

import msgspec

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.limits import MAX_COUNT

LATENCY_BOUNDS_US: Final = (
    50,
    100,
    200,
    400,
    800,
    1600,
    3200,
    6400,
    12800,
    25600,
    51200,
    102400,
    204800,
    409600,
    819200,
)
"""Upper bounds of the latency histogram, microseconds; one more bucket holds the rest."""
LATENCY_BUCKETS: Final = len(LATENCY_BOUNDS_US) + 1


def latency_bucket(microseconds: float) -> int:
    """Index of the histogram bucket for one request."""
    return bisect.bisect_left(LATENCY_BOUNDS_US, microseconds)


class ReleaseStats(msgspec.Struct, frozen=True, kw_only=True):
    """What one release did on one device since `DeviceStats.started`."""

    model: str
    release: str
    requests: int = 0
    failures: int = 0
    """Requests that the server failed to answer (status 5xx); a client's mistake is none."""
    crashes: int = 0
    """Worker processes of it that ended unasked since it was loaded, with or without a request."""
    feedback: int = 0
    """Feedback received: the gate's total."""
    correct: int = 0
    """Feedback whose label was the prediction."""
    latency: tuple[int, ...] = (0,) * LATENCY_BUCKETS

    def __post_init__(self) -> None:
        if len(self.latency) != LATENCY_BUCKETS:
            raise InputError(f"latency histogram has {len(self.latency)} buckets, {LATENCY_BUCKETS} expected")
        counters = (self.requests, self.failures, self.crashes, self.feedback, self.correct, *self.latency)
        if min(counters) < 0 or max(counters) > MAX_COUNT:
            raise InputError("a counter is negative or above 2^53")
        if self.correct > self.feedback:
            raise InputError(f"{self.correct} correct answers out of {self.feedback}")

    def since(self, earlier: ReleaseStats) -> ReleaseStats:
        """The growth from `earlier` to this.

        Raises:
            InputError: A counter shrank: the two are not of one life of the serving process.
        """
        return ReleaseStats(
            model=self.model,
            release=self.release,
            requests=self.requests - earlier.requests,
            failures=self.failures - earlier.failures,
            crashes=max(0, self.crashes - earlier.crashes),  # counted anew when the release is loaded anew
            feedback=self.feedback - earlier.feedback,
            correct=self.correct - earlier.correct,
            latency=tuple(new - old for new, old in zip(self.latency, earlier.latency, strict=True)),
        )


class DeviceStats(msgspec.Struct, frozen=True, kw_only=True):
    """All counters of a device."""

    device: str
    started: str
    """Random id of one life of the serving process: counters begin at 0 with it."""
    releases: tuple[ReleaseStats, ...] = ()


def encode_stats(stats: DeviceStats) -> bytes:
    """MessagePack of `stats`."""
    return msgspec.msgpack.encode(stats)


def decode_stats(data: bytes, *, limit: int) -> DeviceStats:
    """Read what `encode_stats` wrote.

    Raises:
        InputError: Too large, not MessagePack, or a counter is impossible.
    """
    if len(data) > limit:
        raise InputError(f"statistics have {len(data)} bytes, at most {limit} are allowed")
    try:
        return msgspec.msgpack.decode(data, type=DeviceStats)
    except (msgspec.DecodeError, UnicodeDecodeError, InputError, RecursionError) as error:
        raise InputError(f"statistics are not valid: {error}") from error
