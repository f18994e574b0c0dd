"""What servers of every protocol share: addresses, the limit over all connections, their clock, and their end."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

from edgeserve.contracts.errors import DeviceError
from edgeserve_agent.serving.outbox import Outbox
from edgeserve_agent.serving.unix_socket import listen_unix

_LOG: Final = logging.getLogger(__name__)
_BACKLOG: Final = 512


class Connection(Protocol):
    """One client's."""

    def check(self, now: float) -> None:
        """End what has taken too long; called about every second."""

    def drain(self) -> None:
        """Take nothing new; close when what is under way has finished."""

    def abort(self) -> None:
        """Close at once."""


class Acceptor:
    """Listening addresses and their connections. Sub-classes say what speaks on a connection.

    Args:
        loop: Where it lives.
        most: Connections at once.
        waits: Seconds after which connections end for one reason or another; the clock is read often enough for them.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, most: int, waits: Sequence[float]) -> None:
        self.loop = loop
        self.time = loop.time
        self.outbox = Outbox(loop)
        self.draining = False
        self._most = most
        self._servers: list[asyncio.AbstractServer] = []
        self._paths: list[Path] = []
        self._connections: set[Connection] = set()
        self._admitted: set[Connection] = set()
        self._empty = asyncio.Event()
        self._empty.set()
        self._sweep_s = min(1.0, *(wait / 4 for wait in waits))
        self._sweeper: asyncio.TimerHandle | None = None

    def connection(self) -> asyncio.BufferedProtocol:
        """A protocol for a new connection."""
        raise NotImplementedError

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

    async def listen_unix(self, path: Path) -> None:
        """Listen on a path that only this user may open.

        Raises:
            InputError: There is something else at `path`.
            DeviceError: Another server listens there, or the socket cannot be made.
        """
        listener = listen_unix(path, backlog=_BACKLOG)
        self._servers.append(await self.loop.create_unix_server(self.connection, sock=listener))
        self._paths.append(path)

    async def close(self, drain_s: float) -> None:
        """Stop listening, let what is in flight finish for up to `drain_s` seconds, then cut the rest off."""
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

    def admit(self, connection: Connection) -> bool:
        """Count a new connection; False when there are too many.

        Refused ones do not count while they linger, or a crowd of them would keep the door shut; there is a limit
        to these, too.
        """
        self._connections.add(connection)
        self._empty.clear()
        if self._sweeper is None:
            self._sweeper = self.loop.call_later(self._sweep_s, self._sweep)
        if len(self._admitted) < self._most:
            self._admitted.add(connection)
            return True
        if len(self._connections) > 2 * self._most:
            connection.abort()
        return False

    def forget(self, connection: Connection) -> None:
        """Count a connection out."""
        self._connections.discard(connection)
        self._admitted.discard(connection)
        if not self._connections:
            self._empty.set()
            if self._sweeper is not None:
                self._sweeper.cancel()
                self._sweeper = None

    def _sweep(self) -> None:
        # One timer for all connections: one for each request would cost more than the rest of its handling. It is set
        # first, so that nothing can stop it.
        self._sweeper = self.loop.call_later(self._sweep_s, self._sweep) if self._connections else None
        now = self.time()
        for connection in list(self._connections):
            try:
                connection.check(now)
            except Exception:  # noqa: BLE001, PERF203 - it is logged; the clock of the others must go on
                _LOG.exception("a connection cannot be looked after")
                connection.abort()
