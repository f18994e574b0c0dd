"""GPUs and NPUs whose kernel driver is bound: without it no runtime can use them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain, islice
from typing import Final, NamedTuple

import msgspec

from edgeserve.contracts.device import Accelerator
from edgeserve.contracts.limits import MAX_PROBE_ACCELERATORS
from edgeserve_devices.probes.tree import Tree, pairs, printable

_DRM: Final = "sys/class/drm"
_ACCEL: Final = "sys/class/accel"
_DEVFREQ: Final = "sys/class/devfreq"
_GPU_VENDORS: Final = {"0x8086": "intel", "0x1002": "amd"}
"""PCI vendors of cards whose driver is a DRM one; NVIDIA's compute driver is another, see `_nvidia`."""
_MODEL: Final = re.compile(r"^Model:\s*(.*)$", re.MULTILINE)
_VERSION: Final = re.compile(r"(?<![\d.])(\d{1,4}\.\d{1,4}(?:\.\d{1,4}){0,2})(?![\d.])", re.ASCII)
_TEGRA_CLOCKS: Final = ("gpu", "ga10b", "gv11b", "gp10b", "gm20b", "gb10b")
"""Ends of names under /sys/class/devfreq, the addresses before them differ."""


class _Kind(NamedTuple):
    vendor: str
    name: str


_NPU_DRIVERS: Final = {
    "intel_vpu": _Kind("intel", "Intel NPU"),
    "amdxdna": _Kind("amd", "AMD XDNA"),
    "rocket": _Kind("rockchip", "RKNPU"),
    "ethosu": _Kind("arm", "Arm Ethos-U"),
}
"""Drivers of the kernel's compute-accelerator class (kernel: accel/introduction.rst)."""
_HAILO: Final = {"1e60:2864": "Hailo-8", "1e60:43a2": "Hailo-15L", "1e60:45c4": "Hailo-10H"}
_CORAL_USB: Final = {("1a6e", "089a"), ("18d1", "9302")}
"""USB ids before and after its firmware is loaded."""


class AcceleratorDetails(msgspec.Struct, frozen=True, kw_only=True):
    """One accelerator; empty and None = the kernel does not say."""

    kind: str
    """`gpu` or `npu`."""
    vendor: str
    name: str
    driver: str
    """Of the kernel."""
    driver_version: str
    firmware: str
    node: str
    """Device node that runtimes open."""
    mhz: int | None
    """0 = it sleeps."""
    max_mhz: int | None

    def short(self) -> Accelerator:
        """What is reported of it."""
        return Accelerator(kind=self.kind, vendor=self.vendor, name=self.name)


def accelerators(tree: Tree, *, details: bool = True) -> tuple[AcceleratorDetails, ...]:
    """All of them: NPUs, then GPUs.

    Args:
        tree: Of the machine.
        details: Also read versions and clocks, and note nodes that this process may not open.
    """
    found = chain(_accel(tree), _rknpu(tree), _hailo(tree), _coral(tree), _tegra(tree), _nvidia(tree), _drm(tree))
    bare = tuple(islice(found, MAX_PROBE_ACCELERATORS))
    return tuple(_with_details(tree, each) for each in bare) if details else bare


def _bare(kind: str, vendor: str, name: str, driver: str, node: str) -> AcceleratorDetails:
    return AcceleratorDetails(
        kind=kind, vendor=vendor, name=name, driver=driver, driver_version="", firmware="", node=node,
        mhz=None, max_mhz=None,
    )  # fmt: skip


def _driver(tree: Tree, device: str) -> str:
    return printable(pairs(tree.text(f"{device}/uevent"), "=").get("DRIVER", ""))


def _accel(tree: Tree) -> Iterator[AcceleratorDetails]:
    for entry in tree.names(_ACCEL, "accel"):
        driver = _driver(tree, f"{_ACCEL}/{entry}/device")
        if driver in _NPU_DRIVERS:
            yield _bare("npu", *_NPU_DRIVERS[driver], driver, f"dev/accel/{entry}")


def _rknpu(tree: Tree) -> Iterator[AcceleratorDetails]:
    """Rockchip's own driver shows the NPU as a DRM device; older ones as /dev/rknpu."""
    for entry in tree.names(_DRM, "renderD"):
        if _driver(tree, f"{_DRM}/{entry}/device").upper() == "RKNPU":
            yield _bare("npu", "rockchip", "RKNPU", "rknpu", f"dev/dri/{entry}")
            return
    if tree.exists("dev/rknpu"):
        yield _bare("npu", "rockchip", "RKNPU", "rknpu", "dev/rknpu")


def _hailo(tree: Tree) -> Iterator[AcceleratorDetails]:
    for entry in tree.names("sys/class/hailo_chardev", "hailo"):
        device = tree.line(f"sys/class/hailo_chardev/{entry}/device_id")
        match = re.search(r"1e60:[0-9a-f]{4}", device.lower())
        driver = _driver(tree, f"sys/class/hailo_chardev/{entry}/device") or "hailo_pci"
        yield _bare("npu", "hailo", _HAILO.get(match[0], "Hailo") if match else "Hailo", driver, f"dev/{entry}")


def _coral(tree: Tree) -> Iterator[AcceleratorDetails]:
    for entry in tree.names("sys/class/apex", "apex_"):
        yield _bare("npu", "google", "Coral Edge TPU", "apex", f"dev/{entry}")
    for entry in tree.names("sys/bus/usb/devices"):
        if entry[:1].isdecimal() and ":" not in entry:
            folder = f"sys/bus/usb/devices/{entry}"
            if (tree.line(f"{folder}/idVendor"), tree.line(f"{folder}/idProduct")) in _CORAL_USB:
                yield _bare("npu", "google", "Coral Edge TPU (USB)", "", "")


def _tegra(tree: Tree) -> Iterator[AcceleratorDetails]:
    compatible = tree.text("proc/device-tree/compatible").split("\0")
    chips = [printable(word.removeprefix("nvidia,")) for word in compatible if word.startswith("nvidia,tegra")]
    nodes = [node for node in ("dev/nvgpu/igpu0", "dev/nvhost-gpu") if tree.exists(node)]
    if chips and nodes:
        yield _bare("gpu", "nvidia", chips[0], "nvgpu", nodes[0])


def _nvidia(tree: Tree) -> Iterator[AcceleratorDetails]:
    if not tree.exists("dev/nvidia0"):
        return
    for number, card in enumerate(tree.names("proc/driver/nvidia/gpus")):
        found = _MODEL.search(tree.text(f"proc/driver/nvidia/gpus/{card}/information"))
        yield _bare("gpu", "nvidia", printable(found[1]) if found else "", "nvidia", f"dev/nvidia{number}")


def _drm(tree: Tree) -> Iterator[AcceleratorDetails]:
    for entry in tree.names(_DRM, "renderD"):
        vendor = _GPU_VENDORS.get(tree.line(f"{_DRM}/{entry}/device/vendor"), "")
        if vendor:
            yield _bare("gpu", vendor, "", _driver(tree, f"{_DRM}/{entry}/device"), f"dev/dri/{entry}")


def _with_details(tree: Tree, bare: AcceleratorDetails) -> AcceleratorDetails:
    """Add versions and clocks from where each driver keeps them."""
    if bare.node:
        tree.check_access(bare.node)
    entry = bare.node.rpartition("/")[2]
    clocks: tuple[int | None, int | None] = (None, None)
    driver_version, firmware = tree.line(f"sys/module/{bare.driver}/version") if bare.driver else "", ""
    if bare.driver == "intel_vpu":
        device = f"{_ACCEL}/{entry}/device"
        clocks = (tree.integer(f"{device}/npu_current_frequency_mhz"), tree.integer(f"{device}/npu_max_frequency_mhz"))
        slot = pairs(tree.text(f"{device}/uevent"), "=").get("PCI_SLOT_NAME", "")
        firmware = tree.line(f"sys/kernel/debug/accel/{slot}/fw_version") if slot else ""
    elif bare.vendor == "rockchip":
        told = _VERSION.search(tree.line("sys/kernel/debug/rknpu/version"))
        driver_version = told[1] if told else driver_version
        clocks = _devfreq(tree, (".npu",))
    elif bare.driver == "nvgpu":
        clocks = _devfreq(tree, tuple(f".{end}" for end in _TEGRA_CLOCKS))
    elif bare.driver == "nvidia":
        told = _VERSION.search(tree.line("proc/driver/nvidia/version"))
        driver_version = told[1] if told else driver_version
    elif bare.driver == "apex":
        driver_version = tree.line(f"sys/class/apex/{entry}/driver_version") or driver_version
    elif bare.driver in ("i915", "xe"):
        card = f"{_DRM}/{entry}/device/drm"
        cards = tree.names(card, "card")
        if cards:  # i915; xe keeps clocks for each tile
            clocks = tuple(  # type: ignore[assignment]
                tree.integer(f"{card}/{cards[0]}/{file}") for file in ("gt_act_freq_mhz", "gt_RP0_freq_mhz")
            )
    return msgspec.structs.replace(
        bare, driver_version=driver_version, firmware=firmware, mhz=clocks[0], max_mhz=clocks[1]
    )


def _devfreq(tree: Tree, ends: tuple[str, ...]) -> tuple[int | None, int | None]:
    """Clock now and at most, in MHz, of the first device whose name ends so; the files are in Hz."""
    for device in tree.names(_DEVFREQ):
        if device.endswith(ends):
            clocks = [tree.integer(f"{_DEVFREQ}/{device}/{file}") for file in ("cur_freq", "max_freq")]
            now, most = (None if clock is None else round(clock / 1e6) for clock in clocks)
            return now, most
    return None, None
