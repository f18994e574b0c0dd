"""What is reported of the machine at hand. Read, never guessed: what cannot be read stays empty."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Final

from edgeserve import plugins
from edgeserve.contracts.device import DeviceFacts
from edgeserve_devices.probes.accelerators import accelerators
from edgeserve_devices.probes.cgroup import control_group
from edgeserve_devices.probes.cpu import cpuinfo, features, level, name, processors
from edgeserve_devices.probes.jetson import l4t
from edgeserve_devices.probes.memory import memory_bytes
from edgeserve_devices.probes.system import architecture, board, container, kernel, libc, os_name, python
from edgeserve_devices.probes.tree import Tree
from edgeserve_devices.profiles import recognise

_LIBRARIES: Final = {
    "litert": ("ai_edge_litert", "tflite_runtime"),
    "null": ("edgeserve",),
    "onnxruntime": ("onnxruntime",),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt",),
}
"""Modules of which a runtime needs one."""


def probe(root: Path = Path("/"), *, machine: str = "") -> DeviceFacts:
    """Facts of this machine; `edgeserve_devices.inventory` has all the rest.

    Args:
        root: Folder that holds `proc`, `sys`, `dev` and `etc`: of this machine, or a recorded tree.
        machine: `uname -m` of a recorded tree; empty = ask this machine, or the record. A 32-bit Python on a 64-bit
            kernel is `arm`: its wheels decide.
    """
    tree = Tree(root)
    blocks = cpuinfo(tree)
    cpu = name(blocks)
    return DeviceFacts(
        profile=recognise(board(tree), cpu),
        architecture=architecture(tree, machine),
        cpu=cpu,
        cpu_features=features(blocks),
        cpu_level=level(blocks),
        cores=processors(tree, blocks),
        memory_bytes=memory_bytes(tree, control_group(tree)),
        accelerators=tuple(each.short() for each in accelerators(tree, details=False)),
        runtimes=installed_runtimes() if tree.is_this_machine else (),
        os=os_name(tree),
        kernel=kernel(tree),
        libc=libc(tree),
        python=python(tree),
        container=container(tree),
        l4t=l4t(tree),
    )


def installed_runtimes() -> tuple[str, ...]:
    """Names of the registered runtimes whose library is installed, found without importing any."""
    return tuple(each for each in plugins.names(plugins.RUNTIMES) if _is_installed(each))


def _is_installed(runtime: str) -> bool:
    libraries = _LIBRARIES.get(runtime)
    if libraries is None:  # a stranger's plugin: only it knows what it needs, loading it will tell
        return True
    return any(map(_is_importable, libraries))


def _is_importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False
