"""The filter alone, in a process of its own that has all else that Python gives."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or platform.machine() not in ("x86_64", "aarch64"),
    reason="there is no table of system calls for this machine",
)

BEFORE = """
import ctypes, fcntl, os, signal, socket
from edgeserve.runtimes.handler_seccomp import forbid_calls
read, write = os.pipe()
ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
assert forbid_calls() == ""
"""


def run(*lines: str) -> subprocess.CompletedProcess[str]:
    code = BEFORE + "\n".join(lines)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    "line",
    [
        "fcntl.fcntl(read, 8, os.getppid())",
        "fcntl.fcntl(read, 15, bytes(8))",
        "fcntl.ioctl(read, 0x8901, bytes(4))",
        "socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)",
        "os.fchmod(read, 0o777)",
        "os.utime('/dev/null')",
        "os.truncate('/dev/null', 0)",
        "os.setpriority(os.PRIO_PROCESS, 0, 5)",
        "os.sched_setaffinity(os.getppid(), {0})",
        "os.kill(os.getppid(), 0)",
        "os.fork()",
    ],
)
def test_a_call_that_reaches_beyond_the_process_is_refused(line: str) -> None:
    ended = run(line)
    assert ended.returncode == 1
    assert "PermissionError" in ended.stderr


@pytest.mark.parametrize(
    "line",
    [
        "fcntl.fcntl(read, fcntl.F_SETFL, os.O_NONBLOCK)",
        "fcntl.ioctl(read, 0x541B, bytes(4))",
        "os.sched_setaffinity(0, os.sched_getaffinity(0))",
        "os.kill(os.getpid(), 0)",
        "import threading; one = threading.Thread(target=print); one.start(); one.join()",
    ],
)
def test_a_call_of_the_process_itself_goes_through(line: str) -> None:
    ended = run(line)
    assert ended.returncode == 0, ended.stderr
