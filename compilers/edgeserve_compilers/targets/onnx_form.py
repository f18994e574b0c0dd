"""Forms that are ONNX files: recipes, the workshop, and an honest count of what was quantized."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx

from edgeserve.contracts.variant import Finalize, Precision, Selector
from edgeserve_compilers.heads import Node, float_head
from edgeserve_compilers.spec import FLOAT, Candidate
from edgeserve_compilers.targets.base import Job, Product, silenced
from edgeserve_compilers.targets.onnx_graph import (
    COMPUTE,
    CONVERSIONS,
    ENTRY,
    NEWEST_OPSET,
    Graph,
    attribute,
    prepared,
    save,
    save_float,
)
from edgeserve_compilers.targets.qdq import (
    CPU_ARITHMETIC,
    FLOAT_OUTPUTS,
    JOINS,
    MOVES,
    RELU,
    Scheme,
    has_integer_form,
    highest,
)
from edgeserve_compilers.targets.qdq_writer import Quantizer
from edgeserve_compilers.targets.ranges import Statistics, measure
from edgeserve_compilers.targets.weights import layers_of

_INTEGER: Final = MOVES | RELU | CPU_ARITHMETIC
"""Operations without weights that have integer kernels somewhere."""
_RECURRENT: Final = frozenset({"LSTM", "GRU", "RNN"})


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a static int8 candidate is made."""

    calibrator: str
    operators: str = "all"
    corrected: bool = True
    precision = Precision.INT8

    def title(self, scheme: Scheme) -> str:
        """Name of the recipe in the form's table."""
        parts = [f"{scheme.name} {self.calibrator}", f"{self.operators} operators"]
        return ", ".join([*parts, *(["bias corrected"] if self.corrected else [])])


@dataclass(frozen=True, kw_only=True)
class WeightsOnly:
    """Weights are stored in `bits` bits, and computed with in float."""

    bits: int

    @property
    def precision(self) -> Precision:
        """Of the candidate."""
        return Precision.INT4 if self.bits == 4 else Precision.INT8

    def title(self, scheme: Scheme) -> str:  # noqa: ARG002 - the scheme is about activations
        """Name of the recipe in the form's table."""
        return f"weights only, {self.bits} bits"


CPU_RECIPES: Final = (
    Recipe(calibrator="mse"),
    Recipe(calibrator="mse", operators="compute"),
    Recipe(calibrator="minmax"),
    Recipe(calibrator="minmax", operators="compute"),
    Recipe(calibrator="percentile 99.99", operators="compute"),
    Recipe(calibrator="percentile 99.9"),
    Recipe(calibrator="moving average"),
    # Correcting biases lowers noise and sometimes loses a row or two that stood on the edge: the metric decides.
    Recipe(calibrator="mse", operators="compute", corrected=False),
    WeightsOnly(bits=8),
    WeightsOnly(bits=4),
)
"""Best first."""


@dataclass(kw_only=True)  # not frozen: a protocol's attributes are not read-only
class OnnxForm:
    """An ONNX file for ONNX Runtime's CPU kernels; see `edgeserve_compilers.targets.base.Form`."""

    name: str
    scheme: Scheme
    recipes: Sequence[Recipe | WeightsOnly]
    selector: Selector
    required: bool
    float_fallback: bool
    runs: Callable[[str, Sequence[str]], bool]
    """Whether a machine of this architecture and CPU features is one of those the form is for."""
    must_be_faster: bool = True
    runtime: str = "onnxruntime"
    runtime_device: str = "CPU"
    auto: Sequence[Precision] = (Precision.INT8,)
    finalize: Finalize | None = None
    table: dict[str, Recipe | WeightsOnly] = field(init=False)
    """Recipes by the names that their candidates have."""
    candidates: Sequence[Candidate] = field(init=False)

    def __post_init__(self) -> None:
        self.table = {recipe.title(self.scheme): recipe for recipe in self.recipes}
        self.candidates = tuple(
            Candidate(precision=recipe.precision, recipe=title, weights_only=isinstance(recipe, WeightsOnly))
            for title, recipe in self.table.items()
        )

    def native(self, architecture: str, cpu_features: Sequence[str]) -> bool:
        """Whether this machine runs the products as the device will."""
        return self.runs(architecture, cpu_features)

    def open(self, job: Job) -> Workshop:
        """Fold the model and measure its ranges."""
        return Workshop(job, self.scheme, self.table)


class Workshop:
    """Makes ONNX candidates; see `edgeserve_compilers.targets.base.Workshop`."""

    newest_opset = NEWEST_OPSET

    def __init__(self, job: Job, scheme: Scheme, table: dict[str, Recipe | WeightsOnly]) -> None:
        self._job, self._scheme, self._table = job, scheme, table
        self.layers: Sequence[str] = ()
        self._head: frozenset[str] = frozenset()
        self._quantizer: Quantizer | None = None
        if job.calibration is not None:
            self._open(opened(job, newest_opset=self.newest_opset))

    def _open(self, graph: Graph) -> None:
        layers = layers_of(graph)
        statistics = measured(graph, self._job, {
            node.input[0]: layers[node.name].input_axis for node in graph.nodes if node.name in layers
        })  # fmt: skip
        self._head = float_head(
            [Node(node.name, node.op_type, tuple(node.input), tuple(node.output)) for node in graph.nodes],
            {name: (found.low, found.high) for name, found in statistics.items()},
            compute=COMPUTE | _RECURRENT,
            joins=JOINS,
            outputs=graph.outputs,
        )
        self.layers = tuple(layers)
        self._quantizer = Quantizer(graph, self._scheme, layers, statistics)

    def produce(self, candidate: Candidate, folder: Path) -> Product:
        """See `edgeserve_compilers.targets.base.Workshop.produce`."""
        if candidate == FLOAT:
            return self.finished(save_float(self._job.float_file, folder, newest_opset=self.newest_opset), folder)
        recipe = self._table[candidate.recipe]
        if self._quantizer is None:
            raise ValueError("a quantized candidate needs calibration rows")
        unknown = set(candidate.float_layers) - set(self.layers)
        if unknown:
            raise ValueError(f"the model has no layers {', '.join(sorted(unknown))}")
        layers = [name for name in self.layers if name not in candidate.float_layers]
        if isinstance(recipe, WeightsOnly):
            model = self._quantizer.weights_only(layers, bits=recipe.bits)
        else:
            model = self._quantizer.quantized(
                layers,
                calibrator=recipe.calibrator,
                operators=recipe.operators,
                corrected=recipe.corrected,
                head=self._head,
            )
        save(model, folder)
        return self.finished(model, folder)

    def finished(self, model: onnx.ModelProto, folder: Path) -> Product:  # noqa: ARG002 - for forms with more files
        """What to say of a model that lies in `folder`."""
        return counted(model, float_outputs=FLOAT_OUTPUTS if self._scheme.grid_outputs else COMPUTE)


def opened(job: Job, *, newest_opset: int) -> Graph:
    """Fold the float model of a job; a stateful one with the shapes of a batch of 1."""
    ranks = {spec.name: len(spec.shape) for spec in job.model.signature.inputs}
    shapes = {name: shape if len(shape) == ranks[name] else (1, *shape) for name, shape in job.row_shapes.items()}
    return prepared(job.float_file, job.folder, newest_opset=newest_opset, shapes=shapes if job.state else {})


def measured(graph: Graph, job: Job, channels: dict[str, int]) -> dict[str, Statistics]:
    """Run the calibration rows of a job; `channels` names the axis of tensors whose means by channel are wanted."""
    assert job.calibration is not None
    specs = {spec.name: spec for spec in job.model.signature.inputs}
    first = next((spec for name, spec in specs.items() if name not in job.state), None)
    fixed = first.shape[0] if first is not None and first.shape[0] > 0 else None
    with silenced():
        return measure(
            graph.model,
            [*graph.inputs, *(name for node in graph.nodes for name in node.output if name)],
            job.calibration,
            channels=channels,
            one_by_one=bool(job.state),
            fixed=fixed,
            ranks={name: len(spec.shape) for name, spec in specs.items()},
        )


def counted(model: onnx.ModelProto, *, float_outputs: frozenset[str]) -> Product:
    """What the nodes of a product compute in.

    Args:
        model: The product.
        float_outputs: Operations that compute in integers though their output is not quantized.
    """
    numbers = _Numbers(model, float_outputs)
    placement = {"int8": 0, "int4": 0, "float": 0}
    compute = quantized = 0
    for node in model.graph.node:
        if node.op_type in CONVERSIONS:
            continue
        kind = numbers.kind(node)
        placement[kind] += 1
        if node.op_type in COMPUTE:
            compute += 1
            quantized += kind != "float" or node.input[1] in numbers.stored
    return Product(
        entry=ENTRY,
        compute_nodes=compute,
        quantized_nodes=quantized,
        placement={kind: count for kind, count in placement.items() if count},
    )


class _Numbers:
    """Which operations of an ONNX file get integers and answer in them."""

    def __init__(self, model: onnx.ModelProto, float_outputs: frozenset[str]) -> None:
        self._graph = Graph(model)
        self._float_outputs = float_outputs
        self._limited: set[str] = set()
        """Results of integer operations that a Relu limits before they are quantized."""
        dequantizers = [node for node in model.graph.node if node.op_type == "DequantizeLinear"]
        self.stored = {node.output[0] for node in dequantizers if node.input[0] in self._graph.initializers}
        """Weights and biases that are integers in the file."""
        self._dequantized = {node.output[0] for node in dequantizers} - self.stored

    def kind(self, node: Any) -> str:  # noqa: ANN401
        """`int8`, `int4` or `float`; nodes are asked for in order."""
        if node.op_type == "MatMulNBits":
            return f"int{attribute(node, 'bits', 4)}"
        data = [name for name in self._graph.activations(node) if name not in self.stored]
        if node.op_type in RELU and node.input[0] in self._limited:
            return "int8"
        given = bool(data) and self._dequantized.issuperset(data)
        if node.op_type in COMPUTE:
            fits = node.input[1] in self.stored | self._dequantized
        else:
            fits = node.op_type in _INTEGER and has_integer_form(self._graph, node)
        closed = node.op_type in self._float_outputs or all(self._is_quantized(name) for name in node.output if name)
        if not (given and fits and closed):
            return "float"
        self._limited.update(node.output)
        return "int8"

    def _is_quantized(self, name: str) -> bool:
        """Whether only quantizers read a result, or a Relu whose limits are those of the grid behind it."""
        found = self._graph.readers.get(name, [])
        if len(found) == 1 and found[0].op_type in RELU and name not in self._graph.pinned:
            name = found[0].output[0]
            found = self._graph.readers.get(name, [])
        if not found or name in self._graph.pinned:  # an output of the graph is wanted as it is
            return False
        source = self._graph.producer[name]
        return all(
            reader.op_type == "QuantizeLinear" and (source.op_type not in RELU or self._limits(source, reader))
            for reader in found
        )

    def _limits(self, relu: Any, quantizer: Any) -> bool:  # noqa: ANN401
        """Whether a grid ends where a Relu or Clip does; kernels that answer in float limit their results themselves.

        https://github.com/microsoft/onnxruntime/blob/main/onnxruntime/core/optimizer/qdq_transformer
        """
        if self._float_outputs >= COMPUTE:
            return True
        scale, zero = (self._graph.value(name) for name in quantizer.input[1:3])
        first, last = (-128, 127) if zero.dtype == np.int8 else (0, 255)
        most = float(scale) * (last - int(zero))
        return int(zero) == first and most <= highest(self._graph, relu) * (1 + float(np.finfo(np.float32).eps))
