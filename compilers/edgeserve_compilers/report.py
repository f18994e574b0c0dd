"""The evidence of a compilation: what was tried, measured and decided, from what and with what."""

from __future__ import annotations

import contextlib
import platform
import re
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import msgspec

from edgeserve.contracts.device import DeviceFacts
from edgeserve.contracts.variant import Tolerance
from edgeserve_compilers.data.dataset import Dataset, overlap
from edgeserve_compilers.spec import CompileOptions, LayerNoise, ModelSpec, Trial, Verdict

_LIBRARIES: Final = (
    "edgeserve", "numpy", "pillow", "onnx", "onnxruntime", "openvino", "nncf", "ai-edge-litert", "ai-edge-quantizer",
    "torch", "tensorflow", "tf2onnx", "skl2onnx", "onnxmltools", "scikit-learn", "xgboost", "lightgbm",
)  # fmt: skip
_AFTER_PATH: Final = r"\s:;,'\"()"
"""Characters at which a path in a message ends."""
_MANY_TRIALS: Final = 10
"""Choosing the best of so many on the same rows flatters it noticeably."""
_FEW_ROWS: Final = 100
"""Below it the 95 % interval of a drop is wider than +-3 points even when no row differs."""


class DataFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Facts of a data file; its path stays private."""

    file: str
    digest: str
    rows: int
    labelled: bool


class GoldenFacts(msgspec.Struct, frozen=True, kw_only=True):
    """How the packed variant reproduced the golden set on the compiling host."""

    rows: int
    agreement: float
    max_abs_difference: float
    tolerance: Tolerance


class Bucket(msgspec.Struct, frozen=True, kw_only=True):
    """One bar of a histogram."""

    low: float
    high: float
    count: int


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """One row with both answers, in words."""

    row: int
    name: str
    """File of the row, or empty."""
    truth: str
    float_answer: str
    answer: str
    agreement: float


class TargetReport(msgspec.Struct, frozen=True, kw_only=True):
    """One form of one target: what was tried, how it did, what was packed."""

    target: str
    form: str
    runtime: str
    requested_device: str
    native: bool
    """The compiling host runs the product as the device will; else its latency is a host proxy."""
    required: bool
    verdict: Verdict
    trials: tuple[Trial, ...]
    golden: GoldenFacts | None
    sensitivity: tuple[LayerNoise, ...] = ()
    """Noisiest first; empty when no layer had to be ranked."""
    differences: tuple[Bucket, ...] = ()
    """Kept variant: differences from the float model's outputs, of all elements of the scored field."""
    examples: tuple[Example, ...] = ()
    """Kept variant: the rows that agree least, then some that are typical."""
    findings: tuple[str, ...] = ()
    """Of lints: what the device may refuse."""

    @property
    def kept(self) -> Trial | None:
        """The trial that was packed."""
        return next((trial for trial in self.trials if trial.candidate == self.verdict.kept), None)

    @property
    def title(self) -> str:
        """Target; and the form, unless it is the one that the target cannot do without."""
        return self.target if self.required else f"{self.target} ({self.form})"


class ClassAgreement(msgspec.Struct, frozen=True, kw_only=True):
    """How often the new release should agree with the old one, where the old one answers a class."""

    label: str
    rows: int
    agreement: float


class BaselineAgreement(msgspec.Struct, frozen=True, kw_only=True):
    """`agreement.json`: what a shadow gate should expect between this release and the one before."""

    schema: int = 1
    baseline: str
    """Digest of the release before."""
    version: str
    rows: int
    agreement: float
    classes: tuple[ClassAgreement, ...] = ()
    """By the old release's answer; empty for tasks without classes."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """`report.json` of a release."""

    schema: int = 2
    model: ModelSpec
    metric: str
    """By which `drop` is measured."""
    judged_on: DataFacts
    interval: str
    """Method of the intervals of `drop`."""
    options: CompileOptions
    targets: tuple[TargetReport, ...]
    warnings: tuple[str, ...]
    unjudged: tuple[str, ...] = ()
    """What could not be judged, and why: no task, no labels, no validation data."""
    baseline: BaselineAgreement | None = None


class PackedFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file of a variant, for `--check`."""

    target: str
    form: str
    title: str
    digest: str


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """`provenance.json` of a release: from what, with what and where it was made."""

    schema: int = 2
    model: ModelSpec
    calibration: DataFacts | None
    validation: DataFacts | None
    options: CompileOptions
    targets: tuple[str, ...]
    versions: dict[str, str]
    host: DeviceFacts
    seed: int = 0
    files: tuple[PackedFile, ...] = ()


def data_facts(data: Dataset) -> DataFacts:
    """Facts of a data set."""
    return DataFacts(file=data.file, digest=data.digest, rows=data.rows, labelled=data.truth is not None)


def without_folders(text: str, folders: Iterable[Path]) -> str:
    """`text` in which files below `folders` are named without what they lie in: evidence leaves this machine.

    Not every word with slashes is taken for a path: layers have such names, too.
    """
    for folder in sorted({str(folder) for folder in folders if len(folder.parts) > 1}, key=len, reverse=True):
        inside = rf"{re.escape(folder)}(?![^{_AFTER_PATH}/])(/[^{_AFTER_PATH}]*)?"
        text = re.sub(inside, lambda found: Path(found[1] or "").name or "...", text)
    return text


def versions() -> dict[str, str]:
    """Versions of Python and of every library that may take part, where they are installed."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def warnings(
    calibration: Dataset | None, validation: Dataset | None, targets: Sequence[TargetReport] = ()
) -> tuple[str, ...]:
    """What makes the measured accuracy less certain than it looks, and what a device may refuse."""
    found = []
    if validation is None:
        found.append(
            "no --validation: judged on the calibration rows, which the ranges come from; real losses are larger"
        )
    shared = overlap(validation, calibration) if validation and calibration else 0
    if validation and shared:
        found.append(f"{shared} of {validation.rows} validation rows are calibration rows, too; real losses are larger")
    judged_on = validation or calibration
    if judged_on and judged_on.rows < _FEW_ROWS:
        found.append(f"{judged_on.rows} rows are few: the interval of the accuracy drop is wide")
    for target in targets:
        tried = sum(trial.measurement is not None for trial in target.trials)
        if target.kept and tried > _MANY_TRIALS:
            found.append(
                f"{target.title}: the best of {tried} was chosen on the rows that judge it: expect a bit less on others"
            )
        found += [f"{target.title}: {finding}" for finding in target.findings]
    return tuple(found)
