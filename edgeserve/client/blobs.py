"""Tensors to bytes and back, as in the binary tensor data extension of the Open Inference Protocol.

Client and server share it. Numbers are little-endian and row-major; each BYTES element has its length before it,
four bytes little-endian.
"""

from __future__ import annotations

import struct
import sys
from typing import Final

import numpy as np
import numpy.typing as npt

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.limits import MAX_TENSOR_ELEMENTS, MAX_TENSOR_RANK
from edgeserve.contracts.tensors import Datatype

Tensor = npt.NDArray[np.generic]

_LENGTH: Final = struct.Struct("<I")
_DTYPES: Final = {datatype: np.dtype(datatype.numpy_name) for datatype in Datatype}

if sys.byteorder != "little":
    raise ImportError("edgeserve runs on little-endian machines only: tensors on the wire are little-endian")


def element_count(name: str, shape: tuple[int, ...]) -> int:
    """Elements of a tensor with `shape`.

    Raises:
        InputError: A dimension is negative, or rank or size are beyond the limits.
    """
    if len(shape) > MAX_TENSOR_RANK:
        raise InputError(f"tensor {name[:80]!r} has {len(shape)} dimensions, at most {MAX_TENSOR_RANK} are allowed")
    extent = 1
    for size in shape:
        if size < 0:
            raise InputError(f"tensor {name[:80]!r} has a negative dimension in shape {list(shape)}")
        extent *= size or 1  # numpy has limits for the other dimensions of an empty array, too
    if extent > MAX_TENSOR_ELEMENTS:
        raise InputError(f"tensor {name[:80]!r} has {extent} elements, at most {MAX_TENSOR_ELEMENTS} are allowed")
    return 0 if 0 in shape else extent


def decode_blob(name: str, datatype: Datatype, shape: tuple[int, ...], blob: memoryview) -> Tensor:
    """Make an array from wire bytes; numbers share memory with `blob` where its alignment allows.

    Args:
        name: The tensor's name, for the error.
        datatype: As declared.
        shape: As declared.
        blob: Exactly the tensor's bytes.

    Raises:
        InputError: The bytes are not such a tensor.
    """
    count = element_count(name, shape)
    if datatype is Datatype.BYTES:
        return _decode_bytes(name, shape, count, blob)
    if len(blob) != count * datatype.item_bytes:
        raise InputError(
            f"tensor {name[:80]!r} has {len(blob)} bytes, "
            f"{datatype.value}{list(shape)} needs {count * datatype.item_bytes}"
        )
    if not count:
        return np.empty(shape, _DTYPES[datatype])
    array: Tensor = np.frombuffer(blob, _DTYPES[datatype]).reshape(shape)
    if datatype is Datatype.BOOL and int(array.view(np.uint8).max()) > 1:
        raise InputError(f"tensor {name[:80]!r} is BOOL and has a byte that is neither 0 nor 1")
    # ARM runtimes may load vectors that must be aligned; the server aligns large bodies, so only small ones are copied.
    return array if array.flags.aligned else array.copy()


def encode_blob(datatype: Datatype, array: Tensor) -> bytes | memoryview:
    """Wire bytes of `array`; large ones are a view of its memory.

    Raises:
        InputError: An element of a BYTES array is neither bytes nor str.
    """
    return _encode_bytes(array) if datatype is Datatype.BYTES else encode_numbers(array)


def encode_numbers(array: Tensor) -> bytes | memoryview:
    """Wire bytes of an array that is not BYTES; large ones are a view of its memory."""
    if array.nbytes <= 4096 or not array.flags.c_contiguous:
        return array.tobytes()
    return array.data.cast("B")


def _decode_bytes(name: str, shape: tuple[int, ...], count: int, blob: memoryview) -> Tensor:
    if count * _LENGTH.size > len(blob):
        raise InputError(f"tensor {name[:80]!r} has {len(blob)} bytes, {count} BYTES elements need more")
    elements = np.empty(count, object)
    at = 0
    for index in range(count):
        start = at + _LENGTH.size
        if start > len(blob):
            raise InputError(f"tensor {name[:80]!r} ends within element {index} of {count}")
        at = start + int(_LENGTH.unpack_from(blob, at)[0])
        if at > len(blob):
            raise InputError(f"tensor {name[:80]!r} ends within element {index} of {count}")
        elements[index] = bytes(blob[start:at])
    if at != len(blob):
        raise InputError(f"tensor {name[:80]!r} has {len(blob) - at} bytes behind its {count} elements")
    return elements.reshape(shape)


def _encode_bytes(array: Tensor) -> bytes:
    parts: list[bytes] = []
    for element in array.ravel().tolist():
        data = element.encode() if isinstance(element, str) else element
        if not isinstance(data, bytes):
            raise InputError(f"a BYTES tensor holds bytes or str, not {type(element).__name__}")
        parts += (_LENGTH.pack(len(data)), data)
    return b"".join(parts)
