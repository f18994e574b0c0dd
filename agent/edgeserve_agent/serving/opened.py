"""A variant in memory, warmed up and timed: what a load hands to the data plane."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from edgeserve.contracts.errors import DeviceError, EdgeServeError
from edgeserve.contracts.task import Task
from edgeserve.contracts.tensors import Datatype, Signature
from edgeserve.contracts.variant import VariantContract
from edgeserve.runtimes.base import LoadedModel, Tensors

_TIMED_RUNS: Final = 7
_TIMED_S: Final = 0.5
"""Slow models are timed by fewer runs."""


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A loaded model and what is known of it."""

    model: LoadedModel
    runtime: str
    task: Task | None = None
    details: Mapping[str, str] = field(default_factory=dict)
    """Further facts for the model's metadata."""


@dataclass(frozen=True, kw_only=True)
class Warm:
    """An opened model that has run."""

    opened: Opened
    call_us: float
    """Median duration of one call with zeros, microseconds; infinite when it could not be run on zeros."""
    elements: int
    """Elements of its inputs in that call."""


def open_variant(folder: Path, *, simulate: bool, threads: int) -> Opened:
    """Load the variant in `folder`.

    Raises:
        InputError: The folder does not hold a variant.
        DeviceError: This machine cannot run it.
    """
    from edgeserve.runtimes.variant import load_variant

    contract, model = load_variant(folder, simulate=simulate, threads=threads)
    return opened_variant(contract, model)


def opened_variant(contract: VariantContract, model: LoadedModel) -> Opened:
    """Bring a loaded variant and its contract together."""
    details = {"target": contract.target, "precision": contract.precision.value}
    return Opened(model=model, runtime=contract.runtime, task=contract.task, details=details)


def warm_up(opened: Opened) -> Warm:
    """Run the model on zeros, dimensions that vary being 1, a few times.

    Raises:
        DeviceError: It does not run although its shapes leave no doubt about the input.
    """
    signature = opened.model.signature
    inputs = zeros(signature)
    elements = sum(array.size for array in inputs.values())
    try:
        opened.model.run(inputs)
    except Exception as error:
        if any(-1 in spec.shape[1:] for spec in signature.inputs):
            # Sizes of 1 need not be possible, such as an image of one pixel.
            return Warm(opened=opened, call_us=float("inf"), elements=elements)
        opened.model.close()
        if isinstance(error, EdgeServeError):
            raise DeviceError(f"the model does not run on zeros: {error.message}", hint=error.hint) from error
        raise DeviceError(f"the model does not run on zeros: {error}") from error
    timed: list[float] = []
    begin = time.perf_counter()
    while len(timed) < _TIMED_RUNS and time.perf_counter() - begin < _TIMED_S:
        start = time.perf_counter()
        opened.model.run(inputs)
        timed.append((time.perf_counter() - start) * 1e6)
    return Warm(opened=opened, call_us=statistics.median(timed), elements=elements)


def zeros(signature: Signature) -> Tensors:
    """Zeros for every input, dimensions that vary being 1; empty strings for BYTES."""
    inputs: Tensors = {}
    for spec in signature.inputs:
        shape = tuple(1 if size == -1 else size for size in spec.shape)
        dtype = np.dtype(spec.datatype.numpy_name)
        inputs[spec.name] = np.full(shape, b"", object) if spec.datatype is Datatype.BYTES else np.zeros(shape, dtype)
    return inputs
