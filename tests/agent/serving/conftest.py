from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import uvloop

from edgeserve.contracts.errors import DeviceError
from edgeserve.contracts.model_config import ModelConfig
from edgeserve.contracts.task import Task
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve.runtimes.base import ONE_DEVICE, Tensor, Tensors
from edgeserve.runtimes.checks import check_inputs
from edgeserve_agent.serving.dataplane import DataPlane
from edgeserve_agent.serving.http_server import HttpLimits
from edgeserve_agent.serving.listen import Address
from edgeserve_agent.serving.opened import Opened
from edgeserve_agent.serving.served import Identity
from edgeserve_agent.serving.server import ModelServer

DEADLINE_S = 10.0
SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", datatype=Datatype.FP32, shape=(-1, 4)),),
    outputs=(TensorSpec(name="y", datatype=Datatype.FP32, shape=(-1, 3)),),
)


class SimulatedModel:
    """Computes what the test says; keeps to the contract of a runtime's loaded model."""

    def __init__(
        self,
        compute: Callable[[Mapping[str, Tensor]], Tensors] | None = None,
        *,
        signature: Signature = SIGNATURE,
        slow: bool = False,
    ) -> None:
        self.signature = signature
        self.executing_device = "simulator"
        self.fallback = ""
        self.placement = ONE_DEVICE
        self.closed = threading.Event()
        self.threads: set[str] = set()
        self._compute = compute or self._sums
        self._slow = slow

    def run(self, inputs: Mapping[str, Tensor]) -> Tensors:
        if self.closed.is_set():
            raise DeviceError("the model was closed")
        check_inputs(self.signature, inputs)
        self.threads.add(threading.current_thread().name)
        if self._slow:
            time.sleep(0.002)
        return self._compute(inputs)

    def close(self) -> None:
        self.closed.set()

    def _sums(self, inputs: Mapping[str, Tensor]) -> Tensors:
        """The sum of each row, in every class."""
        with np.errstate(all="ignore"):  # as a runtime, which does not warn of what overflows
            sums = inputs["x"].sum(axis=1, keepdims=True)
        return {"y": np.repeat(sums, 3, axis=1).astype(np.float32)}


def one_hot(index: int) -> Callable[[Mapping[str, Tensor]], Tensors]:
    """A model that always says `index`."""
    row = np.eye(3, dtype=np.float32)[index]
    return lambda inputs: {"y": np.tile(row, (len(inputs["x"]), 1))}


def digest(number: int) -> str:
    return f"sha256:{number:064x}"


class ServerThread:
    """A model server on an event loop in a thread of this process, listening on a real port."""

    def __init__(
        self,
        make_loop: Callable[[], asyncio.AbstractEventLoop],
        limits: HttpLimits | None = None,
        *,
        allow_shm: bool = False,
    ) -> None:
        self.loop = make_loop()
        self.server = ModelServer(self.loop, threads=1, insecure=False, allow_shm=allow_shm, limits=limits)
        self.plane: DataPlane = self.server.plane
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        self.url = self.run(self.server.listen(Address("127.0.0.1", 0)))
        self.port = int(self.url.rpartition(":")[2])

    def run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(DEADLINE_S)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        async def wrapped() -> Any:
            return function(*arguments)

        return self.run(wrapped())

    def serve(self, model: SimulatedModel, *, name: str = "m", number: int = 1, **more: Any) -> None:
        """Load a model as release `number` and let it answer."""
        self.load(model, name=name, number=number, **more)
        self.call(self.plane.activate, name, digest(number))

    def load(
        self,
        model: SimulatedModel,
        *,
        name: str = "m",
        number: int = 1,
        version: str = "",
        task: Task | None = None,
        config: ModelConfig | None = None,
    ) -> None:
        identity = Identity(model=name, version=version or str(number), release=digest(number), variant=digest(number))
        opened = Opened(model=model, runtime="simulator", task=task, config=config or ModelConfig())
        self.run(self.plane.load(identity, lambda: opened))

    def close(self) -> None:
        self.run(self.server.close(drain_s=DEADLINE_S))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        assert self.headers["content-type"] == "application/json", self
        return json.loads(self.body)

    @property
    def error(self) -> str:
        document = self.json
        assert list(document) == ["error"], self
        assert isinstance(document["error"], str)
        return str(document["error"])


class RawClient:
    """A socket that speaks bytes."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S)
        self._reader = self.socket.makefile("rb")

    def send(self, data: bytes) -> RawClient:
        self.socket.sendall(data)
        return self

    def answer(self, *, head_only: bool = False) -> Answer:
        status_line = self._reader.readline()
        assert status_line.startswith(b"HTTP/1.1 "), status_line
        headers = {}
        while (line := self._reader.readline()) not in (b"\r\n", b""):
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        length = int(headers.get("content-length", 0))
        body = b"" if head_only else self._reader.read(length)
        assert head_only or len(body) == length
        return Answer(int(status_line.split()[1]), headers, body)

    def ended(self) -> bool:
        """Whether the server closed the connection, with nothing more on it."""
        try:
            return self._reader.read() == b""
        except ConnectionResetError:
            return False

    def close(self) -> None:
        self._reader.close()
        self.socket.close()


def request(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: test"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    if body or method == "POST":
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def infer_json(values: Any = None, *, shape: Any = None, datatype: str = "FP32", name: str = "x", **more: Any) -> bytes:
    data = [[1.0, 2.0, 3.0, 4.0]] if values is None else values
    tensor = {"name": name, "shape": [1, 4] if shape is None else shape, "datatype": datatype, "data": data}
    return json.dumps({"inputs": [tensor], **more}).encode()


def wait_until(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, f"waited in vain until {what}"
        time.sleep(0.005)


class Held:
    """A computation that a test holds up; what ran before, such as warm-up, is let through."""

    def __init__(self) -> None:
        self.begun, self._armed, self._go = threading.Event(), threading.Event(), threading.Event()

    def __call__(self, _inputs):
        if self._armed.is_set():
            self.begun.set()
            assert self._go.wait(10)
        return {"y": np.ones((1, 3), np.float32)}

    def arm(self) -> None:
        self._armed.set()

    def release(self) -> None:
        self._go.set()


class Tools:
    """What tests share."""

    held = Held
    model = SimulatedModel
    signature = SIGNATURE
    one_hot = staticmethod(one_hot)
    digest = staticmethod(digest)
    request = staticmethod(request)
    infer_json = staticmethod(infer_json)
    until = staticmethod(wait_until)


@pytest.fixture(scope="session", autouse=True)
def _heap(small_heap: None) -> None:
    """Servers run within the tests' process."""


@pytest.fixture(scope="session")
def tools() -> Tools:
    return Tools()


@pytest.fixture
def make_loop() -> Callable[[], asyncio.AbstractEventLoop]:
    """The kind of event loop; a test module may override it."""
    return uvloop.new_event_loop


@pytest.fixture
def start_server(make_loop: Callable[[], asyncio.AbstractEventLoop]) -> Iterator[Callable[..., ServerThread]]:
    """Starts servers with limits of their own."""
    running: list[ServerThread] = []

    def start(**limits: Any) -> ServerThread:
        server = ServerThread(make_loop, HttpLimits(**limits) if limits else None)
        running.append(server)
        return server

    yield start
    for server in running:
        server.close()


@pytest.fixture
def shm_server() -> Iterator[ServerThread]:
    """One server with the model `m` whose clients may register shared memory."""
    server = ServerThread(uvloop.new_event_loop, allow_shm=True)
    server.serve(SimulatedModel(), version="7")
    yield server
    server.close()


@pytest.fixture(scope="module")
def shared_server() -> Iterator[ServerThread]:
    """One server with the model `m` for tests that change nothing."""
    server = ServerThread(uvloop.new_event_loop, None)
    server.serve(SimulatedModel(), version="7")
    yield server
    server.close()


@pytest.fixture
def connect() -> Iterator[Callable[[ServerThread | int], RawClient]]:
    clients: list[RawClient] = []

    def make(server: ServerThread | int) -> RawClient:
        client = RawClient(server if isinstance(server, int) else server.port)
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.close()
