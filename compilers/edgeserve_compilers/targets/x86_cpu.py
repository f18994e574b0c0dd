"""x86-64 CPUs through ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from edgeserve.contracts.variant import Selector
from edgeserve_compilers.targets.base import Form
from edgeserve_compilers.targets.onnx_form import CPU_RECIPES, OnnxForm
from edgeserve_compilers.targets.qdq import CPU_ARITHMETIC, CPU_LAYERS, Scheme

_SEVEN_BITS: Final = Scheme(
    name="u8s8 7-bit",
    signed=False,
    symmetric=False,
    # Without VNNI the AVX2 kernels add pairs of u8 x s8 products in 16 bits and saturate. Seven-bit weights cannot, so
    # the answers are the same on every x86-64 CPU and the selector need not ask for VNNI.
    largest_weight=64,
    integer_bias=True,
    layers=CPU_LAYERS,
    arithmetic=CPU_ARITHMETIC,
    grid_outputs=True,
)
_VNNI: Final = ("avx512_vnni", "avx_vnni")


def _any(architecture: str, cpu_features: Sequence[str]) -> bool:  # noqa: ARG001 - all have the instructions
    return architecture == "amd64"


def _with_vnni(architecture: str, cpu_features: Sequence[str]) -> bool:
    return architecture == "amd64" and not set(_VNNI).isdisjoint(cpu_features)


class X86Cpu:
    """Unsigned activations, signed weights: the form that x86 has integer instructions for."""

    name = "x86-cpu"
    forms: Sequence[Form] = (
        OnnxForm(
            name="onnxruntime",
            scheme=_SEVEN_BITS,
            recipes=CPU_RECIPES,
            selector=Selector(architectures=("amd64",)),
            required=True,
            float_fallback=True,
            runs=_any,
        ),
        OnnxForm(
            name="vnni",
            scheme=replace(_SEVEN_BITS, name="u8s8", largest_weight=127),
            recipes=CPU_RECIPES,
            selector=Selector(architectures=("amd64",), cpu_features=("|".join(_VNNI),)),
            required=False,
            float_fallback=False,
            runs=_with_vnni,
        ),
    )
    faithful = True
