"""The serving process's end of `edgeserve_agent.control`: a Unix socket that only its owner may open."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import msgspec

from edgeserve.contracts.errors import DeviceError, EdgeServeError
from edgeserve_agent.control import MAX_LINE_BYTES, Command, Done, Failed, ServingStats, ServingStatus, parse

_LOG: Final = logging.getLogger(__name__)
_OTHERS_NOTHING: Final = 0o177

Answer = ServingStatus | ServingStats | Done
Execute = Callable[[Command], Awaitable[Answer]]


class ControlServer:
    """Reads commands, one line each, and answers each with a line."""

    def __init__(self, path: Path, execute: Execute) -> None:
        self._path = path
        self._execute = execute
        self._server: asyncio.AbstractServer | None = None

    async def start(self) -> None:
        """Listen. The caller holds the lock of the state directory, so a socket that is there is a dead process's.

        Raises:
            DeviceError: The socket cannot be made.
        """
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mask = os.umask(_OTHERS_NOTHING)  # mode 0600 from the first moment
        try:
            with contextlib.suppress(FileNotFoundError):
                self._path.unlink()
            listener.bind(str(self._path))
        except OSError as error:
            listener.close()
            hint = "choose a state directory with a shorter path: Unix sockets allow about 100 characters"
            raise DeviceError(
                f"cannot make {self._path}: {error}", hint=hint if "too long" in str(error) else ""
            ) from error
        finally:
            os.umask(mask)
        self._server = await asyncio.start_unix_server(self._serve, sock=listener, limit=MAX_LINE_BYTES)

    def close(self) -> None:
        """Stop listening and remove the socket."""
        if self._server is not None:
            self._server.close()
            with contextlib.suppress(FileNotFoundError):
                self._path.unlink()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                writer.write(msgspec.json.encode(await self._answer(line)) + b"\n")
                await writer.drain()
        except (ConnectionError, ValueError) as error:  # ValueError: a line beyond the limit
            _LOG.warning("a control connection ended: %s", error)
        finally:
            writer.close()

    async def _answer(self, line: bytes) -> Answer | Failed:
        try:
            return await self._execute(parse(line))
        except EdgeServeError as error:
            return Failed(failed=error.message, hint=error.hint)
        except Exception as error:  # noqa: BLE001 - the control part must hear of a bug, not of a closed socket
            _LOG.exception("a control command failed")
            return Failed(failed=f"internal error: {error}")
