"""JSON without shapes and datatypes, as TensorFlow Serving's and KServe's V1 protocols write tensors. Pure.

A tensor is a nested list whose shape is the data's own and whose datatype is the model's; bytes are `{"b64": ...}`; the
tokens NaN, Infinity and -Infinity are allowed both ways (TensorFlow Serving "RESTful API", "JSON mapping").
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final

import msgspec
import numpy as np

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.limits import MAX_TENSOR_RANK
from edgeserve.contracts.tensors import Datatype, TensorSpec
from edgeserve.runtimes.base import Tensor, Tensors
from edgeserve_agent.serving.codec.json_tensors import JSON_TYPES, depth_of

_TOKENS: Final = (b"NaN", b"Infinity")
_LIST: Final = list[msgspec.Raw]
_OBJECT: Final = dict[str, msgspec.Raw]
_NOTHING: Final[Mapping[str, bytes]] = MappingProxyType({})
_ERRORS: Final = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)
_BYTES_SUFFIX: Final = "_bytes"
"""Outputs whose names end so are base64, as in TensorFlow Serving."""


class Base64(msgspec.Struct, frozen=True):
    """Bytes in JSON."""

    b64: str


_TYPES: Final = {**JSON_TYPES, Datatype.FP16: float, Datatype.BYTES: str | Base64}
_decoder: Final = lru_cache(maxsize=256)(msgspec.json.Decoder)


def tensor(spec: TensorSpec, data: bytes) -> Tensor:
    """Read one tensor.

    Args:
        spec: Of the model's input.
        data: JSON: a nested list, or one value for a scalar.

    Raises:
        InputError: It is none, is ragged, or its values are not of the model's datatype.
    """
    what = f"input {spec.name!r}"
    depth = depth_of(data)
    if depth > MAX_TENSOR_RANK:
        raise InputError(f"{what} is nested {depth} deep, at most {MAX_TENSOR_RANK} is allowed")
    if spec.datatype is Datatype.BF16:
        raise InputError(f"{what} is BF16, which has no JSON form")
    values = _values(spec.datatype, depth, data, what)
    try:
        with np.errstate(over="raise"):
            array = np.array(values, np.dtype(spec.datatype.numpy_name))
    except ValueError as error:
        raise InputError(f"{what}: the lists have unequal lengths") from error
    except (OverflowError, FloatingPointError) as error:
        raise InputError(f"{what}: a number does not fit {spec.datatype.value}") from error
    if array.ndim != depth:  # ragged texts make an array of lists
        raise InputError(f"{what}: the lists have unequal lengths")
    return _bytes(what, array) if spec.datatype is Datatype.BYTES else array


def from_rows(specs: Sequence[TensorSpec], instances: bytes, context: Mapping[str, bytes] = _NOTHING) -> Tensors:
    """Read `instances`: one element for each row, a value for a model with one input, else an object by input.

    Args:
        specs: Of the model's inputs.
        instances: JSON.
        context: Values, as JSON, by input: every object has those that it does not have itself.

    Raises:
        InputError: It is not that.
    """
    rows = _elements(instances)
    if not rows:
        raise InputError("there are no instances: the list is empty")
    objects = all(row.lstrip()[:1] == b"{" for row in rows)
    if not context and (not objects or _is_bytes(specs, rows[0])):
        return {_only(specs).name: tensor(_only(specs), instances)}
    named = [{**context, **fields(row, "an instance")} for row in rows]
    names = named[0].keys()
    if any(row.keys() != names for row in named):
        raise InputError("the instances do not all name the same inputs")
    return _named(specs, {name: b"[%s]" % b",".join(row[name] for row in named) for name in names})


def from_columns(specs: Sequence[TensorSpec], inputs: bytes) -> Tensors:
    """Read `inputs`: a whole tensor for a model with one input, else an object of tensors by input.

    Raises:
        InputError: It is not that.
    """
    if inputs.lstrip()[:1] == b"{" and not _is_bytes(specs, inputs):
        return _named(specs, fields(inputs, "inputs"))
    return {_only(specs).name: tensor(_only(specs), inputs)}


def to_rows(specs: Sequence[TensorSpec], outputs: Mapping[str, Tensor]) -> list[Any]:
    """Make `predictions`: one element for each row; its value where there is one output, else an object.

    Raises:
        InputError: Outputs have no rows, or not the same number.
    """
    if any(array.ndim == 0 for array in outputs.values()) or len({len(array) for array in outputs.values()}) != 1:
        raise InputError(
            "the outputs do not have the same number of rows", hint='send "inputs" in place of "instances"'
        )
    columns = to_columns(specs, outputs)
    if len(specs) == 1:
        rows: list[Any] = columns
        return rows
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def to_columns(specs: Sequence[TensorSpec], outputs: Mapping[str, Tensor]) -> Any:  # noqa: ANN401 - JSON
    """Make `outputs`: the tensor where there is one output, else an object of them.

    Raises:
        InputError: An output has no JSON form.
    """
    columns = {spec.name: _list_of(spec, outputs[spec.name]) for spec in specs}
    return columns[specs[0].name] if len(specs) == 1 else columns


def encode(document: object) -> bytes:
    """JSON with NaN and infinities as tokens."""
    # The quick encoder writes null for both: only look for them where there may be one.
    encoded = msgspec.json.encode(document)
    return json.dumps(document, separators=(",", ":")).encode() if b"null" in encoded else encoded


def fields(data: bytes | memoryview, what: str = "the body") -> dict[str, bytes]:
    """The fields of an object, not yet read.

    Raises:
        InputError: It is not a JSON object.
    """
    parts = _parts(_OBJECT, bytes(data), f"{what} is not a JSON object")
    return {name: bytes(part) for name, part in parts.items()}


@lru_cache(maxsize=256)
def _kind(datatype: Datatype, depth: int) -> Any:  # noqa: ANN401 - a type
    kind: Any = _TYPES[datatype]
    for _ in range(depth):
        kind = list[kind]
    return kind


def _values(datatype: Datatype, depth: int, data: bytes, what: str) -> Any:  # noqa: ANN401 - nested lists
    try:
        return _decoder(_kind(datatype, depth)).decode(data)
    except _ERRORS as error:
        if _TYPES[datatype] is not float or not _has_tokens(data):
            raise InputError(f"{what}: {error}") from error
    try:
        return msgspec.convert(json.loads(data), _kind(datatype, depth))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{what}: {error}") from error


def _parts(kind: type[Any], data: bytes, complaint: str) -> Any:  # noqa: ANN401 - of `kind`
    """A JSON list or object whose parts are still JSON."""
    try:
        return msgspec.json.decode(data, type=kind)
    except _ERRORS as error:
        if not _has_tokens(data):
            raise InputError(f"{complaint}: {error}") from error
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{complaint}: {error}") from error
    if isinstance(found, list) and kind is _LIST:
        return [_written(part) for part in found]
    if isinstance(found, dict) and kind is _OBJECT:
        return {name: _written(part) for name, part in found.items()}
    raise InputError(complaint)


def _written(value: object) -> msgspec.Raw:
    return msgspec.Raw(json.dumps(value).encode())


def _has_tokens(data: bytes) -> bool:
    return any(token in data for token in _TOKENS)


def _elements(data: bytes) -> list[bytes]:
    return [bytes(part) for part in _parts(_LIST, data, "instances is not a list")]


def _bytes(what: str, array: Tensor) -> Tensor:
    found = np.empty(array.size, object)
    found[:] = [_element(what, value) for value in array.ravel().tolist()]
    return found.reshape(array.shape)


def _element(what: str, value: str | Base64) -> bytes:
    if isinstance(value, str):
        return value.encode()
    try:
        return base64.b64decode(value.b64, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"{what}: {value.b64[:40]!r} is not base64: {error}") from error


def _is_bytes(specs: Sequence[TensorSpec], data: bytes) -> bool:
    """Whether an object is the bytes of the only input, not inputs by name."""
    return len(specs) == 1 and specs[0].datatype is Datatype.BYTES and fields(data).keys() == {"b64"}


def _only(specs: Sequence[TensorSpec]) -> TensorSpec:
    if len(specs) != 1:
        names = ", ".join(spec.name for spec in specs)
        raise InputError(f"the model has the inputs {names}: give an object with a value for each")
    return specs[0]


def _named(specs: Sequence[TensorSpec], columns: Mapping[str, bytes]) -> Tensors:
    known = {spec.name: spec for spec in specs}
    unknown = next((name for name in columns if name not in known), None)
    if unknown is not None:
        raise InputError(f"input {unknown[:80]!r} is not one of the model's: {', '.join(known)}")
    return {name: tensor(known[name], data) for name, data in columns.items()}


def _list_of(spec: TensorSpec, array: Tensor) -> Any:  # noqa: ANN401 - nested lists
    if spec.datatype is Datatype.BF16:
        raise InputError(f"output {spec.name!r} is BF16, which has no JSON form", hint="ask for it binary, over /v2")
    if spec.datatype is not Datatype.BYTES:
        values: Any = array.tolist()
        return values
    shown = np.empty(array.size, object)
    shown[:] = [_shown(spec, value) for value in array.ravel().tolist()]
    return shown.reshape(array.shape).tolist()


def _shown(spec: TensorSpec, value: bytes | str) -> Any:  # noqa: ANN401 - a text or an object
    data = value.encode() if isinstance(value, str) else value
    if not spec.name.endswith(_BYTES_SUFFIX):
        with contextlib.suppress(UnicodeDecodeError):
            return data.decode()
    return {"b64": base64.b64encode(data).decode()}
