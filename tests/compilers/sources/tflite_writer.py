"""Writes .tflite files, and runs them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeserve.runtimes.base import RuntimeOptions

pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed: pip install 'edgeserve[litert]'")

import flatbuffers
from ai_edge_litert import schema_py_generated as schema

F32, I32, I64, BOOL, F16, I8 = (
    schema.TensorType.FLOAT32,
    schema.TensorType.INT32,
    schema.TensorType.INT64,
    schema.TensorType.BOOL,
    schema.TensorType.FLOAT16,
    schema.TensorType.INT8,
)
_KINDS = {F32: np.float32, I32: np.int32, I64: np.int64, BOOL: np.bool_, F16: np.float16, I8: np.int8}
SAME, VALID = 0, 1


class Writer:
    """Writes .tflite files with the schema's own code."""

    def __init__(self, seed: int = 0) -> None:
        self.model, self.graph = schema.ModelT(), schema.SubGraphT()
        self.graph.tensors, self.graph.operators, self.graph.inputs, self.graph.outputs = [], [], [], []
        self.model.buffers, self.model.operatorCodes, self.model.subgraphs = [schema.BufferT()], [], [self.graph]
        self.model.version, self.model.description = 3, b"made by a test"
        self.random = np.random.default_rng(seed)

    def tensor(self, shape, kind=F32, value=None, *, scales=None, axis=0) -> int:
        tensor = schema.TensorT()
        tensor.name, tensor.type = f"t{len(self.graph.tensors)}".encode(), kind
        tensor.shape = [abs(size) for size in shape]
        if -1 in shape:
            tensor.shapeSignature = list(shape)
        tensor.buffer = 0
        if value is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(value, _KINDS[kind]).tobytes(), np.uint8)
            tensor.buffer = len(self.model.buffers)
            self.model.buffers.append(buffer)
        if scales is not None:
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale, tensor.quantization.zeroPoint = list(scales), [0] * len(scales)
            tensor.quantization.quantizedDimension = axis
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def input(self, *shape: int, kind=F32) -> int:
        index = self.tensor(shape, kind)
        self.graph.inputs.append(index)
        return index

    def weight(self, *shape: int, scale: float = 0.5) -> int:
        return self.tensor(shape, value=self.random.standard_normal(shape) * scale)

    def ints(self, *values: int, kind=I32) -> int:
        return self.tensor([len(values)], kind, values)

    def op(self, kind: str, inputs, shape, *, options: str = "", outputs: int = 1, result=F32, **fields) -> int:
        code = schema.OperatorCodeT()
        number = getattr(schema.BuiltinOperator, kind)
        code.builtinCode, code.deprecatedBuiltinCode, code.version = number, min(number, 127), 1
        self.model.operatorCodes.append(code)
        operator = schema.OperatorT()
        operator.opcodeIndex, operator.inputs = len(self.model.operatorCodes) - 1, list(inputs)
        shapes = shape if outputs > 1 else [shape]
        operator.outputs = [self.tensor(each, result) for each in shapes]
        if options:
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, options)
            operator.builtinOptions = getattr(schema, options + "T")()
            for name, value in fields.items():
                assert hasattr(operator.builtinOptions, name), name
                setattr(operator.builtinOptions, name, value)
        self.graph.operators.append(operator)
        return operator.outputs[0]

    def conv(self, data: int, shape, weights, *, padding=SAME, stride=1, fused=0, dilation=1) -> int:
        inputs = [data, self.weight(*weights), self.weight(weights[0])]
        return self.op(
            "CONV_2D", inputs, shape, options="Conv2DOptions", padding=padding, strideH=stride, strideW=stride,
            dilationHFactor=dilation, dilationWFactor=dilation, fusedActivationFunction=fused,
        )  # fmt: skip

    def content(self, *outputs: int) -> bytes:
        self.graph.outputs = list(outputs)
        builder = flatbuffers.Builder(1024)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def interpret(path: Path, rows: np.ndarray) -> list[np.ndarray]:
    from edgeserve.runtimes.litert import LiteRtRuntime

    loaded = LiteRtRuntime().load(path, RuntimeOptions())
    try:
        return list(loaded.run({loaded.signature.inputs[0].name: rows}).values())
    finally:
        loaded.close()
