"""`ModelInferRequest` to arrays, and what the answer is to look like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from edgeserve.client.blobs import decode_blob, element_count
from edgeserve.client.oip_schema import CONTENTS_FIELDS
from edgeserve.contracts.errors import InputError
from edgeserve.contracts.limits import MAX_TENSOR_RANK
from edgeserve.contracts.tensors import Datatype, Signature
from edgeserve.runtimes.base import Tensor, Tensors
from edgeserve_agent.serving.call import Call, Done
from edgeserve_agent.serving.call import Sequence as RequestSequence
from edgeserve_agent.serving.codec.head import RequestOutput, number, own_parameters, sequence_of
from edgeserve_agent.serving.codec.wishes import Form, Wish, region_ref, view, wishes_of
from edgeserve_agent.serving.regions import RegionRef, Regions
from edgeserve_agent.serving.rpc import Message
from edgeserve_agent.serving.served import Identity, ServedRelease

_NARROW: Final = (Datatype.INT8, Datatype.INT16, Datatype.UINT8, Datatype.UINT16)
"""Datatypes whose elements come in wider numbers."""
_COUNTS: Final = frozenset(
    {
        "priority", "timeout", "sequence_id", "classification",
        "shared_memory_offset", "shared_memory_byte_size",
    }
)  # fmt: skip
_STREAM_ONLY: Final = "triton_enable_empty_final_response"
_EMPTY: Final = memoryview(b"")


@dataclass(frozen=True, slots=True)
class HeadInput:
    """One of `inputs`, without its bytes."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    ref: RegionRef | None = None
    """It lies in shared memory."""
    array: Tensor | None = None
    """It came in `contents`."""


@dataclass(slots=True, kw_only=True)
class Plan:
    """A head held against a release."""

    identity: Identity
    signature: Signature
    wishes: tuple[Wish, ...]
    plain: bool
    """All outputs are numbers that are sent as they are."""
    prefixes: dict[Any, tuple[bytes, ...]] = field(default_factory=dict)
    """By shapes of the outputs: what comes before each of `raw_output_contents`; before the first, the whole head."""


@dataclass(slots=True, kw_only=True)
class Head:
    """A request without `id` and `raw_input_contents`; it holds for every release of the model."""

    model: str
    version: str
    inputs: tuple[HeadInput, ...]
    outputs: tuple[RequestOutput, ...]
    priority: int
    timeout_us: int
    sequence: RequestSequence | None
    parameters: Mapping[str, Any]
    raw: bool
    """All inputs are in `raw_input_contents`, if that has as many."""
    typed: bool
    """An input is in `contents`."""
    bare: bool
    """It has neither priority, timeout, sequence nor parameters."""
    plan: Plan | None = None
    """With the release that it met last. A plan holds no model: this may outlive the release."""


def read_head(message: Any) -> Head:  # noqa: ANN401 - protobuf has no types
    """Take over all of a parsed `ModelInferRequest` but its id and its raw tensors.

    Raises:
        InputError: It is not a request that the protocol allows.
    """
    inputs = tuple(_input(tensor) for tensor in message.inputs)
    if len({tensor.name for tensor in inputs}) != len(inputs):
        raise InputError("two inputs have the same name")
    parameters = parameters_of(message.parameters)
    return Head(
        model=message.model_name,
        version=message.model_version,
        inputs=inputs,
        outputs=tuple(_output(output) for output in message.outputs),
        priority=number(parameters, "priority", most=(1 << 32) - 1),
        timeout_us=number(parameters, "timeout"),
        sequence=sequence_of(parameters),
        parameters=own_parameters({name: value for name, value in parameters.items() if name != _STREAM_ONLY}),
        raw=all(tensor.array is None and tensor.ref is None for tensor in inputs),
        typed=any(tensor.array is not None for tensor in inputs),
        bare=not parameters,
    )


def parameters_of(entries: Mapping[str, Any]) -> dict[str, Any]:
    """`InferParameter`s as plain values; counts are whole numbers, whichever kind of number they came as."""
    found: dict[str, Any] = {}
    for name, entry in entries.items():
        choice = entry.WhichOneof("parameter_choice")
        if choice is None:
            continue
        value = getattr(entry, choice)
        found[name] = int(value) if name in _COUNTS and isinstance(value, float) and value.is_integer() else value
    return found


def plan_of(head: Head, served: ServedRelease) -> Plan:
    """Hold a head against the outputs of a release.

    Raises:
        InputError: An output is none of the model's, or cannot be had in that form.
    """
    known = head.plan
    if known is not None and known.identity is served.identity and known.signature is served.signature:
        return known
    wishes = wishes_of(head.outputs, served.signature, binary=True)
    plain = all(
        wish.form is Form.BINARY and not wish.classes and wish.spec.datatype is not Datatype.BYTES for wish in wishes
    )
    head.plan = Plan(identity=served.identity, signature=served.signature, wishes=wishes, plain=plain)
    return head.plan


class Cutter:
    """Cuts tensors out of messages in which they always lie at the same places and are right."""

    __slots__ = ("_places",)

    def __init__(self, places: tuple[tuple[str, np.dtype[Any], tuple[int, ...], int], ...]) -> None:
        self._places = places

    @classmethod
    def of(cls, head: Head, bounds: Sequence[tuple[int, int]]) -> Cutter | None:
        """For messages with `head` and raw tensors within `bounds`; None when their bytes must be looked at."""
        if not head.raw or len(bounds) != len(head.inputs):
            return None
        places = []
        for tensor, (begin, end) in zip(head.inputs, bounds, strict=True):
            looked_at = tensor.datatype in (Datatype.BOOL, Datatype.BYTES)
            try:
                size = element_count(tensor.name, tensor.shape) * tensor.datatype.item_bytes
            except InputError:
                return None
            if looked_at or not size or size != end - begin:
                return None
            places.append((tensor.name, np.dtype(tensor.datatype.numpy_name), tensor.shape, begin))
        return cls(tuple(places))

    def inputs(self, message: Message) -> Tensors:
        """The inputs of a request; they share its memory where their alignment allows."""
        found: Tensors = {}
        for name, dtype, shape, begin in self._places:
            array: Tensor = np.ndarray(shape, dtype, message, begin)
            found[name] = array if array.flags.aligned else array.copy()
        return found


def cut(head: Head, raw: Sequence[memoryview], regions: Regions | None) -> Tensors:
    """The inputs of a request.

    Args:
        head: Its head.
        raw: Its `raw_input_contents`.
        regions: Where shared memory is; None = switched off.

    Raises:
        InputError: The bytes are not the tensors that the head declares.
    """
    inputs = head.inputs
    if head.raw and len(raw) == len(inputs):
        return {
            tensor.name: decode_blob(tensor.name, tensor.datatype, tensor.shape, blob)
            for tensor, blob in zip(inputs, raw, strict=True)
        }
    if raw:
        _check_raw(inputs, len(raw))
    blobs = iter(raw)
    found: Tensors = {}
    for tensor in inputs:
        if tensor.array is not None:
            found[tensor.name] = tensor.array
            continue
        blob = view(regions, tensor.ref) if tensor.ref is not None else next(blobs) if raw else _no_bytes(tensor)
        found[tensor.name] = decode_blob(tensor.name, tensor.datatype, tensor.shape, blob)
    return found


def scheduled_call(head: Head, served: ServedRelease, inputs: Tensors, done: Done, identity: str) -> Call:
    """A call with all that a head says of its scheduling."""
    return Call(
        served,
        inputs,
        done,
        identity,
        priority=head.priority,
        timeout_us=head.timeout_us,
        sequence=head.sequence,
        parameters=head.parameters,
    )


def _check_raw(inputs: Sequence[HeadInput], count: int) -> None:
    typed = next((tensor.name for tensor in inputs if tensor.array is not None), None)
    if typed is not None:
        raise InputError(
            f"input {typed[:80]!r} has contents and the request has raw_input_contents",
            hint="send all inputs in raw_input_contents, or none",
        )
    wanted = sum(tensor.ref is None for tensor in inputs)
    if count != wanted:
        raise InputError(
            f"expected {wanted} raw_input_contents, one for each input that is not in shared memory, got {count}"
        )


def _no_bytes(tensor: HeadInput) -> memoryview:
    if element_count(tensor.name, tensor.shape):
        raise InputError(f"input {tensor.name[:80]!r} has neither contents nor raw_input_contents")
    return _EMPTY


def _input(tensor: Any) -> HeadInput:  # noqa: ANN401 - protobuf has no types
    name, rank = tensor.name, len(tensor.shape)
    if rank > MAX_TENSOR_RANK:  # before each becomes a number
        raise InputError(f"tensor {name[:80]!r} has {rank} dimensions, at most {MAX_TENSOR_RANK} are allowed")
    shape = tuple(tensor.shape)
    try:
        datatype = Datatype(tensor.datatype)
    except ValueError:
        known = ", ".join(kind.value for kind in Datatype)
        raise InputError(
            f"input {name[:80]!r} has the unknown datatype {tensor.datatype[:40]!r}", hint=f"there are {known}"
        ) from None
    ref = region_ref(parameters_of(tensor.parameters), f"input {name[:80]!r}")
    given = tensor.contents.ListFields() if tensor.HasField("contents") else []
    if not given:
        return HeadInput(name, datatype, shape, ref=ref)
    if ref is not None:
        raise InputError(f"input {name[:80]!r} has both contents and a shared region")
    return HeadInput(name, datatype, shape, array=_typed(name, datatype, shape, given))


def _typed(name: str, datatype: Datatype, shape: tuple[int, ...], given: Sequence[tuple[Any, Any]]) -> Tensor:
    expected = CONTENTS_FIELDS.get(datatype)
    if expected is None:
        raise InputError(f"input {name[:80]!r} is {datatype.value}, which comes in raw_input_contents only")
    for descriptor, _ in given:
        if descriptor.name != expected:
            raise InputError(
                f"input {name[:80]!r} is {datatype.value}: its elements belong in {expected}, not in {descriptor.name}"
            )
    values = given[0][1]
    count = element_count(name, shape)
    if len(values) != count:
        raise InputError(f"input {name[:80]!r} has {len(values)} elements, shape {list(shape)} needs {count}")
    dtype = np.dtype(datatype.numpy_name)
    if datatype in _NARROW:
        wide, bounds = np.fromiter(values, np.int64, count), np.iinfo(dtype)
        if wide.min() < bounds.min or wide.max() > bounds.max:
            raise InputError(f"input {name[:80]!r}: a number does not fit {datatype.value}")
        return wide.astype(dtype).reshape(shape)
    # One by one: as a list the numbers would take 36 bytes each.
    array: Tensor = np.fromiter(values, object if datatype is Datatype.BYTES else dtype, count)
    return array.reshape(shape)


def _output(output: Any) -> RequestOutput:  # noqa: ANN401 - protobuf has no types
    parameters = parameters_of(output.parameters)
    parameters.pop("binary_data", None)  # of the REST dialect: here everything is
    return RequestOutput(name=output.name, parameters=parameters)
