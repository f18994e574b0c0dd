"""Bytes of one connection to whole requests, with llhttp.

Heads and short bodies are parsed straight from one buffer that all connections share; a longer body is read by the
kernel straight into its own memory, aligned for the tensors in it.
"""

from __future__ import annotations

from collections import deque
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, NamedTuple

import httptools
import numpy as np

from edgeserve.contracts.limits import MAX_KNOWN_HEAD_BYTES, MAX_KNOWN_HEADS
from edgeserve_agent.serving.messages import Request, Response, busy_response, error_response

if TYPE_CHECKING:
    from edgeserve_agent.serving.http_server import HttpServer

_ALIGNMENT: Final = 64
_BINARY_HEAD: Final = b"inference-header-content-length"


class KnownHead(NamedTuple):
    """What llhttp made of a head, to be used again when the same bytes come."""

    method: str
    target: bytes
    headers: dict[bytes, bytes]
    length: int
    """Bytes of the body."""


class RefusedError(Exception):
    """The request being read is refused; the connection ends after the response."""

    def __init__(self, response: Response) -> None:
        super().__init__(response.status)
        self.response = response


class RequestReader:
    """Parses a connection's bytes; what is refused stands as a response among the requests, the last of them."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._limits = server.limits
        self._parser = httptools.HttpRequestParser(self)
        self.arrived: deque[Request | Response] = deque()
        self.ended = False
        """No further request is read: one was refused, or the last one said so."""
        self.in_message = False
        self.wants_continue = False
        """The client waits for `100 Continue` before it sends the body."""
        self._in_head = False
        self._began = 0.0
        self._fed = 0
        self._head_bytes = 0
        self._method = ""
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._keep_alive = True
        self._length: int | None = None
        self._fragments: list[bytes] = []
        self._body_bytes = 0
        self._held = 0
        self._large: memoryview | None = None
        self._filled = 0

    @property
    def deadline(self) -> float:
        """When the request being read must be here: a body has time for its length, chunks for what came of them."""
        length = self._body_bytes if self._length is None else self._length
        return self._began + self._limits.head_s + length / self._limits.body_bytes_per_s

    def restart_clock(self) -> None:
        """Count the time of the request being read from now: it was we who did not read, or not ask for the body."""
        self._began = self._server.time()

    def get_buffer(self) -> memoryview:
        """Where the next bytes go."""
        return self._server.read_buffer if self._large is None else self._large[self._filled :]

    def take(self, count: int) -> None:
        """Take in the `count` bytes that were put there."""
        if self._large is not None:
            self._filled += count
            if self._filled == len(self._large):
                self._end_message(self._large)
        elif self.ended:
            return
        elif self.in_message:
            self._feed(self._server.read_buffer[:count])
        elif not self._take_known(count):
            waiting = len(self.arrived)
            self._feed(self._server.read_buffer[:count])
            if len(self.arrived) == waiting + 1 or self._large is not None:
                self._remember(count)

    def _take_known(self, count: int) -> bool:
        """Take one whole request, or the beginning of a long one, whose head was parsed before; False = it is not.

        A client sends its head over and over, to the letter; what llhttp made of it then holds now.
        """
        memory = self._server.read_memory
        end = memory.find(b"\r\n\r\n", 0, count) + 4
        known = self._server.known_heads.get(bytes(memory[:end])) if 4 < end <= MAX_KNOWN_HEAD_BYTES else None
        if known is None:
            return False
        length = known.length
        if count == end + length:
            held = 0 if length <= self._limits.uncounted_bytes else length
            if held and not self._server.hold_body(held):
                self.refuse(_crowded())
                return True
            body = bytes(memory[end:count])
            self.arrived.append(Request(known.method, known.target, known.headers, body, held_bytes=held))
            return True
        if count > end + length or length <= len(memory):
            return False
        self.on_message_begin()
        self._in_head, self._keep_alive, self._length = False, True, length
        self._method, self._target, self._headers = known.method, known.target, known.headers
        try:
            self._hold(length)
        except RefusedError as refused:
            self.refuse(refused.response)
            return True
        self._fragments = [bytes(memory[end:count])]
        self._read_straight(length)
        return True

    def _remember(self, count: int) -> None:
        """Keep the head of the one message that began with the last `count` bytes and ended there, or goes on."""
        memory, headers = self._server.read_memory, self._headers
        end = memory.find(b"\r\n\r\n", 0, count) + 4
        length = self._length or 0
        # Bytes behind the head must be all the body that came: so this is where llhttp saw its end, too.
        body = length if self._large is None else self._filled
        special = b"transfer-encoding" in headers or b"expect" in headers or not self._keep_alive or self.ended
        if not 4 < end <= MAX_KNOWN_HEAD_BYTES or count - end != body or special or not 0x41 <= memory[0] <= 0x5A:
            return
        known = self._server.known_heads
        if len(known) >= MAX_KNOWN_HEADS:
            known.clear()
        known[bytes(memory[:end])] = KnownHead(self._method, self._target, headers, length)

    def refuse(self, response: Response) -> None:
        """Let `response` stand for the request being read, and read no more."""
        self._server.release_body(self._held)
        self._held = 0
        self._end_reading()
        self.ended = True
        self.arrived.append(response)

    def close(self) -> None:
        """Forget all that was not answered."""
        self._server.release_body(
            self._held + sum(item.held_bytes for item in self.arrived if isinstance(item, Request))
        )
        self._held = 0
        self.arrived.clear()
        self._end_reading()
        self.ended = True
        del self._parser  # it knows this object: without the cycle both are freed at once

    # Callbacks of the parser -----------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Begin a request."""
        self.in_message = self._in_head = True
        self._began = self._server.time()
        self._fed = self._head_bytes = self._body_bytes = 0
        self._target = b""
        self._headers = {}
        self._length = None

    def on_url(self, url: bytes) -> None:
        """Take a piece of the target."""
        self._target += url
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; trailers are counted and dropped."""
        self._count_head(len(name) + len(value))
        if self._in_head:
            self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        """Decide by the head alone whether the body may come."""
        parser, headers = self._parser, self._headers
        self._in_head = False
        self._method = parser.get_method().decode()
        self._keep_alive = parser.should_keep_alive()
        if b"transfer-encoding" in headers and headers[b"transfer-encoding"].lower() != b"chunked":
            message = "the only Transfer-Encoding that is known is chunked"
            raise RefusedError(error_response(HTTPStatus.NOT_IMPLEMENTED, message))
        declared = headers.get(b"content-length")
        if declared is not None:
            self._length = int(declared)
            if self._length > self._limits.body_bytes:
                raise RefusedError(_too_large(self._limits.body_bytes))
            if self._length > self._limits.uncounted_bytes:
                self._hold(self._length)
        if not self._keep_alive and parser.get_http_version() not in ("1.0", "1.1"):
            raise RefusedError(error_response(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "this server speaks HTTP/1.1"))
        if parser.should_upgrade():
            if self._length or b"transfer-encoding" in headers or self._method == "CONNECT":
                raise RefusedError(error_response(HTTPStatus.BAD_REQUEST, "upgrades are not supported"))
            self._keep_alive = False
        expected = headers.get(b"expect")
        if expected is not None:
            if expected.lower() != b"100-continue":
                raise RefusedError(error_response(HTTPStatus.EXPECTATION_FAILED, "only 100-continue can be expected"))
            self.wants_continue = self._length != 0

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        self._body_bytes += len(body)
        if self._length is None:
            if self._body_bytes > self._limits.body_bytes:
                raise RefusedError(_too_large(self._limits.body_bytes))
            self._hold(len(body))
        self._fragments.append(body)

    def on_message_complete(self) -> None:
        """Put the request into the queue."""
        fragments = self._fragments
        self._end_message(fragments[0] if len(fragments) == 1 else b"".join(fragments))

    # Reading ---------------------------------------------------------------------------------------

    def _feed(self, data: memoryview) -> None:
        self._fed += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.ended = True
        except httptools.HttpParserCallbackError as error:
            if not isinstance(error.__context__, RefusedError):
                raise
            self.refuse(error.__context__.response)
        except httptools.HttpParserError as error:
            if not self.ended:  # bytes behind `Connection: close` are no matter
                self.refuse(error_response(HTTPStatus.BAD_REQUEST, f"not an HTTP request: {error}"))
        else:
            if self.in_message and self._in_head and self._fed > self._limits.head_bytes:
                self.refuse(_head_too_large(self._limits.head_bytes))
            elif self.in_message and not self._in_head and self._length is not None:
                self._read_straight(self._length)

    def _read_straight(self, length: int) -> None:
        """Read the rest of a body of known length into its own memory, past the parser."""
        declared = self._headers.get(_BINARY_HEAD, b"0")
        lead = int(declared) if declared.isdigit() and len(declared) <= 12 else 0
        # numpy leaves the pages untouched, so a declared length costs no memory before its bytes come.
        memory = np.empty(length + _ALIGNMENT, np.uint8)
        offset = -(memory.ctypes.data + lead) % _ALIGNMENT
        self._large = memory.data[offset : offset + length]
        self._filled = 0
        for fragment in self._fragments:
            self._large[self._filled : self._filled + len(fragment)] = fragment
            self._filled += len(fragment)
        self._parser = httptools.HttpRequestParser(self)

    def _end_message(self, body: bytes | memoryview) -> None:
        self.arrived.append(
            Request(
                method=self._method,
                target=self._target,
                headers=self._headers,
                body=body,
                keep_alive=self._keep_alive,
                held_bytes=self._held,
            )
        )
        self._held = 0
        self._end_reading()
        if not self._keep_alive:
            self.ended = True

    def _end_reading(self) -> None:
        self.in_message = self._in_head = self.wants_continue = False
        self._fragments = []
        self._large = None

    def _hold(self, count: int) -> None:
        if not self._server.hold_body(count):
            raise RefusedError(_crowded())
        self._held += count

    def _count_head(self, count: int) -> None:
        self._head_bytes += count
        if self._head_bytes > self._limits.head_bytes:
            raise RefusedError(_head_too_large(self._limits.head_bytes))


def _crowded() -> Response:
    return busy_response("too many request bodies are being received")


def _too_large(limit: int) -> Response:
    message = f"the body is larger than {limit} bytes, the most that this server takes"
    return error_response(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message)


def _head_too_large(limit: int) -> Response:
    message = f"the request line and headers are larger than {limit} bytes"
    return error_response(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, message)
