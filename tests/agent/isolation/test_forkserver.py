from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edgeserve.contracts.errors import DeviceError, InputError, NotFoundError
from edgeserve.runtimes.base import RuntimeOptions
from edgeserve_agent.isolation.forkserver import ForkServer
from edgeserve_agent.isolation.messages import LoadOrder
from edgeserve_agent.isolation.options import IsolationOptions
from edgeserve_agent.isolation.runtime import IsolatedRuntime
from tests.agent.isolation.processes import is_alive, state, until


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "litert", "null"])
def test_it_has_one_thread_whatever_it_has_imported_so_that_a_fork_is_whole(server: ForkServer, runtime: str) -> None:
    try:
        assert server.warm(runtime)
    except DeviceError as error:  # litert is not installed everywhere
        pytest.skip(error.message)
    assert len([*Path(f"/proc/{server.pid}/task").iterdir()]) == 1


def test_the_library_is_never_imported_in_the_serving_process() -> None:
    program = (
        "import sys\n"
        "from edgeserve_agent.isolation.runtime import IsolatedRuntime\n"
        "version = IsolatedRuntime('onnxruntime').version()\n"
        "print(version, 'onnxruntime' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    version, imported = done.stdout.split()
    assert version[0].isdigit()
    assert imported == "False"
    assert done.stderr == ""


def test_a_runtime_that_does_not_exist_is_named(server: ForkServer, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no runtime is named 'absent'") as raised:
        IsolatedRuntime("absent", server=server).load(tmp_path, RuntimeOptions())
    assert "onnxruntime" in raised.value.hint


def test_a_runtime_whose_library_is_broken_takes_nothing_along(load_trouble, ask, server: ForkServer) -> None:
    model = load_trouble()
    with pytest.raises(DeviceError, match=r"ZeroDivisionError .*no error of imports"):
        server.warm("broken")
    assert ask(model, "echo hello") == b"hello"
    assert (model.crashes, server.warm("trouble")) == (0, "1")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_one_that_was_lost_is_replaced_by_the_next_order(server: ForkServer, number: int, monkeypatch) -> None:
    monkeypatch.setattr("edgeserve_agent.isolation.forkserver.SERVING_START_S", 3.0)
    monkeypatch.setattr("edgeserve_agent.isolation.forkserver._END_S", 0.1)
    server.warm("null")
    first = server.pid
    assert first is not None
    os.kill(first, number)
    until(lambda: state(first) in "ZT")
    assert server.warm("null") == "1"
    assert server.pid != first
    assert not is_alive(first)


def test_a_closed_one_starts_nothing_any_more(server: ForkServer) -> None:
    server.warm("null")
    pid = server.pid
    assert pid is not None
    server.close()
    server.close()
    assert not is_alive(pid)
    with pytest.raises(DeviceError, match="closed"):
        server.warm("null")


def test_on_other_systems_it_imports_and_says_where_it_works(tmp_path: Path) -> None:
    program = (
        "import os, socket, sys\n"
        "import edgeserve.runtimes.null\n"
        "for name in ('memfd_create', 'pidfd_open', 'fork'):\n"
        "    delattr(os, name)\n"
        "for name in ('send_fds', 'recv_fds', 'AF_UNIX', 'SOCK_SEQPACKET'):\n"
        "    delattr(socket, name)\n"
        "for name in ('fcntl', 'resource'):\n"
        "    sys.modules[name] = None\n"
        "sys.platform = 'darwin'\n"
        "from pathlib import Path\n"
        "from edgeserve.runtimes.base import RuntimeOptions\n"
        "from edgeserve_agent.isolation import model, worker, zygote\n"
        "from edgeserve_agent.isolation.runtime import IsolatedRuntime\n"
        "try:\n"
        "    IsolatedRuntime('null').load(Path('m'), RuntimeOptions())\n"
        "except Exception as error:\n"
        "    print(type(error).__name__, error.message, error.hint, sep='|')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    kind, message, hint = done.stdout.strip().split("|")
    assert kind == "DeviceError"
    assert 'isolation = "process" needs Linux' in message
    assert "darwin" in message
    assert "without isolation" in hint


@pytest.mark.parametrize(
    "wrong",
    [{"calls": 0}, {"calls": 33}, {"memory_limit_bytes": -1}, {"oom_score_adj": -1}, {"oom_score_adj": 1001}],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(InputError, match=f"isolation: {next(iter(wrong))}"):
        IsolationOptions(**wrong)


def test_a_worker_for_which_there_is_no_descriptor_is_an_error_that_says_so(server: ForkServer, tmp_path: Path) -> None:
    server.warm("null")
    order = LoadOrder(runtime="null", path=str(tmp_path), options=RuntimeOptions(), isolation=IsolationOptions())
    next_free = os.open("/dev/null", os.O_RDONLY)
    os.close(next_free)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (next_free, limits[1]))
    try:
        with pytest.raises(DeviceError, match="too many open files"):
            server.fork(order, ())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert server.warm("null")
