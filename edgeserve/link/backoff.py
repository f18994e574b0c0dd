"""How long to wait before the next attempt: exponential with full jitter, so that a fleet does not return in step.

Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015 ("Full Jitter").
"""

from __future__ import annotations

from collections.abc import Callable

from edgeserve.contracts.limits import BACKOFF_FIRST_S, BACKOFF_MAX_S

_MOST_DOUBLINGS = 32  # far beyond BACKOFF_MAX_S, and no float overflow after a year of attempts


def longest_delay(attempt: int) -> float:
    """Upper bound of the delay after `attempt` failures in a row, in seconds: doubles up to `BACKOFF_MAX_S`."""
    return min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** min(max(attempt, 0), _MOST_DOUBLINGS))


def next_delay(attempt: int, random: Callable[[], float]) -> float:
    """Seconds to wait after `attempt` failures in a row (0 = the first).

    Args:
        attempt: Failures before this one.
        random: A number from [0, 1) on each call.
    """
    return random() * longest_delay(attempt)
