from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeserve.contracts.device import Accelerator, DeviceFacts
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve.contracts.variant import Measured, Precision, Selector, Tolerance, VariantContract
from edgeserve_devices.match import choose
from edgeserve_devices.profiles import load_profile, profile_names

SPEC = TensorSpec(name="x", datatype=Datatype.FP32, shape=(1,))


def measured(latency_ms: float, host_architecture: str = "") -> Measured:
    return Measured(
        metric="top1", rows=1, float_value=1, value=1, drop=0, drop_low=0, drop_high=0, latency_ms=latency_ms,
        float_latency_ms=1, size_bytes=1, float_size_bytes=1, host="", host_architecture=host_architecture,
        executing_device="CPU",
    )  # fmt: skip


def variant(
    target: str, *, runtime: str = "onnxruntime", latency_ms: float = 0, host: str = "", memory: int = 0,
    **selector: object,
):  # fmt: skip
    return VariantContract(
        model="digits",
        target=target,
        precision=Precision.INT8,
        runtime=runtime,
        entry="model.onnx",
        signature=Signature(inputs=(SPEC,), outputs=(SPEC,)),
        selector=Selector(**selector),
        tolerance=Tolerance(),
        measured=measured(latency_ms, host) if latency_ms else None,
        memory_bytes=memory,
    )


X86 = variant("x86-cpu", architectures=("amd64",))
ARM = variant("arm-cpu", architectures=("arm64",))
NPU = variant("intel-npu", runtime="openvino", architectures=("amd64",), accelerator="npu", accelerator_vendor="intel")
JETSON = variant("jetson-gpu", architectures=("arm64",), accelerator="gpu", accelerator_vendor="nvidia")
NULL = variant("null", runtime="null")
ALL = (NULL, X86, ARM, NPU, JETSON)


@pytest.mark.parametrize(
    ("profile", "target"),
    [
        ("raspberry-pi-zero-2-w", "arm-cpu"),
        ("raspberry-pi-4", "arm-cpu"),
        ("raspberry-pi-5", "arm-cpu"),
        ("orange-pi-5", "arm-cpu"),
        ("aws-graviton4", "arm-cpu"),
        ("arm64", "arm-cpu"),
        ("jetson-orin-nano", "jetson-gpu"),
        ("jetson-thor", "jetson-gpu"),
        ("intel-core-ultra", "intel-npu"),
        ("intel-lunar-lake", "intel-npu"),
        ("intel-n100", "x86-cpu"),
        ("x86-64", "x86-cpu"),
        ("x86-64-v2", "x86-cpu"),
    ],
)
@pytest.mark.parametrize("ordered", [True, False], ids=["with-targets", "by-itself"])
def test_every_profile_takes_the_variant_that_was_made_for_it(profile: str, target: str, ordered: bool) -> None:
    known = load_profile(profile)
    choice = choose(ALL, known.facts(), targets=known.targets if ordered else ())
    assert choice.index is not None
    assert ALL[choice.index].target == target
    assert choice.reasons[choice.index].endswith(": chosen")


@pytest.mark.parametrize("name", ["jetson-nano", "jetson-xavier-nx"])
def test_a_gpu_whose_libraries_have_no_python_that_edgeserve_takes_comes_after_the_cpu(name: str) -> None:
    known = load_profile(name)
    choice = choose(ALL, known.facts(), targets=known.targets)
    assert choice.index is not None
    assert ALL[choice.index].target == "arm-cpu"


@pytest.mark.parametrize(
    ("needed", "profiles"),
    [
        (
            ("asimddp",),
            {
                "raspberry-pi-5", "orange-pi-5", "aws-graviton2", "aws-graviton3", "aws-graviton4", "jetson-orin-nano",
                "jetson-thor",
            },
        ),
        (("i8mm", "bf16"), {"aws-graviton3", "aws-graviton4", "jetson-thor"}),
        (("sve2",), {"aws-graviton4", "jetson-thor"}),
        (("avx512_vnni|avx_vnni",), {"intel-core-ultra", "intel-n100", "intel-lunar-lake"}),
        (("avx512f",), {"x86-64-v4"}),
        (("amx_int8",), set()),
    ],
)  # fmt: skip
def test_a_variant_for_newer_instructions_fits_the_kinds_that_have_them(needed: tuple[str, ...], profiles) -> None:
    asked = {
        "raspberry-pi-3", "raspberry-pi-4", "raspberry-pi-5", "orange-pi-5", "aws-graviton2", "aws-graviton3",
        "aws-graviton4", "jetson-nano", "jetson-orin-nano", "jetson-thor", "arm64", "intel-core-ultra", "intel-n100",
        "intel-lunar-lake", "x86-64-v2", "x86-64-v3", "x86-64-v4",
    }  # fmt: skip
    contract = variant("t", cpu_features=needed)
    assert {name for name in asked if choose([contract], load_profile(name).facts()).index == 0} == profiles


@pytest.mark.parametrize(
    ("contract", "facts", "lack"),
    [
        pytest.param(ARM, {}, "it is for arm64, the device is amd64", id="architecture"),
        pytest.param(
            variant("t", architectures=("arm", "arm64")),
            {"architecture": ""},
            "it is for arm or arm64, the device is unknown",
            id="architecture-unknown",
        ),
        pytest.param(NPU, {}, "the device has no NPU", id="accelerator-absent"),
        pytest.param(
            variant("t", accelerator="gpu", accelerator_vendor="nvidia"),
            {"accelerators": (Accelerator(kind="gpu", vendor="intel"), Accelerator(kind="gpu", vendor="amd"))},
            "it needs the GPU of nvidia, the device has that of amd, intel",
            id="accelerator-of-another-vendor",
        ),
        pytest.param(
            variant("t", cpu_features=("avx2", "avx512_vnni", "amx_int8")),
            {"cpu_features": ("avx2", "fma")},
            "the CPU lacks avx512_vnni, amx_int8",
            id="cpu-feature",
        ),
        pytest.param(
            variant("t", cpu_features=("avx2", "avx512_vnni|avx_vnni")),
            {"cpu_features": ("avx2", "avx512f")},
            "the CPU lacks avx512_vnni or avx_vnni",
            id="cpu-feature-of-several",
        ),
        pytest.param(
            variant("t", cpu_features=("asimddp",)),
            {"cpu_features": ()},
            "it needs the CPU features asimddp, those of the device are not known",
            id="cpu-features-unknown",
        ),
        pytest.param(
            variant("t", runtime="openvino"), {"runtimes": ("onnxruntime",)}, "the runtime openvino is not installed",
            id="runtime",
        ),
        pytest.param(
            variant("t", min_memory_bytes=2 << 30),
            {"memory_bytes": 1 << 30},
            "it needs 2048 MiB of memory, the device has 1024 MiB",
            id="memory-asked-for",
        ),
        pytest.param(
            variant("t", memory=3 << 30),
            {"memory_bytes": 1 << 30},
            "it needs 3072 MiB of memory, the device has 1024 MiB",
            id="memory-measured",
        ),
    ],
)  # fmt: skip
def test_what_a_device_lacks_is_said(contract: VariantContract, facts: dict[str, object], lack: str) -> None:
    device = DeviceFacts(**{"architecture": "amd64", "runtimes": ("onnxruntime", "openvino"), **facts})
    choice = choose([contract], device)
    assert choice.index is None
    assert choice.reasons == (f"{contract.target} int8 ({contract.runtime}): does not fit: {lack}",)


@pytest.mark.parametrize(
    "features", [("avx2", "avx_vnni"), ("avx512_vnni", "avx2"), ("avx_vnni", "avx512_vnni", "avx2")]
)
def test_any_one_of_several_features_will_do(features: tuple[str, ...]) -> None:
    device = DeviceFacts(architecture="amd64", runtimes=("onnxruntime",), cpu_features=features)
    assert choose([variant("t", cpu_features=("avx2", "avx512_vnni|avx_vnni"))], device).index == 0


@pytest.mark.parametrize(
    ("contracts", "targets", "expected"),
    [
        pytest.param((X86, NPU), (), 1, id="npu-before-cpu"),
        pytest.param((X86, NPU), ("x86-cpu", "intel-npu"), 0, id="targets-before-accelerators"),
        pytest.param((X86, NPU), ("x86-cpu",), 0, id="a-named-target-before-one-that-is-not"),
        pytest.param((NULL, X86), (), 1, id="made-for-the-architecture-before-fit-for-any"),
        pytest.param((NULL,), (), 0, id="fit-for-any-when-nothing-else-is"),
        pytest.param(
            (variant("x86-cpu", latency_ms=5), variant("x86-cpu", latency_ms=2), variant("x86-cpu")),
            (), 1, id="the-faster-and-one-that-was-measured",
        ),
        pytest.param((X86, X86), (), 0, id="the-first-of-equals"),
    ],
)  # fmt: skip
def test_of_several_that_fit_the_best_is_taken(
    contracts: tuple[VariantContract, ...], targets: tuple[str, ...], expected: int
) -> None:
    choice = choose(contracts, load_profile("intel-core-ultra").facts(), targets=targets)
    assert choice.index == expected
    for index, reason in enumerate(choice.reasons):
        assert reason.endswith(": chosen") if index == expected else "comes first" in reason


def on_x86(target: str, latency_ms: float, host: str) -> VariantContract:
    return variant(target, architectures=("amd64",), latency_ms=latency_ms, host=host)


@pytest.mark.parametrize(
    ("contracts", "targets", "expected"),
    [
        pytest.param((on_x86("a", 9, "arm64"), on_x86("a", 1, "arm64")), (), (0, 1), id="foreign-ones-do-not-rank"),
        pytest.param((on_x86("a", 9, "amd64"), on_x86("a", 1, "amd64")), (), (1,), id="native-latencies-settle-it"),
        pytest.param((on_x86("a", 1, "arm64"), on_x86("a", 9, "amd64")), (), (1, 0), id="a-foreign-one-may-be-faster"),
        pytest.param(
            (on_x86("a", 1, ""), on_x86("a", 9, "amd64"), on_x86("a", 5, "amd64")), (), (2, 0),
            id="the-slower-of-two-native-ones-is-out",
        ),
        pytest.param((X86, X86, X86), (), (0, 1, 2), id="what-was-never-measured"),
        pytest.param((on_x86("a", 1, "arm64"), on_x86("b", 1, "arm64")), ("b", "a"), (1,), id="targets-before-all"),
        pytest.param((X86, NPU), (), (1,), id="an-accelerator-before-the-cpu"),
        pytest.param((NULL, X86), (), (1,), id="made-for-it-before-fit-for-any"),
        pytest.param((X86, ARM), (), (0,), id="what-does-not-fit-is-none"),
        pytest.param((ARM,), (), (), id="nothing-fits"),
    ],
)  # fmt: skip
def test_what_only_the_device_can_tell_apart_are_alternatives(
    contracts: tuple[VariantContract, ...], targets: tuple[str, ...], expected: tuple[int, ...]
) -> None:
    choice = choose(contracts, load_profile("intel-core-ultra").facts(), targets=targets)
    assert choice.alternatives == expected
    assert choice.index == (expected[0] if expected else None)
    for index, reason in enumerate(choice.reasons):
        assert ("unless the device measures" in reason) == (index in expected[1:])


def test_a_simulated_device_runs_what_the_machine_below_it_has() -> None:
    simulated = load_profile("intel-core-ultra").facts(simulated=True)
    without = choose([NPU, X86], DeviceFacts(**{**_fields(simulated), "runtimes": ("onnxruntime",)}))
    assert without.index == 1
    assert "openvino is not installed" in without.reasons[0]
    assert choose([NPU, X86], DeviceFacts(**{**_fields(simulated), "runtimes": ("openvino",)})).index == 0


def test_a_release_without_variants_has_no_choice() -> None:
    choice = choose([], load_profile("x86-64").facts())
    assert (choice.index, choice.reasons) == (None, ())


@given(
    st.lists(st.sampled_from(ALL), max_size=8),
    st.sampled_from(profile_names()),
    st.lists(st.sampled_from(["x86-cpu", "arm-cpu", "intel-npu", "null"]), max_size=4),
)
def test_every_variant_gets_one_line_and_at_most_one_is_chosen(
    contracts: list[VariantContract], profile: str, targets: list[str]
) -> None:
    choice = choose(contracts, load_profile(profile).facts(), targets=targets)
    assert len(choice.reasons) == len(contracts)
    assert not any("\n" in reason for reason in choice.reasons)
    chosen = [index for index, reason in enumerate(choice.reasons) if reason.endswith(": chosen")]
    assert chosen == ([] if choice.index is None else [choice.index])
    assert (choice.index is None) == all("does not fit" in reason for reason in choice.reasons)
    assert choice.alternatives[:1] == (() if choice.index is None else (choice.index,))
    assert not any("does not fit" in choice.reasons[index] for index in choice.alternatives)
    assert len({contracts[index].target for index in choice.alternatives}) <= 1


def _fields(facts: DeviceFacts) -> dict[str, object]:
    return {name: getattr(facts, name) for name in facts.__struct_fields__}
