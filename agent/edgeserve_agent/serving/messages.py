"""An HTTP request as the handler gets it, and the response it gives back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, Protocol

import msgspec

from edgeserve.contracts.errors import (
    ConflictError,
    DeviceError,
    EdgeServeError,
    InputError,
    NotFoundError,
    TooLargeError,
    TransientError,
    UnsupportedError,
)

JSON: Final = b"application/json"
"""Exactly this: the kserve client drops the message of an error whose Content-Type says more."""
OCTETS: Final = b"application/octet-stream"

_ERRORS: Final[tuple[tuple[type[EdgeServeError], int], ...]] = (
    (NotFoundError, HTTPStatus.NOT_FOUND),
    (ConflictError, HTTPStatus.CONFLICT),
    (UnsupportedError, HTTPStatus.NOT_IMPLEMENTED),
    (TooLargeError, HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
    (InputError, HTTPStatus.BAD_REQUEST),
    (TransientError, HTTPStatus.SERVICE_UNAVAILABLE),
    (DeviceError, HTTPStatus.INTERNAL_SERVER_ERROR),
    (EdgeServeError, HTTPStatus.INTERNAL_SERVER_ERROR),
)
_STATUS_LINES: Final = {
    status.value: b"HTTP/1.1 %d %s\r\n" % (status.value, status.phrase.encode()) for status in HTTPStatus
}


class Cancellable(Protocol):
    """Work that a request has begun."""

    def cancel(self) -> None:
        """The client has gone: what has not begun need not."""


@dataclass(slots=True)
class Request:
    """One whole request."""

    method: str
    target: bytes
    headers: dict[bytes, bytes]
    """Names in lower case; of a repeated header the last."""
    body: bytes | memoryview
    keep_alive: bool = True
    held_bytes: int = 0
    """Bytes of the body that count against `MAX_BODY_BYTES_IN_FLIGHT`."""
    work: Cancellable | None = None
    """Told when the client goes before it is answered; whoever begins it puts it here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """What to answer."""

    status: int
    content_type: bytes
    chunks: Sequence[bytes | memoryview]
    headers: bytes = b""
    """Further header lines, each ending in CRLF."""

    @property
    def length(self) -> int:
        """Bytes of the body."""
        return sum(map(len, self.chunks))

    def head(self, *, connection: bytes) -> bytes:
        """Status line and headers; `connection` is the value of that header, empty for none."""
        line = b"Connection: %s\r\n" % connection if connection else b""
        return b"%sContent-Type: %s\r\nContent-Length: %d\r\n%s%s\r\n" % (
            _STATUS_LINES[self.status], self.content_type, self.length, self.headers, line,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class RenderedResponse:
    """An answer whose head was written before: status line, headers and the beginning of the body."""

    prefix: bytes
    chunks: Sequence[bytes | memoryview]
    """The rest of the body."""

    def opened(self) -> Response:
        """The same as a response with its parts apart."""
        head, _, first = self.prefix.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        fields = [(line, *line.split(b": ", 1)) for line in lines[1:]]
        content_type = next(value for _, name, value in fields if name == b"Content-Type")
        rest = [line for line, name, _ in fields if name not in (b"Content-Type", b"Content-Length")]
        return Response(
            status=int(lines[0].split(b" ")[1]),
            content_type=content_type,
            chunks=[first, *self.chunks],
            headers=b"".join(line + b"\r\n" for line in rest),
        )


Answer = Response | RenderedResponse
Reply = Callable[[Answer], None]
Handler = Callable[[Request, Reply], None]
"""Answers a request by calling the reply once, at once or later, on the event loop."""


def json_response(status: int, document: object, *, headers: bytes = b"") -> Response:
    """A response with a JSON body."""
    return Response(status=status, content_type=JSON, chunks=(msgspec.json.encode(document),), headers=headers)


def error_response(status: int, message: str, *, headers: bytes = b"") -> Response:
    """A response that says what is wrong, as the Open Inference Protocol asks: `{"error": str}`."""
    return json_response(status, {"error": message}, headers=headers)


def failure_response(error: EdgeServeError, *, headers: bytes = b"") -> Response:
    """The response to a request that ended in an error."""
    status = next(status for kind, status in _ERRORS if isinstance(error, kind))
    message = f"{error.message} ({error.hint})" if error.hint else error.message
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers += b"Retry-After: 1\r\n"
    return error_response(status, message, headers=headers)


def busy_response(message: str) -> Response:
    """503 with a hint when to come again."""
    return error_response(HTTPStatus.SERVICE_UNAVAILABLE, message, headers=b"Retry-After: 1\r\n")
