"""Tensors between the serving process and a worker: their bytes in a region, their shapes in a message beside it.

Both directions are alike. `TensorWriter` lays tensors into the region and returns the message, `TensorReader` takes the
message and returns views. A call is then: write, send, receive, read; the socket is the wake-up, and its end tells of a
crash. Repeated shapes, which are the rule, cost a comparison and no encoding.
"""

from __future__ import annotations

import math
import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
import numpy as np

from edgeserve.client.blobs import decode_blob, encode_blob
from edgeserve.contracts.errors import DeviceError, EdgeServeError
from edgeserve.contracts.limits import ISOLATION_CALL_S, ISOLATION_MESSAGE_BYTES
from edgeserve.contracts.tensors import Datatype, TensorSpec
from edgeserve.runtimes.base import Tensor, Tensors
from edgeserve_agent.isolation.messages import Failure, encode
from edgeserve_agent.isolation.region import Region

_ALIGNMENT: Final = 64
"""Bytes: a cache line, and the widest vector loads of runtimes."""
_DTYPES: Final = {
    datatype: np.dtype(np.uint8 if datatype is Datatype.BYTES else datatype.numpy_name) for datatype in Datatype
}
"""What lies in the region; of BYTES it is their encoding."""


class Shapes(msgspec.Struct, frozen=True, array_like=True):
    """Tensors of one side of the signature, in its order: bytes and shape of each."""

    parts: tuple[tuple[int, tuple[int, ...]], ...]


_DECODER: Final = msgspec.msgpack.Decoder(Shapes)
_FAILURE_DECODER: Final = msgspec.msgpack.Decoder(Failure)


def is_failure(message: bytes) -> bool:
    """Whether a message is a `Failure`, a map; `Shapes` are an array (MessagePack specification, "Formats")."""
    return bool(message) and (message[0] & 0xF0 == 0x80 or message[0] in (0xDE, 0xDF))


class TensorWriter:
    """Lays tensors into a region.

    Args:
        region: To write to.
        specs: One side of the signature.
    """

    def __init__(self, region: Region, specs: tuple[TensorSpec, ...]) -> None:
        self.end = 0
        """First byte behind the tensors that were written last."""
        self._region = region
        self._specs = specs
        self._names = [spec.name for spec in specs]
        self._texts = frozenset(spec.name for spec in specs if spec.datatype is Datatype.BYTES)
        self._laid_out: tuple[int, list[tuple[int, ...]]] | None = None
        self._views: list[Tensor] = []
        self._message = b""

    def write(self, tensors: Mapping[str, Tensor], start: int) -> bytes:
        """Copy `tensors` to the region from byte `start` on.

        Raises:
            InputError: They are more than a region may hold, or a BYTES element is no bytes.
            DeviceError: Memory is short, there are too many tensors, or one has another datatype than its spec.
        """
        shapes = [tensors[name].shape for name in self._names]
        if self._texts:
            tensors = {name: self._blob(tensors[name]) if name in self._texts else tensors[name] for name in tensors}
        if self._texts or self._laid_out != (start, shapes):
            self._lay_out(tensors, shapes, start)
        name = ""
        try:
            for name, view in zip(self._names, self._views, strict=True):
                np.copyto(view, tensors[name], casting="no")
        except TypeError as error:
            raise DeviceError(f"tensor {name!r} is of type {tensors[name].dtype}, unlike its signature") from error
        return self._message

    def _lay_out(self, tensors: Mapping[str, Tensor], shapes: list[tuple[int, ...]], start: int) -> None:
        self._laid_out = None
        # As the signature says: what is of another datatype is found when it is copied.
        forms = [
            (tensors[spec.name].shape if spec.name in self._texts else shape, _DTYPES[spec.datatype])
            for spec, shape in zip(self._specs, shapes, strict=True)
        ]
        sizes = [math.prod(form) * dtype.itemsize for form, dtype in forms]
        message = encode(Shapes(tuple(zip(sizes, shapes, strict=True))))
        if len(message) > ISOLATION_MESSAGE_BYTES:
            raise DeviceError(
                f"{len(shapes)} tensors are too many for a worker process", hint="serve the model without isolation"
            )
        offsets, self.end = _offsets(sizes, start)
        self._region.reserve(max(self.end, 1))
        self._views = [
            self._region.array(form, dtype, offset) for (form, dtype), offset in zip(forms, offsets, strict=True)
        ]
        self._message = message
        self._laid_out = (start, shapes)

    @staticmethod
    def _blob(array: Tensor) -> Tensor:
        return np.frombuffer(encode_blob(Datatype.BYTES, array), np.uint8)


class TensorReader:
    """Finds tensors in a region.

    Args:
        region: To read from.
        specs: One side of the signature.
    """

    def __init__(self, region: Region, specs: tuple[TensorSpec, ...]) -> None:
        self.end = 0
        """First byte behind the tensors that were read last."""
        self._region = region
        self._specs = specs
        self._texts = any(spec.datatype is Datatype.BYTES for spec in specs)
        self._read: tuple[int, bytes] | None = None
        self._views: Tensors = {}

    def read(self, message: bytes, start: int) -> Tensors:
        """Views of the tensors from byte `start` on, by name in the order of the specs; BYTES are copies.

        Raises:
            DeviceError: The message does not describe such tensors.
        """
        if self._texts or self._read != (start, message):
            self._read = None
            try:
                self._views = self._find(_DECODER.decode(message).parts, start)
            except (msgspec.DecodeError, TypeError, ValueError, EdgeServeError) as error:
                raise DeviceError(f"the other process sent no tensors of this model: {error}") from error
            self._read = (start, message)
        return self._views

    def forget(self) -> None:
        """Let go of copies until the next call: an idle lane must not keep them alive."""
        if self._texts:
            self._read, self._views = None, {}

    def _find(self, parts: tuple[tuple[int, tuple[int, ...]], ...], start: int) -> Tensors:
        if len(parts) != len(self._specs):
            raise ValueError(f"{len(parts)} tensors instead of {len(self._specs)}")
        if any(size < 0 for size, _shape in parts):
            raise ValueError("a tensor has less than no bytes")
        offsets, self.end = _offsets([size for size, _shape in parts], start)
        self._region.attach(max(self.end, 1))
        return {
            spec.name: self._tensor(spec, size, shape, offset)
            for spec, (size, shape), offset in zip(self._specs, parts, offsets, strict=True)
        }

    def _tensor(self, spec: TensorSpec, size: int, shape: tuple[int, ...], offset: int) -> Tensor:
        if spec.datatype is Datatype.BYTES:
            return decode_blob(spec.name, spec.datatype, shape, self._region.array((size,), np.uint8, offset).data)
        view = self._region.array(shape, _DTYPES[spec.datatype], offset)
        if view.nbytes != size:
            raise ValueError(f"tensor {spec.name!r} has {size} bytes, its shape needs {view.nbytes}")
        return view


def _offsets(sizes: Sequence[int], start: int) -> tuple[list[int], int]:
    """Where tensors lie that follow each other from `start` on, and the first byte behind them."""
    offsets: list[int] = []
    for size in sizes:
        start = -(-start // _ALIGNMENT) * _ALIGNMENT
        offsets.append(start)
        start += size
    return offsets, start


class WorkerGoneError(DeviceError):
    """The worker process ended."""

    def __init__(self, *, begun: bool) -> None:
        super().__init__("the worker process ended")
        self.begun = begun
        """Whether it had the call."""


class WorkerHangsError(DeviceError):
    """The worker process does not answer."""


class Lane:
    """One call at a time: the serving process's end.

    Args:
        wire: SOCK_SEQPACKET, so that a message is one packet; the lane closes it.
        region: Shared with the worker; the lane closes it.
        call_s: Seconds that the worker has for an answer.
    """

    def __init__(self, wire: socket.socket, region: Region, *, call_s: float = ISOLATION_CALL_S) -> None:
        self.in_step = True
        """Whether no answer is outstanding, so that the next call gets its own."""
        # Not `settimeout`, with which Python asks the kernel twice for each message.
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(call_s))
        self._call_s = call_s
        self._wire = wire
        self._region = region
        self._inputs = TensorWriter(region, ())
        self._outputs = TensorReader(region, ())

    def prepare(self, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
        """Say what the model that was loaded takes and gives."""
        self._inputs = TensorWriter(self._region, inputs)
        self._outputs = TensorReader(self._region, outputs)

    def call(self, inputs: Mapping[str, Tensor]) -> Tensors:
        """Let the worker compute; see `edgeserve.runtimes.base.LoadedModel.run`.

        Args:
            inputs: As the signature says; checked before.

        Returns:
            Copies that the caller owns.

        Raises:
            WorkerGoneError: The worker ended before it answered.
            WorkerHangsError: It did not answer in time.
            EdgeServeError: What the model raised.
        """
        message = self._inputs.write(inputs, 0)
        self.in_step = False
        try:
            self._wire.send(message)
        except OSError as error:
            raise WorkerGoneError(begun=False) from error
        try:
            answer = self._wire.recv(ISOLATION_MESSAGE_BYTES)
        except BlockingIOError as error:
            raise WorkerHangsError(f"the worker process did not answer within {self._call_s:g} s") from error
        except OSError as error:  # ECONNRESET: it left the message unread
            raise WorkerGoneError(begun=False) from error
        if not answer:
            raise WorkerGoneError(begun=True)
        if is_failure(answer):
            failure = self._failure(answer)
            self.in_step = True
            raise failure.error()
        outputs = {name: view.copy() for name, view in self._outputs.read(answer, self._inputs.end).items()}
        self._outputs.forget()
        self.in_step = True
        return outputs

    def close(self) -> None:
        """Let go of socket and memory. May be called twice."""
        self._wire.close()
        self._inputs, self._outputs = TensorWriter(self._region, ()), TensorReader(self._region, ())
        self._region.close()

    @staticmethod
    def _failure(answer: bytes) -> Failure:
        try:
            return _FAILURE_DECODER.decode(answer)
        except msgspec.DecodeError as error:
            raise DeviceError(f"the worker process answered nonsense: {error}") from error


def _timeval(seconds: float) -> bytes:
    """`struct timeval`; zero would be no limit."""
    whole, part = divmod(max(1, round(seconds * 1e6)), 1_000_000)
    return struct.pack("@ll", whole, part)
