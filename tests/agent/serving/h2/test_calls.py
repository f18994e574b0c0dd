"""Calls over a connection in memory: what the service gets and what the client gets."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import struct
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeserve_agent.serving.rpc import StatusCode

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED = 1, 1, 4, 8


@pytest.fixture
def world(make_world: Callable[..., Any]) -> Any:
    return make_world()


def _update(h2: Any, stream: int, increment: int) -> bytes:
    return bytes(h2.frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", increment)))


def test_the_server_begins_with_its_settings_and_acknowledges_the_clients(world: Any, h2: Any) -> None:
    peer = world.connect(hello=b"")
    first, update = peer.received()
    values = dict(struct.iter_unpack(">HI", first.payload))
    assert (first.kind, first.flags, update.kind) == (SETTINGS, 0, WINDOW_UPDATE)
    assert values == {3: 256, 4: 2**20, 5: 2**20, 6: 65536}
    assert peer.send(h2.HELLO).received() == [(SETTINGS, ACK, 0, b"")]


def test_a_unary_call_is_one_write_of_three_frames(world: Any, h2: Any) -> None:
    peer = world.connect()
    peer.send(h2.call(1, b"hello"))
    frames = peer.received()
    assert [(frame.kind, frame.flags) for frame in frames] == [(HEADERS, 4), (DATA, 0), (HEADERS, 5)]
    assert frames[1].payload == b"\0\0\0\0\5hello"


@pytest.mark.parametrize("method", ["Echo", "Later", "Pieces"])
@pytest.mark.parametrize("size", [0, 1, 100, 16_383, 16_384, 40_000, 300_000, 3_000_000])
def test_messages_of_any_size_come_back(world: Any, h2: Any, method: str, size: int) -> None:
    peer = world.connect()
    peer.send(h2.settings(window=2**31 - 1), _update(h2, 0, 2**30))
    body = bytes(range(251)) * (size // 251) + b"x" * (size % 251)
    payload = h2.message(body)
    data = [payload[i : i + 2**20] for i in range(0, len(payload), 2**20)]
    peer.send(h2.frame(HEADERS, 4, 1, h2.head(f"/test.Echo/{method}")), *[h2.frame(DATA, 0, 1, d) for d in data])
    peer.send(h2.frame(DATA, END_STREAM, 1))
    response = peer.responses()[1]
    assert (response.messages, response.status) == ([body], StatusCode.OK)


@settings(deadline=None)
@given(
    st.lists(st.one_of(st.binary(max_size=30), st.integers(0, 60_000).map(bytes)), max_size=5),
    st.lists(st.integers(1, 50_000), max_size=12),
    st.lists(st.tuples(st.integers(0, 40_000), st.none() | st.integers(0, 255)), max_size=6),
)
def test_it_matters_neither_how_messages_are_cut_into_frames_nor_frames_into_reads(
    make_world: Callable[..., Any], h2: Any, bodies: list[bytes], reads: list[int], cuts: list[tuple[int, int | None]]
) -> None:
    peer = make_world().connect()
    stream = b"".join(map(h2.message, bodies))
    sent = h2.settings(window=2**31 - 1) + _update(h2, 0, 2**30) + h2.frame(HEADERS, 4, 1, h2.head())
    for size, padding in [*cuts, (len(stream), None)]:
        piece, stream = stream[:size], stream[size:]
        if padding is None:
            sent += h2.frame(DATA, 0, 1, piece)
        else:
            sent += h2.frame(DATA, PADDED, 1, bytes([padding]) + piece + b"\xee" * padding)
    sent += h2.frame(DATA, END_STREAM | PADDED, 1, b"\x02\0\0")
    for read in reads:
        peer.send(sent[:read])
        sent = sent[read:]
    response = peer.send(sent).responses()[1]
    assert (response.messages, response.status) == (bodies, StatusCode.OK)


def test_bytes_one_by_one(world: Any, h2: Any) -> None:
    peer = world.connect(hello=b"")
    for byte in h2.HELLO + h2.call(1, b"slow") + h2.call(3, b"steady"):
        peer.send(bytes([byte]))
    assert {n: r.messages for n, r in peer.responses().items()} == {1: [b"slow"], 3: [b"steady"]}


def test_large_messages_are_read_straight_into_their_memory(world: Any, h2: Any) -> None:
    peer = world.connect()
    peer.send(h2.frame(HEADERS, 4, 1, h2.head("/test.Echo/Hold")))
    whole = h2.frame(DATA, END_STREAM, 1, h2.message(bytes(600_000)))
    peer.send(whole[:200_000])
    room = peer.connection.get_buffer(-1)
    assert len(room) == 600_000 - (200_000 - 14), "all of what is missing"
    assert world.server.memory.held == 600_000


def test_a_call_that_ends_while_a_read_into_its_memory_finds_nothing(world: Any, h2: Any) -> None:
    """The loop may ask where to read to, find nothing, and run a timer."""
    peer = world.connect()
    peer.send(h2.frame(HEADERS, 4, 1, h2.head("/test.Echo/Hold", ("grpc-timeout", "1S"))))
    whole = h2.frame(DATA, END_STREAM, 1, h2.message(bytes(600_000)))
    peer.send(whole[:200_000])
    assert len(peer.connection.get_buffer(-1)) > 390_000
    world.loop.advance(2)
    peer.send(whole[200_000:], h2.call(3))
    assert {n: r.status for n, r in peer.responses().items()} == {1: StatusCode.DEADLINE_EXCEEDED, 3: StatusCode.OK}
    assert world.server.memory.held == 0


@pytest.mark.parametrize("method", ["Echo", "Later", "Early", "Unknown"])
def test_a_call_leaves_nothing_to_collect(world: Any, h2: Any, method: str) -> None:
    peer = world.connect()
    gc.disable()
    try:
        peer.send(h2.call(1, b"x", f"/test.Echo/{method}"))
        reference = weakref.ref(world.service.calls.pop())
        assert peer.received()
        assert reference() is None
    finally:
        gc.enable()


def test_responses_obey_the_clients_windows(world: Any, h2: Any) -> None:
    peer = world.connect(h2.PREFACE + h2.settings(window=10))
    peer.send(h2.call(1, b"100", "/test.Echo/Size"))

    def data() -> list[int]:
        return [len(frame.payload) for frame in peer.received() if frame.kind == DATA]

    assert data() == [10]
    peer.send(_update(h2, 1, 7))
    assert data() == [7]
    peer.send(h2.settings(window=2))
    assert data() == [], "the window is negative now: 0 - 8"
    peer.send(_update(h2, 1, 8))
    assert data() == [], "and 0 now"
    peer.send(_update(h2, 1, 1))
    assert data() == [1]
    peer.send(h2.settings(window=1000))
    frames = peer.received()
    assert sum(len(frame.payload) for frame in frames if frame.kind == DATA) == 105 - 18
    assert frames[-1][:3] == (HEADERS, 5, 1)


def test_the_connections_window_is_shared_in_turn(world: Any, h2: Any) -> None:
    peer = world.connect(h2.PREFACE + h2.settings(window=2**31 - 1))
    peer.send(h2.call(1, b"100000", "/test.Echo/Size"), h2.call(3, b"100000", "/test.Echo/Size"))
    assert sum(len(frame.payload) for frame in peer.received() if frame.kind == DATA) == 65535
    peer.send(_update(h2, 0, 4 * 16384))
    turns = [(frame.stream, len(frame.payload)) for frame in peer.received() if frame.kind == DATA]
    assert sum(size for _, size in turns) == 4 * 16384
    assert {stream for stream, _ in turns} == {1, 3}
    peer.send(_update(h2, 0, 10**6))
    ends = [frame.stream for frame in peer.received() if frame.kind == HEADERS and frame.flags & END_STREAM]
    assert sorted(ends) == [1, 3]


def test_a_small_response_waits_for_the_connections_window_too(world: Any, h2: Any) -> None:
    peer = world.connect(h2.PREFACE + h2.settings(window=2**31 - 1))
    peer.send(h2.call(1, b"65525", "/test.Echo/Size"))  # with its prefix all but five octets of the window
    assert peer.responses()[1].status == StatusCode.OK
    peer.send(h2.call(3, b"0123"))
    assert [len(frame.payload) for frame in peer.received() if frame.kind == DATA] == [5]
    peer.send(_update(h2, 0, 100))
    assert [len(frame.payload) for frame in peer.received() if frame.kind == DATA] == [4]


def test_a_call_that_was_given_up_waits_for_no_window(world: Any, h2: Any) -> None:
    """A client that never opens the connection's window and resets its streams makes us keep nothing."""
    peer = world.connect(h2.PREFACE + h2.settings(window=2**31 - 1))
    peer.send(h2.call(1, b"70000", "/test.Echo/Size"), h2.call(3, b"1000", "/test.Echo/Size"))
    reset = bytes([0, 0, 0, 8])
    calls = [weakref.ref(call) for call in world.service.calls]
    world.service.calls.clear()
    peer.send(h2.frame(RST_STREAM, 0, 1, reset), h2.frame(RST_STREAM, 0, 3, reset))
    assert [call() for call in calls] == [None, None]


def test_frames_are_no_longer_than_the_client_allows(world: Any, h2: Any) -> None:
    peer = world.connect(h2.PREFACE + h2.settings(window=2**31 - 1, frame=20_000))
    peer.send(_update(h2, 0, 10**6), h2.call(1, b"50000", "/test.Echo/Size"))
    sizes = [len(frame.payload) for frame in peer.received() if frame.kind == DATA]
    assert sizes == [20_000, 20_000, 10_005]


def test_the_window_of_the_request_is_opened_as_it_is_used(make_world: Callable[..., Any], h2: Any) -> None:
    peer = make_world(message_bytes=100_000).connect()
    peer.send(h2.frame(HEADERS, 4, 1, h2.head("/test.Echo/Hold")))
    opened = 0
    for count in range(1, 21):
        peer.send(h2.frame(DATA, 0, 1, h2.message(bytes(9_995))))
        for frame in peer.received():
            assert (frame.kind, frame.stream) == (WINDOW_UPDATE, 1)
            opened += int.from_bytes(frame.payload, "big")
        assert 50_000 <= 100_005 + opened - 10_000 * count <= 100_005


def test_a_client_that_empties_its_table_is_told_that_ours_is_empty(world: Any, h2: Any) -> None:
    peer = world.connect(h2.PREFACE + h2.settings(table=0))
    peer.send(h2.call(1), h2.call(3))
    blocks = [frame.payload for frame in peer.received() if frame.kind == HEADERS]
    assert [block[:1] == b"\x20" for block in blocks] == [True, False, False, False]


def test_the_table_is_emptied_once_only_and_not_where_the_client_grows_it(world: Any, h2: Any) -> None:
    peer = world.connect(h2.PREFACE + h2.settings(table=65536))
    peer.send(h2.call(1), h2.settings(table=100), h2.settings(table=50), h2.call(3), h2.settings(table=0), h2.call(5))
    blocks = [frame.payload[:1] == b"\x20" for frame in peer.received() if frame.kind == HEADERS]
    assert blocks == [False, False, True, False, False, False]


@pytest.mark.parametrize("encoding", ["gzip", "identity"])
def test_compressed_requests(world: Any, h2: Any, encoding: str) -> None:
    peer = world.connect()
    body = gzip.compress(b"a" * 1000) if encoding == "gzip" else b"a" * 1000
    peer.send(h2.frame(HEADERS, 4, 1, h2.head("/test.Echo/Echo", ("grpc-encoding", encoding))))
    peer.send(h2.frame(DATA, END_STREAM, 1, h2.message(body, int(encoding == "gzip"))))
    assert peer.responses()[1].messages == [b"a" * 1000]


def test_unknown_compression_is_unimplemented_and_says_what_is(world: Any, h2: Any) -> None:
    peer = world.connect()
    peer.send(h2.call(1, b"", "/test.Echo/Echo", ("grpc-encoding", "snappy")))
    response = peer.responses()[1]
    assert response.status == StatusCode.UNIMPLEMENTED
    assert response.trailers["grpc-accept-encoding"] == "identity,deflate,gzip"
    assert not world.service.calls


@pytest.mark.parametrize(
    ("replaced", "status"), [({"type": "application/json"}, "415"), ({"type": ""}, "415"), ({"method": "GET"}, "405")]
)
def test_what_is_not_grpc_gets_an_http_status(world: Any, h2: Any, replaced: dict[str, str], status: str) -> None:
    peer = world.connect()
    peer.send(h2.frame(HEADERS, END_HEADERS | END_STREAM, 1, h2.head(**replaced)))
    assert peer.responses()[1].headers[":status"] == status
    assert not world.service.calls


def test_a_message_above_the_limit_is_refused_with_the_limit(make_world: Callable[..., Any], h2: Any) -> None:
    peer = make_world(message_bytes=1000).connect()
    peer.send(h2.frame(HEADERS, 4, 1, h2.head()), h2.frame(DATA, 0, 1, h2.message(bytes(1001))))
    frames = peer.received()
    assert frames[-1].reset == "NO_ERROR"
    assert b"larger than 1000 bytes" in frames[0].payload
    assert b"grpc-status\x018" in frames[0].payload
    peer.send(h2.frame(DATA, END_STREAM, 1, bytes(500)), h2.call(3))
    assert peer.responses()[3].status == StatusCode.OK, "late DATA is passed over"


def test_messages_share_a_budget(make_world: Callable[..., Any], h2: Any) -> None:
    world = make_world(messages_bytes=250_000)
    peer = world.connect()
    for stream in (1, 3, 5):
        peer.send(h2.frame(HEADERS, 4, stream, h2.head("/test.Echo/Hold")))
        peer.send(h2.frame(DATA, 0, stream, h2.message(bytes(100_000))[:50_000]))
    refused = peer.responses()
    assert list(refused) == [5]
    assert refused[5].status == StatusCode.RESOURCE_EXHAUSTED
    peer.transport.close()
    assert world.server.memory.held == 0


def test_a_truncated_message_is_an_error(world: Any, h2: Any) -> None:
    peer = world.connect()
    peer.send(h2.frame(HEADERS, 4, 1, h2.head()), h2.frame(DATA, END_STREAM, 1, h2.message(b"abc")[:-1]))
    assert peer.responses()[1].status == StatusCode.INTERNAL


@pytest.mark.parametrize("method", ["Fail", "FailBegin"])
def test_a_bug_in_the_service_is_internal_and_logged(world: Any, h2: Any, caplog: Any, method: str) -> None:
    peer = world.connect()
    peer.send(h2.call(1, b"", f"/test.Echo/{method}"), h2.call(3))
    responses = peer.responses()
    assert (responses[1].status, responses[3].status) == (StatusCode.INTERNAL, StatusCode.OK)
    assert "a bug" in caplog.text
    assert "a bug" not in responses[1].trailers["grpc-message"]


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"\x00\xff\xff\xff\xff", StatusCode.RESOURCE_EXHAUSTED),
        (b"\x02\x00\x00\x00\x00", StatusCode.INTERNAL),
        (b"\x00\x00\x00\x00\x05half", StatusCode.INTERNAL),
    ],
)
def test_the_service_hears_of_a_call_that_ends_without_it(world: Any, h2: Any, sent: bytes, code: StatusCode) -> None:
    peer = world.connect()
    peer.send(h2.frame(HEADERS, 4, 1, h2.head("/test.Echo/Hold")), h2.frame(DATA, END_STREAM, 1, sent))
    assert peer.responses()[1].status == code
    assert world.service.calls[0].cancelled
    assert world.service.cancelled == ["/test.Echo/Hold"]


def test_a_bug_in_cancelling_is_logged_and_no_more(world: Any, h2: Any, caplog: Any) -> None:
    peer = world.connect()
    peer.send(h2.call(1, b"", "/test.Echo/Hold"))
    world.service.calls[0].on_cancel = lambda: 1 / 0
    peer.send(h2.frame(RST_STREAM, 0, 1, bytes([0, 0, 0, 8])), h2.call(3))
    assert peer.responses()[3].status == StatusCode.OK
    assert "ZeroDivisionError" in caplog.text


def test_answers_that_wait_are_sent_before_the_status_of_a_refused_message(world: Any, h2: Any) -> None:
    peer = world.connect(h2.PREFACE + h2.settings(window=10))
    peer.send(h2.frame(HEADERS, 4, 1, h2.head()), h2.frame(DATA, 0, 1, h2.message(b"0123456789")))
    peer.send(h2.frame(DATA, 0, 1, b"\x00\xff\xff\xff\xff"))
    before = bytes(peer.transport.written)
    peer.send(_update(h2, 1, 100))
    assert len(peer.transport.written) > len(before)
    response = peer.responses()[1]
    assert (response.messages, response.status) == ([b"0123456789"], StatusCode.RESOURCE_EXHAUSTED)


def test_a_status_before_the_last_message(world: Any, h2: Any) -> None:
    peer = world.connect()
    peer.send(h2.frame(HEADERS, 4, 1, h2.head("/test.Echo/Early")))
    peer.send(h2.frame(DATA, 0, 1, h2.message(b"1") + h2.message(b"2")))
    first, second = peer.received()
    assert (first.kind, first.flags) == (HEADERS, 5)
    assert b"enough: 100 %25 %E2%82%AC really" in first.payload
    assert second.reset == "NO_ERROR", "the client need not send the rest"
    peer.send(h2.frame(DATA, END_STREAM, 1, h2.message(b"3")))
    assert peer.received() == []


def test_no_reset_where_the_client_had_finished(world: Any, h2: Any) -> None:
    peer = world.connect()
    peer.send(h2.call(1, b"1", "/test.Echo/Early"))
    assert [frame.kind for frame in peer.received()] == [HEADERS]


def test_metadata_reaches_the_service(world: Any, h2: Any) -> None:
    peer = world.connect()
    peer.send(h2.call(1, b"", "/test.Echo/Metadata", ("a", "1"), ("te", "trailers"), ("b-bin", "AAE="), ("a", "2")))
    assert json.loads(peer.responses()[1].messages[0]) == {"a": "1,2", "b-bin": "AAE="}


def test_cancellation_reaches_the_service_and_nothing_is_sent_after_it(world: Any, h2: Any) -> None:
    peer = world.connect()
    peer.send(h2.call(1, b"", "/test.Echo/Hold"))
    (call,) = world.service.calls
    assert not call.cancelled
    peer.send(h2.frame(RST_STREAM, 0, 1, bytes([0, 0, 0, 8])))
    assert call.cancelled
    assert world.service.cancelled == ["/test.Echo/Hold"]
    call.send((b"late",))
    call.finish()
    world.loop.run()
    assert peer.received() == []


def test_what_waits_for_windows_is_dropped_with_its_call(world: Any, h2: Any) -> None:
    peer = world.connect(h2.PREFACE + h2.settings(window=5))
    peer.send(h2.call(1, b"1000", "/test.Echo/Size"), h2.frame(RST_STREAM, 0, 1, bytes([0, 0, 0, 8])))
    peer.received()
    peer.send(h2.settings(window=10_000))
    assert [frame.kind for frame in peer.received()] == [SETTINGS]


def test_a_lost_connection_cancels_its_calls(world: Any, h2: Any) -> None:
    peer = world.connect()
    peer.send(h2.call(1, b"", "/test.Echo/Hold"), h2.call(3, b"", "/test.Echo/Hold"))
    peer.transport.close()
    assert [call.cancelled for call in world.service.calls] == [True, True]
    for call in world.service.calls:
        call.send((b"late",))
        call.finish()
    world.loop.run()


def test_a_client_that_ends_its_side_still_gets_what_it_asked_for_whole(world: Any, h2: Any) -> None:
    peer = world.connect()
    peer.send(h2.call(1, b"", "/test.Echo/Hold"), h2.frame(HEADERS, 4, 3, h2.head("/test.Echo/Hold")))
    assert peer.connection.eof_received()
    whole, half = world.service.calls
    assert (whole.cancelled, half.cancelled) == (False, True)
    whole.finish()
    world.loop.run()
    assert peer.transport.closed
    assert peer.responses()[1].status == StatusCode.OK


def test_many_streams_interleave(world: Any, h2: Any) -> None:
    peer = world.connect()
    numbers = range(1, 401, 2)
    peer.send(*[h2.frame(HEADERS, 4, n, h2.head("/test.Echo/Later")) for n in numbers])
    peer.send(*[h2.frame(DATA, END_STREAM, n, h2.message(b"%d" % n)) for n in reversed(numbers)])
    assert {n: r.messages for n, r in peer.responses().items()} == {n: [b"%d" % n] for n in numbers}


def test_a_connection_can_be_handed_over_with_its_first_bytes(world: Any, h2: Any) -> None:
    class Other(asyncio.Protocol):
        pass

    peer = world.connect(hello=b"")
    transport = type(peer.transport)()
    transport.protocol = Other()
    world.server.adopt(transport, memoryview(h2.HELLO + h2.call(1, bytes(400_000))))
    world.loop.run()
    assert transport.protocol is not peer.connection
    assert type(transport.protocol) is type(peer.connection)
    frames, _ = h2.split(bytes(transport.written))
    assert [frame.kind for frame in frames[:4]] == [SETTINGS, WINDOW_UPDATE, SETTINGS, HEADERS]


def test_a_large_padded_frame_that_was_read_straight_ends_its_call(world: Any, h2: Any) -> None:
    peer = world.connect(h2.PREFACE + h2.settings(window=2**31 - 1) + _update(h2, 0, 2**30))
    body = h2.message(bytes(100_000))
    whole = h2.frame(DATA, END_STREAM | PADDED, 1, b"\x07" + body + bytes(7))
    peer.send(h2.frame(HEADERS, 4, 1, h2.head()), whole[:50_000])
    assert len(peer.connection.get_buffer(-1)) == len(whole) - 50_000 - 7, "straight, but for the padding"
    response = peer.send(whole[50_000:]).responses()[1]
    assert (response.messages, response.status) == ([bytes(100_000)], StatusCode.OK)


def test_a_client_that_asks_on_without_reading_is_reset(make_world: Callable[..., Any], h2: Any) -> None:
    world = make_world(waiting_bytes=1000)
    peer = world.connect(h2.PREFACE + h2.settings(window=0))
    peer.send(h2.frame(HEADERS, 4, 1, h2.head()))
    for _ in range(3):
        peer.send(h2.frame(DATA, 0, 1, h2.message(bytes(600))))
    assert [frame.reset for frame in peer.received() if frame.reset] == ["ENHANCE_YOUR_CALM"]
    assert world.service.cancelled == ["/test.Echo/Echo"]
    peer.send(h2.frame(DATA, 0, 1, h2.message(b"late")), h2.settings(window=1000))
    assert peer.send(h2.call(3)).responses()[3].status is StatusCode.OK
