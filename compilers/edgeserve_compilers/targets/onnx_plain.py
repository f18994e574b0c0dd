"""ONNX made plain for a converter: shapes fixed, constants folded, branches that they decide taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import onnx
import onnxruntime

_FATAL_ONLY: Final = 4


def plain(source: Path, shapes: Mapping[str, Sequence[int]], destination: Path) -> None:
    """Write the model as ONNX Runtime simplifies it by what holds on every machine; operations stay ONNX's own.

    Converters leave branches and shape arithmetic in, which LiteRT and NNCF then fail on or are slowed down by.

    Args:
        source: One ONNX file.
        shapes: Shape of every input; -1 where it stays open.
        destination: Where to write. A file beside it, with `.fixed` behind its name, is left.
    """
    model = onnx.load(source)
    for value in model.graph.input:
        for dimension, size in zip(value.type.tensor_type.shape.dim, shapes[value.name], strict=True):
            if size > 0:
                dimension.dim_value = size
    fixed = destination.with_name(destination.name + ".fixed")
    onnx.save(model, fixed)
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    settings.optimized_model_filepath = str(destination)
    settings.log_severity_level = _FATAL_ONLY
    onnxruntime.InferenceSession(str(fixed), settings, providers=["CPUExecutionProvider"])
