"""Which providers are tried, with which options, and what is said of those that are not there."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeserve.contracts.errors import DeviceError
from edgeserve.runtimes.advice import Machine
from edgeserve.runtimes.base import RuntimeOptions
from edgeserve.runtimes.onnx_providers import CPU, PROVIDERS, fallback, plan

PC = Machine(architecture="amd64")
EVERYTHING = tuple(PROVIDERS.values())
TENSORRT, CUDA, OPENVINO = PROVIDERS["TENSORRT"], PROVIDERS["CUDA"], PROVIDERS["OPENVINO"]
SPELLINGS = [
    "CPU", "cuda", "CUDA:1", "TensorRT", "TENSORRT:0", "OPENVINO:CPU", "OpenVINO:NPU", "OPENVINO:GPU.1", "XNNPACK",
    "ACL", "DML:0", "CoreML",
]  # fmt: skip


def tried(device: str, available: tuple[str, ...] = EVERYTHING, **options: object) -> list[str]:
    return [one.device for one in plan(RuntimeOptions(device=device, **options), available, PC).attempts]


@pytest.mark.parametrize("device", SPELLINGS)
def test_without_leave_only_what_was_asked_for_is_tried(device: str) -> None:
    assert len(tried(device)) == 1


@pytest.mark.parametrize(
    ("device", "available", "expected", "passed_over"),
    [
        ("TensorRT", (TENSORRT, CUDA, CPU), ["TENSORRT:0", "CUDA:0", "CPU"], []),
        ("TENSORRT:1", (TENSORRT, CUDA, CPU), ["TENSORRT:1", "CUDA:1", "CPU"], []),
        ("TENSORRT", (CUDA, CPU), ["CUDA:0", "CPU"], [TENSORRT]),
        ("TENSORRT", (CPU,), ["CPU"], [TENSORRT, CUDA]),
        ("CUDA:1", (CUDA, CPU), ["CUDA:1", "CPU"], []),
        ("CUDA", (CPU,), ["CPU"], [CUDA]),
        ("OPENVINO:NPU", (OPENVINO, CPU), ["OPENVINO:NPU", "CPU"], []),
        ("XNNPACK", (CPU,), ["CPU"], [PROVIDERS["XNNPACK"]]),
        ("CPU", (CUDA, CPU), ["CPU"], []),
    ],
)
def test_with_leave_the_next_best_is_tried_and_what_is_missing_is_named(
    device: str, available: tuple[str, ...], expected: list[str], passed_over: list[str]
) -> None:
    found = plan(RuntimeOptions(device=device, fallback=True), available, PC)
    assert [one.device for one in found.attempts] == expected
    assert len(found.passed_over) == len(passed_over)
    assert all(name in said for name, said in zip(passed_over, found.passed_over, strict=True))


@pytest.mark.parametrize(
    ("device", "machine", "do"),
    [
        ("CUDA", PC, "onnxruntime-gpu[cuda,cudnn]"),
        ("CUDA", Machine(architecture="arm64", tegra=True), "NVIDIA's Jetson package index"),
        ("TENSORRT", Machine(architecture="arm64", tegra=True), "NVIDIA's Jetson package index"),
        ("OPENVINO:GPU", PC, "onnxruntime-openvino"),
        ("OPENVINO:CPU", Machine(architecture="arm64"), "no package is known"),
        ("XNNPACK", PC, "--use_xnnpack"),
    ],
)
def test_a_provider_that_is_not_installed_names_its_package_for_this_machine(
    device: str, machine: Machine, do: str
) -> None:
    with pytest.raises(DeviceError, match=f"no device '{device}'") as caught:
        plan(RuntimeOptions(device=device), (CPU,), machine)
    assert caught.value.hint.startswith("it has CPU; ")
    assert do in caught.value.hint


@pytest.mark.parametrize(
    "device", ["TPU", "", "CPU:0", "CUDA:x", "CUDA:-1", "CUDA:100", "OPENVINO:TPU", "XNNPACK:1", "CUDA:0:1", "GPU"]
)
@pytest.mark.parametrize("allowed", [False, True])
def test_a_device_of_no_meaning_is_refused_even_where_another_may_take_over(device: str, allowed: bool) -> None:
    with pytest.raises(DeviceError, match="no device") as caught:
        tried(device, fallback=allowed)
    assert "CPU" in caught.value.hint


@pytest.mark.parametrize("unit", ["AUTO", "AUTO:NPU,CPU", "HETERO:GPU,CPU", "MULTI:CPU", "BATCH:GPU"])
def test_a_device_that_leaves_the_choice_to_openvino_is_refused(unit: str) -> None:
    with pytest.raises(DeviceError, match="leaves the choice"):
        tried(f"OPENVINO:{unit}")


@pytest.mark.parametrize("device", SPELLINGS)
def test_a_simulation_runs_on_the_cpu_and_takes_no_settings_of_other_hardware(device: str) -> None:
    options = RuntimeOptions(device=device, simulate=True, settings={"trt_fp16_enable": "1"})
    for available in (EVERYTHING, (CPU,)):
        (only,) = plan(options, available, PC).attempts
        assert only.providers == ((CPU, {}),)


@pytest.mark.parametrize(
    ("device", "settings", "expected"),
    [
        ("CUDA:1", {}, {"device_id": "1", "cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"}),
        ("CUDA", {"gpu_mem_limit": "1000", "use_tf32": "1"}, {"gpu_mem_limit": "1000", "use_tf32": "1"}),
        ("TENSORRT:1", {"fp16": "1", "int8": "1"}, {"device_id": "1", "trt_fp16_enable": "1", "trt_int8_enable": "1"}),
        ("TENSORRT", {"workspace_mib": "1024"}, {"trt_max_workspace_size": str(1 << 30)}),
        ("TENSORRT", {"trt_profile_min_shapes": "x:1x3"}, {"trt_profile_min_shapes": "x:1x3"}),
        ("OPENVINO:CPU", {}, {"device_type": "CPU", "precision": "FP32", "num_of_threads": "2"}),
        ("OPENVINO:CPU", {"precision": "ACCURACY"}, {"precision": "ACCURACY"}),
        ("OPENVINO:NPU", {}, {"device_type": "NPU"}),
        ("XNNPACK", {}, {"intra_op_num_threads": "2"}),
    ],
)
def test_options_of_the_first_provider(device: str, settings: dict[str, str], expected: dict[str, str]) -> None:
    (attempt,) = plan(RuntimeOptions(device=device, threads=2, settings=settings), EVERYTHING, PC).attempts
    name, options = attempt.providers[0]
    assert name == attempt.provider
    assert expected.items() <= options.items()


def test_what_only_tensorrts_own_builder_knows_does_not_reach_the_provider() -> None:
    settings = {
        "typing": "strong",
        "timing_cache": "timing.cache",
        "profile": "p.json",
        "builder_optimization_level": "3",
    }
    (attempt,) = plan(RuntimeOptions(device="TENSORRT", settings=settings), EVERYTHING, PC).attempts
    assert attempt.providers[0][1] == {"device_id": "0", "trt_builder_optimization_level": "3"}


def test_settings_of_what_was_asked_for_do_not_reach_what_takes_over() -> None:
    options = RuntimeOptions(device="TENSORRT", fallback=True, settings={"trt_fp16_enable": "1"})
    first, *others = plan(options, EVERYTHING, PC).attempts
    assert first.providers[0][1]["trt_fp16_enable"] == "1"
    assert "trt_fp16_enable" not in str([one.providers for one in others])


def test_what_tensorrt_cannot_do_stays_on_its_gpu() -> None:
    (attempt,) = plan(RuntimeOptions(device="TENSORRT:1"), EVERYTHING, PC).attempts
    assert [name for name, _options in attempt.providers] == [TENSORRT, CUDA, CPU]
    assert attempt.providers[1][1]["device_id"] == "1"


def test_the_npu_gets_no_chance_to_pass_work_to_the_cpu() -> None:
    (npu,) = plan(RuntimeOptions(device="OPENVINO:NPU"), EVERYTHING, PC).attempts
    assert npu.session["session.disable_cpu_ep_fallback"] == "1"
    assert [name for name, _options in npu.providers] == [OPENVINO]  # the library refuses the entry beside the CPU


@pytest.mark.parametrize(
    ("device", "adds"),
    [
        (
            "TENSORRT",
            {
                "trt_engine_cache_enable": "1",
                "trt_engine_cache_path": "/c",
                "trt_timing_cache_enable": "1",
                "trt_timing_cache_path": "/c",
            },
        ),
        ("OPENVINO:GPU", {"cache_dir": "/c"}),
        ("CUDA", {}),
        ("CPU", {}),
    ],
)
def test_where_a_provider_keeps_what_it_builds(device: str, adds: dict[str, str]) -> None:
    (attempt,) = plan(RuntimeOptions(device=device), EVERYTHING, PC).attempts
    (_name, without), *others = attempt.providers
    assert attempt.with_cache("") == attempt.providers
    assert attempt.with_cache("/c") == ((attempt.provider, without | adds), *others)


@pytest.mark.parametrize(
    ("device", "may"), [("CPU", True), ("OPENVINO:CPU", True), ("CUDA", False), ("TENSORRT", False)]
)
def test_memory_is_bound_once_only_where_it_is_read_in_every_call(device: str, may: bool) -> None:
    (attempt,) = plan(RuntimeOptions(device=device), EVERYTHING, PC).attempts
    assert attempt.takes_bound_memory is may


@given(
    device=st.one_of(st.sampled_from(SPELLINGS), st.text(max_size=12)),
    available=st.sets(st.sampled_from(EVERYTHING)).map(lambda names: (*names, CPU)),
    allowed=st.booleans(),
    simulate=st.booleans(),
)
def test_every_plan_is_of_what_is_there_and_begins_with_what_was_asked_for_or_says_why_not(
    device: str, available: tuple[str, ...], allowed: bool, simulate: bool
) -> None:
    try:
        found = plan(RuntimeOptions(device=device, fallback=allowed, simulate=simulate), available, PC)
    except DeviceError:
        return  # what it says is in the tables above
    kinds = [one.kind for one in found.attempts]
    assert all(one.provider == one.providers[0][0] and one.provider in available for one in found.attempts)
    assert len(kinds) == len(set(kinds))
    if simulate:
        assert kinds == ["CPU"]
    elif found.passed_over or len(kinds) > 1:
        assert allowed
        assert kinds[-1] == "CPU"
    if not found.passed_over and not simulate:
        assert device.upper().startswith(kinds[0])


def test_a_fallback_is_one_sentence_with_all_reasons() -> None:
    assert fallback("TENSORRT", "CPU", ["no TensorRT", "no CUDA"]) == (
        "TENSORRT was asked for, CPU runs it: no TensorRT; no CUDA"
    )
    assert fallback("CPU", "CPU", []) == ""
