"""64-bit ARM CPUs through ONNX Runtime and LiteRT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from edgeserve.contracts.variant import Selector
from edgeserve_compilers.targets import litert
from edgeserve_compilers.targets.base import Form
from edgeserve_compilers.targets.onnx_form import CPU_RECIPES, OnnxForm
from edgeserve_compilers.targets.qdq import CPU_ARITHMETIC, CPU_LAYERS, Scheme

_SCHEME: Final = Scheme(
    name="s8s8",
    # The NEON dot-product (Armv8.2 `asimddp`) and i8mm instructions multiply signed by signed.
    signed=True,
    symmetric=False,
    largest_weight=127,
    integer_bias=True,
    layers=CPU_LAYERS,
    arithmetic=CPU_ARITHMETIC,
    grid_outputs=True,
)


def _on_arm(architecture: str, cpu_features: Sequence[str]) -> bool:  # noqa: ARG001 - all have the instructions
    return architecture == "arm64"


class ArmCpu:
    """Signed asymmetric activations, signed symmetric weights.

    On x86 the same file runs 2 to 3 times slower than float, which says nothing about ARM.
    """

    name = "arm-cpu"
    forms: Sequence[Form] = (
        OnnxForm(
            name="onnxruntime",
            scheme=_SCHEME,
            recipes=CPU_RECIPES,
            selector=Selector(architectures=("arm64",)),
            required=True,
            float_fallback=True,
            runs=_on_arm,
        ),
        *litert.FORMS,
    )
    faithful = True
