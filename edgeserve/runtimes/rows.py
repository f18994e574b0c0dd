"""Run any number of rows through a model, whatever batch it takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from edgeserve.contracts.errors import DeviceError, InputError
from edgeserve.contracts.tensors import Signature
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
    batch = built_in_batch(model.signature) or _BATCH
    if not rows or (built_in_batch(model.signature) and rows % batch):
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
