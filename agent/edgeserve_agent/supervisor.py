"""Keeps one serving process alive: adopts the one that an earlier life of the control part left, or starts it."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgeserve.contracts.errors import DeviceError, EdgeServeError, InputError
from edgeserve.contracts.limits import BACKOFF_MAX_S, SERVING_LOAD_S, SERVING_SILENT_S
from edgeserve_agent.config import AgentConfig
from edgeserve_agent.control import Done, ReadStats, ServingStats, ServingStatus, Status, Stop, call

_CALL_S: Final = 2.0
_FIRST_BACKOFF_S: Final = 0.2
_REPLACE_S: Final = 20.0
_LASTED_S: Final = 30.0
"""A life of this length earns a respawn without delay."""
_INPUT_EXIT: Final = InputError.exit_code
_log = logging.getLogger("edgeserve.agent")


@dataclass(frozen=True)
class Death:
    """The serving process ended without being asked to."""

    how: str
    """`died with exit code 1`, `was ended by SIGSEGV`."""


class SettingsRefusedError(InputError):
    """The serving process cannot run with what agent.toml says."""


@dataclass(frozen=True)
class _Running:
    pid: int
    as_wanted: bool
    """Its command line is the one that we would start."""


class Supervisor:
    """The one owner of the serving process. Not thread-safe: lives on the deciding thread.

    Args:
        config: Of the device.
        command: What to start; given by tests.
    """

    def __init__(self, config: AgentConfig, *, command: tuple[str, ...] = ()) -> None:
        self._config = config
        self._command = command or _serving_command(config)
        self._child: subprocess.Popen[bytes] | None = None
        self._adopted: int | None = None
        self._began = self._answered_at = 0.0
        self._failures = 0
        self._next_start = 0.0
        self._expected = False
        self._answered_once = False

    @property
    def pid(self) -> int | None:
        """Process id of the serving process, if it is there."""
        return self._child.pid if self._child else self._adopted

    def adopt(self) -> None:
        """Take over the serving process of this state directory, if there is one; without one, `poll` starts one.

        It may still be starting, or be too busy to answer: a second one could not take its place while it lives. One
        that was started with other settings is ended.
        """
        status = self.status()
        found = _running(self._command, self._config)
        if status is not None and (found is None or found.pid != status.pid):
            found = _Running(status.pid, as_wanted=True)  # nothing tells how it was started
        if found is None:
            return
        self._adopted = found.pid
        # One that is old and does not answer hangs: a new life of the control part gives it no new time to load in.
        self._began = time.monotonic() - min(_age_s(found.pid), SERVING_LOAD_S - SERVING_SILENT_S)
        if found.as_wanted:
            _log.info("found the serving process %d at work", found.pid)
        else:
            _log.warning("the serving process %d has other settings than agent.toml: started anew", found.pid)
            self.stop(_REPLACE_S)

    def poll(self, now: float) -> Death | None:
        """Look after the process; start it anew when it is gone and its back-off has passed.

        Args:
            now: Monotonic seconds.

        Returns:
            How it died, once for each death that nobody asked for.

        Raises:
            SettingsRefusedError: It refuses its own command line: starting it again would not help.
            DeviceError: It cannot be started now.
        """
        if self.pid is None:
            if now >= self._next_start:
                self._spawn()
            return None
        how = self._ended()
        if how is None:
            if now - max(self._began, self._answered_at) > SERVING_LOAD_S:
                _log.error("the serving process %d has not answered for %g s", self.pid, SERVING_LOAD_S)
                self._kill(signal.SIGKILL)
            return None
        lasted = now - self._began
        self._child = self._adopted = None
        self._failures = 0 if lasted > _LASTED_S else self._failures + 1
        delay = 0.0 if self._failures <= 1 else min(BACKOFF_MAX_S, _FIRST_BACKOFF_S * 2 ** (self._failures - 2))
        self._next_start = now + delay
        if self._expected:
            self._expected = False
            self._next_start = now
            return None
        if how.endswith(f"exit code {_INPUT_EXIT}") and not self._answered_once:
            raise SettingsRefusedError(
                "the serving process refuses its settings, see above", hint="change [serving] in agent.toml"
            )
        _log.error("the serving process %s; next start in %.1f s", how, delay)
        return Death(how)

    def is_live(self, now: float, silence_s: float) -> bool:
        """Whether the process answered within `silence_s`, or is starting, or waits for its next start.

        Args:
            now: Monotonic seconds.
            silence_s: Longest time without an answer of a process that has answered before.
        """
        answered = self._answered_at >= self._began
        bound = silence_s if answered else SERVING_LOAD_S
        return self.pid is None or now - max(self._began, self._answered_at) <= bound

    def status(self) -> ServingStatus | None:
        """What is served; None while the process does not answer."""
        try:
            status = call(self._config.socket_path, Status(), ServingStatus, timeout_s=_CALL_S)
        except EdgeServeError:
            return None
        self._answered_once = True
        self._answered_at = time.monotonic()
        return status

    def stats(self) -> ServingStats | None:
        """The counters; None while the process does not answer."""
        try:
            return call(self._config.socket_path, ReadStats(), ServingStats, timeout_s=_CALL_S)
        except EdgeServeError:
            return None

    def restart(self) -> None:
        """End the process at once; `poll` starts it anew, from `slots.json`."""
        if self.pid is not None:
            self._expected = True
            self._kill(signal.SIGKILL)

    def stop(self, timeout_s: float) -> None:
        """Ask the process to finish what is in flight and exit; after `timeout_s` end it."""
        if self.pid is None:
            return
        try:
            call(self._config.socket_path, Stop(), Done, timeout_s=_CALL_S)
        except EdgeServeError:
            self._kill(signal.SIGTERM)
        deadline = time.monotonic() + timeout_s
        while self._ended() is None:
            if time.monotonic() > deadline:
                _log.warning("the serving process did not stop within %g s", timeout_s)
                self._kill(signal.SIGKILL)
                deadline = float("inf")
            time.sleep(0.02)
        self._child = self._adopted = None

    def _spawn(self) -> None:
        self._began = time.monotonic()
        try:
            self._child = subprocess.Popen(self._command, stdin=subprocess.DEVNULL)
        except OSError as error:  # no memory, no process left
            self._next_start = self._began + BACKOFF_MAX_S
            message = f"cannot start the serving process: {error.strerror or error}"
            raise DeviceError(message, hint="it is tried again") from error
        _log.info("started the serving process %d", self._child.pid)

    def _ended(self) -> str | None:
        if self._child is not None:
            code = self._child.poll()
            if code is None:
                return None
            return f"was ended by {_signal_name(-code)}" if code < 0 else f"died with exit code {code}"
        assert self._adopted is not None
        return None if is_alive(self._adopted) else "died"

    def _kill(self, number: int) -> None:
        if self._child is not None:
            self._child.send_signal(number)
        elif self._adopted is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._adopted, number)


def _serving_command(config: AgentConfig) -> tuple[str, ...]:
    command = [sys.executable, "-m", *_mark(config)]
    serving = config.serving
    command += ["--http", serving.http, "--threads", str(serving.threads)]
    for option, value in (("--grpc", serving.grpc), ("--uds", serving.uds), ("--local", serving.local)):
        command += [option, value] if value else []
    command += ["--allow-shm"] if serving.allow_shm else []
    command += ["--simulate"] if config.device.simulate else []
    command += ["--insecure-dev"] if config.serving.insecure_dev else []
    return tuple(command)


def is_alive(pid: int) -> bool:
    """Whether a process that is not our child lives; a zombie whose parent does not care is dead."""
    if sys.platform == "linux":
        try:
            return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
        except OSError:
            return False
    else:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        return True


def _age_s(pid: int) -> float:
    """Seconds since a process was started (proc(5), field 22 of `stat`); 0 where there is no /proc to look in."""
    try:
        ticks = int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])
    except OSError:
        return 0.0
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))


def _mark(config: AgentConfig) -> tuple[str, ...]:
    """What every command line of a serving process of this state directory holds."""
    return "edgeserve_agent.serving", "--state-dir", str(config.folder)


def _running(command: tuple[str, ...], config: AgentConfig) -> _Running | None:
    """The serving process of the state directory, by its command line; None where there is no /proc to look in."""
    mark = [os.fsencode(word) for word in _mark(config)]
    wanted = [os.fsencode(word) for word in command]
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")[:-1]
        except OSError:  # it ended meanwhile
            continue
        if words[2:5] == mark and is_alive(int(folder.name)):
            return _Running(int(folder.name), as_wanted=words == wanted)
    return None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
