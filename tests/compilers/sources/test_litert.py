from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeserve.contracts.errors import InputError
from edgeserve.runtimes.base import RuntimeOptions
from edgeserve_compilers.load import load
from tests.suites.source import SourceCase, SourceContract, run

pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed: pip install 'edgeserve[litert]'")

import flatbuffers
from ai_edge_litert import schema_py_generated as schema

F32, I32, I64, BOOL, F16, I8 = (
    schema.TensorType.FLOAT32,
    schema.TensorType.INT32,
    schema.TensorType.INT64,
    schema.TensorType.BOOL,
    schema.TensorType.FLOAT16,
    schema.TensorType.INT8,
)
_KINDS = {F32: np.float32, I32: np.int32, I64: np.int64, BOOL: np.bool_, F16: np.float16, I8: np.int8}
SAME, VALID = 0, 1


class Writer:
    """Writes .tflite files with the schema's own code."""

    def __init__(self, seed: int = 0) -> None:
        self.model, self.graph = schema.ModelT(), schema.SubGraphT()
        self.graph.tensors, self.graph.operators, self.graph.inputs, self.graph.outputs = [], [], [], []
        self.model.buffers, self.model.operatorCodes, self.model.subgraphs = [schema.BufferT()], [], [self.graph]
        self.model.version, self.model.description = 3, b"made by a test"
        self.random = np.random.default_rng(seed)

    def tensor(self, shape, kind=F32, value=None, *, scales=None, axis=0) -> int:
        tensor = schema.TensorT()
        tensor.name, tensor.type = f"t{len(self.graph.tensors)}".encode(), kind
        tensor.shape = [abs(size) for size in shape]
        if -1 in shape:
            tensor.shapeSignature = list(shape)
        tensor.buffer = 0
        if value is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(value, _KINDS[kind]).tobytes(), np.uint8)
            tensor.buffer = len(self.model.buffers)
            self.model.buffers.append(buffer)
        if scales is not None:
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale, tensor.quantization.zeroPoint = list(scales), [0] * len(scales)
            tensor.quantization.quantizedDimension = axis
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def input(self, *shape: int, kind=F32) -> int:
        index = self.tensor(shape, kind)
        self.graph.inputs.append(index)
        return index

    def weight(self, *shape: int, scale: float = 0.5) -> int:
        return self.tensor(shape, value=self.random.standard_normal(shape) * scale)

    def ints(self, *values: int, kind=I32) -> int:
        return self.tensor([len(values)], kind, values)

    def op(self, kind: str, inputs, shape, *, options: str = "", outputs: int = 1, result=F32, **fields) -> int:
        code = schema.OperatorCodeT()
        number = getattr(schema.BuiltinOperator, kind)
        code.builtinCode, code.deprecatedBuiltinCode, code.version = number, min(number, 127), 1
        self.model.operatorCodes.append(code)
        operator = schema.OperatorT()
        operator.opcodeIndex, operator.inputs = len(self.model.operatorCodes) - 1, list(inputs)
        shapes = shape if outputs > 1 else [shape]
        operator.outputs = [self.tensor(each, result) for each in shapes]
        if options:
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, options)
            operator.builtinOptions = getattr(schema, options + "T")()
            for name, value in fields.items():
                assert hasattr(operator.builtinOptions, name), name
                setattr(operator.builtinOptions, name, value)
        self.graph.operators.append(operator)
        return operator.outputs[0]

    def conv(self, data: int, shape, weights, *, padding=SAME, stride=1, fused=0, dilation=1) -> int:
        inputs = [data, self.weight(*weights), self.weight(weights[0])]
        return self.op(
            "CONV_2D", inputs, shape, options="Conv2DOptions", padding=padding, strideH=stride, strideW=stride,
            dilationHFactor=dilation, dilationWFactor=dilation, fusedActivationFunction=fused,
        )  # fmt: skip

    def content(self, *outputs: int) -> bytes:
        self.graph.outputs = list(outputs)
        builder = flatbuffers.Builder(1024)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def interpret(path: Path, rows: np.ndarray) -> list[np.ndarray]:
    from edgeserve.runtimes.litert import LiteRtRuntime

    loaded = LiteRtRuntime().load(path, RuntimeOptions())
    try:
        return list(loaded.run({loaded.signature.inputs[0].name: rows}).values())
    finally:
        loaded.close()


def small_net(writer: Writer) -> int:
    """A DS-CNN: [-1, 9, 8, 2] to softmax [-1, 3]."""
    image = writer.input(-1, 9, 8, 2)
    x = writer.conv(image, (-1, 5, 4, 8), (8, 3, 3, 2), stride=2, fused=1)
    x = writer.op(
        "DEPTHWISE_CONV_2D", [x, writer.weight(1, 3, 3, 8), writer.weight(8)], (-1, 5, 4, 8),
        options="DepthwiseConv2DOptions", padding=SAME, strideH=1, strideW=1, depthMultiplier=1,
        dilationHFactor=1, dilationWFactor=1, fusedActivationFunction=3,
    )  # fmt: skip
    x = writer.conv(x, (-1, 5, 4, 8), (8, 1, 1, 8), fused=1)
    x = writer.op(
        "AVERAGE_POOL_2D", [x], (-1, 1, 1, 8),
        options="Pool2DOptions", padding=VALID, filterHeight=5, filterWidth=4, strideH=5, strideW=4,
    )  # fmt: skip
    x = writer.op("RESHAPE", [x, writer.ints(-1, 8)], (-1, 8))
    x = writer.op(
        "FULLY_CONNECTED", [x, writer.weight(3, 8), writer.weight(3)], (-1, 3), options="FullyConnectedOptions"
    )
    return writer.op("SOFTMAX", [x], (-1, 3), options="SoftmaxOptions", beta=1.0)


class TestLiteRtSource(SourceContract):
    @pytest.fixture
    def case(self, tmp_path: Path) -> SourceCase:
        writer, path = Writer(), tmp_path / "net.tflite"
        path.write_bytes(writer.content(small_net(writer)))
        rows = np.random.default_rng(1).standard_normal((3, 9, 8, 2)).astype(np.float32)
        return SourceCase(
            source="litert",
            path=path,
            rows={"t0": rows},
            answers=interpret(path, rows),
            library="ai_edge_litert",
            extra="litert",
        )


def test_the_file_itself_goes_along_and_transposes_stay_at_the_border(tmp_path: Path) -> None:
    writer, path = Writer(), tmp_path / "net.tflite"
    path.write_bytes(writer.content(small_net(writer)))
    model = load(path)
    assert model.originals == {"litert": path}
    assert model.metadata["description"] == "made by a test"
    kinds = [node.op_type for node in onnx.load_model_from_string(model.content).graph.node]
    assert kinds.count("Transpose") == 1, kinds
    assert model.spec.signature.inputs[0].shape == (-1, 9, 8, 2)


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


def test_an_operator_that_is_not_known_is_named(tmp_path: Path) -> None:
    writer, path = Writer(), tmp_path / "m.tflite"
    data = writer.input(-1, 6)
    path.write_bytes(
        writer.content(writer.op("CUMSUM", [data, writer.tensor((), I32, 1)], (-1, 6), options="CumsumOptions"))
    )
    with pytest.raises(InputError, match="operator CUMSUM cannot be converted") as raised:
        load(path)
    assert "export the model to ONNX" in raised.value.hint


def test_a_fused_activation_that_litert_ignores_is_refused(tmp_path: Path) -> None:
    """LiteRT leaves out tanh behind a convolution without a word."""
    writer, path = Writer(), tmp_path / "m.tflite"
    path.write_bytes(writer.content(writer.conv(writer.input(-1, 6, 5, 3), (-1, 6, 5, 4), (4, 3, 3, 3), fused=4)))
    with pytest.raises(InputError, match="CONV_2D has the fused activation 4"):
        load(path)


def test_a_conversion_that_computes_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeserve_compilers.sources import litert_operators

    writer, path = Writer(), tmp_path / "m.tflite"
    path.write_bytes(writer.content(OPERATORS["tanh"](writer)))
    monkeypatch.setitem(litert_operators.CONVERTERS, "TANH", litert_operators.CONVERTERS["LOGISTIC"])
    with pytest.raises(InputError, match="does not compute the same"):
        load(path)


def test_a_batch_that_the_file_promises_and_cannot_run_is_one_row(tmp_path: Path) -> None:
    writer, path = Writer(), tmp_path / "m.tflite"
    data = writer.input(-1, 2, 3)
    path.write_bytes(writer.content(writer.op("RESHAPE", [data, writer.ints(1, 6)], (1, 6))))
    assert load(path).spec.signature.inputs[0].shape == (1, 2, 3)


def quantized(*, activations: bool) -> bytes:
    writer = Writer()
    data = writer.input(-1, 6)
    values = writer.random.integers(-127, 128, (3, 6))
    weights = writer.tensor((3, 6), I8, values, scales=[0.01])
    result = writer.op("FULLY_CONNECTED", [data, weights, writer.weight(3)], (-1, 3), options="FullyConnectedOptions")
    if activations:
        for index in (data, result):
            tensor = writer.graph.tensors[index]
            tensor.type, tensor.quantization = I8, schema.QuantizationParametersT()
            tensor.quantization.scale, tensor.quantization.zeroPoint = [0.05], [0]
        bias = writer.graph.tensors[result - 1]
        bias.type, bias.quantization = I32, schema.QuantizationParametersT()
        bias.quantization.scale, bias.quantization.zeroPoint = [0.0005], [0]
    return writer.content(result)


def test_a_model_that_computes_in_integers_is_refused_with_what_to_give_instead(tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(quantized(activations=True))
    with pytest.raises(InputError, match="already quantized") as raised:
        load(path)
    assert "float model that it was made from" in raised.value.hint


def test_a_float_model_whose_weights_are_stored_as_integers_is_taken_at_its_word(tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(quantized(activations=False))
    model = load(path)
    assert model.metadata["weights_stored_as_integers"] == "1"
    parsed = onnx.load_model_from_string(model.content)
    (weights,) = [onnx.numpy_helper.to_array(each) for each in parsed.graph.initializer if list(each.dims) == [3, 6]]
    writer = Writer()
    np.testing.assert_allclose(weights, writer.random.integers(-127, 128, (3, 6)) * 0.01, rtol=1e-6)


@settings(max_examples=150)
@given(st.data())
def test_a_damaged_graph_is_an_error_and_never_a_traceback(data: st.DataObject) -> None:
    from edgeserve.runtimes.flatbuffer import check_tflite
    from edgeserve_compilers.sources.litert_graph import read_graph
    from edgeserve_compilers.sources.litert_weights import float_weights

    content = bytearray(quantized(activations=False))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(8, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(InputError):
        check_tflite(bytes(content), "m.tflite")
        whole, _ = float_weights(bytes(content))
        graph = read_graph(whole, Path("m.tflite"))
        assert all(operator.kind for operator in graph.operators)


@pytest.mark.parametrize(
    ("name", "right", "rows"), [("kws_dscnn", 2126, 2315), ("hand_keypoint_classifier", 4004, 4150)]
)
def test_real_models_are_as_accurate_as_in_litert(
    realdata: Path, tmp_path: Path, name: str, right: int, rows: int
) -> None:
    data = "kws_mfcc_even" if name == "kws_dscnn" else "hand_keypoints"
    with np.load(realdata / f"data/{data}.npz", allow_pickle=False) as arrays:
        judged = ~arrays["is_calib"]
        x, y = arrays["x"][judged].astype(np.float32), arrays["y"][judged]
    model = load(realdata / f"models/{name}_float32.tflite")
    (given,) = model.spec.signature.inputs
    (scores,) = run(model, {given.name: x.reshape(-1, *given.shape[1:])}, tmp_path)
    assert len(y) == rows
    assert abs(int((scores.argmax(axis=1) == y).sum()) - right) <= 1  # a near tie may fall either way


@pytest.mark.parametrize("name", ["kws_dscnn_int8_reference", "mobilenet_v2_1.0_224_quant"])
def test_real_quantized_models_are_refused(realdata: Path, name: str) -> None:
    with pytest.raises(InputError, match="already quantized"):
        load(realdata / f"models/{name}.tflite")
