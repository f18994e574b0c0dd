"""How much memory of its own a process has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgeserve.contracts.limits import KIB


@dataclass(frozen=True, kw_only=True)
class ProcessMemory:
    """Private memory of a process, bytes. RSS would leave out what was swapped and count what files are mapped."""

    anonymous: int
    """RssAnon of proc(5); pages that a forked process still shares with its parent count for both."""
    swapped: int
    """VmSwap of proc(5)."""

    @property
    def total(self) -> int:
        """Both together: what comes back when the process ends."""
        return self.anonymous + self.swapped


def process_memory(pid: int) -> ProcessMemory:
    """Read `/proc/PID/status`; zeros for a process that is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        text = ""
    sizes = dict(line.split(":", 1) for line in text.splitlines())
    return ProcessMemory(anonymous=_bytes(sizes.get("RssAnon", "0")), swapped=_bytes(sizes.get("VmSwap", "0")))


def _bytes(field: str) -> int:
    return int(field.split()[0]) * KIB
