"""What a handler's process gives up before it runs a line of the handler. Linux only; called while it has one thread.

Without root: no further privileges, bounded resources, reading of its own folder and of Python's alone (Landlock), one
process and no network (seccomp). With root also: another user, and a network of its own with nothing in it.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgeserve.contracts.errors import DeviceError
from edgeserve.contracts.limits import HANDLER_FILES, HANDLER_IDLE_CPU_S, HANDLER_TASKS
from edgeserve.runtimes.handler_landlock import allow_reading
from edgeserve.runtimes.handler_seccomp import forbid_calls

_PR_SET_NO_NEW_PRIVS: Final = 38
_CLONE_NEWNET: Final = 0x40000000
_SYSTEM: Final = (
    *("/usr", "/lib", "/lib64", "/opt", "/proc", "/sys/devices/system", "/sys/fs/cgroup"),
    *("/etc/ld.so.cache", "/etc/localtime", "/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/mime.types"),
    *("/dev/urandom", "/dev/random", "/dev/zero"),
)
"""What libraries read. Not all of /etc: a server without root could read its own configuration, and tokens, there."""


@dataclass(frozen=True, kw_only=True)
class Confinement:
    """What came of confining a process."""

    applied: tuple[str, ...]
    """What confines it from now on."""
    missing: tuple[str, ...]
    """What does not, each with its reason."""
    closed: tuple[str, ...]
    """Folders of Python's libraries that it cannot read as the user that it has become."""


def confine(folder: Path, *, memory_bytes: int, user: tuple[int, int] | None) -> Confinement:
    """Confine this process for good.

    Args:
        folder: The handler's files, which it may read.
        memory_bytes: Of address space.
        user: User and group to become, for which this process must be root; None = stay.

    Raises:
        DeviceError: It stays privileged.
    """
    import resource

    os.umask(0o077)
    applied = ["resource limits"]
    missing: list[str] = []
    libraries = [path for path in sys.path if path and Path(path).is_dir()]
    bounds = {
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_NOFILE: HANDLER_FILES,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
    }
    if user is not None:  # the kernel counts by user: a server's own threads would count as the handler's
        bounds[resource.RLIMIT_NPROC] = HANDLER_TASKS
    for kind, bound in bounds.items():
        hard = resource.getrlimit(kind)[1]
        bound = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
        resource.setrlimit(kind, (bound, bound))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    libc = ctypes.CDLL(None, use_errno=True)
    if user is not None:
        _note(applied, missing, "own network", "" if libc.unshare(_CLONE_NEWNET) == 0 else _last_error())
        _become(*user)
        applied.append(f"user {user[0]}")
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise DeviceError(f"the kernel grants no_new_privs not: {_last_error()}")
    applied.append("no new privileges")
    closed = tuple(path for path in libraries if not os.access(path, os.R_OK))
    missing += [f"libraries in {path} (closed to its user)" for path in closed]
    readable = [folder, *map(Path, (*_SYSTEM, sys.prefix, sys.base_prefix, *filter(None, sys.path)))]
    _note(applied, missing, "Landlock", allow_reading(readable))
    _note(applied, missing, "seccomp", forbid_calls())
    return Confinement(applied=tuple(applied), missing=tuple(missing), closed=closed)


def allow_processor(seconds: float = HANDLER_IDLE_CPU_S) -> None:
    """Let the process compute for `seconds` more, all threads together, until the next call of this; then SIGXCPU."""
    import resource

    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    until = math.ceil(time.process_time() + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (until if hard == resource.RLIM_INFINITY else min(until, hard), hard))


def _become(user: int, group: int) -> None:
    try:
        os.setgroups([])
        os.setresgid(group, group, group)
        os.setresuid(user, user, user)
    except OSError as error:
        raise DeviceError(
            f"a handler cannot become user {user}: {error.strerror}",
            hint="run the server as a user of its own instead of as root, or let it keep CAP_SETUID and CAP_SETGID",
        ) from error
    if 0 in (*os.getresuid(), *os.getresgid()):
        raise DeviceError("a handler is still root")


def _note(applied: list[str], missing: list[str], name: str, reason: str) -> None:
    if reason:
        missing.append(f"{name} ({reason})")
    else:
        applied.append(name)


def _last_error() -> str:
    return os.strerror(ctypes.get_errno())
