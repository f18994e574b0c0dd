from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvloop

from edgeserve_agent.serving.h2.server import H2Limits, H2Server
from tests.agent.serving.h2.frames import (
    HELLO,
    PREFACE,
    Frame,
    call,
    fields,
    frame,
    head,
    message,
    settings,
    split,
)
from tests.agent.serving.h2.simulated import EchoService, SimulatedPeer, SteppedLoop, SteppedWorkers

DEADLINE_S = 10.0


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
        self.workers = SteppedWorkers(self.loop)
        self.server = H2Server(
            self.loop,  # type: ignore[arg-type]
            self.service,
            limits=H2Limits(**limits),
            workers=lambda: self.workers,  # type: ignore[arg-type,return-value]
        )

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
