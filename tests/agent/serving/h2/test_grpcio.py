"""The real grpc client against the server, over TCP and a Unix socket."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

grpc = pytest.importorskip("grpc", reason="needs grpcio")

DEADLINE_S = 20.0
UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


def _same(data: bytes) -> bytes:
    return data


class Client:
    def __init__(self, target: str, **options: Any) -> None:
        given = [(name.replace("__", "."), value) for name, value in options.items()]
        self.channel = grpc.insecure_channel(target, options=[*UNLIMITED, *given])

    def unary(self, method: str) -> Any:
        return self.channel.unary_unary(f"/test.Echo/{method}", request_serializer=_same, response_deserializer=_same)

    def stream(self, method: str) -> Any:
        return self.channel.stream_stream(f"/test.Echo/{method}", request_serializer=_same, response_deserializer=_same)


@pytest.fixture
def dial() -> Iterator[Callable[..., Client]]:
    clients: list[Client] = []

    def make(target: Any, **options: Any) -> Client:
        client = Client(target if isinstance(target, str) else f"127.0.0.1:{target.port}", **options)
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.channel.close()


def _until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_unary_calls(start_h2: Any, dial: Any) -> None:
    call = dial(start_h2()).unary("Echo")
    assert [call(b"%d" % n, timeout=DEADLINE_S) for n in range(100)] == [b"%d" % n for n in range(100)]
    assert call(b"", timeout=DEADLINE_S) == b""


def test_a_unix_socket(start_h2: Any, dial: Any, tmp_path: Path) -> None:
    server = start_h2()
    path = tmp_path / "s"
    server.run(server.server.listen_unix(path))
    assert dial(f"unix:{path}").unary("Echo")(b"hello", timeout=DEADLINE_S) == b"hello"


def test_large_messages_both_ways(start_h2: Any, dial: Any) -> None:
    server = start_h2()
    body = bytes(range(256)) * (20 * 4096)
    call = dial(server).unary("Echo")
    assert call(body, timeout=DEADLINE_S) == body
    assert call(body[:-1], timeout=DEADLINE_S) == body[:-1]
    server.service.calls.clear()
    _until(lambda: server.call(lambda: server.server.memory.held) == 0)


def test_two_hundred_calls_at_once_on_one_connection(start_h2: Any, dial: Any) -> None:
    call = dial(start_h2()).unary("Later")
    futures = [call.future(b"%d" % n * (1 + n % 7 * 5000), timeout=DEADLINE_S) for n in range(200)]
    assert [future.result() for future in futures] == [b"%d" % n * (1 + n % 7 * 5000) for n in range(200)]


def test_many_connections(start_h2: Any, dial: Any) -> None:
    server = start_h2()
    calls = [dial(server, grpc__use_local_subchannel_pool=1).unary("Echo") for _ in range(20)]
    futures = [call.future(b"%d" % n, timeout=DEADLINE_S) for n, call in enumerate(calls)]
    assert [future.result() for future in futures] == [b"%d" % n for n in range(20)]


def test_a_stream_both_ways(start_h2: Any, dial: Any) -> None:
    bodies = [b"a" * size for size in range(0, 200_000, 7_777)]
    assert list(dial(start_h2()).stream("Echo")(iter(bodies), timeout=DEADLINE_S)) == bodies


def test_a_stream_that_takes_turns(start_h2: Any, dial: Any) -> None:
    """Each message waits for the answer to the one before."""
    answered = threading.Semaphore(1)

    def asking() -> Iterator[bytes]:
        for number in range(50):
            assert answered.acquire(timeout=DEADLINE_S)
            yield b"%d" % number

    seen = []
    for answer in dial(start_h2()).stream("Echo")(asking(), timeout=DEADLINE_S):
        seen.append(answer)
        answered.release()
    assert seen == [b"%d" % number for number in range(50)]


def test_cancellation(start_h2: Any, dial: Any) -> None:
    server = start_h2()
    future = dial(server).unary("Hold").future(b"x")
    _until(lambda: server.service.calls)
    assert not server.service.calls[0].cancelled
    future.cancel()
    _until(lambda: server.service.cancelled)
    assert server.service.calls[0].cancelled


def test_deadlines(start_h2: Any, dial: Any) -> None:
    server = start_h2()
    with pytest.raises(grpc.RpcError) as caught:
        dial(server).unary("Hold")(b"x", timeout=0.2)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    _until(lambda: server.service.cancelled)


@pytest.mark.parametrize("compression", ["Gzip", "Deflate", "NoCompression"])
def test_compression(start_h2: Any, dial: Any, compression: str) -> None:
    call = dial(start_h2()).unary("Echo")
    body = b"compressible" * 50_000
    assert call(body, compression=getattr(grpc.Compression, compression), timeout=DEADLINE_S) == body


def test_metadata_and_status(start_h2: Any, dial: Any) -> None:
    client = dial(start_h2())
    answer = client.unary("Metadata")(b"", metadata=[("k", "v"), ("k-bin", b"\0\xff")], timeout=DEADLINE_S)
    assert b'"k": "v"' in answer
    assert b'"k-bin": "AP8' in answer
    with pytest.raises(grpc.RpcError) as caught:
        client.unary("Early")(b"x", timeout=DEADLINE_S)
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert caught.value.details() == "enough: 100 % € really"
    for method, code in [("Fail", "INTERNAL"), ("FailBegin", "INTERNAL"), ("None", "UNIMPLEMENTED")]:
        with pytest.raises(grpc.RpcError) as caught:
            client.unary(method)(b"x", timeout=DEADLINE_S)
        assert caught.value.code().name == code


def test_a_message_above_the_limit(start_h2: Any, dial: Any) -> None:
    call = dial(start_h2(message_bytes=1_000_000)).unary("Echo")
    with pytest.raises(grpc.RpcError) as caught:
        call(bytes(30_000_000), timeout=DEADLINE_S)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "1000000 bytes" in caught.value.details()
    assert call(bytes(1_000_000), timeout=DEADLINE_S) == bytes(1_000_000), "the connection goes on"


def test_more_calls_than_streams_wait_for_their_turn(start_h2: Any, dial: Any) -> None:
    call = dial(start_h2(concurrent_streams=3)).unary("Later")
    futures = [call.future(b"%d" % n, timeout=DEADLINE_S) for n in range(50)]
    assert [future.result() for future in futures] == [b"%d" % n for n in range(50)]


def test_a_drain_loses_no_call_under_way(start_h2: Any, dial: Any) -> None:
    server = start_h2()
    future = dial(server).unary("Hold").future(b"x", timeout=DEADLINE_S)
    _until(lambda: server.service.calls)
    closing = threading.Thread(target=server.close, args=(DEADLINE_S,))
    closing.start()
    _until(lambda: server.server.draining)
    call = server.service.calls[0]
    server.loop.call_soon_threadsafe(lambda: (call.send((b"in time",)), call.finish()))
    assert future.result() == b"in time"
    closing.join()


def test_a_drain_loses_no_answer_to_a_client_that_still_sends(start_h2: Any, raw_peer: Any, h2: Any) -> None:
    server = start_h2()
    peer = raw_peer(server).send(h2.call(1, b"x", "/test.Echo/Hold"))
    _until(lambda: server.service.calls)
    closing = threading.Thread(target=server.close, args=(DEADLINE_S,))
    closing.start()
    peer.until(lambda frame: frame.goaway == "NO_ERROR")
    call = server.service.calls[0]
    answer = b"a" * 40_000
    server.loop.call_soon_threadsafe(lambda: (call.send((answer,)), call.finish()))
    peer.send(h2.call(3, bytes(500_000)))
    time.sleep(0.2)
    peer.send(h2.call(5, bytes(500_000)))
    time.sleep(0.2)
    frames = peer.rest()
    assert b"".join(frame.payload for frame in frames if (frame.kind, frame.stream) == (0, 1))[5:] == answer
    peer.close()
    closing.join()


def test_keep_alive_pings(start_h2: Any, dial: Any) -> None:
    server = start_h2()
    client = dial(server, grpc__keepalive_time_ms=20, grpc__keepalive_permit_without_calls=1)
    future = client.unary("Hold").future(b"x", timeout=DEADLINE_S)
    _until(lambda: server.service.calls)
    time.sleep(0.3)
    call = server.service.calls[0]
    server.loop.call_soon_threadsafe(lambda: (call.send((b"still here",)), call.finish()))
    assert future.result() == b"still here"
