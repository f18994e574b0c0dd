"""Memory: what the machine has, what is free, swap and compressed swap, and what the control group may take."""

from __future__ import annotations

import re
from typing import Final

import msgspec

from edgeserve_devices.probes.cgroup import ControlGroup
from edgeserve_devices.probes.tree import Tree, integer, printable

_FIELD: Final = re.compile(r"^(\w+):\s+(\d{1,15}) kB$", re.MULTILINE | re.ASCII)
_CHOSEN: Final = re.compile(r"\[([\w-]{1,30})\]", re.ASCII)


class Zram(msgspec.Struct, frozen=True, kw_only=True):
    """A block device that keeps its content compressed in memory (kernel: admin-guide/blockdev/zram.rst)."""

    name: str
    size_bytes: int
    algorithm: str
    stored_bytes: int | None
    """Before compression."""
    memory_bytes: int | None
    """What it takes of the memory."""


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """Memory in bytes; None = the kernel does not say."""

    total_bytes: int | None
    available_bytes: int | None
    """What programs may still take without swapping, as the kernel estimates it."""
    swap_total_bytes: int | None
    swap_free_bytes: int | None
    zram: tuple[Zram, ...]
    limit_bytes: int | None
    """What this process's control group may take; None = no limit."""
    used_bytes: int | None
    """What that group takes, caches included."""
    swap_limit_bytes: int | None
    cgroup: int | None
    """Version of the control groups: 1 or 2."""

    @property
    def usable_bytes(self) -> int:
        """What counts: the machine's memory, or the limit where that is less; 0 = unknown."""
        return usable_bytes(self.total_bytes, self.limit_bytes)


def memory(tree: Tree, group: ControlGroup) -> Memory:
    """All of it."""
    fields = _meminfo(tree)
    return Memory(
        total_bytes=fields.get("MemTotal"),
        available_bytes=fields.get("MemAvailable"),
        swap_total_bytes=fields.get("SwapTotal"),
        swap_free_bytes=fields.get("SwapFree"),
        zram=tuple(found for name in tree.names("sys/block", "zram") if (found := _zram(tree, name))),
        limit_bytes=group.memory_limit_bytes,
        used_bytes=group.memory_used_bytes,
        swap_limit_bytes=group.swap_limit_bytes,
        cgroup=group.version,
    )


def memory_bytes(tree: Tree, group: ControlGroup) -> int:
    """`Memory.usable_bytes`, read alone."""
    return usable_bytes(_meminfo(tree).get("MemTotal"), group.memory_limit_bytes)


def usable_bytes(total: int | None, limit: int | None) -> int:
    """The less of the two that are known; 0 = neither is."""
    return min((each for each in (total, limit) if each is not None), default=0)


def _meminfo(tree: Tree) -> dict[str, int]:
    return {name: int(kib) * 1024 for name, kib in _FIELD.findall(tree.text("proc/meminfo"))}


def _zram(tree: Tree, name: str) -> Zram | None:
    size = tree.integer(f"sys/block/{name}/disksize")
    if not size:  # made by the module, and never set up
        return None
    numbers = [integer(word) for word in tree.text(f"sys/block/{name}/mm_stat").split()[:3]]
    stored, _compressed, taken = numbers if len(numbers) == 3 else (None, None, None)
    chosen = _CHOSEN.search(tree.line(f"sys/block/{name}/comp_algorithm"))
    return Zram(
        name=name,
        size_bytes=size,
        algorithm=printable(chosen[1]) if chosen else "",
        stored_bytes=stored,
        memory_bytes=taken,
    )
