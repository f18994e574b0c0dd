"""Field blocks (RFC 7541): requests are decoded by the `hpack` library and remembered, responses need no table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Generic, TypeVar
from urllib.parse import quote

import hpack
from hpack.hpack import encode_integer
from hpack.table import HeaderTable

from edgeserve.contracts import limits
from edgeserve_agent.serving.h2.frames import ConnectionViolationError, ErrorCode
from edgeserve_agent.serving.rpc import StatusCode

Field = tuple[bytes, bytes]
T = TypeVar("T")

TABLE_EMPTIED: Final = b"\x20"
"""Dynamic table size update to 0 (RFC 7541, section 6.3)."""
_STATUS_200: Final = b"\x88"
_STATUS_NAME: Final = 8
_CONTENT_TYPE_NAME: Final = 31
_MESSAGE_SAFE: Final = " !\"#$&'()*+,/:;<=>?@[\\]^`{|}"
"""Printable ASCII but `%`, without what `quote` lets stand anyway."""


class _CountingTable(HeaderTable):
    """A dynamic table that counts its changes."""

    def __init__(self) -> None:
        super().__init__()
        self.generation = 0

    def add(self, name: bytes, value: bytes) -> None:
        self.generation += 1
        super().add(name, value)

    @property
    def maxsize(self) -> int:
        return super().maxsize

    @maxsize.setter
    def maxsize(self, value: int) -> None:
        self.generation += 1
        HeaderTable.maxsize.fset(self, value)  # type: ignore[attr-defined]


class BlockDecoder(Generic[T]):
    """Decodes the field blocks of one connection and reads their fields by `read`, which must be a pure function.

    What a block means depends on its bytes and on the dynamic table. So a block's reading is kept under its bytes
    until the table changes, and a block that changes the table is never kept: it must take effect each time. gRPC
    clients index their fields: after the first call their blocks are the same few bytes and leave the table alone.
    """

    def __init__(self, read: Callable[[list[Field]], T], *, max_list_bytes: int) -> None:
        self._read = read
        self._decoder = hpack.Decoder(max_header_list_size=max_list_bytes)
        self._table = _CountingTable()
        self._decoder.header_table = self._table
        self.known: dict[bytes, T] = {}
        """Readings under the current table, by block."""

    def fields(self, block: bytes) -> list[Field]:
        """The fields of a block, for those that are read once.

        Raises:
            ConnectionViolationError: The block cannot be decoded or its fields are too many: the table is lost.
        """
        generation = self._table.generation
        try:
            fields = [(name, value) for name, value in self._decoder.decode(block, raw=True)]
        except hpack.OversizedHeaderListError as error:
            raise ConnectionViolationError(
                ErrorCode.ENHANCE_YOUR_CALM, f"the header list is larger than {self._decoder.max_header_list_size}"
            ) from error
        except (hpack.HPACKError, IndexError, ValueError) as error:
            raise ConnectionViolationError(ErrorCode.COMPRESSION_ERROR, f"field block: {error}") from error
        finally:
            if self._table.generation != generation:
                self.known.clear()
        return fields

    def decode(self, block: bytes) -> T:
        """The reading of a block.

        Raises:
            ConnectionViolationError: As `fields`.
        """
        reading = self.known.get(block)
        if reading is not None:
            return reading
        generation = self._table.generation
        fields = self.fields(block)
        reading = self._read(fields)
        if self._table.generation == generation and len(self.known) < limits.MAX_CACHED_BLOCKS:
            size = len(block) + sum(len(name) + len(value) for name, value in fields)
            if size <= limits.MAX_CACHED_HEAD_BYTES:
                self.known[block] = reading
        return reading


# Responses -------------------------------------------------------------------------------------------


def literal(name: bytes | int, value: bytes) -> bytes:
    """A field that is not indexed, its name in words or by its place in the static table (section 6.2.2)."""
    if isinstance(name, int):
        head = bytes(encode_integer(name, 4))
    else:
        head = b"\x00" + bytes(encode_integer(len(name), 7)) + name
    return head + bytes(encode_integer(len(value), 7)) + value


RESPONSE_BLOCK: Final = _STATUS_200 + literal(_CONTENT_TYPE_NAME, b"application/grpc")
OK_BLOCK: Final = literal(b"grpc-status", b"0")


def status_block(code: StatusCode, message: str, **more: str) -> bytes:
    """Trailers; `more` are further fields, `_` in a name standing for `-`."""
    block = OK_BLOCK if code == StatusCode.OK else literal(b"grpc-status", b"%d" % code)
    if message:
        block += literal(b"grpc-message", percent_encoded(message))
    for name, value in more.items():
        block += literal(name.replace("_", "-").encode(), value.encode("ascii"))
    return block


def http_status_block(status: int) -> bytes:
    """The head of a response that is not gRPC's."""
    return literal(_STATUS_NAME, b"%d" % status)


def percent_encoded(message: str) -> bytes:
    """`grpc-message`, shortened to what clients take ("gRPC over HTTP2", Status-Message)."""
    encoded = quote(message, safe=_MESSAGE_SAFE, errors="replace").encode("ascii")
    # A field value neither begins nor ends with a space (RFC 9113, section 8.2.1): strict clients reset the stream.
    if encoded.startswith(b" "):
        encoded = b"%20" + encoded[1:]
    if encoded.endswith(b" "):
        encoded = encoded[:-1] + b"%20"
    if len(encoded) <= limits.MAX_STATUS_MESSAGE_BYTES:
        return encoded
    kept = encoded[: limits.MAX_STATUS_MESSAGE_BYTES]
    percent = kept.rfind(b"%", -2)
    return (kept[:percent] if percent >= 0 else kept).rstrip()
