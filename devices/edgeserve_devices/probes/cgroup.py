"""Limits of the control group that this process is in, version 2 and version 1: in a container they are what counts.

Kernel documentation: admin-guide/cgroup-v2.rst, admin-guide/cgroup-v1/memory.rst, scheduler/sched-bwc.rst.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

import msgspec

from edgeserve_devices.probes.tree import Tree, integer

_MOUNT: Final = "sys/fs/cgroup"
_MOST_LEVELS: Final = 32


class ControlGroup(msgspec.Struct, frozen=True, kw_only=True):
    """The tightest limits of the group and those above it; None = there is no such limit, or it cannot be seen."""

    version: int | None = None
    """1 or 2: where the memory is accounted for."""
    memory_limit_bytes: int | None = None
    memory_used_bytes: int | None = None
    """Of the group itself, caches included."""
    swap_limit_bytes: int | None = None
    cpu_quota: float | None = None
    """Processors' worth of time."""


def control_group(tree: Tree) -> ControlGroup:
    """Read the limits of the group that `proc/self/cgroup` names, and of all groups above it."""
    places: dict[str, str] = {}
    for line in tree.text("proc/self/cgroup").splitlines()[:64]:
        _number, _colon, rest = line.partition(":")
        controllers, _colon, path = rest.partition(":")
        for name in controllers.split(","):  # version 2 names none
            places.setdefault(name, path)
    unified = [folder for mount in (_MOUNT, f"{_MOUNT}/unified") for folder in _upwards(mount, places.get("", "/"))]
    memory = _folders(tree, ("memory",), places.get("memory", "/"))
    cpu = _folders(tree, ("cpu", "cpu,cpuacct"), places.get("cpu", "/"))
    second = ControlGroup(
        memory_limit_bytes=_least(_bytes(tree, f"{folder}/memory.max") for folder in unified),
        memory_used_bytes=_first(tree, unified, "memory.current"),
        swap_limit_bytes=_least(_bytes(tree, f"{folder}/memory.swap.max") for folder in unified),
    )
    first = ControlGroup(
        memory_limit_bytes=_least(_bytes(tree, f"{folder}/memory.limit_in_bytes") for folder in memory),
        memory_used_bytes=_first(tree, memory, "memory.usage_in_bytes"),
    )
    quotas = [*(_quota(tree, folder) for folder in unified), *(_old_quota(tree, folder) for folder in cpu)]
    chosen, version = (second, 2) if second.memory_used_bytes is not None else (first, 1)
    return msgspec.structs.replace(
        chosen if _known(chosen) else ControlGroup(),
        version=version if _known(chosen) else 2 if tree.exists(f"{_MOUNT}/cgroup.controllers") else None,
        cpu_quota=min((quota for quota in quotas if quota is not None), default=None),
    )


def _known(group: ControlGroup) -> bool:
    return group.memory_limit_bytes is not None or group.memory_used_bytes is not None


def _folders(tree: Tree, controllers: Iterable[str], path: str) -> list[str]:
    mounts = (f"{_MOUNT}/{name}" for name in controllers if tree.exists(f"{_MOUNT}/{name}"))
    return [folder for mount in mounts for folder in _upwards(mount, path)]


def _upwards(mount: str, path: str) -> Iterator[str]:
    """The group's folder and those above it. Inside a container the upper ones are hidden: absent files say nothing."""
    parts = [part for part in path.split("/") if part][:_MOST_LEVELS]
    for count in range(len(parts), -1, -1):
        yield "/".join([mount, *parts[:count]])


def _first(tree: Tree, folders: list[str], name: str) -> int | None:
    found: Callable[[str], int | None] = lambda folder: tree.integer(f"{folder}/{name}")  # noqa: E731
    return next((value for value in map(found, folders) if value is not None), None)


def _bytes(tree: Tree, path: str) -> int | None:
    """A limit; None for `max`, and for what version 1 says instead: 9223372036854771712, more than `integer` takes."""
    value = tree.integer(path)
    return value if value is not None and value >= 0 else None


def _least(values: Iterable[int | None]) -> int | None:
    return min((value for value in values if value is not None), default=None)


def _quota(tree: Tree, folder: str) -> float | None:
    """`cpu.max`: microseconds of CPU time in each period of so many microseconds, or `max`."""
    quota, _space, period = tree.text(f"{folder}/cpu.max").strip().partition(" ")
    return _share(integer(quota), integer(period))


def _old_quota(tree: Tree, folder: str) -> float | None:
    return _share(tree.integer(f"{folder}/cpu.cfs_quota_us"), tree.integer(f"{folder}/cpu.cfs_period_us"))


def _share(quota: int | None, period: int | None) -> float | None:
    return quota / period if quota is not None and period is not None and quota > 0 and period > 0 else None
