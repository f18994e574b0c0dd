"""The server of gRPC over HTTP/2: its limits, the memory of messages, and the deadlines of calls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from edgeserve.contracts.limits import (
    H2_CONCURRENT_STREAMS,
    H2_CONNECTION_WINDOW,
    H2_DEADLINE_TICK_S,
    H2_FRAME_BYTES,
    H2_HELD_MESSAGE_BYTES,
    H2_IDLE_FRAMES,
    H2_PING_S,
    H2_RESETS,
    H2_STREAM_WINDOW,
    H2_WAITING_BYTES,
    IDLE_CONNECTION_S,
    LINGER_S,
    MAX_BODY_BYTES_IN_FLIGHT,
    MAX_HEAD_BYTES,
    MAX_REQUEST_BYTES,
    READ_BUFFER_BYTES,
    REQUEST_BODY_MIN_BYTES_PER_S,
    REQUEST_HEAD_S,
)
from edgeserve_agent.serving.acceptor import Acceptor
from edgeserve_agent.serving.descriptors import connection_limit
from edgeserve_agent.serving.h2 import frames
from edgeserve_agent.serving.h2.connection import H2Connection
from edgeserve_agent.serving.h2.inflating import Inflater
from edgeserve_agent.serving.h2.messages import PREFIX, MessageAssembler, MessageMemory
from edgeserve_agent.serving.h2.stream import Stream
from edgeserve_agent.serving.rpc import RpcService
from edgeserve_agent.serving.workers import Workers

_HEAD_ROOM: Final = 1024
"""Beside a whole header block, the shared buffer holds its frame's header, padding and priority."""


@dataclass(frozen=True, kw_only=True)
class H2Limits:
    """Bounds of one server; the reasons stand in `edgeserve.contracts.limits`."""

    head_bytes: int = MAX_HEAD_BYTES
    message_bytes: int = MAX_REQUEST_BYTES
    messages_bytes: int = MAX_BODY_BYTES_IN_FLIGHT
    body_bytes_per_s: float = REQUEST_BODY_MIN_BYTES_PER_S
    read_buffer_bytes: int = READ_BUFFER_BYTES
    head_s: float = REQUEST_HEAD_S
    idle_s: float = IDLE_CONNECTION_S
    linger_s: float = LINGER_S
    ping_s: float = H2_PING_S
    connections: int = field(default_factory=connection_limit)
    """By the limit of file descriptors."""
    concurrent_streams: int = H2_CONCURRENT_STREAMS
    resets: int = H2_RESETS
    idle_frames: int = H2_IDLE_FRAMES
    waiting_bytes: int = H2_WAITING_BYTES

    @property
    def stream_window(self) -> int:
        """Octets of one stream that a client may send ahead; it gets more once a longer message has begun."""
        return max(frames.DEFAULT_WINDOW, min(H2_STREAM_WINDOW, self.message_bytes + PREFIX.size))


class H2Server(Acceptor):
    """gRPC over cleartext HTTP/2 on listening addresses, and on connections that another server hands over."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        service: RpcService,
        *,
        limits: H2Limits | None = None,
        workers: Callable[[], Workers] | None = None,
    ) -> None:
        """`workers` makes the thread that decompresses large messages, when the first one comes."""
        self.limits = bounds = limits or H2Limits()
        waits = (bounds.head_s, bounds.idle_s, bounds.linger_s, bounds.ping_s)
        super().__init__(loop, most=bounds.connections, waits=waits)
        self.service = service
        # A read is always taken in before the next one begins, so all connections can share one buffer.
        self.read_buffer = memoryview(bytearray(max(bounds.read_buffer_bytes, bounds.head_bytes + _HEAD_ROOM)))
        self.memory = MessageMemory(bounds.messages_bytes)
        self.inflater = Inflater(
            self.memory,
            max_bytes=bounds.message_bytes,
            workers=workers or partial(Workers, loop, threads=1, name="inflate"),
        )
        self.small_bytes = PREFIX.size + min(H2_HELD_MESSAGE_BYTES - 1, bounds.message_bytes)
        """DATA up to this length that is one whole message needs no assembling."""
        self.preface = _preface(bounds)
        """SETTINGS and the connection's window, the first that a client gets."""
        self._watched: dict[Stream, None] = {}
        self._ticker: asyncio.TimerHandle | None = None

    def connection(self) -> H2Connection:
        """A protocol for a new connection."""
        return H2Connection(self)

    def adopt(self, transport: asyncio.Transport, initial_bytes: bytes | memoryview) -> None:
        """Take over a connection on which another protocol has read `initial_bytes`, which begin with the preface."""
        connection = self.connection()
        transport.set_protocol(connection)
        connection.connection_made(transport)
        connection.feed(initial_bytes)

    async def close(self, drain_s: float) -> None:
        """Stop listening, let calls finish for up to `drain_s` seconds, then cut the rest off; end the thread."""
        await super().close(drain_s)
        self.inflater.close()

    # Called by connections -----------------------------------------------------------------------

    def assembler(self, encoding: str) -> MessageAssembler:
        """For the messages of one call."""
        return MessageAssembler(self.memory, max_bytes=self.limits.message_bytes, encoding=encoding, time=self.time)

    def watch(self, stream: Stream, timeout_s: float) -> None:
        """Let a call fail when its time is over."""
        stream.deadline = self.time() + timeout_s
        self._watched[stream] = None
        if self._ticker is None:
            self._ticker = self.loop.call_later(H2_DEADLINE_TICK_S, self._tick)

    def unwatch(self, stream: Stream) -> None:
        """The call has ended."""
        self._watched.pop(stream, None)

    def _tick(self) -> None:
        # One timer for all calls, set first: a bug in ending one of them must not end the deadlines of all.
        self._ticker = self.loop.call_later(H2_DEADLINE_TICK_S, self._tick) if self._watched else None
        now = self.time()
        for stream in list(self._watched):
            if stream.deadline is not None and stream.deadline <= now:
                self._watched.pop(stream, None)  # the end of one call may end another
                stream.expire()


def _preface(bounds: H2Limits) -> bytes:
    return frames.settings(
        {
            frames.MAX_CONCURRENT_STREAMS: bounds.concurrent_streams,
            frames.INITIAL_WINDOW_SIZE: bounds.stream_window,
            frames.FRAME_SIZE: H2_FRAME_BYTES,
            frames.MAX_HEADER_LIST_SIZE: bounds.head_bytes,
        }
    ) + frames.window_update(0, H2_CONNECTION_WINDOW - frames.DEFAULT_WINDOW)
