"""The requests that a trial sends."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edgeserve import npz
from edgeserve.contracts.errors import InputError
from edgeserve.contracts.limits import TUNE_INPUT_BYTES, TUNE_REQUESTS
from edgeserve.contracts.model_config import ModelConfig, Warmup, WarmupInput
from edgeserve.contracts.tensors import Signature, TensorSpec
from edgeserve.runtimes.base import LoadedModel, Tensor, Tensors
from edgeserve_agent.serving.opened import zeros
from edgeserve_agent.serving.warmup import warmup_requests


def read_requests(path: Path, signature: Signature) -> list[Tensors]:
    """Requests of one row each, or of as many as the model's inputs have built in, from an npz file.

    Args:
        path: One array for each input, by name; the first axis counts rows. `x` stands for the only input there is.
        signature: Of the model, as clients see it.

    Raises:
        InputError: It is not such a file, or does not fit the model; names file and array.
    """
    arrays = npz.load(path, what=str(path), limit=TUNE_INPUT_BYTES)
    if len(signature.inputs) == 1 and "x" in arrays:
        arrays.setdefault(signature.inputs[0].name, arrays["x"])
    parts: dict[str, list[Tensor]] = {}
    for spec in signature.inputs:
        if spec.name not in arrays:
            raise InputError(f"{path} has no array {spec.name!r}", hint=f"it has {', '.join(arrays) or 'none'}")
        parts[spec.name] = _parts(arrays[spec.name], spec, path)
    counts = {name: len(found) for name, found in parts.items()}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise InputError(f"{path}: the inputs have no rows, or different numbers of them: {counts}")
    number = min(next(iter(counts.values())), TUNE_REQUESTS)
    return [{name: found[index] for name, found in parts.items()} for index in range(number)]


def made_up_requests(model: LoadedModel, signature: Signature) -> list[Tensors]:
    """One request of random numbers, or, where the model does not take them, of zeros; sizes that vary are 1.

    Args:
        model: To try it on; None of its inputs is given but those of `signature`.
        signature: Of the model, as clients see it.
    """
    shapes = {spec.name: tuple(1 if size == -1 else size for size in spec.shape) for spec in signature.inputs}
    random = Warmup(
        inputs={
            spec.name: WarmupInput(data_type=spec.datatype.value, dims=shapes[spec.name], random_data=True)
            for spec in signature.inputs
        }
    )
    inputs = warmup_requests(ModelConfig(model_warmup=(random,)), signature, None)[0].inputs
    if signature != model.signature:  # the server adds inputs of its own: nothing to try it on
        return [zeros(signature)]
    try:
        model.run(inputs)
    except Exception:  # noqa: BLE001 - such as an index beyond a table
        return [zeros(signature)]
    return [inputs]


def difference(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Largest difference of two answers, as a share of the largest number of the expected output; inf = not alike."""
    worst = 0.0
    for name, wanted in expected.items():
        array = found.get(name)
        if array is None or array.shape != wanted.shape:
            return float("inf")
        if wanted.dtype.kind not in "fiub" or not wanted.size:
            worst = max(worst, 0.0 if np.array_equal(array, wanted) else float("inf"))
            continue
        ours, theirs = array.astype(np.float64), wanted.astype(np.float64)
        scale = float(np.abs(theirs).max()) or 1.0
        share = float(np.nan_to_num(np.abs(ours - theirs), nan=np.inf).max()) / scale
        worst = max(worst, 0.0 if np.array_equal(ours, theirs, equal_nan=True) else share)
    return worst


def _parts(array: Tensor, spec: TensorSpec, path: Path) -> list[Tensor]:
    dtype = np.dtype(spec.datatype.numpy_name)
    if array.dtype != dtype:
        if not np.can_cast(array.dtype, dtype, "same_kind"):
            raise InputError(f"{path}: {spec.name!r} is {array.dtype}, the model takes {spec.datatype.value}")
        array = array.astype(dtype)
    rows = max(spec.shape[0], 1)
    found = [np.ascontiguousarray(array[start : start + rows]) for start in range(0, len(array) - rows + 1, rows)]
    if found and not spec.accepts(found[0].shape):
        raise InputError(
            f"{path}: rows of {spec.name!r} make {list(found[0].shape)}, the model takes {list(spec.shape)}",
            hint="the first axis of each array counts rows",
        )
    return found
