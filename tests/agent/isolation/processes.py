"""What the kernel says of processes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from edgeserve_agent.isolation.memory import process_memory

DEADLINE_S = 20.0


def until(condition: Callable[[], object]) -> None:
    """Wait for what must come about, however loaded the machine is."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.005)


def is_alive(pid: int) -> bool:
    return state(pid) not in ("", "Z", "X")


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def descendants(pid: int) -> list[int]:
    parents = {int(folder.name): _parent(folder) for folder in Path("/proc").glob("[0-9]*")}
    found = [pid]
    for parent in found:
        found += [child for child, its in parents.items() if its == parent]
    return found[1:]


def _parent(folder: Path) -> int:
    try:
        return int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def tree_memory(pid: int) -> int:
    """RssAnon + VmSwap of a process and all below it, bytes."""
    return sum(process_memory(one).total for one in (pid, *descendants(pid)))
