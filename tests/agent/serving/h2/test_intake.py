"""Messages reach the service in their order, no faster than it takes them, and large ones are inflated elsewhere."""

from __future__ import annotations

import gzip
import random
import struct
from collections.abc import Callable
from typing import Any

import pytest

from edgeserve.contracts.limits import CODEC_THREAD_BYTES
from edgeserve_agent.serving.rpc import StatusCode

DATA, HEADERS, RST_STREAM, WINDOW_UPDATE = 0, 1, 3, 8
END_STREAM, END_HEADERS = 1, 4
WINDOW = 2**20
LARGE = CODEC_THREAD_BYTES + 1


@pytest.fixture
def world(make_world: Callable[..., Any]) -> Any:
    return make_world(head_s=10, idle_s=75)


def _open(peer: Any, h2: Any, stream: int, method: str, *more: tuple[str, str]) -> None:
    peer.send(h2.frame(HEADERS, END_HEADERS, stream, h2.head(f"/test.Echo/{method}", *more)))
    peer.received()


def _packed(h2: Any, body: bytes) -> bytes:
    return bytes(h2.message(gzip.compress(body), 1))


def _room(h2: Any) -> bytes:
    return bytes(h2.frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 10**8)))


def _opened(peer: Any, stream: int) -> int:
    updates = [frame for frame in peer.received() if (frame.kind, frame.stream) == (WINDOW_UPDATE, stream)]
    return sum(int.from_bytes(frame.payload, "big") for frame in updates)


# A service that has enough ------------------------------------------------------------------------


def test_a_service_gets_no_message_while_it_has_enough(world: Any, h2: Any) -> None:
    peer = world.connect()
    _open(peer, h2, 1, "Turns")
    peer.send(h2.frame(DATA, 0, 1, h2.message(b"1") + h2.message(b"2")), h2.frame(DATA, END_STREAM, 1, h2.message(b"")))
    (call,) = world.service.calls
    for taken in ([b"1"], [b"1", b"2"], [b"1", b"2", b""]):
        assert world.service.taken == taken
        assert peer.received() == []
        call.resume()
        world.loop.run()
    assert peer.responses()[1].status is StatusCode.OK, "the end comes behind the last message"


def test_a_client_may_send_on_only_when_the_service_has_taken_what_came(world: Any, h2: Any) -> None:
    peer = world.connect()
    _open(peer, h2, 1, "Turns")
    for _ in range(16):
        peer.send(h2.frame(DATA, 0, 1, h2.message(bytes(WINDOW // 16 - 5))))
    assert _opened(peer, 1) == 0
    assert world.server.memory.held == WINDOW // 16 * 15, "what was taken is with the service, the rest is counted"
    (call,) = world.service.calls
    for count in range(2, 17):
        assert _opened(peer, 1) == 0
        call.resume()
        world.loop.run()
        assert len(world.service.taken) == count
    assert _opened(peer, 1) == 0, "the service has enough, but nothing waits for it"
    call.resume()
    world.loop.run()
    assert _opened(peer, 1) == WINDOW
    assert world.server.memory.held == 0


def test_a_client_that_sends_on_regardless_is_reset(world: Any, h2: Any) -> None:
    peer = world.connect()
    _open(peer, h2, 1, "Turns")
    peer.send(*[h2.frame(DATA, 0, 1, h2.message(bytes(WINDOW // 16 - 5)))] * 17)
    assert [frame.reset for frame in peer.received()] == ["FLOW_CONTROL_ERROR"]
    assert world.server.memory.held == 0


def test_the_connections_window_is_not_opened_for_what_waits(make_world: Callable[..., Any], h2: Any) -> None:
    world = make_world()
    peer = world.connect()
    streams = range(1, 2 * 64 + 1, 2)
    for stream in streams:
        _open(peer, h2, stream, "Turns")
        peer.send(h2.frame(DATA, 0, stream, h2.message(b"")))
        peer.send(h2.frame(DATA, 0, stream, h2.message(bytes(WINDOW - 10))))
        assert _opened(peer, 0) <= 5 * 64
    assert world.server.memory.held == 64 * (WINDOW - 5)
    for call in world.service.calls:
        call.resume()
        world.loop.run()
    assert _opened(peer, 0) >= 32 * WINDOW
    assert world.server.memory.held == 0


def test_a_message_under_way_is_let_go_of_with_its_call_even_if_an_error_keeps_the_frames(world: Any, h2: Any) -> None:
    peer = world.connect()
    kept: list[BaseException] = []

    def refuse(call: Any, message: Any) -> None:
        try:
            raise ValueError("refused")
        except ValueError as error:
            kept.append(error)

    world.service._hold = refuse
    _open(peer, h2, 1, "Hold")
    peer.send(h2.frame(DATA, 0, 1, h2.message(b"1") + h2.message(bytes(100_000))[:5000]))
    assert world.server.memory.held == 4 * (5000 - 5)
    peer.transport.close()
    assert kept
    assert world.server.memory.held == 0


def test_other_calls_go_on_meanwhile(world: Any, h2: Any) -> None:
    peer = world.connect()
    _open(peer, h2, 1, "Turns")
    peer.send(h2.frame(DATA, 0, 1, h2.message(b"1") + h2.message(b"2")), h2.call(3))
    assert peer.responses()[3].status is StatusCode.OK


def test_what_waits_is_let_go_of_with_its_call(world: Any, h2: Any) -> None:
    peer = world.connect()
    for stream, end in ((1, "reset"), (3, "finish"), (5, "lost")):
        _open(peer, h2, stream, "Turns")
        peer.send(h2.frame(DATA, 0, stream, h2.message(b"") + h2.message(bytes(50_000))))
        assert world.server.memory.held == 50_005
        call = world.service.calls[-1]
        if end == "reset":
            peer.send(h2.frame(RST_STREAM, 0, stream, struct.pack(">I", 8)))
        elif end == "finish":
            call.finish()
        else:
            peer.transport.close()
        assert world.server.memory.held == 0
        call.resume()
        world.loop.run()
    assert len(world.service.taken) == 3


def test_a_message_that_the_service_holds_up_is_not_too_slow(world: Any, h2: Any) -> None:
    peer = world.connect()
    _open(peer, h2, 1, "Turns")
    peer.send(h2.frame(DATA, 0, 1, h2.message(b"") + h2.message(bytes(100))[:50]))
    world.loop.advance(60)
    assert peer.received() == []
    world.service.calls[0].resume()
    world.loop.advance(8)
    assert peer.received() == []
    world.loop.advance(8)
    assert peer.responses()[1].status is StatusCode.DEADLINE_EXCEEDED, "now it is the client that holds it up"


def test_a_message_longer_than_the_window_gets_room_when_it_begins(world: Any, h2: Any) -> None:
    peer = world.connect()
    _open(peer, h2, 1, "Hold")
    peer.send(h2.frame(DATA, 0, 1, h2.message(bytes(10 * WINDOW))[:1005]))
    assert _opened(peer, 1) == 10 * WINDOW - 1000 - (WINDOW - 1005)


def test_an_end_within_a_message_that_waited_is_an_error(world: Any, h2: Any) -> None:
    peer = world.connect()
    _open(peer, h2, 1, "Turns")
    peer.send(h2.frame(DATA, END_STREAM, 1, h2.message(b"") + b"\0\0"))
    world.service.calls[0].resume()
    world.loop.run()
    assert peer.responses()[1].status is StatusCode.INTERNAL


# Large compressed messages ------------------------------------------------------------------------


def test_the_loop_inflates_small_messages_only(world: Any, h2: Any) -> None:
    peer = world.connect(h2.PREFACE + h2.settings(window=2**31 - 1) + _room(h2))
    world.workers.stuck = True
    _open(peer, h2, 1, "Echo", ("grpc-encoding", "gzip"))
    peer.send(h2.frame(DATA, END_STREAM, 1, _packed(h2, bytes(LARGE - 1))))
    assert peer.responses()[1].messages == [bytes(LARGE - 1)]
    world.service.calls.clear()
    _open(peer, h2, 3, "Echo", ("grpc-encoding", "gzip"))
    peer.send(h2.frame(DATA, END_STREAM, 3, _packed(h2, bytes(LARGE))))
    assert peer.received() == []
    assert len(world.workers.jobs) == 1
    assert world.server.memory.held >= LARGE, "memory is counted before it is used"
    world.workers.work()
    world.loop.run()
    assert peer.responses()[3].messages == [bytes(LARGE)]
    world.service.calls.clear()
    assert world.server.memory.held == 0


def test_what_comes_behind_a_message_on_the_thread_keeps_its_place(world: Any, h2: Any) -> None:
    peer = world.connect(h2.PREFACE + h2.settings(window=2**31 - 1) + _room(h2))
    world.workers.stuck = True
    _open(peer, h2, 1, "Echo", ("grpc-encoding", "gzip"))
    bodies = [b"a" * LARGE, b"b", b"c" * LARGE, b"", b"d" * 1000]
    sent = b"".join(_packed(h2, body) if len(body) > 1 else h2.message(body) for body in bodies)
    for size in (100, 3, 200, len(sent)):
        peer.send(h2.frame(DATA, 0, 1, sent[:size]))
        sent = sent[size:]
    peer.send(h2.frame(DATA, END_STREAM, 1))
    assert peer.received() == []
    while world.workers.jobs:
        world.workers.work()
        world.loop.run()
    response = peer.responses()[1]
    assert (response.messages, response.status) == (bodies, StatusCode.OK)
    world.service.calls.clear()
    assert world.server.memory.held == 0


@pytest.mark.parametrize("end", ["reset", "lost", "deadline"])
def test_the_outcome_of_a_call_that_has_ended_is_dropped(world: Any, h2: Any, end: str) -> None:
    peer = world.connect()
    world.workers.stuck = True
    _open(peer, h2, 1, "Echo", ("grpc-encoding", "gzip"), ("grpc-timeout", "1S"))
    peer.send(h2.frame(DATA, END_STREAM, 1, _packed(h2, bytes(LARGE))))
    if end == "reset":
        peer.send(h2.frame(RST_STREAM, 0, 1, struct.pack(">I", 8)))
    elif end == "lost":
        peer.transport.close()
    else:
        world.loop.advance(2)
        assert peer.responses()[1].status is StatusCode.DEADLINE_EXCEEDED
    world.workers.work()
    world.loop.run()
    assert peer.received() == []
    assert world.server.memory.held == 0


def test_one_message_is_on_the_thread_and_those_behind_it_reserve_nothing(make_world: Any, h2: Any) -> None:
    world = make_world(messages_bytes=300_000, message_bytes=200_000)
    peer = world.connect(h2.PREFACE + h2.settings(window=2**31 - 1))
    world.workers.stuck = True
    for stream in (1, 3, 5, 7):
        _open(peer, h2, stream, "Size", ("grpc-encoding", "gzip"))
        peer.send(h2.frame(DATA, END_STREAM, stream, _packed(h2, b" " * LARGE + b"5")))
    peer.send(h2.frame(RST_STREAM, 0, 3, struct.pack(">I", 8)))
    statuses = {}
    for _ in range(3):
        assert len(world.workers.jobs) == 1
        world.workers.work()
        world.loop.run()
        statuses |= {stream: response.status for stream, response in peer.responses().items()}
    assert statuses == {1: StatusCode.OK, 5: StatusCode.OK, 7: StatusCode.OK}
    assert not world.workers.jobs


def test_a_bomb_and_a_broken_message_are_refused_by_the_thread(make_world: Any, h2: Any) -> None:
    world = make_world(message_bytes=200_000)
    peer = world.connect()
    noise = random.Random(1).randbytes(LARGE)
    for stream, body, code in (
        (1, gzip.compress(bytes(200_001)), StatusCode.RESOURCE_EXHAUSTED),
        (3, gzip.compress(noise)[:-3], StatusCode.INTERNAL),
    ):
        _open(peer, h2, stream, "Echo", ("grpc-encoding", "gzip"))
        peer.send(h2.frame(DATA, END_STREAM, stream, h2.message(body, 1)))
        assert peer.responses()[stream].status is code
    assert world.server.memory.held == 0


def test_no_memory_to_inflate_into_is_a_refusal(make_world: Any, h2: Any) -> None:
    world = make_world(messages_bytes=100_000)
    peer = world.connect()
    for stream in (1, 3):
        _open(peer, h2, stream, "Echo", ("grpc-encoding", "gzip"))
        peer.send(h2.frame(DATA, END_STREAM, stream, _packed(h2, bytes(LARGE * 4))))
        assert peer.responses()[stream].status is StatusCode.RESOURCE_EXHAUSTED
    assert world.server.memory.held == 0
