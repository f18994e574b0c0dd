"""Bounds of a TFLite flatbuffer, checked before a library follows its offsets: tflite-runtime dies of truncated files.

Format: https://flatbuffers.dev/internals/; tables and field numbers: `schema.fbs` of TensorFlow Lite, version 3.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from edgeserve.contracts.errors import InputError

IDENTIFIER: Final = b"TFL3"
_IDENTIFIER_AT: Final = 4
_OFFSET_BYTES: Final = 4
_HINT: Final = "check that the file is whole; export it again"

Buffer = bytes | memoryview


@dataclass(frozen=True)
class _Table:
    """Fields of a table that hold an offset, by field number."""

    vectors: Mapping[int, int] = field(default_factory=dict)
    """Vector of numbers or a string, with the bytes of one element."""
    tables: Mapping[int, str] = field(default_factory=dict)
    many: Mapping[int, str] = field(default_factory=dict)
    """Vector of tables."""


_OPAQUE: Final = "opaque"
"""Options of an operation: only the table itself is checked."""
_TABLES: Final[Mapping[str, _Table]] = {
    "Model": _Table(
        vectors={3: 1, 5: 4},
        many={1: "OperatorCode", 2: "SubGraph", 4: "Buffer", 6: "Metadata", 7: "SignatureDef"},
    ),
    "OperatorCode": _Table(vectors={1: 1}),
    "SubGraph": _Table(vectors={1: 4, 2: 4, 4: 1}, many={0: "Tensor", 3: "Operator"}),
    "Tensor": _Table(vectors={0: 4, 3: 1, 7: 4}, tables={4: "QuantizationParameters", 6: _OPAQUE}),
    "QuantizationParameters": _Table(vectors={0: 4, 1: 4, 2: 4, 3: 8}, tables={5: _OPAQUE}),
    "Operator": _Table(vectors={1: 4, 2: 4, 5: 1, 7: 1, 8: 4}, tables={4: _OPAQUE, 12: _OPAQUE}),
    "Buffer": _Table(vectors={0: 1}),
    "Metadata": _Table(vectors={0: 1}),
    "SignatureDef": _Table(vectors={2: 1}, many={0: "TensorMap", 1: "TensorMap"}),
    "TensorMap": _Table(vectors={0: 1}),
    _OPAQUE: _Table(),
}
_BUFFER_OFFSET, _BUFFER_SIZE = 1, 2
"""Fields of `Buffer` that place its bytes behind the flatbuffer (models beyond 2 GB)."""


def check_tflite(data: Buffer, name: str) -> None:
    """Make sure that every offset of a .tflite file stays inside it.

    Args:
        data: The whole file.
        name: Of the file, for the error.

    Raises:
        InputError: It is not a TFLite model, or it is truncated or damaged.
    """
    if len(data) < _IDENTIFIER_AT + len(IDENTIFIER) or bytes(data[4:8]) != IDENTIFIER:
        raise InputError(f"{name} is not a TFLite model", hint="name a .tflite file; its bytes 4 to 7 are TFL3")
    try:
        _walk(data)
    except (struct.error, IndexError) as error:
        raise InputError(f"{name} is not a whole TFLite model: {error}", hint=_HINT) from error


def _walk(data: Buffer) -> None:
    waiting = [(_offset(data, 0), "Model")]
    seen = set(waiting)
    left = len(data) // _OFFSET_BYTES
    while waiting:
        place, kind = waiting.pop()
        fields = _fields(data, place)
        for entry in _children(data, kind, fields):
            left -= 1
            if left < 0:  # tables that share one long vector would be walked for hours
                raise IndexError("it has more references than bytes for them")
            if entry not in seen:
                seen.add(entry)
                waiting.append(entry)
        if kind == "Buffer":
            _check_outside(data, fields)


def _children(data: Buffer, kind: str, fields: Callable[[int], int | None]) -> Iterator[tuple[int, str]]:
    """Check the vectors of a table; yield the tables that it refers to."""
    table = _TABLES[kind]
    for number, item_bytes in table.vectors.items():
        if (at := fields(number)) is not None:
            _vector(data, _offset(data, at), item_bytes)
    for number, child in table.tables.items():
        if (at := fields(number)) is not None:
            yield _offset(data, at), child
    for number, child in table.many.items():
        if (at := fields(number)) is not None:
            start, count = _vector(data, _offset(data, at), _OFFSET_BYTES)
            yield from ((_offset(data, start + _OFFSET_BYTES * index), child) for index in range(count))


def _fields(data: Buffer, table: int) -> Callable[[int], int | None]:
    """Where the fields of the table at `table` lie; None = absent, which means the default."""
    vtable = table - _number(data, table, "<i", 4)
    size, extent = _number(data, vtable, "<H", 2), _number(data, vtable + 2, "<H", 2)
    if size < 4 or extent < 4:
        raise IndexError(f"the table at {table} has no fields")
    _inside(data, vtable, size)
    _inside(data, table, extent)

    def place(number: int) -> int | None:
        entry = 4 + 2 * number
        found = _number(data, vtable + entry, "<H", 2) if entry + 2 <= size else 0
        return table + found if found else None

    return place


def _check_outside(data: Buffer, fields: Callable[[int], int | None]) -> None:
    offset, size = (
        0 if (at := fields(number)) is None else _number(data, at, "<Q", 8) for number in (_BUFFER_OFFSET, _BUFFER_SIZE)
    )
    if offset > 1:  # 0 and 1 are placeholders
        _inside(data, offset, size)


def _vector(data: Buffer, at: int, item_bytes: int) -> tuple[int, int]:
    count = _number(data, at, "<I", 4)
    _inside(data, at + 4, count * item_bytes)
    return at + 4, count


def _offset(data: Buffer, at: int) -> int:
    return at + _number(data, at, "<I", 4)


def _number(data: Buffer, at: int, form: str, size: int) -> int:
    _inside(data, at, size)
    value: int = struct.unpack_from(form, data, at)[0]
    return value


def _inside(data: Buffer, at: int, size: int) -> None:
    if at < 0 or at + size > len(data):
        raise IndexError(f"bytes {at} to {at + size} are needed, it has {len(data)}")
