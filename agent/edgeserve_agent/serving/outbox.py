"""What connections have to send, sent together at the end of the event loop's turn.

A write to a socket wakes its reader, and waking costs several times what a small answer does (17 us against 5 here).
When 32 clients were heard in one turn, one that was woken early handles its other answers without sleeping in between:
a request of theirs then takes half of the server's CPU. A client that is alone waits for no one: its turn ends at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from time import perf_counter_ns
from typing import Final, Protocol

from edgeserve.contracts.limits import OUTBOX_CONNECTIONS, OUTBOX_NS

_LOG: Final = logging.getLogger(__name__)


class Sender(Protocol):
    """A connection."""

    def send(self) -> None:
        """Give the system what there is to send."""

    def abort(self) -> None:
        """Close at once."""


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
            try:
                sender.send()
            except Exception:  # noqa: BLE001, PERF203 - it is logged; the others' answers must not be lost with it
                _LOG.exception("sending failed")
                sender.abort()
