"""Static int8 quantization of ONNX models in QDQ form: what is quantized, and on which grid.

A value is quantized where an integer operation reads it, and behind convolutions whose kernels need that; other pairs
of QuantizeLinear and DequantizeLinear are not there.
https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from edgeserve_compilers.targets.onnx_graph import COMPUTE, Graph, attribute
from edgeserve_compilers.targets.ranges import NOTHING, Range

RELU: Final = frozenset({"Relu", "Clip"})
"""Become part of the grid of what they limit."""
MOVES: Final = frozenset(
    {"MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Split", "Resize", "DepthToSpace"}
)
"""Values stay what they are: one grid before and after."""
JOINS: Final = frozenset({"Concat"})
CPU_LAYERS: Final = frozenset({"Conv", "Gemm", "MatMul"})
"""Layers with integer kernels in ONNX Runtime's CPU provider."""
CPU_ARITHMETIC: Final = frozenset({"Add", "Mul", "Sigmoid", "LeakyRelu", "AveragePool", "GlobalAveragePool", *JOINS})
"""Operations without weights that have integer kernels there."""
SIGMOID_SATURATES: Final = 8.0
"""Beyond it sigmoid is within 0.0004 of 0 or 1: what is read by it alone needs no steps there."""
_UNLIMITED: Final = float("inf")
FLOAT_OUTPUTS: Final = frozenset({"Gemm", "MatMul"})
"""Layers whose integer kernels on CPUs can answer in float."""


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """Numeric form of one kind of hardware."""

    name: str
    """Begins the recipes."""
    signed: bool
    """Activations are s8, not u8. Weights are always s8, symmetric, with a scale for each output channel."""
    symmetric: bool
    """Zero points of activations are 0."""
    largest_weight: int
    """127, or 64: 7 bits, so that two products of u8 and s8 do not overflow 16 bits."""
    integer_bias: bool
    """Biases are int32 in steps of input scale times weight scale, as integer kernels take them."""
    layers: frozenset[str]
    """Layers with integer kernels; of others only the weights are stored as integers."""
    arithmetic: frozenset[str]
    """Operations without weights that compute in integers, joins among them, where operators are `all`."""
    grid_outputs: bool
    """Convolutions need a quantized output to compute in integers."""

    def takes(self, operators: str) -> frozenset[str]:
        """Operations without weights that a recipe quantizes."""
        return MOVES | RELU | (self.arithmetic if operators == "all" else frozenset())


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Scale and zero point of a tensor."""

    scale: np.float32
    zero: int


def grid_of(found: Range, *, signed: bool, symmetric: bool) -> Grid:
    """The 8-bit grid over a range, which zero is always part of."""
    low, high = min(found[0], 0.0), max(found[1], 0.0)
    if high - low < NOTHING:
        low, high = 0.0, 1.0
    if symmetric:
        return Grid(scale=np.float32(max(-low, high) / 127), zero=0)
    scale = np.float32((high - low) / 255)
    lowest = -128 if signed else 0
    return Grid(scale=scale, zero=int(np.clip(np.rint(lowest - low / scale), lowest, lowest + 255)))


class Plan:
    """Which nodes compute in integers and which tensors are quantized, for one choice of layers."""

    def __init__(
        self,
        graph: Graph,
        scheme: Scheme,
        *,
        layers: Collection[str],
        operators: str,
        head: Collection[str],
        measured: Collection[str],
    ) -> None:
        self.graph, self.scheme, self.layers = graph, scheme, set(layers)
        self._head, self._measured = set(head), measured
        self.integer: set[str] = set()
        """Names of the nodes that get integers."""
        self._forwards(scheme.takes(operators))
        self._backwards()
        self.pairs = {name for name in self._tensors() if self._is_quantized(name)}
        """Tensors behind which QuantizeLinear and DequantizeLinear stand."""

    def _forwards(self, takes: frozenset[str]) -> None:
        """Layers, and what gets nothing but results of integer operations."""
        for node in self.graph.nodes:
            data = data_inputs(self.graph, node)
            if not data or not all(name in self._measured for name in [*data, *node.output[:1]]):
                continue
            if node.name in self.layers:
                if node.op_type in self.scheme.layers:
                    self.integer.add(node.name)
            elif node.op_type in takes and node.name not in self._head and has_integer_form(self.graph, node):
                sources = [self.graph.producer.get(name) for name in data]
                if all(source is not None and source.name in self.integer for source in sources):
                    self.integer.add(node.name)

    def _backwards(self) -> None:
        """Drop operations without weights whose results only float operations read."""
        for node in reversed(self.graph.nodes):
            if node.name in self.integer - self.layers and not any(map(self._read_by_integer, node.output)):
                limits = node.op_type in RELU and self._needs_grid(self.graph.producer[node.input[0]])
                if not (limits and self.merged(node.input[0])):
                    self.integer.discard(node.name)

    def _needs_grid(self, node: Any) -> bool:  # noqa: ANN401
        integer_layer = node.name in self.layers & self.integer
        return self.scheme.grid_outputs and integer_layer and node.op_type not in FLOAT_OUTPUTS

    def merged(self, tensor: str) -> bool:
        """Whether a tensor exists only between an integer operation and the Relu that limits it."""
        readers = self.graph.readers.get(tensor, [])
        source = self.graph.producer.get(tensor)
        return (
            source is not None
            and source.name in self.integer
            and tensor not in self.graph.pinned
            and len(readers) == 1
            and readers[0].op_type in RELU
            and readers[0].name in self.integer
        )

    def _read_by_integer(self, tensor: str) -> bool:
        return any(
            reader.name in self.integer and tensor in data_inputs(self.graph, reader)
            for reader in self.graph.readers.get(tensor, [])
        )

    def _tensors(self) -> list[str]:
        return [*self.graph.inputs, *(name for node in self.graph.nodes for name in node.output if name)]

    def _is_quantized(self, tensor: str) -> bool:
        if self.merged(tensor):
            return False
        if self._read_by_integer(tensor):
            return True
        source = self.graph.producer.get(tensor)
        if source is not None and source.op_type in RELU and source.name in self.integer:
            source = self.graph.producer[source.input[0]]
        if source is None or not self._needs_grid(source) or tensor in self.graph.pinned:
            return False
        readers = {reader.name for reader in self.graph.readers.get(tensor, [])}
        return bool(readers) and not readers <= self._head

    def same_grid(self, tensor: str) -> str:
        """The tensor whose grid this one shares: that before a move, or after a join that alone reads it."""
        source = self.graph.producer.get(tensor)
        if source is not None and source.name in self.integer and source.op_type in MOVES:
            return self.same_grid(source.input[0])
        readers = self.graph.readers.get(tensor, [])
        alone = len(readers) == 1 and readers[0].op_type in JOINS and readers[0].name in self.integer
        if not alone or tensor in self.graph.pinned:
            return tensor
        joined = readers[0].output[0]
        if self._limit(joined) > self._limit(tensor):
            return tensor  # a grid that goes on beyond its limits would leave them, and all before, to float kernels
        return self.same_grid(joined)

    def _limit(self, tensor: str) -> float:
        """Up to where values go that begin at zero by a Relu or Clip; `_UNLIMITED` for all others."""
        source = self.graph.producer.get(tensor)
        if source is None or source.name not in self.integer:
            return _UNLIMITED
        if source.op_type in JOINS:
            return max(map(self._limit, source.input))
        if source.op_type in MOVES:
            return self._limit(source.input[0])
        return highest(self.graph, source) if source.op_type in RELU else _UNLIMITED


def data_inputs(graph: Graph, node: Any) -> list[str]:  # noqa: ANN401
    """Inputs whose values are computed with and come from other nodes; not shapes, indices and limits."""
    found = graph.activations(node)
    if node.op_type in MOVES | RELU | COMPUTE:
        return [name for name in node.input[:1] if name in found]
    return found


def highest(graph: Graph, limiting: Any) -> float:  # noqa: ANN401
    """The most that a Relu or Clip lets through."""
    bound = limiting.input[2] if len(limiting.input) > 2 else ""
    return float(graph.value(bound)) if bound in graph.initializers else float(np.finfo(np.float32).max)


def has_integer_form(graph: Graph, node: Any) -> bool:  # noqa: ANN401
    """Whether an operation without weights can compute on integers, as far as its attributes and constants say."""
    if node.op_type == "Resize":  # between pixels lie values that are on no grid
        return bool(attribute(node, "mode", b"nearest") == b"nearest")
    if node.op_type == "Clip":  # one that begins elsewhere cuts between two steps of a grid
        stored = all(name in graph.initializers for name in node.input[1:] if name)
        return stored and len(node.input) > 1 and bool(node.input[1]) and not graph.value(node.input[1]).any()
    # A constant operand would need a grid of its own: such products and sums stay float.
    return node.op_type in MOVES | RELU or len(graph.activations(node)) == len(node.input)


def useful(graph: Graph, tensor: str, found: Range) -> Range:
    """The part of a range that makes a difference to what reads it: Sigmoid, and x Sigmoid(x) (SiLU), level off."""
    readers = graph.readers.get(tensor, [])
    sigmoids = [reader for reader in readers if reader.op_type == "Sigmoid"]
    others = [reader for reader in readers if reader.op_type != "Sigmoid"]
    if not sigmoids or tensor in graph.pinned:
        return found
    gates = {sigmoid.output[0] for sigmoid in sigmoids}
    if any(reader.op_type != "Mul" or len(gates.intersection(reader.input)) != 1 for reader in others):
        return found
    low, high = found
    return max(low, -SIGMOID_SATURATES), (high if others else min(high, SIGMOID_SATURATES))
