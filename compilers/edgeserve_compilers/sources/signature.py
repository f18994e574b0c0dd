"""Inputs and outputs of an ONNX graph."""

from __future__ import annotations

import numpy as np
import onnx

from edgeserve.contracts.errors import EdgeServeError, InputError
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec, datatype_of


def open_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Inputs that the caller must give: those of old files that only declare a weight are none."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in constants]


def signature_of(model: onnx.ModelProto, where: str) -> Signature:
    """Names, datatypes and shapes of the graph's inputs and outputs; `where` names the model in errors.

    Raises:
        InputError: One is no tensor of plain numbers, or has no fixed rank.
    """
    try:
        return Signature(
            inputs=tuple(_spec(value, "input") for value in open_inputs(model)),
            outputs=tuple(_spec(value, "output") for value in model.graph.output),
        )
    except EdgeServeError as error:
        raise InputError(f"{where}: {error.message}", hint=error.hint) from error


def trial_shapes(model: onnx.ModelProto, *, batch: int, size: int) -> dict[str, tuple[int, ...]]:
    """Shapes to try a model with: a dimension named as some input's first is the batch, other free ones get `size`."""
    inputs = [(value.name, value.type.tensor_type.shape.dim) for value in open_inputs(model)]
    first = {dims[0].dim_param for _, dims in inputs if dims}

    def chosen(axis: int, dim: onnx.TensorShapeProto.Dimension) -> int:
        if dim.HasField("dim_value") and dim.dim_value >= 0:
            return int(dim.dim_value)
        return batch if (dim.dim_param in first if dim.dim_param else axis == 0) else size

    return {name: tuple(chosen(axis, dim) for axis, dim in enumerate(dims)) for name, dims in inputs}


def complete_outputs(model: onnx.ModelProto) -> bool:
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
