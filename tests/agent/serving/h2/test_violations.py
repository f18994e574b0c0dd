"""Each breach of RFC 9113 and the error code that it is answered with, over a real socket."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvloop

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITIZED = 1, 1, 4, 8, 32
WORD = struct.Struct(">I")


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, stream) + payload


def _field(name: bytes, value: bytes) -> bytes:
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


def _head(*more: tuple[bytes, bytes], leave: bytes | None = None, path: bytes = b"/test.Echo/Hold") -> bytes:
    first = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b"content-type", b"application/grpc")]
    return b"".join(_field(*pair) for pair in [*first, *more] if pair[0] != leave)


def _setting(name: int, value: int) -> bytes:
    return _frame(SETTINGS, 0, 0, struct.pack(">HI", name, value))


OPEN = _frame(HEADERS, END_HEADERS, 1, _head())
HALF_CLOSED = _frame(HEADERS, END_HEADERS | END_STREAM, 1, _head())
CLOSED = _frame(HEADERS, END_HEADERS | END_STREAM, 1, _head(path=b"/test.Echo/Echo"))
GIVEN_UP = OPEN + _frame(RST_STREAM, 0, 1, WORD.pack(8))

CONNECTION = [
    # Section 4.1, 4.2: frames
    ("frame above our MAX_FRAME_SIZE", b"\x10\x00\x01\x00\x00\x00\x00\x00\x01", "FRAME_SIZE_ERROR"),
    # Section 4.3: field compression
    ("index outside the tables", _frame(HEADERS, END_HEADERS, 1, b"\xff\x7f"), "COMPRESSION_ERROR"),
    ("index 0", _frame(HEADERS, END_HEADERS, 1, b"\x80"), "COMPRESSION_ERROR"),
    ("field that ends early", _frame(HEADERS, END_HEADERS, 1, _head()[:-1]), "COMPRESSION_ERROR"),
    ("broken huffman code", _frame(HEADERS, END_HEADERS, 1, b"\x00\x01a\x84\xff\xff\xff\xff"), "COMPRESSION_ERROR"),
    ("table above its bound", _frame(HEADERS, END_HEADERS, 1, b"\x3f\xe2\x1f" + _head()), "COMPRESSION_ERROR"),
    ("table resized after a field", _frame(HEADERS, END_HEADERS, 1, b"\x83\x20"), "COMPRESSION_ERROR"),
    ("frame within a header block", _frame(HEADERS, 0, 1, _head()) + _frame(PING, 0, 0, bytes(8)), "PROTOCOL_ERROR"),
    ("unknown frame within a header block", _frame(HEADERS, 0, 1, _head()) + _frame(99, 0, 0), "PROTOCOL_ERROR"),
    ("other stream's CONTINUATION", _frame(HEADERS, 0, 1, _head()) + _frame(CONTINUATION, 4, 3), "PROTOCOL_ERROR"),
    # Section 5.1: states and numbers of streams
    ("DATA on an idle stream", _frame(DATA, 0, 1, b"x"), "PROTOCOL_ERROR"),
    ("RST_STREAM on an idle stream", _frame(RST_STREAM, 0, 1, WORD.pack(8)), "PROTOCOL_ERROR"),
    ("WINDOW_UPDATE on an idle stream", _frame(WINDOW_UPDATE, 0, 1, WORD.pack(8)), "PROTOCOL_ERROR"),
    ("HEADERS on an even stream", _frame(HEADERS, END_HEADERS, 2, _head()), "PROTOCOL_ERROR"),
    ("DATA on an even stream", OPEN + _frame(DATA, 0, 2, b"x"), "PROTOCOL_ERROR"),
    ("HEADERS on an even stream below", _frame(HEADERS, 4, 3, _head()) + _frame(HEADERS, 4, 2), "PROTOCOL_ERROR"),
    ("HEADERS on a closed stream", CLOSED + _frame(HEADERS, END_HEADERS, 1, _head()), "STREAM_CLOSED"),
    ("DATA on a closed stream", CLOSED + _frame(DATA, 0, 1, b"x"), "STREAM_CLOSED"),
    ("HEADERS after RST_STREAM", GIVEN_UP + _frame(HEADERS, END_HEADERS, 1, _head()), "STREAM_CLOSED"),
    ("DATA after RST_STREAM", GIVEN_UP + _frame(DATA, 0, 1, b"x"), "STREAM_CLOSED"),
    ("a skipped stream used later", _frame(HEADERS, 4, 3, _head()) + _frame(HEADERS, 4, 1, _head()), "STREAM_CLOSED"),
    # Section 6: frames one by one
    ("DATA on stream 0", _frame(DATA, 0, 0, b"x"), "PROTOCOL_ERROR"),
    ("padding longer than DATA", OPEN + _frame(DATA, PADDED, 1, b"\x04abc"), "PROTOCOL_ERROR"),
    ("DATA without its length of padding", OPEN + _frame(DATA, PADDED, 1), "FRAME_SIZE_ERROR"),
    ("HEADERS on stream 0", _frame(HEADERS, END_HEADERS, 0, _head()), "PROTOCOL_ERROR"),
    ("padding longer than HEADERS", _frame(HEADERS, END_HEADERS | PADDED, 1, b"\xff" + _head()[:50]), "PROTOCOL_ERROR"),
    ("HEADERS without its length of padding", _frame(HEADERS, END_HEADERS | PADDED, 1), "FRAME_SIZE_ERROR"),
    ("HEADERS with half a priority", _frame(HEADERS, END_HEADERS | PRIORITIZED, 1, bytes(4)), "FRAME_SIZE_ERROR"),
    ("PRIORITY on stream 0", _frame(PRIORITY, 0, 0, bytes(5)), "PROTOCOL_ERROR"),
    ("RST_STREAM on stream 0", _frame(RST_STREAM, 0, 0, WORD.pack(8)), "PROTOCOL_ERROR"),
    ("RST_STREAM of 3 bytes", OPEN + _frame(RST_STREAM, 0, 1, bytes(3)), "FRAME_SIZE_ERROR"),
    ("RST_STREAM of 5000 bytes", OPEN + _frame(RST_STREAM, 0, 1, bytes(5000)), "FRAME_SIZE_ERROR"),
    ("SETTINGS on a stream", _frame(SETTINGS, 0, 1), "PROTOCOL_ERROR"),
    ("SETTINGS of 5 bytes", _frame(SETTINGS, 0, 0, bytes(5)), "FRAME_SIZE_ERROR"),
    ("SETTINGS with ACK and values", _frame(SETTINGS, ACK, 0, bytes(6)), "FRAME_SIZE_ERROR"),
    ("a thousand settings", _frame(SETTINGS, 0, 0, bytes(6000)), "ENHANCE_YOUR_CALM"),
    ("ENABLE_PUSH 2", _setting(2, 2), "PROTOCOL_ERROR"),
    ("INITIAL_WINDOW_SIZE 2^31", _setting(4, 1 << 31), "FLOW_CONTROL_ERROR"),
    ("MAX_FRAME_SIZE 16383", _setting(5, 16383), "PROTOCOL_ERROR"),
    ("MAX_FRAME_SIZE 2^24", _setting(5, 1 << 24), "PROTOCOL_ERROR"),
    ("PUSH_PROMISE", _frame(PUSH_PROMISE, END_HEADERS, 1, WORD.pack(2) + _head()), "PROTOCOL_ERROR"),
    ("PING on a stream", _frame(PING, 0, 1, bytes(8)), "PROTOCOL_ERROR"),
    ("PING of 7 bytes", _frame(PING, 0, 0, bytes(7)), "FRAME_SIZE_ERROR"),
    ("GOAWAY on a stream", _frame(GOAWAY, 0, 1, bytes(8)), "PROTOCOL_ERROR"),
    ("GOAWAY of 7 bytes", _frame(GOAWAY, 0, 0, bytes(7)), "FRAME_SIZE_ERROR"),
    ("WINDOW_UPDATE of 5 bytes", _frame(WINDOW_UPDATE, 0, 0, bytes(5)), "FRAME_SIZE_ERROR"),
    ("the connection's WINDOW_UPDATE by 0", _frame(WINDOW_UPDATE, 0, 0, bytes(4)), "PROTOCOL_ERROR"),
    ("the connection's window above 2^31-1", _frame(WINDOW_UPDATE, 0, 0, WORD.pack(2**31 - 1)), "FLOW_CONTROL_ERROR"),
    ("a stream's window above 2^31-1 by SETTINGS",
     OPEN + _frame(WINDOW_UPDATE, 0, 1, WORD.pack(2**31 - 1 - 65535)) + _setting(4, 65536), "FLOW_CONTROL_ERROR"),
    ("CONTINUATION without HEADERS", _frame(CONTINUATION, END_HEADERS, 1, _head()), "PROTOCOL_ERROR"),
    ("CONTINUATION on stream 0", _frame(HEADERS, 0, 1, _head()) + _frame(CONTINUATION, 4, 0), "PROTOCOL_ERROR"),
    ("CONTINUATION after END_HEADERS", OPEN + _frame(CONTINUATION, END_HEADERS, 1), "PROTOCOL_ERROR"),
    # Floods
    ("empty CONTINUATIONs", _frame(HEADERS, 0, 1, _head()) + 50 * _frame(CONTINUATION, 0, 1), "ENHANCE_YOUR_CALM"),
    ("long CONTINUATIONs", _frame(HEADERS, 0, 1) + 5 * _frame(CONTINUATION, 0, 1, bytes(16384)), "ENHANCE_YOUR_CALM"),
    ("one long HEADERS", _frame(HEADERS, END_HEADERS, 1, bytes(70_000)), "ENHANCE_YOUR_CALM"),
    ("a block that grows when decoded",
     _frame(HEADERS, END_HEADERS, 1, b"\x40\x01a\x7f\xa1\x1e" + bytes(4000) + 100 * b"\xbe"), "ENHANCE_YOUR_CALM"),
    ("PINGs", 1500 * _frame(PING, 0, 0, bytes(8)), "ENHANCE_YOUR_CALM"),
    ("SETTINGS", 1500 * _frame(SETTINGS, 0, 0), "ENHANCE_YOUR_CALM"),
    ("PRIORITY", 1500 * _frame(PRIORITY, 0, 5, bytes(5)), "ENHANCE_YOUR_CALM"),
    ("empty DATA", OPEN + 1500 * _frame(DATA, 0, 1), "ENHANCE_YOUR_CALM"),
    ("unknown frames", 1500 * _frame(77, 0, 0), "ENHANCE_YOUR_CALM"),
    ("WINDOW_UPDATEs", 1500 * _frame(WINDOW_UPDATE, 0, 0, WORD.pack(1)), "ENHANCE_YOUR_CALM"),
    ("rapid resets",
     b"".join(_frame(HEADERS, 4, n, _head()) + _frame(RST_STREAM, 0, n, WORD.pack(8)) for n in range(1, 3001, 2)),
     "ENHANCE_YOUR_CALM"),
    ("resets that the server is made to send",
     b"".join(_frame(HEADERS, 4, n, _head()) + _frame(WINDOW_UPDATE, 0, n, bytes(4)) for n in range(1, 3001, 2)),
     "ENHANCE_YOUR_CALM"),
]  # fmt: skip

STREAM = [
    ("DATA after END_STREAM", HALF_CLOSED + _frame(DATA, 0, 1, b"x"), "STREAM_CLOSED"),
    ("HEADERS after END_STREAM", HALF_CLOSED + _frame(HEADERS, 5, 1, _head()), "STREAM_CLOSED"),
    ("PRIORITY of 4 bytes", OPEN + _frame(PRIORITY, 0, 1, bytes(4)), "FRAME_SIZE_ERROR"),
    ("WINDOW_UPDATE by 0", OPEN + _frame(WINDOW_UPDATE, 0, 1, bytes(4)), "PROTOCOL_ERROR"),
    ("window above 2^31-1", OPEN + _frame(WINDOW_UPDATE, 0, 1, WORD.pack(2**31 - 1)), "FLOW_CONTROL_ERROR"),
    ("trailers without END_STREAM", OPEN + _frame(HEADERS, 4, 1, _field(b"a", b"b")), "PROTOCOL_ERROR"),
    ("pseudo-header among trailers", OPEN + _frame(HEADERS, 5, 1, _field(b":path", b"/")), "PROTOCOL_ERROR"),
    *[
        (f"malformed: {name}", _frame(HEADERS, END_HEADERS, 1, block), "PROTOCOL_ERROR")
        for name, block in [
            ("upper case", _head((b"Upper", b"x"))),
            ("space in a name", _head((b"a b", b"x"))),
            ("empty name", _head((b"", b"x"))),
            ("byte above 127 in a name", _head((b"\xe4", b"x"))),
            ("unknown pseudo-header", _field(b":unknown", b"x") + _head()),
            (":status", _field(b":status", b"200") + _head()),
            ("pseudo-header after a field", _head((b":authority", b"x"))),
            ("pseudo-header twice", _field(b":method", b"POST") + _head()),
            ("no :method", _head(leave=b":method")),
            ("no :scheme", _head(leave=b":scheme")),
            ("no :path", _head(leave=b":path")),
            ("empty :path", _head(path=b"")),
            ("connection", _head((b"connection", b"close"))),
            ("transfer-encoding", _head((b"transfer-encoding", b"chunked"))),
            ("upgrade", _head((b"upgrade", b"h2c"))),
            ("te other than trailers", _head((b"te", b"gzip"))),
            ("line feed in a value", _head((b"a", b"x\ny"))),
            ("carriage return in a value", _head((b"a", b"x\ry"))),
            ("NUL in a value", _head((b"a", b"x\0y"))),
            ("space before a value", _head((b"a", b" x"))),
            ("tab after a value", _head((b"a", b"x\t"))),
            ("content-length in words", _head((b"content-length", b"ten"))),
            ("two lengths", _head((b"content-length", b"1"), (b"content-length", b"2"))),
        ]
    ],
    ("longer than content-length",
     _frame(HEADERS, 4, 1, _head((b"content-length", b"3"))) + _frame(DATA, 0, 1, b"abcd"), "PROTOCOL_ERROR"),
    ("shorter than content-length",
     _frame(HEADERS, 4, 1, _head((b"content-length", b"9"))) + _frame(DATA, 1, 1, b"abcd"), "PROTOCOL_ERROR"),
    ("END_STREAM against content-length", _frame(HEADERS, 5, 1, _head((b"content-length", b"9"))), "PROTOCOL_ERROR"),
    ("trailers against content-length",
     _frame(HEADERS, 4, 1, _head((b"content-length", b"9"))) + _frame(HEADERS, 5, 1, _field(b"a", b"b")),
     "PROTOCOL_ERROR"),
    ("stream's window exceeded", OPEN + _frame(DATA, 0, 1, bytes(400_000)), "FLOW_CONTROL_ERROR"),
    ("one stream too many",
     b"".join(_frame(HEADERS, 4, n, _head()) for n in range(1, 12, 2)) + _frame(RST_STREAM, 0, 1, WORD.pack(8)),
     "REFUSED_STREAM"),
]  # fmt: skip

PREFACES = [
    ("HTTP/1.1", b"POST /v2 HTTP/1.1\r\nHost: x\r\n\r\n"),
    ("other frame before SETTINGS", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(PING, 0, 0, bytes(8))),
    ("SETTINGS with ACK first", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(SETTINGS, ACK, 0)),
    ("a letter wrong", b"PRI * HTTP/2.0\r\n\r\nSX\r\n\r\n"),
]

TOLERATED = [
    ("PRIORITY on an idle stream", _frame(PRIORITY, 0, 99, bytes(5))),
    ("PRIORITY on itself", OPEN + _frame(PRIORITY, 0, 1, WORD.pack(1) + b"\x10")),
    ("HEADERS with priority and padding",
     _frame(HEADERS, END_HEADERS | PADDED | PRIORITIZED, 1, b"\x07" + bytes(5) + _head() + bytes(7))),
    ("unknown frame", _frame(99, 255, 1, b"anything")),
    ("unknown setting", _setting(0x99, 1)),
    ("unknown flags", _frame(PING, 0xFE, 0, bytes(8))),
    ("reserved bit of the stream", _frame(PING, 0, 1 << 31, bytes(8))),
    ("reserved bit of an increment", _frame(WINDOW_UPDATE, 0, 0, WORD.pack(1 << 31 | 5))),
    ("WINDOW_UPDATE on a closed stream", CLOSED + _frame(WINDOW_UPDATE, 0, 1, WORD.pack(5))),
    ("RST_STREAM on a closed stream", CLOSED + _frame(RST_STREAM, 0, 1, WORD.pack(8))),
    ("trailers of the request", OPEN + _frame(HEADERS, 5, 1, _field(b"a", b"b"))),
    ("GOAWAY of the client", _frame(GOAWAY, 0, 0, bytes(8) + b"bye")),
    ("table emptied and grown", _frame(HEADERS, 5, 1, b"\x20\x3f\xe1\x1f" + _head())),
    ("CONTINUATIONs",
     _frame(HEADERS, 1, 1, _head()[:9]) + _frame(9, 0, 1, _head()[9:20]) + _frame(9, 4, 1, _head()[20:])),
    ("te trailers", _frame(HEADERS, 5, 1, _head((b"te", b"trailers")))),
    ("DATA on a stream that the server reset",
     OPEN + _frame(WINDOW_UPDATE, 0, 1, bytes(4)) + _frame(DATA, 1, 1, b"late")),
    ("trailers on a stream that the server reset",
     OPEN + _frame(WINDOW_UPDATE, 0, 1, bytes(4)) + _frame(HEADERS, 5, 1, _field(b"a", b"b"))),
]  # fmt: skip


@pytest.fixture
def make_loop() -> Callable[[], Any]:
    return uvloop.new_event_loop


@pytest.fixture
def server(start_h2: Any) -> Any:
    return start_h2(message_bytes=300_000, concurrent_streams=5, linger_s=0.5)


@pytest.fixture
def peer(server: Any, raw_peer: Any) -> Iterator[Any]:
    return raw_peer(server)


@pytest.mark.parametrize(("sent", "code"), [pytest.param(*case[1:], id=case[0]) for case in CONNECTION])
def test_a_breach_ends_the_connection_with_its_code(server: Any, raw_peer: Any, sent: bytes, code: str) -> None:
    peer = raw_peer(server)
    peer.send(sent)
    assert [item.goaway for item in peer.rest() if item.goaway] == [code]
    again = raw_peer(server)
    again.send(_call(1))
    assert again.until(lambda item: item.stream == 1 and item.flags & END_STREAM)


@pytest.mark.parametrize(("sent", "code"), [pytest.param(*case[1:], id=case[0]) for case in STREAM])
def test_a_breach_on_a_stream_ends_the_stream_with_its_code_and_nothing_else(peer: Any, sent: bytes, code: str) -> None:
    peer.send(sent)
    assert peer.until(lambda item: item.kind in (RST_STREAM, GOAWAY)).reset == code
    peer.send(_call(101))
    assert peer.until(lambda item: item.stream == 101 and item.flags & END_STREAM).kind == HEADERS


@pytest.mark.parametrize("hello", [pytest.param(case[1], id=case[0]) for case in PREFACES])
def test_what_is_not_http2_is_refused(server: Any, raw_peer: Any, hello: bytes) -> None:
    assert [item.goaway for item in raw_peer(server, hello=hello).rest() if item.goaway] == ["PROTOCOL_ERROR"]


@pytest.mark.parametrize("sent", [pytest.param(case[1], id=case[0]) for case in TOLERATED])
def test_what_is_no_breach_changes_nothing(peer: Any, sent: bytes) -> None:
    peer.send(sent + _call(101))
    seen: list[Any] = []
    peer.until(lambda item: seen.append(item) or (item.stream == 101 and item.flags & END_STREAM))
    assert not [item for item in seen if item.goaway]
    assert b"".join(item.payload for item in seen if item.kind == DATA and item.stream == 101) == b"\0\0\0\0\x02hi"


def test_padding_that_fills_the_frame_is_no_breach(peer: Any) -> None:
    peer.send(OPEN + _frame(DATA, PADDED, 1, b"\x03abc") + _call(3))
    assert peer.until(lambda item: item.goaway or (item.stream == 3 and item.flags & END_STREAM)).stream == 3


def _call(stream: int) -> bytes:
    return _frame(HEADERS, 4, stream, _head(path=b"/test.Echo/Echo")) + _frame(DATA, 1, stream, b"\0\0\0\0\x02hi")
