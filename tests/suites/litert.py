"""Tiny TFLite models that tests build for themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flatbuffers
import numpy as np
import pytest

from tests.suites.models import CLASSES

pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed: pip install 'edgeserve[litert]'")

from ai_edge_litert import schema_py_generated as schema

FLOAT32, INT8, INT32, STRING = (getattr(schema.TensorType, name) for name in ("FLOAT32", "INT8", "INT32", "STRING"))


@dataclass(frozen=True, kw_only=True)
class T:
    """A tensor; -1 in its shape varies and is 1 at first."""

    name: str
    shape: Sequence[int]
    type: int = FLOAT32
    data: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class Op:
    """An operation between tensors by place; `code` is a builtin or the name of a custom one."""

    code: int | str
    inputs: Sequence[int]
    outputs: Sequence[int]
    options: Any = None


def tflite(
    tensors: Sequence[T],
    operators: Sequence[Op],
    *,
    inputs: Sequence[int],
    outputs: Sequence[int],
    signature: tuple[Mapping[str, int], Mapping[str, int]] | None = None,
) -> bytes:
    """Any graph; `signature` names inputs and outputs by place of their tensors."""
    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.buffers, model.subgraphs, model.operatorCodes = 3, [schema.BufferT()], [graph], []
    graph.inputs, graph.outputs, graph.tensors, graph.operators = list(inputs), list(outputs), [], []
    for tensor in tensors:
        built = schema.TensorT()
        built.name, built.type, built.hasRank = tensor.name.encode(), tensor.type, True
        built.shape = [max(size, 1) for size in tensor.shape]
        if -1 in tensor.shape:
            built.shapeSignature = list(tensor.shape)
        if tensor.data is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(tensor.data.tobytes(), np.uint8)
            model.buffers.append(buffer)
            built.buffer = len(model.buffers) - 1
        graph.tensors.append(built)
    for operator in operators:
        code = schema.OperatorCodeT()
        if isinstance(operator.code, str):
            code.builtinCode, code.customCode = schema.BuiltinOperator.CUSTOM, operator.code.encode()
        else:
            code.builtinCode = operator.code
        code.deprecatedBuiltinCode, code.version = min(code.builtinCode, 127), 1
        model.operatorCodes.append(code)
        built = schema.OperatorT()
        built.opcodeIndex = len(model.operatorCodes) - 1
        built.inputs, built.outputs = list(operator.inputs), list(operator.outputs)
        if operator.options is not None:
            name = type(operator.options).__name__.removesuffix("T")
            built.builtinOptionsType, built.builtinOptions = getattr(schema.BuiltinOptions, name), operator.options
        graph.operators.append(built)
    if signature is not None:
        definition = schema.SignatureDefT()
        definition.signatureKey, definition.subgraphIndex = b"serving_default", 0
        definition.inputs, definition.outputs = ([_named(*pair) for pair in side.items()] for side in signature)
        model.signatureDefs = [definition]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def dense_weights() -> tuple[np.ndarray, np.ndarray]:
    """[CLASSES, 64] and [CLASSES] of `dense_net`."""
    random = np.random.default_rng(0)
    return (random.standard_normal((CLASSES, 64)) * 0.2).astype(np.float32), random.standard_normal(CLASSES).astype(
        np.float32
    )


def dense_net(
    batch: int = -1,
    *,
    names: tuple[str, str] = ("image", "logits"),
    signature: tuple[str, str] | None = ("image", "logits"),
    rows_inside: int = -1,
) -> bytes:
    """`image` f32 [batch, 1, 8, 8] to `logits` f32 [batch, 10]; `rows_inside` are what a constant in the graph says."""
    weights, bias = dense_weights()
    layer = schema.FullyConnectedOptionsT()
    return tflite(
        [
            T(name=names[0], shape=[batch, 1, 8, 8]),
            T(name="shape", shape=[2], type=INT32, data=np.array([rows_inside, 64], np.int32)),
            T(name="flat", shape=[batch, 64]),
            T(name="weights", shape=[CLASSES, 64], data=weights),
            T(name="bias", shape=[CLASSES], data=bias),
            T(name=names[1], shape=[batch, CLASSES]),
        ],
        [
            Op(code=schema.BuiltinOperator.RESHAPE, inputs=[0, 1], outputs=[2], options=schema.ReshapeOptionsT()),
            Op(code=schema.BuiltinOperator.FULLY_CONNECTED, inputs=[2, 3, 4], outputs=[5], options=layer),
        ],
        inputs=[0],
        outputs=[5],
        signature=signature and ({signature[0]: 0}, {signature[1]: 5}),
    )


def _named(name: str, place: int) -> Any:
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name.encode(), place
    return entry
