"""What a model of sequences is given beside a request: control inputs and the state that it left (implicit state).

The words are Triton's ("Model Configuration", `ModelSequenceBatching`). A model whose task declares `state` needs no
configuration: its clients may name sequences, or carry the state themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from edgeserve.contracts.errors import DeviceError, InputError
from edgeserve.contracts.model_config import (
    ControlInput,
    ControlKind,
    ModelConfig,
    SequenceBatching,
    SequenceOldest,
    SequenceState,
)
from edgeserve.contracts.task import Task
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve.runtimes.base import Tensor, Tensors

_INTEGERS: Final = {Datatype.INT32, Datatype.UINT32, Datatype.INT64, Datatype.UINT64}


@dataclass(frozen=True, kw_only=True)
class Control:
    """An input that says something of the sequence."""

    spec: TensorSpec
    kind: ControlKind
    values: tuple[float, float] = (0, 1)
    """For false and true."""

    def check_id(self, identity: int | str) -> None:
        """Make sure that the model can be told the id of a sequence.

        Raises:
            InputError: Its input takes another kind.
        """
        if self.kind is not ControlKind.CORRID or self.spec.datatype is Datatype.BYTES:
            return
        limits = np.iinfo(self.spec.datatype.numpy_name)
        if isinstance(identity, str) or not limits.min <= identity <= limits.max:
            raise InputError(
                f"sequence id {str(identity)[:80]!r} does not fit input {self.spec.name!r}, "
                f"which is {self.spec.datatype.value}"
            )

    def array(self, values: Sequence[int | str], *, batched: bool) -> Tensor:
        """The input, given a flag or an id for each row."""
        shape = [1 if size == -1 else size for size in self.spec.shape]
        if batched:
            shape[0] = len(values)
        array = np.empty(shape, self.spec.datatype.numpy_name)
        rows = array.reshape(len(values), -1) if batched else array.reshape(1, -1)
        for row, value in zip(rows, values, strict=True):
            if self.kind is not ControlKind.CORRID:
                row[:] = self.values[bool(value)]
            else:
                row[:] = str(value).encode() if self.spec.datatype is Datatype.BYTES else value
        return array


@dataclass(frozen=True, kw_only=True)
class Carried:
    """An output that is an input of the sequence's next request."""

    spec: TensorSpec
    """Of the input."""
    output: str
    dims: tuple[int, ...]
    """Of one row, zeros of which begin a sequence."""
    axis: int
    """Of the rows."""

    def join(self, states: Sequence[Tensor | None]) -> Tensor:
        """The input, given the state of each row; None = it begins."""
        zeros = np.zeros(self.dims, self.spec.datatype.numpy_name)
        rows = [zeros if state is None else state for state in states]
        return rows[0] if len(rows) == 1 else np.concatenate(rows, self.axis)

    def split(self, outputs: Mapping[str, Tensor], rows: int) -> list[Tensor]:
        """The state that each row left.

        Raises:
            DeviceError: The model gave it another shape or datatype than it takes.
        """
        state = outputs[self.output]
        expected = list(self.dims)
        expected[self.axis : self.axis + 1] = [rows] if rows > 1 else expected[self.axis : self.axis + 1]
        if list(state.shape) != expected or state.dtype != self.spec.datatype.numpy_name:
            raise DeviceError(
                f"state {self.output!r} came out as {state.dtype}{list(state.shape)}, "
                f"input {self.spec.name!r} takes {self.spec.datatype.numpy_name}{expected}"
            )
        if rows == 1:
            return [state]
        return [np.ascontiguousarray(state.take([row], self.axis)) for row in range(rows)]


@dataclass(frozen=True, kw_only=True)
class Stateful:
    """All there is to know of a model of sequences."""

    config: SequenceBatching
    most: int
    """Rows of one execution."""
    batched: bool
    """The first axis of inputs is that of rows, each of another sequence."""
    required: bool
    """A request must name its sequence."""
    signature: Signature
    """What clients send and are sent."""
    controls: tuple[Control, ...]
    states: tuple[Carried, ...]


def stateful(signature: Signature, config: ModelConfig, task: Task | None) -> Stateful | None:
    """What the configuration, or else the task, says of sequences; None = nothing.

    Raises:
        InputError: What it says does not fit the model's signature.
    """
    sequences = config.sequence_batching
    if sequences is None:
        if task is None or not task.stateful:
            return None
        sequences = SequenceBatching(
            oldest=SequenceOldest(),
            state=tuple(SequenceState(input_name=name, output_name=output) for name, output in task.state.items()),
        )
    batched = config.max_batch_size > 0
    inputs = {spec.name: spec for spec in signature.inputs}
    outputs = {spec.name: spec for spec in signature.outputs}
    controls = tuple(_control(one, inputs) for one in sequences.control_input)
    states = tuple(_carried(one, inputs, outputs, batched=batched) for one in sequences.state)
    hidden = {one.spec.name for one in controls} | {one.spec.name for one in states}
    listed = {one.name for one in config.output}
    kept = {one.output for one in states if one.output not in listed} if config.sequence_batching else set()
    return Stateful(
        config=sequences,
        most=max(config.max_batch_size, 1),
        batched=batched,
        required=config.sequence_batching is not None,
        signature=_without(signature, hidden, kept),
        controls=controls,
        states=states,
    )


def client_signature(signature: Signature, config: ModelConfig) -> Signature:
    """What clients of a model send and are sent: without what the server keeps for them.

    Raises:
        InputError: As `stateful`.
    """
    found = stateful(signature, config, None)
    return signature if found is None else found.signature


def _without(signature: Signature, inputs: set[str], outputs: set[str]) -> Signature:
    left = tuple(spec for spec in signature.inputs if spec.name not in inputs)
    if not left:
        raise InputError("sequence_batching leaves no input for clients: all are controls or state")
    shown = tuple(spec for spec in signature.outputs if spec.name not in outputs)
    return Signature(inputs=left, outputs=shown or signature.outputs)


def _control(config: ControlInput, inputs: Mapping[str, TensorSpec]) -> Control:
    spec = inputs.get(config.name)
    if spec is None:
        raise InputError(f"control_input {config.name!r} is not one of the model's inputs: {', '.join(inputs)}")
    if len(config.control) != 1:
        raise InputError(f"control_input {config.name!r} has {len(config.control)} controls, it must have one")
    (control,) = config.control
    if control.kind is ControlKind.CORRID:
        if spec.datatype not in {*_INTEGERS, Datatype.BYTES}:
            raise InputError(f"control_input {config.name!r} is {spec.datatype.value}, which holds no sequence id")
        return Control(spec=spec, kind=control.kind)
    choices = {
        Datatype.INT32: control.int32_false_true,
        Datatype.FP32: control.fp32_false_true,
        Datatype.BOOL: control.bool_false_true,
    }
    given = [datatype for datatype, values in choices.items() if values]
    if given != [spec.datatype] or len(choices[spec.datatype]) != 2:
        raise InputError(
            f"control_input {config.name!r} is {spec.datatype.value}: it needs two values of that kind, "
            "for false and true, and no others",
            hint="such as int32_false_true: [0, 1]",
        )
    false, true = choices[spec.datatype]
    return Control(spec=spec, kind=control.kind, values=(false, true))


def _carried(
    config: SequenceState, inputs: Mapping[str, TensorSpec], outputs: Mapping[str, TensorSpec], *, batched: bool
) -> Carried:
    spec, output = inputs.get(config.input_name), outputs.get(config.output_name)
    if spec is None or output is None:
        missing = config.output_name if spec else config.input_name
        raise InputError(f"state {missing!r} is neither input nor output of the model as it should be")
    if spec.datatype is Datatype.BYTES or spec.datatype is not output.datatype:
        raise InputError(
            f"state {spec.name!r} is {spec.datatype.value} and comes out as {output.datatype.value}: "
            "it must be of one datatype, and not BYTES"
        )
    axis = 0
    if batched and spec.shape[:1] != (-1,):
        if spec.shape.count(-1) != 1:
            raise InputError(f"state {spec.name!r} is {list(spec.shape)}: it is not clear which axis is that of rows")
        axis = spec.shape.index(-1)
    dims = (1, *config.dims) if batched and axis == 0 else config.dims
    if len(dims) != len(spec.shape):
        dims = (-1,) * len(spec.shape)
    shape = tuple(max(given, 1) if size == -1 else size for given, size in zip(dims, spec.shape, strict=True))
    return Carried(spec=spec, output=output.name, dims=shape, axis=axis)


def given(
    stateful: Stateful, states: Sequence[Mapping[str, Tensor]], flags: Mapping[ControlKind, Sequence[int | str]]
) -> Tensors:
    """The inputs that the server adds.

    Args:
        stateful: The model.
        states: Of each row, by name of the input; one that is missing begins.
        flags: Of each row, by kind.
    """
    added: Tensors = {
        control.spec.name: control.array(flags[control.kind], batched=stateful.batched) for control in stateful.controls
    }
    for carried in stateful.states:
        added[carried.spec.name] = carried.join([state.get(carried.spec.name) for state in states])
    return added
