"""What was handed to one connection and not yet acknowledged."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from edgeserve.link.base import PublishToken


class InFlight:
    """Tokens by packet id. Publishers add them, the link's thread settles them: either may come first."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._closed = False
        self._handing_over = 0
        self._tokens: dict[int, PublishToken] = {}
        self._early: dict[int, str] = {}

    @contextlib.contextmanager
    def handing_over(self) -> Iterator[None]:
        """Around handing a message to the connection: until its packet id is known, `drain` waits for it."""
        with self._changed:
            self._handing_over += 1
        try:
            yield
        finally:
            with self._changed:
                self._handing_over -= 1
                self._changed.notify_all()

    def add(self, packet: int) -> PublishToken | None:
        """Token for a packet that was handed over; None when the connection has ended meanwhile."""
        token = PublishToken()
        with self._changed:
            if packet in self._early:
                token.settle(self._early.pop(packet))
            elif self._closed:
                return None
            else:
                self._tokens[packet] = token
        return token

    def settle(self, packet: int, reason: str) -> None:
        """The broker answered for a packet: with no reason, it has it."""
        with self._changed:
            token = self._tokens.pop(packet, None)
            if token is None:
                self._early[packet] = reason
            elif not self._tokens:
                self._changed.notify_all()
        if token is not None:
            token.settle(reason)

    def close(self, reason: str) -> None:
        """The connection has ended: nothing will be acknowledged any more."""
        with self._changed:
            self._closed = True
            tokens = list(self._tokens.values())
            self._tokens.clear()
            self._changed.notify_all()
        for token in tokens:
            token.settle(reason)

    def drain(self, timeout_s: float) -> bool:
        """Wait until nothing is in flight; False when `timeout_s` passed first."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._tokens and not self._handing_over, timeout_s)
