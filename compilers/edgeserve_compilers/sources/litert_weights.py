"""Weights that a .tflite file with a float model stores as integers to be smaller ("dynamic range quantization")."""

from __future__ import annotations

import struct
from typing import Any, Final

import flatbuffers  # type: ignore[import-untyped]
import numpy as np
from ai_edge_litert import schema_py_generated as schema

_STORED: Final = {schema.TensorType.INT8: np.int8, schema.TensorType.UINT8: np.uint8}


def float_weights(data: bytes) -> tuple[bytes, int]:
    """Return the same model with all weights float32, and how many were not.

    A model that computes in integers, or is damaged, comes back as it is: only weights of operations whose input and
    output are float are changed. LiteRT's kernels differ in how they round the activations of such a model on the fly
    (answers 0.12 apart were seen), so the rounded weights are the only thing that is certain about it.
    """
    try:
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data))
        stored = [tensor for graph in model.subgraphs for tensor in _weights_only(graph, model.buffers)]
        if not stored:
            return data, 0
        for tensor in stored:
            _restore(tensor, model)
        builder = flatbuffers.Builder(len(data) * 4)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output()), len(stored)
    except (struct.error, IndexError, ValueError, TypeError, AttributeError):
        return data, 0


def _weights_only(graph: Any, buffers: Any) -> list[Any]:  # noqa: ANN401 - generated code is not typed
    """Quantized constants of a graph in which nothing else is quantized; empty when something is."""
    quantized = [tensor for tensor in graph.tensors if _is_quantized(tensor)]
    constant = [tensor for tensor in quantized if buffers[tensor.buffer].data is not None]
    computes_in_integers = len(constant) < len(quantized) or any(tensor.type not in _STORED for tensor in constant)
    return [] if computes_in_integers else constant


def _is_quantized(tensor: Any) -> bool:  # noqa: ANN401
    facts = tensor.quantization
    return facts is not None and facts.scale is not None and len(facts.scale) > 0


def _restore(tensor: Any, model: Any) -> None:  # noqa: ANN401
    facts = tensor.quantization
    values = np.frombuffer(bytes(model.buffers[tensor.buffer].data), _STORED[tensor.type]).reshape(tensor.shape)
    along = [1] * values.ndim
    if len(facts.scale) > 1:
        along[facts.quantizedDimension] = -1
    scale = np.asarray(facts.scale, np.float32).reshape(along)
    zero = np.asarray(facts.zeroPoint if facts.zeroPoint is not None else [0], np.float32)
    whole = (values.astype(np.float32) - (zero.reshape(along) if zero.size > 1 else zero.reshape(-1)[:1])) * scale
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(np.ascontiguousarray(whole, np.float32).tobytes(), np.uint8)
    tensor.buffer = len(model.buffers)
    model.buffers.append(buffer)
    tensor.type, tensor.quantization = schema.TensorType.FLOAT32, None
