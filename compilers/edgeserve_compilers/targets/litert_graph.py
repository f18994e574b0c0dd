"""A TFLite model as a graph: its operations, its ends, what it computes in, and the changes that forms need."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema

from edgeserve.contracts.errors import InputError
from edgeserve_compilers.heads import Node
from edgeserve_compilers.targets.litert_file import STORED, TfliteFile

COMPUTE: Final = frozenset({"BATCH_MATMUL", "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV"})
_WEIGHTED: Final = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"})
JOINS: Final = frozenset({"CONCATENATION", "PACK"})
_NO_ARITHMETIC: Final = frozenset({"CAST", "DEQUANTIZE", "QUANTIZE", "SHAPE"})
_INTEGERS: Final = {"INT8": "int8", "UINT8": "int8", "INT16": "int8", "INT4": "int4"}
_FLOATS: Final = {"FLOAT32": "float", "FLOAT16": "fp16"}
_SILU_LOWEST: Final = -6.0
"""x sigmoid(x) is within 0.015 of nothing below it, and convolutions before it reach -100."""
_HARD_SWISH_LOWEST: Final = -3.0
_SIGNATURE: Final = b"serving_default"


@dataclass(frozen=True, kw_only=True)
class Weighted:
    """A convolution or matrix product with stored float weights and bias."""

    name: str
    op: str
    input: str
    channels: int
    """Input channels: the last axis of the input."""
    weights: npt.NDArray[np.float32]
    """[outputs, height, width, inputs], depthwise [1, height, width, outputs], fully connected [outputs, inputs]."""
    bias: npt.NDArray[np.float32]


class Graph(TfliteFile):
    """The first graph of a TFLite model. Tensors have unique names, and only `serving_default` is its signature."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the input tensors."""
        return tuple(self._tensor_names[index] for index in self._main.inputs)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the output tensors."""
        return tuple(self._tensor_names[index] for index in self._main.outputs)

    def nodes(self) -> list[Node]:
        """Operations in order of execution, each named by its first output; constants are not among their inputs."""
        return [
            Node(
                name=self._tensor_names[operator.outputs[0]],
                op=self._operation(operator),
                inputs=[self._tensor_names[index] for index in operator.inputs if not self._is_constant(index)],
                outputs=[self._tensor_names[index] for index in operator.outputs],
            )
            for operator in self._main.operators
        ]

    def measurable(self) -> frozenset[str]:
        """Float tensors that inputs or operations fill: those that have a range."""
        filled = set(self._main.inputs) | {index for operator in self._main.operators for index in operator.outputs}
        return frozenset(self._tensor_names[index] for index in filled if self._type(index) == "FLOAT32")

    def lowest(self) -> dict[str, float]:
        """Tensors whose values below a bound do not matter: an activation function sends them to nothing."""
        readers: dict[str, list[Node]] = {}
        for node in self.nodes():
            for tensor in node.inputs:
                readers.setdefault(tensor, []).append(node)
        found = {}
        for tensor, nodes in readers.items():
            kinds = sorted(node.op for node in nodes)
            if set(kinds) == {"HARD_SWISH"}:
                found[tensor] = _HARD_SWISH_LOWEST
            elif kinds == ["LOGISTIC", "MUL"]:
                gate, product = sorted(nodes, key=lambda node: node.op)
                if set(product.inputs) == {tensor, gate.outputs[0]}:
                    found[tensor] = _SILU_LOWEST
        return found

    def sign(self, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        """Name inputs and outputs, in their order, for the outside; the names of the tensors stay."""
        definition = schema.SignatureDefT()
        definition.signatureKey, definition.subgraphIndex = _SIGNATURE, 0
        definition.inputs = [_named(*pair) for pair in zip(inputs, self._main.inputs, strict=True)]
        definition.outputs = [_named(*pair) for pair in zip(outputs, self._main.outputs, strict=True)]
        self._model.signatureDefs = [definition]

    def order(self, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        """Put inputs and outputs in this order where all tensors have these names; else theirs is taken for it."""
        for side, wanted in (("inputs", inputs), ("outputs", outputs)):
            indices = [int(index) for index in getattr(self._main, side)]
            if len(indices) != len(wanted):
                raise InputError(f"the TFLite model has {len(indices)} {side}, the model has {len(wanted)}")
            place = {self._tensor_names[index]: index for index in indices}
            if set(place) == set(wanted):
                setattr(self._main, side, [place[name] for name in wanted])

    def transpose_output(self, place: int, axes: Sequence[int]) -> None:
        """Put the axes of an output in another order: axis `i` of the new output is axis `axes[i]` of the old one."""
        old = int(self._main.outputs[place])
        source = self._main.tensors[old]
        order = self._constant(self._free(f"{self._tensor_names[old]}/order"), np.asarray(axes, np.int32))
        result = schema.TensorT()
        result.name, result.type, result.buffer = self._free(f"{self._tensor_names[old]}/transposed"), source.type, 0
        result.hasRank = source.hasRank
        result.shape = [int(source.shape[axis]) for axis in axes]
        if source.shapeSignature is not None:
            result.shapeSignature = [int(source.shapeSignature[axis]) for axis in axes]
        self._main.tensors.append(result)
        operator = schema.OperatorT()
        operator.opcodeIndex = self._code(schema.BuiltinOperator.TRANSPOSE)
        operator.inputs, operator.outputs = [old, order], [len(self._main.tensors) - 1]
        operator.builtinOptionsType, operator.builtinOptions = (
            schema.BuiltinOptions.TransposeOptions,
            schema.TransposeOptionsT(),
        )
        self._main.operators.append(operator)
        outputs = [int(index) for index in self._main.outputs]
        outputs[place] = operator.outputs[0]
        self._main.outputs = outputs
        vars(self).pop("_tensor_names", None)

    def store_weights_as_float(self) -> None:
        """Undo what a file named float may hide: int8 weights that are computed with as they are, or float16 ones."""
        for operator in list(self._main.operators):
            if self._operation(operator) == "DEQUANTIZE" and self._is_constant(operator.inputs[0]):
                self._become_float(operator.outputs[0], self._real(operator.inputs[0]))
                self._main.operators.remove(operator)
            elif self._operation(operator) in _WEIGHTED and self._type(operator.inputs[0]) == "FLOAT32":
                weights = int(operator.inputs[1])
                if self._is_constant(weights) and self._type(weights) in STORED:
                    self._become_float(weights, self._real(weights))

    def matrices_as_layers(self) -> None:
        """Make products with a stored matrix fully connected layers: those have int8 kernels with a scale per output.

        The static int8 kernel of BATCH_MATMUL takes one scale only, and with more of them answers zeros.
        """
        for operator in self._main.operators:
            if self._operation(operator) != "BATCH_MATMUL" or operator.builtinOptions.adjX:
                continue
            matrix = self._values(int(operator.inputs[1]))
            if matrix is None or matrix.size != matrix.shape[-1] * matrix.shape[-2]:
                continue
            matrix = matrix.reshape(matrix.shape[-2:])
            matrix = np.ascontiguousarray(matrix if operator.builtinOptions.adjY else matrix.T)
            name = self._tensor_names[operator.outputs[0]]
            weights = self._constant(self._free(f"{name}/weights"), matrix)
            bias = self._constant(self._free(f"{name}/bias"), np.zeros(len(matrix), np.float32))
            operator.opcodeIndex = self._code(schema.BuiltinOperator.FULLY_CONNECTED)
            operator.inputs = [int(operator.inputs[0]), weights, bias]
            options = schema.FullyConnectedOptionsT()
            options.keepNumDims = True
            operator.builtinOptionsType, operator.builtinOptions = (
                schema.BuiltinOptions.FullyConnectedOptions,
                options,
            )

    def weighted(self) -> list[Weighted]:
        """Layers whose bias can make up for what rounding the weights shifts."""
        found = []
        for operator in self._main.operators:
            if self._operation(operator) not in _WEIGHTED or len(operator.inputs) < 3 or operator.inputs[2] < 0:
                continue
            weights, bias = (self._values(int(index)) for index in operator.inputs[1:3])
            if weights is not None and bias is not None:
                op, source = self._operation(operator), self._main.tensors[operator.inputs[0]]
                found.append(
                    Weighted(
                        name=self._tensor_names[operator.outputs[0]],
                        op=op,
                        input=source.name.decode(),
                        channels=int((weights if op == "FULLY_CONNECTED" else source).shape[-1]),
                        weights=weights,
                        bias=bias,
                    )
                )
        return found

    def set_bias(self, name: str, values: npt.NDArray[np.float32]) -> None:
        """Replace the bias of a layer of `weighted`, for this layer alone."""
        (operator,) = (entry for entry in self._main.operators if self._tensor_names[entry.outputs[0]] == name)
        inputs = [int(index) for index in operator.inputs]
        if sum(inputs[2] in entry.inputs for entry in self._main.operators) > 1:
            self._main.tensors.append(copy.copy(self._main.tensors[inputs[2]]))
            self._main.tensors[-1].name = self._free(f"{name}/bias")
            inputs[2] = len(self._main.tensors) - 1
            operator.inputs = inputs
            vars(self).pop("_tensor_names", None)
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(values.tobytes(), np.uint8)
        self._model.buffers.append(buffer)
        self._main.tensors[inputs[2]].buffer = len(self._model.buffers) - 1

    def fix_batch(self) -> None:
        """Build the shapes in that the tensors have: no size varies any more."""
        for tensor in self._main.tensors:
            tensor.shapeSignature = None

    def vary_batch_of_outputs(self) -> None:
        """Say of the outputs that their first axis varies: quantizers forget it for those that they put behind."""
        for index in self._main.outputs:
            tensor = self._main.tensors[index]
            if tensor.shapeSignature is None:
                tensor.shapeSignature = [-1, *(int(size) for size in tensor.shape[1:])]

    @property
    def varies(self) -> bool:
        """Whether the first axis of the inputs varies."""
        shapes = [self._main.tensors[index].shapeSignature for index in self._main.inputs]
        return any(shape is not None and shape[0] == -1 for shape in shapes)

    def placement(self) -> dict[str, int]:
        """Operations by the form that they compute in; those on shapes and indices are not counted."""
        forms = (self._form(op) for op in self._main.operators if self._operation(op) not in _NO_ARITHMETIC)
        return dict(sorted(Counter(form for form in forms if form).items()))

    def compute_nodes(self) -> tuple[int, int]:
        """Convolutions and matrix products, and how many compute in integers or have weights that are stored so."""
        stored = {
            operator.outputs[0]
            for operator in self._main.operators
            if self._operation(operator) == "DEQUANTIZE" and self._type(operator.inputs[0]) in _INTEGERS
        }
        stored &= {operator.outputs[0] for operator in self._main.operators if self._is_constant(operator.inputs[0])}
        compute = [operator for operator in self._main.operators if self._operation(operator) in COMPUTE]
        quantized = sum(
            any(index >= 0 and (index in stored or self._type(index) in _INTEGERS) for index in operator.inputs)
            for operator in compute
        )
        return len(compute), quantized

    def _form(self, operator: Any) -> str:  # noqa: ANN401 - the schema's classes are not typed
        kinds = {self._type(index) for index in (*operator.inputs, *operator.outputs) if index >= 0}
        for table in (_INTEGERS, _FLOATS):
            for kind, form in table.items():
                if kind in kinds:
                    return form
        return ""


def _named(name: str, index: int) -> Any:  # noqa: ANN401
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name.encode(), int(index)
    return entry
