from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgeserve.contracts.limits import BACKOFF_FIRST_S, BACKOFF_MAX_S, MQTT_WILL_DELAY_S
from edgeserve.link.backoff import longest_delay, next_delay

attempts = st.integers(min_value=0, max_value=10**9)


@given(attempts, st.floats(min_value=0, max_value=1, exclude_max=True))
def test_a_delay_is_within_the_bound_of_its_attempt(attempt: int, drawn: float) -> None:
    assert 0 <= next_delay(attempt, lambda: drawn) <= longest_delay(attempt) <= BACKOFF_MAX_S


@given(attempts)
def test_the_bound_never_shrinks_and_at_most_doubles(attempt: int) -> None:
    assert longest_delay(attempt) <= longest_delay(attempt + 1) <= 2 * longest_delay(attempt)


@given(attempts, st.floats(min_value=0, max_value=1, exclude_max=True))
def test_the_jitter_is_full(attempt: int, drawn: float) -> None:
    assert next_delay(attempt, lambda: drawn) == drawn * longest_delay(attempt)


def test_the_first_retry_comes_within_a_second_and_late_ones_within_a_minute() -> None:
    assert longest_delay(0) == BACKOFF_FIRST_S
    assert longest_delay(1000) == BACKOFF_MAX_S


def test_a_last_will_waits_longer_than_a_first_reconnect() -> None:
    assert longest_delay(0) < MQTT_WILL_DELAY_S
