"""The contract of a target. `tests/suites/compiler.py` holds every implementation to it."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edgeserve.contracts.variant import Selector
from edgeserve.runtimes.base import Tensors
from edgeserve_compilers.spec import Candidate, ModelSpec


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a target gets to work with."""

    model: ModelSpec
    float_file: Path
    """The float model as one ONNX file. Read it, do not change it."""
    row_shapes: dict[str, tuple[int, ...]]
    """Shape of one row of each input, without the first axis, all sizes known: those of the user's data."""
    calibration: Tensors | None
    """Rows for each input; None = no quantized candidate is asked for."""
    folder: Path
    """Empty folder for the product; nothing is written elsewhere."""


@dataclass(frozen=True, kw_only=True)
class Product:
    """Files that a runtime can load."""

    entry: str
    """File to hand to the runtime, in the job's folder; every file there belongs to the product."""
    compute_nodes: int = 0
    """Convolutions and matrix products."""
    quantized_nodes: int = 0
    """Those of them that compute in integers."""


class Target(Protocol):
    """Makes variants for one runtime and accelerator. Has no state."""

    name: str
    """As registered in the entry-point group `edgeserve.targets`."""
    runtime: str
    """Name of the runtime that loads the products."""
    runtime_device: str
    """Device in that runtime's words."""
    selector: Selector
    """Which devices can run the products."""
    candidates: Sequence[Candidate]
    """Quantized forms, the one to try first first; the float form goes without saying."""
    faithful: bool
    """Products compute what the model computes. `null` does not, and can only be compiled for alone."""

    def native(self, architecture: str) -> bool:
        """Whether a machine of this architecture (OCI words), this one, runs the products as the device will."""

    def produce(self, candidate: Candidate, job: Job) -> Product:
        """Make `candidate`, one of `candidates` or `FLOAT`, in the job's folder.

        Raises:
            Exception: Whatever the library behind it raises; the caller turns it into a finding about the candidate.
        """


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Keep converters from printing on stdout, which belongs to the command's own output."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
