"""An OpenVINO IR, looked at with OpenVINO."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.limits import MAX_GRAPH_NODES
from edgeserve.contracts.tensors import Signature
from edgeserve.runtimes.base import RuntimeOptions
from edgeserve.runtimes.checks import first_line
from edgeserve.runtimes.openvino import OpenVinoRuntime  # first: it turns the library's telemetry off

import openvino  # isort: skip

_INTEGERS = ("i4", "u4", "i8", "u8", "nf4")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the compiler needs to know of an IR."""

    signature: Signature
    operations: int


def facts(path: Path) -> Facts:
    """Load and compile the IR for the CPU.

    Raises:
        InputError: Damaged, already quantized, too many operations, or without fixed rank.
    """
    try:
        model = openvino.Core().read_model(path)
        operations = model.get_ops()
    except RuntimeError as error:
        version = openvino.__version__.partition("-")[0]
        raise InputError(
            f"{path} is not an IR that OpenVINO {version} can read: {first_line(error)}",
            hint="check that the .xml and the .bin are whole and belong together",
        ) from error
    if len(operations) > MAX_GRAPH_NODES:
        raise InputError(f"{path} has {len(operations)} operations, at most {MAX_GRAPH_NODES} are allowed")
    quantized = sum(map(_is_quantized, operations))
    if quantized:
        raise InputError(
            f"{path} is already quantized ({quantized} FakeQuantize or integer weights)",
            hint="give the float IR that it was made from",
        )
    loaded = OpenVinoRuntime().load(path, RuntimeOptions())
    loaded.close()
    return Facts(signature=loaded.signature, operations=len(operations))


def _is_quantized(operation: openvino.Node) -> bool:
    kind = operation.get_type_name()
    if kind != "Constant":
        return bool(kind == "FakeQuantize")
    return operation.get_element_type().get_type_name() in _INTEGERS and len(operation.get_output_shape(0)) > 1
