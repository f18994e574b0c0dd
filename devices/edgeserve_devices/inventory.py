"""All that a machine says of itself: what it is, and how it is at this moment. `probe` has the small part reported."""

from __future__ import annotations

from pathlib import Path

import msgspec

from edgeserve_devices.probes.accelerators import AcceleratorDetails, accelerators
from edgeserve_devices.probes.cgroup import control_group
from edgeserve_devices.probes.cpu import Cpu, all_flags, cpu, cpuinfo
from edgeserve_devices.probes.jetson import Jetson, jetson
from edgeserve_devices.probes.memory import Memory, memory
from edgeserve_devices.probes.power import Power, power
from edgeserve_devices.probes.pressure import Pressure, pressure
from edgeserve_devices.probes.runtimes import RuntimeDevices, package_versions
from edgeserve_devices.probes.system import System, system
from edgeserve_devices.probes.thermal import Thermal, thermal
from edgeserve_devices.probes.tree import Tree


class Inventory(msgspec.Struct, frozen=True, kw_only=True):
    """Empty and None = unknown, or not there; what is there and could not be read is in `problems`."""

    system: System
    cpu: Cpu
    memory: Memory
    accelerators: tuple[AcceleratorDetails, ...]
    jetson: Jetson | None
    thermal: Thermal
    power: Power
    pressure: tuple[Pressure, ...]
    packages: dict[str, str]
    """Versions of the installed packages that bring a runtime."""
    runtimes: tuple[RuntimeDevices, ...] | None
    """What the runtimes say; None = they were not asked."""
    problems: dict[str, str]
    """Files that are there and could not be read, and why."""


def inventory(
    root: Path = Path("/"), *, machine: str = "", runtimes: tuple[RuntimeDevices, ...] | None = None
) -> Inventory:
    """Read everything. Never raises, whatever the folder holds; never writes.

    Args:
        root: Folder that holds `proc`, `sys`, `dev` and `etc`: of this machine, or a record.
        machine: `uname -m` of a record; empty = ask this machine, or the record.
        runtimes: From `edgeserve_devices.probes.runtimes.ask_runtimes`.
    """
    tree = Tree(root)
    group = control_group(tree)
    return Inventory(
        system=system(tree, machine=machine, flags=all_flags(cpuinfo(tree))),
        cpu=cpu(tree, group),
        memory=memory(tree, group),
        accelerators=accelerators(tree),
        jetson=jetson(tree),
        thermal=thermal(tree),
        power=power(tree),
        pressure=pressure(tree),
        packages=package_versions() if tree.is_this_machine else {},
        runtimes=runtimes,
        problems=tree.problems,
    )
