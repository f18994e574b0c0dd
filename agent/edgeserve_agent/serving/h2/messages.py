"""gRPC's length-prefixed messages: pieces of DATA in, whole messages out, large ones in memory of their own.

A large message's memory counts against a budget for as long as someone holds it: what the service does with a message
after its call is its own matter, and no transport can know.
"""

from __future__ import annotations

import weakref
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from struct import Struct
from typing import Final

import numpy as np

from edgeserve.contracts import limits
from edgeserve_agent.serving.rpc import Message, StatusCode

PREFIX: Final = Struct(">BI")
"""Compressed flag and length before each message."""
_WINDOW_BITS: Final = {"gzip": 31, "deflate": 15}


class MessageRefusedError(Exception):
    """A message cannot be taken; the call ends with this status."""

    def __init__(self, code: StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class MessageMemory:
    """Memory of large messages over all connections."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held = 0
        # Memory is freed in whatever thread lets go of it last; appending is atomic, counting is not.
        self._freed: deque[int] = deque()

    @property
    def held(self) -> int:
        """Bytes in use."""
        freed = self._freed
        while freed:
            self._held -= freed.popleft()
        return self._held

    def new(self, size: int) -> memoryview:
        """Uninitialized memory; its pages cost nothing before bytes come.

        Raises:
            MessageRefusedError: Too much is in use.
        """
        return self._hold(np.empty(size, np.uint8))

    def adopt(self, data: bytes) -> Message:
        """Count bytes that are here already.

        Raises:
            MessageRefusedError: Too much is in use.
        """
        return data if len(data) < limits.H2_HELD_MESSAGE_BYTES else self._hold(np.frombuffer(data, np.uint8))

    def _hold(self, array: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> memoryview:
        if self.held + array.nbytes > self._max_bytes:
            raise MessageRefusedError(
                StatusCode.RESOURCE_EXHAUSTED,
                f"messages of {self._max_bytes} bytes are being received or served; try again later",
            )
        self._held += array.nbytes
        weakref.finalize(array, self._freed.append, array.nbytes).atexit = False
        return array.data


class MessageAssembler:
    """Messages of one call."""

    def __init__(self, memory: MessageMemory, *, max_bytes: int, encoding: str, time: Callable[[], float]) -> None:
        self._memory = memory
        self._max_bytes = max_bytes
        self._encoding = encoding
        self._time = time
        self._prefix = b""
        self._compressed = False
        self._body: memoryview | None = None
        self._filled = 0
        self._began = 0.0

    @property
    def in_message(self) -> bool:
        """Whether a message has begun and not ended."""
        return self._body is not None or bool(self._prefix)

    def overdue(self, now: float, *, grace_s: float, bytes_per_s: float) -> bool:
        """Whether the message under way takes too long: it has `grace_s` and the time for its length."""
        size = 0 if self._body is None else len(self._body)
        return self.in_message and now > self._began + grace_s + size / bytes_per_s

    def room(self) -> memoryview | None:
        """Where the next bytes of the message under way go, for reading straight into it; `advance` takes them in."""
        return None if self._body is None else self._body[self._filled :]

    def advance(self, count: int) -> Message | None:
        """Take in bytes that were put into `room`; the message, when these were its last.

        Raises:
            MessageRefusedError: It cannot be decompressed.
        """
        assert self._body is not None
        self._filled += count
        if self._filled < len(self._body):
            return None
        body, self._body = self._body, None
        return self._inflated(body) if self._compressed else body

    def feed(self, data: memoryview) -> Iterator[Message]:
        """Take in a piece of DATA; yields each message that it ends.

        Raises:
            MessageRefusedError: A message is too large, compressed in an unknown way, or there is no memory for it.
        """
        position, end = 0, len(data)
        while position < end:
            if self._body is None:
                if not self._prefix:
                    self._began = self._time()
                wanted = PREFIX.size - len(self._prefix)
                self._prefix += data[position : position + wanted]
                position += wanted
                if len(self._prefix) < PREFIX.size:
                    return
                prefix, self._prefix = self._prefix, b""
                self._begin(*PREFIX.unpack(prefix))
            body = self._body
            assert body is not None
            count = min(len(body) - self._filled, end - position)
            if count > 0:
                body[self._filled : self._filled + count] = data[position : position + count]
                position += count
            message = self.advance(max(count, 0))
            if message is not None:
                yield message

    def _begin(self, flag: int, size: int) -> None:
        if flag > 1:
            raise MessageRefusedError(StatusCode.INTERNAL, f"the compressed flag of a message is {flag}")
        if flag and self._encoding not in _WINDOW_BITS:
            raise MessageRefusedError(StatusCode.INTERNAL, "a message is compressed, but grpc-encoding names no way")
        if size > self._max_bytes:
            raise too_large(self._max_bytes)
        self._compressed = bool(flag)
        self._filled = 0
        self._body = memoryview(bytearray(size)) if size < limits.H2_HELD_MESSAGE_BYTES else self._memory.new(size)

    def _inflated(self, body: memoryview) -> Message:
        inflater = zlib.decompressobj(_WINDOW_BITS[self._encoding])
        try:
            data = inflater.decompress(body, self._max_bytes + 1)
        except zlib.error as error:
            raise MessageRefusedError(StatusCode.INTERNAL, f"a message is not {self._encoding}: {error}") from error
        if len(data) > self._max_bytes:
            raise too_large(self._max_bytes)
        if not inflater.eof or inflater.unused_data:
            raise MessageRefusedError(StatusCode.INTERNAL, f"a message is not one {self._encoding} stream")
        return self._memory.adopt(data)


def too_large(max_bytes: int) -> MessageRefusedError:
    """The refusal of a message above the limit."""
    return MessageRefusedError(
        StatusCode.RESOURCE_EXHAUSTED, f"the message is larger than {max_bytes} bytes, the most that this server takes"
    )
