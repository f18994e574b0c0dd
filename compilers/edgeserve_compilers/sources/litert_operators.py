"""TFLite operators that work element by element, reduce, or move values about; and the table of all operators."""

from __future__ import annotations

from typing import Final

import numpy as np
from onnx import helper

from edgeserve.runtimes.base import Tensor
from edgeserve_compilers.sources.litert_builder import (
    FIRST_AXIS,
    TO_LAST,
    Builder,
    Converter,
    activated,
    clipped,
    unsupported,
)
from edgeserve_compilers.sources.litert_graph import LiteRtOperator
from edgeserve_compilers.sources.litert_layers import LAYERS


def _constant(builder: Builder, operator: LiteRtOperator, position: int, what: str) -> Tensor:
    value = builder.constant(operator.inputs[position])
    if value is None:
        raise unsupported(operator, f"has {what} that are computed")
    return value


def _numbers(builder: Builder, operator: LiteRtOperator, position: int, what: str) -> list[int]:
    return [int(number) for number in _constant(builder, operator, position, what).reshape(-1)]


def _int64(builder: Builder, name: str) -> str:
    return builder.node("Cast", [name], to=helper.np_dtype_to_tensor_dtype(np.dtype(np.int64)))


def _unary(kind: str, **attributes: object) -> Converter:
    def convert(builder: Builder, operator: LiteRtOperator) -> None:
        (name,), first = builder.operands(operator.inputs)
        builder.put(operator.outputs[0], builder.node(kind, [name], **attributes), first=first)

    return convert


def _clip(low: float, high: float) -> Converter:
    def convert(builder: Builder, operator: LiteRtOperator) -> None:
        (name,), first = builder.operands(operator.inputs)
        builder.put(operator.outputs[0], clipped(builder, name, low, high), first=first)

    return convert


def _binary(kind: str) -> Converter:
    def convert(builder: Builder, operator: LiteRtOperator) -> None:
        names, first = builder.operands(operator.inputs)
        builder.put(operator.outputs[0], activated(builder, operator, builder.node(kind, names)), first=first)

    return convert


def _leaky_relu(builder: Builder, operator: LiteRtOperator) -> None:
    (name,), first = builder.operands(operator.inputs)
    alpha = float(operator.option("alpha", 0.0))
    builder.put(operator.outputs[0], builder.node("LeakyRelu", [name], alpha=alpha), first=first)


def _prelu(builder: Builder, operator: LiteRtOperator) -> None:
    names, first = builder.operands(operator.inputs)
    builder.put(operator.outputs[0], builder.node("PRelu", names), first=first)


def _rsqrt(builder: Builder, operator: LiteRtOperator) -> None:
    (name,), first = builder.operands(operator.inputs)
    builder.put(operator.outputs[0], builder.node("Reciprocal", [builder.node("Sqrt", [name])]), first=first)


def _square(builder: Builder, operator: LiteRtOperator) -> None:
    (name,), first = builder.operands(operator.inputs)
    builder.put(operator.outputs[0], builder.node("Mul", [name, name]), first=first)


def _squared_difference(builder: Builder, operator: LiteRtOperator) -> None:
    names, first = builder.operands(operator.inputs)
    difference = builder.node("Sub", names)
    builder.put(operator.outputs[0], builder.node("Mul", [difference, difference]), first=first)


def _softmax(kind: str) -> Converter:
    """Over the last axis, which is the channels."""

    def convert(builder: Builder, operator: LiteRtOperator) -> None:
        (name,), first = builder.operands(operator.inputs)
        beta = float(operator.option("beta", 1.0))
        if kind == "Softmax" and beta != 1.0:
            name = builder.node("Mul", [name, builder.weight(beta, np.float32)])
        builder.put(operator.outputs[0], builder.node(kind, [name], axis=1 if first else -1), first=first)

    return convert


def _gelu(builder: Builder, operator: LiteRtOperator) -> None:
    (x,), first = builder.operands(operator.inputs)

    def times(name: str, factor: float) -> str:
        return builder.node("Mul", [name, builder.weight(factor, np.float32)])

    if operator.option("approximate", default=False):
        cube = builder.node("Mul", [builder.node("Mul", [x, x]), x])
        bent = builder.node("Tanh", [times(builder.node("Add", [x, times(cube, 0.044715)]), float(np.sqrt(2 / np.pi)))])
    else:
        bent = builder.node("Erf", [times(x, float(np.sqrt(0.5)))])
    share = builder.node("Add", [bent, builder.weight(1.0, np.float32)])
    builder.put(operator.outputs[0], times(builder.node("Mul", [x, share]), 0.5), first=first)


def _cast(builder: Builder, operator: LiteRtOperator) -> None:
    (name,), first = builder.operands(operator.inputs)
    kind = helper.np_dtype_to_tensor_dtype(builder.tensor(operator.outputs[0]).dtype)
    builder.put(operator.outputs[0], builder.node("Cast", [name], to=kind), first=first)


def _dequantize(builder: Builder, operator: LiteRtOperator) -> None:
    """Weights stored as float16; integers were refused before."""
    value = builder.constant(operator.inputs[0])
    if value is None:
        _cast(builder, operator)
    else:
        builder.set_constant(operator.outputs[0], value.astype(np.float32))


def _reshape(builder: Builder, operator: LiteRtOperator) -> None:
    data, result = operator.inputs[0], operator.outputs[0]
    shape = builder.shape(data)
    # With a height and width of 1, NCHW and NHWC are the same bytes.
    name = builder.first(data) if builder.prefers_first([data]) and shape[1:3] == (1, 1) else builder.last(data)
    wanted = builder.constant(operator.inputs[1]) if len(operator.inputs) > 1 else operator.option("newShape", None)
    if wanted is None:
        target = _int64(builder, builder.last(operator.inputs[1]))
    else:
        sizes = [int(size) for size in np.asarray(wanted).reshape(-1)]
        varying = [axis for axis, size in enumerate(builder.shape(result)) if size < 0]
        if -1 not in sizes and len(varying) == 1 and varying[0] < len(sizes):
            sizes[varying[0]] = -1
        target = builder.weight(sizes, np.int64)
    builder.put(result, builder.node("Reshape", [name, target]))


def _squeeze(builder: Builder, operator: LiteRtOperator) -> None:
    dims = operator.option("squeezeDims", None)
    axes = [] if dims is None else [int(axis) for axis in dims]
    axes = axes or [axis for axis, size in enumerate(builder.shape(operator.inputs[0])) if size == 1]
    name = builder.node("Squeeze", [builder.last(operator.inputs[0]), builder.weight(axes, np.int64)])
    builder.put(operator.outputs[0], name)


def _expand_dims(builder: Builder, operator: LiteRtOperator) -> None:
    axes = builder.weight(_numbers(builder, operator, 1, "axes"), np.int64)
    builder.put(operator.outputs[0], builder.node("Unsqueeze", [builder.last(operator.inputs[0]), axes]))


def _transpose(builder: Builder, operator: LiteRtOperator) -> None:
    order = _numbers(builder, operator, 1, "axes")
    builder.put(operator.outputs[0], builder.node("Transpose", [builder.last(operator.inputs[0])], perm=order))


def _concatenation(builder: Builder, operator: LiteRtOperator) -> None:
    names, first = builder.operands(operator.inputs)
    axis = int(operator.option("axis"))
    axis += len(builder.shape(operator.outputs[0])) if axis < 0 else 0
    if operator.option("fusedActivationFunction"):
        raise unsupported(operator, "has a fused activation, which LiteRT itself does not compute")
    name = builder.node("Concat", names, axis=FIRST_AXIS[axis] if first else axis)
    builder.put(operator.outputs[0], name, first=first)


def _pad(builder: Builder, operator: LiteRtOperator) -> None:
    mode = "constant"
    if operator.kind == "MIRROR_PAD":
        if operator.option("mode") != 0:
            raise unsupported(operator, "repeats the border (SYMMETRIC), which ONNX has not")
        mode = "reflect"
    pads = _constant(builder, operator, 1, "amounts").reshape(-1, 2)
    (name,), first = builder.operands(operator.inputs[:1])
    if first:
        pads = pads[[0, 3, 1, 2]]
    inputs = [name, builder.weight(pads.T.reshape(-1), np.int64)]
    if operator.kind == "PADV2":
        inputs.append(builder.weight(_constant(builder, operator, 2, "values").reshape(())))
    builder.put(operator.outputs[0], builder.node("Pad", inputs, mode=mode), first=first)


def _reduce(kind: str) -> Converter:
    def convert(builder: Builder, operator: LiteRtOperator) -> None:
        rank = len(builder.shape(operator.inputs[0]))
        axes = sorted({axis % rank for axis in _numbers(builder, operator, 1, "axes")})
        keep = bool(operator.option("keepDims", default=False))
        # Without height and width, the rest is in the same order in both forms.
        first = builder.prefers_first(operator.inputs[:1]) and (keep or axes == [1, 2])
        name = builder.first(operator.inputs[0]) if first else builder.last(operator.inputs[0])
        places = [FIRST_AXIS[axis] for axis in axes] if first else axes
        if kind == "ReduceSum":
            name = builder.node(kind, [name, builder.weight(places, np.int64)], keepdims=int(keep))
        else:
            name = builder.node(kind, [name], axes=places, keepdims=int(keep))
        builder.put(operator.outputs[0], name, first=first and keep)

    return convert


def _slice(builder: Builder, operator: LiteRtOperator) -> None:
    begin = _numbers(builder, operator, 1, "starts")
    size = _numbers(builder, operator, 2, "sizes")
    end = [np.iinfo(np.int64).max if count < 0 else start + count for start, count in zip(begin, size, strict=True)]
    _write_slice(builder, operator, begin, end, [1] * len(begin))


def _strided_slice(builder: Builder, operator: LiteRtOperator) -> None:
    begin, end, strides = (_numbers(builder, operator, position, "bounds") for position in (1, 2, 3))
    if operator.option("ellipsisMask") or operator.option("newAxisMask") or operator.option("offset", default=False):
        raise unsupported(operator, "uses an ellipsis, new axes or offsets")
    largest = np.iinfo(np.int64).max
    shrink = [axis for axis in range(len(begin)) if operator.option("shrinkAxisMask") >> axis & 1]
    for axis, step in enumerate(strides):
        if operator.option("beginMask") >> axis & 1:
            begin[axis] = 0 if step > 0 else largest
        if operator.option("endMask") >> axis & 1:
            end[axis] = largest if step > 0 else -largest
        if axis in shrink:
            end[axis] = begin[axis] + 1 if begin[axis] != -1 else largest
            strides[axis] = 1
    _write_slice(builder, operator, begin, end, strides, shrink)


def _write_slice(
    builder: Builder,
    operator: LiteRtOperator,
    begin: list[int],
    end: list[int],
    steps: list[int],
    shrink: list[int] | None = None,
) -> None:
    (name,), first = builder.operands(operator.inputs[:1])
    if shrink:
        name, first = builder.last(operator.inputs[0]), False
    axes = [FIRST_AXIS[axis] if first else axis for axis in range(len(begin))]
    name = builder.node("Slice", [name, *(builder.weight(part, np.int64) for part in (begin, end, axes, steps))])
    if shrink:
        name = builder.node("Squeeze", [name, builder.weight(shrink, np.int64)])
    builder.put(operator.outputs[0], name, first=first)


def _split(builder: Builder, operator: LiteRtOperator) -> None:
    """SPLIT: inputs axis, data. SPLIT_V: data, sizes, axis."""
    data, axis_at = (1, 0) if operator.kind == "SPLIT" else (0, 2)
    rank = len(builder.shape(operator.inputs[data]))
    axis = _numbers(builder, operator, axis_at, "axes")[0] % rank
    sizes = [builder.shape(index)[axis] for index in operator.outputs]
    if min(sizes) < 0:
        raise unsupported(operator, "cuts along an axis whose size varies")
    (name,), first = builder.operands([operator.inputs[data]])
    axis = FIRST_AXIS[axis] if first else axis
    parts = builder.node_many("Split", [name, builder.weight(sizes, np.int64)], len(sizes), axis=axis)
    for index, part in zip(operator.outputs, parts, strict=True):
        builder.put(index, part, first=first)


def _pack(builder: Builder, operator: LiteRtOperator) -> None:
    axis = builder.weight([int(operator.option("axis"))], np.int64)
    parts = [builder.node("Unsqueeze", [builder.last(index), axis]) for index in operator.inputs]
    builder.put(operator.outputs[0], builder.node("Concat", parts, axis=int(operator.option("axis"))))


def _unpack(builder: Builder, operator: LiteRtOperator) -> None:
    axis, count = int(operator.option("axis")), len(operator.outputs)
    data = builder.last(operator.inputs[0])
    parts = builder.node_many("Split", [data, builder.weight([1] * count, np.int64)], count, axis=axis)
    for index, part in zip(operator.outputs, parts, strict=True):
        builder.put(index, builder.node("Squeeze", [part, builder.weight([axis], np.int64)]))


def _gather(builder: Builder, operator: LiteRtOperator) -> None:
    if operator.option("batchDims"):
        raise unsupported(operator, "gathers row by row (batch_dims)")
    names = [builder.last(index) for index in operator.inputs]
    builder.put(operator.outputs[0], builder.node("Gather", names, axis=int(operator.option("axis"))))


def _shape(builder: Builder, operator: LiteRtOperator) -> None:
    (data,), first = builder.operands(operator.inputs)
    name = builder.node("Shape", [data])
    if first:
        name = builder.node("Gather", [name, builder.weight(TO_LAST, np.int64)])
    kind = helper.np_dtype_to_tensor_dtype(builder.tensor(operator.outputs[0]).dtype)
    builder.put(operator.outputs[0], builder.node("Cast", [name], to=kind))


def _tile(builder: Builder, operator: LiteRtOperator) -> None:
    times = builder.weight(_numbers(builder, operator, 1, "counts"), np.int64)
    builder.put(operator.outputs[0], builder.node("Tile", [builder.last(operator.inputs[0]), times]))


def _arg(kind: str) -> Converter:
    def convert(builder: Builder, operator: LiteRtOperator) -> None:
        axis = _numbers(builder, operator, 1, "axes")[0]
        name = builder.node(kind, [builder.last(operator.inputs[0])], axis=axis, keepdims=0)
        dtype = builder.tensor(operator.outputs[0]).dtype
        if dtype != np.int64:
            name = builder.node("Cast", [name], to=helper.np_dtype_to_tensor_dtype(dtype))
        builder.put(operator.outputs[0], name)

    return convert


def _blocks(kind: str) -> Converter:
    """DEPTH_TO_SPACE (which takes the block before the channel: ONNX's DCR) and SPACE_TO_DEPTH."""

    def convert(builder: Builder, operator: LiteRtOperator) -> None:
        name = builder.node(kind, [builder.first(operator.inputs[0])], blocksize=int(operator.option("blockSize", 1)))
        builder.put(operator.outputs[0], name, first=True)

    return convert


CONVERTERS: Final[dict[str, Converter]] = {
    **LAYERS,
    "ABS": _unary("Abs"),
    "ADD": _binary("Add"),
    "ARG_MAX": _arg("ArgMax"),
    "ARG_MIN": _arg("ArgMin"),
    "CAST": _cast,
    "CEIL": _unary("Ceil"),
    "CONCATENATION": _concatenation,
    "COS": _unary("Cos"),
    "DEPTH_TO_SPACE": _blocks("DepthToSpace"),
    "DEQUANTIZE": _dequantize,
    "DIV": _binary("Div"),
    "ELU": _unary("Elu"),
    "EXP": _unary("Exp"),
    "EXPAND_DIMS": _expand_dims,
    "FLOOR": _unary("Floor"),
    "GATHER": _gather,
    "GELU": _gelu,
    "HARD_SWISH": _unary("HardSwish"),
    "LEAKY_RELU": _leaky_relu,
    "LOG": _unary("Log"),
    "LOGISTIC": _unary("Sigmoid"),
    "LOG_SOFTMAX": _softmax("LogSoftmax"),
    "MAXIMUM": _binary("Max"),
    "MEAN": _reduce("ReduceMean"),
    "MINIMUM": _binary("Min"),
    "MIRROR_PAD": _pad,
    "MUL": _binary("Mul"),
    "NEG": _unary("Neg"),
    "PACK": _pack,
    "PAD": _pad,
    "PADV2": _pad,
    "POW": _binary("Pow"),
    "PRELU": _prelu,
    "REDUCE_MAX": _reduce("ReduceMax"),
    "REDUCE_MIN": _reduce("ReduceMin"),
    "REDUCE_PROD": _reduce("ReduceProd"),
    "RELU": _unary("Relu"),
    "RELU6": _clip(0, 6),
    "RELU_0_TO_1": _clip(0, 1),
    "RELU_N1_TO_1": _clip(-1, 1),
    "RESHAPE": _reshape,
    "RSQRT": _rsqrt,
    "SHAPE": _shape,
    "SIN": _unary("Sin"),
    "SLICE": _slice,
    "SOFTMAX": _softmax("Softmax"),
    "SPACE_TO_DEPTH": _blocks("SpaceToDepth"),
    "SPLIT": _split,
    "SPLIT_V": _split,
    "SQRT": _unary("Sqrt"),
    "SQUARE": _square,
    "SQUARED_DIFFERENCE": _squared_difference,
    "SQUEEZE": _squeeze,
    "STRIDED_SLICE": _strided_slice,
    "SUB": _binary("Sub"),
    "SUM": _reduce("ReduceSum"),
    "TANH": _unary("Tanh"),
    "TILE": _tile,
    "TRANSPOSE": _transpose,
    "UNPACK": _unpack,
}
"""What can be converted, by the schema's name."""
