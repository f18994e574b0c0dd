from __future__ import annotations

import asyncio
import heapq
import json
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import hpack
import pytest
import uvloop

from edgeserve_agent.serving.h2.server import H2Limits, H2Server
from edgeserve_agent.serving.rpc import Message, Receiver, RpcCall, StatusCode

DEADLINE_S = 10.0
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITIZED = 1, 1, 4, 8, 32
CODES = (
    *("NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT", "STREAM_CLOSED"),
    *("FRAME_SIZE_ERROR", "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR", "ENHANCE_YOUR_CALM"),
)


class Frame(NamedTuple):
    kind: int
    flags: int
    stream: int
    payload: bytes

    @property
    def reset(self) -> str | None:
        return CODES[int.from_bytes(self.payload, "big")] if self.kind == RST_STREAM else None

    @property
    def goaway(self) -> str | None:
        return CODES[int.from_bytes(self.payload[4:8], "big")] if self.kind == GOAWAY else None

    @property
    def debug(self) -> str:
        return self.payload[8:].decode()


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, stream) + payload


def split(data: bytes) -> tuple[list[Frame], bytes]:
    """Whole frames, and what is left."""
    frames, position = [], 0
    while len(data) - position >= 9:
        word, flags, stream = struct.unpack_from(">IBI", data, position)
        stop = position + 9 + (word >> 8)
        if stop > len(data):
            break
        frames.append(Frame(word & 0xFF, flags, stream, data[position + 9 : stop]))
        position = stop
    return frames, data[position:]


def fields(*pairs: tuple[str, str]) -> bytes:
    """A block of fields that are not indexed."""
    block = b""
    for name, value in pairs:
        for text in (name, value):
            raw = text.encode("latin-1")
            assert len(raw) < 127 or text is value
            block += b"\x00" if text is name else b""
            block += bytes([len(raw)]) + raw if len(raw) < 127 else b"\x7f" + varint(len(raw) - 127) + raw
    return block


def varint(number: int) -> bytes:
    out = b""
    while number >= 128:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def head(path: str = "/test.Echo/Echo", *more: tuple[str, str], **replaced: str) -> bytes:
    """The block of a gRPC request; `replaced`: `method`, `scheme`, `type`; an empty one is left out."""
    pseudo = ((":method", replaced.get("method", "POST")), (":scheme", replaced.get("scheme", "http")), (":path", path))
    kind = replaced.get("type", "application/grpc")
    return fields(*[pair for pair in pseudo if pair[1]], *([("content-type", kind)] if kind else []), *more)


def message(body: bytes, flag: int = 0) -> bytes:
    return struct.pack(">BI", flag, len(body)) + body


def call(stream: int, body: bytes = b"hi", path: str = "/test.Echo/Echo", *more: tuple[str, str]) -> bytes:
    """A whole unary call."""
    return frame(HEADERS, END_HEADERS, stream, head(path, *more)) + frame(DATA, END_STREAM, stream, message(body))


def settings(**values: int) -> bytes:
    names = {"table": 1, "push": 2, "streams": 3, "window": 4, "frame": 5, "list": 6}
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", names[name], value) for name, value in values.items()))


HELLO = PREFACE + settings()


class Response(NamedTuple):
    headers: dict[str, str]
    messages: list[bytes]
    trailers: dict[str, str]

    @property
    def status(self) -> StatusCode:
        return StatusCode(int(self.trailers["grpc-status"]))


class ResponseReader:
    """Responses out of frames; checks that they come in the order that HTTP/2 wants."""

    def __init__(self) -> None:
        self._decoder = hpack.Decoder()

    def responses(self, frames: list[Frame]) -> dict[int, Response]:
        """Those that ended."""
        blocks: dict[int, list[dict[str, str]]] = {}
        data: dict[int, bytes] = {}
        ended: dict[int, Response] = {}
        for item in frames:
            if item.kind not in (HEADERS, DATA):
                continue
            assert item.stream not in ended, item
            if item.kind == HEADERS:
                assert item.flags & END_HEADERS
                blocks.setdefault(item.stream, []).append(dict(self._decoder.decode(item.payload)))
            else:
                assert item.stream in blocks
                data[item.stream] = data.get(item.stream, b"") + item.payload
            if item.flags & END_STREAM:
                first, *rest = blocks[item.stream]
                assert ":status" in first
                body = data.get(item.stream, b"")
                messages = []
                while body:
                    flag, size = struct.unpack_from(">BI", body)
                    assert flag == 0
                    assert len(body) >= 5 + size
                    messages.append(body[5 : 5 + size])
                    body = body[5 + size :]
                ended[item.stream] = Response(first, messages, rest[0] if rest else first)
        return ended


class EchoService:
    """Answers by the method's name, and remembers its calls."""

    def __init__(self, loop: Any) -> None:
        self.loop = loop
        self.calls: list[RpcCall] = []
        self.cancelled: list[str] = []

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

    def received(self) -> list[Frame]:
        """Frames since the last time."""
        frames, rest = split(bytes(self.transport.written))
        assert not rest
        self.transport.written.clear()
        return frames

    def responses(self) -> dict[int, Response]:
        return self._reader.responses(self.received())


class H2ServerThread:
    """A real server on an event loop in a thread of this process."""

    def __init__(self, make_loop: Callable[[], asyncio.AbstractEventLoop], **limits: Any) -> None:
        self.loop = make_loop()
        self.service = EchoService(self.loop)
        self.server = H2Server(self.loop, self.service, limits=H2Limits(**limits))
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        self.port = self.run(self.server.listen("127.0.0.1", 0))
        self.closed = False

    def run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(DEADLINE_S)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        async def wrapped() -> Any:
            return function(*arguments)

        return self.run(wrapped())

    def close(self, drain_s: float = 0.0) -> None:
        if not self.closed:
            self.closed = True
            self.run(self.server.close(drain_s))
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join()
            self.loop.close()


class RawPeer:
    """A socket that speaks frames."""

    def __init__(self, port: int, *, hello: bytes = HELLO) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S)
        self._reader = self.socket.makefile("rb")
        self.socket.sendall(hello)

    def send(self, data: bytes) -> RawPeer:
        self.socket.sendall(data)
        return self

    def frame(self) -> Frame | None:
        """The next frame; None at the end of the connection."""
        start = self._reader.read(9)
        if len(start) < 9:
            assert not start
            return None
        word, flags, stream = struct.unpack(">IBI", start)
        return Frame(word & 0xFF, flags, stream, self._reader.read(word >> 8))

    def until(self, wanted: Callable[[Frame], object]) -> Frame:
        while True:
            item = self.frame()
            assert item is not None, "the connection ended"
            if wanted(item):
                return item

    def rest(self) -> list[Frame]:
        """All frames until the server ends the connection."""
        return list(iter(self.frame, None))

    def close(self) -> None:
        self._reader.close()
        self.socket.close()


class H2Tools:
    """What these tests share."""

    Frame = Frame
    SteppedLoop = SteppedLoop
    EchoService = EchoService
    SimulatedPeer = SimulatedPeer
    frame = staticmethod(frame)
    split = staticmethod(split)
    fields = staticmethod(fields)
    head = staticmethod(head)
    message = staticmethod(message)
    call = staticmethod(call)
    settings = staticmethod(settings)
    HELLO = HELLO
    PREFACE = PREFACE


@pytest.fixture(scope="session")
def h2() -> H2Tools:
    return H2Tools()


class World:
    """A server without sockets, its clock, and clients."""

    def __init__(self, **limits: Any) -> None:
        self.loop = SteppedLoop()
        self.service = EchoService(self.loop)
        self.server = H2Server(self.loop, self.service, limits=H2Limits(**limits))  # type: ignore[arg-type]

    def connect(self, hello: bytes = HELLO) -> SimulatedPeer:
        peer = SimulatedPeer(self.server, self.loop)
        if hello:
            peer.send(hello)
            peer.received()
        return peer


@pytest.fixture(scope="session")
def make_world() -> Callable[..., World]:
    return World


@pytest.fixture(params=["uvloop", "asyncio"])
def make_loop(request: pytest.FixtureRequest) -> Callable[[], asyncio.AbstractEventLoop]:
    return uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop


@pytest.fixture
def start_h2(make_loop: Callable[[], asyncio.AbstractEventLoop]) -> Iterator[Callable[..., H2ServerThread]]:
    running: list[H2ServerThread] = []

    def start(**limits: Any) -> H2ServerThread:
        server = H2ServerThread(make_loop, **limits)
        running.append(server)
        return server

    yield start
    for server in running:
        server.close()


@pytest.fixture
def raw_peer() -> Iterator[Callable[..., RawPeer]]:
    peers: list[RawPeer] = []

    def make(server: H2ServerThread, **options: Any) -> RawPeer:
        peer = RawPeer(server.port, **options)
        peers.append(peer)
        return peer

    yield make
    for peer in peers:
        peer.close()
