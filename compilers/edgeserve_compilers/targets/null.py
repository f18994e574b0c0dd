"""The target without a library: the signature alone, for tests and for machines that have no inference library."""

from __future__ import annotations

from typing import Final

from edgeserve.contracts.documents import encode
from edgeserve.contracts.variant import Selector
from edgeserve_compilers.spec import FLOAT, Candidate
from edgeserve_compilers.targets.base import Job, Product

_ENTRY: Final = "model.null.json"


class Null:
    """Its products answer with sums of the input, not with what the model would say."""

    name = "null"
    runtime = "null"
    runtime_device = "CPU"
    selector = Selector()
    candidates: tuple[Candidate, ...] = ()
    faithful = False

    def native(self, architecture: str) -> bool:  # noqa: ARG002 - needs nothing of the machine
        """Everywhere."""
        return True

    def produce(self, candidate: Candidate, job: Job) -> Product:
        """See `edgeserve_compilers.targets.base.Target.produce`."""
        if candidate != FLOAT:
            raise ValueError(f"null has no form {candidate.recipe}")
        (job.folder / _ENTRY).write_bytes(encode(job.model.signature))
        return Product(entry=_ENTRY)
