"""A Jetson's software and power mode: what NVIDIA's Board Support Package writes down."""

from __future__ import annotations

import re
from typing import Final

import msgspec

from edgeserve_devices.probes.tree import Tree, printable

_RELEASE: Final = re.compile(r"# R([0-9]{1,3}) \(release\), REVISION: ([0-9]{1,3}(?:\.[0-9]{1,3}){0,2})")
_MODE: Final = re.compile(r"pmode:([0-9]{1,4})")
_MODES: Final = re.compile(r"<\s*POWER_MODEL\s+ID=([0-9]{1,4})\s+NAME=([\w.+-]{1,40})\s*>", re.ASCII)
_JETPACK: Final = {"32": "4", "34": "5", "35": "5", "36": "6", "38": "7"}
"""Series of JetPack for each of Jetson Linux, from NVIDIA's Jetson Linux Archive."""


class Jetson(msgspec.Struct, frozen=True, kw_only=True):
    """Empty and None = not written down."""

    l4t: str
    """Jetson Linux, such as `36.4.3`."""
    jetpack: str
    """Series of JetPack, such as `6`."""
    power_mode: str
    """Name of nvpmodel's mode, such as `15W`, or its number where the table of names is not there."""


def jetson(tree: Tree) -> Jetson | None:
    """What is known of it; None = it is no Jetson, or the machine runs another system."""
    release = l4t(tree)
    mode = _MODE.search(tree.line("var/lib/nvpmodel/status"))
    if not release and not mode:
        return None
    return Jetson(
        l4t=release,
        jetpack=_JETPACK.get(release.partition(".")[0], ""),
        power_mode=_mode(tree, str(int(mode[1]))) if mode else "",
    )


def l4t(tree: Tree) -> str:
    """Version of Jetson Linux, such as `36.4.3`; empty = there is none."""
    found = _RELEASE.match(tree.text("etc/nv_tegra_release"))
    return f"{found[1]}.{found[2]}" if found else ""


def _mode(tree: Tree, number: str) -> str:
    names = {str(int(each)): name for each, name in _MODES.findall(tree.text("etc/nvpmodel.conf"))}
    return printable(names.get(number, number))
