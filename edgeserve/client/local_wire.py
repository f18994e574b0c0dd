"""The local protocol: inference over a Unix socket (SOCK_STREAM), with tensors in memory that both sides map.

Client and server share this module; it is pure. Every message begins with a head of 16 bytes, four little-endian
32-bit numbers: kind, number, extent, tag. Kinds with a body have its length as `extent` and JSON behind the head.

| from | message | number | extent | tag | body |
|---|---|---|---|---|---|
| client | HELLO | version of the protocol | `MAGIC` | any | |
| server | WELCOME | version | length | the same | `Welcome` |
| client | DESCRIBE | 0 | length | any | `Describe` |
| server | DESCRIBED | 0 | length | the same | `Described` |
| client | OPEN | 0 | length | any | `Plan` |
| server | READY | the plan's | 0 | the same | |
| client | REGION | the plan's | 0 | any | with the descriptor of a memfd (SCM_RIGHTS) |
| server | OPENED | the plan's | 0 | the same | |
| client | RUN | the plan's | slot | any | |
| server | LAYOUT | the plan's | length | the layout's number | `Layout` |
| server | DONE | layout of the outputs | slot | the same | |
| server | FAILED | 0 | length | that of the request, 0 = of none | `Failed` |
| client | CLOSE | the plan's | 0 | any | not answered |

A plan is a model, where its tensors lie, and some slots: equal parts of the region, so that as many requests can be in
flight. The memfd must be sealed against shrinking (F_SEAL_SHRINK, memfd_create(2)): memory that vanishes under a
mapping ends the process that reads it. From RUN to DONE or FAILED the slot is the server's. A LAYOUT comes before the
first DONE with its number. Descriptors that come at other times than with REGION are thrown away by the kernel.

Tensors are as in the binary tensor data extension of the Open Inference Protocol; the place of a BYTES tensor begins
with its length, 8 bytes little-endian.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Final, TypeVar

import msgspec

from edgeserve.contracts import errors
from edgeserve.contracts.errors import EdgeServeError, InputError
from edgeserve.contracts.limits import (
    MAX_LOCAL_MESSAGE_BYTES,
    MAX_LOCAL_SLOTS,
    MAX_NPZ_ARRAYS,
    MAX_SHARED_BYTES,
    MAX_TENSOR_ELEMENTS,
    MAX_TENSOR_RANK,
)
from edgeserve.contracts.tensors import Datatype, TensorSpec

VERSION: Final = 1
MAGIC: Final = int.from_bytes(b"ESL1", "little")
HEAD: Final = struct.Struct("<IIII")
LENGTH: Final = struct.Struct("<Q")
"""Before a BYTES tensor in its place."""
ALIGNMENT: Final = 64
"""Of every tensor in a region, bytes: a cache line, and what the widest vector loads want."""

HELLO, DESCRIBE, OPEN, REGION, RUN, CLOSE = range(1, 7)
WELCOME, DESCRIBED, READY, OPENED, DONE, LAYOUT, FAILED = range(17, 24)
FROM_CLIENT: Final = {HELLO: False, DESCRIBE: True, OPEN: True, REGION: False, RUN: False, CLOSE: False}
FROM_SERVER: Final = {
    WELCOME: True, DESCRIBED: True, READY: False, OPENED: False, DONE: False, LAYOUT: True, FAILED: True,
}  # fmt: skip
"""Kinds that a side sends, and whether they have a body."""

Message = tuple[int, int, int, int, bytes]
"""Kind, number, extent, tag, body."""

_Size = Annotated[int, msgspec.Meta(ge=0, le=MAX_SHARED_BYTES)]
_Extent = Annotated[int, msgspec.Meta(ge=0, le=MAX_TENSOR_ELEMENTS)]
_Shape = Annotated[tuple[_Extent, ...], msgspec.Meta(max_length=MAX_TENSOR_RANK)]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]


class Welcome(msgspec.Struct, frozen=True, kw_only=True):
    """Who answers."""

    server: str
    """Name and version."""


class Describe(msgspec.Struct, frozen=True, kw_only=True):
    """Asks for a model's signature."""

    model: _Name
    version: str = ""
    """Empty = the active one."""


class Described(msgspec.Struct, frozen=True, kw_only=True):
    """A model, as it stands."""

    model: str
    version: str
    release: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class PlacedInput(msgspec.Struct, frozen=True, kw_only=True):
    """Where an input lies in each slot."""

    name: _Name
    datatype: Datatype
    shape: _Shape
    offset: _Size
    """From the beginning of the slot, a multiple of `ALIGNMENT`."""
    byte_size: _Size
    """Of its place: exactly the tensor's, for BYTES at most."""


class PlacedOutput(msgspec.Struct, frozen=True, kw_only=True):
    """Where an output goes in each slot."""

    name: _Name
    offset: _Size
    byte_size: _Size
    """Of its place: more is an error."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A model and where its tensors lie.

    Raises:
        InputError: A tensor does not fit its place, or the slots are too large together.
    """

    model: _Name
    version: str = ""
    """Empty = the one that is active when a request comes."""
    slots: Annotated[int, msgspec.Meta(ge=1, le=MAX_LOCAL_SLOTS)] = 1
    slot_bytes: _Size
    """Of one slot, a multiple of `ALIGNMENT`."""
    inputs: Annotated[tuple[PlacedInput, ...], msgspec.Meta(min_length=1, max_length=MAX_NPZ_ARRAYS)]
    outputs: Annotated[tuple[PlacedOutput, ...], msgspec.Meta(max_length=MAX_NPZ_ARRAYS)] = ()
    """Those that are wanted."""
    priority: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)] = 0
    """1 is the highest; 0 = the model's default."""
    timeout_us: Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)] = 0
    """How long a request may wait for its turn; 0 = as the model's queue says."""

    def __post_init__(self) -> None:
        if self.slot_bytes % ALIGNMENT:
            raise InputError(f"slot_bytes is {self.slot_bytes}, it must be a multiple of {ALIGNMENT}")
        if self.slots * self.slot_bytes > MAX_SHARED_BYTES:
            raise InputError(f"{self.slots} slots of {self.slot_bytes} bytes are more than {MAX_SHARED_BYTES} together")
        for what, side in (("input", self.inputs), ("output", self.outputs)):
            if len({place.name for place in side}) != len(side):
                raise InputError(f"two {what}s have the same name")
            for place in side:
                if place.offset % ALIGNMENT:
                    raise InputError(f"{what} {place.name!r} lies at {place.offset}, no multiple of {ALIGNMENT}")
                if place.offset + place.byte_size > self.slot_bytes:
                    raise InputError(f"{what} {place.name!r} ends beyond its slot of {self.slot_bytes} bytes")
        for place in self.inputs:
            size = LENGTH.size if place.datatype is Datatype.BYTES else tensor_bytes(place.datatype, place.shape)
            if place.byte_size != size and (place.datatype is not Datatype.BYTES or place.byte_size < size):
                raise InputError(
                    f"input {place.name!r} has a place of {place.byte_size} bytes, "
                    f"{place.datatype.value}{list(place.shape)} needs {size}"
                )

    @property
    def region_bytes(self) -> int:
        """Bytes that the region has at least."""
        return self.slots * self.slot_bytes


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """Shapes that the outputs of a plan had."""

    shapes: tuple[_Shape, ...]
    """In the order of the plan's outputs."""


class Failed(msgspec.Struct, frozen=True, kw_only=True):
    """An error; its class is in the words of `edgeserve.contracts.errors`."""

    error: str
    message: str
    hint: str = ""


S = TypeVar("S", bound=msgspec.Struct)

_KINDS: Final[dict[str, type[EdgeServeError]]] = {
    name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, EdgeServeError)
}


def head(kind: int, number: int = 0, extent: int = 0, tag: int = 0) -> bytes:
    """A message without body."""
    return HEAD.pack(kind, number, extent, tag)


def message(kind: int, body: msgspec.Struct, *, number: int = 0, tag: int = 0) -> bytes:
    """A message with a body."""
    json = msgspec.json.encode(body)
    return HEAD.pack(kind, number, len(json), tag) + json


def failed(error: EdgeServeError, *, tag: int) -> bytes:
    """The message that tells of an error."""
    body = Failed(error=type(error).__name__, message=error.message[:2000], hint=error.hint[:2000])
    return message(FAILED, body, tag=tag)


def error_of(body: Failed) -> EdgeServeError:
    """The error that a message tells of."""
    return _KINDS.get(body.error, EdgeServeError)(body.message, hint=body.hint)


def decode_body(data: bytes, kind: type[S]) -> S:
    """Read the body of a message.

    Raises:
        InputError: It is not such a body.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, EdgeServeError, RecursionError, UnicodeDecodeError) as error:
        raise InputError(f"not a {kind.__name__}: {error}") from error


def tensor_bytes(datatype: Datatype, shape: Iterable[int]) -> int:
    """Bytes of a tensor that is not BYTES."""
    return math.prod(shape) * datatype.item_bytes


def aligned(size: int) -> int:
    """`size`, or as much more as alignment takes."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def place(inputs: Iterable[tuple[TensorSpec, int]], outputs: Mapping[str, int], **more: Any) -> Plan:  # noqa: ANN401
    """Lay out the tensors of a slot one behind the other.

    Args:
        inputs: Concrete shapes, and the bytes of each place.
        outputs: Bytes of each place.
        more: The plan's other fields.

    Raises:
        InputError: That makes no plan.
    """
    end = 0

    def next_place(size: int) -> int:
        nonlocal end
        start, end = end, end + aligned(size)
        return start

    fields: dict[str, Any] = {
        "inputs": [
            {
                "name": spec.name,
                "datatype": spec.datatype,
                "shape": spec.shape,
                "byte_size": size,
                "offset": next_place(size),
            }
            for spec, size in inputs
        ],
        "outputs": [{"name": name, "byte_size": size, "offset": next_place(size)} for name, size in outputs.items()],
    }
    try:
        return msgspec.convert({**fields, "slot_bytes": max(end, ALIGNMENT), **more}, Plan)
    except msgspec.ValidationError as error:
        raise InputError(f"the tensors do not fit shared memory: {error}") from error


class MessageReader:
    """Cuts a stream into messages.

    Args:
        kinds: `FROM_CLIENT` or `FROM_SERVER`: what the other side may send.
    """

    def __init__(self, kinds: Mapping[int, bool]) -> None:
        self._kinds = kinds
        self.begun = bytearray()
        """Of a message that has not arrived whole."""

    def take(self, data: bytes | memoryview) -> Iterator[Message]:
        """Yield the messages that `data` makes whole; they must all be taken.

        Raises:
            InputError: The bytes are not of this protocol; nothing more can be read.
        """
        rest, kinds = self.begun, self._kinds
        if rest:
            rest += data
            data = bytes(rest)
            rest.clear()
        at, end = 0, len(data)
        while end - at >= HEAD.size:
            kind, number, extent, tag = HEAD.unpack_from(data, at)
            has_body = kinds.get(kind)
            if has_body is None:
                raise InputError(f"{kind} is no kind of message in the local protocol")
            at += HEAD.size
            if not has_body:
                yield kind, number, extent, tag, b""
                continue
            if extent > MAX_LOCAL_MESSAGE_BYTES:
                raise InputError(f"a message has {extent} bytes, at most {MAX_LOCAL_MESSAGE_BYTES} are allowed")
            if end - at < extent:
                at -= HEAD.size
                break
            yield kind, number, extent, tag, bytes(data[at : at + extent])
            at += extent
        rest += data[at:]
