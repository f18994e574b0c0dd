from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from onnx import TensorProto, helper

from edgeserve.contracts.errors import DeviceError, InputError
from edgeserve.contracts.tensors import Datatype
from edgeserve.runtimes.base import RuntimeOptions
from edgeserve.runtimes.onnx import OnnxRuntime
from tests.suites.models import model, save

RELU = [helper.make_node("Relu", ["x"], ["y"])]


def load(built, tmp_path):
    return OnnxRuntime().load(save(built, tmp_path / "m.onnx"), RuntimeOptions())


@pytest.mark.parametrize("shape", [None, []], ids=["no rank", "scalar"])
def test_an_input_without_rows_is_named(tmp_path, shape) -> None:
    built = model(RELU, inputs={"x": (TensorProto.FLOAT, shape)}, outputs={"y": (TensorProto.FLOAT, shape)})
    with pytest.raises(InputError, match=r"input 'x' of m\.onnx has no fixed rank"):
        load(built, tmp_path)


def test_an_output_that_is_no_tensor_is_named(tmp_path) -> None:
    built = model(
        [helper.make_node("SequenceConstruct", ["x"], ["y"])],
        inputs={"x": (TensorProto.FLOAT, ["n"])},
        outputs={"y": (TensorProto.FLOAT, ["n"])},
    )
    built.graph.output[0].CopyFrom(helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, ["n"]))
    with pytest.raises(InputError, match=r"output 'y' of m\.onnx"):
        load(built, tmp_path)


def test_sizes_that_vary_are_minus_one_and_built_in_ones_stay(tmp_path) -> None:
    shape: list[int | str] = ["rows", 3, "width"]
    built = model(RELU, inputs={"x": (TensorProto.FLOAT, shape)}, outputs={"y": (TensorProto.FLOAT, shape)})
    loaded = load(built, tmp_path)
    assert loaded.signature.inputs[0].shape == (-1, 3, -1)
    loaded.close()


def test_strings_are_bytes_in_utf8(tmp_path) -> None:
    node = [helper.make_node("Identity", ["x"], ["y"])]
    built = model(node, inputs={"x": (TensorProto.STRING, ["n"])}, outputs={"y": (TensorProto.STRING, ["n"])})
    loaded = load(built, tmp_path)
    assert loaded.signature.inputs[0].datatype is Datatype.BYTES
    given = np.array(["käse".encode(), b""], object)
    np.testing.assert_array_equal(loaded.run({"x": given})["y"], given)
    with pytest.raises(InputError, match="'x' holds bytes that are not UTF-8"):
        loaded.run({"x": np.array([b"\xff"], object)})
    loaded.close()


def test_an_operator_that_is_not_known_is_an_input_error_with_its_name(tmp_path) -> None:
    built = model(
        [helper.make_node("Frobnicate", ["x"], ["y"])],
        inputs={"x": (TensorProto.FLOAT, ["n"])},
        outputs={"y": (TensorProto.FLOAT, ["n"])},
    )
    with pytest.raises(InputError, match="Frobnicate"):
        load(built, tmp_path)


def test_an_error_inside_the_model_is_a_device_error(tmp_path, capfd) -> None:
    node = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    built = model(
        node,
        inputs={"x": (TensorProto.FLOAT, ["n", "k"])},
        outputs={"y": (TensorProto.FLOAT, ["n", 2])},
        weights={"w": np.ones((3, 2), np.float32)},
    )
    loaded = load(built, tmp_path)
    with pytest.raises((DeviceError, InputError), match=r"MatMul|dimension"):
        loaded.run({"x": np.ones((1, 4), np.float32)})
    loaded.close()
    assert capfd.readouterr().err == ""


def test_threads_that_meet_new_shapes_at_once_are_all_answered(tmp_path) -> None:
    shape = ["n"]
    loaded = load(
        model(RELU, inputs={"x": (TensorProto.FLOAT, shape)}, outputs={"y": (TensorProto.FLOAT, shape)}), tmp_path
    )

    def answers(thread: int) -> bool:
        return all(
            np.array_equal(loaded.run({"x": given})["y"], given)
            for size in range(1, 100)
            for given in [np.full(size, thread + 1, np.float32)] * 2
        )

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(answers, range(8)))
    finally:
        sys.setswitchinterval(interval)
        loaded.close()
