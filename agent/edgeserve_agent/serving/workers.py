"""Threads that belong to one model, so that a slow model never delays another."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, Final, TypeAlias, TypeVar

T = TypeVar("T")

Outcome: TypeAlias = T | Exception

_READ: Final = 4096


class Workers:
    """Daemon threads that run jobs in turn and hand each outcome to the event loop.

    Outcomes travel through a deque; a byte in a pipe wakes the loop, one for as many as are ready by then. Unlike
    `call_soon_threadsafe`, the write lets go of the interpreter lock, so that the loop finds it free when it wakes
    instead of sleeping again at once: measured with two cores, 2 context switches a job instead of 6.

    Daemon, because a call into a runtime that hangs must not keep the process from ending.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, threads: int, name: str) -> None:
        self._loop = loop
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], Callable[[Any], None]] | None] = queue.SimpleQueue()
        self._outcomes: deque[tuple[Callable[[Any], None], Any]] = deque()
        self._waking = False
        """A byte is on its way; may be wrong in the direction of one too many."""
        self._threads = threads
        self._alive = threads
        """Counted on the loop."""
        self._leaving = threading.Semaphore(threads - 1)
        readable, self._writable = os.pipe()
        os.set_blocking(readable, False)
        os.set_blocking(self._writable, False)
        self._readable = readable
        # The loop may be closed before the last outcome is read.
        self._close_readable = weakref.finalize(self, os.close, readable)
        loop.add_reader(readable, self._drain)
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
            self._outcomes.append((done, outcome))
            del job, done, next_job, outcome  # an idle thread must not keep tensors alive
            self._wake()
        self._outcomes.append((self._left, None))
        self._wake()
        if not self._leaving.acquire(blocking=False):
            os.close(self._writable)  # the last one

    def _wake(self) -> None:
        if not self._waking:
            self._waking = True
            with contextlib.suppress(OSError):  # nobody reads any more, or more bytes than the pipe holds are unread
                os.write(self._writable, b"\0")

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._readable, _READ)
        self._waking = False  # from here on, whoever appends writes again
        outcomes = self._outcomes
        while outcomes:
            done, outcome = outcomes.popleft()
            try:
                done(outcome)
            except Exception as error:  # noqa: BLE001 - one callback's failure is not the others'
                self._loop.call_exception_handler({"message": f"{done!r} failed", "exception": error})

    def _left(self, _outcome: None) -> None:
        self._alive -= 1
        if not self._alive:
            self._loop.remove_reader(self._readable)
            self._close_readable()
