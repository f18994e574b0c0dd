from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.external_data_helper import convert_model_to_external_data

from edgeserve.contracts.errors import InputError, NotFoundError
from edgeserve.contracts.tensors import Datatype, TensorSpec
from edgeserve.runtimes.base import RuntimeOptions
from edgeserve.runtimes.onnx import OnnxRuntime
from edgeserve_compilers.load import load
from edgeserve_compilers.sources.base import SourceOptions
from tests.suites.models import conv_net, images, model, save
from tests.suites.source import SourceCase, SourceContract
from tests.suites.source import run as run_source

RELU = [helper.make_node("Relu", ["x"], ["y"])]


def run(content: bytes, tmp_path: Path) -> np.ndarray:
    path = tmp_path / "loaded.onnx"
    path.write_bytes(content)
    return OnnxRuntime().load(path, RuntimeOptions()).run({"image": images(3)})["logits"]


def test_a_model_comes_with_its_facts_and_its_own_bytes(tmp_path: Path) -> None:
    path = save(conv_net(), tmp_path / "m.onnx")
    loaded = load(path)
    assert loaded.content == path.read_bytes()
    assert (loaded.spec.file, loaded.spec.opset, loaded.spec.nodes) == ("m.onnx", 17, 7)
    assert loaded.spec.size_bytes == path.stat().st_size
    assert loaded.spec.signature.inputs == (TensorSpec(name="image", datatype=Datatype.FP32, shape=(-1, 1, 8, 8)),)


def test_an_old_opset_is_upgraded_and_computes_the_same(tmp_path: Path) -> None:
    old, new = save(conv_net(opset=11), tmp_path / "old.onnx"), save(conv_net(), tmp_path / "new.onnx")
    loaded = load(old)
    assert loaded.spec.opset == 17
    np.testing.assert_allclose(run(loaded.content, tmp_path), run(new.read_bytes(), tmp_path), rtol=1e-5, atol=1e-5)


def external(folder: Path, location: str = "weights.bin") -> Path:
    built = conv_net()
    convert_model_to_external_data(built, location="weights.bin", size_threshold=0)
    path = folder / "m.onnx"
    onnx.save(built, path)
    if location != "weights.bin":
        changed = onnx.load(path, load_external_data=False)
        for tensor in changed.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = location
        path.write_bytes(changed.SerializeToString())
    return path


def test_weights_beside_the_model_are_brought_into_it(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    loaded = load(external(folder))
    alone = tmp_path / "alone"
    alone.mkdir()
    inside = save(conv_net(), tmp_path / "inside.onnx")
    np.testing.assert_array_equal(run(loaded.content, alone), run(inside.read_bytes(), alone))


@pytest.mark.parametrize(
    "location",
    ["../secret.bin", "/etc/hostname", "sub/../../secret.bin", "link.bin", "folder/secret.bin", "..\\secret.bin"],
)
def test_weights_outside_the_folder_are_refused(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(1 << 20))
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    (folder / "folder").symlink_to(tmp_path)
    with pytest.raises(InputError, match="own folder"):
        load(external(folder, location))


def test_weights_that_are_missing_or_cut_are_refused(tmp_path: Path) -> None:
    path = external(tmp_path)
    weights = tmp_path / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"'weights\.bin' of .* truncated"):
        load(path)
    weights.unlink()
    with pytest.raises(NotFoundError, match=r"'weights\.bin'"):
        load(path)


@pytest.mark.parametrize("content", [b"", b"hello, world", b"{}", bytes(3000), b"PK\x03\x04" + bytes(60)], ids=str)
def test_a_file_that_is_no_model_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"m\.onnx"):
        load(path)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    whole = save(conv_net(), tmp_path / "whole.onnx").read_bytes()
    path = tmp_path / "m.onnx"
    for length in range(1, len(whole), max(len(whole) // 60, 1)):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"m\.onnx"):
            load(path)


@pytest.mark.parametrize("side", ["input", "output"])
def test_a_tensor_without_fixed_rank_is_named(tmp_path: Path, side: str) -> None:
    built = model(
        [helper.make_node("Reshape", ["x", "s"], ["y"])],
        inputs={"x": (TensorProto.FLOAT, None if side == "input" else ["n", 4]), "s": (TensorProto.INT64, ["k"])},
        outputs={"y": (TensorProto.FLOAT, None)},
    )
    if side == "output":
        built.graph.output[0].type.tensor_type.ClearField("shape")
    with pytest.raises(InputError, match=f"{side} '{'x' if side == 'input' else 'y'}' has no fixed rank"):
        load(save(built, tmp_path / "m.onnx"))


def test_a_shape_that_can_be_inferred_need_not_be_written(tmp_path: Path) -> None:
    built = conv_net()
    built.graph.output[0].type.tensor_type.ClearField("shape")
    loaded = load(save(built, tmp_path / "m.onnx"))
    assert loaded.spec.signature.outputs[0].shape == (-1, 10)


def test_weights_listed_among_the_inputs_are_no_inputs(tmp_path: Path) -> None:
    built = conv_net()
    built.graph.input.append(helper.make_tensor_value_info("b1", TensorProto.FLOAT, [8]))
    assert [spec.name for spec in load(save(built, tmp_path / "m.onnx")).spec.signature.inputs] == ["image"]


def test_an_opset_that_cannot_be_upgraded_says_what_to_do(tmp_path: Path) -> None:
    built = model(
        [helper.make_node("Pad", ["x"], ["y"], paddings=[0, 0, 1, 1])],
        inputs={"x": (TensorProto.FLOAT, [2, 2])},
        outputs={"y": (TensorProto.FLOAT, [3, 3])},
        opset=1,
    )
    with pytest.raises(InputError, match="opset 1, which cannot be upgraded") as raised:
        load(save(built, tmp_path / "m.onnx"))
    assert "opset 17" in raised.value.hint


def test_a_folder_or_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a file"):
        load(tmp_path)
    with pytest.raises(NotFoundError, match=r"absent\.onnx"):
        load(tmp_path / "absent.onnx")


class TestOnnxSource(SourceContract):
    @pytest.fixture
    def case(self, tmp_path: Path) -> SourceCase:
        path = save(conv_net(), tmp_path / "m.onnx")
        expected = OnnxRuntime().load(path, RuntimeOptions()).run({"image": images(3)})
        return SourceCase(
            source="onnx",
            path=path,
            rows={"image": images(3)},
            answers=list(expected.values()),
            library="onnx",
            extra="compile",
        )


def test_an_upgrade_that_computes_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The converter is held against the model as it was, whatever it returns."""
    path = save(conv_net(opset=11), tmp_path / "m.onnx")
    monkeypatch.setattr(onnx.version_converter, "convert_version", lambda model, version: conv_net(seed=1))
    with pytest.raises(InputError, match="opset 11, and computes something else with 17") as raised:
        load(path)
    assert "opset 17" in raised.value.hint


def rated(kind: int = TensorProto.INT64, shape: tuple[int | str, ...] = ()) -> onnx.ModelProto:
    """x [batch, 4] times `rate`, or minus it when `rate` is 8000."""
    branches = [
        helper.make_graph(
            [helper.make_node(operator, ["x", "r"], [name])],
            name,
            [],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4])],
        )
        for operator, name in (("Sub", "minus"), ("Mul", "times"))
    ]
    nodes = [
        helper.make_node("Cast", ["rate"], ["r"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["r", "one"], ["flat"]),
        helper.make_node("Equal", ["flat", "low"], ["is_low"]),
        helper.make_node("If", ["is_low"], ["y"], then_branch=branches[0], else_branch=branches[1]),
    ]
    return model(
        nodes,
        inputs={"x": (TensorProto.FLOAT, ["batch", 4]), "rate": (kind, list(shape))},
        outputs={"y": (TensorProto.FLOAT, ["batch", 4])},
        weights={"one": np.array([1], np.int64), "low": np.array([8000], np.float32)},
    )


@pytest.mark.parametrize(
    ("kind", "shape", "value", "expected"),
    [
        (TensorProto.INT64, (), 16000, 16000.0),
        (TensorProto.INT64, (1,), 3, 3.0),
        (TensorProto.FLOAT, ("n",), 0.5, 0.5),
        (TensorProto.INT32, (), 8000, -7999.0),
        (TensorProto.BOOL, (), 1, 1.0),
    ],
)
def test_a_fixed_input_becomes_a_constant_of_its_own_type_and_what_follows_is_folded(
    tmp_path: Path, kind: int, shape: tuple[int | str, ...], value: float, expected: float
) -> None:
    path = save(rated(kind, shape), tmp_path / "m.onnx")
    loaded = load(path, SourceOptions(constants={"rate": value}))
    assert [spec.name for spec in loaded.spec.signature.inputs] == ["x"]
    parsed = onnx.load_model_from_string(loaded.content)
    assert [node.op_type for node in parsed.graph.node] == ["Sub" if value == 8000 else "Mul"]
    assert [entry.domain for entry in parsed.opset_import] == [""]
    (found,) = run_source(loaded, {"x": np.ones((3, 4), np.float32)}, tmp_path)
    np.testing.assert_array_equal(found, np.full((3, 4), expected, np.float32))


@pytest.mark.parametrize(
    ("constants", "message", "hint"),
    [
        ({"speed": 1.0}, "no input 'speed'", "x, rate"),
        ({"rate": 0.5}, "which 0.5 is not", ""),
        ({"rate": 1e30}, "which 1e", ""),
        ({"rate": float("nan")}, "which nan is not", ""),
        ({"rate": 1, "x": 1}, "no input .* is left", ""),
    ],
)
def test_a_constant_that_does_not_fit_is_refused(
    tmp_path: Path, constants: dict[str, float], message: str, hint: str
) -> None:
    with pytest.raises(InputError, match=message) as raised:
        load(save(rated(), tmp_path / "m.onnx"), SourceOptions(constants=constants))
    assert hint in raised.value.hint


def test_silero_computes_the_same_bit_for_bit_when_its_rate_is_fixed(realdata: Path, tmp_path: Path) -> None:
    path = realdata / "models/silero_vad_16k_op15.onnx"
    loaded = load(path, SourceOptions(constants={"sr": 16000}))
    assert [spec.name for spec in loaded.spec.signature.inputs] == ["input", "state"]
    assert loaded.spec.nodes < 60, "the branch for 8 kHz and the constants are gone"
    with np.load(realdata / "data/vad_streams_8x50s.npz", allow_pickle=False) as arrays:
        sound = arrays["streams_int16_16khz"][0].astype(np.float32) / 32768
        expected = arrays["float_prob_carried_state"][0]
    fixed = tmp_path / "fixed.onnx"
    fixed.write_bytes(loaded.content)
    runtime = OnnxRuntime().load(fixed, RuntimeOptions())
    state, context, found = np.zeros((2, 1, 128), np.float32), np.zeros(64, np.float32), []
    for chunk in sound[: 200 * 512].reshape(-1, 512):
        answer = runtime.run({"input": np.concatenate([context, chunk])[None], "state": state})
        state, context = answer["stateN"], chunk[-64:]
        found.append(answer["output"][0, 0])
    np.testing.assert_allclose(found, expected[:200], rtol=0, atol=1e-6)


@pytest.mark.parametrize("form", ["QDQ", "QOperator", "dynamic"])
def test_a_quantized_model_is_refused_with_what_to_give_instead(tmp_path: Path, form: str) -> None:
    if form == "QDQ":
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
        ]
    elif form == "QOperator":
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            helper.make_node("QLinearMatMul", ["q", "s", "z", "w", "s", "z", "s", "z"], ["p"]),
            helper.make_node("DequantizeLinear", ["p", "s", "z"], ["y"]),
        ]
    else:
        nodes = [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "qs", "qz"]),
            helper.make_node("DequantizeLinear", ["q", "qs", "qz"], ["y"]),
        ]
    built = model(
        nodes,
        inputs={"x": (TensorProto.FLOAT, ["n", 4])},
        outputs={"y": (TensorProto.FLOAT, ["n", 4])},
        weights={"s": np.array(0.1, np.float32), "z": np.array(0, np.uint8), "w": np.ones((4, 4), np.uint8)},
    )
    with pytest.raises(InputError, match="already quantized") as raised:
        load(save(built, tmp_path / "m.onnx"))
    assert "float model that it was made from" in raised.value.hint


def test_functions_of_the_model_are_put_in_the_place_of_their_calls(tmp_path: Path) -> None:
    double = helper.make_function(
        "mine", "Double", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    built = model(
        [helper.make_node("Double", ["x"], ["y"], domain="mine")],
        inputs={"x": (TensorProto.FLOAT, ["n", 4])},
        outputs={"y": (TensorProto.FLOAT, ["n", 4])},
    )
    built.opset_import.append(helper.make_opsetid("mine", 1))
    built.functions.append(double)
    loaded = load(save(built, tmp_path / "m.onnx"))
    parsed = onnx.load_model_from_string(loaded.content)
    assert [node.op_type for node in parsed.graph.node] == ["Add"]
    assert not parsed.functions
    (found,) = run_source(loaded, {"x": np.full((2, 4), 3, np.float32)}, tmp_path)
    np.testing.assert_array_equal(found, np.full((2, 4), 6, np.float32))


def looped() -> onnx.ModelProto:
    """Adds x to itself three times."""
    body = helper.make_graph(
        [helper.make_node("Add", ["carried", "x"], ["next"]), helper.make_node("Identity", ["go"], ["goes"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried", TensorProto.FLOAT, ["n", 4]),
        ],
        [
            helper.make_tensor_value_info("goes", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, ["n", 4]),
        ],
    )
    return model(
        [helper.make_node("Loop", ["times", "", "x"], ["y"], body=body)],
        inputs={"x": (TensorProto.FLOAT, ["n", 4])},
        outputs={"y": (TensorProto.FLOAT, ["n", 4])},
        weights={"times": np.array(3, np.int64)},
    )


def test_loops_and_branches_are_taken_as_they_are(tmp_path: Path) -> None:
    for number, built in enumerate((looped(), rated())):
        path = save(built, tmp_path / f"m{number}.onnx")
        assert load(path).content == path.read_bytes()


def test_an_operator_of_a_domain_that_no_runtime_has_is_named(tmp_path: Path) -> None:
    built = model(
        [helper.make_node("Sharpen", ["x"], ["y"], domain="com.acme")],
        inputs={"x": (TensorProto.FLOAT, ["n", 4])},
        outputs={"y": (TensorProto.FLOAT, ["n", 4])},
    )
    built.opset_import.append(helper.make_opsetid("com.acme", 1))
    with pytest.raises(InputError, match=r"com\.acme:Sharpen") as raised:
        load(save(built, tmp_path / "m.onnx"))
    assert "without custom operators" in raised.value.hint


def test_nodes_in_a_wrong_order_are_put_right(tmp_path: Path) -> None:
    """onnx2tf writes the model that it reads back in such an order."""
    built = rated()
    nodes = list(reversed([onnx.NodeProto.FromString(node.SerializeToString()) for node in built.graph.node]))
    del built.graph.node[:]
    built.graph.node.extend(nodes)
    with pytest.raises(onnx.checker.ValidationError):
        onnx.checker.check_model(built)
    loaded = load(save(built, tmp_path / "m.onnx"))
    kinds = [node.op_type for node in onnx.load_model_from_string(loaded.content).graph.node]
    assert kinds == ["Cast", "Reshape", "Equal", "If"]


def test_a_cycle_is_refused(tmp_path: Path) -> None:
    built = model(
        [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"])],
        inputs={"x": (TensorProto.FLOAT, ["n", 4])},
        outputs={"b": (TensorProto.FLOAT, ["n", 4])},
    )
    with pytest.raises(InputError, match="topologically sorted"):
        load(save(built, tmp_path / "m.onnx"))


def test_the_metadata_of_the_file_goes_along(tmp_path: Path) -> None:
    built = conv_net()
    helper.set_model_props(built, {"task": "classify", "imgsz": "[8, 8]"})
    path = save(built, tmp_path / "m.onnx")
    assert load(path).metadata == {"task": "classify", "imgsz": "[8, 8]"}


def test_too_many_nodes_count_in_subgraphs_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeserve_compilers.sources.checked.MAX_GRAPH_NODES", 5)
    with pytest.raises(InputError, match="6 nodes, at most 5"):
        load(save(rated(), tmp_path / "m.onnx"))


def test_a_file_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(conv_net(), tmp_path / "m.onnx")
    monkeypatch.setattr("edgeserve_compilers.sources.files.MAX_MODEL_FILE_BYTES", 1000)
    with pytest.raises(InputError, match="at most 1000 are allowed"):
        load(path)
