"""gRPC by grpcio, on the event loop of the server. Nothing but bytes goes in and out: no protobuf here."""

from __future__ import annotations

import asyncio
import base64
import logging
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Any, Final

from edgeserve.contracts.errors import DeviceError, MissingLibraryError
from edgeserve.contracts.limits import (
    GRPC_PING_S,
    MAX_BODY_BYTES_IN_FLIGHT,
    MAX_GRPC_CALLS,
    MAX_REQUEST_BYTES,
)
from edgeserve_agent.serving.grpc.service import UNARY
from edgeserve_agent.serving.h2.messages import MessageMemory, MessageRefusedError
from edgeserve_agent.serving.rpc import Message, Receiver, RpcService, StatusCode

_LOG: Final = logging.getLogger(__name__)
_BUG: Final = "internal error; the server's log says more"
_MAX_WAITING_BYTES: Final = MAX_REQUEST_BYTES
"""Answers of one stream that wait for the client to read; beyond it no more requests are read."""


class GrpcioServer:
    """Lets a service answer over grpcio.

    Args:
        loop: Where everything happens.
        service: What answers.
        unary: Paths of the methods with one message each way; any other path is taken for a stream.
        max_message_bytes: Of a message, either way.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        service: RpcService,
        *,
        unary: Collection[str] = UNARY,
        max_message_bytes: int = MAX_REQUEST_BYTES,
    ) -> None:
        self.loop = loop
        self.service = service
        self.max_message_bytes = max_message_bytes
        self._grpc = _grpc()
        self._codes = {code: getattr(self._grpc.StatusCode, code.name) for code in StatusCode}
        self._memory = MessageMemory(MAX_BODY_BYTES_IN_FLIGHT)
        self._server: Any = None
        self._stream_handler = self._grpc.stream_stream_rpc_method_handler
        self._unary_handlers = {
            path: self._grpc.unary_unary_rpc_method_handler(partial(self._unary, path)) for path in unary
        }

    async def listen(self, host: str, port: int) -> int:
        """Listen and return the port; 0 = any.

        Raises:
            DeviceError: The port is in use, or the address is not this machine's.
        """
        self._server = self._grpc.aio.server(
            options=(
                # Twice the limit is still read, so that the refusal can say which limit it was.
                ("grpc.max_receive_message_length", 2 * self.max_message_bytes),
                ("grpc.max_send_message_length", -1),
                # Else a second server would share the port without a word.
                ("grpc.so_reuseport", 0),
                ("grpc.keepalive_time_ms", int(GRPC_PING_S * 1000)),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_ping_interval_without_data_ms", int(GRPC_PING_S * 1000 / 6)),
            ),
            maximum_concurrent_rpcs=MAX_GRPC_CALLS,
        )
        self._server.add_generic_rpc_handlers((_Handlers(self._handler),))
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            found: int = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise DeviceError(
                f"cannot listen for gRPC on {address}: {error}", hint="choose another port; 0 takes any free one"
            ) from error
        await self._server.start()
        return found

    async def close(self, drain_s: float) -> None:
        """Take no more calls, let those under way end for so long, then end them."""
        if self._server is not None:
            await self._server.stop(drain_s)

    def _handler(self, path: str) -> Any:  # noqa: ANN401 - grpcio has no types
        return self._unary_handlers.get(path) or self._stream_handler(partial(self._stream, path))

    async def _unary(self, path: str, message: bytes, context: Any) -> bytes:  # noqa: ANN401
        call = _UnaryCall(path, context)
        try:
            _begin(self.service, call, (self._taken(message), None))
        except MessageRefusedError as error:
            call.refuse(error.code, error.message)
        if not call.finished:
            await call.end(self.loop)
        return self._ended(call, context)

    async def _stream(self, path: str, _requests: Any, context: Any) -> None:  # noqa: ANN401
        call = _StreamCall(path, context)
        reading = self.loop.create_task(self._read(call, context))
        try:
            while (chunk := await call.next(self.loop)) is not None:
                if len(chunk) > self.max_message_bytes:
                    call.refuse(*_too_large("answer", len(chunk), self.max_message_bytes))
                    break
                await context.write(chunk)
        except BaseException:  # cancelled, or writing to a client that has gone failed
            call.cancel()
            raise
        finally:
            reading.cancel()
        self._ended(call, context)

    async def _read(self, call: _StreamCall, context: Any) -> None:  # noqa: ANN401
        receiver = _begin(self.service, call, ())
        end = self._grpc.aio.EOF
        while receiver is not None and not call.finished:
            try:
                message = await context.read()
            except Exception:  # noqa: BLE001 - whatever it is, no more will come
                _LOG.debug("reading from a client of %r ended", call.path[:200], exc_info=True)
                call.refuse(StatusCode.CANCELLED, "the client has gone")
                return
            if message is end:
                _deliver(call, receiver, None)
                return
            try:
                _deliver(call, receiver, self._taken(message))
            except MessageRefusedError as error:
                call.refuse(error.code, error.message)
            await call.read_on(self.loop)

    def _ended(self, call: _Call, context: Any) -> bytes:  # noqa: ANN401
        answer = call.answer if isinstance(call, _UnaryCall) else b""
        if call.code is StatusCode.OK and len(answer) > self.max_message_bytes:
            call.code, call.message = _too_large("answer", len(answer), self.max_message_bytes)
        if call.code is StatusCode.OK:
            return answer
        context.set_code(self._codes[call.code])
        context.set_details(call.message)
        return b""

    def _taken(self, message: bytes) -> Message:
        """A message that came, counted as long as it is in use."""
        if len(message) > self.max_message_bytes:
            raise MessageRefusedError(*_too_large("request", len(message), self.max_message_bytes))
        return self._memory.adopt(message)


class _Call:
    """What both kinds of calls have in common (see `edgeserve_agent.serving.rpc.RpcCall`)."""

    # Defaults stand on the class: setting them for each call would cost more.
    cancelled = False
    on_cancel: Callable[[], None] | None = None
    finished = False
    code = StatusCode.OK
    message = ""
    _waiter: asyncio.Future[None] | None = None
    _paused = False

    def __init__(self, path: str, context: Any) -> None:  # noqa: ANN401 - grpcio has no types
        self.path = path
        self._context = context

    @property
    def metadata(self) -> Mapping[str, str]:
        """Of the request."""
        return {
            name: base64.b64encode(value).decode() if isinstance(value, bytes) else value
            for name, value in self._context.invocation_metadata() or ()
        }

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False

    def finish(self, code: StatusCode = StatusCode.OK, message: str = "") -> None:
        if self.finished or self.cancelled:
            return
        self.finished = True
        self.code, self.message = code, message
        self._wake()

    def cancel(self) -> None:
        if self.cancelled or self.finished:
            return
        self.cancelled = True
        if self.on_cancel is not None:
            self.on_cancel()

    def refuse(self, code: StatusCode, message: str) -> None:
        """End it with a status that the service has not given."""
        if not self.finished:
            self.cancel()
        self.finished = True
        self.code, self.message = code, message
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _sleep(self, loop: asyncio.AbstractEventLoop) -> None:
        self._waiter = loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None


class _UnaryCall(_Call):
    """One message each way."""

    answer = b""

    def send(self, chunks: Sequence[Message]) -> None:
        self.answer = b"".join(chunks)

    async def end(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wait until it is finished; grpcio cancels the waiting when the client has gone or its time is up."""
        try:
            await self._sleep(loop)
        except asyncio.CancelledError:
            self.cancel()
            raise


class _StreamCall(_Call):
    """Any number of messages each way."""

    def __init__(self, path: str, context: Any) -> None:  # noqa: ANN401 - grpcio has no types
        super().__init__(path, context)
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._reader: asyncio.Future[None] | None = None

    def send(self, chunks: Sequence[Message]) -> None:
        if self.finished or self.cancelled:
            return
        message = b"".join(chunks)
        self._waiting.append(message)
        self._waiting_bytes += len(message)
        self._wake()

    async def next(self, loop: asyncio.AbstractEventLoop) -> bytes | None:
        """The next message to write; None when there will be none."""
        while not self._waiting and not self.finished:
            await self._sleep(loop)
        if not self._waiting:
            return None
        message = self._waiting.popleft()
        self._waiting_bytes -= len(message)
        self._read_again()
        return message

    def resume(self) -> None:
        super().resume()
        self._read_again()

    def _read_again(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def read_on(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wait until the client has read enough, and the service answered enough, that more requests may be taken."""
        while self._paused or self._waiting_bytes > _MAX_WAITING_BYTES:
            self._reader = loop.create_future()
            await self._reader


def _begin(service: RpcService, call: _UnaryCall | _StreamCall, messages: Sequence[Message | None]) -> Receiver | None:
    try:
        receiver = service.begin(call)
    except Exception:  # noqa: BLE001 - it is logged
        _failed(call)
        return None
    for message in messages:
        _deliver(call, receiver, message)
    return receiver


def _deliver(call: _Call, receiver: Receiver, message: Message | None) -> None:
    if call.finished or call.cancelled:
        return
    try:
        receiver(message)
    except Exception:  # noqa: BLE001 - it is logged
        _failed(call)


def _failed(call: _Call) -> None:
    _LOG.exception("answering %r failed", call.path[:200])
    call.refuse(StatusCode.INTERNAL, _BUG)


def _too_large(what: str, size: int, most: int) -> tuple[StatusCode, str]:
    return (
        StatusCode.RESOURCE_EXHAUSTED,
        f"the {what} has {size} bytes, at most {most} are allowed (MAX_REQUEST_BYTES): send fewer rows at once",
    )


class _Handlers:
    """The handlers of every path there is (grpcio's `GenericRpcHandler`)."""

    def __init__(self, find: Callable[[str], Any]) -> None:
        self._find = find

    def service(self, details: Any) -> Any:  # noqa: ANN401 - grpcio has no types
        """The handler of a call."""
        return self._find(details.method)


def _grpc() -> Any:  # noqa: ANN401 - grpcio has no types
    try:
        import_module("grpc.aio")
        return import_module("grpc")
    except ImportError as error:
        raise MissingLibraryError(
            "gRPC by grpcio needs the package grpcio, which is not installed", hint="pip install 'edgeserve[grpc]'"
        ) from error
