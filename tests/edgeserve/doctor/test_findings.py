from __future__ import annotations

import dataclasses

import pytest

from edgeserve.contracts.limits import GIB
from edgeserve.doctor.findings import Environment, Requirement, Verdict, examine, is_broken, version_key
from edgeserve.runtimes.advice import Machine

HEALTHY = Environment(
    python=(3, 11, 7),
    pointer_bits=64,
    edgeserve="0.1.0 on Linux x86_64",
    packages={"numpy": "2.4.6", "onnxruntime": "1.32.0", "paho-mqtt": "2.2.0"},
    extras={
        "onnx": (Requirement(package="numpy", minimum="1.26"), Requirement(package="onnxruntime", minimum="1.20")),
        "openvino": (Requirement(package="numpy"), Requirement(package="openvino")),
    },
    mosquitto="2.0.11",
    mosquitto_path="/usr/sbin/mosquitto",
    folder="/data",
    free_bytes=10 * GIB,
    now=2_000_000.0,
    installed_at=1_000_000.0,
)


def test_a_healthy_machine_has_nothing_to_do_but_what_is_not_installed() -> None:
    findings = examine(HEALTHY)
    assert not is_broken(findings)
    assert {finding.subject for finding in findings if finding.hint} == {"extra openvino"}
    assert next(finding for finding in findings if finding.subject == "extra openvino").verdict is Verdict.ABSENT


@pytest.mark.parametrize(
    ("change", "subject", "verdict", "hint"),
    [
        pytest.param({"python": (3, 9, 2)}, "python", Verdict.BROKEN, "3.10", id="old-python"),
        pytest.param({"pointer_bits": 32}, "python", Verdict.WARNING, "64-bit system", id="32-bit-python"),
        pytest.param(
            {"packages": {"numpy": "1.20.3", "onnxruntime": "1.32.0"}},
            "extra onnx",
            Verdict.BROKEN,
            "pip install 'edgeserve[onnx]'",
            id="package-too-old",
        ),
        pytest.param(
            {"import_errors": {"onnxruntime": "ImportError: libx.so"}},
            "extra onnx",
            Verdict.BROKEN,
            "--force-reinstall",
            id="package-cannot-be-imported",
        ),
        pytest.param(
            {"packages": {"numpy": "2.0"}}, "extra onnx", Verdict.ABSENT, "edgeserve[onnx]", id="half-an-extra"
        ),
        pytest.param(
            {"packages": {"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.1"}},
            "onnxruntime and onnxruntime-gpu",
            Verdict.BROKEN,
            "pip uninstall onnxruntime onnxruntime-gpu",
            id="onnxruntime-twice",
        ),
        pytest.param(
            {"packages": {"onnxruntime": "1.24.1", "onnxruntime-openvino": "1.24.1"}},
            "onnxruntime and onnxruntime-openvino",
            Verdict.BROKEN,
            "pip uninstall",
            id="onnxruntime-for-openvino",
        ),
        pytest.param(
            {"packages": {"tflite-runtime": "2.14.0", "numpy": "2.0.1"}},
            "tflite-runtime",
            Verdict.BROKEN,
            "ai-edge-litert",
            id="tflite-with-numpy-2",
        ),
        pytest.param(
            {"packages": {"tflite-runtime": "2.14.0", "numpy": "2.0.1", "ai-edge-litert": "2.3.0"}},
            "tflite-runtime",
            Verdict.WARNING,
            "pip uninstall tflite-runtime",
            id="tflite-with-numpy-2-beside-its-successor",
        ),
        pytest.param(
            {"packages": {"onnx2tf": "1.28.8"}},
            "onnx2tf here",
            Verdict.WARNING,
            "pip uninstall onnx2tf",
            id="onnx2tf-inside",
        ),
        pytest.param(
            {"packages": {"ai-edge-quantizer": "0.10"}},
            "onnx2tf",
            Verdict.ABSENT,
            "install python3.12",
            id="no-python-3.12",
        ),
        pytest.param(
            {"packages": {"ai-edge-quantizer": "0.10"}, "onnx2tf_python": "/usr/bin/python3.12"},
            "onnx2tf",
            Verdict.ABSENT,
            "makes it with /usr/bin/python3.12",
            id="onnx2tf-not-made-yet",
        ),
        pytest.param(
            {"packages": {"ai-edge-quantizer": "0.10"}, "onnx2tf_error": "/x/python has no onnx2tf, 2.6.9 is needed"},
            "onnx2tf",
            Verdict.WARNING,
            "EDGESERVE_ONNX2TF_PYTHON",
            id="onnx2tf-broken",
        ),
        pytest.param(
            {
                "packages": {"tensorrt": "11.4.0", "tensorrt-cu13": "11.4.0", "tensorrt-cu13-libs": "11.4.0"},
                "jetson": True,
            },
            "tensorrt",
            Verdict.BROKEN,
            "pip uninstall tensorrt tensorrt-cu13 tensorrt-cu13-libs",
            id="tensorrt-of-pypi-on-jetson",
        ),
        pytest.param(
            {"packages": {"tensorrt": "11.4.0"}, "import_errors": {"tensorrt": "ImportError: libnvinfer.so.11"}},
            "tensorrt",
            Verdict.BROKEN,
            "pip uninstall tensorrt",
            id="tensorrt-placeholder",
        ),
        pytest.param(
            {"packages": {"onnxruntime-gpu": "1.31.1"}, "jetson": True},
            "onnxruntime-gpu",
            Verdict.WARNING,
            "NVIDIA builds",
            id="onnxruntime-gpu-of-pypi-on-jetson",
        ),
        pytest.param(
            {"mosquitto_error": "the MQTT broker mosquitto is not installed"},
            "mosquitto",
            Verdict.ABSENT,
            "apt install mosquitto",
            id="no-mosquitto",
        ),
        pytest.param({"mosquitto": "1.6.9"}, "mosquitto", Verdict.BROKEN, "2.0 or newer", id="old-mosquitto"),
        pytest.param(
            {"npu_driver": True, "npu_accessible": False}, "intel npu", Verdict.WARNING, "render", id="npu-closed"
        ),
        pytest.param(
            {"npu_driver": True, "npu_accessible": True, "packages": {"openvino": "2026.4.1"}},
            "intel npu",
            Verdict.WARNING,
            "linux-npu-driver",
            id="npu-without-compiler",
        ),
        pytest.param({"free_bytes": 1 << 20}, "disk", Verdict.BROKEN, "downloads nothing", id="full-disk"),
        pytest.param({"free_bytes": GIB // 2}, "disk", Verdict.WARNING, "two releases", id="low-disk"),
        pytest.param({"now": 0.0}, "clock", Verdict.WARNING, "NTP", id="clock-at-1970"),
    ],
)
def test_a_trap_is_found_and_told_how_to_leave(
    change: dict[str, object], subject: str, verdict: Verdict, hint: str
) -> None:
    findings = examine(dataclasses.replace(HEALTHY, **change))
    found = next(finding for finding in findings if finding.subject == subject)
    assert found.verdict is verdict
    assert hint in found.hint
    assert is_broken(findings) == (verdict is Verdict.BROKEN)


@pytest.mark.parametrize(
    "packages",
    [
        pytest.param({"tflite-runtime": "2.14.0", "numpy": "1.26.4"}, id="tflite-with-numpy-1"),
        pytest.param({"onnxruntime-gpu": "1.31.1", "numpy": "2.0"}, id="onnxruntime-for-gpu-alone"),
        pytest.param({"tensorrt": "10.3.0"}, id="tensorrt-of-jetpack"),
    ],
)
def test_what_works_is_no_trap(packages: dict[str, str]) -> None:
    assert not is_broken(examine(dataclasses.replace(HEALTHY, packages=packages)))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"packages": {"ai-edge-quantizer": "0.10"}, "onnx2tf": "2.6.9"}, id="onnx2tf-ready"),
        pytest.param({"packages": {"tensorrt": "10.3.0"}, "jetson": True}, id="jetpack's-tensorrt"),
        pytest.param(
            {"packages": {"onnxruntime-gpu": "1.23.0"}, "jetson": True, "tensorrt_provider": True}, id="nvidia's-wheel"
        ),
        pytest.param({"packages": {"numpy": "2.0"}}, id="nothing-of-it"),
    ],
)
def test_converters_and_accelerators_that_work_have_no_hint(change: dict[str, object]) -> None:
    findings = examine(dataclasses.replace(HEALTHY, extras={}, **change))
    assert [finding for finding in findings if finding.hint] == []


def test_a_package_for_other_platforms_is_not_missed() -> None:
    extras = {"agent": (Requirement(package="paho-mqtt"), Requirement(package="uvloop", conditional=True))}
    findings = examine(dataclasses.replace(HEALTHY, extras=extras))
    assert next(finding for finding in findings if finding.subject == "extra agent").verdict is Verdict.OK


@pytest.mark.parametrize(
    ("version", "key"),
    [("2.0.11", (2, 0, 11)), ("2.1rc1", (2, 1)), ("1.32.0+cpu", (1, 32, 0)), ("unknown", ()), ("", ())],
)
def test_versions_compare_by_their_numbers(version: str, key: tuple[int, ...]) -> None:
    assert version_key(version) == key


JETSON = Machine(architecture="arm64", tegra=True)


@pytest.mark.parametrize(
    ("change", "subject", "do"),
    [
        ({"runtimes": {"openvino": False}}, "runtime openvino", "pip install openvino"),
        ({"runtimes": {"tensorrt": False}, "machine": JETSON}, "runtime tensorrt", "python3-libnvinfer"),
        ({"runtimes": {"onnxruntime": True}, "nvidia_driver": True}, "runtime onnxruntime", "onnxruntime-gpu"),
        (
            {"runtimes": {"onnxruntime": True}, "nvidia_driver": True, "machine": JETSON},
            "runtime onnxruntime",
            "NVIDIA's Jetson package index",
        ),
    ],
    ids=["openvino on a PC", "tensorrt on a Jetson", "a GPU in a PC", "the GPU of a Jetson"],
)
def test_a_runtime_or_provider_that_is_missing_names_its_package(change: dict, subject: str, do: str) -> None:
    findings = examine(dataclasses.replace(HEALTHY, **change))
    (found,) = [finding for finding in findings if finding.subject == subject]
    assert found.verdict is Verdict.ABSENT
    assert do in found.hint
    assert not is_broken(findings)


@pytest.mark.parametrize(
    "change",
    [
        {"runtimes": {"onnxruntime": True, "openvino": True, "null": True, "stranger": False}},
        {"runtimes": {"onnxruntime": True}, "nvidia_driver": True, "providers": ("cuda", "tensorrt")},
        {"runtimes": {"onnxruntime": True}, "nvidia_driver": False},
    ],
    ids=["all there", "a GPU that can be used", "no GPU"],
)
def test_what_is_there_or_a_strangers_gets_no_advice(change: dict) -> None:
    findings = examine(dataclasses.replace(HEALTHY, **change))
    assert [finding.subject for finding in findings if finding.subject.startswith("runtime ")] == []
