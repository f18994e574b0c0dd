"""Static int8 quantization of ONNX models in QDQ form, shared by the CPU targets.

Operator-oriented and tensor-oriented forms, calibrators and signedness:
https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from edgeserve.contracts.variant import Precision
from edgeserve.runtimes.base import Tensor, Tensors
from edgeserve_compilers.spec import FLOAT, Candidate
from edgeserve_compilers.targets.base import Job, Product, silenced

ENTRY: Final = "model.onnx"
_COMPUTE: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_BATCH: Final = 32
"""Calibration rows of one run: bounds the memory that the activations take."""

_CALIBRATORS: Final[dict[str, tuple[CalibrationMethod, dict[str, float]]]] = {
    # No calibrator wins everywhere: MinMax is best on well-behaved models, clipping on those with outliers.
    "minmax": (CalibrationMethod.MinMax, {}),
    "percentile-99.99": (CalibrationMethod.Percentile, {"CalibPercentile": 99.99}),
    "percentile-99.9": (CalibrationMethod.Percentile, {"CalibPercentile": 99.9}),
}


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """Numeric form of one CPU family."""

    name: str
    activations: QuantType
    reduce_range: bool
    """Use 7 bits of the weights, so that a sum of two products cannot overflow 16 bits."""

    def candidates(self) -> tuple[Candidate, ...]:
        """One for each calibrator, simplest first."""
        return tuple(Candidate(precision=Precision.INT8, recipe=f"{self.name} {key}") for key in _CALIBRATORS)


def produce(scheme: Scheme, candidate: Candidate, job: Job) -> Product:
    """Write the float model, or quantize it by a candidate of the scheme."""
    destination = job.folder / ENTRY
    if candidate == FLOAT:
        shutil.copyfile(job.float_file, destination)
        return _counted(destination)
    if job.calibration is None:
        raise ValueError("a quantized candidate needs calibration rows")
    method, extra = _CALIBRATORS[candidate.recipe.removeprefix(f"{scheme.name} ")]
    prepared = job.folder / "prepared.onnx"
    with silenced():
        # Folds constants and batch normalization, so that there is less to quantize. Its symbolic shape inference
        # needs sympy and helps transformers only.
        quant_pre_process(job.float_file, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            destination,
            _Rows(job.calibration, fixed=job.model.signature.inputs[0].shape[0]),
            per_channel=True,
            reduce_range=scheme.reduce_range,
            activation_type=scheme.activations,
            weight_type=QuantType.QInt8,
            calibrate_method=method,
            extra_options=dict(extra),
        )
    prepared.unlink()
    return _counted(destination)


class _Rows(CalibrationDataReader):  # type: ignore[misc]  # the library is not typed
    """Feeds calibration rows in batches, or one by one where a batch of 1 is built in."""

    def __init__(self, rows: Tensors, *, fixed: int) -> None:
        self._batches = _batches(rows, 1 if fixed == 1 else _BATCH)

    def get_next(self) -> dict[str, Tensor] | None:
        return next(self._batches, None)


def _batches(rows: Tensors, size: int) -> Iterator[dict[str, Tensor]]:
    count = len(next(iter(rows.values())))
    for start in range(0, count, size):
        yield {name: np.ascontiguousarray(array[start : start + size]) for name, array in rows.items()}


def _counted(path: Path) -> Product:
    nodes: list[Any] = list(onnx.load(path).graph.node)
    dequantized = {output for node in nodes if node.op_type == "DequantizeLinear" for output in node.output}
    compute = [node for node in nodes if node.op_type in _COMPUTE]
    quantized = [node for node in compute if set(node.input[:2]) <= dequantized]
    return Product(entry=ENTRY, compute_nodes=len(compute), quantized_nodes=len(quantized))
