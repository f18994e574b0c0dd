"""compile, serve and the clients can be imported where the modules and calls of Unix are not.

Windows and macOS themselves are not here: their absence is played in a child process, after the interpreter and foreign
libraries have started, so that only our own imports meet it.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

PROGRAM = r"""
import importlib, importlib.abc, importlib.util, json, pkgutil, sys, traceback
platform, packages = sys.argv[1], sys.argv[2:]

# Foreign libraries have wheels of their own for other systems; they see this one.
FOREIGN = '''
numpy msgspec typer asyncio concurrent.futures subprocess multiprocessing socket tempfile urllib3 cryptography
securesystemslib.signer httptools hpack onnx onnxruntime PIL.Image ctypes pathlib shutil mmap logging.handlers
ssl http.client webbrowser rich.console rich.progress jinja2 yaml grpc grpc.aio google.protobuf.message psutil
xml.etree.ElementTree sqlite3 unittest http.server glob platform getpass zipfile tarfile onnx.reference
onnx.numpy_helper email.parser cProfile statistics uuid csv multiprocessing.shared_memory
multiprocessing.resource_tracker urllib.request openvino torch nncf paho.mqtt.client ai_edge_quantizer
ai_edge_litert.interpreter xgboost skl2onnx
'''.split()
sys.modules["openvino_telemetry"] = None
for name in FOREIGN:
    try:
        importlib.import_module(name)
    except ImportError:
        pass

import os, select, signal, socket
BLOCKED = {"fcntl", "pwd", "grp", "resource", "termios", "uvloop", "tty", "pty", "syslog", "_posixshmem"}
GONE = {
    os: '''
        fork forkpty getuid geteuid getgid getegid setuid setgid setgroups setresuid setresgid killpg
        getpgid setsid nice sched_getaffinity sched_setaffinity memfd_create pidfd_open posix_fallocate
        posix_fadvise statvfs fstatvfs getloadavg sysconf uname mkfifo fchmod chown fchown O_CLOEXEC
        O_NONBLOCK O_NOFOLLOW O_DIRECTORY O_PATH MFD_CLOEXEC MFD_ALLOW_SEALING WNOHANG waitid
        register_at_fork eventfd sendfile splice pread pwrite preadv pwritev readv writev
    '''.split(),
    signal: '''
        SIGKILL SIGHUP SIGUSR1 SIGUSR2 SIGXCPU SIGCHLD SIGQUIT SIGPIPE pthread_sigmask sigwait setitimer
        alarm
    '''.split(),
    socket: '''
        AF_UNIX SOCK_SEQPACKET SO_PEERCRED SO_REUSEPORT SOCK_CLOEXEC SOCK_NONBLOCK SCM_RIGHTS
        MSG_CMSG_CLOEXEC MSG_NOSIGNAL send_fds recv_fds CMSG_LEN CMSG_SPACE TCP_QUICKACK
    '''.split(),
    select: '''
        poll epoll POLLRDHUP
    '''.split(),
}
MAC_HAS = {"fcntl", "pwd", "grp", "resource", "termios", "uvloop", "tty", "pty", "syslog", "_posixshmem"}
MAC_LACKS = '''
sched_getaffinity sched_setaffinity memfd_create pidfd_open posix_fallocate posix_fadvise O_PATH MFD_CLOEXEC
MFD_ALLOW_SEALING setresuid setresgid eventfd splice SO_PEERCRED SOCK_CLOEXEC SOCK_NONBLOCK MSG_CMSG_CLOEXEC
TCP_QUICKACK epoll POLLRDHUP preadv pwritev
'''.split()
if platform == "darwin":
    BLOCKED -= MAC_HAS
    GONE = {module: [name for name in names if name in MAC_LACKS] for module, names in GONE.items()}

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in BLOCKED:
            raise ImportError(f"{name} is not on {platform}", name=name)
        return None

sys.meta_path.insert(0, Absent())
for name in BLOCKED:
    sys.modules.pop(name, None)
for module, names in GONE.items():
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
sys.platform = platform

failures = {}
count = 0
def attempt(name):
    global count
    count += 1
    try:
        return importlib.import_module(name)
    except Exception as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "edgeserve" in f.filename]
        place = f"{frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}" if frames else ""
        failures[name] = f"{type(error).__name__}: {error} ({place})"

for package in packages:
    found = attempt(package)
    for module in pkgutil.walk_packages(getattr(found, "__path__", []), package + ".", onerror=lambda name: None):
        if not module.name.endswith("__main__"):  # which would run
            attempt(module.name)
print(json.dumps([count, failures]))
"""
PACKAGES = ("edgeserve", "edgeserve_compilers", "edgeserve_devices", "edgeserve_agent.serving")


@pytest.fixture(scope="module", params=["win32", "darwin"])
def imported(request: pytest.FixtureRequest) -> tuple[int, dict[str, str]]:
    """How many modules were imported as if on that system, and why some were not."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, request.param, *PACKAGES],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    count, failures = json.loads(done.stdout.strip().splitlines()[-1])
    return count, failures


def test_every_module_of_compile_serve_and_client_can_be_imported(imported: tuple[int, dict[str, str]]) -> None:
    count, failures = imported
    assert failures == {}
    assert count > 300


def test_the_absence_of_unix_is_really_played() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, "win32", "edgeserve_agent.daemon"],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    _, failures = json.loads(done.stdout.strip().splitlines()[-1])
    assert "fcntl is not on win32" in failures["edgeserve_agent.daemon"]
