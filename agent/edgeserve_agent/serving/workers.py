"""Threads that belong to one model, so that a slow model never delays another."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")

Outcome: TypeAlias = T | Exception


class Workers:
    """Daemon threads that run jobs in turn and hand each outcome to the event loop.

    Daemon, because a call into a runtime that hangs must not keep the process from ending.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, threads: int, name: str) -> None:
        self._loop = loop
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], Callable[[Any], None]] | None] = queue.SimpleQueue()
        self._threads = threads
        for number in range(threads):
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True).start()

    def submit(self, job: Callable[[], T], done: Callable[[Outcome[T]], None]) -> None:
        """Run `job` on a thread, then `done` with its result or exception on the event loop."""
        self._jobs.put((job, done))

    def close(self) -> None:
        """End the threads when the jobs before this are done."""
        for _ in range(self._threads):
            self._jobs.put(None)

    def _work(self) -> None:
        while (next_job := self._jobs.get()) is not None:
            job, done = next_job
            try:
                outcome = job()
            except Exception as error:  # noqa: BLE001 - whatever it is, it is handed over
                outcome = error
            with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits any more
                self._loop.call_soon_threadsafe(done, outcome)
            del job, done, next_job, outcome  # an idle thread must not keep tensors alive
