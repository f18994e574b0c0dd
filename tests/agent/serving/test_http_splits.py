"""The bytes of a connection may be cut anywhere; what the handler gets and the client reads must not change."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeserve_agent.serving.http_protocol import HttpConnection
from edgeserve_agent.serving.http_server import HttpLimits, HttpServer
from edgeserve_agent.serving.messages import Request, json_response


class Wire(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def get_write_buffer_size(self) -> int:
        return 0

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.close()


def feed(connection: HttpConnection, piece: bytes) -> None:
    while piece:
        buffer = connection.get_buffer(-1)
        count = min(len(buffer), len(piece))
        buffer[:count] = piece[:count]
        connection.buffer_updated(count)
        piece = piece[count:]


def talk(
    loop: asyncio.AbstractEventLoop, stream: bytes, cuts: list[int]
) -> tuple[list[tuple[str, bytes, bytes]], bytes]:
    """Feed `stream` cut at `cuts`; what the handler saw and what was written."""
    seen: list[tuple[str, bytes, bytes]] = []

    def handler(request: Request, reply) -> None:
        seen.append((request.method, request.target, bytes(request.body)))
        reply(json_response(200, len(seen)))

    server = HttpServer(loop, handler, limits=HttpLimits(read_buffer_bytes=64, body_bytes=5000))
    connection, wire = HttpConnection(server), Wire()
    connection.connection_made(wire)
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        feed(connection, stream[start:end])
    loop.run_until_complete(asyncio.sleep(0))  # the end of the turn, when answers are sent
    connection.connection_lost(None)
    assert server._held == 0
    return seen, wire.written


@pytest.mark.parametrize("lead", [0, 1, 77, 300])
def test_the_tensors_of_a_long_body_lie_aligned_in_it_whatever_json_comes_before(loop, lead: int):
    addresses = []

    def handler(request: Request, reply) -> None:
        addresses.append(np.frombuffer(request.body, np.uint8).ctypes.data + lead)

    connection = HttpConnection(HttpServer(loop, handler, limits=HttpLimits(read_buffer_bytes=64)))
    connection.connection_made(Wire())
    feed(connection, b"POST / HTTP/1.1\r\nInference-Header-Content-Length: %d\r\nContent-Length: 5000\r\n\r\n" % lead)
    feed(connection, b"x" * 5000)
    connection.connection_lost(None)
    assert [address % 64 for address in addresses] == [0]


BODIES = st.binary(max_size=300)
REQUESTS = st.one_of(
    st.just(b"GET /a?b=c HTTP/1.1\r\nHost: h\r\n\r\n"),
    BODIES.map(lambda body: b"POST /l HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)),
    BODIES.map(
        lambda body: (
            b"POST /b HTTP/1.1\r\nInference-Header-Content-Length: %d\r\nContent-Length: %d\r\n\r\n%s"
            % (len(body) // 3, len(body), body)
        )
    ),
    st.lists(st.binary(min_size=1, max_size=80), max_size=5).map(
        lambda chunks: (
            b"POST /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
            + b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
            + b"0\r\n\r\n"
        )
    ),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(st.lists(REQUESTS, max_size=5), st.lists(st.integers(0, 2000), max_size=30))
def test_requests_are_the_same_wherever_the_stream_is_cut(loop, requests: list[bytes], cuts: list[int]):
    stream = b"".join(requests)
    places = sorted({cut for cut in cuts if cut < len(stream)})
    assert talk(loop, stream, places) == talk(loop, stream, [])
    assert len(talk(loop, stream, places)[0]) == len(requests)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(st.lists(REQUESTS, max_size=2), st.binary(max_size=200), st.lists(st.integers(0, 500), max_size=10))
def test_any_bytes_are_answered_or_waited_on_and_the_requests_before_them_are_answered(loop, requests, junk, cuts):
    stream = b"".join(requests) + junk
    seen, written = talk(loop, stream, sorted({cut for cut in cuts if cut < len(stream)}))
    assert len(seen) >= len(requests)
    assert written.count(b"HTTP/1.1 200 OK") == len(seen)
