"""Processes: starting them on chosen cores, what they and their children use, pausing and ending them. Linux only."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
"""For every process alike, the bare runtime's too: idle BLAS threads cost start-up time and memory."""


def environment_of(more: Mapping[str, str]) -> dict[str, str]:
    """The environment of a child; without proxies, which must not come between servers and clients of this machine."""
    inherited = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return inherited | ENVIRONMENT | dict(more)


@dataclass(frozen=True, kw_only=True)
class Child:
    """A process that was started, alone in a process group."""

    popen: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.popen.pid


def start(
    command: Sequence[str | Path], *, cores: Sequence[int], log: Path, environment: Mapping[str, str] | None = None
) -> Child:
    """Start a process on the cores given; what it prints goes to `log`."""
    pinned = ["taskset", "-c", ",".join(map(str, cores)), *map(str, command)]
    with log.open("wb") as out:
        popen = subprocess.Popen(
            pinned,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environment_of(environment or {}),
            start_new_session=True,
        )
    return Child(popen=popen, log=log)


def tree(pid: int) -> list[int]:
    """The process and all its descendants that are there."""
    found = [pid]
    for parent in found:
        with contextlib.suppress(OSError):
            for thread in Path(f"/proc/{parent}/task").iterdir():
                found += map(int, (thread / "children").read_text().split())
    return found


def cpu_s(pid: int) -> float:
    """User and system time of the process tree, that of ended children with it; to the kernel's tick, 10 ms."""
    ticks = 0
    for one in tree(pid):
        with contextlib.suppress(OSError):
            # 14 utime, 15 stime, 16 cutime, 17 cstime of proc(5); the name before them may hold spaces.
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))
    return ticks * TICK_S


def run_ns(pid: int) -> int:
    """Time that the living threads of the process tree have run, to the nanosecond: for times too short for `cpu_s`."""
    total = 0
    for one in tree(pid):
        with contextlib.suppress(OSError):
            for thread in Path(f"/proc/{one}/task").iterdir():
                total += int((thread / "schedstat").read_text().split()[0])
    return total


def pss_mb(pid: int) -> float:
    """Proportional set size of the process tree, MB (10^6 bytes)."""
    total = 0
    for one in tree(pid):
        with contextlib.suppress(OSError):
            found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{one}/smaps_rollup").read_text(), re.MULTILINE)
            total += int(found[1]) if found else 0
    return total * 1024 / 1e6


def maps(pid: int, part: str) -> bool:
    """Whether a file with `part` in its name is mapped by a process of the tree."""
    for one in tree(pid):
        with contextlib.suppress(OSError):
            if part in Path(f"/proc/{one}/maps").read_text():
                return True
    return False


def pause(pid: int) -> None:
    _signal(tree(pid), signal.SIGSTOP)


def resume(pid: int) -> None:
    _signal(tree(pid), signal.SIGCONT)


def stop(child: Child, *, grace_s: float = 10) -> None:
    """End the process tree: politely, then not."""
    pids = tree(child.pid)
    _signal(pids, signal.SIGCONT)
    _signal([child.pid], signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.popen.wait(grace_s)
    deadline = time.monotonic() + grace_s
    while any(_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
        _signal([pid for pid in pids if _alive(pid)], signal.SIGKILL)
        child.popen.poll()


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _signal(pids: Sequence[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
