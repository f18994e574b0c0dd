"""Which gRPC status an error is."""

from __future__ import annotations

from typing import Final

from edgeserve.contracts.errors import (
    ConflictError,
    EdgeServeError,
    InputError,
    NotFoundError,
    RequestCancelledError,
    TransientError,
    UnsupportedError,
)
from edgeserve_agent.serving.rpc import RpcCall, StatusCode

_CODES: Final[tuple[tuple[type[EdgeServeError], StatusCode], ...]] = (
    (NotFoundError, StatusCode.NOT_FOUND),
    (ConflictError, StatusCode.ALREADY_EXISTS),
    (UnsupportedError, StatusCode.UNIMPLEMENTED),
    (InputError, StatusCode.INVALID_ARGUMENT),
    (RequestCancelledError, StatusCode.CANCELLED),
    (TransientError, StatusCode.UNAVAILABLE),
    (EdgeServeError, StatusCode.INTERNAL),
)


def fail(call: RpcCall, error: EdgeServeError) -> None:
    """End a call with an error."""
    call.finish(next(code for kind, code in _CODES if isinstance(error, kind)), message_of(error))


def message_of(error: EdgeServeError) -> str:
    """What is wrong and what to do about it."""
    return f"{error.message} ({error.hint})" if error.hint else error.message
