"""The server of HTTP/1.1: its limits, the memory of bodies, and the way to the handler."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final

from edgeserve.contracts import limits
from edgeserve_agent.serving.acceptor import Acceptor
from edgeserve_agent.serving.descriptors import connection_limit
from edgeserve_agent.serving.http_protocol import HttpConnection
from edgeserve_agent.serving.http_reader import KnownHead
from edgeserve_agent.serving.messages import Handler, Reply, Request, error_response

_LOG: Final = logging.getLogger(__name__)


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


class HttpServer(Acceptor):
    """HTTP/1.1: every request goes to `handler`, connections of HTTP/2 to `http2`, if there is one."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        handler: Handler,
        *,
        limits: HttpLimits | None = None,
        http2: Http2 | None = None,
    ) -> None:
        self.limits = bounds = limits or HttpLimits()
        super().__init__(loop, most=bounds.connections, waits=(bounds.head_s, bounds.idle_s, bounds.linger_s))
        # A read is always taken in before the next one begins, so all connections can share one buffer.
        self.read_memory = bytearray(bounds.read_buffer_bytes)
        self.read_buffer = memoryview(self.read_memory)
        self.known_heads: dict[bytes, KnownHead] = {}
        self.http2 = http2
        self._handler = handler
        self._held = 0

    def connection(self) -> HttpConnection:
        """A protocol for a new connection."""
        return HttpConnection(self)

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
