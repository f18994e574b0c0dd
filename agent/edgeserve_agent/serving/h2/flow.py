"""Flow control windows (RFC 9113, section 5.2) and the bound on work that leads nowhere. Pure: time is an argument."""

from __future__ import annotations

from edgeserve_agent.serving.h2.frames import MAX_WINDOW


class ReceiveWindow:
    """Octets that the peer may still send to us; it is opened again in large steps, not for every frame."""

    __slots__ = ("_kept", "_size", "_step", "left")

    def __init__(self, size: int) -> None:
        self._size = size
        self._step = size - (size >> 1)
        self._kept = 0
        self.left = size

    def take(self, count: int) -> int | None:
        """Count a DATA payload, padding and all.

        Returns:
            The increment to announce now, which then counts as announced: 0 while at least half is left or kept.
            None when the payload is more than was allowed.
        """
        self.left -= count
        return None if self.left < 0 else self._open()

    def keep(self, count: int) -> int:
        """Count octets among those taken that wait for the service; a negative count when they wait no more.

        Returns:
            The increment to announce now, as `take`: the peer may send so much less as is kept.
        """
        self._kept += count
        return self._open()

    def _open(self) -> int:
        increment = self._size - self._kept - self.left
        if increment <= self._step:
            return 0
        self.left += increment
        return increment


def widened(window: int, increment: int) -> int | None:
    """A send window after the peer changed it; None when it would pass 2^31-1 (section 6.9.1). It may be negative."""
    window += increment
    return None if window > MAX_WINDOW else window


class TokenBucket:
    """Allows `burst` events at once and `per_s` of them in the long run."""

    __slots__ = ("_burst", "_left", "_per_s", "_since")

    def __init__(self, *, burst: float, per_s: float, now: float) -> None:
        self._burst = burst
        self._per_s = per_s
        self._left = burst
        self._since = now

    def take(self, now: float) -> bool:
        """Count one event; False when there were too many."""
        self._left = min(self._burst, self._left + (now - self._since) * self._per_s) - 1
        self._since = now
        return self._left >= 0

    def give(self) -> None:
        """Allow one more: something useful was done, too."""
        if self._left < self._burst:
            self._left += 1

    def refill(self) -> None:
        """Allow a full burst again."""
        self._left = self._burst
