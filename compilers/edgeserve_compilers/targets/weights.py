"""Integer weights: one scale for each output channel, or for each block of a matrix's column."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgeserve.runtimes.base import Tensor
from edgeserve_compilers.targets.onnx_graph import Graph, attribute, is_float

BLOCK: Final = 32
"""Elements of a column that share a scale: the block that every kernel of MatMulNBits knows."""
_SMALLEST_SCALE: Final = 1e-30
"""Of a channel's weights: the product of a smaller one with the scale of the input could be no normal float32."""
_LARGEST_BIAS: Final = 2.0**30
"""Of an int32 bias: leaves as much again for the sum that it is added to."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A convolution or matrix product with stored weights."""

    name: str
    op: str
    weight: str
    bias: str
    """Empty = none."""
    axis: int | None
    """Of the weight: output channels; None = one scale for all of it."""
    bias_correctable: bool
    input_axis: int
    """Of the data: input channels."""

    def mean_shift(self, node: Any, error: Tensor, mean: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:  # noqa: ANN401
        """What an error of the weights adds to the mean of each output channel, given the mean of each input channel.

        Padding is left out of account (Nagel et al., 2019, arXiv:1906.04721, section 4.2).
        """
        if self.op == "Conv":
            groups = attribute(node, "group", 1)
            per_channel = error.reshape(error.shape[0], error.shape[1], -1).sum(axis=2, dtype=np.float64)
            inputs = np.repeat(mean.reshape(groups, -1), error.shape[0] // groups, axis=0)
            return np.asarray((per_channel * inputs).sum(axis=1))
        matrix = error if self.axis == 0 else error.T
        return np.asarray(matrix.astype(np.float64) @ mean)


def layers_of(graph: Graph) -> dict[str, Layer]:
    """Layers with float weights that quantization knows, by name, in order of execution."""
    found = {}
    for node in graph.nodes:
        layer = _layer(graph, node)
        if layer is not None:
            found[node.name] = layer
    return found


def _layer(graph: Graph, node: Any) -> Layer | None:  # noqa: ANN401
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul") or len(node.input) < 2:
        return None
    weight = node.input[1]
    bias = node.input[2] if len(node.input) > 2 else ""
    stored = weight in graph.initializers and node.input[0] not in graph.initializers
    if not stored or (bias and bias not in graph.initializers) or weight in graph.inputs:
        return None
    values = graph.value(weight)
    if not is_float(values) or values.ndim < 2 or not values.size:
        return None
    axis: int | None = 0
    if node.op_type == "ConvTranspose":
        axis = 1
    elif node.op_type == "MatMul":
        axis = 1 if values.ndim == 2 else None
    elif node.op_type == "Gemm":
        if any(
            attribute(node, name, default) != default
            for name, default in (("transA", 0), ("alpha", 1.0), ("beta", 1.0))
        ):
            return None
        axis = 0 if attribute(node, "transB", 0) else 1
    if bias and (axis is None or graph.value(bias).shape != (_outputs(node, values, axis),)):
        return None
    return Layer(
        name=node.name,
        op=node.op_type,
        weight=weight,
        bias=bias,
        axis=axis,
        bias_correctable=node.op_type in ("Conv", "Gemm"),
        input_axis=1 if node.op_type in ("Conv", "ConvTranspose") else -1,
    )


def _outputs(node: Any, values: Tensor, axis: int) -> int:  # noqa: ANN401
    groups = attribute(node, "group", 1) if node.op_type == "ConvTranspose" else 1
    return int(values.shape[axis] * groups)


def channel_scales(values: Tensor, axis: int | None, largest: int) -> npt.NDArray[np.float32]:
    """Scales that take the largest weight of each channel to `largest`; a scalar array where `axis` is None."""
    axes = None if axis is None else tuple(other for other in range(values.ndim) if other != axis)
    peaks = np.abs(values).max(axis=axes)
    return np.asarray(np.where(peaks > 0, np.maximum(peaks / largest, _SMALLEST_SCALE), 1.0), np.float32)


def room_for_bias(scales: npt.NDArray[np.float32], bias: Tensor | None, input_scale: float) -> npt.NDArray[np.float32]:
    """Scales under which the bias, in steps of weight scale times input scale, fits 32 bits.

    Channels whose weights are almost nothing have scales so small that their bias would not.
    """
    if bias is None:
        return scales
    return np.maximum(scales, (np.abs(bias) / (input_scale * _LARGEST_BIAS)).astype(np.float32))


def quantize(values: Tensor, scales: npt.NDArray[np.float32], axis: int | None, largest: int) -> npt.NDArray[np.int8]:
    """Weights in steps of their channel's scale, half to even, as QuantizeLinear rounds."""
    steps = np.rint(np.asarray(values, np.float32) / _spread(scales, axis, values.ndim))
    return np.asarray(np.clip(steps, -largest, largest), np.int8)


def dequantize(
    steps: npt.NDArray[np.int8], scales: npt.NDArray[np.float32], axis: int | None
) -> npt.NDArray[np.float32]:
    """What the steps stand for."""
    return np.asarray(steps * _spread(scales, axis, steps.ndim), np.float32)


def _spread(scales: npt.NDArray[np.float32], axis: int | None, rank: int) -> npt.NDArray[np.float32]:
    if axis is None:
        return scales
    return scales.reshape([-1 if place == axis else 1 for place in range(rank)])


def blocks(matrix: Tensor, bits: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """A matrix [inputs, outputs] as MatMulNBits stores it, symmetric.

    Returns:
        Packed steps u8 [outputs, blocks, BLOCK * bits / 8], low half first, and scales f32 [outputs * blocks].
        https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.MatMulNBits
    """
    inputs, outputs = matrix.shape
    count = -(-inputs // BLOCK)
    padded = np.zeros((outputs, count * BLOCK), np.float32)
    padded[:, :inputs] = matrix.T
    grouped = padded.reshape(outputs, count, BLOCK)
    # The end with the larger magnitude becomes the lowest step, of which there is one more.
    low, high = grouped.min(axis=2), grouped.max(axis=2)
    extreme = np.where(np.abs(low) > np.abs(high), low, high)
    half = 1 << (bits - 1)
    scales = np.where(np.abs(extreme) > _SMALLEST_SCALE * half, extreme / -half, 1.0).astype(np.float32)
    steps = np.clip(np.rint(grouped / scales[:, :, None]) + half, 0, 2 * half - 1).astype(np.uint8)
    if bits == 4:
        steps = steps[:, :, 0::2] | (steps[:, :, 1::2] << 4)
    return steps, scales.reshape(-1)
