"""Clients that leave, models that hang, and a process that runs out of something: the others are answered."""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from edgeserve.contracts.documents import encode
from edgeserve.contracts.errors import DeviceError
from edgeserve_agent.serving.call import Call

LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: t\r\n\r\n"
PATIENCE_S = 60.0


def infer(tools, model: str = "m", rows: int = 1) -> bytes:
    return tools.request("POST", f"/v2/models/{model}/infer", tools.infer_json([[1.0] * 4] * rows, shape=[rows, 4]))


# In this process ------------------------------------------------------------------------------------


def test_a_client_that_goes_in_the_middle_of_a_large_answer_leaves_nothing_behind(start_server, connect, tools):
    server = start_server()
    large = np.zeros((1_000_000, 3), np.float32)
    server.serve(tools.model(lambda inputs: {"y": large[: 1 if len(inputs["x"]) == 1 else None]}, slow=True))
    wanted = tools.infer_json([[0.0] * 4] * 2, shape=[2, 4], parameters={"binary_data_output": True})
    for reset in (False, True, False, True):
        client = connect(server).send(tools.request("POST", "/v2/models/m/infer", wanted))
        assert client.socket.recv(12) == b"HTTP/1.1 200"
        if reset:
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
    http = server.server._http
    tools.until(lambda: server.call(lambda: not http._connections and not http._held), "they were forgotten")
    assert connect(server).send(infer(tools)).answer().status == 200


def test_clients_that_never_read_do_not_keep_others_waiting(start_server, connect, tools):
    server = start_server()
    large = np.zeros((1_000_000, 3), np.float32)
    server.serve(tools.model(lambda inputs: {"y": large[: 1 if len(inputs["x"]) == 1 else None]}, slow=True))
    wanted = tools.request("POST", "/v2/models/m/infer", tools.infer_json([[0.0] * 4] * 2, shape=[2, 4]))
    deaf = [connect(server).send(wanted * 3) for _ in range(4)]
    http = server.server._http
    tools.until(
        lambda: server.call(lambda: sum(one._writing_until is not None for one in http._connections)) == len(deaf),
        "the answers filled the pipes",
    )
    assert connect(server).send(infer(tools)).answer().status == 200


def test_a_model_that_hangs_keeps_nobody_but_its_own_clients_waiting(start_server, connect, tools):
    server = start_server()
    entered, go = threading.Event(), threading.Event()
    warm = threading.Event()

    def hang(inputs):
        if warm.is_set():
            entered.set()
            assert go.wait(PATIENCE_S)
        return {"y": np.ones((1, 3), np.float32)}

    server.serve(tools.model(hang, slow=True), name="hangs")
    server.serve(tools.model(slow=True), name="slow", number=2)
    server.serve(tools.model(), name="quick", number=3)
    warm.set()
    stuck = connect(server).send(infer(tools, "hangs"))
    gone = connect(server).send(infer(tools, "hangs"))
    assert entered.wait(PATIENCE_S)
    for name in ("slow", "quick") * 3:
        assert connect(server).send(infer(tools, name)).answer().status == 200
    assert connect(server).send(b"GET /metrics HTTP/1.1\r\n\r\n").answer().status == 200
    gone.close()
    go.set()
    assert stuck.answer().status == 200
    assert connect(server).send(infer(tools, "hangs")).answer().status == 200


def test_an_answer_that_cannot_be_written_is_an_error_and_no_silence(start_server, connect, tools):
    """What a model gives back breaks its word in a way that only shows when it is written."""

    class Unwritable(np.ndarray):
        def tobytes(self, *_: object) -> bytes:
            raise ZeroDivisionError("tobytes")

        ravel = tolist = tobytes

    for slow in (False, True):
        server = start_server()
        model = tools.model(lambda inputs: {"y": np.ones((1, 3), np.float32).view(Unwritable)}, slow=slow)
        server.serve(model)
        client = connect(server)
        for _ in range(2):
            answer = client.send(infer(tools)).answer()
            assert answer.status == 500
            assert "cannot be written" in answer.error


def test_an_answered_request_keeps_no_tensors_until_the_collector_comes(start_server, connect, tools):
    """What it kept would be mapped memory of clients, and open files with it."""
    server = start_server()
    server.serve(tools.model())
    server.serve(tools.model(slow=True), name="slow", number=2)
    client = connect(server)
    gc.collect()
    gc.disable()
    try:
        for name in ("m", "slow") * 5:
            assert client.send(infer(tools, name)).answer().status == 200
        tools.until(lambda: not any(type(one) is Call for one in gc.get_objects()), "all calls were freed")
    finally:
        gc.enable()


def test_pipelined_requests_of_every_dialect_are_answered_in_order(start_server, connect, tools):
    server = start_server()
    server.serve(tools.model(slow=True))
    row = b'{"instances": [[1, 2, 3, 4]]}'
    sent = [
        (tools.request("POST", "/v2/models/m/infer", tools.infer_json()), 200, "outputs"),
        (tools.request("POST", "/v1/models/m:predict", row), 200, "predictions"),
        (tools.request("POST", "/v1/models/nope:predict", row), 404, "error"),
        (tools.request("POST", "/invocations", row, Content_Type="application/json"), 200, "predictions"),
        (LIVE, 200, "live"),
        (tools.request("POST", "/v2/models/m/infer", b"{"), 400, "error"),
        (tools.request("POST", "/v2/repository/index", b"{}"), 200, "m"),
        (tools.request("PUT", "/v2"), 405, "error"),
        (tools.request("GET", "/v1/models/m"), 200, "model_version_status"),
    ]
    client = connect(server)
    for _ in range(2):
        client.send(b"".join(data for data, _, _ in sent))
        for _, status, says in sent:
            answer = client.answer()
            assert answer.status == status
            assert f'"{says}"' in answer.body.decode()


# In a process of its own ----------------------------------------------------------------------------


class Served:
    """`edgeserve serve` on a folder of null models."""

    def __init__(self, folder: Path, *, descriptors: tuple[int, int] | None = None) -> None:
        self.log = (folder / "log").open("ab")
        command = [
            sys.executable,
            "-m",
            "edgeserve",
            "serve",
            str(folder / "models"),
            "--http",
            "127.0.0.1:0",
            "--json",
        ]

        def bound() -> None:
            if descriptors is not None:
                resource.setrlimit(resource.RLIMIT_NOFILE, descriptors)

        self.child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, preexec_fn=bound)
        assert self.child.stdout is not None
        said = b""
        while not said.rstrip().endswith(b"\n}"):
            line = self.child.stdout.readline()
            assert line, (folder / "log").read_text()
            said += line
        self.port = int(json.loads(said)["http"].rpartition(":")[2])

    def memory_kib(self) -> int:
        lines = Path(f"/proc/{self.child.pid}/status").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "VmSwap")))

    def descendants(self) -> list[int]:
        def below(pid: int) -> list[int]:
            tasks = list(Path(f"/proc/{pid}/task").iterdir())
            found = [int(one) for task in tasks for one in (task / "children").read_text().split()]
            return [*found, *(one for child in found for one in below(child))]

        return below(self.child.pid)


@pytest.fixture
def serve(tmp_path: Path, tools) -> Iterator[Callable[..., Served]]:
    running: list[Served] = []

    def start(*names: str, **options: object) -> Served:
        for name in names or ("m",):
            version = tmp_path / "models" / name / "1"
            version.mkdir(parents=True)
            (version / "model.null.json").write_bytes(encode(tools.signature))
            if name == "isolated":
                (version.parent / "config.toml").write_text('isolation = "process"\n')
        served = Served(tmp_path, **options)  # type: ignore[arg-type]
        running.append(served)
        return served

    yield start
    for served in running:
        served.child.kill()
        served.child.wait()
        assert served.child.stdout is not None
        served.child.stdout.close()
        served.log.close()


def test_a_stopping_process_waits_for_the_rest_of_a_request(serve, connect, tools):
    served = serve()
    sent = infer(tools)
    idle = connect(served.port).send(LIVE)
    assert idle.answer().status == 200
    client = connect(served.port).send(sent[:-10])
    assert connect(served.port).send(LIVE).answer().status == 200, "what came before it was read"
    served.child.send_signal(signal.SIGTERM)
    assert idle.ended()
    answer = client.send(sent[-10:]).answer()
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    assert client.ended()
    assert served.child.wait(PATIENCE_S) == 0


def test_a_worker_process_that_is_killed_fails_calls_with_the_reason_and_comes_back(serve, connect, tools):
    served = serve("isolated", "m")
    client, other = connect(served.port), connect(served.port)
    assert client.send(infer(tools, "isolated")).answer().status == 200
    below = served.descendants()
    (worker,) = [pid for pid in below if not Path(f"/proc/{pid}/task/{pid}/children").read_text()]
    os.kill(worker, signal.SIGKILL)
    failures = 0
    end = time.monotonic() + PATIENCE_S
    while True:
        answer = client.send(infer(tools, "isolated")).answer()
        assert other.send(infer(tools)).answer().status == 200, "the other model has nothing to do with it"
        if answer.status == 200 and failures:
            break
        if answer.status != 200:
            failures += 1
            assert answer.status in (500, 503)
            assert "worker process" in answer.error
            assert (answer.headers.get("retry-after") == "1") == (answer.status == 503)
        assert time.monotonic() < end


@pytest.mark.parametrize(
    ("descriptors", "exhausted"),
    [pytest.param(80, True, id="accepting fails"), pytest.param(400, False, id="enough to turn all away")],
)
def test_a_process_without_file_descriptors_answers_who_is_there_and_takes_new_ones_later(
    serve, connect, tools, descriptors: int, exhausted: bool
):
    served = serve(descriptors=(descriptors, descriptors))
    kept = connect(served.port)
    assert kept.send(infer(tools)).answer().status == 200
    crowd = [socket.create_connection(("127.0.0.1", served.port), timeout=PATIENCE_S) for _ in range(300)]
    if exhausted:
        tools.until(
            lambda: len(list(Path(f"/proc/{served.child.pid}/fd").iterdir())) >= descriptors - 1, "all were used"
        )
    for _ in range(5):
        assert kept.send(infer(tools)).answer().status == 200
    for client in crowd:
        client.close()

    def answered() -> bool:
        try:
            return connect(served.port).send(infer(tools)).answer().status == 200
        except (ConnectionError, AssertionError):
            return False

    tools.until(answered, "new clients were answered")
    served.child.send_signal(signal.SIGTERM)
    assert served.child.wait(PATIENCE_S) == 0


CROWD = """
import resource, socket, sys
port, count = map(int, sys.argv[1:])
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
kept = []
for number in range(count):
    client = socket.create_connection(("127.0.0.1", port), timeout=60)
    client.sendall(b"GET /v2/health/live HTTP/1.1\\r\\nHost: t\\r\\n\\r\\n")
    kept.append(client)
for client in kept:
    assert client.recv(4096).startswith(b"HTTP/1.1 200"), "not admitted"
print("all are here", flush=True)
sys.stdin.read()
"""


def test_ten_thousand_idle_connections_are_kept_and_a_new_client_is_answered(serve, connect, tools):
    count = 10_000
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < count * 4 // 3 + 600:
        pytest.skip("the hard limit of file descriptors does not allow as many")
    served = serve()
    assert connect(served.port).send(infer(tools)).answer().status == 200
    before = served.memory_kib()
    command = [sys.executable, "-c", CROWD, str(served.port), str(count)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as crowd:
        assert crowd.stdout is not None
        assert crowd.stdin is not None
        assert crowd.stdout.readline() == b"all are here\n"
        each = (served.memory_kib() - before) / count
        client = connect(served.port)
        for _ in range(20):
            assert client.send(infer(tools)).answer().status == 200
        crowd.stdin.close()
        assert crowd.wait(PATIENCE_S) == 0
    print(f"{each:.2f} KiB each")
    assert each < 8
    assert client.send(infer(tools)).answer().status == 200


def test_a_model_that_raises_is_the_servers_fault_each_time(start_server, connect, tools):
    server = start_server()
    warm = threading.Event()

    def broken(inputs):
        if warm.is_set():
            raise DeviceError("the accelerator is gone") if len(inputs["x"]) == 1 else MemoryError("no memory")
        return {"y": np.ones((len(inputs["x"]), 3), np.float32)}

    server.serve(tools.model(broken))
    warm.set()
    client = connect(server)
    for _ in range(3):
        assert "the accelerator is gone" in client.send(infer(tools)).answer().error
        answer = client.send(infer(tools, rows=2)).answer()
        assert answer.status == 500
        assert "no memory" in answer.error
