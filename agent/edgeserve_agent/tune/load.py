"""Closed-loop load on the data plane of this process: no protocol, no client process that would take the cores."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Sequence
from itertools import count
from typing import Final

from edgeserve.contracts.errors import EdgeServeError
from edgeserve.runtimes.base import Tensors
from edgeserve_agent.serving.call import Call
from edgeserve_agent.serving.call import Sequence as CallSequence
from edgeserve_agent.serving.dataplane import DataPlane
from edgeserve_agent.serving.served import ServedRelease
from edgeserve_agent.tune.messages import LEAST_REQUESTS, STRETCH, Measured

_RAMP: Final = 0.2
"""Of a window, before it begins to count: as long as all clients need to come into step."""
_now = time.perf_counter


class ClosedLoop:
    """Clients that send the next request as soon as they have an answer.

    A request's latency counts from when its client had its last answer, not from when the loop came to it: waiting for
    the loop is waiting, too.

    Args:
        loop: Of the data plane.
        plane: Serves the model.
        served: What is asked.
        requests: Sent in turn.
        sequences: Each client is a sequence of its own.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        plane: DataPlane,
        served: ServedRelease,
        requests: Sequence[Tensors],
        *,
        sequences: bool,
    ) -> None:
        self._loop = loop
        self._plane = plane
        self._served = served
        self._requests = requests
        self._sequences = sequences
        self._ids = count(1)

    async def run(self, *, concurrency: int, window_s: float, percentile: float) -> Measured:
        """Load for at least `window_s` seconds.

        Args:
            concurrency: Clients.
            window_s: Goes on longer until there are enough answers, up to STRETCH times.
            percentile: Of the tail latency.
        """
        window = _Window(self._loop, least=max(concurrency, LEAST_REQUESTS))
        for _ in range(concurrency):
            client = _Client(self, window, next(self._ids) if self._sequences else 0)
            window.clients.append(client)
            client.start()
        await asyncio.sleep(window_s * _RAMP)
        window.open()
        await asyncio.sleep(window_s)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(window.enough.wait(), window_s * (STRETCH - 1))
        window.close()
        await window.idle.wait()
        return window.measured(percentile)

    def send(self, client: _Client) -> None:
        """Hand one request to the data plane."""
        sequence = CallSequence(id=client.sequence, start=client.sent == 0) if client.sequence else None
        inputs = self._requests[client.sent % len(self._requests)]
        self._plane.infer(Call(self._served, inputs, client.answered, sequence=sequence))


class _Window:
    """What is counted, from `open` to `close`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, least: int) -> None:
        self.loop = loop
        self.clients: list[_Client] = []
        self.running = True
        self.idle = asyncio.Event()
        self.enough = asyncio.Event()
        self.opened = self.closed = math.inf
        self._cpu_s = 0.0
        self._least = least
        self._durations: list[float] = []
        self._failed = 0
        self._error = ""

    def open(self) -> None:
        self._durations.clear()
        self.enough.clear()
        self._cpu_s = time.process_time()
        self.opened = _now()

    def close(self) -> None:
        self._cpu_s = time.process_time() - self._cpu_s
        self.closed = _now()
        self.running = False

    def add(self, duration: float, answer: Tensors | EdgeServeError) -> None:
        if not self.running:
            return
        if isinstance(answer, EdgeServeError):
            self._failed += 1
            self._error = self._error or answer.message
        else:
            self._durations.append(duration)
        if self._failed or len(self._durations) >= self._least:
            self.enough.set()

    def leave(self, client: _Client) -> None:
        self.clients.remove(client)
        if not self.clients:
            self.idle.set()

    def measured(self, percentile: float) -> Measured:
        ordered = sorted(self._durations) or [0.0]
        return Measured(
            requests=len(self._durations),
            seconds=self.closed - self.opened,
            p50_ms=1e3 * nearest_rank(ordered, 50),
            tail_ms=1e3 * nearest_rank(ordered, percentile),
            cpu_s=self._cpu_s,
            failed=self._failed,
            error=self._error,
        )


class _Client:
    def __init__(self, load: ClosedLoop, window: _Window, sequence: int) -> None:
        self._load = load
        self._window = window
        self._began = 0.0
        self.sequence = sequence
        self.sent = 0

    def start(self) -> None:
        self._began = _now()
        self._window.loop.call_soon(self._send)

    def _send(self) -> None:
        self._load.send(self)
        self.sent += 1

    def answered(self, _call: Call, answer: Tensors | EdgeServeError) -> None:
        self._window.add(_now() - self._began, answer)
        if self._window.running:
            self.start()
        else:
            self._window.leave(self)


def nearest_rank(ordered: Sequence[float], percentile: float) -> float:
    """The smallest value that at least `percentile` of all do not exceed; `ordered` ascends and is not empty."""
    return ordered[min(len(ordered), max(1, math.ceil(len(ordered) * percentile / 100))) - 1]
