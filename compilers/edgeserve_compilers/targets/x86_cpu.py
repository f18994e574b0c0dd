"""x86-64 CPUs through ONNX Runtime."""

from __future__ import annotations

from typing import Final

from onnxruntime.quantization import QuantType

from edgeserve.contracts.variant import Selector
from edgeserve_compilers.spec import Candidate
from edgeserve_compilers.targets import qdq
from edgeserve_compilers.targets.base import Job, Product

_SCHEME: Final = qdq.Scheme(
    name="u8s8 per-channel",
    activations=QuantType.QUInt8,
    # Without VNNI the AVX2 kernels add pairs of u8 x s8 products in 16 bits and saturate. Seven-bit weights cannot, so
    # the answers are the same on every x86-64 CPU and the selector need not ask for VNNI. The cost in accuracy is
    # measured like everything else.
    reduce_range=True,
)


class X86Cpu:
    """Unsigned activations, signed 7-bit weights: the form that x86 has integer instructions for."""

    name = "x86-cpu"
    runtime = "onnxruntime"
    runtime_device = "CPU"
    selector = Selector(architectures=("amd64",))
    candidates = _SCHEME.candidates()
    faithful = True

    def native(self, architecture: str) -> bool:
        """On x86-64."""
        return architecture == "amd64"

    def produce(self, candidate: Candidate, job: Job) -> Product:
        """See `edgeserve_compilers.targets.base.Target.produce`."""
        return qdq.produce(_SCHEME, candidate, job)
