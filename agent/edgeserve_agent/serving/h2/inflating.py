"""Decompressing messages: small ones at once, larger ones on a thread, so that they hold up no other call."""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final

from edgeserve.contracts.limits import CODEC_THREAD_BYTES
from edgeserve_agent.serving.h2.messages import MessageMemory, MessageRefusedError, too_large
from edgeserve_agent.serving.rpc import Message, StatusCode
from edgeserve_agent.serving.workers import Outcome, Workers

_WINDOW_BITS: Final = {"gzip": 31, "deflate": 15}
_MOST: Final = 1032
"""Bytes that one of deflate's can become (RFC 1951: 258 bytes in two bits)."""


def inflate(body: Message, encoding: str, *, limit: int, max_bytes: int) -> bytes | None:
    """Decompress a message.

    Args:
        body: As it came.
        encoding: Its `grpc-encoding`.
        limit: Bytes after which to give up.
        max_bytes: What a message may have.

    Returns:
        The message; None when it is longer than `limit`.

    Raises:
        MessageRefusedError: It is not of that encoding, or is longer than `max_bytes`.
    """
    stream = zlib.decompressobj(_WINDOW_BITS[encoding])
    most = min(limit, max_bytes)
    try:
        data = stream.decompress(body, most + 1)
    except zlib.error as error:
        raise MessageRefusedError(StatusCode.INTERNAL, f"a message is not {encoding}: {error}") from error
    if len(data) > most:
        if most == max_bytes:
            raise too_large(max_bytes)
        return None
    if not stream.eof or stream.unused_data:
        raise MessageRefusedError(StatusCode.INTERNAL, f"a message is not one {encoding} stream")
    return data


class Job:
    """One message on its way through the thread."""

    __slots__ = ("body", "done", "encoding")

    def __init__(self, body: Message, encoding: str, done: Callable[[Outcome[Message]], None]) -> None:
        self.body: Message | None = body
        self.encoding = encoding
        self.done = done

    def cancel(self) -> None:
        """Nobody wants it any more."""
        self.body = None
        self.done = _ignore


class Inflater:
    """Decompresses the messages of all calls. Lives on the event loop.

    One message after another is on the thread, and it alone has memory reserved, for as much as it may become: messages
    that wait for it hold no more than they are.
    """

    def __init__(self, memory: MessageMemory, *, max_bytes: int, workers: Callable[[], Workers]) -> None:
        self._memory = memory
        self._max_bytes = max_bytes
        self._make_workers = workers
        self._workers: Workers | None = None
        self._jobs: deque[Job] = deque()
        self._busy = False

    def begin(self, body: Message, encoding: str, done: Callable[[Outcome[Message]], None]) -> Message | Job:
        """The message, if it is small; else `done` gets it later.

        Raises:
            MessageRefusedError: It cannot be decompressed, or there is no memory for it.
        """
        # A small message may hold a large one: the loop only begins with it.
        data = inflate(body, encoding, limit=CODEC_THREAD_BYTES, max_bytes=self._max_bytes)
        if data is not None:
            return self._memory.adopt(data)
        job = Job(body, encoding, done)
        self._jobs.append(job)
        self._next()
        return job

    def close(self) -> None:
        """End the thread."""
        if self._workers is not None:
            self._workers.close()

    def _next(self) -> None:
        while self._jobs and not self._busy:
            job = self._jobs.popleft()
            if job.body is None:
                continue
            size = min(self._max_bytes, _MOST * len(job.body))
            try:
                self._memory.reserve(size)
            except MessageRefusedError as error:
                job.done(error)
                continue
            if self._workers is None:
                try:
                    self._workers = self._make_workers()
                except Exception as error:  # noqa: BLE001 - such as no thread to be had; the call ends with it
                    self._memory.release(size)
                    job.done(error)
                    continue
            self._busy = True
            work = partial(inflate, job.body, job.encoding, limit=self._max_bytes, max_bytes=self._max_bytes)
            self._workers.submit(work, partial(self._done, job, size))

    def _done(self, job: Job, size: int, outcome: Outcome[bytes | None]) -> None:
        self._busy = False
        self._memory.release(size)
        if job.body is not None:
            assert outcome is not None  # only what is above a lower limit is given up
            job.body = None
            job.done(outcome if isinstance(outcome, Exception) else self._memory.adopt(outcome))  # it was reserved
        self._next()


def _ignore(_outcome: Outcome[Message]) -> None:
    """It was cancelled."""
