"""Who may connect, processes that die, and the end of a server."""

from __future__ import annotations

import asyncio
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeserve.client import local_wire as wire
from edgeserve.contracts.errors import DeviceError, InputError
from edgeserve_agent.serving.local_server import LocalServer
from tests.agent.serving.local.raw_client import WAIT_S, Raw, plan_of, run

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memfd and SO_PEERCRED are Linux")


# Who may, and the end ---------------------------------------------------------------------------------


def test_the_socket_is_the_owners_alone_unless_others_are_named(node, start, tools):
    assert node.path.stat().st_mode & 0o777 == 0o600
    assert start(tools.model(), users=(12345,)).path.stat().st_mode & 0o777 == 0o666


OTHER_USER = """
import os, sys
from edgeserve.client.local import LocalClient
from edgeserve.contracts.errors import DeviceError
os.chdir(sys.argv[1])
os.setuid(12345)
try:
    print(LocalClient(sys.argv[2]).model("m").name)
except DeviceError as error:
    print(error.message)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize(("users", "says"), [((), b"user 12345 may not use this server\n"), ((12345,), b"m\n")])
def test_another_user_is_let_in_only_if_named(start, tools, users, says):
    node = start(tools.model(), users=users)
    node.path.chmod(0o666)
    node.path.parent.chmod(0o755)
    ended = subprocess.run(
        [sys.executable, "-c", OTHER_USER, str(node.path.parent), node.path.name],
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert ended.stdout == says, ended.stderr


def test_a_live_server_is_not_pushed_aside_and_a_dead_one_is(node, start, tools, tmp_path):
    other = LocalServer(node.server.loop, node.server.plane)
    with pytest.raises(DeviceError, match="another server listens"):
        node.server.call(other.listen, node.path)
    file = tmp_path / "file"
    file.write_text("precious")
    with pytest.raises(InputError, match="not a socket"):
        node.server.call(other.listen, file)
    assert file.read_text() == "precious"
    stale = tmp_path / "stale.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(stale))
    node.server.call(other.listen, stale)
    Raw(stale).greet().socket.close()
    node.server.run(other.close(0.1))
    assert not stale.exists()


KILLED = """
import sys, time
from edgeserve.client.local import LocalClient
client = LocalClient(sys.argv[1])
session = client.session("m", slots=2)
session.inputs["x"][...] = 1
session.slots[0].start()
print("started", flush=True)
time.sleep(60)
"""


def test_what_a_killed_client_shared_is_gone_when_its_request_is_done(start, tools):
    began, go_on, seen = threading.Event(), threading.Event(), []

    def compute(inputs: Any) -> Any:
        if inputs["x"].any():
            began.set()
            assert go_on.wait(WAIT_S)
            seen.append(float(inputs["x"].sum()))
        return {"y": np.zeros((len(inputs["x"]), 3), np.float32)}

    node = start(tools.model(compute, slow=True))
    client = subprocess.Popen([sys.executable, "-c", KILLED, str(node.path)], stdout=subprocess.PIPE)
    try:
        assert client.stdout is not None
        assert client.stdout.readline() == b"started\n"
        assert began.wait(WAIT_S)
        assert node.state == (1, 256)
        client.send_signal(signal.SIGKILL)
        tools.until(lambda: node.state == (1, 0), "the regions are given back")
        assert "edgeserve-tensors" in Path("/proc/self/maps").read_text()
        go_on.set()
        tools.until(lambda: node.state == (0, 0), "the connection is forgotten")
        assert seen == [4.0]
        tools.until(lambda: "edgeserve-tensors" not in Path("/proc/self/maps").read_text(), "the memory is unmapped")
    finally:
        client.kill()
        client.wait()
        assert client.stdout is not None
        client.stdout.close()


def test_a_plan_that_is_closed_gives_its_memory_back_and_answers_what_runs_with_an_error(start, connect, memory, tools):
    began, go_on = threading.Event(), threading.Event()

    def compute(inputs: Any) -> Any:
        if inputs["x"].any():
            began.set()
            assert go_on.wait(WAIT_S)
        return {"y": np.ones((1, 3), np.float32)}

    node = start(tools.model(compute, slow=True))
    client, descriptor = connect(node).greet(), memory()
    number = client.open(plan_of(), descriptor)
    mmap.mmap(descriptor, 4096)[:16] = b"\1" * 16
    client.send(wire.head(wire.RUN, number, 0, 1))
    assert began.wait(WAIT_S)
    client.send(wire.head(wire.CLOSE, number, 0, 2))
    tools.until(lambda: node.state == (1, 0), "the region is given back")
    go_on.set()
    assert "the plan was closed" in client.error().message
    again = client.open(plan_of(), descriptor)
    assert again != number
    assert run(client, again)[0] == wire.LAYOUT


def test_a_server_that_stops_answers_what_it_has_begun(start, connect, memory, tools):
    began, go_on = threading.Event(), threading.Event()

    def compute(inputs: Any) -> Any:
        if inputs["x"].any():
            began.set()
            assert go_on.wait(WAIT_S)
        return {"y": np.ones((1, 3), np.float32)}

    node = start(tools.model(compute, slow=True))
    client, idle, descriptor = connect(node).greet(), connect(node).greet(), memory()
    number = client.open(plan_of(), descriptor)
    mmap.mmap(descriptor, 4096)[:16] = b"\1" * 16
    client.send(wire.head(wire.RUN, number, 0, 1))
    assert began.wait(WAIT_S)
    closing = asyncio.run_coroutine_threadsafe(node.local.close(WAIT_S), node.server.loop)
    assert idle.ended()
    assert not node.path.exists()
    go_on.set()
    assert client.read()[0] == wire.LAYOUT
    assert client.read()[0] == wire.DONE
    assert client.ended()
    closing.result(WAIT_S)
    assert node.state == (0, 0)
