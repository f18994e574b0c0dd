"""TFLite operators that compute: convolutions, pools, matrix products, resizing."""

from __future__ import annotations

from typing import Final

import numpy as np

from edgeserve.runtimes.base import Tensor
from edgeserve_compilers.sources.litert_builder import Builder, Converter, activated, unsupported
from edgeserve_compilers.sources.litert_graph import LiteRtOperator

_SAME: Final = 0


def _weights(builder: Builder, operator: LiteRtOperator, index: int) -> Tensor:
    value = builder.constant(index)
    if value is None:
        raise unsupported(operator, "has weights that are computed")
    return value


def _bias(builder: Builder, operator: LiteRtOperator, position: int) -> list[str]:
    if len(operator.inputs) <= position or operator.inputs[position] < 0:
        return []
    return [builder.weight(_weights(builder, operator, operator.inputs[position]))]


def _window(builder: Builder, operator: LiteRtOperator, kernel: tuple[int, int]) -> dict[str, object]:
    """Strides, dilations and padding of a sliding window in ONNX's attributes (TensorFlow's SAME: more at the end)."""
    strides = (operator.option("strideH", 1), operator.option("strideW", 1))
    dilations = (operator.option("dilationHFactor", 1), operator.option("dilationWFactor", 1))
    attributes: dict[str, object] = {"kernel_shape": kernel, "strides": strides}
    if dilations != (1, 1):
        attributes["dilations"] = dilations
    if operator.option("padding") != _SAME:
        return attributes
    sizes = builder.shape(operator.inputs[0])[1:3]
    if min(sizes) < 0:
        return {**attributes, "auto_pad": "SAME_UPPER"}
    totals = [
        max((-(-size // stride) - 1) * stride + (edge - 1) * dilation + 1 - size, 0)
        for size, stride, dilation, edge in zip(sizes, strides, dilations, kernel, strict=True)
    ]
    before = [total // 2 for total in totals]
    return {**attributes, "pads": [*before, *(total - start for total, start in zip(totals, before, strict=True))]}


def _finish(builder: Builder, operator: LiteRtOperator, name: str, *, first: bool) -> None:
    builder.put(operator.outputs[0], activated(builder, operator, name), first=first)


def conv(builder: Builder, operator: LiteRtOperator) -> None:
    """CONV_2D: weights [out, height, width, in / groups]."""
    weights = _weights(builder, operator, operator.inputs[1])
    channels = builder.shape(operator.inputs[0])[3]
    name = builder.node(
        "Conv",
        [
            builder.first(operator.inputs[0]),
            builder.weight(weights.transpose(0, 3, 1, 2)),
            *_bias(builder, operator, 2),
        ],
        group=channels // weights.shape[3] if channels > 0 else 1,
        **_window(builder, operator, weights.shape[1:3]),
    )
    _finish(builder, operator, name, first=True)


def depthwise(builder: Builder, operator: LiteRtOperator) -> None:
    """DEPTHWISE_CONV_2D: weights [1, height, width, in * multiplier]."""
    weights = _weights(builder, operator, operator.inputs[1])
    multiplier = operator.option("depthMultiplier", 1) or 1
    name = builder.node(
        "Conv",
        [
            builder.first(operator.inputs[0]),
            builder.weight(weights.transpose(3, 0, 1, 2)),
            *_bias(builder, operator, 2),
        ],
        group=weights.shape[3] // multiplier,
        **_window(builder, operator, weights.shape[1:3]),
    )
    _finish(builder, operator, name, first=True)


def transpose_conv(builder: Builder, operator: LiteRtOperator) -> None:
    """TRANSPOSE_CONV: inputs output shape, weights [out, height, width, in], data, bias."""
    weights = _weights(builder, operator, operator.inputs[1])
    data, kernel = operator.inputs[2], weights.shape[1:3]
    strides = (operator.option("strideH", 1), operator.option("strideW", 1))
    sizes, wanted = builder.shape(data)[1:3], builder.shape(operator.outputs[0])[1:3]
    if min(*sizes, *wanted) < 0:
        raise unsupported(operator, "has an output whose height or width varies")
    totals = [
        (size - 1) * stride + edge - want
        for size, stride, edge, want in zip(sizes, strides, kernel, wanted, strict=True)
    ]
    before = [max(total, 0) // 2 for total in totals]
    name = builder.node(
        "ConvTranspose",
        [builder.first(data), builder.weight(weights.transpose(3, 0, 1, 2)), *_bias(builder, operator, 3)],
        kernel_shape=kernel,
        strides=strides,
        pads=[*before, *(max(total, 0) - start for total, start in zip(totals, before, strict=True))],
        output_padding=[max(-total, 0) for total in totals],
    )
    _finish(builder, operator, name, first=True)


def pool(kind: str) -> Converter:
    """AVERAGE_POOL_2D and MAX_POOL_2D; padding does not count into an average."""

    def convert(builder: Builder, operator: LiteRtOperator) -> None:
        kernel = (operator.option("filterHeight", 1), operator.option("filterWidth", 1))
        name = builder.node(kind, [builder.first(operator.inputs[0])], **_window(builder, operator, kernel))
        _finish(builder, operator, name, first=True)

    return convert


def fully_connected(builder: Builder, operator: LiteRtOperator) -> None:
    """FULLY_CONNECTED: weights [out, in]; other axes of the input than the last are rows."""
    if operator.option("weightsFormat"):
        raise unsupported(operator, "has shuffled weights")
    weights = _weights(builder, operator, operator.inputs[1])
    data, rank = builder.last(operator.inputs[0]), len(builder.shape(operator.inputs[0]))
    bias = _bias(builder, operator, 2)
    if operator.option("keepNumDims", default=False) and rank != 2:
        name = builder.node("MatMul", [data, builder.weight(weights.T)])
        name = builder.node("Add", [name, *bias]) if bias else name
    else:
        if rank != 2:
            data = builder.node("Reshape", [data, builder.weight([-1, weights.shape[1]], np.int64)])
        name = builder.node("Gemm", [data, builder.weight(weights), *bias], transB=1)
    _finish(builder, operator, name, first=False)


def batch_matmul(builder: Builder, operator: LiteRtOperator) -> None:
    """BATCH_MATMUL: either side may be given transposed."""
    sides = []
    for index, option in zip(operator.inputs, ("adjX", "adjY"), strict=True):
        name, rank = builder.last(index), len(builder.shape(index))
        if operator.option(option, default=False):
            name = builder.node("Transpose", [name], perm=[*range(rank - 2), rank - 1, rank - 2])
        sides.append(name)
    builder.put(operator.outputs[0], builder.node("MatMul", sides))


def resize(mode: str) -> Converter:
    """RESIZE_BILINEAR and RESIZE_NEAREST_NEIGHBOR to a constant height and width."""

    def convert(builder: Builder, operator: LiteRtOperator) -> None:
        sizes = _weights(builder, operator, operator.inputs[1])
        data = builder.first(operator.inputs[0])
        rounding = {}
        if operator.option("alignCorners", default=False):
            place = "align_corners"
            rounding = {"nearest_mode": "round_prefer_ceil"}
        elif operator.option("halfPixelCenters", default=False):
            place = "half_pixel"
            rounding = {"nearest_mode": "round_prefer_ceil"}  # of (x + 0.5) s - 0.5, which is floor((x + 0.5) s)
        else:
            place = "asymmetric"
            rounding = {"nearest_mode": "floor"}
        given = builder.shape(operator.inputs[0])[1:3]
        if min(given) > 0 and not any(want % have for want, have in zip(sizes, given, strict=True)):
            factors = [want / have for want, have in zip(sizes, given, strict=True)]
            target = ["", builder.weight([1, 1, *factors], np.float32)]  # the batch may vary
        else:
            rows = builder.node("Shape", [data], start=0, end=2)
            target = ["", "", builder.node("Concat", [rows, builder.weight(sizes, np.int64)], axis=0)]
        attributes = rounding if mode == "nearest" else {}
        name = builder.node("Resize", [data, *target], mode=mode, coordinate_transformation_mode=place, **attributes)
        builder.put(operator.outputs[0], name, first=True)

    return convert


LAYERS: Final[dict[str, Converter]] = {
    "AVERAGE_POOL_2D": pool("AveragePool"),
    "BATCH_MATMUL": batch_matmul,
    "CONV_2D": conv,
    "DEPTHWISE_CONV_2D": depthwise,
    "FULLY_CONNECTED": fully_connected,
    "MAX_POOL_2D": pool("MaxPool"),
    "RESIZE_BILINEAR": resize("linear"),
    "RESIZE_NEAREST_NEIGHBOR": resize("nearest"),
    "TRANSPOSE_CONV": transpose_conv,
}
