"""Half precision of ONNX models: weights and activations f16, inputs and outputs as they were."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Final

import onnx
from onnx import TensorProto, helper

from edgeserve_compilers.targets.base import Product
from edgeserve_compilers.targets.onnx_graph import COMPUTE, CONVERSIONS, ENTRY, Graph
from edgeserve_compilers.targets.ranges import Statistics

OVERFLOWS: Final = 65504 / 2
"""Half of the largest f16: operations that came so near on the calibration rows stay float."""


def halved(graph: Graph, statistics: Mapping[str, Statistics]) -> onnx.ModelProto:
    """The model in half precision, with what would overflow left in float.

    Args:
        graph: The folded float model.
        statistics: Of its tensors; empty = not measured.
    """
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    wide = {name for name, found in statistics.items() if max(-found.low, found.high) > OVERFLOWS}
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of numbers too small for f16, which become its smallest
        built: onnx.ModelProto = convert_float_to_float16(
            model,
            keep_io_types=True,
            op_block_list=DEFAULT_OP_BLOCK_LIST,
            node_block_list=[node.name for node in graph.nodes if wide.intersection([*node.input, *node.output])],
        )
    built.producer_name = "edgeserve"
    _without_detours(built)
    return built


def _without_detours(model: onnx.ModelProto) -> None:
    """Let float operations read float results: the converter casts them to half and back, where they overflow."""
    casts = {
        node.output[0]: node
        for node in model.graph.node
        if node.op_type == "Cast" and _type_of(node, {}) in (TensorProto.FLOAT16, TensorProto.FLOAT)
    }
    straight: dict[str, str] = {}
    for name, back in casts.items():
        there = casts.get(back.input[0])
        if there is not None and (_type_of(there, {}), _type_of(back, {})) == (TensorProto.FLOAT16, TensorProto.FLOAT):
            straight[name] = there.input[0]
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            if name in straight:
                node.input[place] = straight[name]
    used = {name for node in model.graph.node for name in node.input} | {value.name for value in model.graph.output}
    for node in [node for node in model.graph.node if node.output and node.output[0] in casts]:
        if node.output[0] not in used:
            model.graph.node.remove(node)


def counted(model: onnx.ModelProto) -> Product:
    """What the nodes of a product in half precision compute in."""
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    placement = {"fp16": 0, "float": 0}
    compute = 0
    for node in model.graph.node:
        kind = _type_of(node, types)
        types.update(dict.fromkeys(node.output, kind))
        if node.op_type not in CONVERSIONS:
            placement["fp16" if kind == TensorProto.FLOAT16 else "float"] += 1
            compute += node.op_type in COMPUTE
    return Product(
        entry=ENTRY, compute_nodes=compute, placement={kind: count for kind, count in placement.items() if count}
    )


def _type_of(node: Any, types: Mapping[str, int]) -> int:  # noqa: ANN401
    for entry in node.attribute:
        if entry.name == "to":
            return int(helper.get_attribute_value(entry))
        if entry.name == "value" and entry.HasField("t"):
            return int(entry.t.data_type)
    given = [types.get(name, TensorProto.FLOAT) for name in node.input]
    return TensorProto.FLOAT16 if TensorProto.FLOAT16 in given else TensorProto.FLOAT
