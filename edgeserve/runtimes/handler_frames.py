"""Messages between a model server and a handler's process: a head in MessagePack, then the bytes of tensors.

    frame = length of the head (4 bytes, little-endian) | head | bytes of each tensor, in the order of the head

Nothing is unpickled. What comes from the handler's side is a stranger's: every size is checked before it is believed.
"""

from __future__ import annotations

import math
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from typing import Final, TypeVar

import msgspec
import numpy as np

from edgeserve.client.blobs import decode_blob, encode_blob
from edgeserve.contracts.errors import DeviceError, EdgeServeError, InputError
from edgeserve.contracts.limits import HANDLER_HEAD_BYTES, HANDLER_TENSOR_BYTES, KIB, MAX_TENSOR_RANK, MIB
from edgeserve.contracts.tensors import Datatype, TensorSpec
from edgeserve.runtimes.base import Tensor, Tensors

T = TypeVar("T")
_LENGTH: Final = struct.Struct("<I")
_DRAIN_BYTES: Final = 64 * KIB
_ENCODER: Final = msgspec.msgpack.Encoder()


class Part(msgspec.Struct, frozen=True, array_like=True):
    """One tensor of a frame."""

    name: str
    dtype: str
    """Of numpy; `object` = elements of bytes, each with its length before it."""
    shape: tuple[int, ...]
    size: int
    """Bytes in the frame."""


class Start(msgspec.Struct, frozen=True, kw_only=True, tag="start"):
    """To the process: what to load, and what it may."""

    folder: str
    module: str
    handler: str
    chained: bool
    """Whether a model runs between `preprocess` and `postprocess`."""
    memory_bytes: int
    call_s: float
    user: tuple[int, int] | None
    """User and group to become; None = stay who you are."""


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag="ready"):
    """From the process: `load` is done."""

    applied: tuple[str, ...]
    """What confines it."""
    missing: tuple[str, ...]
    """What does not, and why."""


class Call(msgspec.Struct, frozen=True, kw_only=True, tag="call"):
    """To the process: compute."""

    step: str
    """`run`, `preprocess` or `postprocess`."""
    parts: tuple[Part, ...]


class Answer(msgspec.Struct, frozen=True, kw_only=True, tag="answer"):
    """From the process: what it computed."""

    parts: tuple[Part, ...]


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """From the process: it did not."""

    kind: str
    """`input` = the client is to blame, `file` = the module is no handler, `library` = one is not installed,
    `handler` = the rest."""
    message: str


Heads = Start | Ready | Call | Answer | Failed


class BrokenFrameError(DeviceError):
    """The other side does not keep to the protocol: what follows cannot be read."""


class Wire:
    """One end of the connection; one thread at a time.

    Args:
        connection: A stream socket; the wire closes it.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._deadline: float | None = None

    def set_deadline(self, seconds: float | None) -> None:
        """Let everything until the next call of this take `seconds` at most; None = as long as it takes."""
        self._deadline = None if seconds is None else time.monotonic() + seconds

    def send(self, head: Heads, blobs: Sequence[bytes | memoryview] = ()) -> None:
        """Send one frame.

        Raises:
            TimeoutError: The deadline has passed.
            OSError: The other side is gone.
            InputError: The head is too large: there are too many tensors.
        """
        encoded = _ENCODER.encode(head)
        if len(encoded) > HANDLER_HEAD_BYTES:
            raise InputError(f"a message of a handler has a head of {len(encoded)} bytes, at most {HANDLER_HEAD_BYTES}")
        for data in (_LENGTH.pack(len(encoded)) + encoded, *blobs):
            self._limit_time()
            self._socket.sendall(data)

    def receive(self, kind: object) -> object:
        """Receive the head of a frame.

        Args:
            kind: One of the structs of this file, or a union of them.

        Raises:
            TimeoutError: The deadline has passed.
            EOFError, OSError: The other side is gone.
            BrokenFrameError: It sent something else.
        """
        (length,) = _LENGTH.unpack(self._read(bytearray(_LENGTH.size)))
        if length > HANDLER_HEAD_BYTES:
            raise BrokenFrameError(f"the handler's process sent a head of {length} bytes")
        try:
            return msgspec.msgpack.decode(self._read(bytearray(length)), type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BrokenFrameError(f"the handler's process sent no message: {error}") from error

    def receive_raw(self, parts: Sequence[Part]) -> Tensors:
        """Receive tensors that the other side may be trusted to describe rightly."""
        specs = [TensorSpec(name=part.name, datatype=_datatype(part.dtype), shape=part.shape) for part in parts]
        return {spec.name: self._tensor(spec, part) for spec, part in zip(specs, parts, strict=True)}

    def receive_tensors(self, parts: Sequence[Part], specs: Sequence[TensorSpec], what: str) -> Tensors:
        """Receive tensors of a frame as `specs` ask for them; the frame is read to its end, right or wrong.

        Args:
            parts: As the head describes them.
            specs: What is to come, in the order of the result.
            what: Says in errors who gave them.

        Raises:
            DeviceError: Others came.
            BrokenFrameError: The head contradicts itself, or there is too much.
        """
        if any(part.size < 0 for part in parts) or sum(part.size for part in parts) > HANDLER_TENSOR_BYTES:
            raise BrokenFrameError(f"{what} returned more than {HANDLER_TENSOR_BYTES // MIB} MiB")
        wrong = _difference(parts, specs)
        if wrong:
            self._drain(sum(part.size for part in parts))
            raise DeviceError(f"{what} {wrong}", hint="make it return what handler.toml, or its model, asks for")
        by_name = {spec.name: spec for spec in specs}
        found = {part.name: self._tensor(by_name[part.name], part) for part in parts}
        return {spec.name: found[spec.name] for spec in specs}

    def close(self) -> None:
        """Close the connection. May be called twice."""
        self._socket.close()

    def _tensor(self, spec: TensorSpec, part: Part) -> Tensor:
        if spec.datatype is Datatype.BYTES:
            blob = self._read(bytearray(part.size))
            try:
                return decode_blob(spec.name, spec.datatype, part.shape, memoryview(blob))
            except EdgeServeError as error:
                raise BrokenFrameError(f"the handler's process sent a broken tensor: {error}") from error
        dtype = np.dtype(np.uint8 if spec.datatype is Datatype.BOOL else spec.datatype.numpy_name)
        if len(part.shape) > MAX_TENSOR_RANK or math.prod(part.shape) * dtype.itemsize != part.size:
            raise BrokenFrameError(f"tensor {spec.name!r} has {part.size} bytes and the shape {list(part.shape)}")
        try:
            array: Tensor = np.empty(part.shape, dtype)
        except (MemoryError, ValueError) as error:
            raise BrokenFrameError(f"no memory for tensor {spec.name!r} of shape {list(part.shape)}") from error
        if part.size:
            self._read_into(array.reshape(-1).view(np.uint8).data)
        # A byte that is neither 0 nor 1 would be an illegal BOOL for all who read it after us.
        return array != 0 if spec.datatype is Datatype.BOOL else array

    def _read(self, buffer: bytearray) -> bytearray:
        self._read_into(memoryview(buffer))
        return buffer

    def _read_into(self, view: memoryview) -> None:
        while len(view):
            self._limit_time()
            count = self._socket.recv_into(view)
            if not count:
                raise EOFError("the other side closed the connection")
            view = view[count:]

    def _drain(self, size: int) -> None:
        buffer = memoryview(bytearray(min(size, _DRAIN_BYTES)))
        while size:
            step = min(size, len(buffer))
            self._read_into(buffer[:step])
            size -= step

    def _limit_time(self) -> None:
        if self._deadline is None:
            self._socket.settimeout(None)
            return
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._socket.settimeout(left)


def pack(tensors: Mapping[str, Tensor]) -> tuple[tuple[Part, ...], list[bytes | memoryview]]:
    """Describe tensors and give their bytes.

    Raises:
        InputError: They are too large together, or an element of a BYTES tensor is no bytes.
    """
    parts: list[Part] = []
    blobs: list[bytes | memoryview] = []
    for name, tensor in tensors.items():
        datatype = Datatype.BYTES if tensor.dtype.kind in "OSU" else None
        native = tensor if tensor.dtype.isnative else tensor.astype(tensor.dtype.newbyteorder("="))
        array = np.ascontiguousarray(native).reshape(tensor.shape)  # which makes a vector of a number
        blobs.append(encode_blob(datatype or Datatype.UINT8, array))
        dtype = "object" if datatype else array.dtype.name
        parts.append(Part(name, dtype, array.shape, len(blobs[-1])))
    total = sum(part.size for part in parts)
    if total > HANDLER_TENSOR_BYTES:
        raise InputError(
            f"the tensors of this call take {total / MIB:.0f} MiB, a handler gets {HANDLER_TENSOR_BYTES // MIB} MiB",
            hint="send fewer rows at once",
        )
    return tuple(parts), blobs


def _datatype(dtype: str) -> Datatype:
    return next(datatype for datatype in Datatype if datatype.numpy_name == dtype)


def _difference(parts: Sequence[Part], specs: Sequence[TensorSpec]) -> str:
    names = [part.name for part in parts]
    wanted = [spec.name for spec in specs]
    if sorted(names) != sorted(wanted):
        return f"returned {_listed(names)}, not {_listed(wanted)}"
    for spec in specs:
        part = parts[names.index(spec.name)]
        if part.dtype != spec.datatype.numpy_name:
            return f"returned {spec.name!r} as {part.dtype[:40]!r}, not as {spec.datatype.numpy_name!r}"
        if not spec.accepts(part.shape) or any(size < 0 for size in part.shape):
            return f"returned {spec.name!r} of shape {list(part.shape)[:MAX_TENSOR_RANK]}, not {list(spec.shape)}"
    return ""


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name[:80]) for name in sorted(names)[:8]) or "nothing"
