"""64-bit ARM CPUs through ONNX Runtime."""

from __future__ import annotations

from typing import Final

from onnxruntime.quantization import QuantType

from edgeserve.contracts.variant import Selector
from edgeserve_compilers.spec import Candidate
from edgeserve_compilers.targets import qdq
from edgeserve_compilers.targets.base import Job, Product

_SCHEME: Final = qdq.Scheme(name="s8s8 per-channel", activations=QuantType.QInt8, reduce_range=False)


class ArmCpu:
    """Signed asymmetric activations, signed symmetric weights: the form of the NEON dot-product and i8mm kernels.

    On x86 the same file runs 2 to 3 times slower than float, which says nothing about ARM.
    """

    name = "arm-cpu"
    runtime = "onnxruntime"
    runtime_device = "CPU"
    selector = Selector(architectures=("arm64",))
    candidates = _SCHEME.candidates()
    faithful = True

    def native(self, architecture: str) -> bool:
        """On 64-bit ARM."""
        return architecture == "arm64"

    def produce(self, candidate: Candidate, job: Job) -> Product:
        """See `edgeserve_compilers.targets.base.Target.produce`."""
        return qdq.produce(_SCHEME, candidate, job)
