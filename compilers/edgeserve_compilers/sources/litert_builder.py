"""An ONNX graph in the making from a .tflite one: every image may exist as NHWC, as NCHW, or as both.

Convolutions ask for NCHW and leave NCHW; operations that do not care work on what is there; the others, and the borders
of the model, ask for NHWC. A transpose is written only where someone asks for the form that is not there, so adjacent
ones never arise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgeserve.contracts.errors import InputError
from edgeserve.runtimes.base import Tensor
from edgeserve_compilers.sources.litert_graph import LiteRtGraph, LiteRtOperator, LiteRtTensor

OPSET: Final = 17
TO_FIRST: Final = (0, 3, 1, 2)
"""NHWC to NCHW."""
TO_LAST: Final = (0, 2, 3, 1)
FIRST_AXIS: Final = {0: 0, 1: 2, 2: 3, 3: 1}
"""Where an axis of NHWC is in NCHW."""


EXPORT_HINT: Final = "export the model to ONNX with the framework that it was trained in, and give that file"


def unsupported(operator: LiteRtOperator, why: str) -> InputError:
    """The error for an operation, or a use of it, that cannot be converted."""
    return InputError(f"the TFLite operator {operator.kind} {why}", hint=EXPORT_HINT)


class Builder:
    """Collects nodes and weights. Values go by the tensor indices of the .tflite graph."""

    def __init__(self, graph: LiteRtGraph) -> None:
        self.graph = graph
        self._last: dict[int, str] = {}
        self._first: dict[int, str] = {}
        self._computed: dict[int, Tensor] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._weights: dict[str, onnx.TensorProto] = {}
        self._layer = ""
        for index in graph.inputs:
            self._last[index] = graph.tensors[index].name

    def tensor(self, index: int) -> LiteRtTensor:
        """Facts of a value."""
        return self.graph.tensors[index]

    def shape(self, index: int) -> tuple[int, ...]:
        """Its NHWC shape, -1 = varies."""
        return self.graph.tensors[index].shape

    def constant(self, index: int) -> Tensor | None:
        """Its value if that does not depend on the inputs."""
        computed = self._computed.get(index)
        return self.graph.tensors[index].value if computed is None else computed

    def set_constant(self, index: int, value: Tensor) -> None:
        """Make a value a constant (weights stored as float16, say)."""
        self._computed[index] = value

    def begin(self, name: str) -> None:
        """Name the layer that the next nodes belong to."""
        self._layer = name

    def node(self, kind: str, inputs: Sequence[str], **attributes: Any) -> str:  # noqa: ANN401
        """Add a node with one output; its name."""
        return self.node_many(kind, inputs, 1, **attributes)[0]

    def node_many(self, kind: str, inputs: Sequence[str], count: int, **attributes: Any) -> list[str]:  # noqa: ANN401
        """Add a node with several outputs; their names."""
        name = f"{self._layer}/{kind}_{len(self._nodes)}"
        outputs = [f"{name}:{number}" for number in range(count)]
        self._nodes.append(helper.make_node(kind, list(inputs), outputs, name=name, **attributes))
        return outputs

    def weight(self, value: Any, dtype: Any = None) -> str:  # noqa: ANN401
        """Add an initializer; its name."""
        array = np.array(value, dtype)  # a copy: views of the file have foreign strides
        name = f"{self._layer}/weight_{len(self._weights)}"
        self._weights[name] = numpy_helper.from_array(array, name)
        return name

    def last(self, index: int) -> str:
        """The value as the .tflite graph has it: images NHWC."""
        if index not in self._last:
            value = self.constant(index)
            if value is not None:
                self._last[index] = self.weight(value)
            elif index in self._first:
                self._last[index] = self.node("Transpose", [self._first[index]], perm=TO_LAST)
            else:
                raise InputError(f"the tensor {self.tensor(index).name[:80]!r} is used before it is computed")
        return self._last[index]

    def first(self, index: int) -> str:
        """An image as NCHW. Constants of a lower rank get the missing axes in front."""
        if index not in self._first:
            value = self.constant(index)
            if value is not None:
                return self.weight(value.reshape((1,) * (4 - value.ndim) + value.shape).transpose(TO_FIRST))
            self._first[index] = self.node("Transpose", [self.last(index)], perm=TO_FIRST)
        return self._first[index]

    def prefers_first(self, indices: Sequence[int]) -> bool:
        """Whether an operation that does not care should work on NCHW: some operand is there in no other form."""
        values = [index for index in indices if self.constant(index) is None]
        if any(len(self.shape(index)) != 4 for index in values):
            return False
        if any(constant is not None and constant.ndim > 4 for constant in map(self.constant, indices)):
            return False
        return any(index in self._first and index not in self._last for index in values)

    def operands(self, indices: Sequence[int]) -> tuple[list[str], bool]:
        """Values in the form that is there; whether that is NCHW."""
        first = self.prefers_first(indices)
        return [self.first(index) if first else self.last(index) for index in indices], first

    def put(self, index: int, name: str, *, first: bool = False) -> None:
        """Say that `name` is the value of tensor `index`."""
        (self._first if first else self._last)[index] = name

    def model(self) -> onnx.ModelProto:
        """The finished model; its inputs and outputs are named and shaped like those of the .tflite graph."""
        names = [self.tensor(index).name for index in self.graph.outputs]
        self.begin("output")
        for index, name in zip(self.graph.outputs, names, strict=True):
            self._rename(self.last(index), name)
        used = {name for node in self._nodes for name in node.input}
        graph = helper.make_graph(
            self._nodes,
            "litert",
            [self._info(index) for index in self.graph.inputs],
            [self._info(index) for index in self.graph.outputs],
            [tensor for name, tensor in self._weights.items() if name in used],
        )
        built = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
        built.ir_version = 8  # of ONNX 1.12, which brought opset 17
        return built

    def _rename(self, old: str, new: str) -> None:
        if old == new:  # an input that is an output, too
            return
        makers = [node for node in self._nodes if old in node.output]
        if not makers or old in {self.tensor(index).name for index in self.graph.outputs}:  # an input, or a copy of one
            self._nodes.append(helper.make_node("Identity", [old], [new], name=f"output/{new}"))
            return
        for node in self._nodes:
            for names in (node.input, node.output):
                for position, name in enumerate(names):
                    if name == old:
                        names[position] = new

    def _info(self, index: int) -> onnx.ValueInfoProto:
        tensor = self.tensor(index)
        dims = [("batch" if axis == 0 else f"d{axis}") if size < 0 else size for axis, size in enumerate(tensor.shape)]
        return helper.make_tensor_value_info(tensor.name, helper.np_dtype_to_tensor_dtype(tensor.dtype), dims)


Converter = Callable[[Builder, LiteRtOperator], None]


def activated(builder: Builder, operator: LiteRtOperator, name: str) -> str:
    """`name` after the activation that is fused into `operator`."""
    fused = operator.option("fusedActivationFunction")
    if fused == 0:
        return name
    if fused == 1:
        return builder.node("Relu", [name])
    if fused in (2, 3):
        low, high = (-1, 1) if fused == 2 else (0, 6)
        return clipped(builder, name, low, high)
    raise unsupported(operator, f"has the fused activation {fused}, which LiteRT itself does not compute")


def clipped(builder: Builder, name: str, low: float, high: float) -> str:
    """`name` held between two bounds."""
    return builder.node("Clip", [name, builder.weight(low, np.float32), builder.weight(high, np.float32)])
