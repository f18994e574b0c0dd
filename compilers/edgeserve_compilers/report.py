"""The evidence of a compilation: what was tried, measured and decided, from what and with what."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import version
from typing import Final

import msgspec

from edgeserve.contracts.device import DeviceFacts
from edgeserve.contracts.variant import Tolerance
from edgeserve_compilers.data import Dataset, overlap
from edgeserve_compilers.spec import CompileOptions, ModelSpec, Trial, Verdict

_ALWAYS: Final = ("edgeserve", "numpy", "onnx", "onnxruntime")
_WHEN_USED: Final = ("openvino", "nncf")
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


class TargetReport(msgspec.Struct, frozen=True, kw_only=True):
    """One target."""

    target: str
    native: bool
    """The compiling host runs the product as the device will; else its latency is a host proxy."""
    verdict: Verdict
    trials: tuple[Trial, ...]
    golden: GoldenFacts | None

    @property
    def kept(self) -> Trial | None:
        """The trial that was packed."""
        return next((trial for trial in self.trials if trial.candidate == self.verdict.kept), None)


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """`report.json` of a release."""

    schema: int = 1
    model: ModelSpec
    metric: str
    """`top1` against labels, or `agreement` with the float model where there are none."""
    judged_on: DataFacts
    interval: str
    """Method of the intervals of `drop`."""
    options: CompileOptions
    targets: tuple[TargetReport, ...]
    warnings: tuple[str, ...]


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """`provenance.json` of a release: from what, with what and where it was made."""

    schema: int = 1
    model: ModelSpec
    calibration: DataFacts | None
    validation: DataFacts | None
    options: CompileOptions
    targets: tuple[str, ...]
    versions: dict[str, str]
    host: DeviceFacts


def data_facts(data: Dataset) -> DataFacts:
    """Facts of a data set."""
    return DataFacts(file=data.file, digest=data.digest, rows=data.rows, labelled=data.labels is not None)


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that took part."""
    found = {"python": platform.python_version()}
    found |= {name: version(name) for name in (*_ALWAYS, *(name for name in _WHEN_USED if name in sys.modules))}
    return found


def warnings(calibration: Dataset | None, validation: Dataset | None) -> tuple[str, ...]:
    """What makes the measured accuracy less certain than it looks."""
    found = []
    if validation is None:
        found.append(
            "no --validation: judged on the calibration rows, which the ranges come from; real losses are larger"
        )
    elif validation.labels is None:
        found.append(f"{validation.file} has no labels: judged by agreement with the float model")
    shared = overlap(validation, calibration) if validation and calibration else 0
    if validation and shared:
        found.append(f"{shared} of {validation.rows} validation rows are calibration rows, too; real losses are larger")
    judged_on = validation or calibration
    if judged_on and judged_on.rows < _FEW_ROWS:
        found.append(f"{judged_on.rows} rows are few: the interval of the accuracy drop is wide")
    return tuple(found)
