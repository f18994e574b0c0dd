"""Tell every open page that something changed: one waiting thread, any number of server-sent event streams."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from typing import Final

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from edgeserve.contracts.errors import TransientError
from edgeserve.contracts.limits import MAX_EVENT_STREAMS

_WAIT_S: Final = 0.5
_KEEP_ALIVE_S: Final = 15.0
_PAUSE_S: Final = 0.3
"""Shortest time between two events of a stream: a busy fleet changes with every report."""


class ChangeFeed:
    """Follows the fleet's version number in a thread and wakes the streams of the event loop.

    Args:
        version: The number now.
        wait_for_change: Blocks until the number differs from `since` or the timeout, and returns it.
    """

    def __init__(self, version: Callable[[], int], wait_for_change: Callable[[int, float], int]) -> None:
        self._wait_for_change = wait_for_change
        self._version = version()
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: set[asyncio.Future[None]] = set()
        self._streams = 0
        self._thread = threading.Thread(target=self._follow, name="changes", daemon=True)

    def start(self) -> None:
        """Begin to follow; call it on the event loop that serves the streams."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def close(self) -> None:
        """End every stream; call it on the event loop."""
        self._closed = True
        self._wake()

    def join(self) -> None:
        """Wait for the thread to end after `close`."""
        if self._thread.ident is not None:
            self._thread.join(timeout=5.0)

    async def answer(self, _request: Request) -> Response:
        """A stream with an event `change` for each new version, until the client leaves or the manager stops."""
        if self._closed or self._streams >= MAX_EVENT_STREAMS:
            raise TransientError(f"{MAX_EVENT_STREAMS} pages follow changes already", hint="close one")
        return StreamingResponse(
            self._events(),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )

    async def _events(self) -> AsyncIterator[str]:
        self._streams += 1
        try:
            seen = -1
            while not self._closed:
                if seen != self._version:
                    seen = self._version
                    yield f'id: {seen}\nevent: change\ndata: {{"version":{seen}}}\n\n'
                    await asyncio.sleep(_PAUSE_S)
                else:
                    yield ": alive\n\n"
                await self._changed(seen, _KEEP_ALIVE_S)
        finally:
            self._streams -= 1

    async def _changed(self, seen: int, timeout_s: float) -> None:
        """Return when the version is not `seen`, on close, or after the timeout."""
        if self._closed or self._version != seen:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(waiter)
        try:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(waiter, timeout_s)
        finally:
            self._waiting.discard(waiter)

    def _follow(self) -> None:
        while not self._closed:
            version = self._wait_for_change(self._version, _WAIT_S)
            if version != self._version:
                self._version = version
                assert self._loop is not None
                with contextlib.suppress(RuntimeError):  # the loop has ended
                    self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)
