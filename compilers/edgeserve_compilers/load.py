"""An ONNX file from outside to a checked, self-contained model and its facts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx.external_data_helper import load_external_data_for_model, uses_external_data

from edgeserve.contracts.errors import EdgeServeError, InputError, NotFoundError
from edgeserve.contracts.limits import MAX_GRAPH_NODES, MAX_MODEL_FILE_BYTES
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec, datatype_of
from edgeserve.runtimes.checks import check_file, first_line
from edgeserve_compilers.spec import ModelSpec

_OLDEST_OPSET: Final = 13
"""Per-channel QuantizeLinear came with it."""
_UPGRADED_OPSET: Final = 17
"""The newest that every runtime of the profiles loads."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A float model that can be compiled."""

    spec: ModelSpec
    content: bytes
    """One self-contained ONNX file: the file as given, unless weights lay outside or the opset was too old."""


def load(path: Path) -> Model:
    """Read and check an ONNX file.

    Raises:
        NotFoundError: There is no such file, or weights that it names are missing.
        InputError: Not an ONNX model, truncated, too large, without fixed rank, with an operator set that cannot be
            upgraded, or with weights outside its own folder.
    """
    check_file(path)
    if path.stat().st_size > MAX_MODEL_FILE_BYTES:
        raise InputError(f"{path} has {path.stat().st_size} bytes, at most {MAX_MODEL_FILE_BYTES} are allowed")
    try:
        given = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    model = _parse(given, path)
    changed = _embed_weights(model, path)
    changed |= _complete_outputs(model)
    _signature(model, path)  # says more about a missing rank than the checker
    _check(model, path)
    upgraded, opset = _upgrade(model, path)
    content = given if upgraded is model and not changed else upgraded.SerializeToString(deterministic=True)
    return Model(
        spec=ModelSpec(
            file=path.name,
            digest="sha256:" + hashlib.sha256(given).hexdigest(),
            size_bytes=len(content),
            opset=opset,
            nodes=len(upgraded.graph.node),
            signature=_signature(upgraded, path),
        ),
        content=content,
    )


def _parse(data: bytes, path: Path) -> onnx.ModelProto:
    try:
        model = onnx.load_model_from_string(data)
    except (DecodeError, ValueError) as error:
        raise InputError(
            f"{path} is not an ONNX model, or is truncated",
            hint="export it again, or compare its size with the original",
        ) from error
    if not model.HasField("graph") or not model.graph.node:
        raise InputError(f"{path} holds no ONNX graph", hint="export it again as ONNX, which is what compile takes")
    if len(model.graph.node) > MAX_GRAPH_NODES:
        raise InputError(f"{path} has {len(model.graph.node)} nodes, at most {MAX_GRAPH_NODES} are allowed")
    return model


def _embed_weights(model: onnx.ModelProto, path: Path) -> bool:
    """Bring weights from files beside the model into it; tell whether there were any."""
    outside = [tensor for tensor in _tensors(model) if uses_external_data(tensor)]
    total = len(outside) and model.ByteSize()
    for tensor in outside:
        total += _external_bytes(tensor, path)
    if total > MAX_MODEL_FILE_BYTES:
        raise InputError(f"{path} has {total} bytes with its weights, at most {MAX_MODEL_FILE_BYTES} are allowed")
    if outside:
        try:
            load_external_data_for_model(model, str(path.parent))
        except (OSError, ValueError, onnx.checker.ValidationError) as error:
            raise InputError(f"cannot read the weights of {path}: {first_line(error)}") from error
    return bool(outside)


def _external_bytes(tensor: onnx.TensorProto, path: Path) -> int:
    """Length of a tensor outside the file, after a check of where it is."""
    facts = {entry.key: entry.value for entry in tensor.external_data}
    location = facts.get("location", "")
    place = PurePosixPath(location)
    if not location or place.is_absolute() or ".." in place.parts or "\\" in location or "\0" in location:
        raise InputError(
            f"{path} wants weights from {location[:80]!r}, outside its own folder",
            hint="save the model with its weights inside, or beside it",
        )
    file = path.parent / place
    if not file.resolve().is_relative_to(path.parent.resolve()):
        raise InputError(f"{path} wants weights from {location[:80]!r}, a link that leaves its own folder")
    if not file.is_file():
        raise NotFoundError(
            f"the weights {location[:80]!r} of {path} are missing", hint="put the file beside the model"
        )
    try:
        offset, length = int(facts.get("offset") or 0), int(facts.get("length") or -1)
    except ValueError as error:
        raise InputError(f"{path} names weights in {location[:80]!r} with an offset that is no number") from error
    size = file.stat().st_size
    length = size - offset if length < 0 else length
    if offset < 0 or length < 0 or offset + length > size:
        raise InputError(f"the weights {location[:80]!r} of {path} are truncated")
    return length


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        yield from _node_tensors(function.node)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for graph in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                yield from _graph_tensors(graph)


def _complete_outputs(model: onnx.ModelProto) -> bool:
    """Write the shapes of outputs that have none but follow from the inputs; tell whether there were any."""
    open_ended = [value for value in model.graph.output if not value.type.tensor_type.HasField("shape")]
    if not open_ended:
        return False
    try:
        inferred = {value.name: value.type for value in onnx.shape_inference.infer_shapes(model).graph.output}
    except (RuntimeError, ValueError, onnx.shape_inference.InferenceError):
        return False
    for value in open_ended:
        value.type.CopyFrom(inferred[value.name])
    return True


def _check(model: onnx.ModelProto, path: Path) -> None:
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise InputError(
            f"{path} is not a valid ONNX model, or is truncated: {first_line(error)}", hint="export it again"
        ) from error


def _upgrade(model: onnx.ModelProto, path: Path) -> tuple[onnx.ModelProto, int]:
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if opset >= _OLDEST_OPSET:
        return model, opset
    try:
        return onnx.version_converter.convert_version(model, _UPGRADED_OPSET), _UPGRADED_OPSET
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"{path} has opset {opset}, which cannot be upgraded to {_UPGRADED_OPSET}: {first_line(error)}",
            hint=f"export it again with opset {_UPGRADED_OPSET}",
        ) from error


def _signature(model: onnx.ModelProto, path: Path) -> Signature:
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    try:
        return Signature(
            inputs=tuple(_spec(value, "input") for value in inputs),
            outputs=tuple(_spec(value, "output") for value in model.graph.output),
        )
    except EdgeServeError as error:
        raise InputError(f"{path}: {error.message}", hint=error.hint) from error


def _spec(value: onnx.ValueInfoProto, side: str) -> TensorSpec:
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type") or tensor.elem_type == onnx.TensorProto.UNDEFINED:
        raise InputError(f"{side} {value.name!r} is not a tensor", hint="only tensors of plain numbers are served")
    if not tensor.HasField("shape"):
        raise InputError(
            f"{side} {value.name!r} has no fixed rank",
            hint="export the model with the shape of every input and output; only the sizes may vary",
        )
    if tensor.elem_type == onnx.TensorProto.STRING:
        datatype = Datatype.BYTES
    else:
        datatype = datatype_of(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name)
    sizes = (d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else -1 for d in tensor.shape.dim)
    return TensorSpec(name=value.name, datatype=datatype, shape=tuple(sizes))
