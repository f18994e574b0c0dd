"""What connections have to send, sent together at the end of the event loop's turn.

A write to a socket wakes its reader, and waking costs several times what a small answer does (17 us against 5 here).
When 32 clients were heard in one turn, one that was woken early handles its other answers without sleeping in between:
a request of theirs then takes half of the server's CPU. A client that is alone waits for no one: its turn ends at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import perf_counter_ns
from typing import Protocol

from edgeserve.contracts.limits import OUTBOX_CONNECTIONS, OUTBOX_NS


class Sender(Protocol):
    """A connection."""

    def send(self) -> None:
        """Give the system what there is to send."""


class Outbox:
    """Connections that have something to send.

    Args:
        loop: Whose turns count.
        clock: Nanoseconds.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, clock: Callable[[], int] = perf_counter_ns) -> None:
        self._clock = clock
        self._call_soon = loop.call_soon
        self._waiting: list[Sender] = []
        self._scheduled = False
        self._since = 0

    def add(self, sender: Sender) -> None:
        """Have `sender` send before the loop waits again; it is added once until then."""
        waiting = self._waiting
        now = self._clock()
        if not waiting:
            self._since = now
            if not self._scheduled:
                self._scheduled = True
                self._call_soon(self._end_of_turn)
        waiting.append(sender)
        if len(waiting) >= OUTBOX_CONNECTIONS or now - self._since > OUTBOX_NS:
            self._send()

    def _end_of_turn(self) -> None:
        self._scheduled = False
        self._send()

    def _send(self) -> None:
        waiting, self._waiting = self._waiting, []
        for sender in waiting:
            sender.send()
