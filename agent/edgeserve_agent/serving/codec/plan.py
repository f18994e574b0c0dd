"""What the head of a request comes to, held against the model: where its tensors are, and what it wants back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from edgeserve.client.blobs import decode_blob, element_count
from edgeserve.contracts.errors import InputError
from edgeserve.contracts.tensors import Datatype, Signature
from edgeserve.runtimes.base import Tensor, Tensors
from edgeserve_agent.serving.call import Sequence as RequestSequence
from edgeserve_agent.serving.codec.head import (
    RequestHead,
    RequestInput,
    flag,
    number,
    own_parameters,
    sequence_of,
)
from edgeserve_agent.serving.codec.json_tensors import from_json
from edgeserve_agent.serving.codec.wishes import Form, Wish, region_ref, view, wishes_of
from edgeserve_agent.serving.regions import RegionRef, Regions


class _Source(Protocol):
    """Where the tensor of one input is."""

    def take(self, given: RequestInput | None, blobs: memoryview, regions: Regions | None) -> Tensor:
        """Make the tensor of the request's JSON, the bytes behind it, or shared memory."""


@dataclass(frozen=True, slots=True)
class _Blob:
    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    start: int
    end: int

    def take(self, given: RequestInput | None, blobs: memoryview, regions: Regions | None) -> Tensor:  # noqa: ARG002
        return decode_blob(self.name, self.datatype, self.shape, blobs[self.start : self.end])


@dataclass(frozen=True, slots=True)
class _Json:
    def take(self, given: RequestInput | None, blobs: memoryview, regions: Regions | None) -> Tensor:  # noqa: ARG002
        assert given is not None
        return from_json(given.name, given.datatype, given.shape, given.data)


@dataclass(frozen=True, slots=True)
class _Shared:
    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    ref: RegionRef

    def take(self, given: RequestInput | None, blobs: memoryview, regions: Regions | None) -> Tensor:  # noqa: ARG002
        return decode_blob(self.name, self.datatype, self.shape, view(regions, self.ref))


@dataclass(frozen=True, slots=True)
class _Element:
    """The only element of a BYTES input, without a length before it."""

    shape: tuple[int, ...]

    def take(self, given: RequestInput | None, blobs: memoryview, regions: Regions | None) -> Tensor:  # noqa: ARG002
        array = np.empty(1, object)
        array[0] = bytes(blobs)
        return array.reshape(self.shape)


@dataclass(frozen=True, slots=True)
class _Numbers:
    """The only input, binary, of a datatype whose bytes are all allowed, and as long as its shape says."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    count: int

    @classmethod
    def of(cls, sources: Sequence[_Source]) -> _Numbers | None:
        """This form of the sources, if they have it."""
        if len(sources) != 1 or not isinstance(sources[0], _Blob):
            return None
        blob = sources[0]
        if blob.datatype in (Datatype.BOOL, Datatype.BYTES):
            return None
        count = element_count(blob.name, blob.shape)
        if not count or blob.end != count * blob.datatype.item_bytes:
            return None
        return cls(blob.name, np.dtype(blob.datatype.numpy_name), blob.shape, count)


@dataclass(slots=True, kw_only=True)
class Plan:
    """A head without what varies from request to request: id and numbers in JSON."""

    names: tuple[str, ...]
    sources: tuple[_Source, ...]
    """Of each input."""
    wishes: tuple[Wish, ...]
    tail: int
    """Bytes behind the JSON."""
    priority: int = 0
    timeout_us: int = 0
    sequence: RequestSequence | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    outputs: tuple[str, ...] = field(init=False)
    """Names of what is wished."""
    form: Form | None = field(init=False)
    """Of all outputs, where they are plain numbers in the same form; None = it takes a closer look."""
    special: bool = field(init=False)
    """It has parameters that the data plane must know."""
    has_json: bool = field(init=False)
    """Inputs are in the JSON."""
    renderings: dict[Any, Any] = field(default_factory=dict)
    """What an adapter has rendered of answers, by the shapes in them."""
    _numbers: _Numbers | None = field(init=False)

    def __post_init__(self) -> None:
        self.outputs = tuple(wish.spec.name for wish in self.wishes)
        forms = {wish.form for wish in self.wishes}
        odd = any(wish.classes or wish.spec.datatype is Datatype.BYTES for wish in self.wishes)
        self.form = forms.pop() if len(forms) == 1 and not odd else None
        self.special = bool(self.priority or self.timeout_us or self.sequence or self.parameters)
        self.has_json = any(isinstance(source, _Json) for source in self.sources)
        self._numbers = _Numbers.of(self.sources)

    def inputs(
        self, given: Sequence[RequestInput] | None, body: bytes | memoryview, start: int, regions: Regions | None
    ) -> Tensors:
        """Make the tensors of a request with this head.

        Args:
            given: The inputs in its JSON; None where none of them is needed.
            body: The whole body.
            start: Where the JSON ends in it.
            regions: Shared memory.

        Raises:
            InputError: The bytes or numbers are not the tensors that the head declares.
        """
        tail = len(body) - start
        if tail != self.tail:
            raise InputError(_wrong_tail(tail, self.tail))
        numbers = self._numbers
        if numbers is not None:
            array = np.frombuffer(body, numbers.dtype, numbers.count, start).reshape(numbers.shape)
            return {numbers.name: array if array.flags.aligned else array.copy()}
        blobs = memoryview(body)[start:]
        if given is None:
            return {
                name: source.take(None, blobs, regions) for name, source in zip(self.names, self.sources, strict=True)
            }
        return {one.name: source.take(one, blobs, regions) for one, source in zip(given, self.sources, strict=True)}


def plan_of(head: RequestHead, signature: Signature) -> Plan:
    """Work out what a head says.

    Raises:
        InputError: It contradicts itself, or an output is none of the model's.
    """
    sources: list[_Source] = []
    end = 0
    for tensor in head.inputs:
        name, parameters = tensor.name, tensor.parameters
        size = parameters.get("binary_data_size")
        ref = region_ref(parameters, f"input {name[:80]!r}")
        if (size is not None) + (ref is not None) + bool(tensor.data) > 1:
            raise InputError(f"input {name[:80]!r} has more than one of data, binary_data_size and a shared region")
        if ref is not None:
            sources.append(_Shared(name, tensor.datatype, tensor.shape, ref))
        elif size is None:
            sources.append(_Json())
        else:
            start, end = end, end + number(parameters, "binary_data_size")
            sources.append(_Blob(name, tensor.datatype, tensor.shape, start, end))
    names = tuple(tensor.name for tensor in head.inputs)
    if len(set(names)) != len(names):
        raise InputError("two inputs have the same name")
    parameters = head.parameters
    return Plan(
        names=names,
        sources=tuple(sources),
        wishes=wishes_of(head.outputs, signature, binary=flag(parameters, "binary_data_output")),
        tail=end,
        priority=number(parameters, "priority", most=(1 << 32) - 1),
        timeout_us=number(parameters, "timeout"),
        sequence=sequence_of(parameters),
        parameters=own_parameters(parameters),
    )


def raw_plan(signature: Signature, size: int) -> Plan:
    """The plan of a request without JSON: the body is the only input, one row of it; all outputs are binary.

    Raises:
        InputError: The model has several inputs, or more than one dimension to be found out.
    """
    if len(signature.inputs) != 1:
        raise InputError(f"a request without JSON is for models with one input, this has {len(signature.inputs)}")
    spec = signature.inputs[0]
    name, shape = spec.name, list(spec.shape)
    source: _Source
    if spec.datatype is Datatype.BYTES:
        shape = [1 if extent == -1 else extent for extent in shape]
        if element_count(name, tuple(shape)) != 1:
            raise InputError(f"a request without JSON brings one element, input {name!r} has {shape}")
        source = _Element(tuple(shape))
    else:
        if shape.count(-1) > 1 and shape[0] == -1:
            shape[0] = 1
        if shape.count(-1) > 1:
            raise InputError(f"a request without JSON leaves {shape.count(-1)} sizes of {name!r} open, at most one")
        if -1 in shape:
            ones = tuple(1 if extent == -1 else extent for extent in shape)
            row = element_count(name, ones) * spec.datatype.item_bytes
            if not row or size % row:
                raise InputError(f"{size} bytes do not fill {name!r}, which is {spec.datatype.value}{list(spec.shape)}")
            shape[shape.index(-1)] = size // row
        source = _Blob(name, spec.datatype, tuple(shape), 0, size)
    wishes = tuple(Wish(spec=output, form=Form.BINARY) for output in signature.outputs)
    return Plan(names=(name,), sources=(source,), wishes=wishes, tail=size)


def _wrong_tail(tail: int, expected: int) -> str:
    if tail > expected:
        return f"{tail} bytes follow the JSON: unexpected additional input data, binary_data_size add up to {expected}"
    lacking = expected - tail
    return f"{tail} bytes follow the JSON, binary_data_size add up to {expected}: expecting {lacking} additional bytes"
