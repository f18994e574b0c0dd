"""The GPU of NVIDIA Jetson through TensorRT, whose engines can only be built on the device itself.

The product is an ONNX file and a recipe. Nobody here has run it on a Jetson: unverified.
https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-quantized-types.html
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import onnx

from edgeserve.contracts.variant import Finalize, Precision, Selector
from edgeserve_compilers.spec import FLOAT, Candidate
from edgeserve_compilers.targets import half, onnx_form
from edgeserve_compilers.targets.base import Form, Job, Product
from edgeserve_compilers.targets.onnx_form import OnnxForm, Recipe, WeightsOnly
from edgeserve_compilers.targets.onnx_graph import ENTRY, save, save_float
from edgeserve_compilers.targets.qdq import JOINS, Scheme
from edgeserve_compilers.targets.ranges import Statistics
from edgeserve_compilers.targets.tensorrt_lint import NEWEST_OPSET, lint, require_strict

PROFILE: Final = "model.tensorrt.json"
"""Shapes of each input: `{"NAME": {"min": [...], "opt": [...], "max": [...]}}`."""
LARGEST_BATCH: Final = 8
"""Rows of the largest call of an engine; it is tuned for one row, which is what a device mostly gets."""
_ENGINE: Final = "model.engine"

_SCHEME: Final = Scheme(
    name="s8s8 symmetric",
    signed=True,
    symmetric=True,
    largest_weight=127,
    integer_bias=False,
    layers=frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"}),
    arithmetic=frozenset({"Add", "AveragePool", "GlobalAveragePool", *JOINS}),
    grid_outputs=False,
)
_SELECTOR: Final = Selector(architectures=("arm64",), accelerator="gpu", accelerator_vendor="nvidia")
_BUILD: Final = (
    f"trtexec --onnx={ENTRY} --stronglyTyped --minShapes=... --optShapes=... --maxShapes=... "
    f"--builderOptimizationLevel=3 --memPoolSize=workspace:1024 --timingCacheFile=timing.cache "
    f"--saveEngine={_ENGINE} --skipInference"
)
FINALIZE: Final = Finalize(
    action="tensorrt-engine",
    steps=(
        f"parse {ENTRY} with tensorrt.OnnxParser; stop at an operation that it does not know",
        f"take the shapes of the optimization profile from {PROFILE} (leave them out when all are fixed)",
        _BUILD,
        f"trtexec --loadEngine={_ENGINE} --iterations=10 --duration=0",
    ),
    options={
        "typing": "strong",  # numbers are computed as the file says, which is what was measured
        "builder_optimization_level": "3",
        "workspace_mib": "1024",
        "timing_cache": "timing.cache",
        "profile": PROFILE,
    },
    cache_key=("model", "tensorrt", "cuda", "driver", "soc"),
)


def _on_jetson(architecture: str, cpu_features: Sequence[str]) -> bool:  # noqa: ARG001
    """Nowhere: ONNX Runtime's wheels have no TensorRT, so what runs here is always a simulation."""
    return False


@dataclass(kw_only=True)
class StrictForm(OnnxForm):
    """Symmetric QDQ with float biases: the only explicit quantization that TensorRT takes."""

    def open(self, job: Job) -> StrictWorkshop:
        """Fold the model and measure its ranges."""
        return StrictWorkshop(job, self.scheme, self.table)


class StrictWorkshop(onnx_form.Workshop):
    """Checks each product by the lint, and writes the shapes of its profile."""

    newest_opset = NEWEST_OPSET

    def __init__(self, job: Job, scheme: Scheme, table: dict[str, Recipe | WeightsOnly]) -> None:
        super().__init__(job, scheme, table)
        self._shapes = profile(job)

    def finished(self, model: onnx.ModelProto, folder: Path) -> Product:
        """Lint, count, and write the profile."""
        require_strict(model)
        _write(self._shapes, folder)
        return replace(super().finished(model, folder), findings=lint(model))


class HalfForm:
    """Half precision with float inputs and outputs; see `edgeserve_compilers.targets.base.Form`."""

    name = "fp16"
    runtime = "onnxruntime"
    runtime_device = "TensorRT"
    selector = _SELECTOR
    candidates: Sequence[Candidate] = (Candidate(precision=Precision.FP16, recipe="fp16, float inputs and outputs"),)
    auto: Sequence[Precision] = (Precision.FP16,)
    required = True
    float_fallback = True
    must_be_faster = False
    finalize: Finalize | None = FINALIZE

    def native(self, architecture: str, cpu_features: Sequence[str]) -> bool:
        """Nowhere."""
        return _on_jetson(architecture, cpu_features)

    def open(self, job: Job) -> HalfWorkshop:
        """Fold the model, and measure where it would overflow."""
        return HalfWorkshop(job)


class HalfWorkshop:
    """See `edgeserve_compilers.targets.base.Workshop`."""

    layers: Sequence[str] = ()

    def __init__(self, job: Job) -> None:
        self._job = job
        self._graph = onnx_form.opened(job, newest_opset=NEWEST_OPSET)
        self._statistics: dict[str, Statistics] = {}
        if job.calibration is not None:
            self._statistics = onnx_form.measured(self._graph, job, {})

    def produce(self, candidate: Candidate, folder: Path) -> Product:
        """See `edgeserve_compilers.targets.base.Workshop.produce`."""
        if candidate == FLOAT:
            model = save_float(self._job.float_file, folder, newest_opset=NEWEST_OPSET)
        elif candidate in HalfForm.candidates:
            model = half.halved(self._graph, self._statistics)
            save(model, folder)
        else:
            raise ValueError(f"fp16 has no recipe {candidate.title!r}")
        require_strict(model)
        _write(profile(self._job), folder)
        return replace(half.counted(model), findings=lint(model))


def profile(job: Job) -> dict[str, dict[str, list[int]]]:
    """Smallest, usual and largest shape of each input, for TensorRT's optimization profile."""
    shapes = {}
    for spec in job.model.signature.inputs:
        row = job.row_shapes[spec.name]
        largest = 1 if job.state else LARGEST_BATCH if spec.shape[0] < 0 else spec.shape[0]
        smallest = 1 if spec.shape[0] < 0 else spec.shape[0]
        if len(row) == len(spec.shape):  # a state whose batch is not its first axis
            shapes[spec.name] = {bound: list(row) for bound in ("min", "opt", "max")}
        else:
            shapes[spec.name] = {"min": [smallest, *row], "opt": [smallest, *row], "max": [largest, *row]}
    return shapes


def _write(shapes: dict[str, dict[str, list[int]]], folder: Path) -> None:
    (folder / PROFILE).write_text(json.dumps(shapes, sort_keys=True) + "\n", "utf-8")


class JetsonGpu:
    """Strict int8 for speed, fp16 where int8 costs too much accuracy."""

    name = "jetson-gpu"
    forms: Sequence[Form] = (
        StrictForm(
            name="int8",
            scheme=_SCHEME,
            recipes=(
                Recipe(calibrator="mse"),
                Recipe(calibrator="minmax"),
                Recipe(calibrator="percentile 99.99"),
                Recipe(calibrator="percentile 99.9"),
                Recipe(calibrator="mse", operators="compute"),
                Recipe(calibrator="percentile 99.99", operators="compute"),
            ),
            selector=_SELECTOR,
            required=False,
            float_fallback=False,
            must_be_faster=False,
            runs=_on_jetson,
            runtime_device="TensorRT",
            finalize=FINALIZE,
        ),
        HalfForm(),
    )
    faithful = True
