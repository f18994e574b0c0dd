"""How much a message would have protobuf do, before protobuf does it. Pure.

protobuf makes an object for every element of a repeated message: 2 bytes on the wire take 90 in memory, and reading
them from Python takes a microsecond each. It holds the interpreter lock meanwhile, so that no thread would help: such
a message is refused (Protocol Buffers, "Encoding").
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.limits import MAX_GRPC_METHOD_BYTES, MAX_INFER_FIELDS, MAX_INFER_PARSED_BYTES
from edgeserve_agent.serving.rpc import Message

_MIN_FIELD_BYTES: Final = 2
_RAW_INPUT: Final = 0x3A
_CONTENTS: Final[Mapping[int, Any]] = {0x2A: {}}
_INFER: Final[Mapping[int, Any]] = {0x2A: _CONTENTS, 0x32: {}}
"""Tags of the messages within `ModelInferRequest` that have repeated fields: inputs and their contents, outputs."""
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_SIZES: Final = {_FIXED64: 8, _FIXED32: 4, 3: 0, 4: 0}
_MAX_VARINT_BYTES: Final = 10


def check_infer(message: Message) -> None:
    """Bound what protobuf has to do for a `ModelInferRequest`.

    Raises:
        InputError: It has too many fields or too large typed contents, or a large one is not in protobuf's form.
    """
    if len(message) <= _MIN_FIELD_BYTES * MAX_INFER_FIELDS:
        return
    walk = _Walk(message)
    walk.count(0, len(message), _INFER)
    parsed = len(message) - walk.raw_bytes
    if parsed > MAX_INFER_PARSED_BYTES:
        raise InputError(
            f"the request has {parsed} bytes beside raw_input_contents, at most {MAX_INFER_PARSED_BYTES} are allowed",
            hint="send large tensors in raw_input_contents",
        )


def check_method(message: Message, *, large: bool) -> None:
    """Bound the request of another method; `large`: it may bring files.

    Raises:
        InputError: It is too large or has too many fields.
    """
    if large:
        if len(message) > _MIN_FIELD_BYTES * MAX_INFER_FIELDS:
            _Walk(message).count(0, len(message), {})
    elif len(message) > MAX_GRPC_METHOD_BYTES:
        raise InputError(
            f"the request has {len(message)} bytes, at most {MAX_GRPC_METHOD_BYTES} are allowed for this method"
        )


def too_many_fields() -> InputError:
    """The refusal of a message with too many fields."""
    return InputError(
        f"the request has more than {MAX_INFER_FIELDS} fields",
        hint="send tensors in raw_input_contents, one for each input",
    )


class _Walk:
    """Counts fields."""

    def __init__(self, message: Message) -> None:
        self.raw_bytes = 0
        self._message = message
        self._fields = 0

    def count(self, at: int, end: int, nested: Mapping[int, Any]) -> None:
        """Count the fields from `at` to `end`, and those of the messages whose tags are in `nested`."""
        outermost = nested is _INFER
        while at < end:
            self._fields += 1
            if self._fields > MAX_INFER_FIELDS:
                raise too_many_fields()
            tag, at = self._varint(at, end)
            kind = tag & 7
            if kind == _VARINT:
                _, at = self._varint(at, end)
            elif kind == _LENGTH:
                length, at = self._varint(at, end)
                if length > end - at:
                    raise _malformed()
                if outermost and tag == _RAW_INPUT:
                    self.raw_bytes += length
                if tag in nested:
                    self.count(at, at + length, nested[tag])
                at += length
            else:
                size = _SIZES.get(kind)
                if size is None or size > end - at:
                    raise _malformed()
                at += size

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        value = shift = 0
        while at < end and shift < 7 * _MAX_VARINT_BYTES:
            byte = self._message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, at
            shift += 7
        raise _malformed()


def _malformed() -> InputError:
    return InputError("the request is not a message of protobuf")
