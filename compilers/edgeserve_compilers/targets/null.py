"""The target without a library: the signature alone, for tests and for machines that have no inference library."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from edgeserve.contracts.documents import encode
from edgeserve.contracts.variant import Finalize, Precision, Selector
from edgeserve_compilers.spec import FLOAT, Candidate
from edgeserve_compilers.targets.base import Form, Job, Product, Workshop

_ENTRY: Final = "model.null.json"


class NullForm:
    """The signature of the model and nothing else."""

    name = "null"
    runtime = "null"
    runtime_device = "CPU"
    selector = Selector()
    candidates: Sequence[Candidate] = ()
    auto: Sequence[Precision] = ()
    required = True
    float_fallback = True
    must_be_faster = False
    finalize: Finalize | None = None

    def native(self, architecture: str, cpu_features: Sequence[str]) -> bool:  # noqa: ARG002 - needs nothing
        """Everywhere."""
        return True

    def open(self, job: Job) -> Workshop:
        """See `edgeserve_compilers.targets.base.Form.open`."""
        return NullWorkshop(job)


class NullWorkshop:
    """Writes the signature."""

    layers: Sequence[str] = ()

    def __init__(self, job: Job) -> None:
        self._signature = job.model.signature

    def produce(self, candidate: Candidate, folder: Path) -> Product:
        """See `edgeserve_compilers.targets.base.Workshop.produce`."""
        if candidate != FLOAT:
            raise ValueError(f"null has no form {candidate.recipe}")
        (folder / _ENTRY).write_bytes(encode(self._signature))
        return Product(entry=_ENTRY)


class Null:
    """Its products answer with sums of the input, not with what the model would say."""

    name = "null"
    forms: Sequence[Form] = (NullForm(),)
    faithful = False
