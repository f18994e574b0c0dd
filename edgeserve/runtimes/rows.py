"""Run any number of rows through a model, whatever batch it takes, and sequences through one that carries state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from edgeserve.contracts.errors import DeviceError, InputError
from edgeserve.contracts.tensors import Signature, TensorSpec
from edgeserve.runtimes.base import LoadedModel, Tensor, Tensors

_BATCH: Final = 64
"""Rows of one call where the model takes any number: bounds memory, hides the cost of a call."""


def built_in_batch(signature: Signature) -> int | None:
    """Rows that every call must have, or None when the model takes any number.

    Raises:
        InputError: An input has no first axis, or two inputs are built for different numbers of rows.
    """
    sizes = set()
    for spec in signature.inputs:
        if not spec.shape:
            raise InputError(f"input {spec.name!r} is a scalar: the first axis of every input counts rows")
        sizes.add(spec.shape[0])
    fixed = sizes - {-1}
    if len(fixed) > 1:
        raise InputError(f"inputs are built for different numbers of rows: {sorted(fixed)}")
    return next(iter(fixed), None)


def run_task(model: LoadedModel, inputs: Mapping[str, Tensor], state: Mapping[str, str]) -> Tensors:
    """Run rows, or sequences when there is state (`Task.state`): see `run_rows` and `run_sequences`."""
    return run_sequences(model, inputs, state) if state else run_rows(model, inputs)


def run_rows(model: LoadedModel, inputs: Mapping[str, Tensor]) -> Tensors:
    """Compute the outputs of all rows, in as many calls as it takes.

    Args:
        model: A model with a batch of 1 (or N) built in, or a varying one.
        inputs: One array for each input, all with the same first axis, at least one row.

    Returns:
        Outputs by name; their first axis is that of the inputs.

    Raises:
        InputError: There are no rows, inputs differ in rows, or rows do not fill the built-in batch.
        DeviceError: The runtime failed, or an output has another number of rows than the inputs.
    """
    counts = {len(array) for array in inputs.values()}
    if len(counts) != 1:
        raise InputError(f"inputs have different numbers of rows: {sorted(counts)}")
    rows = counts.pop()
    built_in = built_in_batch(model.signature)
    batch = built_in or _BATCH
    if not rows or (built_in and rows % built_in):
        raise InputError(f"{rows} rows do not fill calls of {batch}")
    parts = []
    for start in range(0, rows, batch):
        chunk = {name: array[start : start + batch] for name, array in inputs.items()}
        outputs = model.run(chunk)
        expected = min(batch, rows - start)
        for name, array in outputs.items():
            if array.ndim == 0 or len(array) != expected:
                raise DeviceError(f"output {name!r} has shape {list(array.shape)} for {expected} rows of input")
        parts.append(outputs)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def run_sequences(model: LoadedModel, inputs: Mapping[str, Tensor], state: Mapping[str, str]) -> Tensors:
    """Run sequences step by step with a batch of 1; state starts at zeros and is carried from step to step.

    Args:
        model: Where it takes a batch, the axis of rows is the first of its inputs, save those with state, which may
            have it anywhere: they are fed as they are declared, a size that varies as 1.
        inputs: [sequence, step, ...row] for each input that is no state; at least one step.
        state: Input to the output whose value it gets in the next step.

    Returns:
        Outputs by name without those of the state: [sequence, step, ...row].

    Raises:
        InputError: Names or shapes are not those of the model, or there is no step.
        DeviceError: The runtime failed, or state came out in another shape than it goes in.
    """
    kept: dict[str, list[Tensor]] = {}
    for step in _steps(model, inputs, state):
        for name, array in step.outputs.items():
            if name not in state.values():
                kept.setdefault(name, []).append(_row(array))
    leading = next(iter(inputs.values())).shape[:2]
    return {name: np.stack(rows).reshape(*leading, *rows[0].shape) for name, rows in kept.items()}


def unroll(model: LoadedModel, inputs: Mapping[str, Tensor], state: Mapping[str, str]) -> Tensors:
    """What a stateful model is fed, as rows: every input, so that calibration sees states as they occur.

    Args:
        model: As for `run_sequences`.
        inputs: As for `run_sequences`.
        state: As for `run_sequences`.

    Returns:
        [sequence * step, ...row] for each input that is no state, [sequence * step, ...its whole shape with a batch
        of 1] for those that are.

    Raises:
        InputError: As `run_sequences`.
        DeviceError: As `run_sequences`.
    """
    states: dict[str, list[Tensor]] = {name: [] for name in state}
    for step in _steps(model, inputs, state):
        for name, fed in states.items():
            fed.append(step.state[name])
    rows = {name: array.reshape(-1, *array.shape[2:]) for name, array in inputs.items()}
    return rows | {name: np.stack(fed) for name, fed in states.items()}


@dataclass(frozen=True, kw_only=True, eq=False)
class _Step:
    state: Tensors
    """As it was fed."""
    outputs: Tensors


def _steps(model: LoadedModel, inputs: Mapping[str, Tensor], state: Mapping[str, str]) -> Iterator[_Step]:
    specs = {spec.name: spec for spec in model.signature.inputs}
    _check(model.signature, inputs, state)
    # With a batch axis in front of each row where the model has one: made once, a step is then only an index.
    whole = {
        name: np.ascontiguousarray(array if _is_row(specs[name], array) else array[:, :, None])
        for name, array in inputs.items()
    }
    sequences, steps = next(iter(inputs.values())).shape[:2]
    for sequence in range(sequences):
        carried = {name: _zeros(specs[name]) for name in state}
        for step in range(steps):
            outputs = model.run({name: array[sequence, step] for name, array in whole.items()} | carried)
            yield _Step(state=carried, outputs=outputs)
            carried = {name: _next(specs[name], outputs[source], carried[name]) for name, source in state.items()}


def _check(signature: Signature, inputs: Mapping[str, Tensor], state: Mapping[str, str]) -> None:
    names = {spec.name for spec in signature.inputs}
    missing = sorted(set(state) - names) + sorted(set(state.values()) - {spec.name for spec in signature.outputs})
    if missing:
        raise InputError(
            f"the task's state names {', '.join(missing)}, which the model does not have",
            hint="state maps an input to the output that it gets in the next step",
        )
    if set(inputs) != names - set(state):
        raise InputError(
            f"the data have {', '.join(sorted(inputs)) or 'no inputs'}, "
            f"the model takes {', '.join(sorted(names - set(state))) or 'nothing'} besides its state"
        )
    leading = {array.shape[:2] for array in inputs.values()}
    if len(leading) != 1 or any(len(shape) < 2 or 0 in shape for shape in leading):
        raise InputError(
            "the inputs of a stateful model are [sequence, step, ...], the same for all, and not empty: "
            + ", ".join(f"{name} has {list(array.shape)}" for name, array in sorted(inputs.items()))
        )


def _is_row(spec: TensorSpec, array: Tensor) -> bool:
    """Whether the model takes a step as it is, without an axis for the batch."""
    return len(spec.shape) == array.ndim - 2


def _zeros(spec: TensorSpec) -> Tensor:
    return np.zeros([1 if size == -1 else size for size in spec.shape], spec.datatype.numpy_name)


def _next(spec: TensorSpec, produced: Tensor, before: Tensor) -> Tensor:
    if produced.shape != before.shape:
        raise DeviceError(
            f"state {spec.name!r} goes in as {list(before.shape)} and comes out as {list(produced.shape)}",
            hint="check `state` in the task: it may name the wrong output",
        )
    return np.ascontiguousarray(produced, before.dtype)


def _row(array: Tensor) -> Tensor:
    """One step without the batch axis."""
    return array[0] if array.ndim and len(array) == 1 else array
