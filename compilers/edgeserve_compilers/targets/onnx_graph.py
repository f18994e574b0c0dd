"""An ONNX model as quantization sees it: folded, with names, and who reads what."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper, version_converter

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.limits import EXTERNAL_DATA_BYTES, EXTERNAL_TENSOR_BYTES
from edgeserve.runtimes.base import Tensor
from edgeserve_compilers.sources.walk import nodes, subgraphs, without_notes

ENTRY: Final = "model.onnx"
WEIGHTS: Final = "model.data"
NEWEST_IR: Final = 10
"""`ir_version` that ONNX Runtime 1.20 and later load (https://onnxruntime.ai/docs/reference/compatibility.html)."""
NEWEST_OPSET: Final = 21
"""Operator set that they load; QuantizeLinear and DequantizeLinear per channel came with 13."""
COMPUTE: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "MatMulNBits"})
CONVERSIONS: Final = frozenset({"QuantizeLinear", "DequantizeLinear", "Cast", "Constant", "Identity"})
"""Operations that only change how numbers are written."""


class Graph:
    """A model whose constants are folded and whose nodes have unique names. Not to be changed."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.nodes: list[Any] = list(model.graph.node)
        self.initializers: dict[str, Any] = {tensor.name: tensor for tensor in model.graph.initializer}
        self.outputs = [value.name for value in model.graph.output]
        self.inputs = [value.name for value in model.graph.input if value.name not in self.initializers]
        self.producer: dict[str, Any] = {name: node for node in self.nodes for name in node.output if name}
        self.readers: dict[str, list[Any]] = {}
        hidden = {name for node in self.nodes for name in _read_by_subgraphs(node)}
        for node in self.nodes:
            for name in dict.fromkeys(name for name in node.input if name):
                self.readers.setdefault(name, []).append(node)
        self.pinned = hidden | set(self.outputs)
        """Tensors that outputs or subgraphs read by name."""
        self._values: dict[str, Tensor] = {}

    @property
    def opset(self) -> int:
        """Version of the default operator set."""
        return next(int(entry.version) for entry in self.model.opset_import if entry.domain in ("", "ai.onnx"))

    def value(self, name: str) -> Tensor:
        """An initializer as an array."""
        if name not in self._values:
            self._values[name] = numpy_helper.to_array(self.initializers[name])
        return self._values[name]

    def activations(self, node: Any) -> list[str]:  # noqa: ANN401
        """Inputs of a node that are computed, not stored."""
        return [name for name in node.input if name and name not in self.initializers]


def attribute(node: Any, name: str, default: Any) -> Any:  # noqa: ANN401
    """Value of an attribute of a node."""
    return next((onnx.helper.get_attribute_value(entry) for entry in node.attribute if entry.name == name), default)


def prepared(
    float_file: Path,
    folder: Path,
    *,
    newest_opset: int = NEWEST_OPSET,
    shapes: Mapping[str, Sequence[int]] = MappingProxyType({}),
) -> Graph:
    """Fold constants and batch normalization, fuse bias, name every node.

    Args:
        float_file: The float model.
        folder: For what ONNX Runtime writes.
        newest_opset: Newer models are converted down.
        shapes: Inputs whose shapes become fixed, so that what asks for them can be folded, too.

    Raises:
        InputError: It cannot be converted.
    """
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    settings.optimized_model_filepath = str(folder / "prepared.onnx")
    settings.log_severity_level = 4
    model = onnx.load(float_file)
    for value in model.graph.input:
        for size, dimension in zip(shapes.get(value.name, ()), value.type.tensor_type.shape.dim, strict=False):
            dimension.dim_value = size
    onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    model = onnx.load(folder / "prepared.onnx")
    model = without_notes(lowered(_with_used_domains(model), newest_opset))
    taken: set[str] = set()
    for place, node in enumerate(model.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{place}"
        while node.name in taken:
            node.name += "_"
        taken.add(node.name)
    return Graph(model)


def _with_used_domains(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without the operator sets that ONNX Runtime lists though nothing is of them."""
    used = {"", *(node.domain for node in nodes(model))} - {"ai.onnx"}
    imports = {entry.domain: entry.version for entry in model.opset_import if entry.domain in used}
    del model.opset_import[:]
    model.opset_import.extend(onnx.helper.make_opsetid(domain, version) for domain, version in imports.items())
    return model


def lowered(model: onnx.ModelProto, newest_opset: int = NEWEST_OPSET) -> onnx.ModelProto:
    """The model in operator set and `ir_version` that every runtime of the profiles loads.

    Raises:
        InputError: An operation has no older form.
    """
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if opset > newest_opset:
        try:
            model = version_converter.convert_version(model, newest_opset)
        except Exception as error:  # the converter raises whatever it meets
            raise InputError(
                f"the model has operator set {opset}, and cannot be converted to {newest_opset}: {error}",
                hint=f"export it with opset {newest_opset}",
            ) from error
    model.ir_version = min(model.ir_version, NEWEST_IR)
    return model


def skeleton(graph: Graph) -> onnx.ModelProto:
    """The model without nodes and initializers."""
    model = onnx.ModelProto()
    model.ir_version = graph.model.ir_version
    model.producer_name = "edgeserve"
    model.opset_import.extend(graph.model.opset_import)
    model.metadata_props.extend(graph.model.metadata_props)
    model.graph.name = graph.model.graph.name
    model.graph.input.extend(copy.deepcopy(value) for value in graph.model.graph.input)
    model.graph.output.extend(copy.deepcopy(value) for value in graph.model.graph.output)
    return model


def save(model: onnx.ModelProto, folder: Path) -> None:
    """Write `model.onnx`, and `model.data` beside it when it is large: its pages can be dropped and read again."""
    if model.ByteSize() > EXTERNAL_DATA_BYTES:
        onnx.save_model(
            model,
            folder / ENTRY,
            save_as_external_data=True,
            location=WEIGHTS,
            size_threshold=EXTERNAL_TENSOR_BYTES,
        )
    else:
        (folder / ENTRY).write_bytes(model.SerializeToString(deterministic=True))


def save_float(float_file: Path, folder: Path, *, newest_opset: int = NEWEST_OPSET) -> onnx.ModelProto:
    """Write the float model as it is, unless it is large or too new. Returns it as it was written."""
    content = float_file.read_bytes()
    model = onnx.load_model_from_string(content)
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if len(content) <= EXTERNAL_DATA_BYTES and opset <= newest_opset and model.ir_version <= NEWEST_IR:
        (folder / ENTRY).write_bytes(content)
        return model
    model = lowered(model, newest_opset)
    save(model, folder)
    return model


def is_float(array: Tensor) -> bool:
    """Whether an array holds single-precision numbers."""
    return array.dtype == np.float32


def _read_by_subgraphs(node: Any) -> set[str]:  # noqa: ANN401
    found: set[str] = set()
    for graph in (graph for entry in node.attribute for graph in subgraphs(entry)):
        for inner in graph.node:
            found |= set(inner.input) | _read_by_subgraphs(inner)
        found |= {value.name for value in graph.output}
    return found
