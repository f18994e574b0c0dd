"""The local protocol's listening socket: inference for programs on this device, tensors in memory that both map.

It has a path of its own beside that of HTTP. One socket for both would need the connection to be taken away from
uvloop, whose reads throw descriptors away, and the two let different clients in: this one asks the kernel who they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import struct
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgeserve.client.local_wire import failed
from edgeserve.contracts import limits
from edgeserve.contracts.errors import DeviceError, EdgeServeError, InputError, TransientError, UnsupportedError
from edgeserve_agent.serving.dataplane import DataPlane
from edgeserve_agent.serving.local_connection import LocalConnection
from edgeserve_agent.serving.outbox import Outbox
from edgeserve_agent.serving.unix_socket import EVERYONE, OWNER_ONLY, listen_unix

_LOG: Final = logging.getLogger(__name__)
_CREDENTIALS: Final = struct.Struct("=iII")
"""`struct ucred`: process, user, group; unix(7)."""
_ROOT: Final = 0
_PAUSE_S: Final = 0.5
"""Without descriptors, new connections wait so long."""


@dataclass(frozen=True, kw_only=True)
class LocalLimits:
    """Bounds of one server; the reasons stand in `edgeserve.contracts.limits`."""

    connections: int = limits.MAX_LOCAL_CONNECTIONS
    plans: int = limits.MAX_LOCAL_PLANS
    total_bytes: int = limits.MAX_SHARED_BYTES
    message_s: float = limits.REQUEST_HEAD_S


class LocalServer:
    """Accepts connections.

    Args:
        loop: Where it lives.
        plane: What answers.
        users: Ids of users that may connect, beside the server's own and root.
        bounds: Limits.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        plane: DataPlane,
        *,
        users: Collection[int] = (),
        bounds: LocalLimits | None = None,
    ) -> None:
        self.plane = plane
        self.limits = bounds or LocalLimits()
        self.outbox = Outbox(loop)
        # A read is always taken in before the next one begins, so all connections can share one buffer.
        self.read_buffer = memoryview(bytearray(limits.LOCAL_READ_BYTES))
        self._loop = loop
        self._users = frozenset(users)
        self._listener: socket.socket | None = None
        self._path = Path()
        self._connections: set[LocalConnection] = set()
        self._held = 0
        self._empty = asyncio.Event()

    @property
    def connections(self) -> int:
        """Connections that are open, or were and have a request running."""
        return len(self._connections)

    @property
    def mapped_bytes(self) -> int:
        """Memory of clients that is mapped, or about to be."""
        return self._held

    def listen(self, path: Path) -> None:
        """Listen on `path`, with mode 0600 unless further users may connect.

        Raises:
            UnsupportedError: The system is not Linux.
            InputError: There is something else at `path`.
            DeviceError: Another server listens there, or the socket cannot be made.
        """
        if not sys.platform.startswith("linux"):
            raise UnsupportedError("the local protocol needs Linux", hint="use HTTP")
        self._listener = listen_unix(path, mode=EVERYONE if self._users else OWNER_ONLY)
        self._path = path
        self._loop.add_reader(self._listener.fileno(), self._accept)

    async def close(self, drain_s: float) -> None:
        """Stop listening, let requests in flight finish for up to `drain_s` seconds, then close the connections."""
        if self._listener is not None:
            self._loop.remove_reader(self._listener.fileno())
            self._listener.close()
            self._listener = None
            self._path.unlink(missing_ok=True)
        for connection in list(self._connections):
            connection.drain()
        if self._connections:
            self._empty.clear()
            try:
                await asyncio.wait_for(self._empty.wait(), drain_s)
            except asyncio.TimeoutError:
                _LOG.warning("%d local connections were cut off", len(self._connections))
                for connection in list(self._connections):
                    connection.close()

    # Called by connections -----------------------------------------------------------------------

    def hold(self, size: int) -> None:
        """Set aside address space for a region.

        Raises:
            InputError: Too much is mapped.
        """
        if self._held + size > self.limits.total_bytes:
            raise InputError(
                f"a region of {size} bytes, {self._held} are mapped, at most {self.limits.total_bytes} are allowed",
                hint="close plans that are not used",
            )
        self._held += size

    def release(self, size: int) -> None:
        """Give back what `hold` set aside."""
        self._held -= size

    def left(self, connection: LocalConnection) -> None:
        """Count out a connection that was closed, when its last request is done."""
        if not connection.in_flight:
            self._connections.discard(connection)
            if not self._connections:
                self._empty.set()

    # Accepting -----------------------------------------------------------------------------------

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            client, _ = self._listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                _LOG.error("too many open files: local connections wait")
                self._loop.remove_reader(self._listener.fileno())
                self._loop.call_later(_PAUSE_S, self._resume)
            return
        client.setblocking(False)
        refusal = self._refusal(client)
        if refusal is None:
            self._connections.add(LocalConnection(self, client, self._loop))
            return
        with contextlib.suppress(OSError):
            client.send(failed(refusal, tag=0))
        client.close()

    def _resume(self) -> None:
        if self._listener is not None:
            self._loop.add_reader(self._listener.fileno(), self._accept)

    def _refusal(self, client: socket.socket) -> EdgeServeError | None:
        data = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        _, user, _ = _CREDENTIALS.unpack(data)
        if user not in (os.geteuid(), _ROOT) and user not in self._users:
            _LOG.warning("user %d may not use the local protocol", user)
            return DeviceError(f"user {user} may not use this server", hint="run as the server's user")
        if len(self._connections) >= self.limits.connections:
            return TransientError(f"{len(self._connections)} local connections are open, no more are taken")
        return None
