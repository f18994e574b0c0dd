"""A .tflite file as plain data. The schema is tensorflow/lite/schema/schema.fbs, read by the code that LiteRT ships."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.limits import MAX_GRAPH_NODES
from edgeserve.runtimes.base import Tensor

_OPERATORS: Final = {code: name for name, code in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
_TYPES: Final = {code: name for name, code in vars(schema.TensorType).items() if not name.startswith("_")}
_DTYPES: Final = {
    "FLOAT32": np.float32,
    "FLOAT16": np.float16,
    "FLOAT64": np.float64,
    "INT64": np.int64,
    "INT32": np.int32,
    "INT16": np.int16,
    "INT8": np.int8,
    "UINT8": np.uint8,
    "BOOL": np.bool_,
}
_MALFORMED: Final = (struct.error, IndexError, KeyError, ValueError, TypeError, AttributeError, OverflowError)


@dataclass(frozen=True, kw_only=True)
class LiteRtTensor:
    """A value of the graph."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    """-1 = varies. Images are NHWC."""
    value: Tensor | None
    """Constants only."""
    quantized: bool


@dataclass(frozen=True, kw_only=True)
class LiteRtOperator:
    """An operation: `kind` as in `BuiltinOperator`, tensors by index (-1 = left out)."""

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Any
    """The schema's options table, `None` when there is none."""

    def option(self, name: str, default: Any = 0) -> Any:  # noqa: ANN401 - as the schema has it
        """An attribute of the options, or the schema's default."""
        return getattr(self.options, name, default) if self.options is not None else default


@dataclass(frozen=True, kw_only=True)
class LiteRtGraph:
    """The main subgraph."""

    tensors: tuple[LiteRtTensor, ...]
    operators: tuple[LiteRtOperator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    description: str


def read_graph(data: bytes, path: Path) -> LiteRtGraph:
    """Read the main subgraph.

    Raises:
        InputError: Not a .tflite file, damaged, too many operators, or with types that have no counterpart.
    """
    try:
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data))
        graph = model.subgraphs[0]
        tensors = tuple(_tensor(tensor, model.buffers) for tensor in graph.tensors)
        operators = tuple(_operator(each, model.operatorCodes) for each in graph.operators)
        inputs, outputs = (tuple(int(index) for index in side) for side in (graph.inputs, graph.outputs))
        description = (model.description or b"").decode(errors="replace")
    except _MALFORMED as error:
        raise InputError(
            f"{path} is not a TFLite model, or is truncated", hint="convert it again, or compare its size"
        ) from error
    if len(operators) > MAX_GRAPH_NODES:
        raise InputError(f"{path} has {len(operators)} operators, at most {MAX_GRAPH_NODES} are allowed")
    return LiteRtGraph(tensors=tensors, operators=operators, inputs=inputs, outputs=outputs, description=description)


def check_float(graph: LiteRtGraph, path: Path) -> None:
    """Refuse a model that is quantized already.

    Raises:
        InputError: It is.
    """
    quantized = [tensor for tensor in graph.tensors if tensor.quantized]
    if quantized:
        kinds = sorted({tensor.dtype.name for tensor in quantized})
        raise InputError(
            f"{path} is already quantized ({len(quantized)} of {len(graph.tensors)} tensors are {', '.join(kinds)})",
            hint="give the float model that it was made from: convert it again without `optimizations`",
        )


def _tensor(tensor: Any, buffers: Any) -> LiteRtTensor:  # noqa: ANN401 - generated code is not typed
    kind = _TYPES.get(tensor.type, str(tensor.type))
    name = (tensor.name or b"").decode(errors="replace")
    if kind not in _DTYPES:
        raise InputError(
            f"the tensor {name[:80]!r} holds {kind}, which has no counterpart in a float ONNX model",
            hint="give the float model as ONNX",
        )
    dtype = np.dtype(_DTYPES[kind])
    static = [] if tensor.shape is None else [int(size) for size in tensor.shape]
    signature = tensor.shapeSignature
    shape = static if signature is None or len(signature) != len(static) else [int(size) for size in signature]
    value = None
    data = buffers[tensor.buffer].data if tensor.buffer else None
    if data is not None and len(data):
        value = np.frombuffer(bytes(data), dtype).reshape(static)
    scales = None if tensor.quantization is None else tensor.quantization.scale
    quantized = scales is not None and len(scales) > 0 and dtype.kind in "iu"
    return LiteRtTensor(name=name, dtype=dtype, shape=tuple(shape), value=value, quantized=quantized)


def _operator(operator: Any, codes: Any) -> LiteRtOperator:  # noqa: ANN401
    code = codes[operator.opcodeIndex]
    number = max(code.builtinCode, code.deprecatedBuiltinCode)
    kind = _OPERATORS.get(number, f"operator {number}")
    if kind == "CUSTOM":
        kind = f"CUSTOM {(code.customCode or b'').decode(errors='replace')}"
    options = operator.builtinOptions if operator.builtinOptions is not None else operator.builtinOptions2
    return LiteRtOperator(
        kind=kind,
        inputs=tuple(int(index) for index in operator.inputs),
        outputs=tuple(int(index) for index in operator.outputs),
        options=options,
    )
