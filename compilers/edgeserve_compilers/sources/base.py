"""The contract of a source: a model as its author saved it to one checked ONNX file.

`tests/suites/source.py` holds every implementation to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from edgeserve_compilers.spec import ModelSpec


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """What the user allows and fixes."""

    trust_pickle: bool = False
    """Files that execute code when they are read (pickle, joblib, a bare `.pt`) may be read."""
    constants: Mapping[str, float] = field(default_factory=dict)
    """Inputs that become constants of the graph (`Task.constants`)."""
    row_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Shape of one row of each input, where it is known (calibration data): needed only for files that do not say it
    themselves (a pickled PyTorch module, TorchScript)."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A float model that can be compiled."""

    spec: ModelSpec
    content: bytes
    """One self-contained ONNX file, opset >= 13, checked. The bytes as given, when the source is such a file.
    Empty when the model cannot be ONNX and only one of `originals` can be compiled (an OpenVINO IR, which nothing
    exports); `spec.opset` is 0 then, and targets that do not take that original must refuse."""
    originals: Mapping[str, Path] = field(default_factory=dict)
    """The author's own files that a target can use as they are, by format: `litert` (float .tflite), `openvino`."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """`metadata_props` of ONNX and what other formats have like it: the task may be prefilled from it."""


class Source(Protocol):
    """Reads one format. Has no state. Its library is imported by `load`, never with the module."""

    name: str
    """As registered in the entry-point group `edgeserve.sources`; also `ModelSpec.format`."""

    def recognises(self, path: Path) -> bool:
        """Whether `path` (it may not exist: `module:function`) looks like this format, by name and first bytes."""

    def load(self, path: Path, options: SourceOptions) -> Model:
        """Read, convert and check.

        Raises:
            NotFoundError: There is no such file or function.
            InputError: Not such a model, truncated, too large, too many nodes, without fixed rank; it would execute
                code and that was not allowed (the hint has the export command that its author should run).
            DeviceError: The library is missing; the hint is the exact `pip install 'edgeserve[...]'`.
        """
