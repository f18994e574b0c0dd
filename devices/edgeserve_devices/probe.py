"""What the machine at hand says of itself. Read, never guessed: what cannot be read stays empty."""

from __future__ import annotations

import importlib.util
import platform
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from edgeserve import plugins
from edgeserve.contracts.device import Accelerator, DeviceFacts
from edgeserve_devices.profiles import recognise

_ARCHITECTURES: Final = {
    "x86_64": "amd64",
    "amd64": "amd64",
    "aarch64": "arm64",
    "arm64": "arm64",
    "armv7l": "arm",
    "armv6l": "arm",
}
_ARM_PARTS: Final = {
    "0xd03": "Cortex-A53",
    "0xd04": "Cortex-A35",
    "0xd05": "Cortex-A55",
    "0xd07": "Cortex-A57",
    "0xd08": "Cortex-A72",
    "0xd09": "Cortex-A73",
    "0xd0a": "Cortex-A75",
    "0xd0b": "Cortex-A76",
    "0xd0c": "Neoverse-N1",
    "0xd0d": "Cortex-A77",
    "0xd40": "Neoverse-V1",
    "0xd41": "Cortex-A78",
    "0xd42": "Cortex-A78AE",
    "0xd49": "Neoverse-N2",
}
"""Part numbers of implementer 0x41 (Arm) in MIDR_EL1, from the Technical Reference Manuals, as lscpu has them."""
_NUMERIC: Final = re.compile(
    r"(?:sse|ssse|avx|amx|fma|f16c|bmi|popcnt|neon|vfp|asimd|fp\Z|fphp|sve|sme(?!p)|i8mm|bf16|half|crc32|atomics)"
)
"""Flags that matter to kernels of neural networks; all of them would make every report 1 KB longer."""
_DRM_VENDORS: Final = {"0x8086": "intel", "0x1002": "amd", "0x10de": "nvidia"}
_RUNTIME_PACKAGES: Final = {"onnxruntime": "onnxruntime", "openvino": "openvino", "null": "edgeserve"}
_MOST_BYTES: Final = 1 << 20


def probe(root: Path = Path("/"), *, machine: str = "") -> DeviceFacts:
    """Facts of this machine.

    Args:
        root: Folder that holds `proc`, `sys`, `dev` and `etc`: of this machine, or a recorded tree.
        machine: `uname -m` of a recorded tree; empty = ask this machine. A 32-bit Python on a 64-bit kernel is `arm`:
            its wheels decide.
    """
    cpuinfo = _blocks(_text(root / "proc/cpuinfo"))
    board = _text(root / "proc/device-tree/model").rstrip("\0\n")
    cpu = _cpu(cpuinfo)
    return DeviceFacts(
        profile=recognise(board, cpu),
        architecture=_architecture(machine),
        cpu=cpu,
        cpu_features=_features(cpuinfo),
        cores=sum("processor" in block for block in cpuinfo),
        memory_bytes=_memory_bytes(root),
        accelerators=tuple(_accelerators(root)),
        runtimes=installed_runtimes(),
        os=_os_name(root),
        python=platform.python_version(),
    )


def installed_runtimes() -> tuple[str, ...]:
    """Names of the registered runtimes whose library is installed, found without importing any."""
    return tuple(name for name in plugins.names(plugins.RUNTIMES) if _is_installed(name))


def _is_installed(runtime: str) -> bool:
    package = _RUNTIME_PACKAGES.get(runtime)
    if package is None:  # a stranger's plugin: only it knows what it needs, loading it will tell
        return True
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def _architecture(machine: str) -> str:
    known = _ARCHITECTURES.get((machine or platform.machine()).lower(), "")
    narrow = not machine and struct.calcsize("P") == 4
    return {"arm64": "arm", "amd64": ""}.get(known, known) if narrow else known


def _cpu(blocks: list[dict[str, str]]) -> str:
    """Name of the CPU: in words on x86, by part numbers on Arm; all kinds of a mixed one."""
    for block in blocks:
        name = block.get("model name", "")
        if name and not name.lower().startswith("armv"):  # 32-bit Arm kernels say "ARMv7 Processor" here
            return name
    parts = {block["CPU part"] for block in blocks if block.get("CPU implementer") == "0x41" and "CPU part" in block}
    return " + ".join(sorted(_ARM_PARTS[part] for part in parts)) if parts and parts <= _ARM_PARTS.keys() else ""


def _features(blocks: list[dict[str, str]]) -> tuple[str, ...]:
    """Flags that all cores have, in the first one's order."""
    lists = [(block.get("flags") or block.get("Features") or "").split() for block in blocks if "processor" in block]
    if not lists:
        return ()
    common = set(lists[0]).intersection(*lists[1:])
    return tuple(flag for flag in lists[0] if flag in common and _NUMERIC.match(flag))


def _memory_bytes(root: Path) -> int:
    found = re.search(r"^MemTotal:\s+(\d+) kB$", _text(root / "proc/meminfo"), re.MULTILINE)
    return int(found.group(1)) * 1024 if found else 0


def _os_name(root: Path) -> str:
    text = _text(root / "etc/os-release") or _text(root / "usr/lib/os-release")
    found = re.search(r"^PRETTY_NAME=(.*)$", text, re.MULTILINE)
    return found.group(1).strip().strip("\"'") if found else ""


def _accelerators(root: Path) -> Iterator[Accelerator]:
    """NPU and GPUs whose kernel driver is bound: without it no runtime can use them."""
    for device in sorted((root / "sys/class/accel").glob("accel*")):
        if "DRIVER=intel_vpu" in _text(device / "device/uevent").split():
            yield Accelerator(kind="npu", vendor="intel", name="Intel NPU")
            break
    yield from _nvidia(root)
    for device in sorted((root / "sys/class/drm").glob("renderD*")):
        vendor = _DRM_VENDORS.get(_text(device / "device/vendor").strip(), "")
        if vendor in ("intel", "amd"):  # NVIDIA's compute driver is another one, see above
            yield Accelerator(kind="gpu", vendor=vendor)


def _nvidia(root: Path) -> Iterator[Accelerator]:
    compatible = _text(root / "proc/device-tree/compatible").split("\0")
    tegra = [name.removeprefix("nvidia,") for name in compatible if name.startswith("nvidia,tegra")]
    if tegra and any((root / "dev" / node).exists() for node in ("nvgpu/igpu0", "nvhost-gpu")):
        yield Accelerator(kind="gpu", vendor="nvidia", name=tegra[0])
    elif (root / "dev/nvidia0").exists():
        for card in sorted((root / "proc/driver/nvidia/gpus").glob("*/information")):
            found = re.search(r"^Model:\s*(.*)$", _text(card), re.MULTILINE)
            yield Accelerator(kind="gpu", vendor="nvidia", name=found.group(1).strip() if found else "")


def _blocks(text: str) -> list[dict[str, str]]:
    """`/proc/cpuinfo` as one mapping for each paragraph."""
    blocks = []
    for paragraph in text.split("\n\n"):
        pairs = (line.partition(":") for line in paragraph.splitlines() if ":" in line)
        blocks.append({key.strip(): value.strip() for key, _colon, value in pairs})
    return blocks


def _text(path: Path) -> str:
    """Content of a small file of the kernel; empty when it is not there or may not be read."""
    try:
        with path.open("rb") as file:
            return file.read(_MOST_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
