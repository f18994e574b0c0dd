"""What the manager's HTTP side shares: bounded bodies in, JSON out, one table from errors to status codes."""

from __future__ import annotations

import logging
from typing import Final

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from edgeserve.contracts.documents import encode
from edgeserve.contracts.errors import (
    ConflictError,
    DeviceError,
    EdgeServeError,
    InputError,
    NotFoundError,
    TransientError,
    TrustError,
)

_log = logging.getLogger(__name__)


class UnauthorizedError(TrustError):
    """The caller did not say who it is, or the token is not valid."""


class TooLargeError(InputError):
    """The body is longer than this route allows."""


STATUS: Final[dict[type[EdgeServeError], int]] = {
    InputError: 400,
    UnauthorizedError: 401,
    TrustError: 403,
    NotFoundError: 404,
    ConflictError: 409,
    TooLargeError: 413,
    DeviceError: 500,
    TransientError: 503,
    EdgeServeError: 500,
}
"""The one table: an error gets the status of its nearest base class."""


def status_of(error: EdgeServeError) -> int:
    """HTTP status of `error`."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


class Problem(msgspec.Struct, frozen=True):
    """Body of every error outside `/v2/`."""

    error: str
    hint: str = ""


def json_answer(document: object, status: int = 200) -> Response:
    """Answer with `document` as JSON; structs and containers of them are understood."""
    headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
    return Response(encode(document), status, media_type="application/json", headers=headers)


def problem_answer(error: EdgeServeError) -> Response:
    """Answer with `{"error", "hint"}` and the status of the table."""
    answer = json_answer(Problem(error.message, error.hint), status_of(error))
    if isinstance(error, UnauthorizedError):
        answer.headers["WWW-Authenticate"] = "Bearer"
    return answer


def as_error(request: Request, error: Exception) -> EdgeServeError:
    """Turn whatever a handler raised into an error of the table; the unexpected is logged, its text is not shown."""
    if isinstance(error, EdgeServeError):
        if status_of(error) >= 500:
            _log.warning("%s %s: %s", request.method, request.url.path, error)
        return error
    if isinstance(error, HTTPException):
        kind = NotFoundError if error.status_code == 404 else InputError
        return kind(f"{request.method} {request.url.path[:120]!r}: {error.detail}")
    if isinstance(error, ClientDisconnect):
        return TransientError("the client went away")
    _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return DeviceError("internal error of the fleet manager", hint="its log has the details")


async def read_body(request: Request, limit: int) -> bytes:
    """Read the whole body, at most `limit` bytes.

    Raises:
        TooLargeError: It is longer; refused from its declared length, or as soon as the limit is passed.
    """
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared[:20]) > limit:
        raise TooLargeError(f"body has {declared[:20]} bytes, at most {limit} are allowed")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise TooLargeError(f"body has more than the {limit} bytes that are allowed")
    return bytes(body)
