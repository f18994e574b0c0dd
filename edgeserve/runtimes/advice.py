"""Which package, and from where, gives a runtime or a provider on this kind of device: a table from words to words.

The answer differs by architecture, and on NVIDIA's Jetson (JetPack) from other ARM machines: packages of the same name
are built for servers there. Where a cell is empty no package is known, and the advice says so.
Which wheels PyPI has was asked with pip (November 2026); JetPack's and NVIDIA's own were not tried: unverified.
"""

from __future__ import annotations

import contextlib
import platform
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_ARCHITECTURES: Final = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
JETPACK: Final = "jetpack"
"""Kind of machine beside the architectures, whose packages it cannot use."""
_ONE_ONLY: Final = "pip uninstall onnxruntime first: all its packages write into one folder"
_JETSON_WHEEL: Final = (
    "on JetPack it is in the onnxruntime-gpu wheel of NVIDIA's Jetson package index, built for each JetPack "
    f"({_ONE_ONLY})"
)

_PACKAGES: Final[dict[tuple[str, str], dict[str, str]]] = {
    ("onnxruntime", "CPU"): {
        "amd64": "pip install 'edgeserve[onnx]' (onnxruntime of PyPI)",
        "arm64": "pip install 'edgeserve[onnx]' (onnxruntime of PyPI)",
        JETPACK: f"pip install 'edgeserve[onnx]' for the CPU alone; with the GPU, {_JETSON_WHEEL}",
    },
    ("onnxruntime", "CUDA"): {
        "amd64": f"pip install 'onnxruntime-gpu[cuda,cudnn]' of PyPI, and NVIDIA's driver ({_ONE_ONLY})",
        "arm64": f"pip install onnxruntime-gpu of PyPI, which on ARM is for servers with CUDA ({_ONE_ONLY})",
        JETPACK: _JETSON_WHEEL,
    },
    ("onnxruntime", "TENSORRT"): {
        "amd64": "pip install 'onnxruntime-gpu[cuda,cudnn]' of PyPI, and the TensorRT of its version from NVIDIA's own "
        f"package index ({_ONE_ONLY})",
        JETPACK: _JETSON_WHEEL,
    },
    ("onnxruntime", "OPENVINO"): {
        "amd64": f"pip install onnxruntime-openvino of PyPI ({_ONE_ONLY}), or use the runtime openvino",
    },
    ("onnxruntime", "XNNPACK"): {},
    ("onnxruntime", "ACL"): {},
    ("onnxruntime", "DML"): {"amd64": f"on Windows pip install onnxruntime-directml of PyPI ({_ONE_ONLY})"},
    ("onnxruntime", "COREML"): {"arm64": "on macOS it is in the onnxruntime of PyPI; Linux has none"},
    ("openvino", ""): {
        "amd64": "pip install openvino of PyPI (2025.2 or newer); its GPU and NPU also need Intel's drivers",
        "arm64": "pip install openvino of PyPI (2025.2 or newer), which on ARM has the CPU alone",
    },
    ("litert", ""): {
        "amd64": "pip install ai-edge-litert of PyPI",
        "arm64": "pip install ai-edge-litert of PyPI",
        JETPACK: "pip install ai-edge-litert of PyPI, which has the CPU alone",
    },
    ("tensorrt", ""): {
        "amd64": "pip install tensorrt from NVIDIA's own package index (PyPI's only points there), and NVIDIA's driver",
        "arm64": "TensorRT for ARM servers comes from NVIDIA's own package index",
        JETPACK: "apt install python3-libnvinfer from JetPack's package archive, and a Python environment that sees it "
        "(venv --system-site-packages)",
    },
}
_NONE: Final = {
    ("onnxruntime", "XNNPACK"): "no package has it: build onnxruntime from source with --use_xnnpack",
    ("onnxruntime", "ACL"): "no package has it: build onnxruntime 1.2x from source with --use_acl (newer ones may have "
    "dropped it)",
}


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Which packages run here."""

    architecture: str
    """In OCI words: `amd64`, `arm64`, `arm`."""
    tegra: bool = False
    """One of NVIDIA's Jetsons."""


def package_for(runtime: str, device: str, machine: Machine) -> str:
    """Which package gives a runtime, or a provider of ONNX Runtime, on a machine: one sentence.

    Args:
        runtime: As registered in the entry-point group `edgeserve.runtimes`.
        device: Kind of device of ONNX Runtime, such as `CUDA`; empty for all others.
        machine: Where it is to run.

    Returns:
        What to do, or that nothing is known to do; empty for a runtime that is not in the table.
    """
    key = (runtime, device or ("CPU" if runtime == "onnxruntime" else ""))
    cells = _PACKAGES.get(key)
    if cells is None:
        return ""
    kind = JETPACK if machine.tegra else machine.architecture
    if kind in cells:
        return cells[kind]
    name = f"{runtime}'s {device} provider" if device and device != "CPU" else runtime
    return _NONE.get(key, f"no package is known that gives {name} on {kind}")


def this_machine(root: Path = Path("/")) -> Machine:
    """The machine at hand; `root` holds `etc` and `proc` of it.

    A 32-bit Python on a 64-bit kernel is `arm`: its packages decide.
    """
    architecture = _ARCHITECTURES.get(platform.machine().lower(), "arm")
    if architecture == "arm64" and struct.calcsize("P") == 4:
        architecture = "arm"
    tegra = (root / "etc/nv_tegra_release").exists()
    with contextlib.suppress(OSError):
        tegra = tegra or b"nvidia,tegra" in (root / "proc/device-tree/compatible").read_bytes()
    return Machine(architecture=architecture, tegra=tegra)
