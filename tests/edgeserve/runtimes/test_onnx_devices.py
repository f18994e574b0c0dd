"""ONNX Runtime on real hardware beside the CPU, and on providers whose hardware is not there.

Each test needs a build of ONNX Runtime with the provider (onnxruntime-gpu, onnxruntime-openvino), and most the device;
where there is none they are skipped and say so.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx.reference
import onnxruntime
import pytest
from onnx import TensorProto, helper

from edgeserve.contracts.errors import DeviceError
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve.runtimes.advice import package_for, this_machine
from edgeserve.runtimes.base import RuntimeOptions, Tensors
from edgeserve.runtimes.cuda import Cuda
from edgeserve.runtimes.onnx import OnnxRuntime
from edgeserve.runtimes.onnx_providers import PROVIDERS
from tests.suites.models import CLASSES, conv_net, model, save
from tests.suites.runtime import RuntimeCase, RuntimeContract

DEVICES = ("CUDA:0", "TENSORRT:0", "OPENVINO:CPU", "OPENVINO:GPU", "OPENVINO:NPU", "XNNPACK", "ACL")
BUILD = ("TENSORRT", "OPENVINO")
FIXED = ("TENSORRT:0", "OPENVINO:NPU")
"""What takes varying sizes only with more settings, or not at all."""
NODES = {"OPENVINO:GPU": "/dev/dri/renderD128", "OPENVINO:NPU": "/dev/accel/accel0"}
KEEPS = hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info")


def without(device: str) -> str:
    """Why a device cannot be tried here; empty when it can: then nothing may fail."""
    kind = device.partition(":")[0]
    if PROVIDERS[kind] not in onnxruntime.get_available_providers():
        return f"this ONNX Runtime has no {PROVIDERS[kind]}: {package_for('onnxruntime', kind, this_machine())}"
    if kind in ("CUDA", "TENSORRT"):
        try:
            Cuda(0)
        except DeviceError as error:
            return f"there is no GPU of NVIDIA that could be used: {error.message}"
    node = NODES.get(device)
    return f"there is no {node}" if node and not Path(node).exists() else ""


HERE = [device for device in DEVICES if not without(device)]


def need(device: str) -> None:
    why = without(device)
    if why:
        pytest.skip(why)


def by_reference(inputs: Tensors) -> Tensors:
    return dict(zip(["logits"], onnx.reference.ReferenceEvaluator(conv_net()).run(None, inputs), strict=True))


@pytest.mark.parametrize("device", DEVICES)
def test_a_device_is_tried_where_it_is(device: str, tmp_path: Path) -> None:
    need(device)
    loaded = OnnxRuntime().load(save(conv_net(batch=1), tmp_path / "m.onnx"), RuntimeOptions(device=device))
    assert loaded.executing_device == device
    assert loaded.fallback == ""
    if KEEPS:
        assert dict(loaded.placement) == {device.partition(":")[0]: 7}
    loaded.close()


@pytest.fixture(
    scope="module",
    params=[(device, size) for device in HERE for size in (-1, 1) if size == 1 or device not in FIXED],
    ids=lambda param: f"{param[0]} batch {param[1]}",
)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RuntimeCase:
    device, size = request.param
    path = save(conv_net(batch="batch" if size == -1 else size), tmp_path_factory.mktemp("model") / "model.onnx")
    return RuntimeCase(
        runtime=OnnxRuntime(),
        path=path,
        signature=Signature(
            inputs=(TensorSpec(name="image", datatype=Datatype.FP32, shape=(size, 1, 8, 8)),),
            outputs=(TensorSpec(name="logits", datatype=Datatype.FP32, shape=(size, CLASSES)),),
        ),
        answers=by_reference,
        device=device,
        absent_device="COREML",
    )


if HERE:

    class TestDevices(RuntimeContract):
        """The whole contract of a runtime on each device."""


@pytest.mark.parametrize("device", [device for device in DEVICES if device.startswith(BUILD)])
def test_what_was_built_is_kept_verified_and_made_anew(device: str, tmp_path: Path) -> None:
    need(device)
    path = save(conv_net(batch=1), tmp_path / "m.onnx")
    options = RuntimeOptions(device=device, cache=tmp_path / "engines")
    rows = {"image": np.random.default_rng(0).standard_normal((1, 1, 8, 8)).astype(np.float32)}
    expected = by_reference(rows)["logits"]
    for spoil in (None, lambda data: data[:-100], lambda data: bytes(len(data)), None):
        loaded = OnnxRuntime().load(path, options)
        np.testing.assert_allclose(loaded.run(rows)["logits"], expected, rtol=1e-4, atol=1e-4)
        loaded.close()
        (engine,) = (tmp_path / "engines/onnxruntime").glob("*.engine")
        whole = engine.read_bytes()
        assert whole.strip(b"\0"), "it was not made anew"
        if spoil is not None:
            engine.write_bytes(spoil(whole))


DET = {"inputs": {"x": (TensorProto.FLOAT, ["n", 3, 3])}, "outputs": {"y": (TensorProto.FLOAT, ["n"])}}
"""`Det` is an operation that OpenVINO's provider does not take."""


def test_operations_that_a_provider_does_not_take_are_counted(tmp_path: Path) -> None:
    need("OPENVINO:CPU")
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Det", ["a"], ["y"])]
    path = save(model(nodes, **DET), tmp_path / "m.onnx")
    loaded = OnnxRuntime().load(path, RuntimeOptions(device="OPENVINO:CPU"))
    assert loaded.fallback == ""
    assert dict(loaded.placement) == ({"OPENVINO": 1, "CPU": 1} if KEEPS else {})
    np.testing.assert_allclose(loaded.run({"x": np.eye(3, dtype=np.float32)[None] * 2})["y"], [8.0])
    loaded.close()


def test_a_model_of_which_a_provider_takes_nothing_does_not_run_on_it(tmp_path: Path) -> None:
    need("OPENVINO:CPU")
    if not KEEPS:
        pytest.skip("this ONNX Runtime does not say where operations are")
    path = save(model([helper.make_node("Det", ["x"], ["y"])], **DET), tmp_path / "m.onnx")
    with pytest.raises(DeviceError, match=r"m\.onnx cannot run on OPENVINO:CPU: it took none"):
        OnnxRuntime().load(path, RuntimeOptions(device="OPENVINO:CPU"))
    loaded = OnnxRuntime().load(path, RuntimeOptions(device="OPENVINO:CPU", fallback=True))
    assert loaded.executing_device == "CPU"
    assert "it took none of the model's operations" in loaded.fallback
    loaded.close()


def test_a_setting_that_a_provider_does_not_know_is_named(tmp_path: Path) -> None:
    need("OPENVINO:CPU")
    path = save(conv_net(batch=1), tmp_path / "m.onnx")
    with pytest.raises(DeviceError, match="cannot run on OPENVINO:CPU: Invalid OpenVINO EP option"):
        OnnxRuntime().load(path, RuntimeOptions(device="OPENVINO:CPU", settings={"bogus": "1"}))


@pytest.mark.parametrize("device", ["CUDA", "TENSORRT", "OPENVINO:GPU", "OPENVINO:NPU"])
def test_a_provider_without_its_hardware_is_an_error_and_never_the_cpu_without_a_word(
    tmp_path: Path, device: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """The trap itself: ONNX Runtime leaves the provider out, runs on the CPU, and tells only its log."""
    kind = device.partition(":")[0]
    if PROVIDERS[kind] not in onnxruntime.get_available_providers() or not without(device):
        pytest.skip(without(device) or f"{device} is here")
    path = save(conv_net(batch=1), tmp_path / "m.onnx")
    with pytest.raises(DeviceError, match=rf"m\.onnx cannot run on {device}") as caught:
        OnnxRuntime().load(path, RuntimeOptions(device=device))
    assert caught.value.hint
    loaded = OnnxRuntime().load(path, RuntimeOptions(device=device, fallback=True))
    assert loaded.executing_device == "CPU"
    assert loaded.fallback.startswith(f"{device} was asked for, CPU runs it: m.onnx cannot run on {device}")
    loaded.close()
    assert capfd.readouterr() == ("", "")
