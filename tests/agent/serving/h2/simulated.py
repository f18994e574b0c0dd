"""A service that echoes, a loop that steps, and a peer without sockets."""

from __future__ import annotations

import asyncio
import heapq
import json
from collections import deque
from collections.abc import Callable
from typing import Any

from edgeserve_agent.serving.h2.server import H2Server
from edgeserve_agent.serving.rpc import Message, Receiver, RpcCall, StatusCode
from tests.agent.serving.h2.frames import (
    Frame,
    Response,
    ResponseReader,
    split,
)


class EchoService:
    """Answers by the method's name, and remembers its calls."""

    def __init__(self, loop: Any) -> None:
        self.loop = loop
        self.calls: list[RpcCall] = []
        self.cancelled: list[str] = []
        self.taken: list[bytes] = []

    def begin(self, call: RpcCall) -> Receiver:
        self.calls.append(call)
        call.on_cancel = lambda: self.cancelled.append(call.path)  # type: ignore[attr-defined]
        method = call.path.rpartition("/")[2]
        if method == "FailBegin":
            raise RuntimeError("a bug")
        if not hasattr(self, f"_{method.lower()}"):
            call.finish(StatusCode.UNIMPLEMENTED, f"unknown method {call.path}")
            return lambda message: None
        answer = getattr(self, f"_{method.lower()}")
        return lambda message: answer(call, message)

    def _echo(self, call: RpcCall, message: Message | None) -> None:
        if message is None:
            call.finish()
        else:
            call.send((message,))

    def _pieces(self, call: RpcCall, message: Message | None) -> None:
        """Each message back in three pieces, the second a view."""
        if message is None:
            call.finish()
        else:
            third = len(message) // 3
            call.send((message[:third], memoryview(message)[third : 2 * third], message[2 * third :]))

    def _early(self, call: RpcCall, message: Message | None) -> None:
        """The status at the first message, whatever comes after."""
        assert message is not None
        call.finish(StatusCode.FAILED_PRECONDITION, "enough: 100 % € really")

    def _later(self, call: RpcCall, message: Message | None) -> None:
        if message is not None:
            self.loop.call_soon(lambda: (call.send((message,)), call.finish()))

    def _metadata(self, call: RpcCall, message: Message | None) -> None:
        if message is not None:
            call.send((json.dumps(dict(call.metadata)).encode(),))
            call.finish()

    def _fail(self, call: RpcCall, message: Message | None) -> None:
        raise RuntimeError("a bug")

    def _size(self, call: RpcCall, message: Message | None) -> None:
        """As many bytes as the message says."""
        if message is not None:
            call.send((b"s" * int(bytes(message)),))
            call.finish()

    def _turns(self, call: RpcCall, message: Message | None) -> None:
        """One message at a time: the test answers and lets the next one come."""
        if message is None:
            call.finish()
        else:
            self.taken.append(bytes(message))
            call.pause()

    def _hold(self, call: RpcCall, message: Message | None) -> None:
        """No answer: the test gives one."""


class SteppedLoop:
    """A loop whose clock the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._ready: deque[Callable[[], object]] = deque()
        self._timers: list[tuple[float, int, list[Any]]] = []
        self._count = 0

    def time(self) -> float:
        return self.now

    def call_soon(self, function: Callable[..., object], *arguments: Any) -> None:
        self._ready.append(lambda: function(*arguments))

    def call_later(self, delay: float, function: Callable[..., object], *arguments: Any) -> Any:
        cell = [lambda: function(*arguments)]
        self._count += 1
        heapq.heappush(self._timers, (self.now + delay, self._count, cell))

        class Handle:
            def cancel(self) -> None:
                cell.clear()

        return Handle()

    def run(self) -> None:
        while self._ready:
            self._ready.popleft()()

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while self._timers and self._timers[0][0] <= end:
            self.now, _, cell = heapq.heappop(self._timers)
            if cell:
                cell[0]()
            self.run()
        self.now = end


class SteppedWorkers:
    """A thread (see `Workers`) that works in the loop's turns, or, with `stuck`, when the test says so."""

    def __init__(self, loop: SteppedLoop) -> None:
        self._loop = loop
        self.stuck = False
        self.jobs: list[tuple[Callable[[], Any], Callable[[Any], None]]] = []

    def submit(self, job: Callable[[], Any], done: Callable[[Any], None]) -> None:
        self.jobs.append((job, done))
        if not self.stuck:
            self._loop.call_soon(self.work)

    def work(self) -> None:
        job, done = self.jobs.pop(0)
        try:
            outcome = job()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is handed over
            outcome = error
        done(outcome)
        del job, done, outcome  # as the thread does: an error would keep what it was raised over

    def close(self) -> None:
        """Nothing runs."""


class SimulatedTransport(asyncio.Transport):
    """A transport in memory; with `reads = False` its client reads nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.closed = False
        self.eof = False
        self.reading = True
        self.reads = True
        self.protocol: Any = None
        self.high = 65536
        self._unread = 0
        self._paused = False

    def write(self, data: Any) -> None:
        assert not self.eof, "written after the end"
        if self.closed:
            return
        view = memoryview(data).cast("B")
        self.written += view
        if not self.reads:
            self._unread += len(view)
            if self._unread > self.high and not self._paused:
                self._paused = True
                self.protocol.pause_writing()

    def writelines(self, list_of_data: Any) -> None:
        for data in list_of_data:
            self.write(data)

    def read_all(self) -> None:
        """The client reads after all."""
        self.reads, self._unread = True, 0
        if self._paused:
            self._paused = False
            self.protocol.resume_writing()

    def get_write_buffer_size(self) -> int:
        return self._unread

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.high = high or self.high

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True

    def is_closing(self) -> bool:
        return self.closed

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.eof = True

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.protocol.connection_lost(None)

    abort = close


class SimulatedPeer:
    """A client that speaks frames to a connection in memory."""

    def __init__(self, server: H2Server, loop: SteppedLoop) -> None:
        self.loop = loop
        self.transport = SimulatedTransport()
        self.connection = server.connection()
        self.transport.protocol = self.connection
        self.connection.connection_made(self.transport)
        self._reader = ResponseReader()

    def send(self, *pieces: bytes) -> SimulatedPeer:
        for piece in pieces:
            position = 0
            while position < len(piece) and not self.transport.closed and self.transport.reading:
                room = self.connection.get_buffer(-1)
                count = min(len(room), len(piece) - position)
                assert count
                room[:count] = piece[position : position + count]
                position += count
                self.connection.buffer_updated(count)
        self.loop.run()
        return self

    def hang_up(self) -> None:
        """The client ends its side."""
        if not self.connection.eof_received():
            self.transport.close()

    def received(self) -> list[Frame]:
        """Frames since the last time."""
        frames, rest = split(bytes(self.transport.written))
        assert not rest
        self.transport.written.clear()
        return frames

    def responses(self) -> dict[int, Response]:
        return self._reader.responses(self.received())
