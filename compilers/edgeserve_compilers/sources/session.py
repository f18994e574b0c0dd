"""ONNX Runtime as the sources use it: to hold a conversion against its original, and to fold constants."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from edgeserve.contracts.errors import InputError
from edgeserve.runtimes import onnx as runtime  # first: it turns the library's telemetry off
from edgeserve.runtimes.base import Tensor, Tensors
from edgeserve.runtimes.checks import first_line

import onnxruntime  # isort: skip

_FATAL_ONLY: Final = 4
_ERRORS: Final = (Exception,)
"""The library's exceptions have no base of their own."""


class Session:
    """A model in memory that is run a few times. Unlike a `Runtime` it takes scalars."""

    def __init__(self, content: bytes, where: str) -> None:
        """Open the ONNX file `content`.

        Raises:
            InputError: ONNX Runtime cannot load it.
        """
        try:
            self._session = onnxruntime.InferenceSession(content, _settings(), providers=["CPUExecutionProvider"])
        except _ERRORS as error:
            raise InputError(
                f"{where} is not a model that ONNX Runtime {runtime.OnnxRuntime().version()} can load: "
                f"{first_line(error)}",
                hint="export it with operators of the ONNX standard, opset 17",
            ) from error
        self.outputs = [value.name for value in self._session.get_outputs()]

    def run(self, inputs: Mapping[str, Tensor]) -> Tensors:
        """Compute every output.

        Raises:
            InputError: The model does not take such inputs, or fails on them.
        """
        try:
            return dict(zip(self.outputs, self._session.run(None, dict(inputs)), strict=True))
        except _ERRORS as error:
            raise InputError(f"the model failed on a trial input: {first_line(error)}") from error


def folded(content: bytes) -> bytes:
    """Let ONNX Runtime compute what does not depend on the inputs, take constant branches and join what it can.

    Only rewrites that hold on every device are made (its level `basic`); the result still is standard ONNX, which the
    caller must check.

    Raises:
        InputError: ONNX Runtime cannot load the model.
    """
    settings = _settings()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with tempfile.TemporaryDirectory(prefix="edgeserve-") as folder:
        result = Path(folder) / "folded.onnx"
        settings.optimized_model_filepath = str(result)
        try:
            onnxruntime.InferenceSession(content, settings, providers=["CPUExecutionProvider"])
            return result.read_bytes()
        except _ERRORS as error:
            raise InputError(f"ONNX Runtime cannot fold the model: {first_line(error)}") from error


def _settings() -> Any:  # noqa: ANN401 - the library is not typed
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.inter_op_num_threads = 1
    settings.log_severity_level = _FATAL_ONLY
    return settings
