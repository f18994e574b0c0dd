from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeserve.contracts.errors import InputError
from edgeserve_compilers.load import load
from tests.suites.source import SourceCase, SourceContract, run

pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed: pip install 'edgeserve[litert]'")

from ai_edge_litert import schema_py_generated as schema

from tests.compilers.sources.tflite_writer import I8, I32, SAME, VALID, Writer, interpret


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
    path.write_bytes(writer.content(writer.op("TANH", [writer.input(-1, 6, 5, 4)], (-1, 6, 5, 4))))
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
