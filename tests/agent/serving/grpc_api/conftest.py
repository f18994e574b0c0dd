from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import uvloop

pytest.importorskip("google.protobuf")

from edgeserve.client.oip_proto import messages, service_methods
from edgeserve.contracts.errors import NotFoundError
from edgeserve.contracts.model_config import ModelConfig
from edgeserve.contracts.task import Task
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve_agent.serving.catalog import State
from edgeserve_agent.serving.dataplane import DataPlane
from edgeserve_agent.serving.grpc.service import GrpcService
from edgeserve_agent.serving.opened import Opened
from edgeserve_agent.serving.rpc import StatusCode
from edgeserve_agent.serving.served import Identity
from edgeserve_agent.serving.shared_memory import SharedMemory

DEADLINE_S = 10.0
INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
KINDS = tuple(Datatype)
ECHO = Signature(
    inputs=tuple(TensorSpec(name=f"in_{kind.value}", datatype=kind, shape=(-1,)) for kind in KINDS),
    outputs=tuple(TensorSpec(name=f"out_{kind.value}", datatype=kind, shape=(-1,)) for kind in KINDS),
)
"""A model that gives back what it gets, in every datatype."""


def echo(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {name.replace("in_", "out_"): array.copy() for name, array in inputs.items()}


def single(kind: Datatype, shape: tuple[int, ...] = (-1,)) -> Signature:
    return Signature(
        inputs=(TensorSpec(name="x", datatype=kind, shape=shape),),
        outputs=(TensorSpec(name="y", datatype=kind, shape=shape),),
    )


def same(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {"y": inputs["x"].copy()}


class SimulatedCall:
    """A call without a transport; keeps to the contract of `RpcCall`."""

    def __init__(self, path: str, **metadata: str) -> None:
        self.path = path
        self.metadata = metadata
        self.cancelled = False
        self.on_cancel: Callable[[], None] | None = None
        self.sent: list[bytes] = []
        self.status: tuple[StatusCode, str] | None = None
        self.ended = threading.Event()
        self.paused = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: deque[Any] = deque()

    def deliver(self, receiver: Callable[[Any], None], *messages: Any) -> None:
        """Give the service messages, while it takes them; the rest when it takes them again."""
        self._loop = asyncio.get_running_loop()
        self._waiting += [(receiver, message) for message in messages]
        self._go_on()

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        assert self._loop is not None
        self.paused = False
        self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        while self._waiting and not self.paused and self.status is None:
            receiver, message = self._waiting.popleft()
            receiver(message)

    def send(self, chunks: Any) -> None:
        assert self.status is None, "sent after the end"
        self.sent.append(b"".join(chunks))

    def finish(self, code: StatusCode = StatusCode.OK, message: str = "") -> None:
        assert self.status is None, "finished twice"
        self.status = (code, message)
        self.ended.set()

    def cancel(self) -> None:
        self.cancelled = True
        if self.on_cancel is not None:
            self.on_cancel()


@dataclass
class SimulatedRepository:
    """Remembers what it was asked for; knows the model `m`."""

    loads: list[tuple[str, ModelConfig | None, Mapping[str, bytes]]] = field(default_factory=list)
    unloads: list[str] = field(default_factory=list)

    def index(self, *, ready_only: bool = False) -> list[State]:
        return [
            State(model="m", version="1", state="READY"),
            State(model="n", version="", state="UNAVAILABLE", reason="it is broken"),
        ]

    async def load(
        self, model: str, *, config: ModelConfig | None = None, files: Mapping[str, bytes] | None = None
    ) -> None:
        if model != "m":
            raise NotFoundError(f"the repository has no model {model!r}")
        self.loads.append((model, config, files))

    async def unload(self, model: str, *, unload_dependents: bool = False) -> None:
        self.unloads.append(model)


class Host:
    """A data plane and the service on an event loop in a thread."""

    def __init__(self, make_model: Callable[..., Any]) -> None:
        self.loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        self._make_model = make_model
        self.plane = DataPlane(self.loop, workers=1)
        self.regions = SharedMemory()
        self.repository = SimulatedRepository()
        self.service = GrpcService(
            self.plane, extensions=("classification",), regions=self.regions, repository=self.repository
        )

    def run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(DEADLINE_S)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        async def wrapped() -> Any:
            return function(*arguments)

        return self.run(wrapped())

    def serve(
        self,
        name: str = "m",
        compute: Any = None,
        *,
        version: str = "1",
        signature: Signature | None = None,
        slow: bool = False,
        task: Task | None = None,
        config: ModelConfig | None = None,
        activate: bool = True,
    ) -> Any:
        """Load a model and let it answer."""
        model = self._make_model(compute, slow=slow, **({"signature": signature} if signature else {}))
        release = f"sha256:{name}-{version}"
        identity = Identity(model=name, version=version, release=release, variant=release)
        opened = Opened(model=model, runtime="simulator", task=task, config=config or ModelConfig())
        self.run(self.plane.load(identity, lambda: opened))
        if activate:
            self.call(self.plane.activate, name, release)
        return model

    def answer(self, path: str, *sent: Any, **metadata: str) -> SimulatedCall:
        """Make a call without a transport: all messages, then the end; wait until it is over."""
        call = SimulatedCall(path, **metadata)

        def deliver() -> None:
            receiver = self.service.begin(call)
            plain = [one if isinstance(one, bytes | memoryview) else one.SerializeToString() for one in sent]
            call.deliver(receiver, *plain, None)

        self.call(deliver)
        assert call.ended.wait(DEADLINE_S), "the call does not end"
        return call

    def ask(self, method: str, **fields: Any) -> Any:
        """Call a unary method; its response, or its status when it failed."""
        path = method if method.startswith("/") else f"/inference.GRPCInferenceService/{method}"
        known = service_methods()[path]
        call = self.answer(path, known.request(**fields))
        if call.status != (StatusCode.OK, ""):
            return call.status
        assert len(call.sent) == 1
        return known.response.FromString(call.sent[0])

    def infer(self, message: Any) -> Any:
        """Call ModelInfer; its response, or its status when it failed."""
        call = self.answer(INFER, message)
        if call.status != (StatusCode.OK, ""):
            return call.status
        return messages().ModelInferResponse.FromString(call.sent[0])

    def close(self) -> None:
        self.call(self.plane.close)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


class Api:
    """What the tests of this folder share."""

    INFER, STREAM, ECHO, KINDS = INFER, STREAM, ECHO, KINDS
    echo, single, same = staticmethod(echo), staticmethod(single), staticmethod(same)
    Call = SimulatedCall

    @staticmethod
    def request(model: str = "m", *rows: list[float], **fields: Any) -> Any:
        """A request for a model with the input `x`, FP32 [rows, 4], in raw form."""
        array = np.array(rows or [[1, 2, 3, 4]], np.float32)
        message = messages().ModelInferRequest(model_name=model, raw_input_contents=[array.tobytes()], **fields)
        message.inputs.add(name="x", datatype="FP32", shape=array.shape)
        return message


@pytest.fixture(scope="session")
def api() -> Api:
    return Api()


@pytest.fixture(scope="module")
def host(tools: Any) -> Iterator[Host]:
    """A service with the models `m` (sums of rows) and `echo`."""
    running = Host(tools.model)
    running.serve("m")
    running.serve("echo", echo, signature=ECHO)
    yield running
    running.close()
