"""Integer forms of a TFLite model by ai-edge-quantizer. The only module that imports it.

Forms: https://ai.google.dev/edge/litert/models/quantization_spec; a recipe lists (pattern of names, operation, form).
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Collection, Mapping
from typing import Any, Final

import numpy as np
from ai_edge_quantizer.algorithm_manager import AlgorithmName
from ai_edge_quantizer.qtyping import QuantGranularity, TFLOperationName
from ai_edge_quantizer.quantizer import Quantizer
from ai_edge_quantizer.recipe_manager import RecipeManager

from edgeserve_compilers.targets.base import silenced

STATIC: Final = "static wi8 ai8"
"""Weights and activations int8, ranges built in. Activations of 16 bits are not offered: XNNPACK has no kernels for
them."""
DYNAMIC: Final = "dynamic wi8"
"""Weights int8, activations int8 by the range that each call turns out to have."""
WEIGHTS: Final = "weight-only wi8"
"""Weights stored as int8, computed in float."""

_EVERYTHING: Final = ".*"
_BITS: Final = 8


def quantize(
    model: bytes, kind: str, ranges: Mapping[str, tuple[float, float]] | None, float_nodes: Collection[str]
) -> bytes:
    """Quantize all that the form knows but `float_nodes`; inputs and outputs stay float.

    Args:
        model: Float TFLite file whose tensors have unique names, with a signature.
        kind: `STATIC`, `DYNAMIC` or `WEIGHTS`.
        ranges: Of every float tensor that is computed; only `STATIC` needs them.
        float_nodes: Operations that stay float, by the name of their first output.
    """
    # It draws progress bars on stderr, whatever it is told.
    with silenced(), contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantizer = Quantizer(bytearray(model), _recipe(kind, float_nodes))
        result = quantizer.quantize(
            {name: _statistics(*ends) for name, ends in ranges.items()} if kind == STATIC and ranges else None,
            enable_progress_bar=False,
            enable_progress_report=False,
        )
    if result.quantized_model is None:
        raise ValueError("ai-edge-quantizer returned nothing")
    return bytes(result.quantized_model)


def _recipe(kind: str, float_nodes: Collection[str]) -> Any:  # noqa: ANN401 - the library's JSON-like type
    recipe = RecipeManager()
    every = TFLOperationName.ALL_SUPPORTED
    if kind == STATIC:
        recipe.add_static_config(_EVERYTHING, every, _BITS, _BITS)
        # Its int8 kernel knows one scale only, and answers zeros when there are more.
        matrix = TFLOperationName.BATCH_MATMUL
        recipe.add_static_config(_EVERYTHING, matrix, _BITS, _BITS, QuantGranularity.TENSORWISE)
    elif kind == DYNAMIC:
        recipe.add_dynamic_config(_EVERYTHING, every, _BITS)
    elif kind == WEIGHTS:
        recipe.add_weight_only_config(_EVERYTHING, every, _BITS)
    else:
        raise ValueError(f"there is no form {kind!r}")
    for end in (TFLOperationName.INPUT, TFLOperationName.OUTPUT):
        recipe.add_quantization_config(_EVERYTHING, end, algorithm_key=AlgorithmName.NO_QUANTIZE)
    if float_nodes:
        # The library matches the outputs of an operation, each followed by a semicolon; the last match counts.
        pattern = f"^(?:{'|'.join(re.escape(name) for name in sorted(float_nodes))});"
        recipe.add_quantization_config(pattern, every, algorithm_key=AlgorithmName.NO_QUANTIZE)
    return recipe.get_quantization_recipe()


def _statistics(low: float, high: float) -> dict[str, Any]:
    return {"min": np.array([low], np.float32), "max": np.array([high], np.float32)}
