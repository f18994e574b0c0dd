"""What the compiler reasons about: the model, the wish, what was tried and how it did. Pure data."""

from __future__ import annotations

from enum import Enum

import msgspec

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.task import Task
from edgeserve.contracts.tensors import Signature
from edgeserve.contracts.variant import Precision


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Facts of the float model."""

    file: str
    """Name of the file, without its folder."""
    digest: str
    """Of the file as given (external data not included)."""
    size_bytes: int
    """Of the one self-contained file that is compiled."""
    opset: int
    nodes: int
    signature: Signature


class PrecisionChoice(str, Enum):
    """What the user asks for with `--precision`."""

    AUTO = "auto"
    FP32 = "fp32"
    INT8 = "int8"


class CompileOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the user wants, apart from files and targets."""

    precision: PrecisionChoice = PrecisionChoice.AUTO
    max_accuracy_drop: float = 0.01
    """Largest loss of the metric against the float model, as a share of the rows."""
    task: Task = Task()

    def __post_init__(self) -> None:
        if not 0 <= self.max_accuracy_drop < 1:
            raise InputError(
                f"--max-accuracy-drop {self.max_accuracy_drop} is not a share of the rows",
                hint="0.01 allows one row in a hundred to be lost",
            )


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """One way to make a variant for a target."""

    precision: Precision
    recipe: str
    """Name in the target's own table; says numeric form and calibrator."""


FLOAT = Candidate(precision=Precision.FP32, recipe="fp32")
"""The float model in the target's own format: what the others are held against, and the fall-back."""


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """What running a product showed."""

    value: float
    """The metric, 0..1."""
    float_value: float
    drop: float
    drop_low: float
    drop_high: float
    agreement: float
    """Share of rows whose arg-max is the float model's."""
    sqnr_db: float | None
    """Signal to noise of the scores: 10 log10(sum(float^2) / sum((float - variant)^2)); None = no noise."""
    has_nan: bool
    latency_ms: float
    """Median of calls with one row, in turns with the target's float form, one thread."""
    float_latency_ms: float
    executing_device: str


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """One candidate with what came of it."""

    candidate: Candidate
    size_bytes: int = 0
    float_size_bytes: int = 0
    """Size of the target's float form."""
    compute_nodes: int = 0
    """Convolutions and matrix products."""
    quantized_nodes: int = 0
    """Those of them that compute in integers."""
    measurement: Measurement | None = None
    refused: tuple[str, ...] = ()
    """Why it must not be packed; empty = it may."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What was decided for one target."""

    kept: Candidate | None
    why: str
