"""What the agent tells the service manager: that it serves, that it is alive, what it does.

`sd_notify(3)`: a datagram of `NAME=value` lines to the Unix socket that `$NOTIFY_SOCKET` names. Without that variable
(no systemd) nothing is sent. `sd_watchdog_enabled(3)`: a service that is silent for `$WATCHDOG_USEC` is ended.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from typing import Final

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.limits import MAX_NOTIFY_STATUS_BYTES, SERVING_SILENT_S, START_EXTENSION_S
from edgeserve_agent.control import ServingStatus
from edgeserve_agent.deployment import Record

_VARIABLES: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
_log = logging.getLogger("edgeserve.agent")


class Notifier:
    """Sends to the service manager, never waits for it, and never fails for its sake.

    Args:
        address: Path of its socket, or `@name` of an abstract one; empty = there is no service manager.
        watchdog_s: Silence after which it ends us; 0 = it does not.

    Raises:
        InputError: The address is neither a path nor an abstract name.
    """

    def __init__(self, address: str = "", *, watchdog_s: float = 0.0) -> None:
        if address and address[0] not in "/@":
            hint = "systemd sets it for a service of Type=notify; unset it elsewhere"
            raise InputError(f"NOTIFY_SOCKET {address[:120]!r} is neither a path nor @NAME", hint=hint)
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self.watchdog_s = watchdog_s if address else 0.0

    @classmethod
    def take(cls, environment: MutableMapping[str, str], *, pid: int) -> Notifier:
        """Read the variables and remove them, so that no child of ours speaks for us.

        Args:
            environment: Usually `os.environ`.
            pid: Ours; a watchdog that is meant for another process is none of our business.

        Raises:
            InputError: A variable is not what systemd would set.
        """
        address, period, watched = (environment.pop(name, "") for name in _VARIABLES)
        if watched and watched != str(pid):
            period = ""
        if period and not (period.isascii() and period.isdecimal()):
            raise InputError(f"WATCHDOG_USEC {period[:40]!r} is not a number of microseconds", hint="unset it")
        return cls(address, watchdog_s=int(period or 0) / 1e6)

    def send(self, *assignments: str) -> bool:
        """Send one datagram of `NAME=value` lines; tells whether it was taken."""
        if not self._address or not assignments:
            return False
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
                channel.setblocking(False)  # a service manager that does not read must not stop us
                channel.sendto("\n".join(assignments).encode(), self._address)
        except OSError as error:
            _log.debug("the service manager does not take %s: %s", assignments, error)
            return False
        return True


@dataclass(frozen=True, kw_only=True)
class Condition:
    """How the agent is now."""

    ready: bool
    """The server answers, and has loaded, or given up, what it was started with."""
    live: bool
    """Nothing hangs: the server answered within its bound, or is starting, or waits for its next start."""
    status: str
    """In words, one line."""


def condition(served: ServingStatus | None, *, live: bool, records: Sequence[Record], problem: str) -> Condition:
    """The condition in words.

    Args:
        served: The server's last answer; None while there is none.
        live: See `Condition`.
        records: Latest deployment of each model.
        problem: What the manager is told, too; may be empty.
    """
    if not live:
        words = ["the serving process does not answer"]
    elif served is None:
        words = ["starting the serving process"]
    else:
        active = ", ".join(f"{one.model} {one.version}" for one in served.releases if one.active)
        nothing = "loading models" if served.starting else "serves no model"
        words = [f"{f'serves {active}' if active else nothing} at {served.http_url}"]
    words += [f"{one.model} {one.target.version}: {one.state.value}" for one in records if one.in_flight]
    words += [problem] if problem else []
    ready = served is not None and not served.starting
    return Condition(ready=live and ready, live=live, status="; ".join(words))


class Announcer:
    """Decides what the service manager hears, and when. It is asked in every turn of the control loop, so a loop that
    hangs is silent; a server that hangs makes it silent, too.

    Args:
        notifier: To the service manager.
    """

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self._ready = False
        self._status = ""
        self._due = float("-inf")

    @property
    def silence_s(self) -> float:
        """Longest time without an answer of the server that is no fault: half of the watchdog's period."""
        return self._notifier.watchdog_s / 2 or SERVING_SILENT_S

    def tell(self, now: float, condition: Condition) -> None:
        """Send what is new or due.

        Args:
            now: Monotonic seconds.
            condition: Of the agent.
        """
        ready = self._ready or condition.ready
        status = condition.status.replace("\n", " ").encode()[:MAX_NOTIFY_STATUS_BYTES].decode(errors="ignore")
        words = ["READY=1"] if ready and not self._ready else []
        words += [f"STATUS={status}"] if status != self._status else []
        due = condition.live and (now >= self._due or "READY=1" in words)
        if due and ready:
            words += ["WATCHDOG=1"] if self._notifier.watchdog_s else []
        elif due:
            # A model may take minutes to load, or an engine to build: the start may take longer while all goes well.
            words += [f"EXTEND_TIMEOUT_USEC={START_EXTENSION_S * 1_000_000:.0f}"]
        if self._notifier.send(*words):
            self._ready, self._status = ready, status
            if due:
                self._due = now + (self.silence_s if ready else START_EXTENSION_S / 2)

    def stopping(self) -> None:
        """The agent was told to end."""
        self._notifier.send("STOPPING=1", "STATUS=stopping: requests in flight are answered")


def this_process(environment: MutableMapping[str, str] = os.environ) -> Announcer:
    """The announcer of this process; take it once, before the first child is started.

    Raises:
        InputError: A variable is not what systemd would set.
    """
    return Announcer(Notifier.take(environment, pid=os.getpid()))
