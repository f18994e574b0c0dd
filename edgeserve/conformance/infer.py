"""Inference requests and answers over HTTP: arrays to JSON or binary data and back, checked on the way."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Final

import numpy as np

from edgeserve.client.blobs import Tensor, decode_blob, encode_blob
from edgeserve.conformance.check import Violation
from edgeserve.conformance.http import Answer
from edgeserve.contracts.errors import InputError
from edgeserve.contracts.tensors import Datatype

HEAD_LENGTH: Final = "Inference-Header-Content-Length"

_KINDS: Final[dict[Datatype, tuple[type, ...]]] = {
    Datatype.BOOL: (bool, int),
    Datatype.BYTES: (str,),
    Datatype.FP16: (int, float),
    Datatype.FP32: (int, float),
    Datatype.FP64: (int, float),
    Datatype.BF16: (int, float),
}
"""JSON values that an element may have; integers for the rest."""


@dataclass(frozen=True, kw_only=True)
class Given:
    """One input tensor as it is to be sent."""

    name: str
    datatype: Datatype
    array: Tensor
    """BF16 as its bits in uint16, BYTES as objects (`bytes`)."""
    binary: bool = False
    nested: bool = False
    """JSON data in its natural dimensions; else flat."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the JSON object that are to be other than right; `None` leaves a field out."""

    def data(self) -> list[Any]:
        """The elements as JSON."""
        return list(_listed(self.datatype, self.array if self.nested else self.array.reshape(-1)))


@dataclass(frozen=True, kw_only=True)
class Got:
    """One output tensor as it came."""

    datatype: Datatype
    shape: tuple[int, ...]
    array: Tensor
    binary: bool


def build(
    inputs: Sequence[Given],
    *,
    outputs: Sequence[Mapping[str, Any]] | None = None,
    parameters: Mapping[str, Any] | None = None,
    request_id: str | None = None,
) -> tuple[bytes, dict[str, str]]:
    """Make the body and headers of an inference request."""
    blobs: list[bytes] = []
    described = []
    for given in inputs:
        entry: dict[str, Any] = {
            "name": given.name,
            "shape": list(given.array.shape),
            "datatype": given.datatype.value,
        }
        if given.binary:
            blob = bytes(encode_blob(given.datatype, given.array))
            blobs.append(blob)
            entry["parameters"] = {"binary_data_size": len(blob)}
        else:
            entry["data"] = given.data()
        entry |= given.changes
        described.append({name: value for name, value in entry.items() if value is not None})
    document: dict[str, Any] = {} if request_id is None else {"id": request_id}
    if parameters is not None:
        document["parameters"] = dict(parameters)
    document["inputs"] = described
    if outputs is not None:
        document["outputs"] = [dict(output) for output in outputs]
    head = json.dumps(document).encode()
    if not any(given.binary for given in inputs):
        return head, {"Content-Type": "application/json"}
    return b"".join((head, *blobs)), {HEAD_LENGTH: str(len(head)), "Content-Type": "application/octet-stream"}


def head(answer: Answer) -> tuple[dict[str, Any], memoryview | None]:
    """The JSON object of a 200 inference answer, and its binary data where it has some."""
    answer.ok()
    declared = answer.headers.get(HEAD_LENGTH)
    if declared is None:
        return answer.document(), None
    answer.must(declared.isdigit() and int(declared) <= len(answer.body), f"{HEAD_LENGTH} within the body", declared)
    cut = int(declared)
    try:
        found = json.loads(answer.body[:cut])
    except ValueError:
        found = None
    answer.must(isinstance(found, dict), f"a JSON object in the first {cut} bytes of the body")
    return found, memoryview(answer.body)[cut:]


def outputs_of(answer: Answer) -> dict[str, Got]:
    """Every output by name; shape, datatype and data must fit one another."""
    document, blob = head(answer)
    listed = document.get("outputs")
    answer.must(isinstance(listed, list), 'an array "outputs"')
    found: dict[str, Got] = {}
    position = 0
    for entry in listed or ():
        answer.must(isinstance(entry, dict) and isinstance(entry.get("name"), str), "outputs that have names")
        name = str(entry["name"])
        datatype, shape = _described(answer, name, entry)
        parameters = entry.get("parameters") or {}
        answer.must(isinstance(parameters, dict), f"an object of parameters in output {name!r}", repr(parameters))
        size = parameters.get("binary_data_size")
        if size is None:
            array, binary = _of_json(answer, name, datatype, shape, entry.get("data")), False
        else:
            answer.must(type(size) is int and size >= 0, f"a whole number of bytes for output {name!r}", repr(size))
            answer.must(
                blob is not None or size == 0, f"the header {HEAD_LENGTH}, for output {name!r} has a binary_data_size"
            )
            answer.must("data" not in entry, f"no data beside binary_data_size in output {name!r}")
            part = memoryview(b"" if blob is None else blob)[position : position + size]
            position += size
            array, binary = _of_blob(answer, name, datatype, shape, part, size), True
        found[name] = Got(datatype=datatype, shape=shape, array=array, binary=binary)
    answer.must(
        position == (0 if blob is None else len(blob)),
        f"{position} bytes of binary data, the sum of all binary_data_size",
        f"{0 if blob is None else len(blob)}",
    )
    return found


def same(left: Tensor, right: Tensor) -> bool:
    """Equal in shape and every element, NaN equal to NaN."""
    if left.shape != right.shape:
        return False
    if left.dtype == object or right.dtype == object:
        return [_bytes(value) for value in left.ravel()] == [_bytes(value) for value in right.ravel()]
    return np.array_equal(left, right, equal_nan=left.dtype.kind == "f")


def show(array: Tensor) -> str:
    """The first elements, for a finding."""
    return f"shape {list(array.shape)}, {array.ravel()[:6].tolist()}{'...' if array.size > 6 else ''}"


def _described(answer: Answer, name: str, entry: Mapping[str, Any]) -> tuple[Datatype, tuple[int, ...]]:
    shape = entry.get("shape")
    fits = isinstance(shape, list) and all(type(size) is int and size >= 0 for size in shape)
    answer.must(fits, f"output {name!r} with a shape of whole numbers", repr(shape))
    try:
        datatype = Datatype(entry.get("datatype"))
    except ValueError:
        expected = f"output {name!r} with a datatype of the protocol"
        raise Violation(sent=answer.sent, expected=expected, got=repr(entry.get("datatype"))) from None
    return datatype, tuple(shape or ())


def _of_json(answer: Answer, name: str, datatype: Datatype, shape: tuple[int, ...], data: object) -> Tensor:
    answer.must(isinstance(data, list), f"output {name!r} with an array of data")
    flat = _flattened(data)
    kinds = _KINDS.get(datatype, (int,))
    answer.must(
        all(isinstance(value, kinds) for value in flat),
        f"data of output {name!r} to be {datatype.value}",
        repr(flat[:4]),
    )
    count = prod(shape)
    answer.must(len(flat) == count, f"{count} elements in output {name!r} of shape {list(shape)}", str(len(flat)))
    if datatype is Datatype.BYTES:
        array = np.empty(count, dtype=object)
        array[:] = [str(value).encode() for value in flat]
        return array.reshape(shape)
    kind = "float32" if datatype is Datatype.BF16 else datatype.numpy_name
    try:
        return np.array(flat, dtype=kind).reshape(shape)
    except (OverflowError, ValueError) as error:
        expected = f"data of output {name!r} in the range of {datatype.value}"
        raise Violation(sent=answer.sent, expected=expected, got=str(error)) from error


def _of_blob(
    answer: Answer, name: str, datatype: Datatype, shape: tuple[int, ...], part: memoryview, size: int
) -> Tensor:
    answer.must(len(part) == size, f"{size} bytes of binary data for output {name!r}", f"{len(part)}")
    try:
        return decode_blob(name, datatype, shape, part)
    except InputError as error:
        expected = f"{size} bytes that are {datatype.value} {list(shape)} for output {name!r}"
        raise Violation(sent=answer.sent, expected=expected, got=error.message) from error


def _listed(datatype: Datatype, array: Tensor) -> list[Any]:
    if array.ndim > 1:
        return [_listed(datatype, row) for row in array]
    if datatype is Datatype.BYTES:
        return [_bytes(value).decode() for value in array]
    if datatype is Datatype.BF16:
        return (array.astype(np.uint32) << 16).view(np.float32).tolist()  # type: ignore[no-any-return]
    return array.tolist()  # type: ignore[no-any-return]


def _bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def _flattened(data: object) -> list[Any]:
    if not isinstance(data, list):
        return [data]
    return [value for part in data for value in _flattened(part)]
