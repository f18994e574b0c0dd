"""The TensorRT runtime against simulators of the library and of CUDA; what needs a GPU is skipped and says so."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx.reference
import pytest

from edgeserve import plugins
from edgeserve.contracts.errors import DeviceError, InputError, MissingLibraryError
from edgeserve.contracts.limits import ENGINE_ROWS
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve.runtimes import cuda as cuda_module
from edgeserve.runtimes.advice import Machine, package_for, this_machine
from edgeserve.runtimes.base import RuntimeOptions, Tensors
from edgeserve.runtimes.cuda import Cuda, driver_version
from edgeserve.runtimes.tensorrt import TensorRtRuntime
from edgeserve.runtimes.tensorrt_engine import recipe
from tests.suites import tensorrt_simulator
from tests.suites.models import CLASSES, conv_net, images, model, recurrent_net, save
from tests.suites.runtime import RuntimeCase, RuntimeContract

pytestmark = pytest.mark.skipif(not tensorrt_simulator.compiler(), reason="no C compiler for the simulator of CUDA")
DEVICE = "TENSORRT"


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory):
    """The folder with both libraries, on the path of this process; TensorRT's real one is not looked at."""
    folder = tmp_path_factory.mktemp("simulator")
    tensorrt_simulator.install(folder)
    before = sys.modules.pop("tensorrt", None)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
    sys.modules.pop("tensorrt", None)
    if before is not None:
        sys.modules["tensorrt"] = before


@pytest.fixture
def runtime(simulator: Path) -> TensorRtRuntime:
    return TensorRtRuntime(driver=str(simulator / "libcuda.so.1"))


def signature(batch: int) -> Signature:
    return Signature(
        inputs=(TensorSpec(name="image", datatype=Datatype.FP32, shape=(batch, 1, 8, 8)),),
        outputs=(TensorSpec(name="logits", datatype=Datatype.FP32, shape=(batch, CLASSES)),),
    )


def by_reference(inputs: Tensors) -> Tensors:
    return dict(zip(["logits"], onnx.reference.ReferenceEvaluator(conv_net()).run(None, inputs), strict=True))


@pytest.fixture(scope="module", params=[-1, 1], ids=["any batch", "batch 1"])
def case(request, simulator: Path, tmp_path_factory) -> RuntimeCase:
    batch = request.param
    path = save(conv_net(batch="batch" if batch == -1 else 1), tmp_path_factory.mktemp("model") / "model.onnx")
    return RuntimeCase(
        runtime=TensorRtRuntime(driver=str(simulator / "libcuda.so.1")),
        path=path,
        signature=signature(batch),
        answers=by_reference,
        device=DEVICE,
        absent_device="TENSORRT:7",
    )


class TestContract(RuntimeContract):
    pass


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    return save(conv_net(), tmp_path / "model" / "model.onnx")


def options(tmp_path: Path, **changes) -> RuntimeOptions:
    return RuntimeOptions(**{"device": DEVICE, "cache": tmp_path / "engines", **changes})


@pytest.fixture
def builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """How often the simulator built an engine."""
    counted = tmp_path / "builds"
    monkeypatch.setenv("TENSORRT_SIMULATOR_BUILDS", str(counted))
    return lambda: len(counted.read_bytes()) if counted.exists() else 0


def loads(runtime: TensorRtRuntime, path: Path, how: RuntimeOptions) -> np.ndarray:
    model = runtime.load(path, how)
    try:
        return model.run({"image": images(1)})["logits"]
    finally:
        model.close()


def test_it_says_what_runs_the_model_and_that_it_is_what_was_asked_for(runtime, path, tmp_path) -> None:
    model = runtime.load(path, options(tmp_path))
    assert model.executing_device == "TensorRT 10.3 on Imitation GPU (sm_87)"
    assert model.fallback == ""
    model.close()


def test_an_engine_is_built_once_and_found_from_then_on(runtime, path, tmp_path, builds) -> None:
    how = options(tmp_path)
    assert runtime.unbuilt(path, how) == "it was never built here"
    first = loads(runtime, path, how)
    assert runtime.unbuilt(path, how) == ""
    np.testing.assert_array_equal(loads(runtime, path, how), first)
    assert builds() == 1


def test_without_a_cache_it_is_built_for_every_load(runtime, path, tmp_path, builds) -> None:
    how = options(tmp_path, cache=None)
    assert runtime.unbuilt(path, how) == "nothing is kept"
    loads(runtime, path, how)
    loads(runtime, path, how)
    assert builds() == 2


def test_another_version_driver_setting_or_model_means_another_engine(
    runtime, path, tmp_path, builds, monkeypatch, caplog
) -> None:
    caplog.set_level(logging.INFO)
    loads(runtime, path, options(tmp_path))
    loads(runtime, path, options(tmp_path, settings={"builder_optimization_level": "5"}))
    assert builds() == 2
    monkeypatch.setattr("edgeserve.runtimes.tensorrt.driver_version", lambda: "540.5")
    why = runtime.unbuilt(path, options(tmp_path))
    assert "driver is 540.5, was " in why
    loads(runtime, path, options(tmp_path))
    assert builds() == 3
    assert f"building the engine of model.onnx: {why}" in caplog.text
    save(conv_net(seed=1), path)
    assert runtime.unbuilt(path, options(tmp_path)) == "it was never built here"
    loads(runtime, path, options(tmp_path))
    assert builds() == 4


def test_a_sealed_engine_that_the_library_does_not_take_is_built_again(
    runtime, path, tmp_path, builds, monkeypatch
) -> None:
    import tensorrt

    monkeypatch.setattr(tensorrt, "GPU", "Another GPU")  # of the same name in the key, such as a board revision
    expected = loads(runtime, path, options(tmp_path))
    monkeypatch.setattr(tensorrt, "GPU", "Imitation GPU")
    np.testing.assert_array_equal(loads(runtime, path, options(tmp_path)), expected)
    assert builds() == 2


def test_timings_of_one_build_are_given_to_the_next(runtime, path, tmp_path) -> None:
    loads(runtime, path, options(tmp_path, settings={"timing_cache": "timing.cache"}))
    save(conv_net(seed=1), path)
    loads(runtime, path, options(tmp_path, settings={"timing_cache": "timing.cache"}))
    heads = [
        json.loads(engine.read_bytes().split(b"\n")[1])
        for engine in (tmp_path / "engines" / "tensorrt").glob("*.engine")
        if engine.read_bytes().startswith(b"SIMULATED")
    ]
    assert sorted(head["timings"] for head in heads) == [len(b"timings +"), len(b"timings ++")]


@pytest.mark.parametrize("rows", [1, ENGINE_ROWS, ENGINE_ROWS + 1, 3 * ENGINE_ROWS + 2])
def test_a_call_of_more_rows_than_the_engine_takes_is_computed_in_parts(runtime, path, tmp_path, rows) -> None:
    model = runtime.load(path, options(tmp_path))
    given = {"image": images(rows)}
    np.testing.assert_allclose(model.run(given)["logits"], by_reference(given)["logits"], rtol=1e-4, atol=1e-4)
    model.close()


def test_a_profile_says_which_shapes_a_stateful_model_takes(runtime, tmp_path) -> None:
    path = save(recurrent_net(), tmp_path / "model.onnx")
    one = {"sound": [1, 12], "state": [2, 1, 16]}
    profile = {name: {"min": shape, "opt": shape, "max": shape} for name, shape in one.items()}
    (tmp_path / "shapes.json").write_text(json.dumps(profile))
    model = runtime.load(path, options(tmp_path, settings={"profile": "shapes.json"}))
    inputs = {name: np.ones(shape, np.float32) for name, shape in one.items()}
    expected = onnx.reference.ReferenceEvaluator(recurrent_net()).run(None, inputs)
    for values, wanted in zip(model.run(inputs).values(), expected, strict=True):
        np.testing.assert_allclose(values, wanted, rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match="not built for"):
        model.run({"sound": np.ones((2, 12), np.float32), "state": np.ones((2, 2, 16), np.float32)})
    assert model.run(inputs)
    model.close()


ONE = {"min": [1, 1, 8, 8], "opt": [1, 1, 8, 8], "max": [4, 1, 8, 8]}


@pytest.mark.parametrize(
    ("settings", "shapes", "message"),
    [
        ({"strange": "1"}, None, "no setting 'strange'"),
        ({"typing": "loose"}, None, "typing 'loose'"),
        ({"builder_optimization_level": "6"}, None, "builder_optimization_level '6'"),
        ({"workspace_mib": "-1"}, None, "workspace_mib '-1'"),
        ({"profile": "../shapes.json"}, None, "shapes.json"),
        ({"profile": "absent.json"}, None, "absent.json is missing"),
        ({"profile": "shapes.json"}, [1], "no shapes"),
        ({"profile": "shapes.json"}, {"image": {**ONE, "min": [1, 8]}}, "number of dimensions"),
        ({"profile": "shapes.json"}, {"image": {**ONE, "max": [0, 1, 8, 8]}}, "not in this order"),
        ({"profile": "shapes.json"}, {"picture": ONE}, "'picture', which is no input"),
        ({"profile": "shapes.json"}, {"image": {**ONE, "max": [4, 1, 9, 8]}}, "profile of input 'image'"),
    ],
)
def test_settings_that_are_wrong_are_refused(runtime, path, tmp_path, settings, shapes, message) -> None:
    if shapes is not None:
        (path.parent / "shapes.json").write_text(json.dumps(shapes))
    with pytest.raises(InputError, match=message):
        runtime.load(path, options(tmp_path, settings=settings))


def test_the_recipe_of_a_jetson_variant_is_understood(tmp_path) -> None:
    from edgeserve_compilers.targets.jetson_gpu import FINALIZE, PROFILE

    (tmp_path / PROFILE).write_text(json.dumps({"image": ONE}))
    how = recipe(FINALIZE.options, tmp_path)
    assert (how.strong_typing, how.optimization_level, how.workspace_bytes) == (True, 3, 1 << 30)
    assert how.shapes["image"].max == (4, 1, 8, 8)


def graph(operation: str, shape) -> onnx.ModelProto:
    return model(
        [onnx.helper.make_node(operation, ["x"], ["y"], **({"equation": "ij->ij"} if operation == "Einsum" else {}))],
        inputs={"x": (1, shape)},
        outputs={"y": (1, shape)},
    )


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (graph("Einsum", ["n", 4]), DeviceError, "does not know an operation of model.onnx"),
        (graph("Relu", ["n", "m"]), InputError, "more than the rows of input 'x'"),
        (graph("Relu", []), InputError, "only tensors of plain numbers"),
    ],
    ids=["operation", "sizes", "scalar"],
)
def test_a_model_that_cannot_become_an_engine_is_refused(runtime, tmp_path, given, error, message) -> None:
    path = save(given, tmp_path / "model.onnx")
    with pytest.raises(error, match=message):
        runtime.load(path, options(tmp_path))


def test_a_model_that_tensorrt_does_not_know_runs_elsewhere_where_that_is_allowed_and_told(runtime, tmp_path) -> None:
    path = save(graph("Einsum", ["n", 4]), tmp_path / "model.onnx")
    model = runtime.load(path, options(tmp_path, fallback=True))
    assert model.executing_device == "CPU"
    assert model.fallback.startswith("TENSORRT was asked for, CPU runs it: TensorRT 10.3.0 does not know an operation")
    x = np.ones((2, 4), np.float32)
    np.testing.assert_array_equal(model.run({"x": x})["y"], x)
    model.close()


@pytest.mark.parametrize("device", ["CUDA", "gpu:0", "TensorRT", "TENSORRT:0"])
def test_its_device_has_several_names(runtime, path, tmp_path, device) -> None:
    loads(runtime, path, options(tmp_path, device=device))


def test_memory_of_the_gpu_that_is_short_is_an_error_of_the_call_that_says_so(
    runtime, path, tmp_path, monkeypatch
) -> None:
    model = runtime.load(path, options(tmp_path))
    monkeypatch.setenv("CUDA_SIMULATOR_BYTES", "1000")
    with pytest.raises(DeviceError, match="CUDA_ERROR_OUT_OF_MEMORY"):
        model.run({"image": images(8)})
    assert model.run({"image": images(1)})["logits"].shape == (1, CLASSES)
    monkeypatch.delenv("CUDA_SIMULATOR_BYTES")
    assert model.run({"image": images(8)})["logits"].shape == (8, CLASSES)
    model.close()


def test_a_library_that_is_missing_is_named_with_the_package_that_has_it(simulator, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingLibraryError, match="tensorrt") as raised:
        plugins.find(plugins.RUNTIMES, "tensorrt")()
    assert raised.value.hint == package_for("tensorrt", "", this_machine())
    jetson = Machine(architecture="arm64", tegra=True)
    assert "python3-libnvinfer" in package_for("tensorrt", "", jetson)


def test_a_library_that_is_too_old_is_named(simulator, monkeypatch) -> None:
    import tensorrt

    monkeypatch.setattr(tensorrt, "__version__", "8.5.2.2")
    with pytest.raises(MissingLibraryError, match=r"8\.5\.2\.2"):
        TensorRtRuntime()


def test_a_driver_that_is_missing_or_does_not_start_is_named(simulator, monkeypatch, tmp_path) -> None:
    with pytest.raises(MissingLibraryError, match="no CUDA driver"):
        Cuda(library=str(tmp_path / "libcuda.so.1"))
    monkeypatch.setenv("CUDA_SIMULATOR_ERROR", "100")
    with pytest.raises(DeviceError, match="CUDA_ERROR_NO_DEVICE") as raised:
        Cuda(library=str(simulator / "libcuda.so.1"))
    assert "container" in raised.value.hint
    monkeypatch.setenv("CUDA_SIMULATOR_ERROR", "999")
    with pytest.raises(DeviceError, match="cuInit failed: error 999"):
        Cuda(library=str(simulator / "libcuda.so.1"))


@pytest.mark.parametrize(
    ("name", "line", "version"),
    [
        ("etc/nv_tegra_release", "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic", "L4T 36.4.3"),
        ("proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue", "550.54.15"),
        (
            "proc/driver/nvidia/version",
            "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  R",
            "540.4.0",
        ),
        ("proc/driver/nvidia/version", "something else", ""),
        ("nothing", "", ""),
    ],
)
def test_the_version_of_the_driver_is_read_from_the_system(tmp_path, name, line, version) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(line + "\nmore\n")
    assert driver_version(tmp_path) == version


PROGRAM = """
import sys
from pathlib import Path
from edgeserve.runtimes.base import RuntimeOptions
from edgeserve.runtimes.variant import find_runtime
model = find_runtime("tensorrt").load(Path(sys.argv[1]), RuntimeOptions(device="TENSORRT", cache=Path(sys.argv[2])))
model.close()
"""


def test_two_processes_that_need_the_same_engine_build_it_once(simulator, path, tmp_path) -> None:
    builds = tmp_path / "builds"
    environment = tensorrt_simulator.environment(
        simulator, TENSORRT_SIMULATOR_SECONDS="0.5", TENSORRT_SIMULATOR_BUILDS=str(builds)
    )
    command = [sys.executable, "-c", PROGRAM, path, tmp_path / "engines"]
    children = [subprocess.Popen(command, env=environment) for _ in range(2)]
    assert [child.wait() for child in children] == [0, 0]
    assert builds.read_bytes() == b"."


@pytest.mark.skipif(not Path("/dev/nvidiactl").exists(), reason="no NVIDIA GPU on this machine: CUDA is not tried")
def test_memory_of_a_real_gpu_holds_what_was_written() -> None:
    gpu = Cuda(library=cuda_module.LIBRARY)
    gpu.enter()
    stream, buffer = gpu.new_stream(), gpu.buffer(4000)
    array = np.arange(1000, dtype=np.float32)
    buffer.write(array, stream)
    gpu.wait(stream)
    buffer.array((1000,), array.dtype)[...] = 0
    buffer.read_soon(4000, stream)
    gpu.wait(stream)
    np.testing.assert_array_equal(buffer.array((1000,), array.dtype), array)
    buffer.free()
    gpu.free_stream(stream)
