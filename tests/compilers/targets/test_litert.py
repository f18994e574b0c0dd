"""The LiteRT forms under the contract suite, and what is theirs alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from edgeserve.contracts.errors import DeviceError, InputError
from edgeserve.contracts.variant import Precision
from edgeserve.runtimes.base import RuntimeOptions, Tensors
from edgeserve.runtimes.litert import LiteRtRuntime
from edgeserve.runtimes.onnx import OnnxRuntime
from edgeserve.runtimes.rows import run_rows
from edgeserve_compilers.converters import onnx2tf
from edgeserve_compilers.heads import Node
from edgeserve_compilers.spec import FLOAT, Candidate
from edgeserve_compilers.targets.base import Form, Job
from edgeserve_compilers.targets.litert import FORMS, LiteRtWorkshop, stays_float
from edgeserve_compilers.targets.litert_bias import shift
from edgeserve_compilers.targets.litert_graph import Graph, Weighted
from edgeserve_compilers.targets.litert_quantizer import STATIC, quantize
from edgeserve_compilers.targets.litert_ranges import Measured
from tests.suites.compiler import FormContract, job, noise
from tests.suites.litert import Op, T, dense_net, dense_weights, tflite
from tests.suites.models import CLASSES, conv_net, images, model, save

QUANTIZED, ONLY_FLOAT = FORMS


@pytest.fixture(params=FORMS, ids=lambda form: form.name)
def form(request: pytest.FixtureRequest) -> Form:
    return request.param


class TestLiteRtForms(FormContract):
    pass


def dense_onnx(folder: Path) -> Path:
    """What `dense_net` computes, in ONNX."""
    weights, bias = dense_weights()
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w", "b"], ["logits"], transB=1),
    ]
    inputs = {"image": (TensorProto.FLOAT, ["n", 1, 8, 8])}
    outputs = {"logits": (TensorProto.FLOAT, ["n", CLASSES])}
    return save(model(nodes, inputs=inputs, outputs=outputs, weights={"w": weights, "b": bias}), folder / "float.onnx")


def with_original(folder: Path, data: bytes, calibration: Tensors | None = None) -> Job:
    """A job whose author gave a .tflite; onnx2tf has nothing to do with it."""
    (folder / "author.tflite").write_bytes(data)
    work = job(dense_onnx(folder), calibration, folder / "work")
    return Job(
        model=work.model,
        float_file=work.float_file,
        originals={"litert": folder / "author.tflite"},
        row_shapes={"image": (1, 8, 8)},
        calibration=calibration,
        folder=work.folder,
    )


def product(workshop, candidate: Candidate, folder: Path, name: str = "product"):
    (folder / name).mkdir()
    made = workshop.produce(candidate, folder / name)
    return made, LiteRtRuntime().load(folder / name / made.entry, RuntimeOptions())


def test_the_forms_are_importable_without_any_library() -> None:
    """`edgeserve compile --target x86-cpu` must not need LiteRT."""
    program = """
import sys
for name in ("ai_edge_litert", "ai_edge_quantizer", "flatbuffers", "tflite_runtime"):
    sys.modules[name] = None
from edgeserve_compilers.targets.litert import FORMS
from edgeserve.contracts.errors import DeviceError
try:
    FORMS[0].open(None)
except DeviceError as error:
    print(error.hint)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "pip install 'edgeserve[litert]'"


def test_no_recipe_has_activations_of_16_bits() -> None:
    """XNNPACK answered at random with them (ai-edge-quantizer's `static_wi8_ai16`), for every model that was tried."""
    recipes = [candidate.recipe for form in FORMS for candidate in form.candidates]
    assert any("ai8" in recipe for recipe in recipes)
    assert not any("ai16" in recipe for recipe in recipes)


def test_without_onnx2tf_a_model_in_onnx_says_what_to_do(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv(onnx2tf.PYTHON_VARIABLE, raising=False)
    monkeypatch.setenv("EDGESERVE_CACHE", str(tmp_path / "cache"))
    work = job(save(conv_net(), tmp_path / "float.onnx"), None, tmp_path / "work")
    with pytest.raises(DeviceError) as raised:
        QUANTIZED.open(work)
    assert "--install-converters" in raised.value.hint


class TestTheAuthorsFile:
    """`Job.originals["litert"]` is used as it is, once its answers are the model's."""

    def test_it_keeps_names_and_a_varying_batch(self, tmp_path: Path) -> None:
        data = dense_net(names=("serving_default_x:0", "PartitionedCall:0"), signature=None)
        work = with_original(tmp_path, data, {"image": images(32)})
        workshop = QUANTIZED.open(work)
        for name, candidate in (("float", FLOAT), ("int8", QUANTIZED.candidates[0])):
            _, loaded = product(workshop, candidate, tmp_path, name)
            assert loaded.signature == work.model.signature
            assert loaded.run({"image": images(3)})["logits"].shape == (3, CLASSES)

    def test_a_batch_that_is_built_in_is_said_to_be(self, tmp_path: Path) -> None:
        _, loaded = product(ONLY_FLOAT.open(with_original(tmp_path, dense_net(rows_inside=1))), FLOAT, tmp_path)
        assert loaded.signature.inputs[0].shape == (1, 1, 8, 8)

    def test_other_answers_than_the_models_are_refused(self, tmp_path: Path) -> None:
        weights, _ = dense_weights()
        data = dense_net()
        at = data.index(weights.tobytes())
        spoilt = data[:at] + (weights * np.float32(1.01)).tobytes() + data[at + weights.nbytes :]
        with pytest.raises(InputError, match="other values for 'logits'"):
            ONLY_FLOAT.open(with_original(tmp_path, spoilt))

    def test_permission_to_compute_in_half_precision_is_taken_back(self, tmp_path: Path) -> None:
        """XNNPACK reads it on ARM only: what was measured here would not be what runs there."""
        built = schema.ModelT.InitFromPackedBuf(dense_net(), 0)
        for name in (b"reduced_precision_support", b"min_runtime_version"):
            entry, buffer = schema.MetadataT(), schema.BufferT()
            buffer.data = np.frombuffer(b"fp16acc_fp16", np.uint8)
            entry.name, entry.buffer = name, len(built.buffers)
            built.buffers.append(buffer)
            built.metadata = [*(built.metadata or ()), entry]
        import flatbuffers

        builder = flatbuffers.Builder(0)
        builder.Finish(built.Pack(builder), b"TFL3")
        data = bytes(builder.Output())
        written = Graph(data).write()
        assert b"reduced_precision_support" in data
        assert b"reduced_precision_support" not in written
        assert b"min_runtime_version" in written

    def test_int8_weights_in_a_file_named_float_become_float(self, tmp_path: Path) -> None:
        graph = Graph(dense_net())
        graph.sign(["image"], ["logits"])
        hybrid = quantize(graph.write(), "dynamic wi8", None, ())
        assert Graph(hybrid).compute_nodes() == (1, 1)
        undone = Graph(hybrid)
        undone.store_weights_as_float()
        assert undone.compute_nodes() == (1, 0)
        assert undone.placement().keys() == {"float"}
        (layer,) = undone.weighted()
        assert np.abs(layer.weights - dense_weights()[0]).max() < np.abs(dense_weights()[0]).max() / 127


def test_a_transposition_that_the_converter_dropped_is_put_back(tmp_path: Path) -> None:
    """onnx2tf takes a transposition before an output for one of layout and leaves it out."""
    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["c"], pads=[1] * 4),
        helper.make_node("Reshape", ["c", "shape"], ["cells"]),
        helper.make_node("Transpose", ["cells"], ["boxes"], perm=[0, 2, 1]),
    ]
    built = model(
        nodes,
        inputs={"image": (TensorProto.FLOAT, [1, 1, 8, 8])},
        outputs={"boxes": (TensorProto.FLOAT, [1, 64, 6])},
        weights={"w": random.standard_normal((6, 1, 3, 3)).astype(np.float32), "shape": np.array([1, 6, 64])},
    )
    path = save(built, tmp_path / "float.onnx")
    try:
        workshop = ONLY_FLOAT.open(job(path, None, tmp_path / "work"))
    except DeviceError as error:
        pytest.skip(str(error))
    _, loaded = product(workshop, FLOAT, tmp_path)
    given_rows = {"image": images(1)}
    expected = OnnxRuntime().load(path, RuntimeOptions()).run(given_rows)["boxes"]
    np.testing.assert_allclose(loaded.run(given_rows)["boxes"], expected, rtol=1e-4, atol=1e-4)


def matrix_net() -> bytes:
    matrix = np.random.default_rng(1).standard_normal((12, 6)).astype(np.float32)
    return tflite(
        [T(name="x", shape=[1, 12]), T(name="m", shape=[12, 6], data=matrix), T(name="y", shape=[1, 6])],
        [
            Op(
                code=schema.BuiltinOperator.BATCH_MATMUL,
                inputs=[0, 1],
                outputs=[2],
                options=schema.BatchMatMulOptionsT(),
            )
        ],
        inputs=[0],
        outputs=[2],
        signature=({"x": 0}, {"y": 2}),
    )


def test_stored_matrices_become_layers_with_the_same_answers(tmp_path: Path) -> None:
    graph = Graph(matrix_net())
    graph.matrices_as_layers()
    assert [node.op for node in graph.nodes()] == ["FULLY_CONNECTED"]
    rows = {"x": np.random.default_rng(2).standard_normal((1, 12)).astype(np.float32)}
    answers = []
    for name, data in (("one", matrix_net()), ("other", graph.write())):
        (tmp_path / name).write_bytes(data)
        answers.append(LiteRtRuntime().load(tmp_path / name, RuntimeOptions()).run(rows)["y"])
    np.testing.assert_allclose(answers[0], answers[1], rtol=1e-5, atol=1e-5)


def test_a_matrix_product_that_stayed_one_is_quantized_with_one_scale(tmp_path: Path) -> None:
    """With a scale per column LiteRT answers zeros and says nothing: the reason for the rule in the recipe."""
    ranges = {"x": (-3.0, 3.0), "y": (-12.0, 12.0)}
    (tmp_path / "q").write_bytes(quantize(matrix_net(), STATIC, ranges, ()))
    (tmp_path / "f").write_bytes(matrix_net())
    rows = {"x": np.random.default_rng(2).standard_normal((1, 12)).astype(np.float32)}
    found, expected = (LiteRtRuntime().load(tmp_path / name, RuntimeOptions()).run(rows)["y"] for name in "qf")
    assert noise(found, expected) < 0.01


class TestRanges:
    def measured(self, rows: np.ndarray) -> Measured:
        each = ({"image": row[None]} for row in rows)
        graph = Graph(dense_net())
        return Measured(graph.write(), each, len(rows), graph.measurable(), {"flat": 64})

    def test_extremes_are_exact_and_clipping_lies_within(self) -> None:
        rows = images(50)
        rows[7, 0, 3, 3] = 500.0
        seen = self.measured(rows)
        low, high = seen.ranges("minmax")["image"]
        assert (low, high) == (rows.min(), 500.0)
        for how in ("percentile-99.9", "mse"):
            for name, (start, end) in seen.ranges(how).items():
                whole = seen.ranges("minmax")[name]
                assert min(whole[0], 0.0) <= start < end <= max(whole[1], 0.0), (how, name)
        assert seen.ranges("percentile-99.9")["image"][1] < 50
        np.testing.assert_allclose(seen.means["flat"], rows.reshape(50, 64).mean(axis=0), rtol=1e-4, atol=1e-6)

    def test_what_an_activation_sends_to_nothing_takes_no_steps(self) -> None:
        seen = self.measured(images(8))
        assert seen.ranges("minmax")["image"][0] < -0.5
        assert seen.ranges("minmax", {"image": -0.5})["image"][0] == -0.5
        assert seen.ranges("minmax", {"image": -100.0}) == seen.ranges("minmax")

    def test_it_is_found_before_silu_and_hard_swish_only(self) -> None:
        code = schema.BuiltinOperator
        data = tflite(
            [T(name=name, shape=[1, 4]) for name in ("x", "gate", "silu", "swish", "sum")],
            [
                Op(code=code.LOGISTIC, inputs=[0], outputs=[1]),
                Op(code=code.MUL, inputs=[0, 1], outputs=[2], options=schema.MulOptionsT()),
                Op(code=code.HARD_SWISH, inputs=[2], outputs=[3]),
                Op(code=code.ADD, inputs=[3, 1], outputs=[4], options=schema.AddOptionsT()),
            ],
            inputs=[0],
            outputs=[4],
        )
        assert Graph(data).lowest() == {"x": -6.0, "silu": -3.0}


@given(st.integers(0, 1 << 32), st.sampled_from(["CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "grouped"]))
def test_the_shift_is_what_rounded_weights_add_to_a_constant_input(seed: int, op: str) -> None:
    random = np.random.default_rng(seed)
    shapes = {
        "CONV_2D": (5, 1, 1, 6),
        "DEPTHWISE_CONV_2D": (1, 1, 1, 6),
        "FULLY_CONNECTED": (5, 6),
        "grouped": (4, 1, 1, 3),
    }
    weights = random.standard_normal(shapes[op]).astype(np.float32)
    mean = random.standard_normal(6)
    name = "CONV_2D" if op == "grouped" else op
    bias = np.zeros(weights.shape[-1] if op == "DEPTHWISE_CONV_2D" else len(weights), np.float32)
    layer = Weighted(name="l", op=name, input="x", channels=6, weights=weights, bias=bias)
    flat = weights.reshape(6, 1) if op == "DEPTHWISE_CONV_2D" else weights.reshape(len(weights), -1)
    step = np.abs(flat).max(axis=1, keepdims=True) / 127
    error = np.rint(flat.astype(np.float64) / step) * step - flat
    inputs = {"DEPTHWISE_CONV_2D": mean.reshape(6, 1), "grouped": np.repeat(mean.reshape(2, 3), 2, axis=0)}
    expected = (error * inputs.get(op, mean)).sum(axis=1)
    np.testing.assert_allclose(shift(layer, mean), expected, atol=1e-6)


def node(op: str, inputs: str, output: str) -> Node:
    return Node(name=output, op=op, inputs=inputs.split(), outputs=[output])


GRAPH = [
    node("TRANSPOSE", "in", "nhwc"),
    node("CONV_2D", "nhwc", "c1"),
    node("LOGISTIC", "c1", "g1"),
    node("MUL", "c1 g1", "a1"),
    node("CONV_2D", "a1", "c2"),
    node("ADD", "a1 c2", "sum"),
    node("CONV_2D", "sum", "c3"),
]


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ((), set()),
        (("c1",), {"nhwc", "c1", "g1", "a1"}),
        (("c2",), {"c2"}),
        (("c1", "c2"), {"nhwc", "c1", "g1", "a1", "c2", "sum"}),
        (("c3",), {"c3"}),
    ],
)
def test_what_only_float_layers_feed_stays_float_too(chosen: tuple[str, ...], expected: set[str]) -> None:
    assert stays_float(GRAPH, chosen) == expected


def test_weights_alone_need_no_calibration_and_ranges_do(tmp_path: Path) -> None:
    workshop = QUANTIZED.open(with_original(tmp_path, dense_net()))
    made, _ = product(workshop, Candidate(precision=Precision.INT8, recipe="weight-only wi8"), tmp_path)
    assert made.quantized_nodes == 1
    assert made.placement == {"float": 2}
    with pytest.raises(ValueError, match="needs calibration rows"):
        product(workshop, QUANTIZED.candidates[0], tmp_path, "static")


def test_an_unknown_layer_is_an_error(tmp_path: Path) -> None:
    workshop = QUANTIZED.open(with_original(tmp_path, dense_net(), {"image": images(8)}))
    unknown = Candidate(precision=Precision.INT8, recipe=QUANTIZED.candidates[0].recipe, float_layers=("nobody",))
    with pytest.raises(ValueError, match="no layer 'nobody'"):
        product(workshop, unknown, tmp_path)


def test_a_speech_detector_carries_its_state_as_in_onnx(realdata: Path, tmp_path: Path) -> None:
    """Silero VAD: an LSTM behind branches on shapes and sampling rate, which only fixed shapes decide."""
    from edgeserve_compilers.sources.base import SourceOptions
    from edgeserve_compilers.sources.onnx import OnnxSource

    read = OnnxSource().load(realdata / "models/silero_vad_16k_op15.onnx", SourceOptions(constants={"sr": 16_000}))
    (tmp_path / "float.onnx").write_bytes(read.content)
    (tmp_path / "work").mkdir()
    work = Job(
        model=read.spec,
        float_file=tmp_path / "float.onnx",
        row_shapes={"input": (576,), "state": (2, 1, 128)},
        calibration=None,
        state={"state": "stateN"},
        folder=tmp_path / "work",
    )
    try:
        workshop = ONLY_FLOAT.open(work)
    except DeviceError as error:
        pytest.skip(str(error))
    _, loaded = product(workshop, FLOAT, tmp_path)
    reference = OnnxRuntime().load(tmp_path / "float.onnx", RuntimeOptions())
    sound = np.load(realdata / "data/vad_streams_8x50s.npz")["streams_int16_16khz"][0].astype(np.float32) / 32768
    state = other = np.zeros((2, 1, 128), np.float32)
    found, expected = [], []
    for at in range(64, 64 + 120 * 512, 512):
        chunk = sound[None, at - 64 : at + 512]
        answer, truth = loaded.run({"input": chunk, "state": state}), reference.run({"input": chunk, "state": other})
        state, other = answer["stateN"], truth["stateN"]
        found.append(answer["output"][0, 0])
        expected.append(truth["output"][0, 0])
    assert max(expected) > 0.9, "someone speaks"
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_keywords_in_int8_are_as_good_as_the_published_int8_model(realdata: Path, tmp_path: Path) -> None:
    """MLPerf Tiny's own int8 file gets 91.88 % of these 2315 rows right, its float file 91.88 % (docs/testdata.md)."""
    from edgeserve_compilers.sources.base import SourceOptions
    from edgeserve_compilers.sources.litert import LiteRtSource

    read = LiteRtSource().load(realdata / "models/kws_dscnn_float32.tflite", SourceOptions())
    (tmp_path / "float.onnx").write_bytes(read.content)
    clips = np.load(realdata / "data/kws_mfcc_even.npz")
    rows, calibrate = clips["x"].astype(np.float32).reshape(-1, 49, 10, 1), clips["is_calib"]
    (spec,) = read.spec.signature.inputs
    (tmp_path / "work").mkdir()
    work = Job(
        model=read.spec,
        float_file=tmp_path / "float.onnx",
        originals=read.originals,
        row_shapes={spec.name: (49, 10, 1)},
        calibration={spec.name: rows[calibrate]},
        folder=tmp_path / "work",
    )
    workshop: LiteRtWorkshop = QUANTIZED.open(work)
    accuracy = {}
    for number, candidate in enumerate(QUANTIZED.candidates):
        made, loaded = product(workshop, candidate, tmp_path, str(number))
        (scores,) = run_rows(loaded, {spec.name: rows[~calibrate]}).values()
        loaded.close()
        assert made.quantized_nodes == made.compute_nodes == 10
        accuracy[candidate.recipe] = float((scores.argmax(axis=1) == clips["y"][~calibrate]).mean())
    assert max(accuracy.values()) >= 0.9188, accuracy
    assert min(accuracy.values()) >= 0.9188 - 0.005, accuracy
