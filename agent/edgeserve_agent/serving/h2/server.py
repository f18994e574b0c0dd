"""Listening, the limits over all connections, their clocks, and their end."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from edgeserve.contracts.errors import DeviceError
from edgeserve.contracts.limits import (
    H2_CONCURRENT_STREAMS,
    H2_CONNECTION_WINDOW,
    H2_DEADLINE_TICK_S,
    H2_FRAME_BYTES,
    H2_HELD_MESSAGE_BYTES,
    H2_IDLE_FRAMES,
    H2_PING_S,
    H2_RESETS,
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
from edgeserve_agent.serving.descriptors import connection_limit
from edgeserve_agent.serving.h2 import frames
from edgeserve_agent.serving.h2.connection import H2Connection
from edgeserve_agent.serving.h2.messages import PREFIX, MessageAssembler, MessageMemory
from edgeserve_agent.serving.h2.stream import Stream
from edgeserve_agent.serving.outbox import Outbox
from edgeserve_agent.serving.rpc import RpcService

_LOG: Final = logging.getLogger(__name__)
_BACKLOG: Final = 512
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
        """Octets of one stream that a client may send ahead: a whole message, so that unary calls never wait."""
        return max(frames.DEFAULT_WINDOW, self.message_bytes + PREFIX.size)


class H2Server:
    """gRPC over cleartext HTTP/2 on listening addresses, and on connections that another server hands over."""

    def __init__(self, loop: asyncio.AbstractEventLoop, service: RpcService, *, limits: H2Limits | None = None) -> None:
        self.loop = loop
        self.service = service
        self.limits = limits or H2Limits()
        self.time: Callable[[], float] = loop.time
        self.outbox = Outbox(loop)
        self.draining = False
        # A read is always taken in before the next one begins, so all connections can share one buffer.
        size = max(self.limits.read_buffer_bytes, self.limits.head_bytes + _HEAD_ROOM)
        self.read_buffer = memoryview(bytearray(size))
        self.memory = MessageMemory(self.limits.messages_bytes)
        self.small_bytes = PREFIX.size + min(H2_HELD_MESSAGE_BYTES - 1, self.limits.message_bytes)
        """DATA up to this length that is one whole message needs no assembling."""
        self.preface = _preface(self.limits)
        """SETTINGS and the connection's window, the first that a client gets."""
        self._servers: list[asyncio.AbstractServer] = []
        self._connections: set[H2Connection] = set()
        self._admitted: set[H2Connection] = set()
        self._watched: dict[Stream, None] = {}
        self._empty = asyncio.Event()
        self._empty.set()
        waits = (self.limits.head_s, self.limits.idle_s, self.limits.linger_s, self.limits.ping_s)
        self._sweep_s = min(1.0, *(wait / 4 for wait in waits))
        self._sweeper: asyncio.TimerHandle | None = None
        self._ticker: asyncio.TimerHandle | None = None

    async def listen(self, host: str, port: int) -> int:
        """Listen and return the port, which the system chooses when `port` is 0.

        Raises:
            DeviceError: The port is in use or the address is not this machine's.
        """
        try:
            server = await self.loop.create_server(self.connection, host, port, backlog=_BACKLOG)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise DeviceError(
                    f"port {port} of {host} is in use", hint="stop what uses it, or choose another; 0 takes any"
                ) from error
            if error.errno == errno.EACCES:
                raise DeviceError(f"port {port} needs root", hint="choose one above 1023") from error
            raise DeviceError(f"cannot listen on {host} port {port}: {error.strerror or error}") from error
        self._servers.append(server)
        bound: int = server.sockets[0].getsockname()[1]
        return bound

    async def listen_unix(self, path: str) -> None:
        """Listen on a Unix socket; one that a dead server left there is replaced.

        Raises:
            DeviceError: The path cannot be bound.
        """
        try:
            server = await self.loop.create_unix_server(self.connection, path, backlog=_BACKLOG)
        except (OSError, ValueError) as error:
            raise DeviceError(
                f"cannot listen on {path}: {error}",
                hint="a Unix socket's path has at most 107 bytes, in a folder of yours",
            ) from error
        self._servers.append(server)

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
        """Stop listening, let calls in flight finish for up to `drain_s` seconds, then cut the rest off."""
        self.draining = True
        for server in self._servers:
            server.close()
        for connection in list(self._connections):
            connection.drain()
        if not self._connections:
            return
        try:
            await asyncio.wait_for(self._empty.wait(), drain_s)
        except asyncio.TimeoutError:
            _LOG.warning("%d connections were cut off", len(self._connections))
            for connection in list(self._connections):
                connection.abort()
            await self._empty.wait()

    # Called by connections -----------------------------------------------------------------------

    def admit(self, connection: H2Connection) -> bool:
        """Count a new connection; False when there are too many.

        Refused ones do not count while they linger, or a crowd of them would keep the door shut; there is a limit
        to these, too.
        """
        self._connections.add(connection)
        self._empty.clear()
        if self._sweeper is None:
            self._sweeper = self.loop.call_later(self._sweep_s, self._sweep)
        if len(self._admitted) < self.limits.connections:
            self._admitted.add(connection)
            return True
        if len(self._connections) > 2 * self.limits.connections:
            connection.abort()
        return False

    def forget(self, connection: H2Connection) -> None:
        """Count a connection out."""
        self._connections.discard(connection)
        self._admitted.discard(connection)
        if not self._connections:
            self._empty.set()
            if self._sweeper is not None:
                self._sweeper.cancel()
                self._sweeper = None

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

    # One timer for all calls and one for all connections: a timer for each would cost more than a call's handling.

    def _tick(self) -> None:
        # Set first: a bug in ending one call must not end the deadlines of all.
        self._ticker = self.loop.call_later(H2_DEADLINE_TICK_S, self._tick) if self._watched else None
        now = self.time()
        for stream in list(self._watched):
            if stream.deadline is not None and stream.deadline <= now:
                self._watched.pop(stream, None)  # the end of one call may end another
                stream.expire()

    def _sweep(self) -> None:
        # Set first, as above.
        self._sweeper = self.loop.call_later(self._sweep_s, self._sweep) if self._connections else None
        now = self.time()
        for connection in list(self._connections):
            connection.check(now)


def _preface(bounds: H2Limits) -> bytes:
    return frames.settings(
        {
            frames.MAX_CONCURRENT_STREAMS: bounds.concurrent_streams,
            frames.INITIAL_WINDOW_SIZE: bounds.stream_window,
            frames.FRAME_SIZE: H2_FRAME_BYTES,
            frames.MAX_HEADER_LIST_SIZE: bounds.head_bytes,
        }
    ) + frames.window_update(0, H2_CONNECTION_WINDOW - frames.DEFAULT_WINDOW)
