"""The echo floor: as many bytes in and out as a request of the tiny model, and nothing in between.

Two servers: the load client's own in C, the least that this machine can do, and the event loop of the server under
test in Python (`python echo.py SOCKET REQUEST_BYTES REPLY_BYTES`), the least that any Python server on it can do.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence


class Echo(asyncio.Protocol):
    """Answers every `request_bytes` with `reply`."""

    def __init__(self, request_bytes: int, reply: bytes) -> None:
        self._request_bytes, self._reply, self._got = request_bytes, reply, 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._got += len(data)
        if self._got >= self._request_bytes:
            self._got = 0
            self._transport.write(self._reply)  # type: ignore[attr-defined]


async def main(arguments: Sequence[str]) -> None:
    path, request_bytes, reply_bytes = arguments[0], int(arguments[1]), int(arguments[2])
    loop = asyncio.get_running_loop()
    server = await loop.create_unix_server(lambda: Echo(request_bytes, bytes(reply_bytes)), path)
    await server.serve_forever()


if __name__ == "__main__":
    try:
        from uvloop import run
    except ImportError:
        from asyncio import run
    run(main(sys.argv[1:]))
