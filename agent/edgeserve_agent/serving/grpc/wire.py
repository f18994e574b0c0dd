"""The wire format of `ModelInferRequest` and `ModelInferResponse`, as far as tensors go past protobuf. Pure.

A parser of protobuf copies each tensor out of the message. Serializers write fields in the order of their numbers, so a
request is a head (fields 1 to 6) and then the tensors (field 7). `scan` finds them; a message in any other form is
left to protobuf, and whatever `scan` takes means the same to protobuf (Protocol Buffers, "Encoding").
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.limits import MAX_INFER_FIELDS, MAX_RAW_INPUTS
from edgeserve_agent.serving.grpc.fields import too_many_fields
from edgeserve_agent.serving.rpc import Message

_ID: Final = 0x1A
_RAW_INPUT: Final = 0x3A
_HEAD_TAGS: Final = frozenset({0x0A, 0x12, _ID, 0x22, 0x2A, 0x32})
"""model_name, model_version, id, parameters, inputs, outputs: all have a length before them."""
_RAW_OUTPUT: Final = 0x32
_RESPONSE_ID: Final = 0x1A
_RESPONSE_PARAMETERS: Final = 0x22
_STREAM_ERROR: Final = 0x0A
_STREAM_RESPONSE: Final = 0x12
_MAX_LENGTH_BYTES: Final = 5


@dataclass(frozen=True, slots=True)
class Scanned:
    """A request, taken apart."""

    head: bytes
    """The message without `id` and `raw_input_contents`."""
    id: str
    bounds: tuple[tuple[int, int], ...]
    """Where in the message each of `raw_input_contents` lies."""

    def raw(self, message: Message) -> list[memoryview]:
        """The `raw_input_contents`; they share the message's memory."""
        view = memoryview(message)
        return [view[begin:end] for begin, end in self.bounds]


class Layout:
    """A message whose bytes but for its tensors are known: the next one of the same form need not be scanned."""

    __slots__ = ("_gaps", "_prefix", "_start", "raw")

    def __init__(self, message: Message, scanned: Scanned) -> None:
        self.raw = scanned.raw
        self._start = scanned.bounds[0][0] if scanned.bounds else len(message)
        self._prefix = bytes(message[: self._start])
        self._gaps = tuple(
            (end, start, bytes(message[end:start]))
            for (_, end), (start, _) in zip(scanned.bounds, scanned.bounds[1:], strict=False)
        )

    def fits(self, message: Message) -> bool:
        """Whether a message of the same size has the same bytes around its tensors."""
        if message[: self._start] != self._prefix:
            return False
        return not self._gaps or all(message[end:start] == gap for end, start, gap in self._gaps)


def scan(message: Message) -> Scanned | None:
    """Find head, id and tensors of a `ModelInferRequest`; None when it is in a form that protobuf must look at.

    Raises:
        InputError: It has more fields or tensors than any model.
    """
    size = len(message)
    at = id_from = id_to = id_text = fields = 0
    while at < size and (tag := message[at]) != _RAW_INPUT:
        if tag not in _HEAD_TAGS:
            return None
        fields += 1
        if fields > MAX_INFER_FIELDS:
            raise too_many_fields()
        begin, end = _bounds(message, at + 1)
        if end > size:
            return None
        if tag == _ID:
            if id_to:
                return None
            id_from, id_text, id_to = at, begin, end
        at = end
    head_end = at
    bounds = []
    while at < size:
        if message[at] != _RAW_INPUT:
            return None
        begin, at = _bounds(message, at + 1)
        if at > size:
            return None
        bounds.append((begin, at))
        check_raw_count(len(bounds))
    head = bytes(message[:head_end])
    if not id_to:
        return Scanned(head, "", tuple(bounds))
    try:
        text = head[id_text:id_to].decode()
    except UnicodeDecodeError:
        return None
    return Scanned(head[:id_from] + head[id_to:], text, tuple(bounds))


def check_raw_count(count: int) -> None:
    """Bound the `raw_input_contents` of a request.

    Raises:
        InputError: There are more than any model has inputs.
    """
    if count > MAX_RAW_INPUTS:
        raise InputError(
            f"the request has more than {MAX_RAW_INPUTS} raw_input_contents",
            hint="send one for each input of the model",
        )


def _bounds(message: Message, at: int) -> tuple[int, int]:
    """Begin and end of a field whose length stands at `at`; an end beyond the message is an end that is not there."""
    size = len(message)
    length = shift = 0
    while at < size and shift < 7 * _MAX_LENGTH_BYTES:
        byte = message[at]
        at += 1
        length |= (byte & 0x7F) << shift
        if byte < 0x80:
            return at, at + length
        shift += 7
    return at, size + 1


def raw_output(size: int) -> bytes:
    """What stands before each of `raw_output_contents`."""
    return _tagged(_RAW_OUTPUT, size)


def response_id(text: str) -> bytes:
    """Field `id` of a response."""
    data = text.encode()
    return _tagged(_RESPONSE_ID, len(data)) + data


def response_flag(name: str) -> bytes:
    """An entry of a response's `parameters` that is true."""
    key = name.encode()
    entry = _tagged(0x0A, len(key)) + key + b"\x12\x02\x08\x01"
    return _tagged(_RESPONSE_PARAMETERS, len(entry)) + entry


def stream_response(chunks: Iterable[Message]) -> list[Message]:
    """`ModelStreamInferResponse` with the response that `chunks` are."""
    pieces = list(chunks)
    return [_tagged(_STREAM_RESPONSE, sum(map(len, pieces))), *pieces]


def stream_error(text: str, identity: str) -> list[Message]:
    """`ModelStreamInferResponse` with an error; the response in it has only the id of the request."""
    data = text.encode()
    chunks: list[Message] = [response_id(identity)] if identity else []
    return [_tagged(_STREAM_ERROR, len(data)) + data, *stream_response(chunks)]


def _tagged(tag: int, length: int) -> bytes:
    encoded = bytearray((tag,))
    while length > 0x7F:
        encoded.append(length & 0x7F | 0x80)
        length >>= 7
    encoded.append(length)
    return bytes(encoded)
