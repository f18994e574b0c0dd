"""Requests that a model is run with before it is ready (Triton's `model_warmup`)."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.limits import MAX_WARMUP_BYTES
from edgeserve.contracts.model_config import ModelConfig, Warmup, WarmupInput
from edgeserve.contracts.names import file_name
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve.release.blobs import open_regular
from edgeserve.runtimes.base import Tensor, Tensors

FOLDER: Final = "warmup"
"""Beside the configuration: where `input_data_file` lies."""
_LENGTH: Final = 4
"""Bytes before each element of BYTES: its length, little endian, as in the protocol's binary tensors."""


@dataclass(frozen=True, kw_only=True)
class WarmupRequest:
    """Inputs and how often the model is run on them."""

    name: str
    inputs: Tensors
    count: int


def warmup_requests(config: ModelConfig, signature: Signature, folder: Path | None) -> tuple[WarmupRequest, ...]:
    """What the configuration asks for; inputs that a sequence gives are zeros.

    Args:
        config: Of the model.
        signature: Of the model.
        folder: The model's; its `warmup/` holds the files of `input_data_file`. None = there are none.

    Raises:
        InputError: An input is unknown, missing or does not fit the model, or a data file is missing or too short.
    """
    left = MAX_WARMUP_BYTES
    found = []
    for warmup in config.model_warmup:
        request = _request(warmup, config, signature, folder)
        left -= sum(array.nbytes for array in request.inputs.values())
        if left < 0:
            raise InputError(f"model_warmup has more than {MAX_WARMUP_BYTES} bytes of inputs")
        found.append(request)
    return tuple(found)


def _request(warmup: Warmup, config: ModelConfig, signature: Signature, folder: Path | None) -> WarmupRequest:
    name = f"model_warmup {warmup.name[:80]!r}"
    if not 1 <= warmup.batch_size <= max(1, config.max_batch_size):
        most = max(1, config.max_batch_size)
        raise InputError(f"{name}: batch_size of {warmup.batch_size} is not between 1 and {most} (max_batch_size)")
    unknown = sorted(set(warmup.inputs) - {spec.name for spec in signature.inputs})
    if unknown:
        known = ", ".join(spec.name for spec in signature.inputs)
        raise InputError(f"{name}: the model has no input {unknown[0][:80]!r}; it has {known}")
    rows = (warmup.batch_size,) if config.max_batch_size else ()
    given = set(_sequence_inputs(config))
    inputs: Tensors = {}
    for spec in signature.inputs:
        entry = warmup.inputs.get(spec.name)
        if entry is not None:
            inputs[spec.name] = _tensor(f"{name}, input {spec.name!r}", spec, entry, rows, folder)
        elif spec.name in given:
            shape = (*rows, *spec.shape[len(rows) :])
            inputs[spec.name] = _filled(spec, tuple(1 if size == -1 else size for size in shape))
        else:
            raise InputError(f"{name} does not say what input {spec.name!r} is")
    return WarmupRequest(name=warmup.name, inputs=inputs, count=max(1, warmup.count))


def _sequence_inputs(config: ModelConfig) -> Iterator[str]:
    """Names of inputs that no request has."""
    if config.sequence_batching is not None:
        yield from (control.name for control in config.sequence_batching.control_input)
        yield from (state.input_name for state in config.sequence_batching.state)


def _tensor(what: str, spec: TensorSpec, entry: WarmupInput, rows: tuple[int, ...], folder: Path | None) -> Tensor:
    datatype = protocol_datatype(entry.data_type, what)
    shape = (*rows, *entry.dims)
    if datatype is not spec.datatype or not spec.accepts(shape) or any(size < 0 for size in shape):
        raise InputError(
            f"{what} is {datatype.value}{list(shape)}, the model takes {spec.datatype.value}{list(spec.shape)}",
            hint="with max_batch_size above 0, dims leave the rows out",
        )
    # An empty array has dimensions, too, and numpy wants to count them.
    if math.prod(max(1, size) for size in shape) * max(1, spec.datatype.item_bytes) > MAX_WARMUP_BYTES:
        raise InputError(f"{what} has more than {MAX_WARMUP_BYTES} bytes")
    if entry.input_data_file:
        if folder is None:
            hint = "use zero_data or random_data"
            raise InputError(f"{what}: input_data_file needs a model that lies in a repository folder", hint=hint)
        return _read(what, spec.datatype, shape, folder / FOLDER / file_name(entry.input_data_file))
    if entry.random_data:
        return _random(spec, shape)
    if entry.zero_data:
        return _filled(spec, shape)
    raise InputError(f"{what} has none of zero_data, random_data and input_data_file")


def protocol_datatype(name: str, what: str) -> Datatype:
    """The datatype that Triton's configuration calls `name`, such as `TYPE_FP32`.

    Raises:
        InputError: There is no such.
    """
    try:
        return Datatype.BYTES if name == "TYPE_STRING" else Datatype(name.removeprefix("TYPE_"))
    except ValueError:
        raise InputError(f"{what}: there is no data_type {name[:40]!r}", hint="such as TYPE_FP32") from None


def _filled(spec: TensorSpec, shape: tuple[int, ...]) -> Tensor:
    if spec.datatype is Datatype.BYTES:
        return np.full(shape, b"", object)
    return np.zeros(shape, np.dtype(spec.datatype.numpy_name))


def _random(spec: TensorSpec, shape: tuple[int, ...]) -> Tensor:
    """The same at every start: uniform in [0, 1), small numbers, or short texts."""
    random = np.random.default_rng(zlib.crc32(spec.name.encode()))
    if spec.datatype is Datatype.BYTES:
        words = [b"%d" % number for number in random.integers(0, 1000, math.prod(shape))]
        return np.array(words, object).reshape(shape)
    if spec.datatype is Datatype.BF16:
        return (random.random(shape, np.float32).view(np.uint32) >> 16).astype(np.uint16)
    dtype = np.dtype(spec.datatype.numpy_name)
    if dtype.kind == "f":
        return random.random(shape).astype(dtype)
    return random.integers(0, 2 if dtype.kind == "b" else 128, shape).astype(dtype)


def _read(what: str, datatype: Datatype, shape: tuple[int, ...], path: Path) -> Tensor:
    with open_regular(path, follow=True) as file:
        data = file.read(MAX_WARMUP_BYTES + 1)
    if datatype is Datatype.BYTES:
        elements = list(_elements(what, data, path))
    else:
        dtype = np.dtype(datatype.numpy_name)
        if len(data) != math.prod(shape) * dtype.itemsize:
            raise InputError(f"{what}: {path} has {len(data)} bytes, {math.prod(shape) * dtype.itemsize} are needed")
        return np.frombuffer(data, dtype).reshape(shape)
    if len(elements) != math.prod(shape):
        raise InputError(f"{what}: {path} has {len(elements)} elements, {math.prod(shape)} are needed")
    return np.array(elements, object).reshape(shape)


def _elements(what: str, data: bytes, path: Path) -> Iterator[bytes]:
    position = 0
    while position < len(data):
        end = position + _LENGTH + int.from_bytes(data[position : position + _LENGTH], "little")
        if end > len(data) or position + _LENGTH > len(data):
            raise InputError(f"{what}: {path} ends within an element")
        yield data[position + _LENGTH : end]
        position = end
