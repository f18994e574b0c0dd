"""64-bit ARM CPUs through LiteRT and XNNPACK. Its libraries are imported when a workshop is opened."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edgeserve import plugins
from edgeserve.contracts.variant import Finalize, Precision, Selector
from edgeserve_compilers.heads import Node, float_head
from edgeserve_compilers.spec import FLOAT, Candidate
from edgeserve_compilers.targets.base import Form, Job, Product, Workshop

if TYPE_CHECKING:
    from edgeserve_compilers.targets.litert_graph import Graph
    from edgeserve_compilers.targets.litert_ranges import Measured

_ENTRY: Final = "model.tflite"
_STATIC: Final = "static wi8 ai8"
_RECIPES: Final = {
    # No range suits all models: least noise mostly wins, the extremes where rare values count, clipping where not.
    **{f"{_STATIC} {how}": (_STATIC, how) for how in ("mse", "minmax", "percentile-99.9")},
    "weight-only wi8": ("weight-only wi8", ""),
    "dynamic wi8": ("dynamic wi8", ""),
}
"""Recipe: kind of quantization, and how ranges are chosen."""


_ARM: Final = Selector(architectures=("arm64",))


@dataclass(kw_only=True)  # not frozen: a protocol's attributes are not read-only
class LiteRtForm:
    """A TFLite file for ARM's integer (dot product, i8mm) or float kernels."""

    name: str
    candidates: Sequence[Candidate]
    auto: Sequence[Precision]
    float_fallback: bool
    must_be_faster: bool
    runtime: str = "litert"
    runtime_device: str = "CPU"
    selector: Selector = _ARM
    required: bool = False
    finalize: Finalize | None = None

    def native(self, architecture: str, cpu_features: Sequence[str]) -> bool:  # noqa: ARG002 - XNNPACK has kernels for all
        """On 64-bit ARM."""
        return architecture == "arm64"

    def open(self, job: Job) -> Workshop:
        """Make the float TFLite model and hold it against the ONNX model.

        Raises:
            DeviceError: ai-edge-litert, or the environment of onnx2tf, is not there.
            InputError: The model cannot be converted, or the result answers otherwise.
        """
        try:
            from edgeserve_compilers.targets.litert_float import float_graph
        except ImportError as error:
            raise plugins.missing(error, f"form {self.name}") from error
        return LiteRtWorkshop(job, float_graph(job), {candidate.recipe for candidate in self.candidates})


FORMS: Final[tuple[Form, ...]] = (
    LiteRtForm(
        name="litert",
        candidates=tuple(
            Candidate(precision=Precision.INT8, recipe=recipe, weights_only=not recipe.startswith("static"))
            for recipe in _RECIPES
        ),
        auto=(Precision.INT8,),
        float_fallback=False,
        must_be_faster=True,
    ),
    LiteRtForm(name="litert-float", candidates=(), auto=(), float_fallback=True, must_be_faster=False),
)


class LiteRtWorkshop:
    """One model as a float TFLite file, with the ranges of its tensors once they were asked for."""

    def __init__(self, job: Job, graph: Graph, recipes: Collection[str]) -> None:
        from edgeserve_compilers.targets.litert_graph import COMPUTE

        self._job = job
        self._graph = graph
        self._float = graph.write()
        self._nodes = graph.nodes()
        self._recipes = recipes
        self._measured: Measured | None = None
        self._head = self._find_head() if recipes and job.calibration else frozenset()
        self.layers: Sequence[str] = tuple(
            node.name for node in self._nodes if node.op in COMPUTE and node.name not in self._head and recipes
        )

    def produce(self, candidate: Candidate, folder: Path) -> Product:
        """See `edgeserve_compilers.targets.base.Workshop.produce`."""
        from edgeserve_compilers.targets.litert_graph import Graph

        destination = folder / _ENTRY
        if candidate == FLOAT:
            destination.write_bytes(self._float)
            return _described(self._graph)
        if candidate.precision is not Precision.INT8 or candidate.recipe not in self._recipes:
            raise ValueError(f"there is no candidate {candidate.title!r}")
        unknown = set(candidate.float_layers).difference(self.layers)
        if unknown:
            raise ValueError(f"the model has no layer {min(unknown)!r}")
        graph = Graph(self._quantized(candidate))
        signature = self._job.model.signature
        graph.sign([spec.name for spec in signature.inputs], [spec.name for spec in signature.outputs])
        if self._graph.varies:
            graph.vary_batch_of_outputs()
        destination.write_bytes(graph.write())
        return _described(graph)

    def _quantized(self, candidate: Candidate) -> bytes:
        from edgeserve_compilers.targets.litert_bias import corrected
        from edgeserve_compilers.targets.litert_quantizer import quantize

        kind, how = _RECIPES[candidate.recipe]
        if not how and not self._job.calibration:  # these can do without
            return quantize(self._float, kind, None, candidate.float_layers)
        seen = self._seen()
        chosen = {*candidate.float_layers, *(self._head if how else ())}  # the others leave activations as they are
        floats = stays_float(self._nodes, chosen)
        ranges = seen.ranges(how, self._graph.lowest()) if how else None
        return quantize(corrected(self._float, seen.means, floats), kind, ranges, floats)

    def _seen(self) -> Measured:
        from edgeserve_compilers.targets.litert_bias import averaged
        from edgeserve_compilers.targets.litert_float import calibration_rows
        from edgeserve_compilers.targets.litert_ranges import Measured

        if self._measured is None:
            rows = list(calibration_rows(self._job))
            tensors = self._graph.measurable()
            self._measured = Measured(self._float, rows, len(rows), tensors, averaged(self._graph))
        return self._measured

    def _find_head(self) -> frozenset[str]:
        from edgeserve_compilers.targets.litert_graph import COMPUTE, JOINS

        return float_head(
            self._nodes, self._seen().ranges("minmax"), compute=COMPUTE, joins=JOINS, outputs=self._graph.outputs
        )


def stays_float(nodes: Sequence[Node], chosen: Collection[str]) -> frozenset[str]:
    """`chosen` with what only they feed, and what lies between an input and them alone: no rounding for nobody's good.

    Args:
        nodes: The graph in order of execution.
        chosen: Names of compute layers, and of other operations that stay float.
    """
    from edgeserve_compilers.targets.litert_graph import COMPUTE

    found = set(chosen)
    if not found:
        return frozenset()
    writer = {tensor: node.name for node in nodes for tensor in node.outputs}
    readers: dict[str, list[str]] = {}
    for node in nodes:
        for tensor in node.inputs:
            readers.setdefault(tensor, []).append(node.name)
    for node in reversed(nodes):
        users = [name for tensor in node.outputs for name in readers.get(tensor, ())]
        if node.op not in COMPUTE and users and found.issuperset(users) and not writer.keys() & set(node.inputs):
            found.add(node.name)
    for node in nodes:
        sources = [writer[tensor] for tensor in node.inputs if tensor in writer]
        if node.op not in COMPUTE and sources and found.issuperset(sources):
            found.add(node.name)
    return frozenset(found)


def _described(graph: Graph) -> Product:
    compute, quantized = graph.compute_nodes()
    return Product(entry=_ENTRY, compute_nodes=compute, quantized_nodes=quantized, placement=graph.placement())
