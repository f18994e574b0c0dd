"""How much of the time work waited for CPU, memory or storage: Pressure Stall Information (accounting/psi.rst)."""

from __future__ import annotations

import re
from typing import Final

import msgspec

from edgeserve_devices.probes.tree import Tree

_RESOURCES: Final = ("cpu", "memory", "io")
_LINE: Final = re.compile(
    r"^(some|full) avg10=(\d{1,3}\.\d\d) avg60=(\d{1,3}\.\d\d) avg300=(\d{1,3}\.\d\d) total=(\d{1,18})$",
    re.MULTILINE | re.ASCII,
)


class Stall(msgspec.Struct, frozen=True, kw_only=True):
    """Share of the time that was lost, in percent."""

    avg10: float
    """Over the last 10 s."""
    avg60: float
    avg300: float
    total_us: int
    """Time lost since the start, in microseconds."""


class Pressure(msgspec.Struct, frozen=True, kw_only=True):
    """Pressure on one resource."""

    resource: str
    """`cpu`, `memory` or `io`."""
    some: Stall
    """At least one task waited."""
    full: Stall | None
    """All tasks waited at once; None = not told, as for the CPU before Linux 5.13."""


def pressure(tree: Tree) -> tuple[Pressure, ...]:
    """Pressure on each resource; empty = the kernel does not tell (`CONFIG_PSI`, or `psi=0`)."""
    found = []
    for resource in _RESOURCES:
        lines = {
            kind: Stall(avg10=float(avg10), avg60=float(avg60), avg300=float(avg300), total_us=int(total))
            for kind, avg10, avg60, avg300, total in _LINE.findall(tree.text(f"proc/pressure/{resource}"))
        }
        if "some" in lines:
            found.append(Pressure(resource=resource, some=lines["some"], full=lines.get("full")))
    return tuple(found)
