"""Puts quantized ONNX models together from a plan. Weights are made integers once and used again by every candidate."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from edgeserve.runtimes.base import Tensor
from edgeserve_compilers.targets import weights
from edgeserve_compilers.targets.onnx_graph import Graph, skeleton
from edgeserve_compilers.targets.qdq import Grid, Plan, Scheme, grid_of, useful
from edgeserve_compilers.targets.ranges import Range, Statistics
from edgeserve_compilers.targets.weights import Layer

_CONTRIB: Final = "com.microsoft"
_SMALLEST_BLOCKED: Final = 2 * weights.BLOCK
"""Rows of a matrix from which scales by block pay."""


@dataclass(frozen=True, kw_only=True)
class _Steps:
    scales: npt.NDArray[np.float32]
    steps: npt.NDArray[np.int8]
    shift: npt.NDArray[np.float64] | None
    """What rounding the weights adds to the mean of each output channel; None = not known."""


class Quantizer:
    """Makes quantized models of one graph in one scheme."""

    def __init__(
        self, graph: Graph, scheme: Scheme, layers: Mapping[str, Layer], statistics: Mapping[str, Statistics]
    ) -> None:
        self.graph, self.scheme, self.layers = graph, scheme, layers
        self._statistics = statistics
        self._steps: dict[str, _Steps] = {}
        self._ranges: dict[tuple[str, str], Range] = {}
        self._nodes = {node.name: node for node in graph.nodes}

    def quantized(
        self, layers: Collection[str], *, calibrator: str, operators: str, corrected: bool, head: Collection[str]
    ) -> onnx.ModelProto:
        """The model with weights of `layers`, and the activations between them, as 8-bit integers.

        Args:
            layers: Names of layers.
            calibrator: How ranges are cut.
            operators: `all`, or `compute`: layers and what only moves values.
            corrected: Take what rounding the weights does to a channel's mean out of its bias.
            head: Nodes that stay float.
        """
        plan = Plan(
            self.graph, self.scheme, layers=layers, operators=operators, head=head, measured=self._statistics.keys()
        )
        writer = _Writer(self.graph)
        grids = {name: self._grid(plan.same_grid(name), calibrator) for name in plan.pairs}
        for name in self.graph.inputs:
            if name in plan.pairs:
                writer.pair(name, plan.same_grid(name), grids[name], signed=self.scheme.signed)
        for node in self.graph.nodes:
            copied = onnx.NodeProto()
            copied.CopyFrom(node)
            integer = node.name in plan.integer
            for place, name in enumerate(node.input):
                source = self.graph.producer.get(name)
                on_grid = self.scheme.grid_outputs and source is not None and source.name in plan.integer
                if name in plan.pairs and (integer or on_grid):
                    copied.input[place] = writer.dequantized[name]
            if node.name in plan.layers:
                grid = grids.get(node.input[0]) if integer else None
                self._write_layer(writer, copied, self.layers[node.name], grid, corrected=corrected)
            writer.add(copied)
            for name in node.output:
                if name in plan.pairs:
                    writer.pair(name, plan.same_grid(name), grids[name], signed=self.scheme.signed)
        return writer.model()

    def weights_only(self, layers: Collection[str], *, bits: int) -> onnx.ModelProto:
        """The model with weights of `layers` as integers, computing in float.

        Matrices get a scale for each block of 32 and `bits` bits; convolutions 8 bits and a scale for each channel.

        Raises:
            ValueError: There is no matrix, and `bits` is not 8.
        """
        if bits != 8 and not any(_is_blocked(self.layers[name], self.graph) for name in layers):
            raise ValueError(f"the model has no matrix that is large enough to be stored in {bits} bits")
        writer = _Writer(self.graph)
        for node in self.graph.nodes:
            layer = self.layers.get(node.name) if node.name in layers else None
            copied = onnx.NodeProto()
            copied.CopyFrom(node)
            if layer is not None and _is_blocked(layer, self.graph):
                self._write_blocks(writer, copied, layer, bits)
                continue
            if layer is not None:
                values = self.graph.value(layer.weight)
                scales = weights.channel_scales(values, layer.axis, 127)
                steps = weights.quantize(values, scales, layer.axis, 127)
                copied.input[1] = writer.stored(f"{layer.name}_weight", steps, scales, layer.axis)
            writer.add(copied)
        return writer.model()

    def _grid(self, tensor: str, calibrator: str) -> Grid:
        key = (tensor, calibrator)
        if key not in self._ranges:
            cut = self._statistics[tensor].cut(calibrator, symmetric=self.scheme.symmetric)
            self._ranges[key] = useful(self.graph, tensor, cut)
        return grid_of(self._ranges[key], signed=self.scheme.signed, symmetric=self.scheme.symmetric)

    def _write_layer(self, writer: _Writer, node: Any, layer: Layer, grid: Grid | None, *, corrected: bool) -> None:  # noqa: ANN401
        """Let a layer read integer weights, and integer biases where it computes in integers itself."""
        bias = np.asarray(self.graph.value(layer.bias), np.float32) if layer.bias else None
        made = self._integer(layer, bias, grid)
        node.input[1] = writer.stored(f"{layer.name}_weight", made.steps, made.scales, layer.axis)
        if corrected and made.shift is not None and layer.bias_correctable:
            zeros = np.zeros(len(made.shift), np.float32)
            bias = ((zeros if bias is None else bias) - made.shift).astype(np.float32)
        if bias is None:
            return
        del node.input[2:]
        if self.scheme.integer_bias and grid is not None and layer.op != "MatMul":
            scales = np.asarray(made.scales * grid.scale, np.float32)
            steps = np.rint(bias / scales.astype(np.float64)).astype(np.int32)
            node.input.append(writer.stored(f"{layer.name}_bias", steps, scales, None if layer.axis is None else 0))
        else:
            node.input.append(writer.initializer(f"{layer.name}_bias", bias))

    def _integer(self, layer: Layer, bias: Tensor | None, grid: Grid | None) -> _Steps:
        if layer.name not in self._steps:
            values = self.graph.value(layer.weight)
            self._steps[layer.name] = self._rounded(
                layer, weights.channel_scales(values, layer.axis, self.scheme.largest_weight)
            )
        made = self._steps[layer.name]
        if grid is None or not self.scheme.integer_bias:
            return made
        scales = weights.room_for_bias(made.scales, bias, float(grid.scale))
        return made if scales is made.scales or np.array_equal(scales, made.scales) else self._rounded(layer, scales)

    def _rounded(self, layer: Layer, scales: npt.NDArray[np.float32]) -> _Steps:
        values = self.graph.value(layer.weight)
        steps = weights.quantize(values, scales, layer.axis, self.scheme.largest_weight)
        node = self._nodes[layer.name]
        statistics = self._statistics.get(node.input[0])
        shift = None
        if statistics is not None and statistics.channel_mean is not None and layer.bias_correctable:
            error = weights.dequantize(steps, scales, layer.axis) - np.asarray(values, np.float32)
            shift = layer.mean_shift(node, error, statistics.channel_mean)
        return _Steps(scales=scales, steps=steps, shift=shift)

    def _write_blocks(self, writer: _Writer, node: Any, layer: Layer, bits: int) -> None:  # noqa: ANN401
        matrix = self.graph.value(layer.weight)
        matrix = matrix.T if layer.axis == 0 else matrix
        steps, scales = weights.blocks(matrix, bits)
        name = f"{layer.name}_weight"
        product = helper.make_node(
            "MatMulNBits",
            [node.input[0], writer.initializer(f"{name}_steps", steps), writer.initializer(f"{name}_scales", scales)],
            [writer.fresh(f"{layer.name}_product")] if layer.bias else list(node.output),
            name=layer.name,
            domain=_CONTRIB,
            K=matrix.shape[0],
            N=matrix.shape[1],
            bits=bits,
            block_size=weights.BLOCK,
        )
        writer.add(product)
        if layer.bias:
            writer.add(helper.make_node("Add", [product.output[0], layer.bias], node.output, name=f"{layer.name}_bias"))


class _Writer:
    """Collects nodes and initializers, and gives new tensors names that are not taken."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._nodes: list[Any] = []
        self._new: dict[str, Any] = {}
        self._taken = {*graph.initializers, *graph.producer, *graph.inputs}
        self._grids: dict[str, list[str]] = {}
        self.dequantized: dict[str, str] = {}

    def fresh(self, name: str) -> str:
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name

    def add(self, node: Any) -> None:  # noqa: ANN401
        self._nodes.append(node)

    def initializer(self, name: str, values: Tensor) -> str:
        name = self.fresh(name)
        self._new[name] = numpy_helper.from_array(np.array(values, order="C"), name)
        return name

    def pair(self, tensor: str, owner: str, grid: Grid, *, signed: bool) -> None:
        """Put a tensor on a grid, which all tensors of one `owner` share."""
        if owner not in self._grids:
            zero = np.array(grid.zero, np.int8 if signed else np.uint8)
            self._grids[owner] = [
                self.initializer(f"{owner}_scale", np.array(grid.scale)),
                self.initializer(f"{owner}_zero", zero),
            ]
        steps, values = self.fresh(f"{tensor}_quantized"), self.fresh(f"{tensor}_dequantized")
        parameters = self._grids[owner]
        self.add(helper.make_node("QuantizeLinear", [tensor, *parameters], [steps], name=steps))
        self.add(helper.make_node("DequantizeLinear", [steps, *parameters], [values], name=values))
        self.dequantized[tensor] = values

    def stored(self, name: str, steps: Tensor, scales: npt.NDArray[np.float32], axis: int | None) -> str:
        """Integers of a weight or bias, dequantized: returns the name of the float tensor."""
        inputs = [
            self.initializer(f"{name}_steps", steps),
            self.initializer(f"{name}_scales", scales),
            self.initializer(f"{name}_zeros", np.zeros(scales.shape, steps.dtype)),
        ]
        values = self.fresh(f"{name}_dequantized")
        node = helper.make_node("DequantizeLinear", inputs, [values], name=values)
        if axis is not None:
            node.attribute.append(helper.make_attribute("axis", axis))
        self.add(node)
        return values

    def model(self) -> onnx.ModelProto:
        model = skeleton(self._graph)
        model.graph.node.extend(self._nodes)
        used = {name for node in self._nodes for name in node.input} | self._graph.pinned
        model.graph.initializer.extend(tensor for name, tensor in self._graph.initializers.items() if name in used)
        model.graph.initializer.extend(self._new.values())
        contrib = any(node.domain == _CONTRIB for node in self._nodes)
        if contrib and not any(entry.domain == _CONTRIB for entry in model.opset_import):
            model.opset_import.append(helper.make_opsetid(_CONTRIB, 1))
        return model


def _is_blocked(layer: Layer, graph: Graph) -> bool:
    values = graph.value(layer.weight)
    inputs = values.shape[1 if layer.axis == 0 else 0]
    return layer.op in ("Gemm", "MatMul") and values.ndim == 2 and inputs >= _SMALLEST_BLOCKED
