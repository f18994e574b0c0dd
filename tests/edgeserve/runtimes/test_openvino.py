"""What is OpenVINO's own: devices that are not there, and those that it chooses without a word."""

from __future__ import annotations

import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if find_spec("openvino") is None:  # not importorskip, which would import it with its telemetry on
    pytest.skip("openvino is not installed: pip install 'edgeserve[openvino]'", allow_module_level=True)

from edgeserve.contracts.errors import DeviceError
from edgeserve.runtimes.base import RuntimeOptions
from edgeserve.runtimes.openvino import OpenVinoRuntime, available_devices, compile_for
from edgeserve.runtimes.openvino_advice import CHOOSERS, advice, base, is_chooser
from tests.suites.models import conv_net, save

import openvino  # isort: skip - after the runtime, which turns its telemetry off

without_npu = pytest.mark.skipif("NPU" in available_devices(), reason="there is an NPU here")
without_gpu = pytest.mark.skipif("GPU" in available_devices(), reason="there is an Intel GPU here")


@pytest.fixture(scope="module")
def ir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ir")
    graph = openvino.convert_model(save(conv_net(batch=1), folder / "source.onnx"))
    openvino.save_model(graph, folder / "model.xml", compress_to_fp16=False)
    return folder / "model.xml"


@pytest.fixture
def graph(ir: Path) -> Any:
    return openvino.Core().read_model(ir)


@without_npu
@pytest.mark.parametrize(
    ("config", "says", "do"),
    [
        ({}, "VCL compiler loading failed", "compile on a device with an NPU"),
        ({"NPU_COMPILER_TYPE": "DRIVER"}, "Could not find an NPU device", "linux-npu-driver/releases"),
        ({"NPU_COMPILER_TYPE": "MLIR"}, "not a valid COMPILER_TYPE", "DRIVER"),
    ],
)
def test_a_failed_npu_compilation_says_what_to_do(graph: Any, config: dict[str, str], says: str, do: str) -> None:
    with pytest.raises(DeviceError, match=says) as caught:
        compile_for(openvino.Core(), graph, "NPU", config, "model.xml")
    assert do in caught.value.hint
    assert caught.value.exit_code == 1


@without_gpu
def test_a_failed_gpu_compilation_says_what_to_do(graph: Any) -> None:
    with pytest.raises(DeviceError) as caught:
        compile_for(openvino.Core(), graph, "GPU", {}, "model.xml")
    if "libOpenCL" not in caught.value.message:
        pytest.skip(f"OpenCL is installed here, and this is what is missing: {caught.value.message}")
    assert "intel-opencl-icd" in caught.value.hint


@without_npu
@without_gpu
@pytest.mark.parametrize(("device", "do"), [("NPU", "linux-npu-driver"), ("GPU.1", "intel-opencl-icd")])
def test_an_absent_device_names_those_that_are_there_and_the_driver(ir: Path, device: str, do: str) -> None:
    with pytest.raises(DeviceError, match=f"no device '{device}'") as caught:
        OpenVinoRuntime().load(ir, RuntimeOptions(device=device))
    assert "it finds CPU" in caught.value.hint
    assert do in caught.value.hint


@without_npu
def test_auto_runs_on_the_cpu_without_a_word_and_is_caught(graph: Any) -> None:
    """The trap itself: OpenVINO compiles for AUTO:NPU,CPU without an error, and the CPU executes it."""
    compiled = openvino.Core().compile_model(graph, "AUTO:NPU,CPU")
    assert [base(name) for name in compiled.get_property("EXECUTION_DEVICES")] == ["CPU"]
    with pytest.raises(DeviceError, match=r"to run on AUTO:NPU,CPU, OpenVINO chose \(?CPU") as caught:
        compile_for(openvino.Core(), graph, "AUTO:NPU,CPU", {}, "model.xml")
    assert "name the device itself" in caught.value.hint


@pytest.mark.parametrize("simulate", [False, True])
@pytest.mark.parametrize("device", ["AUTO", "AUTO:NPU,CPU", "HETERO:NPU,CPU", "MULTI:CPU", "BATCH:CPU"])
def test_a_device_that_leaves_the_choice_is_refused(ir: Path, device: str, simulate: bool) -> None:
    with pytest.raises(DeviceError, match="leaves the choice") as caught:
        OpenVinoRuntime().load(ir, RuntimeOptions(device=device, simulate=simulate))
    assert "name the device itself" in caught.value.hint


@without_npu
def test_a_simulated_npu_says_that_it_is_one(ir: Path) -> None:
    settings = {"NPU_COMPILER_TYPE": "DRIVER"}  # which no other device knows
    loaded = OpenVinoRuntime().load(ir, RuntimeOptions(device="NPU", simulate=True, settings=settings))
    assert loaded.executing_device == "CPU (simulated)"
    assert loaded.run({"image": np.zeros((1, 1, 8, 8), np.float32)})["logits"].shape == (1, 10)
    loaded.close()


def test_the_wheel_has_no_compile_tool_and_the_advice_says_so() -> None:
    assert shutil.which("compile_tool", path=str(Path(sys.executable).parent)) is None
    assert not list(Path(openvino.__file__).parent.rglob("compile_tool*"))
    assert "compile_tool" in advice("NPU", "VCL compiler loading failed, aborting.")


@pytest.mark.parametrize(
    ("device", "kind", "chooses"),
    [
        ("NPU", "NPU", False),
        ("GPU.1", "GPU", False),
        ("(CPU)", "CPU", False),
        ("CPU", "CPU", False),
        ("AUTO", "AUTO", True),
        ("AUTO:GPU,CPU", "AUTO:GPU,CPU", True),
        ("AUTOMATON", "AUTOMATON", False),
    ],
)
def test_kinds_of_devices(device: str, kind: str, chooses: bool) -> None:
    assert base(device) == kind
    assert is_chooser(device) is chooses
    assert is_chooser(device) is (device.partition(":")[0] in CHOOSERS)


@pytest.mark.parametrize(
    ("device", "error", "do"),
    [
        ("NPU", "Blob was compiled with ELF version 1.3.0, this driver supports 1.2.0", "made again from the IR"),
        ("NPU", "[NPU_VCL] Unsupported operation: Einsum", "compile for intel-gpu"),
        ("GPU", "libOpenCL.so.1: cannot open shared object file", "intel-opencl-icd"),
    ],
    ids=["blob of another compiler", "unknown operation", "no OpenCL"],
)
def test_an_error_that_is_known_has_its_way_out(device: str, error: str, do: str) -> None:
    assert do in advice(device, error)


def test_an_error_that_is_not_known_gets_no_guess() -> None:
    assert advice("NPU", "something new went wrong") == ""
