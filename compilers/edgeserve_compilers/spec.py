"""What the compiler reasons about: the model, the wish, what was tried and how it did. Pure data."""

from __future__ import annotations

from enum import Enum
from typing import Final

import msgspec

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.task import Task
from edgeserve.contracts.tensors import Signature
from edgeserve.contracts.variant import Precision


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Facts of the float model."""

    file: str
    """Name of the file or folder, without what it lies in."""
    format: str = "onnx"
    """Source that read it: `onnx`, `litert`, `pytorch`, `tensorflow`, `openvino`, `sklearn`."""
    digest: str
    """Of the file as given (external data not included), of the files of a folder in order."""
    size_bytes: int
    """Of the one self-contained ONNX file that is compiled."""
    opset: int
    nodes: int
    signature: Signature


class PrecisionChoice(str, Enum):
    """What the user asks for with `--precision`."""

    AUTO = "auto"
    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"
    INT4 = "int4"


class CompileOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the user wants, apart from files and targets."""

    precision: PrecisionChoice = PrecisionChoice.AUTO
    max_accuracy_drop: float = 0.01
    """Largest loss of the metric against the float model."""
    task: Task = Task()

    def __post_init__(self) -> None:
        if not 0 <= self.max_accuracy_drop < 1:
            raise InputError(
                f"--max-accuracy-drop {self.max_accuracy_drop} is not a share of the rows",
                hint="0.01 allows one row in a hundred to be lost",
            )


class Candidate(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One way to make a variant of a form."""

    precision: Precision
    recipe: str
    """Name in the form's own table; says numeric form, calibrator and operators."""
    float_layers: tuple[str, ...] = ()
    """Layers (of `Workshop.layers`) that stay float, sorted: mixed precision."""
    weights_only: bool = False
    """Weights are stored in few bits and computed with in float: small, hardly faster. The last resort."""

    @property
    def title(self) -> str:
        """The recipe in words."""
        count = len(self.float_layers)
        return self.recipe + (f", {count} layer{'s' if count > 1 else ''} in float" if count else "")


FLOAT: Final = Candidate(precision=Precision.FP32, recipe="fp32")
"""The float model in the form's own format: what the others are held against, and the fall-back."""


class FieldNoise(msgspec.Struct, frozen=True, kw_only=True):
    """How far one decoded field (`scores`, `boxes`, an output) is from the float model's."""

    field: str
    sqnr_db: float | None
    """10 log10(sum(float^2) / sum((float - variant)^2)); None = no noise."""


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """What running a product showed."""

    value: float
    """The metric, 1 is perfect."""
    float_value: float
    drop: float
    drop_low: float
    drop_high: float
    """Paired 95 % interval of `drop` (float minus variant)."""
    agreement: float
    """Mean over the rows of how far the answer is the float model's, 0..1 (`edgeserve.task.agreement`)."""
    fields: tuple[FieldNoise, ...] = ()
    has_nan: bool
    positives: int = 0
    """Detection: boxes at the task's score."""
    float_positives: int = 0
    latency_ms: float
    """Median of calls with one row, in turns with the form's float product, one thread."""
    float_latency_ms: float
    executing_device: str

    @property
    def sqnr_db(self) -> float | None:
        """Of the noisiest field; None = no noise."""
        return min((noise.sqnr_db for noise in self.fields if noise.sqnr_db is not None), default=None)


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """One candidate with what came of it."""

    candidate: Candidate
    size_bytes: int = 0
    float_size_bytes: int = 0
    """Size of the form's float product."""
    compute_nodes: int = 0
    """Convolutions and matrix products."""
    quantized_nodes: int = 0
    """Those of them that compute in integers, or whose weights are stored so."""
    placement: dict[str, int] = {}
    """Operations of the product by numeric form: `int8`, `int4`, `fp16`, `float`."""
    measurement: Measurement | None = None
    refused: tuple[str, ...] = ()
    """Why it must not be packed; empty = it may."""


class LayerNoise(msgspec.Struct, frozen=True, kw_only=True):
    """What quantizing one layer alone does to the outputs."""

    layer: str
    noise: float
    """Noise power over signal power, of the noisiest decoded field, on RANKING_ROWS calibration rows."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What was decided for one form of a target."""

    kept: Candidate | None
    why: str
