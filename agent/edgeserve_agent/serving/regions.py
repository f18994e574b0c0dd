"""Memory that clients share with the server, by the names they gave it (Triton's "System Shared Memory" extension)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionStatus:
    """One region, as it was registered."""

    name: str
    key: str
    offset: int
    byte_size: int


@dataclass(frozen=True, slots=True)
class RegionRef:
    """Part of a region that a tensor lies in."""

    region: str
    offset: int
    byte_size: int


class Regions(Protocol):
    """The regions that are registered. Lives on the event loop."""

    generation: int
    """Rises with every change: views that were taken before it may be of a region that is no longer registered."""

    def view(self, ref: RegionRef) -> memoryview:
        """The memory; it stays valid as long as the view is held, even when the region is unregistered meanwhile.

        Raises:
            InputError: No such region, or it is smaller than that.
        """
