from __future__ import annotations

import platform
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeserve.contracts.device import Accelerator
from edgeserve_devices import probe as probe_module
from edgeserve_devices.probe import installed_runtimes, probe
from edgeserve_devices.probes import system
from edgeserve_devices.profiles import load_profile

TREES = Path(__file__).parent / "trees"
NPU = Accelerator(kind="npu", vendor="intel", name="Intel NPU")


@pytest.mark.parametrize(
    ("tree", "machine", "profile", "architecture", "cpu", "cores", "accelerators", "os_name"),
    [
        ("raspberry-pi-5", "aarch64", "raspberry-pi-5", "arm64", "Cortex-A76", 4, (), "Debian GNU/Linux 12 (bookworm)"),
        ("raspberry-pi-4", "aarch64", "raspberry-pi-4", "arm64", "Cortex-A72", 4, (), "Debian GNU/Linux 12 (bookworm)"),
        (
            "raspberry-pi-4-32-bit",
            "armv7l",
            "raspberry-pi-4",
            "arm",
            "Cortex-A72",
            4,
            (),
            "Raspbian GNU/Linux 11 (bullseye)",
        ),
        (
            "jetson-orin-nano",
            "aarch64",
            "jetson-orin-nano",
            "arm64",
            "Cortex-A78AE",
            6,
            (Accelerator(kind="gpu", vendor="nvidia", name="tegra234"),),
            "Ubuntu 22.04.4 LTS",
        ),
        (
            "orange-pi-5",
            "aarch64",
            "orange-pi-5",
            "arm64",
            "Cortex-A55 + Cortex-A76",
            8,
            (Accelerator(kind="npu", vendor="rockchip", name="RKNPU"),),
            "Armbian 25.2.1 bookworm",
        ),
        (
            "intel-core-ultra",
            "x86_64",
            "intel-core-ultra",
            "amd64",
            "Intel(R) Core(TM) Ultra 7 155U",
            14,
            (NPU, Accelerator(kind="gpu", vendor="intel")),
            "Ubuntu 24.04.1 LTS",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_board_is_read_as_what_it_is(
    tree: str,
    machine: str,
    profile: str,
    architecture: str,
    cpu: str,
    cores: int,
    accelerators: tuple[Accelerator, ...],
    os_name: str,
) -> None:
    facts = probe(TREES / tree, machine=machine)
    assert (facts.profile, facts.architecture, facts.cpu, facts.cores) == (profile, architecture, cpu, cores)
    assert facts.accelerators == accelerators
    assert facts.os == os_name
    assert not facts.simulated


@pytest.mark.parametrize("name", ["raspberry-pi-4", "raspberry-pi-5", "jetson-orin-nano", "intel-core-ultra"])
def test_a_profile_promises_nothing_that_its_board_does_not_have(name: str) -> None:
    machine = "x86_64" if name.startswith("intel") else "aarch64"
    board, promised = probe(TREES / name, machine=machine), load_profile(name)
    assert board.architecture == promised.architecture
    assert set(promised.cpu_features) <= set(board.cpu_features)
    kinds = {(each.kind, each.vendor) for each in board.accelerators}
    assert {(each.kind, each.vendor) for each in promised.accelerators} <= kinds
    assert promised.memory_bytes <= 1.15 * board.memory_bytes, "the kernel keeps a part of what is sold"


def test_only_flags_that_matter_for_inference_are_kept() -> None:
    features = probe(TREES / "intel-core-ultra", machine="x86_64").cpu_features
    assert {"avx2", "avx_vnni", "fma", "f16c"} <= set(features)
    assert not {"smep", "fpu", "vmx", "aes", "clflush"} & set(features)


def test_only_flags_that_every_core_has_are_kept(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("processor: 0\nflags: avx avx2\n\nprocessor: 1\nflags: avx2 sse\n")
    assert probe(tmp_path, machine="x86_64").cpu_features == ("avx2",)


def test_of_an_empty_tree_nothing_is_guessed(tmp_path: Path) -> None:
    facts = probe(tmp_path, machine="riscv64")
    assert (facts.profile, facts.architecture, facts.cpu, facts.os) == ("", "", "", "")
    assert (facts.cpu_features, facts.cores, facts.memory_bytes, facts.accelerators) == ((), 0, 0, ())


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param({"sys/class/accel/accel0/device/uevent": "DRIVER=habanalabs\n"}, (), id="another-accelerator"),
        pytest.param({"sys/class/accel/accel0/device/vendor": "0x8086\n"}, (), id="npu-without-driver"),
        pytest.param({"proc/device-tree/compatible": "nvidia,tegra234\0"}, (), id="tegra-without-gpu-node"),
        pytest.param({"dev/nvidia0": ""}, (), id="nvidia-node-without-driver"),
        pytest.param(
            {
                "dev/nvidia0": "",
                "proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t\t NVIDIA GeForce RTX 3090\nIRQ: 1\n",
            },
            (Accelerator(kind="gpu", vendor="nvidia", name="NVIDIA GeForce RTX 3090"),),
            id="nvidia-card",
        ),
        pytest.param(
            {"sys/class/drm/renderD128/device/vendor": "0x1002\n"},
            (Accelerator(kind="gpu", vendor="amd"),),
            id="amd-card",
        ),
        pytest.param({"sys/class/drm/renderD128/device/vendor": "0x1af4\n"}, (), id="virtual-display"),
        pytest.param(
            {"sys/class/accel/accel0/device/uevent": "DRIVER=amdxdna\n"},
            (Accelerator(kind="npu", vendor="amd", name="AMD XDNA"),),
            id="amd-npu",
        ),
        pytest.param(
            {"sys/class/accel/accel0/device/uevent": "DRIVER=rocket\n"},
            (Accelerator(kind="npu", vendor="rockchip", name="RKNPU"),),
            id="rockchip-mainline",
        ),
        pytest.param(
            {"sys/class/hailo_chardev/hailo0/device_id": "1e60:2864\n"},
            (Accelerator(kind="npu", vendor="hailo", name="Hailo-8"),),
            id="hailo",
        ),
        pytest.param(
            {"sys/class/apex/apex_0/driver_version": "1.2\n"},
            (Accelerator(kind="npu", vendor="google", name="Coral Edge TPU"),),
            id="coral-pcie",
        ),
        pytest.param(
            {"sys/bus/usb/devices/2-1/idVendor": "18d1\n", "sys/bus/usb/devices/2-1/idProduct": "9302\n"},
            (Accelerator(kind="npu", vendor="google", name="Coral Edge TPU (USB)"),),
            id="coral-usb",
        ),
        pytest.param(
            {"sys/bus/usb/devices/2-1/idVendor": "18d1\n", "sys/bus/usb/devices/2-1/idProduct": "4ee7\n"},
            (),
            id="a-telephone-of-the-same-maker",
        ),
    ],
)
def test_an_accelerator_counts_when_its_driver_is_there(
    tmp_path: Path, files: dict[str, str], expected: tuple[Accelerator, ...]
) -> None:
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert probe(tmp_path, machine="x86_64").accelerators == expected


@pytest.mark.parametrize(
    ("bits", "kernel", "expected"),
    [(4, "aarch64", "arm"), (8, "aarch64", "arm64"), (4, "x86_64", ""), (8, "x86_64", "amd64"), (4, "armv7l", "arm")],
)
def test_a_32_bit_python_counts_as_what_its_wheels_are(monkeypatch, bits: int, kernel: str, expected: str) -> None:
    monkeypatch.setattr(system.struct, "calcsize", lambda _format: bits)
    monkeypatch.setattr(system.platform, "machine", lambda: kernel)
    assert probe().architecture == expected


def test_of_a_record_only_its_own_kernel_says_the_architecture() -> None:
    assert probe(TREES / "raspberry-pi-4").architecture == ""
    assert probe(TREES / "raspberry-pi-5").architecture == "arm64"
    assert probe(TREES / "intel-core-ultra").architecture == "amd64"


def test_a_record_is_not_said_to_have_the_software_of_the_machine_that_reads_it() -> None:
    facts = probe(TREES / "raspberry-pi-5")
    assert (facts.python, facts.libc, facts.runtimes) == ("", "", ())
    assert facts.kernel == "6.12.47+rpt-rpi-2712"


@pytest.mark.parametrize(("tree", "mebibytes"), [("container-cgroup-v2", 512), ("container-cgroup-v1", 256)])
def test_in_a_container_the_limit_of_its_memory_counts(tree: str, mebibytes: int) -> None:
    facts = probe(TREES / tree)
    assert facts.memory_bytes == mebibytes << 20
    assert facts.container == "docker"


def test_software_that_engines_and_wheels_depend_on_is_reported() -> None:
    assert probe(TREES / "jetson-orin-nano").l4t == "36.4.3"
    assert probe(TREES / "intel-core-ultra").cpu_level == "x86-64-v3"
    assert probe(TREES / "orange-pi-5").cpu == "Cortex-A55 + Cortex-A76"
    assert probe().libc == " ".join(platform.libc_ver()).strip()


@given(st.binary(max_size=300), st.binary(max_size=100), st.binary(max_size=100))
def test_whatever_a_kernel_says_the_probe_answers(
    tmp_path_factory, cpuinfo: bytes, model: bytes, os_name: bytes
) -> None:
    root = tmp_path_factory.mktemp("tree")
    for name, content in (("proc/cpuinfo", cpuinfo), ("proc/device-tree/model", model), ("etc/os-release", os_name)):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    assert probe(root, machine="x86_64").architecture == "amd64"


def test_this_machine_is_read() -> None:
    facts = probe()
    assert facts.cores > 0
    assert facts.memory_bytes > 1 << 26
    assert facts.python == platform.python_version()
    assert "onnxruntime" in facts.runtimes


def test_runtimes_are_found_without_importing_them() -> None:
    here = {name for name in ("onnxruntime", "openvino") if find_spec(name)}
    assert "onnxruntime" in here
    assert here <= set(installed_runtimes())
    script = (
        "import platform, sys; before = set(sys.modules)\n"  # Python 3.10's platform imports subprocess
        "from edgeserve_devices.probe import probe; probe(); new = set(sys.modules) - before\n"
        "print([m for m in ('onnxruntime', 'openvino', 'numpy', 'typer', 'subprocess') if m in new])"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_a_runtime_whose_library_is_not_installed_is_left_out(monkeypatch) -> None:
    monkeypatch.setitem(probe_module._LIBRARIES, "openvino", ("a_package_that_nobody_has",))
    assert "openvino" not in installed_runtimes()
