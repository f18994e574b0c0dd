"""The contract of a target. `tests/suites/compiler.py` holds every implementation to it.

A target has one or more forms; each form becomes at most one variant of the release. A form opens a workshop on one
model and its calibration rows: ranges are measured once, and any number of candidates is made from them.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from edgeserve.contracts.variant import Finalize, Precision, Selector
from edgeserve.runtimes.base import Tensors
from edgeserve_compilers.spec import Candidate, ModelSpec


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a form gets to work with."""

    model: ModelSpec
    float_file: Path
    """The float model as one ONNX file, opset >= 13. Read it, do not change it."""
    originals: Mapping[str, Path] = field(default_factory=dict)
    """The model as its author saved it, by format: `litert` (a float .tflite), `openvino` (an .xml). Often empty."""
    row_shapes: dict[str, tuple[int, ...]]
    """Shape of one row of each input, without the first axis, all sizes known: those of the user's data."""
    calibration: Tensors | None
    """Rows for each input, state inputs among them, first axis = rows; None = no quantized candidate is asked for.
    A state input whose batch is not its first axis is given as [rows, *its shape with a batch of 1]."""
    state: Mapping[str, str] = field(default_factory=dict)
    """Stateful models: input -> output. Such a model is compiled for a batch of 1."""
    folder: Path
    """Empty folder for what the workshop keeps; removed afterwards."""


@dataclass(frozen=True, kw_only=True)
class Product:
    """Files that a runtime can load."""

    entry: str
    """File to hand to the runtime; every file in the product's folder belongs to it and is named `model.*`."""
    compute_nodes: int = 0
    """Convolutions and matrix products."""
    quantized_nodes: int = 0
    """Those of them that compute in integers, or whose weights are stored so."""
    placement: dict[str, int] = field(default_factory=dict)
    """Operations by numeric form: `int8`, `int4`, `fp16`, `float`. Constants, casts and (de)quantizers do not count."""
    findings: tuple[str, ...] = ()
    """What a lint found that the device may refuse (an unknown operation): shown as warnings."""


class Workshop(Protocol):
    """A model opened by a form: makes candidates. Not thread-safe. What it measured is kept until it is dropped."""

    layers: Sequence[str]
    """Compute layers that may stay float one by one, in order of execution; empty = no mixed precision. Those that must
    stay float anyway (heads that join values of different ranges) are not among them."""

    def produce(self, candidate: Candidate, folder: Path) -> Product:
        """Make `FLOAT`, or one of the form's candidates with any `float_layers`, in `folder` (empty).

        Same candidate, same bytes.

        Raises:
            Exception: Whatever the library behind it raises; the caller turns it into a finding about the candidate.
        """


class Form(Protocol):
    """One runtime and numeric family of a target. Has no state."""

    name: str
    """Unique in the target, such as `onnxruntime`, `litert`, `vnni`."""
    runtime: str
    """Name of the runtime that loads the products."""
    runtime_device: str
    """Device in that runtime's words."""
    selector: Selector
    """Which devices can run the products."""
    candidates: Sequence[Candidate]
    """Quantized (or half-precision) forms without `float_layers`, the one to try first first; the float form goes
    without saying."""
    auto: Sequence[Precision]
    """Precisions that `--precision auto` tries; empty = only the float form."""
    required: bool
    """The target has failed when this form has no variant; the others only say why they are missing."""
    float_fallback: bool
    """The float product may be packed when no candidate may."""
    must_be_faster: bool
    """With `--precision auto`, and where the host runs the products as the device will: a quantized product that is not
    faster than the float one is refused."""
    finalize: Finalize | None
    """What is left to do on the device, before the first request."""

    def native(self, architecture: str, cpu_features: Sequence[str]) -> bool:
        """Whether a machine of this architecture (OCI words) and CPU runs the products as the device will."""

    def open(self, job: Job) -> Workshop:
        """Open a workshop.

        Raises:
            Exception: As `Workshop.produce`.
        """


class Target(Protocol):
    """Makes variants for one kind of hardware. Has no state."""

    name: str
    """As registered in the entry-point group `edgeserve.targets`."""
    forms: Sequence[Form]
    """The best known first."""
    faithful: bool
    """Products compute what the model computes. `null` does not, and can only be compiled for alone."""


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Keep converters from printing on stdout, which belongs to the command's own output."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
