"""HTTP/1.1 on an asyncio Protocol: one connection. Nothing is awaited: that is most of what makes it quick."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, cast

from edgeserve_agent.serving.http_reader import RequestReader
from edgeserve_agent.serving.messages import (
    Answer,
    RenderedResponse,
    Request,
    Response,
    busy_response,
    error_response,
)

if TYPE_CHECKING:
    from edgeserve_agent.serving.http_server import HttpServer

_JOIN_BYTES: Final = 32 * 1024
"""Responses below this are copied into one write; a copy is cheaper than a second buffer."""
_PIPELINED_ANSWERS: Final = 16
"""Of one connection, before the transport is asked whether the client reads them."""
_HTTP2: Final = b"PRI * HTTP/2.0\r\n"
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class HttpConnection(asyncio.BufferedProtocol):
    """Reads requests, hands them to the server's handler one at a time, writes the responses in order."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._limits = server.limits
        self._reader = RequestReader(server)
        self._waiting = self._reader.arrived
        self._transport: asyncio.Transport | None = None
        self._answering: Request | None = None
        self._advancing = False
        self._first: bytes | None = b""
        """What came so far, as long as it may be the beginning of HTTP/2."""
        self._out: list[bytes] = []
        """Small answers that are sent at the end of the turn."""
        self._reading_paused = False
        self._half_closed = False
        self._idle_until = 0.0
        self._writing_until: float | None = None
        """Set while the client does not read what was written."""
        self._lingering_until: float | None = None
        """Set when the last response was written and what the client still sends is thrown away."""

    # Transport -----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to read."""
        self._transport = cast("asyncio.Transport", transport)
        self._idle_until = self._server.time() + self._limits.idle_s
        if not self._server.admit(self):
            self._reader.refuse(busy_response(f"more than {self._limits.connections} connections are open"))
            self._advance()
        elif self._server.draining:
            self._close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Forget all that was not answered."""
        if self._transport is None:
            return  # it was left to HTTP/2, which would not take it
        self._transport = None
        if self._answering is not None and self._answering.work is not None:
            self._answering.work.cancel()
        self._reader.close()
        self._server.forget(self)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        """Where the next bytes go."""
        return self._reader.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        """Take in the bytes that arrived."""
        if self._first is not None and self._is_http2(nbytes):
            return
        self._reader.take(nbytes)
        self._advance()

    def _is_http2(self, nbytes: int) -> bool:
        """Whether the connection is one of HTTP/2, which was handed over; its preface may come in pieces."""
        first = cast("bytes", self._first)
        memory = self._server.read_memory
        if memory[0] != _HTTP2[len(first)] or self._server.http2 is None or self._reader.ended or self._server.draining:
            self._first = None
            return False
        first += bytes(memory[:nbytes])
        if first.startswith(_HTTP2):
            self._hand_over(first)
            return True
        # Until it is told apart the reader has it, too: it takes the time, and what is not HTTP/2 is HTTP/1.1.
        self._first = first if _HTTP2.startswith(first) else None
        return False

    def _hand_over(self, first: bytes) -> None:
        """Leave the connection to HTTP/2."""
        transport, self._transport = self._transport, None
        self._reader.close()
        self._server.forget(self)
        assert transport is not None
        assert self._server.http2 is not None
        self._server.http2(transport, first)

    def eof_received(self) -> bool:
        """Answer what was read whole before the client ended its side, then close."""
        self._half_closed = True
        if self._reader.in_message and not self._reader.ended:
            self._reader.refuse(error_response(HTTPStatus.BAD_REQUEST, "the request ended early"))
        self._reader.ended = True
        self._advance()
        return self._answering is not None or bool(self._waiting)

    def pause_writing(self) -> None:
        """Answer nothing more until the client has read; one that does not read is cut off."""
        assert self._transport is not None
        pending = self._transport.get_write_buffer_size()
        self._writing_until = self._server.time() + self._limits.head_s + pending / self._limits.body_bytes_per_s

    def resume_writing(self) -> None:
        """Go on."""
        self._writing_until = None
        self._idle_until = self._server.time() + self._limits.idle_s
        self._advance()

    # Answering -----------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Hand the next request to the handler, as long as the one before is answered and the client reads."""
        if self._advancing or self._transport is None:
            return
        self._advancing = True
        waiting = self._waiting
        while waiting and self._answering is None and self._writing_until is None and self._lingering_until is None:
            item = waiting.popleft()
            if isinstance(item, Request):
                self._answering = item
                self._server.handle(item, partial(self._reply, item))
            else:
                self._write(item, connection=b"close")
                self._linger()
        self._advancing = False
        if waiting or self._reading_paused:
            self._pace_reading()
        if self._answering is None and not waiting:
            if self._reader.wants_continue:
                self._reader.wants_continue = False
                self._reader.restart_clock()
                self._send_soon(_CONTINUE)
            if self._half_closed and self._lingering_until is None:
                self._close()

    def _reply(self, request: Request, response: Answer) -> None:
        if self._answering is not request:
            return
        self._answering = None
        request.work = None  # it knows this request in turn: without the cycle its tensors are freed at once
        if request.held_bytes:
            self._server.release_body(request.held_bytes)
        if self._transport is None:
            return
        last = not request.keep_alive
        if self._server.draining and not last:
            last = not (self._waiting or self._reader.in_message)
        connection = b"close" if last else b"keep-alive" if b"connection" in request.headers else b""
        self._write(response, connection=connection, head_only=request.method == "HEAD")
        if last:
            self._reader.ended = True
            self._close()
            return
        self._idle_until = self._server.time() + self._limits.idle_s
        if not self._advancing:
            self._advance()

    def _write(self, response: Answer, *, connection: bytes, head_only: bool = False) -> None:
        assert self._transport is not None
        chunks = response.chunks
        if type(response) is RenderedResponse:
            head = response.prefix
            if connection:
                head = head.replace(b"\r\n\r\n", b"\r\nConnection: %s\r\n\r\n" % connection, 1)
        else:
            assert isinstance(response, Response)
            head = response.head(connection=connection)
        if head_only or not chunks:
            self._send_soon(head)
        elif sum(map(len, chunks)) <= _JOIN_BYTES:
            self._send_soon(b"".join((head, *chunks)))
        else:
            self.send()
            self._transport.writelines((head, *chunks))

    def _send_soon(self, data: bytes) -> None:
        out = self._out
        out.append(data)
        if len(out) == 1:
            self._server.outbox.add(self)
        elif len(out) >= _PIPELINED_ANSWERS:
            self.send()

    def send(self) -> None:
        """Give the transport the answers that wait for it."""
        out = self._out
        if not out:
            return
        data = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        if self._transport is not None:
            self._transport.write(data)

    def _close(self) -> None:
        assert self._transport is not None
        self.send()
        self._transport.close()

    def _linger(self) -> None:
        """Throw input away for a while: closing on unread input would reset the connection and lose the response."""
        assert self._transport is not None
        self.send()
        self._lingering_until = self._server.time() + self._limits.linger_s
        if self._half_closed:
            self._transport.close()
        elif self._transport.can_write_eof():
            with contextlib.suppress(OSError):  # the client has gone already
                self._transport.write_eof()

    def _pace_reading(self) -> None:
        """Read no further ahead than the limits allow."""
        assert self._transport is not None
        waiting = self._waiting
        full = bool(waiting) and (
            len(waiting) >= self._limits.pipelined
            or sum(item.held_bytes for item in waiting if isinstance(item, Request)) >= self._limits.body_bytes
        )
        if full and not self._reading_paused:
            self._reading_paused = True
            self._transport.pause_reading()
        elif self._reading_paused and not waiting:
            self._reading_paused = False
            self._reader.restart_clock()
            self._transport.resume_reading()

    # Called by the server ------------------------------------------------------------------------

    @property
    def _deadline(self) -> float | None:
        """Time of the loop's clock at which something has taken too long; None while it is we who take the time."""
        if self._writing_until is not None:
            return self._writing_until
        if self._lingering_until is not None:
            return self._lingering_until
        busy = self._answering is not None or bool(self._waiting)
        if self._reader.in_message:
            ours = self._reading_paused or (busy and self._reader.wants_continue)
            return None if ours else self._reader.deadline
        return None if busy else self._idle_until

    def check(self, now: float) -> None:
        """End what has taken too long."""
        deadline = self._deadline
        if self._transport is None or deadline is None or now < deadline:
            return
        if self._writing_until is not None or self._lingering_until is not None:
            self._transport.abort()
        elif self._reader.in_message:
            self._reader.refuse(error_response(HTTPStatus.REQUEST_TIMEOUT, "the request took too long to arrive"))
            self._advance()
        elif self._transport.is_closing():  # and the client does not read the rest
            self._transport.abort()
        else:
            self._close()

    def drain(self) -> None:
        """Close now if nothing is under way; otherwise the last response says `Connection: close`."""
        under_way = self._answering is not None or self._waiting or self._reader.in_message
        if self._transport is not None and not under_way:
            self._close()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()
