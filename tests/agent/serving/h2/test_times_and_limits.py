"""Clocks, drains and bounds over all connections, in simulated time."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import Any

import pytest

from edgeserve_agent.serving.rpc import StatusCode

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS = 1, 1, 4


@pytest.fixture
def world(make_world: Callable[..., Any]) -> Any:
    return make_world(head_s=10, idle_s=75, linger_s=2, ping_s=20)


def test_a_deadline_that_passes_ends_the_call(world: Any, h2: Any) -> None:
    peer = world.connect()
    peer.send(h2.call(1, b"", "/test.Echo/Hold", ("grpc-timeout", "500m")), h2.call(3, b"", "/test.Echo/Hold"))
    world.loop.advance(0.4)
    assert peer.received() == []
    world.loop.advance(0.2)
    (frame,) = peer.received()
    assert (frame.kind, frame.flags, frame.stream) == (HEADERS, 5, 1)
    assert b"grpc-status\x014" in frame.payload
    assert [call.cancelled for call in world.service.calls] == [True, False]
    assert world.service.cancelled == ["/test.Echo/Hold"]


def test_a_call_that_finishes_in_time_is_forgotten_by_the_clock(world: Any, h2: Any) -> None:
    peer = world.connect()
    peer.send(h2.call(1, b"", "/test.Echo/Echo", ("grpc-timeout", "500m")))
    assert peer.responses()[1].status == StatusCode.OK
    world.loop.advance(1)
    assert peer.received() == []
    assert world.service.cancelled == []
    peer.send(h2.call(3, b"", "/test.Echo/Hold", ("grpc-timeout", "1m")))
    world.loop.advance(0.1)
    assert peer.responses()[3].status == StatusCode.DEADLINE_EXCEEDED, "the clock runs again"


def test_a_deadline_while_the_answer_waits_for_windows_resets_the_stream(world: Any, h2: Any) -> None:
    peer = world.connect(h2.PREFACE + h2.settings(window=10))
    peer.send(h2.call(1, b"100", "/test.Echo/Size", ("grpc-timeout", "1S")))
    peer.received()
    world.loop.advance(1.1)
    assert [frame.reset for frame in peer.received()] == ["CANCEL"]


def test_a_connection_without_calls_is_closed(world: Any, h2: Any) -> None:
    peer = world.connect()
    peer.send(h2.call(1))
    peer.received()
    world.loop.advance(74)
    assert not peer.transport.closed
    world.loop.advance(4)
    assert [frame.goaway for frame in peer.received()] == ["NO_ERROR"]
    assert peer.transport.eof
    world.loop.advance(4)
    assert peer.transport.closed


def test_a_client_that_says_nothing_at_all_is_closed(world: Any) -> None:
    peer = world.connect(hello=b"")
    world.loop.advance(80)
    assert peer.transport.closed


def test_a_silent_client_with_calls_open_is_pinged_and_stays_when_it_answers(world: Any, h2: Any) -> None:
    peer = world.connect()
    peer.send(h2.call(1, b"", "/test.Echo/Hold"))
    for _ in range(3):
        world.loop.advance(77)
        (ping,) = peer.received()
        assert (ping.kind, ping.flags) == (PING, 0)
        world.loop.advance(15)
        peer.send(h2.frame(PING, ACK, 0, ping.payload))
    world.loop.advance(77)
    assert [frame.kind for frame in peer.received()] == [PING]
    world.loop.advance(22)
    assert peer.transport.closed
    assert world.service.calls[0].cancelled


@pytest.mark.parametrize("part", ["preface", "frame header", "headers", "block"])
def test_half_of_something_times_out(world: Any, h2: Any, part: str) -> None:
    peer = world.connect(hello=b"" if part == "preface" else h2.HELLO)
    peer.received()
    whole = h2.frame(HEADERS, END_HEADERS, 1, h2.head())
    half = {
        "preface": h2.PREFACE[:10],
        "frame header": whole[:5],
        "headers": whole[:-1],
        "block": h2.frame(HEADERS, 0, 1, h2.head()),
    }[part]
    peer.send(half)
    world.loop.advance(8)
    assert peer.received() == []
    world.loop.advance(5)
    assert [frame.goaway for frame in peer.received()] == ["ENHANCE_YOUR_CALM"]
    assert peer.transport.eof
    world.loop.advance(4)
    assert peer.transport.closed


def test_continuations_that_trickle_do_not_win_time(world: Any, h2: Any) -> None:
    peer = world.connect()
    peer.send(h2.frame(HEADERS, 0, 1, h2.head()))
    for _ in range(4):
        world.loop.advance(3)
        peer.send(h2.frame(CONTINUATION, 0, 1, b""))
    assert [frame.goaway for frame in peer.received()] == ["ENHANCE_YOUR_CALM"]


def test_a_busy_connection_whose_reads_end_within_frames_is_not_slow(world: Any, h2: Any) -> None:
    peer = world.connect()
    sent = b"".join(h2.call(number) for number in range(1, 101, 2))
    for position in range(0, len(sent), len(sent) // 60):
        peer.send(sent[position : position + len(sent) // 60])
        world.loop.advance(1)
    assert len(peer.responses()) == 50


def test_a_message_that_trickles_ends_its_call_only(world: Any, h2: Any) -> None:
    peer = world.connect()
    peer.send(h2.frame(HEADERS, 4, 1, h2.head("/test.Echo/Hold")))
    peer.send(h2.frame(DATA, 0, 1, h2.message(bytes(32 * 1024))[:100]))
    for _ in range(11):
        peer.send(h2.frame(DATA, 0, 1, b"x"))
        world.loop.advance(1)
    assert peer.received() == [], "10 s, and 2 s for its length"
    world.loop.advance(3)
    assert peer.responses()[1].status == StatusCode.DEADLINE_EXCEEDED
    assert peer.send(h2.call(3)).responses()[3].status == StatusCode.OK


def test_a_client_that_never_opens_its_window_is_given_up(world: Any, h2: Any) -> None:
    peer = world.connect(h2.PREFACE + h2.settings(window=10))
    peer.send(h2.call(1, b"100", "/test.Echo/Size"))
    peer.received()
    for _ in range(9):
        world.loop.advance(10)
        peer.send(h2.frame(PING, 0, 0, bytes(8)))
    assert "CANCEL" in [frame.reset for frame in peer.received()]
    assert world.service.calls[0].cancelled


def test_a_client_that_does_not_read_is_not_read_and_then_cut_off(make_world: Callable[..., Any], h2: Any) -> None:
    world = make_world(head_s=10, body_bytes_per_s=1e6)
    peer = world.connect(h2.PREFACE + h2.settings(window=2**31 - 1))
    peer.send(h2.frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 2**30)))
    peer.transport.reads = False
    peer.send(h2.call(1, b"20000000", "/test.Echo/Size"))
    assert not peer.transport.reading
    assert len(peer.transport.written) < 1_000_000, "the rest waits in the service's own memory"
    world.loop.advance(9)
    assert not peer.transport.closed
    world.loop.advance(4)
    assert peer.transport.closed


def test_nothing_more_is_written_while_the_client_does_not_read(world: Any, h2: Any) -> None:
    peer = world.connect(h2.PREFACE + h2.settings(window=2**31 - 1))
    peer.send(h2.frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 2**30)))
    peer.send(h2.call(1, b"", "/test.Echo/Hold"), h2.call(3, b"", "/test.Echo/Hold"))
    peer.transport.reads = False
    first, second = world.service.calls
    first.send((b"x" * 1_000_000,))
    world.loop.run()
    written = len(peer.transport.written)
    second.send((b"y" * 1000,))
    second.finish()
    world.loop.run()
    assert len(peer.transport.written) <= written + 50, "a header block at most"
    peer.transport.read_all()
    world.loop.run()
    assert peer.responses()[3].messages == [b"y" * 1000]


def test_a_client_that_reads_again_gets_the_rest(world: Any, h2: Any) -> None:
    peer = world.connect(h2.PREFACE + h2.settings(window=2**31 - 1))
    peer.send(h2.frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 2**30)))
    peer.received()
    peer.transport.reads = False
    peer.send(h2.call(1, b"5000000", "/test.Echo/Size"))
    world.loop.advance(5)
    peer.transport.read_all()
    assert peer.transport.reading
    world.loop.advance(60)
    assert peer.responses()[1].messages == [b"s" * 5_000_000]


def test_too_many_connections_are_turned_away(make_world: Callable[..., Any], h2: Any) -> None:
    world = make_world(connections=2, linger_s=2)
    first, second = world.connect(), world.connect()
    third = world.connect(hello=b"")
    third.send(h2.HELLO)
    assert [frame.goaway for frame in third.received()][-1] == "ENHANCE_YOUR_CALM"
    world.loop.advance(4)
    assert third.transport.closed
    assert second.send(h2.call(1)).responses()[1].status == StatusCode.OK
    first.transport.close()
    assert world.connect().send(h2.call(1)).responses()[1].status == StatusCode.OK


def test_a_crowd_at_the_door_is_bounded(make_world: Callable[..., Any]) -> None:
    world = make_world(connections=2)
    peers = [world.connect(hello=b"") for _ in range(10)]
    assert [peer.transport.closed for peer in peers] == [False] * 4 + [True] * 6


def test_a_draining_server_lets_calls_finish_and_takes_no_more(world: Any, h2: Any) -> None:
    idle, busy = world.connect(), world.connect()
    busy.send(h2.call(5, b"", "/test.Echo/Hold"))

    async def drain() -> None:
        closing = asyncio.ensure_future(world.server.close(10))
        await asyncio.sleep(0)
        assert [(frame.goaway, frame.payload[:4]) for frame in idle.received()] == [("NO_ERROR", bytes(4))]
        assert idle.transport.eof
        idle.hang_up()
        assert idle.transport.closed
        assert [(frame.goaway, frame.payload[3]) for frame in busy.received()] == [("NO_ERROR", 5)]
        busy.send(h2.call(7))
        assert busy.received() == [], "the client asks elsewhere"
        assert not closing.done()
        world.service.calls[0].send((b"done",))
        world.service.calls[0].finish()
        world.loop.run()
        assert busy.responses()[5].messages == [b"done"]
        assert busy.transport.eof
        busy.send(h2.call(9, bytes(100_000)))
        assert not busy.transport.closed, "what still comes must not reset the connection and lose the answer"
        assert busy.received() == []
        busy.hang_up()
        assert busy.transport.closed
        await closing

    asyncio.run(drain())
    assert len(world.service.calls) == 1


def test_a_drain_that_takes_too_long_cuts_calls_off(world: Any, h2: Any) -> None:
    peer = world.connect()
    peer.send(h2.call(1, b"", "/test.Echo/Hold"))
    asyncio.run(world.server.close(0.01))
    assert peer.transport.closed
    assert world.service.calls[0].cancelled


def test_useful_calls_keep_pings_and_resets_allowed(make_world: Callable[..., Any], h2: Any) -> None:
    world = make_world(idle_frames=10, resets=10)
    peer = world.connect()
    reset = struct.pack(">I", 8)
    for number in range(1, 401, 4):
        peer.send(h2.call(number), *[h2.frame(PING, 0, 0, bytes(8))] * 5)
        peer.send(h2.call(number + 2, b"", "/test.Echo/Hold"), h2.frame(RST_STREAM, 0, number + 2, reset))
    frames = peer.received()
    assert not [frame for frame in frames if frame.goaway]
    assert len([frame for frame in frames if frame.kind == PING]) == 500
