"""Bytes to documents and back: the one place that decodes what came from outside."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from edgeserve.contracts.errors import EdgeServeError, InputError

T = TypeVar("T", bound=msgspec.Struct)

_ENCODER = msgspec.json.Encoder(order="deterministic")


def decode(data: bytes, kind: type[T], *, what: str, limit: int) -> T:
    """Decode one JSON document.

    Args:
        data: The document as it came.
        kind: The `msgspec.Struct` to build; its own checks run too.
        what: Name of the document for the error, such as "desired document".
        limit: Most bytes allowed, from `edgeserve.contracts.limits`.

    Raises:
        InputError: Too large, not JSON, or a field is missing, of the wrong type or refused.
    """
    if len(data) > limit:
        raise InputError(f"{what} has {len(data)} bytes, at most {limit} are allowed")
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, EdgeServeError, RecursionError) as error:
        raise InputError(f"{what} is not valid: {error}", hint=getattr(error, "hint", "")) from error


def encode(document: object) -> bytes:
    """Encode a document as JSON with a deterministic order of fields and keys (what digests and signatures need)."""
    return _ENCODER.encode(document)
