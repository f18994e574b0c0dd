"""A model server: data plane, protocol and listening socket; and the event loop that it runs on."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from edgeserve.contracts.limits import DRAIN_S
from edgeserve_agent.serving.dataplane import DataPlane
from edgeserve_agent.serving.http_server import HttpLimits, HttpServer
from edgeserve_agent.serving.listen import Address
from edgeserve_agent.serving.v2 import V2

_LOG: Final = logging.getLogger(__name__)
_MAX_WORKERS: Final = 8

T = TypeVar("T")


class ModelServer:
    """Serves what its data plane holds over HTTP."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, *, threads: int, insecure: bool, limits: HttpLimits | None = None
    ) -> None:
        """`threads`: inside one call of a model, as its runtime was told; 0 = the runtime takes all."""
        self.plane = DataPlane(loop, workers=worker_threads(threads))
        self._v2 = V2(self.plane, insecure=insecure)
        self._http = HttpServer(loop, self._v2.handle, limits=limits)

    async def listen(self, address: Address) -> str:
        """Listen and return the URL.

        Raises:
            DeviceError: The port is in use or the address is not this machine's.
        """
        return address.url(await self._http.listen(address.host, address.port))

    async def close(self, *, drain_s: float = DRAIN_S) -> None:
        """Stop listening, finish what is in flight, unload everything."""
        self._v2.draining = True
        await self._http.close(drain_s)
        self.plane.close()


def worker_threads(threads: int) -> int:
    """Calls of one model that run side by side: as many as the cores give, when each takes `threads`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(_MAX_WORKERS, cores // (threads or cores)))


def run(main: Callable[[asyncio.AbstractEventLoop, asyncio.Event], Coroutine[Any, Any, T]]) -> T:
    """Run `main` on a loop of uvloop, where there is one, and set its event at SIGTERM and SIGINT."""
    loop = _new_loop()
    asyncio.set_event_loop(loop)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        return loop.run_until_complete(main(loop, stop))
    finally:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        asyncio.set_event_loop(None)
        loop.close()


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        _LOG.info("uvloop is not installed: asyncio's own loop is used")
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop
