"""Requests to the rows of one execution, and back."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.limits import JOIN_BUFFER_BYTES
from edgeserve.contracts.tensors import Signature, TensorSpec
from edgeserve.runtimes.base import Tensor, Tensors


class UnevenOutputsError(Exception):
    """The first axis of an output is not that of the inputs: what the model computes for rows cannot be told apart."""


def check_batched(signature: Signature, model: str) -> None:
    """Make sure that requests for a model can be joined.

    Raises:
        InputError: An input has a fixed number of rows, or none.
    """
    for spec in signature.inputs:
        if spec.shape[:1] != (-1,):
            raise InputError(
                f"model {model!r} cannot be batched: input {spec.name!r} is {list(spec.shape)}, "
                "a batch needs a first dimension that varies (-1)",
                hint="compile it with a dynamic batch, or leave batching out of its configuration",
            )


def fixed_output(signature: Signature) -> TensorSpec | None:
    """An output whose first axis, as declared, is not that of rows."""
    return next((spec for spec in signature.outputs if spec.shape[:1] != (-1,)), None)


def rows_of(inputs: Mapping[str, Tensor]) -> int:
    """Rows of a request whose inputs all have a first axis.

    Raises:
        InputError: They differ in it.
    """
    rows = -1
    for array in inputs.values():
        if rows < 0:
            rows = len(array)
        elif len(array) != rows:
            sizes = {name: len(array) for name, array in inputs.items()}
            raise InputError(f"inputs have different batch sizes: {sizes}")
    return rows


def form_of(inputs: Mapping[str, Tensor]) -> Hashable:
    """What must be equal so that requests, which the model's checks have passed, can be joined."""
    if len(inputs) == 1:
        (array,) = inputs.values()
        return array.shape[1:]
    return frozenset((name, array.shape[1:]) for name, array in inputs.items())


def join(requests: Sequence[Mapping[str, Tensor]]) -> Tensors:
    """One array for each input, all rows in order; of one request, its own."""
    if len(requests) == 1:
        return dict(requests[0])
    return {name: np.concatenate([inputs[name] for inputs in requests]) for name in requests[0]}


class Joiner:
    """Joins requests on one thread, into arrays that it keeps: fresh pages cost several times the copying.

    For 8 pictures of 602 KB, 0.3 ms instead of 2.2 ms (measured in a virtual machine).
    """

    def __init__(self) -> None:
        self._kept: Tensors = {}

    def join(self, requests: Sequence[Mapping[str, Tensor]]) -> Tensors:
        """As the function; what it returns holds until the next call, or for good once `spare` was told of it."""
        return {name: self._joined(name, [inputs[name] for inputs in requests]) for name in requests[0]}

    def spare(self, outputs: Mapping[str, Tensor]) -> None:
        """Use no array again that is part of `outputs`: a model may hand its input through."""
        for name, kept in list(self._kept.items()):
            if any(np.may_share_memory(kept, array) for array in outputs.values()):
                del self._kept[name]

    def _joined(self, name: str, arrays: Sequence[Tensor]) -> Tensor:
        first = arrays[0]
        rows = sum(len(array) for array in arrays)
        if first.dtype.hasobject or rows * first[:1].nbytes > JOIN_BUFFER_BYTES:
            return np.concatenate(arrays)
        kept = self._kept.get(name)
        if kept is None or kept.dtype != first.dtype or kept.shape[1:] != first.shape[1:] or len(kept) < rows:
            kept = self._kept[name] = np.empty((rows, *first.shape[1:]), first.dtype)
        return np.concatenate(arrays, out=kept[:rows])


def split(outputs: Mapping[str, Tensor], rows: Sequence[int]) -> list[Tensors]:
    """The outputs of each request, given how many rows each has: views of what came out.

    Raises:
        UnevenOutputsError: An output has another number of rows.
    """
    total = sum(rows)
    for name, array in outputs.items():
        if not array.ndim or len(array) != total:
            raise UnevenOutputsError(f"output {name!r} has shape {list(array.shape)} for {total} rows")
    parts: list[Tensors] = []
    start = 0
    for count in rows:
        parts.append({name: array[start : start + count] for name, array in outputs.items()})
        start += count
    return parts
