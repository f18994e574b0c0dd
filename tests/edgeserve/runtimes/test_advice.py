"""Which package gives a runtime, by machine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edgeserve import plugins
from edgeserve.contracts.errors import MissingLibraryError
from edgeserve.runtimes.advice import Machine, package_for, this_machine
from edgeserve.runtimes.onnx_providers import PROVIDERS
from edgeserve.runtimes.variant import find_runtime

PC, ARM, OLD_ARM = (Machine(architecture=name) for name in ("amd64", "arm64", "arm"))
JETSON = Machine(architecture="arm64", tegra=True)


@pytest.mark.parametrize(
    ("runtime", "device", "machine", "do"),
    [
        ("onnxruntime", "", PC, "edgeserve[onnx]"),
        ("onnxruntime", "", ARM, "edgeserve[onnx]"),
        ("onnxruntime", "", OLD_ARM, "no package is known that gives onnxruntime on arm"),
        ("onnxruntime", "", JETSON, "NVIDIA's Jetson package index"),
        ("onnxruntime", "CUDA", ARM, "for servers"),
        ("openvino", "", PC, "pip install openvino"),
        ("openvino", "", ARM, "the CPU alone"),
        ("openvino", "", JETSON, "no package is known that gives openvino on jetpack"),
        ("litert", "", ARM, "ai-edge-litert"),
        ("tensorrt", "", PC, "NVIDIA's own package index"),
        ("tensorrt", "", JETSON, "python3-libnvinfer"),
        ("tensorrt", "", OLD_ARM, "no package is known"),
    ],
)
def test_the_package_fits_the_machine(runtime: str, device: str, machine: Machine, do: str) -> None:
    assert do in package_for(runtime, device, machine)


@pytest.mark.parametrize("machine", [PC, ARM, OLD_ARM, JETSON], ids=["pc", "arm", "old arm", "jetson"])
def test_every_runtime_and_provider_has_an_answer_without_the_name_of_a_host(machine: Machine) -> None:
    ours = set(plugins.names(plugins.RUNTIMES)) - {"null", "python"}  # which are always there
    asked = [(runtime, "") for runtime in ours] + [("onnxruntime", kind) for kind in PROVIDERS]
    for runtime, device in asked:
        answer = package_for(runtime, device, machine)
        assert answer, (runtime, device)
        assert not re.search(r"https?:|\w\.(com|org|dev|io)\b", answer)


def test_a_strangers_runtime_gets_no_guess() -> None:
    assert package_for("stranger", "", PC) == ""


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("etc/nv_tegra_release", b"# R36 (release), REVISION: 4.3"),
        ("proc/device-tree/compatible", b"nvidia,p3768-0000+p3767-0005\0nvidia,tegra234\0"),
    ],
)
def test_a_jetson_is_known_by_its_release_or_its_device_tree(tmp_path: Path, file: str, content: bytes) -> None:
    assert not this_machine(tmp_path).tegra
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_bytes(content)
    assert this_machine(tmp_path).tegra


def test_a_device_tree_of_another_board_is_no_jetson(tmp_path: Path) -> None:
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/compatible").write_bytes(b"raspberrypi,5-model-b\0brcm,bcm2712\0")
    assert not this_machine(tmp_path).tegra


@pytest.mark.parametrize(
    ("name", "hint"),
    [("openvino", package_for("openvino", "", this_machine())), ("stranger", "pip install 'edgeserve[openvino]'")],
)
def test_a_runtime_without_its_library_says_where_to_get_it_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, hint: str
) -> None:
    """A stranger's distribution comes first, and its runtime needs a library that is not there."""
    info = tmp_path / "aaa-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: aaa\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[edgeserve.runtimes]\n{name} = aaa_runtime:Runtime\n")
    (tmp_path / "aaa_runtime.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'openvino'\", name='openvino')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingLibraryError, match="needs openvino") as caught:
        find_runtime(name)
    assert caught.value.hint == hint
