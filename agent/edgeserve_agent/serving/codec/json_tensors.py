"""Numbers and texts of a tensor in JSON (Open Inference Protocol v2 REST, "Tensor Data"). Pure."""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Any, Final

import msgspec
import numpy as np

from edgeserve.client.blobs import element_count
from edgeserve.contracts.errors import InputError
from edgeserve.contracts.tensors import Datatype
from edgeserve.runtimes.base import Tensor

NO_JSON: Final = (Datatype.FP16, Datatype.BF16)
"""Datatypes that the protocol carries as binary tensors only."""


def explained(json: bytes, error: Exception) -> str:
    """Say what is wrong with a request's JSON."""
    if "malformed" in str(error) and any(token in json for token in (b"NaN", b"Infinity")):
        return "JSON has no NaN or Infinity: send such values as a binary tensor (binary_data_size)"
    return f"the request is not an inference request: {error}"


def from_json(name: str, datatype: Datatype, shape: tuple[int, ...], given: bytes | msgspec.Raw) -> Tensor:
    """Make an array of an input's `data`, nested as its shape or flat.

    Raises:
        InputError: It is not such data; the message names the input.
    """
    count = element_count(name, shape)
    data = bytes(given)
    name = name[:80]
    if not data:
        raise InputError(f"input {name!r} has neither data nor binary_data_size")
    if datatype in NO_JSON:
        raise InputError(f"input {name!r} is {datatype.value}, which has no JSON form: send it as a binary tensor")
    depth = depth_of(data)
    if depth not in (1, len(shape)):
        raise InputError(
            f"input {name!r}: data is nested {depth} deep, it must be flat or as deep as shape {list(shape)}"
        )
    try:
        values = _values_decoder(datatype, depth).decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise InputError(f"input {name!r}: {explained(data, error)}") from error
    try:
        if datatype is Datatype.FP32:
            with np.errstate(over="raise"):
                array = np.array(values, np.float32)
        else:
            array = np.array(values, np.dtype(datatype.numpy_name))
    except ValueError as error:
        raise InputError(f"input {name!r}: the lists of data have unequal lengths") from error
    except (OverflowError, FloatingPointError) as error:
        raise InputError(f"input {name!r}: a number does not fit {datatype.value}") from error
    if array.ndim != depth:  # ragged strings make an array of lists
        raise InputError(f"input {name!r}: the lists of data have unequal lengths")
    if array.size != count or (depth > 1 and array.shape != shape):
        raise InputError(
            f"input {name!r}: data has shape {list(array.shape)}, shape {list(shape)} was declared, {count} elements"
        )
    if datatype is Datatype.BYTES:
        array = np.array([text.encode() for text in array.ravel().tolist()], object)
    return array.reshape(shape)


def depth_of(data: bytes) -> int:
    """How many lists begin before the first number."""
    lead = data[: len(data) - len(data.lstrip(b" \t\r\n["))]
    return lead.count(b"[")


JSON_TYPES: Final[dict[Datatype, Any]] = {
    Datatype.BOOL: bool,
    Datatype.UINT8: Annotated[int, msgspec.Meta(ge=0, le=2**8 - 1)],
    Datatype.UINT16: Annotated[int, msgspec.Meta(ge=0, le=2**16 - 1)],
    Datatype.UINT32: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)],
    Datatype.UINT64: Annotated[int, msgspec.Meta(ge=0)],
    Datatype.INT8: Annotated[int, msgspec.Meta(ge=-(2**7), le=2**7 - 1)],
    Datatype.INT16: Annotated[int, msgspec.Meta(ge=-(2**15), le=2**15 - 1)],
    Datatype.INT32: Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)],
    Datatype.INT64: int,
    Datatype.FP32: float,
    Datatype.FP64: float,
    Datatype.BYTES: str,
}


@lru_cache(maxsize=256)
def _values_decoder(datatype: Datatype, depth: int) -> msgspec.json.Decoder[Any]:
    kind: Any = JSON_TYPES[datatype]
    for _ in range(depth):
        kind = list[kind]
    return msgspec.json.Decoder(kind)


def to_json(name: str, datatype: Datatype, array: Tensor) -> list[Any]:
    """Elements of an output in row-major order, texts for BYTES.

    Raises:
        InputError: An element of BYTES is not UTF-8, or the datatype has no JSON form.
    """
    if datatype in NO_JSON:
        raise InputError(f"output {name!r} is {datatype.value}, which has no JSON form: ask for binary_data")
    values: list[Any] = array.ravel().tolist()
    if datatype is not Datatype.BYTES:
        return values
    try:
        return [value if isinstance(value, str) else value.decode() for value in values]
    except UnicodeDecodeError:
        raise InputError(f"output {name!r} holds bytes that are not UTF-8: ask for binary_data") from None
