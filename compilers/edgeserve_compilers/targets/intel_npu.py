"""The NPU of Intel Core Ultra through OpenVINO: static IR, quantized by NNCF, compiled to a blob on the device."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from typing import Any, Final

import nncf
import numpy as np
import openvino
from nncf.quantization.range_estimator import RangeEstimatorParametersSet

from edgeserve.contracts.variant import Precision, Selector
from edgeserve.runtimes.base import Tensors
from edgeserve.runtimes.openvino import available_devices
from edgeserve_compilers.spec import FLOAT, Candidate
from edgeserve_compilers.targets.base import Job, Product, silenced

_ENTRY: Final = "model.xml"
_COMPUTE: Final = frozenset({"Convolution", "GroupConvolution", "ConvolutionBackpropData", "MatMul"})
_TRANSPARENT: Final = frozenset({"Convert", "MaxPool", "Multiply", "Reshape", "Subtract", "Transpose"})
"""What may lie between quantized values and the operation that uses them, without leaving the grid."""
_LONGEST_PATH: Final = 6
_RANGES: Final = {
    # As with the CPU targets: all that was seen is best on well-behaved models, its mean where some rows stand out.
    "nncf mixed min-max": RangeEstimatorParametersSet.MINMAX,
    "nncf mixed mean-min-max": RangeEstimatorParametersSet.MEAN_MINMAX,
}
_AUTOMATIC_NAME: Final = re.compile(r"[A-Za-z]+_[0-9]+")


class IntelNpu:
    """A batch of 1 and no varying size: the NPU compiler takes nothing else."""

    name = "intel-npu"
    runtime = "openvino"
    runtime_device = "NPU"
    selector = Selector(architectures=("amd64",), accelerator="npu", accelerator_vendor="intel")
    candidates = tuple(Candidate(precision=Precision.INT8, recipe=recipe) for recipe in _RANGES)
    faithful = True

    def native(self, architecture: str) -> bool:  # noqa: ARG002 - the driver decides, not the architecture
        """Where OpenVINO finds an NPU."""
        return "NPU" in available_devices()

    def produce(self, candidate: Candidate, job: Job) -> Product:
        """See `edgeserve_compilers.targets.base.Target.produce`."""
        model = openvino.convert_model(job.float_file)
        model.reshape({name: [1, *shape] for name, shape in job.row_shapes.items()})
        if candidate != FLOAT:
            model = _quantize(model, job, _RANGES[candidate.recipe])
        _name_by_place(model)
        # Otherwise weights that stayed float would be rounded to half precision without being measured as such.
        openvino.save_model(model, job.folder / _ENTRY, compress_to_fp16=False)
        compute, quantized = _count(model)
        return Product(entry=_ENTRY, compute_nodes=compute, quantized_nodes=quantized)


def _quantize(model: Any, job: Job, ranges: Any) -> Any:  # noqa: ANN401 - openvino.Model, which is not typed
    if job.calibration is None:
        raise ValueError("a quantized candidate needs calibration rows")
    logging.getLogger("nncf").setLevel(logging.ERROR)  # not nncf.set_log_level: it mutes others' handlers, too
    rows = len(next(iter(job.calibration.values())))
    with silenced():
        return nncf.quantize(
            model,
            nncf.Dataset(list(_rows(job.calibration))),
            preset=nncf.QuantizationPreset.MIXED,
            target_device=nncf.TargetDevice.NPU,
            subset_size=rows,
            fast_bias_correction=True,
            advanced_parameters=nncf.AdvancedQuantizationParameters(activations_range_estimator_params=ranges),
        )


def _rows(data: Tensors) -> Iterator[Tensors]:
    for row in range(len(next(iter(data.values())))):
        yield {name: np.ascontiguousarray(array[row : row + 1]) for name, array in data.items()}


def _name_by_place(model: Any) -> None:  # noqa: ANN401
    """Replace names that count the operations of this process, so that the same input gives the same file."""
    for place, node in enumerate(model.get_ordered_ops()):
        if _AUTOMATIC_NAME.fullmatch(node.get_friendly_name()) and node.get_type_name() not in ("Parameter", "Result"):
            node.set_friendly_name(f"op{place}")


def _count(model: Any) -> tuple[int, int]:  # noqa: ANN401
    compute = [node for node in model.get_ops() if node.get_type_name() in _COMPUTE]
    return len(compute), sum(all(_fake_quantized(port) for port in node.inputs()[:2]) for node in compute)


def _fake_quantized(port: Any) -> bool:  # noqa: ANN401
    """Whether a value comes from FakeQuantize, or from integer weights that are scaled back to float."""
    output = port.get_source_output()
    for _ in range(_LONGEST_PATH):
        node = output.get_node()
        if node.get_type_name() == "FakeQuantize" or output.get_element_type().get_type_name() in ("i8", "u8"):
            return True
        if node.get_type_name() not in _TRANSPARENT:
            return False
        output = node.input_value(0)
    return False
