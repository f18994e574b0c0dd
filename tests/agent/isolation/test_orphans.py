"""No process outlives its parent, however that ends and whatever the process is doing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edgeserve.contracts.errors import DeviceError
from edgeserve_agent.isolation.lifecycle import RestartPolicy, State
from tests.agent.isolation.processes import is_alive, until

PARENT = Path(__file__).with_name("serving_parent.py")
SOON = RestartPolicy(first_s=0.01, longest_s=0.01)


@pytest.mark.parametrize("order", ["echo idle", "hang"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_parent_that_is_ended_leaves_no_orphan(trouble_installed, tmp_path: Path, order: str, number: int) -> None:
    (tmp_path / "m.trouble").write_text("")
    command = [sys.executable, str(PARENT), str(tmp_path / "m.trouble"), order]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == 2
        if order != "hang":
            assert "idle" in parent.stdout.readline()
        assert all(is_alive(pid) for pid in pids)
        parent.send_signal(number)
    until(lambda: not any(is_alive(pid) for pid in pids))


def test_a_parent_that_leaves_without_closing_leaves_no_orphan_and_says_nothing(
    trouble_installed, tmp_path: Path
) -> None:
    (tmp_path / "m.trouble").write_text("")
    command = [sys.executable, str(PARENT), str(tmp_path / "m.trouble"), "leave"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    until(lambda: not any(is_alive(int(pid)) for pid in done.stdout.split()))
    assert done.stderr == ""


def test_workers_end_with_the_fork_server_and_come_back_with_the_next(load_trouble, ask, server) -> None:
    models = [load_trouble(policy=SOON) for _ in range(2)]
    first, workers = server.pid, [model.pid for model in models]
    os.kill(first, signal.SIGKILL)
    until(lambda: not any(is_alive(pid) for pid in (first, *workers)))
    until(lambda: all(model.state is State.SERVING and model.pid not in (None, *workers) for model in models))
    assert server.pid != first
    assert [ask(model, "echo hello") for model in models] == [b"hello"] * 2
    assert [model.last_end for model in models] == ["ended with the fork server"] * 2


def test_a_call_under_way_is_told_that_the_fork_server_took_the_worker_along(load_trouble, ask, server) -> None:
    model = load_trouble(policy=SOON)
    with pytest.raises(DeviceError, match="ended with the fork server during this call"):
        ask(model, f"kill {server.pid}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_what_is_signalled_to_the_whole_group_ends_no_worker(load_trouble, ask, server, number: int) -> None:
    model = load_trouble()
    for pid in (server.pid, model.pid):
        os.kill(pid, number)
    assert ask(model, "echo hello") == b"hello"
    assert model.crashes == 0
    load_trouble()
