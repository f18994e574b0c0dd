"""gRPC's length-prefixed messages: pieces of DATA in, whole messages out, large ones in memory of their own.

A large message's memory counts against a budget as its bytes come, and for as long as someone holds it: what the
service does with a message after its call is its own matter, and no transport can know.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from struct import Struct
from typing import Final

import numpy as np

from edgeserve.contracts import limits
from edgeserve_agent.serving.rpc import Message, StatusCode

PREFIX: Final = Struct(">BI")
"""Compressed flag and length before each message."""
_AHEAD: Final = 4
"""Memory of a message under way counts for so many times what came of it, so that few reads fill it."""


class MessageRefusedError(Exception):
    """A message cannot be taken; the call ends with this status."""

    def __init__(self, code: StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Claim:
    """What one piece of memory counts for."""

    __slots__ = ("bytes",)

    def __init__(self) -> None:
        self.bytes = 0


class MessageMemory:
    """Memory of large messages over all connections."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held = 0
        # Memory is freed in whatever thread lets go of it last; appending is atomic, counting is not.
        self._freed: deque[Claim] = deque()

    @property
    def held(self) -> int:
        """Bytes in use."""
        freed = self._freed
        while freed:
            self._held -= freed.popleft().bytes
        return self._held

    def reserve(self, size: int) -> None:
        """Count bytes until `release`.

        Raises:
            MessageRefusedError: Too much is in use.
        """
        if self.held + size > self._max_bytes:
            raise MessageRefusedError(
                StatusCode.RESOURCE_EXHAUSTED,
                f"messages of {self._max_bytes} bytes are being received or served; try again later",
            )
        self._held += size

    def release(self, size: int) -> None:
        """Count reserved bytes no more."""
        self._held -= size

    def new(self, size: int) -> tuple[memoryview, Claim]:
        """Uninitialized memory; its pages cost nothing before bytes come, and `grow` has them counted."""
        return self._claimed(np.empty(size, np.uint8))

    def grow(self, claim: Claim, size: int) -> None:
        """Count `size` bytes of a claim's memory, until nobody holds it.

        Raises:
            MessageRefusedError: Too much is in use.
        """
        self.reserve(size - claim.bytes)
        claim.bytes = size

    def adopt(self, data: bytes) -> Message:
        """Count bytes that are here already.

        Raises:
            MessageRefusedError: Too much is in use.
        """
        if len(data) < limits.H2_HELD_MESSAGE_BYTES:
            return data
        view, claim = self._claimed(np.frombuffer(data, np.uint8))
        self.grow(claim, len(data))
        return view

    def _claimed(self, array: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> tuple[memoryview, Claim]:
        claim = Claim()
        weakref.finalize(array, self._freed.append, claim).atexit = False
        return array.data, claim


class MessageAssembler:
    """Messages of one call, as they came: compressed ones are still so."""

    def __init__(self, memory: MessageMemory, *, max_bytes: int, encoding: str, time: Callable[[], float]) -> None:
        self.compressed = False
        """Whether the message under way, or that ended last, is."""
        self._memory = memory
        self._max_bytes = max_bytes
        self._encoding = encoding
        self._time = time
        self._prefix = b""
        self._body: memoryview | None = None
        self._claim: Claim | None = None
        self._filled = 0
        self._began = 0.0

    @property
    def in_message(self) -> bool:
        """Whether a message has begun and not ended."""
        return self._body is not None or bool(self._prefix)

    @property
    def missing(self) -> int:
        """Bytes of the message under way that have not come."""
        return 0 if self._body is None else len(self._body) - self._filled

    def overdue(self, now: float, *, grace_s: float, bytes_per_s: float) -> bool:
        """Whether the message under way takes too long: it has `grace_s` and the time for its length."""
        size = 0 if self._body is None else len(self._body)
        return self.in_message and now > self._began + grace_s + size / bytes_per_s

    def restart_clock(self) -> None:
        """The message under way was held up, by no fault of the client's."""
        self._began = self._time()

    def drop(self) -> None:
        """Forget the message under way, and with it its memory."""
        self._body = self._claim = None
        self._prefix = b""

    def room(self) -> memoryview | None:
        """Where the next bytes of the message under way go, for reading straight into it; `advance` takes them in."""
        if self._body is None:
            return None
        return self._body[self._filled : None if self._claim is None else self._claim.bytes]

    def advance(self, count: int) -> Message | None:
        """Take in bytes that were put into `room`; the message, when these were its last.

        Raises:
            MessageRefusedError: There is no memory for more.
        """
        body = self._body
        assert body is not None
        self._filled += count
        if self._filled < len(body):
            if self._claim is not None and self._filled >= self._claim.bytes:
                self._memory.grow(self._claim, min(len(body), _AHEAD * self._filled))
            return None
        self._body = self._claim = None
        return body

    def take(self, data: memoryview) -> tuple[int, Message | None]:
        """Take in a piece of DATA up to the end of a message: how many bytes were taken, and the message that ended.

        Raises:
            MessageRefusedError: A message is too large, compressed in an unknown way, or there is no memory for it.
        """
        position = 0
        if self._body is None:
            if not self._prefix:
                self._began = self._time()
            position = min(PREFIX.size - len(self._prefix), len(data))
            self._prefix += data[:position]
            if len(self._prefix) < PREFIX.size:
                return position, None
            prefix, self._prefix = self._prefix, b""
            self._begin(*PREFIX.unpack(prefix))
        body, filled = self._body, self._filled
        assert body is not None
        count = min(len(body) - filled, len(data) - position)
        if count and self._claim is not None and filled + count > self._claim.bytes:
            self._memory.grow(self._claim, min(len(body), _AHEAD * (filled + count)))
        body[filled : filled + count] = data[position : position + count]
        return position + count, self.advance(count)

    def _begin(self, flag: int, size: int) -> None:
        if flag > 1:
            raise MessageRefusedError(StatusCode.INTERNAL, f"the compressed flag of a message is {flag}")
        if flag and self._encoding == "identity":
            raise MessageRefusedError(StatusCode.INTERNAL, "a message is compressed, but grpc-encoding names no way")
        if size > self._max_bytes:
            raise too_large(self._max_bytes)
        self.compressed = bool(flag)
        self._filled = 0
        if size < limits.H2_HELD_MESSAGE_BYTES:
            self._body = memoryview(bytearray(size))
        else:
            self._body, self._claim = self._memory.new(size)


def too_large(max_bytes: int) -> MessageRefusedError:
    """The refusal of a message above the limit."""
    return MessageRefusedError(
        StatusCode.RESOURCE_EXHAUSTED, f"the message is larger than {max_bytes} bytes, the most that this server takes"
    )
