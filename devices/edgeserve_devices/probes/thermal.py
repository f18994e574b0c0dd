"""Temperatures, what cools, and whether clocks are or were lowered.

Kernel documentation: driver-api/thermal/sysfs-api.rst, hwmon/sysfs-interface.rst; bits of the Raspberry Pi's firmware:
`vcgencmd get_throttled` in its documentation; events of a Jetson Orin: Jetson Linux Developer Guide, "Electrical
Management".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import msgspec

from edgeserve_devices.probes.tree import Tree, scaled

_THERMAL: Final = "sys/class/thermal"
_HWMON: Final = "sys/class/hwmon"
_CPUS: Final = "sys/devices/system/cpu"
_PLATFORM: Final = "sys/devices/platform"
_TEMPERATURE: Final = re.compile(r"temp([0-9]{1,3})_input\Z")
_OC_EVENTS: Final = re.compile(r"oc([0-9])_event_cnt\Z")
_PI_BITS: Final = {0: "under-voltage", 1: "frequency capped", 2: "throttled", 3: "soft temperature limit"}
_PI_SINCE_START: Final = 16
"""The same bits, shifted by so many: it happened since the start."""
_TEGRA_EVENTS: Final = {"1": "under-voltage", "2": "average over-current", "3": "instantaneous over-current"}
_LOWERS_CLOCKS: Final = ("cpufreq", "devfreq", "processor", "intel_powerclamp")
"""In the type of a cooling device that makes something slower; others are fans."""
_COLDEST: Final = -60.0
_HOTTEST: Final = 250.0
"""Outside of it a sensor is not connected."""


class Temperature(msgspec.Struct, frozen=True, kw_only=True):
    """One sensor, in degrees Celsius; None = it has no such threshold, or does not tell."""

    name: str
    """Type of the thermal zone, or chip and label."""
    celsius: float
    high_c: float | None
    """From here on something is done about it."""
    critical_c: float | None
    """Here the machine switches itself off."""


class Cooling(msgspec.Struct, frozen=True, kw_only=True):
    """A fan, or a clock that can be lowered."""

    name: str
    state: int
    """0 = does nothing."""
    max_state: int
    lowers_clocks: bool


class Throttling(msgspec.Struct, frozen=True, kw_only=True):
    """Something that slows the machine down."""

    source: str
    """`firmware`, `supply`, `cpu 0 package`, `soctherm`, or a cooling device."""
    reason: str
    now: bool | None
    """None = only past events are counted."""
    events: int | None
    """Since the start; None = not counted. Where only "it happened" is known: 1."""


class Thermal(msgspec.Struct, frozen=True, kw_only=True):
    """Empty = the machine has no such sensors, or its kernel no driver for them."""

    temperatures: tuple[Temperature, ...]
    cooling: tuple[Cooling, ...]
    throttling: tuple[Throttling, ...]
    """What tells whether it throttles, also when it does not."""

    @property
    def is_throttled(self) -> bool | None:
        """Whether something slows the machine down at this moment; None = nothing tells."""
        known = [each.now for each in self.throttling if each.now is not None]
        return any(known) if known else None


def thermal(tree: Tree) -> Thermal:
    """All of it."""
    zones = tuple(_zones(tree))
    zone_names = {zone.name.replace("-", "_") for zone in zones}
    chips = [(f"{_HWMON}/{name}", tree.line(f"{_HWMON}/{name}/name")) for name in tree.names(_HWMON, "hwmon")]
    sensors = (
        sensor
        for folder, chip in chips
        if chip.replace("-", "_") not in zone_names  # the kernel shows each thermal zone as a chip, too
        for sensor in _sensors(tree, folder, chip)
    )
    cooling = tuple(_cooling(tree))
    throttling = [*_firmware(tree), *_counters(tree)]
    for folder, chip in chips:
        throttling += _alarms(tree, folder, chip)
    throttling += [
        Throttling(source=each.name, reason="thermal policy", now=each.state > 0, events=None)
        for each in cooling
        if each.lowers_clocks
    ]
    return Thermal(temperatures=(*zones, *sensors), cooling=cooling, throttling=tuple(throttling))


def _degrees(tree: Tree, path: str) -> float | None:
    """Temperature of a file in millidegrees; None = not told, or such as no sensor that is connected can have."""
    celsius = scaled(tree.integer(path), 1000)
    return celsius if celsius is not None and _COLDEST <= celsius <= _HOTTEST else None


def _zones(tree: Tree) -> Iterator[Temperature]:
    for zone in tree.names(_THERMAL, "thermal_zone"):
        folder = f"{_THERMAL}/{zone}"
        celsius = _degrees(tree, f"{folder}/temp")
        if celsius is None:
            continue
        trips: dict[str, float] = {}
        for file in tree.names(folder, "trip_point_"):
            if not file.endswith("_type"):
                continue
            degrees = _degrees(tree, f"{folder}/{file.removesuffix('type')}temp")
            kind = tree.line(f"{folder}/{file}")
            if degrees is not None and degrees > 0:  # 0 = a trip point that is not set
                trips[kind] = min(degrees, trips.get(kind, degrees))
        yield Temperature(
            name=tree.line(f"{folder}/type") or zone,
            celsius=celsius,
            high_c=min((trips[kind] for kind in ("passive", "hot") if kind in trips), default=None),
            critical_c=trips.get("critical"),
        )


def _sensors(tree: Tree, folder: str, chip: str) -> Iterator[Temperature]:
    for file in tree.names(folder, "temp"):
        match = _TEMPERATURE.match(file)
        celsius = _degrees(tree, f"{folder}/{file}") if match else None
        if match is None or celsius is None:
            continue
        label = tree.line(f"{folder}/temp{match[1]}_label") or f"temp{match[1]}"
        yield Temperature(
            name=f"{chip} {label}".strip(),
            celsius=celsius,
            high_c=_degrees(tree, f"{folder}/temp{match[1]}_max"),
            critical_c=_degrees(tree, f"{folder}/temp{match[1]}_crit"),
        )


def _cooling(tree: Tree) -> Iterator[Cooling]:
    for device in tree.names(_THERMAL, "cooling_device"):
        folder = f"{_THERMAL}/{device}"
        kind = tree.line(f"{folder}/type")
        state, most = tree.integer(f"{folder}/cur_state"), tree.integer(f"{folder}/max_state")
        if kind and state is not None and most is not None:
            lowers = any(word in kind.lower() for word in _LOWERS_CLOCKS)
            yield Cooling(name=kind, state=state, max_state=most, lowers_clocks=lowers)


def _firmware(tree: Tree) -> Iterator[Throttling]:
    """Bits of a Raspberry Pi's firmware, in hexadecimal; the folder's name has the bus address on a Raspberry Pi 5."""
    for soc in tree.names(_PLATFORM, "soc"):
        for device in tree.names(f"{_PLATFORM}/{soc}", "soc"):
            text = tree.line(f"{_PLATFORM}/{soc}/{device}/get_throttled") if device.endswith("firmware") else ""
            if re.fullmatch(r"(?:0x)?[0-9a-fA-F]{1,8}", text):
                bits = int(text, 16)
                for bit, reason in _PI_BITS.items():
                    yield Throttling(
                        source="firmware",
                        reason=reason,
                        now=bool(bits >> bit & 1),
                        events=bits >> (bit + _PI_SINCE_START) & 1,
                    )


def _alarms(tree: Tree, folder: str, chip: str) -> Iterator[Throttling]:
    """The supply of a Raspberry Pi (hwmon/raspberrypi-hwmon.rst), and events of a Jetson Orin's SoC."""
    if chip == "rpi_volt":
        alarm = tree.integer(f"{folder}/in0_lcrit_alarm")
        if alarm is not None:
            yield Throttling(source="supply", reason="under-voltage", now=bool(alarm), events=None)
    elif chip == "soctherm_oc":
        for file in tree.names(folder, "oc"):
            match = _OC_EVENTS.match(file)
            events = tree.integer(f"{folder}/{file}") if match else None
            if match and events is not None:
                reason = _TEGRA_EVENTS.get(match[1], f"event {match[1]}")
                yield Throttling(source="soctherm", reason=reason, now=None, events=events)


def _counters(tree: Tree) -> Iterator[Throttling]:
    """Counters of Intel's processors: how often each package was too hot."""
    packages: dict[int, int] = {}
    for processor in tree.names(_CPUS, "cpu"):
        if not processor[3:].isdecimal():
            continue
        events = tree.integer(f"{_CPUS}/{processor}/thermal_throttle/package_throttle_count")
        package = tree.integer(f"{_CPUS}/{processor}/topology/physical_package_id") if events is not None else None
        if events is not None and package is not None:
            packages[package] = max(events, packages.get(package, 0))
    for package, events in packages.items():
        yield Throttling(source=f"cpu package {package}", reason="too hot", now=None, events=events)
