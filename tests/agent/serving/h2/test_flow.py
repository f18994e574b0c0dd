from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeserve_agent.serving.h2.flow import ReceiveWindow, TokenBucket, widened

MAX = 2**31 - 1


@given(st.integers(10, 10_000), st.lists(st.integers(0, 6000)))
def test_what_was_announced_is_what_may_come(size: int, payloads: list[int]) -> None:
    window, announced = ReceiveWindow(size), size
    for payload in payloads:
        increment = window.take(payload)
        announced -= payload
        if announced < 0:
            assert increment is None
            return
        assert increment is not None
        assert increment == 0 or increment > size // 2 - 1
        announced += increment
        assert announced == window.left
        assert size // 2 <= announced <= size


@given(st.integers(10, 10_000), st.lists(st.tuples(st.integers(1, 3000), st.booleans())))
def test_the_peer_may_send_so_much_less_as_is_kept(size: int, payloads: list[tuple[int, bool]]) -> None:
    """Each payload is kept, and at times all that is kept is let go of."""
    window, announced, kept, largest = ReceiveWindow(size), size, 0, 0
    for payload, release in payloads:
        payload = min(payload, announced)
        announced -= payload
        increment = window.take(payload)
        assert increment is not None
        announced += increment + window.keep(payload)
        kept += payload
        largest = max(largest, payload)
        assert announced + kept <= size + largest, "but for a payload that was taken before it was kept"
        if release:
            announced += window.keep(-kept)
            kept = 0
            assert announced >= size // 2
        assert announced == window.left


@given(st.integers(-MAX, MAX), st.integers(-MAX, MAX))
def test_windows_may_be_negative_but_not_above_their_maximum(window: int, change: int) -> None:
    assert widened(window, change) == (window + change if window + change <= MAX else None)


def test_a_burst_is_allowed_and_then_a_rate() -> None:
    bucket = TokenBucket(burst=3, per_s=2.0, now=0.0)
    assert [bucket.take(0.0) for _ in range(4)] == [True, True, True, False]
    bucket = TokenBucket(burst=3, per_s=2.0, now=0.0)
    for _ in range(3):
        bucket.take(0.0)
    assert [bucket.take(0.5), bucket.take(1.0), bucket.take(1.1)] == [True, True, False]


@pytest.mark.parametrize(("relief", "allowed"), [("give", 1), ("refill", 3)])
def test_useful_work_allows_more(relief: str, allowed: int) -> None:
    bucket = TokenBucket(burst=3, per_s=0.0, now=0.0)
    for _ in range(3):
        assert bucket.take(0.0)
    getattr(bucket, relief)()
    assert [bucket.take(0.0) for _ in range(4)].count(True) == allowed
    full = TokenBucket(burst=1, per_s=0.0, now=0.0)
    getattr(full, relief)()
    assert [full.take(0.0), full.take(0.0)] == [True, False], "never above the burst"
