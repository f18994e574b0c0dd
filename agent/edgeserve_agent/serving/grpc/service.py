"""The services of the protocol: which method answers a call. It knows messages in bytes and no transport."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol
from weakref import WeakSet

from edgeserve.client.oip_proto import HEALTH_SERVICE, INFERENCE_SERVICE, read_message, service_methods
from edgeserve.client.oip_schema import INFERENCE_METHODS
from edgeserve.contracts.errors import EdgeServeError
from edgeserve_agent.serving.grpc.fields import check_method
from edgeserve_agent.serving.grpc.health import Health, HealthWatch
from edgeserve_agent.serving.grpc.inference import Inference, InferenceStream
from edgeserve_agent.serving.grpc.methods import (
    AsyncHandler,
    Fields,
    Handler,
    ModelMethods,
    RepositoryMethods,
    SettingMethods,
    SharedMemoryMethods,
)
from edgeserve_agent.serving.grpc.status import fail
from edgeserve_agent.serving.rpc import Message, Receiver, RpcCall, StatusCode
from edgeserve_agent.serving.settings import LogSettings, TraceSettings

if TYPE_CHECKING:
    from edgeserve_agent.serving.dataplane import DataPlane
    from edgeserve_agent.serving.repository_control import RepositoryControl
    from edgeserve_agent.serving.shared_memory import SharedMemory

_LOG: Final = logging.getLogger(__name__)
_STREAM: Final = f"/{INFERENCE_SERVICE}/ModelStreamInfer"
_LOAD: Final = f"/{INFERENCE_SERVICE}/RepositoryModelLoad"
_WATCH: Final = f"/{HEALTH_SERVICE}/Watch"
UNARY: Final = frozenset({f"/{INFERENCE_SERVICE}/{name}" for name in INFERENCE_METHODS} | {f"/{HEALTH_SERVICE}/Check"})
"""Paths of the methods with one message each way."""

Answer = Callable[[RpcCall, Message], None]
"""Answers a unary call by sending and finishing, at once or later; raises an `EdgeServeError` instead of failing it."""


class _LongCall(Protocol):
    def drain(self) -> None: ...


class GrpcService:
    """The Open Inference Protocol with Triton's extensions, and grpc.health.v1. Lives on the event loop.

    Args:
        plane: What answers.
        extensions: Names of the protocol's extensions that the server has.
        regions: Shared memory; None = switched off.
        repository: What models can be loaded from; None = what is served is fixed.
        trace: Trace settings, shared with the other dialects.
        log: Log settings, shared with the other dialects.

    Raises:
        MissingLibraryError: protobuf is not installed.
    """

    def __init__(
        self,
        plane: DataPlane,
        *,
        extensions: tuple[str, ...] = (),
        regions: SharedMemory | None = None,
        repository: RepositoryControl | None = None,
        trace: TraceSettings | None = None,
        log: LogSettings | None = None,
    ) -> None:
        service_methods()  # protobuf is imported now, not by the first request
        self._inference = Inference(plane, regions)
        self._health = Health(plane)
        # A transport may end a call without a word: it is not to be kept by being here.
        self._long: WeakSet[_LongCall] = WeakSet()
        self._tasks: set[asyncio.Task[None]] = set()
        repository_methods = RepositoryMethods(plane, repository)
        handlers: dict[str, Handler] = {
            **ModelMethods(plane, ready=self._ready, extensions=extensions).table(),
            **repository_methods.table(),
            **SharedMemoryMethods(regions).table(),
            **SettingMethods(plane, trace or TraceSettings(), log or LogSettings()).table(),
        }
        self._answers: dict[str, Answer] = {
            f"/{INFERENCE_SERVICE}/ModelInfer": self._inference.unary,
            f"/{HEALTH_SERVICE}/Check": _answered(lambda request: {"status": self._health.check(request.service)}),
            **{f"/{INFERENCE_SERVICE}/{name}": _answered(handler) for name, handler in handlers.items()},
            **{
                f"/{INFERENCE_SERVICE}/{name}": self._answered_later(handler)
                for name, handler in repository_methods.async_table().items()
            },
        }

    def begin(self, call: RpcCall) -> Receiver:
        """Take a call."""
        answer = self._answers.get(call.path)
        if answer is not None:
            return _Unary(call, answer)
        if call.path == _STREAM:
            stream = InferenceStream(call, self._inference, self._long.discard)
            self._began(stream)
            return stream
        if call.path == _WATCH:
            return _Unary(call, self._watch)
        call.finish(StatusCode.UNIMPLEMENTED, f"there is no method {call.path[:200]}")
        return _ignore

    def drain(self) -> None:
        """The server is about to stop: say so to whoever asks, and end the calls that would never end by themselves."""
        self._health.draining = True
        for call in list(self._long):
            call.drain()

    def _ready(self) -> bool:
        return self._health.status("") == 1

    def _watch(self, call: RpcCall, message: Message) -> None:
        request = _request(call, message)
        self._began(HealthWatch(call, request.service, self._health, self._long.discard))

    def _began(self, call: InferenceStream | HealthWatch) -> None:
        self._long.add(call)
        if self._health.draining:
            call.drain()

    def _answered_later(self, handler: AsyncHandler) -> Answer:
        async def work(call: RpcCall, message: Message) -> None:
            try:
                _respond(call, await handler(_request(call, message)))
            except EdgeServeError as error:
                fail(call, error)
            except Exception:  # noqa: BLE001 - it is logged
                _LOG.exception("%s failed", call.path)
                call.finish(StatusCode.INTERNAL, "internal error; the server's log says more")

        def answer(call: RpcCall, message: Message) -> None:
            # A client that goes away does not stop a load half-way.
            task = asyncio.get_running_loop().create_task(work(call, message))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        return answer


class _Unary:
    """Collects the one message of a call."""

    __slots__ = ("_answer", "_call", "_message")

    def __init__(self, call: RpcCall, answer: Answer) -> None:
        self._call: RpcCall | None = call
        self._answer = answer
        self._message: Message | None = None

    def __call__(self, message: Message | None) -> None:
        if message is not None and self._message is None:
            self._message = message
            return
        # The call refers to this: letting go of it spares the garbage collector a circle for each request.
        call, self._call = self._call, None
        found, self._message = self._message, None
        if call is None:
            return
        if message is not None:
            call.finish(StatusCode.INTERNAL, "more than one message came to a method that takes one")
        elif found is None:
            call.finish(StatusCode.INTERNAL, "no message came")
        else:
            try:
                self._answer(call, found)
            except EdgeServeError as error:
                fail(call, error)


def _answered(handler: Handler) -> Answer:
    def answer(call: RpcCall, message: Message) -> None:
        _respond(call, handler(_request(call, message)))

    return answer


def _request(call: RpcCall, message: Message) -> Any:  # noqa: ANN401 - protobuf has no types
    check_method(message, large=call.path == _LOAD)
    return read_message(service_methods()[call.path].request, message)


def _respond(call: RpcCall, fields: Fields) -> None:
    call.send([service_methods()[call.path].response(**fields).SerializeToString()])
    call.finish()


def _ignore(_message: Message | None) -> None:
    """What still comes of a call that was refused."""
