"""Quantization of OpenVINO graphs by NNCF. The only module that imports it, and only for a quantized candidate."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

from edgeserve import plugins
from edgeserve.contracts.variant import Precision
from edgeserve.runtimes.base import Tensors
from edgeserve_compilers.targets.base import silenced
from edgeserve_compilers.targets.openvino_graph import Graph, has_attention, name_by_place

_GROUP: Final = 32
"""Weights of a row that share a scale in 4 bits, as in ONNX Runtime's MatMulNBits; half of it where that divides."""


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """Weights and activations in 8 bits (post-training quantization)."""

    precision: Precision = Precision.INT8
    ranges: str = "MINMAX"
    """How the range of an activation is estimated from the rows: a name of NNCF's `RangeEstimatorParametersSet`."""
    asymmetric: bool = True
    """Activations with a zero point (NNCF's preset `mixed`) or without (`performance`)."""
    fast_bias: bool = True
    """Correct biases layer by layer from statistics; else by running the quantized layers one after another: slower."""


@dataclass(frozen=True, kw_only=True)
class WeightsOnly:
    """Weights in few bits, activations in float: for models in which products of matrices dominate."""

    precision: Precision


def quantize(graph: Graph, recipe: Quantized, rows: Sequence[Tensors], device: str, floats: Collection[str]) -> Graph:
    """Post-training quantization with ranges from `rows`. `graph` is not changed.

    Args:
        graph: Float graph with unique names.
        recipe: How.
        rows: What one call takes, each.
        device: `CPU`, `GPU` or `NPU`: which operations its kernels compute in integers.
        floats: Names of operations that stay float.

    Raises:
        DeviceError: NNCF is not installed.
        Exception: As NNCF does.
    """
    nncf = _nncf()
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    with silenced():  # its progress bars go to stdout
        quantized = nncf.quantize(
            graph.clone(),  # it leaves notes in the graph that it is given
            nncf.Dataset(list(rows)),
            preset=nncf.QuantizationPreset.MIXED if recipe.asymmetric else nncf.QuantizationPreset.PERFORMANCE,
            target_device=nncf.TargetDevice(device),
            subset_size=len(rows),
            fast_bias_correction=recipe.fast_bias,
            model_type=nncf.ModelType.TRANSFORMER if has_attention(graph) else None,
            ignored_scope=nncf.IgnoredScope(names=sorted(floats), validate=False),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                # The variants ask for instructions that do not saturate, so no bit of the weights is given away.
                overflow_fix=nncf.OverflowFix.DISABLE,
                activations_range_estimator_params=getattr(RangeEstimatorParametersSet, recipe.ranges),
            ),
        )
    name_by_place(quantized)
    return quantized


def compress_weights(graph: Graph, recipe: WeightsOnly) -> Graph:
    """Store weights in 8 or 4 bits, with a zero point for each channel or group. `graph` is not changed.

    With 4 bits, weights that cannot be grouped, and those of convolutions, get 8.

    Raises:
        DeviceError: NNCF is not installed.
        Exception: As NNCF does.
    """
    nncf = _nncf()
    options: dict[str, Any] = {"mode": nncf.CompressWeightsMode.INT8_ASYM}
    if recipe.precision is Precision.INT4:
        from nncf.quantization.advanced_parameters import GroupSizeFallbackMode

        options = {
            "mode": nncf.CompressWeightsMode.INT4_ASYM,
            "group_size": _GROUP,
            "all_layers": True,
            "advanced_parameters": nncf.AdvancedCompressionParameters(
                group_size_fallback_mode=GroupSizeFallbackMode.ADJUST, min_adjusted_group_size=_GROUP // 2
            ),
        }
    with silenced():
        compressed = nncf.compress_weights(graph.clone(), **options)
    name_by_place(compressed)
    return compressed


def _nncf() -> Any:  # noqa: ANN401 - a module
    try:
        import nncf
    except ImportError as error:
        raise plugins.missing(error, "quantization for OpenVINO") from error
    logging.getLogger("nncf").setLevel(logging.ERROR)  # not nncf.set_log_level: it mutes others' handlers, too
    return nncf
