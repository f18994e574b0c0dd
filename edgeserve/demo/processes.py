"""Child processes of the demo: started with a log file each, ended together whatever happens."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from edgeserve.contracts.errors import DeviceError

T = TypeVar("T")


class Child:
    """One child process, leader of its own process group, so that what it starts ends with it."""

    def __init__(self, name: str, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self.log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                start_new_session=True,
            )

    @property
    def running(self) -> bool:
        """Whether the process has not ended."""
        return self.process.poll() is None

    def wait(self) -> int:
        """Wait for the end and return the exit code."""
        return self.process.wait()

    def signal(self, number: int) -> None:
        """Send a signal to the whole process group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def tail(self, lines: int = 8) -> str:
        """The last lines of the log, for an error message."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


class Children:
    """All child processes; leaving the `with` block ends every one of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._children: list[Child] = []

    def __enter__(self) -> Children:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self, name: str, arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> Child:
        """Start `python -m ARGUMENTS` and return at once."""
        self._folder.mkdir(parents=True, exist_ok=True)
        log = self._folder / f"{name}.log"
        return self.adopt(Child(name, [sys.executable, "-m", *arguments], log, environment or {}))

    def adopt(self, child: Child) -> Child:
        """Take care of a child that was started elsewhere."""
        self._children.append(child)
        return child

    def stop(self, patience_s: float = 10.0) -> None:
        """End all, politely first."""
        running = [child for child in reversed(self._children) if child.running]
        for child in running:
            child.signal(signal.SIGTERM)
        deadline = time.monotonic() + patience_s
        for child in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(max(0.0, deadline - time.monotonic()))
        for child in self._children:
            child.signal(signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(1.0)


def wait_until(what: str, ready: Callable[[], T | None], *, child: Child | None = None, timeout_s: float = 60.0) -> T:
    """Poll until `ready` returns something true, and return it.

    Raises:
        DeviceError: It did not in time, or `child` ended before; the message carries the end of its log.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        value = ready()
        if value:
            return value
        if child is not None and not child.running:
            raise DeviceError(f"{child.name} ended while waiting for {what}:\n{child.tail()}")
        if time.monotonic() > deadline:
            detail = f"; the end of {child.log}:\n{child.tail()}" if child is not None else ""
            raise DeviceError(f"no {what} within {timeout_s:.0f} s{detail}")
        time.sleep(0.05)
