"""What `edgeserve devices probe` shows of a machine: groups of rows, with units. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from edgeserve.contracts.device import DeviceFacts
    from edgeserve_devices.inventory import Inventory
    from edgeserve_devices.probes.accelerators import AcceleratorDetails
    from edgeserve_devices.probes.cpu import CoreKind
    from edgeserve_devices.probes.memory import Zram
    from edgeserve_devices.probes.power import Energy, Rail
    from edgeserve_devices.probes.runtimes import RuntimeDevices
    from edgeserve_devices.probes.thermal import Temperature, Throttling

Row = tuple[str, str]

_UNKNOWN: Final = "unknown"
_DENIED: Final = "Permission denied"
_REMEDIES: Final = (
    ("sys/class/powercap/", "energy counters are for root: run as root, or let a udev rule make energy_uj readable"),
    ("sys/kernel/debug/", "only root reads debugfs: run as root"),
    ("dev/accel/", "add the user to the group render: sudo usermod -aG render $USER"),
    ("dev/dri/", "add the user to the group render: sudo usermod -aG render $USER"),
    ("dev/", "add the user to the group that owns it"),
)
"""What to do about a file that may not be read, by the beginning of its path."""


def rows(facts: DeviceFacts, inventory: Inventory) -> list[tuple[str, str, str]]:
    """All that is known, as rows of group, name and value; the group's name stands in its first row only."""
    groups = (
        ("machine", _machine(facts, inventory)),
        ("cpu", _cpu(inventory)),
        ("memory", _memory(inventory)),
        ("pressure", _pressure(inventory)),
        ("accelerators", _accelerators(inventory)),
        ("thermal", _thermal(inventory)),
        ("power", _power(inventory)),
        ("storage", _storage(inventory)),
        ("runtimes", _runtimes(facts, inventory)),
        ("not read", _problems(inventory)),
    )
    found = []
    for group, lines in groups:
        for index, (name, value) in enumerate(lines):
            found.append((group if index == 0 else "", name, value))
    return found


def _machine(facts: DeviceFacts, inventory: Inventory) -> Iterator[Row]:
    system = inventory.system
    yield "profile", facts.profile or "none fits"
    yield "board", system.board or _UNKNOWN
    if system.compatible:
        yield "device tree", ", ".join(system.compatible)
    if system.soc:
        yield "soc", system.soc
    yield "architecture", system.architecture or _UNKNOWN
    yield "os", system.os or _UNKNOWN
    yield "kernel", system.kernel or _UNKNOWN
    yield "c library", system.libc or _UNKNOWN
    yield "python", system.python or _UNKNOWN
    if inventory.jetson is not None:
        jetson = inventory.jetson
        series = f" (JetPack {jetson.jetpack})" if jetson.jetpack else ""
        yield "jetson linux", f"{jetson.l4t or _UNKNOWN}{series}"
        yield "power mode", jetson.power_mode or _UNKNOWN
    yield "container", f"signs of {system.container}" if system.container else "no sign of one"
    if system.virtual_machine:
        yield "virtual machine", "yes"
    if system.uptime_s is not None:
        yield "up", _duration(system.uptime_s)
    if system.load:
        yield "load", f"{' '.join(f'{each:.2f}' for each in system.load)} (1, 5, 15 min)"


def _cpu(inventory: Inventory) -> Iterator[Row]:
    cpu = inventory.cpu
    yield "name", cpu.name or _UNKNOWN
    if cpu.level:
        yield "level", cpu.level
    yield "features", " ".join(cpu.features) or _UNKNOWN
    cores = f" on {_count(cpu.cores, 'core')}" if cpu.cores is not None else ""
    yield "processors", f"{cpu.processors}{cores}" if cpu.processors else _UNKNOWN
    unlimited = "none" if inventory.memory.cgroup is not None else _UNKNOWN
    quota = f"{cpu.quota:g} processors' time" if cpu.quota is not None else unlimited
    allowed = str(cpu.allowed) if cpu.allowed is not None else _UNKNOWN
    usable = f"{cpu.usable:g}" if cpu.usable is not None else _UNKNOWN
    yield "usable here", f"{usable} (affinity: {allowed}, quota: {quota})"
    for kind in cpu.kinds:
        yield "cores", _core_kind(kind)


def _core_kind(kind: CoreKind) -> str:
    parts = [f"{kind.processors} x {kind.name}"]
    if kind.min_mhz is not None and kind.max_mhz is not None:
        parts.append(f"{kind.min_mhz} to {kind.max_mhz} MHz")
    elif kind.max_mhz is not None:
        parts.append(f"up to {kind.max_mhz} MHz")
    if kind.limit_mhz is not None and kind.max_mhz is not None and kind.limit_mhz < kind.max_mhz:
        parts.append(f"limited to {kind.limit_mhz} MHz")
    if kind.mhz is not None:
        parts.append(f"now {kind.mhz} MHz")
    if kind.governor:
        parts.append(f"governor {kind.governor}")
    return ", ".join(parts)


def _memory(inventory: Inventory) -> Iterator[Row]:
    memory = inventory.memory
    yield "total", _size(memory.total_bytes)
    yield "available", _size(memory.available_bytes)
    if memory.swap_total_bytes:
        yield "swap", f"{_size(memory.swap_total_bytes)}, {_size(memory.swap_free_bytes)} free"
    else:
        yield "swap", _UNKNOWN if memory.swap_total_bytes is None else "none"
    for zram in memory.zram:
        yield "zram", _zram(zram)
    if memory.cgroup is not None:
        limit = _size(memory.limit_bytes) if memory.limit_bytes is not None else "none"
        used = f", {_size(memory.used_bytes)} in use" if memory.used_bytes is not None else ""
        yield "limit", f"{limit}{used} (cgroup v{memory.cgroup})"
        yield "usable here", _size(memory.usable_bytes or None)


def _zram(zram: Zram) -> str:
    algorithm = f", {zram.algorithm}" if zram.algorithm else ""
    return (
        f"{zram.name}: {_size(zram.size_bytes)}{algorithm}, "
        f"holds {_size(zram.stored_bytes)} in {_size(zram.memory_bytes)} of memory"
    )


def _pressure(inventory: Inventory) -> Iterator[Row]:
    for each in inventory.pressure:
        full = f"; all: {each.full.avg10:g} %" if each.full is not None else ""
        some = each.some
        yield (
            each.resource,
            f"some: {some.avg10:g} % of 10 s, {some.avg60:g} % of 60 s, {some.avg300:g} % of 300 s{full}",
        )
    if not inventory.pressure:
        yield "", "not told by this kernel"


def _accelerators(inventory: Inventory) -> Iterator[Row]:
    for each in inventory.accelerators:
        yield each.kind, _accelerator(each)
    if not inventory.accelerators:
        yield "", "none with a driver"


def _accelerator(each: AcceleratorDetails) -> str:
    parts = [f"{each.vendor} {each.name}".strip()]
    if each.driver:
        parts.append(f"driver {each.driver} {each.driver_version}".rstrip())
    if each.firmware:
        parts.append(f"firmware {each.firmware}")
    if each.node:
        parts.append(f"/{each.node}")
    if each.max_mhz is not None:
        parts.append(f"up to {each.max_mhz} MHz")
    if each.mhz is not None:
        parts.append(f"now {each.mhz} MHz" if each.mhz else "asleep")
    return ", ".join(parts)


def _thermal(inventory: Inventory) -> Iterator[Row]:
    thermal = inventory.thermal
    for temperature in thermal.temperatures:
        yield "temperature", _temperature(temperature)
    if not thermal.temperatures:
        yield "temperature", "no sensor"
    for device in thermal.cooling:
        if not device.lowers_clocks:
            yield "cooling", f"{device.name}: {device.state} of {device.max_state}"
    active = [each for each in thermal.throttling if each.now or each.events]
    for each in active:
        yield "throttling", _throttling(each)
    if not active:
        yield "throttling", _UNKNOWN if thermal.is_throttled is None else "no"


def _temperature(each: Temperature) -> str:
    marks = [
        f"{word} {limit:g}"
        for word, limit in (("high", each.high_c), ("critical", each.critical_c))
        if limit is not None
    ]
    thresholds = f" ({', '.join(marks)})" if marks else ""
    return f"{each.name}: {each.celsius:.1f} °C{thresholds}"


def _throttling(each: Throttling) -> str:
    when = {True: "now", False: "not now", None: ""}[each.now]
    events = f"{_count(each.events, 'event')} since the start" if each.events else ""
    return f"{each.reason} ({each.source}): {', '.join(filter(None, (when, events)))}"


def _power(inventory: Inventory) -> Iterator[Row]:
    for rail in inventory.power.rails:
        yield "rail", _rail(rail)
    for domain in inventory.power.energy:
        yield "energy", _energy(domain)
    if not inventory.power.rails and not inventory.power.energy:
        yield "", "no counter or sensor"


def _rail(rail: Rail) -> str:
    figures = [
        f"{value:.2f} {unit}"
        for value, unit in ((rail.power_w, "W"), (rail.voltage_v, "V"), (rail.current_a, "A"))
        if value is not None
    ]
    return f"{rail.name} ({rail.chip}): {', '.join(figures)}"


def _energy(domain: Energy) -> str:
    counter = f"{domain.energy_uj / 1e6:.1f} J counted" if domain.energy_uj is not None else "counter not readable"
    limits = "".join(f", {name} limit {watts:g} W" for name, watts in domain.limits_w.items())
    return f"{domain.name or domain.domain}: {counter}{limits}"


def _storage(inventory: Inventory) -> Iterator[Row]:
    for each in inventory.system.storage:
        read_only = ", read-only" if each.read_only else ""
        yield each.path, f"{_size(each.free_bytes)} free of {_size(each.total_bytes)} ({each.type}{read_only})"


def _runtimes(facts: DeviceFacts, inventory: Inventory) -> Iterator[Row]:
    yield "installed", " ".join(facts.runtimes) or "none"
    yield from inventory.packages.items()
    if inventory.runtimes is None:
        yield "devices", "not asked: --runtimes does"
        return
    for each in inventory.runtimes:
        yield "devices", _runtime(each)


def _runtime(each: RuntimeDevices) -> str:
    if each.problem:
        return f"{each.name}: {each.problem}"
    return f"{each.name} {each.version}: {', '.join(each.devices) or 'has no list of devices'}"


def _problems(inventory: Inventory) -> Iterator[Row]:
    for path, reason in inventory.problems.items():
        remedies = (remedy for beginning, remedy in _REMEDIES if path.startswith(beginning))
        remedy = next(remedies, "") if reason == _DENIED else ""
        yield f"/{path}", f"{reason}{f': {remedy}' if remedy else ''}"


def _size(count: int | None) -> str:
    """Bytes in the binary unit that leaves 1 to 1023 of it."""
    if count is None:
        return _UNKNOWN
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit in ("B", "KiB") else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def _duration(seconds: float) -> str:
    minutes = int(seconds // 60)
    days, hours = minutes // 1440, minutes // 60 % 24
    return f"{days} d {hours} h" if days else f"{hours} h {minutes % 60} min"


def _count(number: int | None, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
