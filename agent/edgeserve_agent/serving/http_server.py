"""Listening, the limits over all connections, and their end."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Final

from edgeserve.contracts import limits
from edgeserve.contracts.errors import DeviceError
from edgeserve_agent.serving.descriptors import connection_limit
from edgeserve_agent.serving.http_protocol import HttpConnection
from edgeserve_agent.serving.http_reader import KnownHead
from edgeserve_agent.serving.messages import Handler, Reply, Request, error_response
from edgeserve_agent.serving.outbox import Outbox
from edgeserve_agent.serving.unix_socket import listen_unix

_LOG: Final = logging.getLogger(__name__)
_BACKLOG: Final = 512


@dataclass(frozen=True, kw_only=True)
class HttpLimits:
    """Bounds of one server; the reasons stand in `edgeserve.contracts.limits`."""

    head_bytes: int = limits.MAX_HEAD_BYTES
    body_bytes: int = limits.MAX_REQUEST_BYTES
    body_bytes_per_s: float = limits.REQUEST_BODY_MIN_BYTES_PER_S
    bodies_bytes: int = limits.MAX_BODY_BYTES_IN_FLIGHT
    uncounted_bytes: int = limits.UNCOUNTED_BODY_BYTES
    read_buffer_bytes: int = limits.READ_BUFFER_BYTES
    head_s: float = limits.REQUEST_HEAD_S
    idle_s: float = limits.IDLE_CONNECTION_S
    linger_s: float = limits.LINGER_S
    pipelined: int = limits.MAX_PIPELINED
    connections: int = field(default_factory=connection_limit)
    """By the limit of file descriptors."""


Http2 = Callable[[asyncio.Transport, bytes], None]
"""Takes over a connection whose first bytes are those of HTTP/2."""


class HttpServer:
    """Listening addresses; every request goes to `handler`, connections of HTTP/2 to `http2`, if there is one."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        handler: Handler,
        *,
        limits: HttpLimits | None = None,
        http2: Http2 | None = None,
    ) -> None:
        self.limits = limits or HttpLimits()
        self.time = loop.time
        self.outbox = Outbox(loop)
        self.draining = False
        # A read is always taken in before the next one begins, so all connections can share one buffer.
        self.read_memory = bytearray(self.limits.read_buffer_bytes)
        self.read_buffer = memoryview(self.read_memory)
        self.known_heads: dict[bytes, KnownHead] = {}
        self._loop = loop
        self._handler = handler
        self.http2 = http2
        self._servers: list[asyncio.AbstractServer] = []
        self._paths: list[Path] = []
        self._connections: set[HttpConnection] = set()
        self._admitted: set[HttpConnection] = set()
        self._held = 0
        self._empty = asyncio.Event()
        self._empty.set()
        waits = (self.limits.head_s, self.limits.idle_s, self.limits.linger_s)
        self._sweep_s = min(1.0, *(wait / 4 for wait in waits))
        self._sweeper: asyncio.TimerHandle | None = None

    async def listen(self, host: str, port: int) -> int:
        """Listen and return the port, which the system chooses when `port` is 0.

        Raises:
            DeviceError: The port is in use or the address is not this machine's.
        """
        try:
            server = await self._loop.create_server(lambda: HttpConnection(self), host, port, backlog=_BACKLOG)
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

    async def listen_unix(self, path: Path) -> None:
        """Listen on a path that only this user may open.

        Raises:
            InputError: There is something else at `path`.
            DeviceError: Another server listens there, or the socket cannot be made.
        """
        listener = listen_unix(path, backlog=_BACKLOG)
        self._servers.append(await self._loop.create_unix_server(lambda: HttpConnection(self), sock=listener))
        self._paths.append(path)

    async def close(self, drain_s: float) -> None:
        """Stop listening, let requests in flight finish for up to `drain_s` seconds, then cut the rest off."""
        self.draining = True
        for server in self._servers:
            server.close()
        for path in self._paths:
            path.unlink(missing_ok=True)
        for connection in list(self._connections):
            connection.drain()
        try:
            await asyncio.wait_for(self._empty.wait(), drain_s)
        except asyncio.TimeoutError:
            _LOG.warning("%d connections were cut off", len(self._connections))
            for connection in list(self._connections):
                connection.abort()
            await self._empty.wait()

    # Called by connections -----------------------------------------------------------------------

    def admit(self, connection: HttpConnection) -> bool:
        """Count a new connection; False when there are too many.

        Refused ones do not count while they linger, or a crowd of them would keep the door shut; there is a limit
        to these, too.
        """
        self._connections.add(connection)
        self._empty.clear()
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(self._sweep_s, self._sweep)
        if len(self._admitted) < self.limits.connections:
            self._admitted.add(connection)
            return True
        if len(self._connections) > 2 * self.limits.connections:
            connection.abort()
        return False

    def forget(self, connection: HttpConnection) -> None:
        """Count a connection out."""
        self._connections.discard(connection)
        self._admitted.discard(connection)
        if not self._connections:
            self._empty.set()
            if self._sweeper is not None:
                self._sweeper.cancel()
                self._sweeper = None

    def hold_body(self, count: int) -> bool:
        """Set aside memory for a body; False when too much is in use."""
        if self._held + count > self.limits.bodies_bytes:
            return False
        self._held += count
        return True

    def release_body(self, count: int) -> None:
        """Give back what `hold_body` set aside."""
        self._held -= count

    def handle(self, request: Request, reply: Reply) -> None:
        """Let the handler answer; a bug in it is a 500, never a lost connection."""
        try:
            self._handler(request, reply)
        except Exception:  # noqa: BLE001 - it is logged
            _LOG.exception("answering %s %r failed", request.method, request.target[:200])
            reply(error_response(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error; the server's log says more"))

    def _sweep(self) -> None:
        # One timer for all connections: a timer for each request would cost more than the rest of its handling.
        now = self.time()
        for connection in list(self._connections):
            deadline = connection.deadline
            if deadline is not None and deadline <= now:
                connection.expire()
        self._sweeper = self._loop.call_later(self._sweep_s, self._sweep) if self._connections else None
