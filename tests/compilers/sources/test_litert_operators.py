"""Every operator of TFLite computes what LiteRT computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgeserve_compilers.load import load
from tests.suites.source import run

pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed: pip install 'edgeserve[litert]'")

from tests.compilers.sources.tflite_writer import F16, F32, I32, I64, SAME, VALID, Writer, interpret


def _pool(w: Writer, kind: str, padding: int) -> int:
    shape = (-1, 4, 3, 4) if padding == SAME else (-1, 3, 2, 4)
    return w.op(
        kind, [w.input(-1, 7, 5, 4)], shape, options="Pool2DOptions", padding=padding,
        filterHeight=3, filterWidth=2, strideH=2, strideW=2,
    )  # fmt: skip


def _first(w: Writer) -> int:
    """An image that is there as NCHW: behind a convolution."""
    return w.conv(w.input(-1, 6, 5, 3), (-1, 6, 5, 4), (4, 3, 3, 3))


def _reduce(w: Writer, kind: str, axes: tuple[int, ...], keep: bool) -> int:
    data, sizes = _first(w), [-1, 6, 5, 4]
    shape = [1 if axis in axes else size for axis, size in enumerate(sizes)] if keep else []
    shape = shape or [size for axis, size in enumerate(sizes) if axis not in axes]
    return w.op(kind, [data, w.ints(*axes)], shape, options="ReducerOptions", keepDims=keep)


def _transpose_conv(w: Writer, padding: int) -> int:
    size = 10 if padding == SAME else 11
    inputs = [w.ints(1, size, size, 3), w.weight(3, 3, 3, 4), w.input(1, 5, 5, 4)]
    return w.op(
        "TRANSPOSE_CONV", inputs, (1, size, size, 3), options="TransposeConvOptions",
        padding=padding, strideH=2, strideW=2,
    )  # fmt: skip


def _resize(w: Writer, kind: str, height: int, width: int, **fields: bool) -> int:
    options = {"RESIZE_BILINEAR": "ResizeBilinearOptions", "RESIZE_NEAREST_NEIGHBOR": "ResizeNearestNeighborOptions"}
    return w.op(
        kind, [w.input(-1, 4, 5, 2), w.ints(height, width)], (-1, height, width, 2), options=options[kind], **fields
    )


def _strided(w: Writer, begin, end, strides, shape, **masks: int) -> int:
    inputs = [w.input(-1, 6, 5, 4), w.ints(*begin), w.ints(*end), w.ints(*strides)]
    return w.op("STRIDED_SLICE", inputs, shape, options="StridedSliceOptions", **masks)


def _dynamic_flatten(w: Writer) -> int:
    """What Keras' Flatten becomes: SHAPE, STRIDED_SLICE, PACK, RESHAPE."""
    data = _first(w)
    shape = w.op("SHAPE", [data], (4,), options="ShapeOptions", result=I32, outType=I32)
    bounds = [w.ints(0), w.ints(1), w.ints(1)]
    rows = w.op("STRIDED_SLICE", [shape, *bounds], (), options="StridedSliceOptions", result=I32, shrinkAxisMask=1)
    rest = w.tensor((), I32, 120)
    packed = w.op("PACK", [rows, rest], (2,), options="PackOptions", result=I32, valuesCount=2)
    return w.op("RESHAPE", [data, packed], (-1, 120))


def _half_weights(w: Writer) -> int:
    stored = w.tensor((4, 3, 3, 3), F16, w.random.standard_normal((4, 3, 3, 3)) * 0.3)
    weights = w.op("DEQUANTIZE", [stored], (4, 3, 3, 3))
    return w.op(
        "CONV_2D", [w.input(-1, 6, 5, 3), weights, w.weight(4)], (-1, 6, 5, 4),
        options="Conv2DOptions", padding=SAME, strideH=1, strideW=1, dilationHFactor=1, dilationWFactor=1,
    )  # fmt: skip


def _positive(w: Writer) -> int:
    x = w.input(-1, 6)
    return w.op("ADD", [w.op("MUL", [x, x], (-1, 6), options="MulOptions"), w.weight(1)], (-1, 6), options="AddOptions")


def _split(w: Writer) -> tuple[int, ...]:
    axis, data = w.tensor((), I32, 3), _first(w)
    first = w.op(
        "SPLIT", [axis, data], [(-1, 6, 5, 2)] * 2, outputs=2, options="SplitOptions", numSplits=2
    )  # fmt: skip
    return first, first + 1


def _binary(kind: str, other: Callable[[Writer], int], fused: int | None = None) -> Callable[[Writer], int]:
    options = {"ADD": "AddOptions", "SUB": "SubOptions", "MUL": "MulOptions", "DIV": "DivOptions"}.get(kind, "")
    fields = {} if fused is None else {"fusedActivationFunction": fused}
    return lambda w: w.op(kind, [_first(w), other(w)], (-1, 6, 5, 4), options=options, **fields)


OPERATORS: dict[str, Callable[[Writer], int | tuple[int, ...]]] = {
    "conv same stride 2": lambda w: w.conv(w.input(-1, 7, 6, 3), (-1, 4, 3, 4), (4, 3, 3, 3), stride=2),
    "conv valid dilated": lambda w: w.conv(
        w.input(-1, 7, 6, 3), (-1, 3, 2, 4), (4, 3, 3, 3), padding=VALID, dilation=2
    ),
    "conv grouped": lambda w: w.conv(w.input(-1, 6, 5, 4), (-1, 6, 5, 4), (4, 3, 3, 2)),
    "max pool same": lambda w: _pool(w, "MAX_POOL_2D", SAME),
    "average pool same": lambda w: _pool(w, "AVERAGE_POOL_2D", SAME),
    "average pool valid": lambda w: _pool(w, "AVERAGE_POOL_2D", VALID),
    "transpose conv same": lambda w: _transpose_conv(w, SAME),
    "transpose conv valid": lambda w: _transpose_conv(w, VALID),
    "bilinear": lambda w: _resize(w, "RESIZE_BILINEAR", 8, 10),
    "bilinear half pixel": lambda w: _resize(w, "RESIZE_BILINEAR", 7, 9, halfPixelCenters=True),
    "bilinear align corners": lambda w: _resize(w, "RESIZE_BILINEAR", 7, 3, alignCorners=True),
    "nearest": lambda w: _resize(w, "RESIZE_NEAREST_NEIGHBOR", 8, 10),
    "nearest half pixel": lambda w: _resize(w, "RESIZE_NEAREST_NEIGHBOR", 9, 7, halfPixelCenters=True),
    "nearest align corners": lambda w: _resize(w, "RESIZE_NEAREST_NEIGHBOR", 7, 3, alignCorners=True),
    "fully connected relu": lambda w: w.op(
        "FULLY_CONNECTED", [w.input(-1, 6), w.weight(3, 6), w.weight(3)], (-1, 3),
        options="FullyConnectedOptions", fusedActivationFunction=1,
    ),
    "fully connected no bias, rows kept": lambda w: w.op(
        "FULLY_CONNECTED", [w.input(-1, 4, 6), w.weight(3, 6), -1], (-1, 4, 3),
        options="FullyConnectedOptions", keepNumDims=True,
    ),
    "batch matmul": lambda w: w.op(
        "BATCH_MATMUL", [w.input(-1, 4, 6), w.weight(1, 5, 6)], (-1, 4, 5), options="BatchMatMulOptions", adjY=True
    ),
    "add image and vector": _binary("ADD", lambda w: w.weight(4), fused=1),
    "add image and scalar": _binary("ADD", lambda w: w.weight(1)),
    "sub": _binary("SUB", lambda w: w.weight(1, 1, 1, 4), fused=3),
    "mul image and image": _binary("MUL", lambda w: w.weight(1, 6, 5, 4), fused=2),
    "div": _binary("DIV", lambda w: w.tensor((4,), value=[1, 2, -3, 4])),
    "minimum": _binary("MINIMUM", lambda w: w.weight(4)),
    "maximum": _binary("MAXIMUM", lambda w: w.weight(4)),
    "squared difference": _binary("SQUARED_DIFFERENCE", lambda w: w.weight(4)),
    "prelu": _binary("PRELU", lambda w: w.weight(1, 1, 4)),
    **{
        kind.lower(): (lambda w, kind=kind: w.op(kind, [_first(w)], (-1, 6, 5, 4)))
        for kind in ("RELU", "RELU6", "RELU_N1_TO_1", "RELU_0_TO_1", "TANH", "LOGISTIC", "HARD_SWISH", "ELU", "EXP",
                     "ABS", "NEG", "SIN", "COS", "FLOOR", "CEIL", "SQUARE")
    },
    "leaky relu": lambda w: w.op("LEAKY_RELU", [_first(w)], (-1, 6, 5, 4), options="LeakyReluOptions", alpha=0.2),
    "gelu": lambda w: w.op("GELU", [_first(w)], (-1, 6, 5, 4), options="GeluOptions"),
    "gelu tanh": lambda w: w.op("GELU", [_first(w)], (-1, 6, 5, 4), options="GeluOptions", approximate=True),
    "softmax of channels": lambda w: w.op("SOFTMAX", [_first(w)], (-1, 6, 5, 4), options="SoftmaxOptions", beta=2.0),
    "log softmax": lambda w: w.op("LOG_SOFTMAX", [w.input(-1, 6)], (-1, 6)),
    "sqrt": lambda w: w.op("SQRT", [w.op("SQUARE", [w.input(-1, 6)], (-1, 6))], (-1, 6)),
    "rsqrt": lambda w: w.op("RSQRT", [w.op("EXP", [w.input(-1, 6)], (-1, 6))], (-1, 6)),
    "log": lambda w: w.op("LOG", [w.op("EXP", [w.input(-1, 6)], (-1, 6))], (-1, 6)),
    "pow": lambda w: w.op("POW", [w.op("EXP", [w.input(-1, 6)], (-1, 6)), w.weight(6)], (-1, 6)),
    "concat channels": lambda w: w.op(
        "CONCATENATION", [x := _first(w), x], (-1, 6, 5, 8), options="ConcatenationOptions", axis=3
    ),
    "concat rows of a table": lambda w: w.op(
        "CONCATENATION", [x := w.input(-1, 6), x], (-1, 12), options="ConcatenationOptions", axis=-1
    ),
    "pad": lambda w: w.op(
        "PAD", [_first(w), w.tensor((4, 2), I32, [[0, 0], [1, 2], [0, 1], [0, 3]])], (-1, 9, 6, 7)
    ),
    "padv2": lambda w: w.op(
        "PADV2", [_first(w), w.tensor((4, 2), I32, [[0, 0], [1, 2], [0, 1], [0, 0]]), w.tensor((), value=-1.5)],
        (-1, 9, 6, 4),
    ),
    "mirror pad": lambda w: w.op(
        "MIRROR_PAD", [_first(w), w.tensor((4, 2), I32, [[0, 0], [1, 2], [2, 1], [0, 0]])], (-1, 9, 8, 4),
        options="MirrorPadOptions", mode=0,
    ),
    "mean of an image": lambda w: _reduce(w, "MEAN", (1, 2), keep=False),
    "mean of an image, kept": lambda w: _reduce(w, "MEAN", (1, 2), keep=True),
    "mean of channels": lambda w: _reduce(w, "MEAN", (3,), keep=False),
    "sum of channels, kept": lambda w: _reduce(w, "SUM", (3,), keep=True),
    "max": lambda w: _reduce(w, "REDUCE_MAX", (1,), keep=False),
    "min": lambda w: _reduce(w, "REDUCE_MIN", (2, 3), keep=True),
    "transpose": lambda w: w.op(
        "TRANSPOSE", [_first(w), w.ints(0, 2, 3, 1)], (-1, 5, 4, 6), options="TransposeOptions"
    ),
    "reshape": lambda w: w.op("RESHAPE", [_first(w), w.ints(-1, 10, 12)], (-1, 10, 12)),
    "flatten as keras does": _dynamic_flatten,
    "squeeze": lambda w: w.op(
        "SQUEEZE", [_reduce(w, "MEAN", (1, 2), keep=True)], (-1, 4), options="SqueezeOptions", squeezeDims=[1, 2]
    ),
    "expand dims": lambda w: w.op(
        "EXPAND_DIMS", [w.input(-1, 6), w.ints(1)], (-1, 1, 6), options="ExpandDimsOptions"
    ),
    "strided slice": lambda w: _strided(
        w, (0, 5, 1, 0), (0, 0, 5, 3), (1, -2, 2, 1), (-1, 3, 2, 3), beginMask=1, endMask=1
    ),
    "strided slice that drops an axis": lambda w: _strided(
        w, (0, 2, 0, -1), (0, 3, 0, 0), (1, 1, 1, 1), (-1, 5), beginMask=5, endMask=5, shrinkAxisMask=10
    ),
    "slice": lambda w: w.op(
        "SLICE", [_first(w), w.ints(0, 1, 2, 0), w.ints(-1, 3, -1, 2)], (-1, 3, 3, 2), options="SliceOptions"
    ),
    "split": _split,
    "gather": lambda w: w.op(
        "GATHER", [_first(w), w.ints(3, 0, 1)], (-1, 6, 5, 3), options="GatherOptions", axis=3
    ),
    "tile": lambda w: w.op("TILE", [w.input(-1, 6), w.ints(1, 3)], (-1, 18)),
    "depth to space": lambda w: w.op(
        "DEPTH_TO_SPACE", [_first(w)], (-1, 12, 10, 1), options="DepthToSpaceOptions", blockSize=2
    ),
    "space to depth": lambda w: w.op(
        "SPACE_TO_DEPTH", [w.input(-1, 6, 4, 3)], (-1, 3, 2, 12), options="SpaceToDepthOptions", blockSize=2
    ),
    "arg max": lambda w: w.op(
        "ARG_MAX", [w.input(-1, 6), w.ints(1)], (-1,), options="ArgMaxOptions", outputType=I64, result=I64
    ),
    "cast": lambda w: w.op("CAST", [w.input(-1, 6)], (-1, 6), options="CastOptions", result=I32,
                           inDataType=F32, outDataType=I32),
    "half-precision weights": _half_weights,
    "the input is an output": lambda w: (x := w.input(-1, 6), w.op("RELU", [x], (-1, 6))),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_computes_what_litert_computes(tmp_path: Path, name: str) -> None:
    writer, path = Writer(), tmp_path / "op.tflite"
    made = OPERATORS[name](writer)
    path.write_bytes(writer.content(*(made if isinstance(made, tuple) else (made,))))
    model = load(path)
    shape = model.spec.signature.inputs[0].shape
    declared = writer.graph.tensors[writer.graph.inputs[0]].shapeSignature
    assert shape[0] == (1 if declared is None else -1)
    rows = np.random.default_rng(7).standard_normal((3 if shape[0] == -1 else 1, *shape[1:])).astype(np.float32)
    for have, want in zip(
        run(model, {"t" + str(writer.graph.inputs[0]): rows}, tmp_path), interpret(path, rows), strict=True
    ):
        np.testing.assert_allclose(have, want, rtol=1e-4, atol=1e-5)
