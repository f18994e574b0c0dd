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
from tests.suites.models import conv_net, images, model, save

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
