"""Intel's CPU, GPU and NPU through OpenVINO: an IR, quantized by NNCF for the device, one form each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from edgeserve.contracts.variant import Finalize, Precision, Selector
from edgeserve.runtimes.base import Tensors
from edgeserve.runtimes.openvino import available_devices
from edgeserve_compilers.heads import float_head
from edgeserve_compilers.spec import FLOAT, Candidate
from edgeserve_compilers.targets import npu_lint, openvino_graph
from edgeserve_compilers.targets.base import Job, Product
from edgeserve_compilers.targets.nncf_quantizer import Quantized, WeightsOnly, compress_weights, quantize
from edgeserve_compilers.targets.onnx_plain import plain
from edgeserve_compilers.targets.openvino_graph import COMPUTE, JOINS, RECURRENT, Graph
from edgeserve_compilers.targets.openvino_mixed import with_float_layers

_ENTRY: Final = "model.xml"
_RANGE_ROWS: Final = 16
"""Calibration rows, at least, on which inputs of joins are compared: they differ by an order of magnitude, or not."""
_HALF: Final = "fp16 weights"
_RECIPES: Final[Mapping[str, Quantized | WeightsOnly]] = {
    # Best first, as measured on SqueezeNet 1.1 and YOLOX-nano; which is best for a model, its own rows decide.
    "nncf mixed histogram": Quantized(ranges="HISTOGRAM"),
    "nncf mixed min-max": Quantized(),
    "nncf mixed mean-min-max": Quantized(ranges="MEAN_MINMAX"),
    "nncf performance min-max": Quantized(asymmetric=False),
    "nncf mixed min-max, accurate bias": Quantized(fast_bias=False),
    "int8 weights": WeightsOnly(precision=Precision.INT8),
    "int4 weights": WeightsOnly(precision=Precision.INT4),
}
_CANDIDATES: Final = (
    *(
        Candidate(precision=recipe.precision, recipe=name, weights_only=isinstance(recipe, WeightsOnly))
        for name, recipe in _RECIPES.items()
    ),
    Candidate(precision=Precision.FP16, recipe=_HALF),
)


class OpenVinoForm:
    """An OpenVINO IR for one of Intel's devices."""

    name = "openvino"
    runtime = "openvino"
    candidates: Sequence[Candidate] = _CANDIDATES
    auto = (Precision.INT8,)
    required = True
    float_fallback = True
    must_be_faster = False

    def __init__(self, *, device: str, selector: Selector, finalize: Finalize | None = None) -> None:
        self.runtime_device = device
        self.selector = selector
        self.finalize = finalize

    def native(self, architecture: str, cpu_features: Sequence[str]) -> bool:
        """Where OpenVINO finds the device; the CPU must have the instructions that the selector asks for."""
        chosen = self.selector
        return (
            architecture in chosen.architectures
            and all(set(wanted.split("|")) & set(cpu_features) for wanted in chosen.cpu_features)
            and any(name.partition(".")[0] == self.runtime_device for name in available_devices())
        )

    def open(self, job: Job) -> OpenVinoWorkshop:
        """Convert the model, fix its sizes, and find the head that must stay float."""
        return OpenVinoWorkshop(job, self.runtime_device)


class OpenVinoWorkshop:
    """Quantizes once a recipe; layers go back to float without calibrating again."""

    def __init__(self, job: Job, device: str) -> None:
        self._job = job
        self._device = device
        shapes = {
            spec.name: openvino_graph.input_shape(
                spec.shape,
                job.row_shapes.get(spec.name),
                is_state=spec.name in job.state,
                batch_of_one=device == "NPU" or bool(job.state),
            )
            for spec in job.model.signature.inputs
        }
        source = job.originals.get("openvino", job.float_file)
        if job.state and source.suffix == ".onnx":
            # Recurrent models decide by `If` on their batch; NNCF takes no operation whose rank depends on a branch.
            source = job.folder / "plain.onnx"
            plain(job.float_file, shapes, source)
        self._float = openvino_graph.convert(source, shapes)
        self._rows: list[Tensors] = []
        self._floats = frozenset(openvino_graph.layers_of(self._float, RECURRENT))
        if job.calibration is not None:
            self._rows = openvino_graph.calls(self._float, job.calibration)
            some = self._rows[:: max(1, len(self._rows) // _RANGE_ROWS)]
            self._floats |= float_head(
                openvino_graph.nodes(self._float),
                openvino_graph.joined_ranges(self._float, some),
                compute=COMPUTE,
                joins=JOINS,
                outputs=openvino_graph.output_tensors(self._float),
            )
        self.layers: Sequence[str] = [
            name for name in openvino_graph.layers_of(self._float, COMPUTE) if name not in self._floats
        ]
        self._made: dict[str, Graph] = {}

    def produce(self, candidate: Candidate, folder: Path) -> Product:
        """See `edgeserve_compilers.targets.base.Workshop.produce`."""
        graph = self._float if candidate == FLOAT else self._mixed(candidate)
        openvino_graph.save(graph, folder / _ENTRY)
        compute, quantized, placement = openvino_graph.placement(graph)
        return Product(
            entry=_ENTRY,
            compute_nodes=compute,
            quantized_nodes=quantized,
            placement=placement,
            findings=self._findings(candidate, graph, placement),
        )

    def _mixed(self, candidate: Candidate) -> Graph:
        graph = with_float_layers(self._base(candidate.recipe), self._float, candidate.float_layers)
        openvino_graph.name_by_place(graph)
        return graph

    def _base(self, name: str) -> Graph:
        """The graph of a recipe with nothing in float but what must be, made once."""
        if name not in self._made:
            if name == _HALF:
                self._made[name] = openvino_graph.half(self._float)
            else:
                recipe = _RECIPES[name]
                if isinstance(recipe, WeightsOnly):
                    self._made[name] = compress_weights(self._float, recipe)
                elif self._rows:
                    self._made[name] = quantize(self._float, recipe, self._rows, self._device, self._floats)
                else:
                    raise ValueError("a quantized candidate needs calibration rows")
        return self._made[name]

    def _findings(self, candidate: Candidate, graph: Graph, placement: Mapping[str, int]) -> tuple[str, ...]:
        found: list[str] = []
        if candidate.precision is Precision.INT4 and not placement.get("int4"):
            found.append("no weights are in 4 bits, only in 8: the model has no product of matrices that could")
        if self._device == "NPU":
            integers = isinstance(_RECIPES.get(candidate.recipe), Quantized) and not candidate.float_layers
            found.extend(npu_lint.lint(graph, quantized=integers, whole_rows=self._job.state))
        return tuple(found)


class IntelCpu:
    """CPUs that multiply 8-bit integers without saturation; older ones are served by `x86-cpu`."""

    name = "intel-cpu"
    forms = (
        OpenVinoForm(device="CPU", selector=Selector(architectures=("amd64",), cpu_features=("avx512_vnni|avx_vnni",))),
    )
    faithful = True


class IntelGpu:
    """Integrated and discrete GPUs. Kernels are compiled on the device, once. Unverified: no one here has one."""

    name = "intel-gpu"
    forms = (
        OpenVinoForm(
            device="GPU",
            selector=Selector(architectures=("amd64",), accelerator="gpu", accelerator_vendor="intel"),
            finalize=Finalize(
                action="openvino-blob",
                steps=(
                    "check that openvino.Core().available_devices has GPU",
                    "compile the IR for GPU with CACHE_DIR set, so that its kernels are kept",
                    "check that EXECUTION_DEVICES is GPU",
                ),
                options={"CACHE_DIR": "cache", "PERFORMANCE_HINT": "LATENCY"},
                cache_key=("model", "openvino", "driver", "soc"),
            ),
        ),
    )
    faithful = True


class IntelNpu:
    """The NPU of Core Ultra. A batch of 1 and no varying size: its compiler takes nothing else.

    The compiler comes with the driver; OpenVINO's wheel has none, so the blob is made on the device. Unverified: no one
    here has one.
    """

    name = "intel-npu"
    forms = (
        OpenVinoForm(
            device="NPU",
            selector=Selector(architectures=("amd64",), accelerator="npu", accelerator_vendor="intel"),
            finalize=Finalize(
                action="openvino-blob",
                steps=(
                    "check that openvino.Core().available_devices has NPU",
                    "compile the IR for NPU with the driver's compiler and CACHE_DIR set, so that the blob is kept",
                    "check that EXECUTION_DEVICES is NPU",
                ),
                options={
                    "CACHE_DIR": "cache",
                    "NPU_COMPILATION_MODE_PARAMS": "optimization-level=2 performance-hint-override=latency",
                    "NPU_COMPILER_TYPE": "DRIVER",
                    "PERFORMANCE_HINT": "LATENCY",
                },
                cache_key=("model", "openvino", "driver", "soc"),
            ),
        ),
    )
    faithful = True
