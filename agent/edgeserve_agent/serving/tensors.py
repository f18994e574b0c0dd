"""Inference requests and responses of the Open Inference Protocol v2: bytes to arrays and back. Pure.

JSON is Open Inference Protocol v2 REST, "Inference Request JSON Object"; binary is Triton's "binary tensor data"
extension: the JSON comes first, the tensors' bytes behind it in order, without padding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Final

import msgspec
import numpy as np

from edgeserve.client.blobs import decode_blob, element_count, encode_blob
from edgeserve.contracts.errors import EdgeServeError, InputError
from edgeserve.contracts.limits import MAX_CACHED_HEAD_BYTES, MAX_CACHED_HEADS
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve.runtimes.base import Tensor, Tensors

Parameters = dict[str, Any]


class RequestInput(msgspec.Struct, frozen=True, kw_only=True):
    """One element of `inputs`."""

    name: str
    shape: tuple[int, ...]
    datatype: Datatype
    parameters: Parameters = {}
    data: msgspec.Raw = msgspec.Raw()


class RequestOutput(msgspec.Struct, frozen=True, kw_only=True):
    """One element of `outputs`."""

    name: str
    parameters: Parameters = {}


class RequestHead(msgspec.Struct, frozen=True, kw_only=True):
    """The JSON of an inference request."""

    inputs: tuple[RequestInput, ...]
    id: str = ""
    parameters: Parameters = {}
    outputs: tuple[RequestOutput, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class InferRequest:
    """A request in terms of the model."""

    id: str
    inputs: Tensors
    form: OutputForm


@dataclass(frozen=True, slots=True)
class OutputForm:
    """Which outputs are wanted and how: name -> binary; `None` = all of them, as `binary` says."""

    wanted: Mapping[str, bool] | None
    binary: bool

    def of(self, signature: Signature) -> list[tuple[TensorSpec, bool]]:
        """Specs of the outputs to send and whether each is binary, in the order asked for.

        Raises:
            InputError: The model has no such output, or it has no JSON form.
        """
        if self.wanted is None:
            chosen = [(spec, self.binary) for spec in signature.outputs]
        else:
            specs = {spec.name: spec for spec in signature.outputs}
            unknown = next((name for name in self.wanted if name not in specs), None)
            if unknown is not None:
                known = ", ".join(specs)
                raise InputError(f"output {unknown[:80]!r} is not one of the model's: {known}")
            chosen = [(specs[name], binary) for name, binary in self.wanted.items()]
        for spec, binary in chosen:
            if not binary and spec.datatype is Datatype.FP16:
                raise InputError(f"output {spec.name!r} is FP16, which has no JSON form: ask for binary_data")
        return chosen


@dataclass(frozen=True, slots=True)
class _Blob:
    """Where the bytes of one input lie behind the JSON."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class _Plan:
    """A parsed head; all that is left is to cut the binary tensors."""

    id: str
    blobs: tuple[_Blob, ...]
    arrays: Tensors
    form: OutputForm
    tail: int
    """Bytes behind the JSON."""
    names: tuple[str, ...]


_HEAD: Final = msgspec.json.Decoder(RequestHead)
_UNSUPPORTED: Final = {
    "shared_memory_region": "shared memory is not supported: send the tensor in the request",
    "classification": "the classification extension is not supported: ask for the scores",
}


class RequestDecoder:
    """Decodes inference requests; heads without an id are parsed once and found again by their bytes."""

    def __init__(self) -> None:
        self._plans: dict[bytes, _Plan] = {}

    def decode(self, body: bytes | memoryview, head_length: int | None) -> InferRequest:
        """Read one request.

        Args:
            body: The whole body.
            head_length: Bytes of JSON at its start (`Inference-Header-Content-Length`); None = all is JSON.

        Raises:
            InputError: It is not a request that the protocol allows; whether it fits the model is not looked at.
        """
        if head_length is None:
            plan = _plan(body)
        else:
            if not 0 < head_length <= len(body):
                raise InputError(
                    f"Inference-Header-Content-Length is {head_length}, it must be 1 to the body's {len(body)}"
                )
            head = bytes(body[:head_length])
            found = self._plans.get(head)
            plan = found if found is not None else self._parsed(head)
        tail = len(body) - (head_length if head_length is not None else len(body))
        if tail != plan.tail:
            raise InputError(f"{tail} bytes follow the JSON, the inputs' binary_data_size add up to {plan.tail}")
        if not plan.blobs:
            return InferRequest(id=plan.id, inputs=plan.arrays, form=plan.form)
        blobs = memoryview(body)[len(body) - tail :]
        inputs = {
            blob.name: decode_blob(blob.name, blob.datatype, blob.shape, blobs[blob.start : blob.end])
            for blob in plan.blobs
        }
        if plan.arrays:
            inputs = {name: inputs[name] if name in inputs else plan.arrays[name] for name in plan.names}
        return InferRequest(id=plan.id, inputs=inputs, form=plan.form)

    def _parsed(self, head: bytes) -> _Plan:
        plan = _plan(head)
        # A head with an id rarely comes again; one with numbers in it would keep them in memory.
        if not plan.id and not plan.arrays and len(head) <= MAX_CACHED_HEAD_BYTES:
            if len(self._plans) >= MAX_CACHED_HEADS:
                self._plans.clear()
            self._plans[head] = plan
        return plan


def encode_response(
    *, model: str, version: str, request_id: str, outputs: Mapping[str, Tensor], form: list[tuple[TensorSpec, bool]]
) -> tuple[list[bytes | memoryview], int | None]:
    """Make the body of a response.

    NaN and infinities, which JSON lacks, become `null` in JSON outputs, as in ECMAScript.

    Args:
        model: Name of the model.
        version: Its version.
        request_id: Echoed when it is not empty.
        outputs: Every output of the model.
        form: What `OutputForm.of` said.

    Returns:
        The chunks of the body, and the length of the JSON at its start, None when all of it is JSON.

    Raises:
        InputError: A BYTES output that was asked for as JSON is not UTF-8.
    """
    described: list[dict[str, object]] = []
    chunks: list[bytes | memoryview] = []
    any_binary = False
    for spec, binary in form:
        array = outputs[spec.name]
        output: dict[str, object] = {"name": spec.name, "datatype": spec.datatype.value, "shape": array.shape}
        if binary:
            any_binary = True
            blob = encode_blob(spec.datatype, array)
            output["parameters"] = {"binary_data_size": len(blob)}
            chunks.append(blob)
        else:
            output["data"] = _to_json(spec, array)
        described.append(output)
    document: dict[str, object] = {"model_name": model, "model_version": version}
    if request_id:
        document["id"] = request_id
    document["outputs"] = described
    head = msgspec.json.encode(document)
    return [head, *chunks], len(head) if any_binary else None


def json_outputs(signature: Signature, outputs: Mapping[str, Tensor]) -> list[dict[str, object]]:
    """What there is of a model's outputs, each as an element of `outputs` with its numbers in JSON.

    Raises:
        InputError: An output has no JSON form.
    """
    form = OutputForm({spec.name: False for spec in signature.outputs if spec.name in outputs}, binary=False)
    found = [(spec, outputs[spec.name]) for spec, _binary in form.of(signature)]
    return [
        {"name": spec.name, "datatype": spec.datatype.value, "shape": array.shape, "data": _to_json(spec, array)}
        for spec, array in found
    ]


def _plan(json: bytes | memoryview) -> _Plan:
    try:
        head = _HEAD.decode(json)
    except (msgspec.DecodeError, EdgeServeError, RecursionError, UnicodeDecodeError) as error:
        raise InputError(_explained(bytes(json), error)) from error
    blobs: list[_Blob] = []
    arrays: Tensors = {}
    end = 0
    for tensor in head.inputs:
        _refuse_unsupported(tensor.parameters)
        size = tensor.parameters.get("binary_data_size")
        data = bytes(tensor.data)
        if size is None:
            arrays[tensor.name] = _from_json(tensor, data)
            continue
        if type(size) is not int or size < 0:
            raise InputError(f"input {tensor.name[:80]!r}: binary_data_size {size!r} is not a number of bytes")
        if data:
            raise InputError(f"input {tensor.name[:80]!r} has both data and binary_data_size")
        start, end = end, end + size
        blobs.append(_Blob(tensor.name, tensor.datatype, tensor.shape, start, end))
    names = tuple(tensor.name for tensor in head.inputs)
    if len(set(names)) != len(names):
        raise InputError("two inputs have the same name")
    return _Plan(head.id, tuple(blobs), arrays, _form(head), end, names)


def _form(head: RequestHead) -> OutputForm:
    default = _flag(head.parameters, "binary_data_output", default=False)
    if not head.outputs:
        return OutputForm(None, default)
    for output in head.outputs:
        _refuse_unsupported(output.parameters)
    wanted = {output.name: _flag(output.parameters, "binary_data", default=default) for output in head.outputs}
    return OutputForm(wanted, default)


def _flag(parameters: Parameters, name: str, *, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise InputError(f"parameter {name} is {str(value)[:40]!r}, it must be true or false")
    return value


def _refuse_unsupported(parameters: Parameters) -> None:
    for name, why in _UNSUPPORTED.items():
        if name in parameters:
            raise InputError(why)


def _explained(json: bytes, error: Exception) -> str:
    if "malformed" in str(error) and any(token in json for token in (b"NaN", b"Infinity")):
        return "JSON has no NaN or Infinity: send such values as a binary tensor (binary_data_size)"
    return f"the request is not an inference request: {error}"


def _from_json(tensor: RequestInput, data: bytes) -> Tensor:
    name, datatype = tensor.name[:80], tensor.datatype
    if not data:
        raise InputError(f"input {name!r} has neither data nor binary_data_size")
    if datatype is Datatype.FP16:
        raise InputError(f"input {name!r} is FP16, which has no JSON form: send it as a binary tensor")
    count = element_count(tensor.name, tensor.shape)
    depth = _depth(data)
    if depth not in (1, len(tensor.shape)):
        raise InputError(
            f"input {name!r}: data is nested {depth} deep, it must be flat or as deep as shape {list(tensor.shape)}"
        )
    try:
        values = _values_decoder(datatype, depth).decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InputError(f"input {name!r}: {_explained(data, error)}") from error
    try:
        with np.errstate(over="raise"):
            array = np.array(values, np.dtype(datatype.numpy_name))
    except ValueError as error:
        raise InputError(f"input {name!r}: the lists of data have unequal lengths") from error
    except (OverflowError, FloatingPointError) as error:
        raise InputError(f"input {name!r}: a number does not fit {datatype.value}") from error
    if array.ndim != depth:  # ragged strings make an array of lists
        raise InputError(f"input {name!r}: the lists of data have unequal lengths")
    if array.size != count or (depth > 1 and array.shape != tensor.shape):
        raise InputError(
            f"input {name!r}: data has shape {list(array.shape)}, "
            f"shape {list(tensor.shape)} was declared, {count} elements"
        )
    if datatype is Datatype.BYTES:
        array = np.array([text.encode() for text in array.ravel().tolist()], object)
    return array.reshape(tensor.shape)


def _depth(data: bytes) -> int:
    depth = 0
    for byte in data:
        if byte == 0x5B:  # [
            depth += 1
        elif byte not in b" \t\r\n":
            break
    return depth


_RANGES: Final[dict[Datatype, Any]] = {
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
    kind: Any = _RANGES[datatype]
    for _ in range(depth):
        kind = list[kind]
    return msgspec.json.Decoder(kind)


def _to_json(spec: TensorSpec, array: Tensor) -> list[Any]:
    values: list[Any] = array.ravel().tolist()
    if spec.datatype is not Datatype.BYTES:
        return values
    try:
        return [value if isinstance(value, str) else value.decode() for value in values]
    except UnicodeDecodeError:
        raise InputError(f"output {spec.name!r} holds bytes that are not UTF-8: ask for binary_data") from None
