"""Power: energy counters of Intel and AMD (RAPL), and what sensors on supply rails measure (INA3221 of a Jetson).

Kernel documentation: power/powercap/powercap.rst, hwmon/sysfs-interface.rst, hwmon/ina3221.rst.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import msgspec

from edgeserve_devices.probes.tree import Tree, scaled

_POWERCAP: Final = "sys/class/powercap"
_DOMAIN: Final = re.compile(r"intel-rapl(?:-mmio)?(?::[0-9]+){1,2}\Z")
_HWMON: Final = "sys/class/hwmon"
_CHANNEL: Final = re.compile(r"(?:(power)([0-9]{1,3})_(?:input|average)|(curr)([0-9]{1,3})_input)\Z")
_MONITORS: Final = ("ina", "ltc", "pmbus", "pac19", "max3444", "tps", "isl")
"""Beginnings of names of chips whose channels `inN` and `currN` are one rail."""


class Energy(msgspec.Struct, frozen=True, kw_only=True):
    """One domain of RAPL: its counter, of which two readings give the mean power between them."""

    domain: str
    """`intel-rapl:0`, `intel-rapl:0:0`."""
    name: str
    """`package-0`, `core`, `uncore`, `dram`, `psys`."""
    energy_uj: int | None
    """Counter in microjoules; None = only root may read it (since CVE-2020-8694), see `Inventory.problems`."""
    wraps_at_uj: int | None
    """It begins anew at this value."""
    limits_w: dict[str, float]
    """Power limits in watts: `long_term`, `short_term`."""


class Rail(msgspec.Struct, frozen=True, kw_only=True):
    """What a sensor measures on a supply rail at this moment; None = it does not measure that."""

    chip: str
    name: str
    """Its label, such as `VDD_IN`, or the channel, such as `power1`."""
    power_w: float | None
    voltage_v: float | None
    current_a: float | None


class Power(msgspec.Struct, frozen=True, kw_only=True):
    """Empty = the machine has no such counters, or its kernel no driver for them."""

    energy: tuple[Energy, ...]
    rails: tuple[Rail, ...]


def power(tree: Tree) -> Power:
    """All of it."""
    domains = (name for name in tree.names(_POWERCAP, "intel-rapl") if _DOMAIN.match(name))
    return Power(
        energy=tuple(_energy(tree, name) for name in domains),
        rails=tuple(rail for chip in tree.names(_HWMON, "hwmon") for rail in _rails(tree, f"{_HWMON}/{chip}")),
    )


def _energy(tree: Tree, domain: str) -> Energy:
    folder = f"{_POWERCAP}/{domain}"
    limits = {}
    for number in range(3):
        watts = scaled(tree.integer(f"{folder}/constraint_{number}_power_limit_uw"), 1e6)
        if watts:
            limits[tree.line(f"{folder}/constraint_{number}_name") or f"constraint {number}"] = watts
    return Energy(
        domain=domain,
        name=tree.line(f"{folder}/name"),
        energy_uj=tree.integer(f"{folder}/energy_uj"),
        wraps_at_uj=tree.integer(f"{folder}/max_energy_range_uj"),
        limits_w=limits,
    )


def _rails(tree: Tree, folder: str) -> Iterator[Rail]:
    """Channels that measure power, and those of power monitors that measure voltage and current of one rail."""
    chip = tree.line(f"{folder}/name")
    monitor = chip.lower().startswith(_MONITORS)
    seen: set[str] = set()
    for file in tree.names(folder):
        match = _CHANNEL.match(file)
        kind, number = (match[1] or match[3], match[2] or match[4]) if match else ("", "")
        if not kind or number in seen:
            continue
        volts = scaled(tree.integer(f"{folder}/in{number}_input"), 1000) if monitor else None
        amperes = scaled(tree.integer(f"{folder}/curr{number}_input"), 1000) if monitor else None
        measured = [tree.integer(f"{folder}/power{number}_{what}") for what in ("input", "average")]
        watts = scaled(next((value for value in measured if value is not None), None), 1e6)
        if watts is None and volts is not None and amperes is not None:
            watts = round(volts * amperes, 6)
        if watts is None and amperes is None:
            continue
        seen.add(number)
        labels = (tree.line(f"{folder}/{prefix}{number}_label") for prefix in ("power", "in", "curr"))
        name = next((label for label in labels if label), f"{kind}{number}")
        if name != "NC":  # the device tree's word for a channel that measures nothing
            yield Rail(chip=chip, name=name, power_w=watts, voltage_v=volts, current_a=amperes)
