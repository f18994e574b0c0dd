"""Every node and tensor of an ONNX model: those of subgraphs (`If`, `Loop`, `Scan`) and functions included."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx


def nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Nodes of the graph, of its subgraphs and of the model's functions."""
    yield from _nested(model.graph.node)
    for function in model.functions:
        yield from _nested(function.node)


def tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Initializers and tensors in attributes, wherever they are."""
    yield from _initializers(model.graph)
    for node in nodes(model):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for sparse in (
                *([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else ()),
                *attribute.sparse_tensors,
            ):
                yield from (sparse.values, sparse.indices)
            for graph in subgraphs(attribute):
                yield from _initializers(graph)


def without_notes(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model`, changed: without what exporters note on its parts, such as the lines and folders of the source code."""
    graphs = [model.graph]
    for node in nodes(model):
        _forget(node)
        graphs += [graph for attribute in node.attribute for graph in subgraphs(attribute)]
    for graph in graphs:
        _forget(graph)
        for part in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
            _forget(part)
    for function in model.functions:
        _forget(function)
        for value in function.value_info:
            _forget(value)
    return model


def subgraphs(attribute: onnx.AttributeProto) -> Iterator[onnx.GraphProto]:
    """Graphs that an attribute holds."""
    if attribute.HasField("g"):
        yield attribute.g
    yield from attribute.graphs


def _forget(
    part: onnx.NodeProto | onnx.GraphProto | onnx.ValueInfoProto | onnx.TensorProto | onnx.FunctionProto,
) -> None:
    part.ClearField("doc_string")
    del part.metadata_props[:]


def _initializers(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)


def _nested(listed: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in listed:
        yield node
        for attribute in node.attribute:
            for graph in subgraphs(attribute):
                yield from _nested(graph.node)
