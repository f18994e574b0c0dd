"""Compressed bodies: `Content-Encoding` and `Accept-Encoding` with gzip and deflate (RFC 9110, 8.4 and 12.5.3).

The length in `Inference-Header-Content-Length` is that of the JSON before compression, as in Triton.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Final

from edgeserve.contracts.errors import InputError, TooLargeError
from edgeserve.contracts.limits import COMPRESS_FROM_BYTES

_WBITS: Final = {b"gzip": zlib.MAX_WBITS | 16, b"x-gzip": zlib.MAX_WBITS | 16, b"deflate": zlib.MAX_WBITS}
_ANSWERS: Final = (b"gzip", b"deflate")
_NOT_WANTED: Final = (b"q=0", b"q=0.0", b"q=0.00", b"q=0.000")
_LEVEL: Final = 1
"""The quickest: a device has more network than time."""


class UnknownCodingError(InputError):
    """A body is compressed in a way that is not known here."""


def coding_of(headers: Mapping[bytes, bytes]) -> bytes:
    """The coding of a body; empty = none.

    Raises:
        UnknownCodingError: It is not one of ours.
    """
    named = headers.get(b"content-encoding", b"").strip().lower()
    if named in (b"", b"identity"):
        return b""
    if named not in _WBITS:
        raise UnknownCodingError(f"Content-Encoding {named[:40]!a} is not known", hint="use gzip or deflate")
    return named


def inflate(body: bytes | memoryview, coding: bytes, *, limit: int) -> bytes:
    """Decompress a body.

    Args:
        body: As it came.
        coding: As `coding_of` gives it.
        limit: Most bytes that may come out.

    Raises:
        InputError: The body is not of the coding, or is cut off.
        TooLargeError: More than `limit` bytes would come out.
    """
    stream = zlib.decompressobj(_WBITS[coding])
    try:
        plain = stream.decompress(body, limit + 1)
    except zlib.error as error:
        raise InputError(f"the body is not {coding.decode()}: {error}") from error
    if len(plain) > limit:
        raise TooLargeError(f"the decompressed body is larger than {limit} bytes, the most that this server takes")
    if not stream.eof or stream.unused_data:
        what = "has bytes behind its end" if stream.eof else "ends early"
        raise InputError(f"the compressed body {what}")
    return plain


def accepted(header: bytes, *, size: int, binary: bool) -> bytes:
    """The coding that an answer should have; empty = none.

    Tensors hardly shrink and take long, and short answers fit a packet, so both are only compressed for a client that
    names one coding, not for one that lists what its library can read.

    Args:
        header: Value of `Accept-Encoding`.
        size: Bytes of the answer.
        binary: It holds binary tensors.
    """
    asked = [item.partition(b";") for item in header.lower().replace(b" ", b"").split(b",")]
    wanted = [name for name, _, weight in asked if weight not in _NOT_WANTED]
    by_name = len(asked) == 1
    if not by_name and (binary or size < COMPRESS_FROM_BYTES):
        return b""
    return next((coding for coding in _ANSWERS if coding in wanted), b"")


def deflate(chunks: Sequence[bytes | memoryview], coding: bytes) -> bytes:
    """Compress a body."""
    stream = zlib.compressobj(_LEVEL, wbits=_WBITS[coding])
    return b"".join([*(stream.compress(chunk) for chunk in chunks), stream.flush()])
