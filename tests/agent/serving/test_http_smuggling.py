"""What is said twice, or in a way that two servers may read differently: one reading, or none; heads that are known
included."""

from __future__ import annotations

import struct

import pytest

LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: t\r\n\r\n"
READY = b"GET /v2/health/ready HTTP/1.1\r\nHost: t\r\n\r\n"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def post(*lines: bytes, body: bytes = b"") -> bytes:
    return b"\r\n".join([b"POST /v2/models/m/infer HTTP/1.1", b"Host: t", *lines, b"", b""]) + body


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        pytest.param(post(b"Content-Length: 5", b"Content-Length: 5", body=b"abcde"), 400, id="the same length twice"),
        pytest.param(post(b"Content-Length: 5", b"content-length: 6", body=b"abcdef"), 400, id="two lengths"),
        pytest.param(post(b"Content-Length: 5, 5", body=b"abcde"), 400, id="a list of lengths"),
        pytest.param(post(b"Content-Length: +5", body=b"abcde"), 400, id="a length with a sign"),
        pytest.param(post(b"Content-Length: 0x5", body=b"abcde"), 400, id="a length in hex"),
        pytest.param(post(b"Content-Length: 5 5", body=b"abcde"), 400, id="a length with a space in it"),
        pytest.param(post(b"Content-Length:", body=b"abcde"), 400, id="an empty length"),
        pytest.param(post(b"Content-Length: 18446744073709551617", body=b"a"), 400, id="a length that overflows"),
        pytest.param(post(b"Content-Length : 5", body=b"abcde"), 400, id="a space before the colon"),
        pytest.param(
            post(b"Content-Length: 5", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"), 400, id="length, then chunks"
        ),
        pytest.param(
            post(b"Transfer-Encoding: chunked", b"Content-Length: 5", body=b"0\r\n\r\n"), 400, id="chunks, then length"
        ),
        pytest.param(post(b"Transfer-Encoding: chunked, identity", body=b"0\r\n\r\n"), 400, id="chunked is not last"),
        pytest.param(post(b"Transfer-Encoding: identity", body=b"abc"), 501, id="another coding"),
        pytest.param(post(b"Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n"), 501, id="a coding before chunked"),
        pytest.param(post(b"Transfer-Encoding: xchunked", body=b"0\r\n\r\n"), 501, id="almost chunked"),
        pytest.param(
            post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity", body=b"0\r\n\r\n"),
            400,
            id="two codings",
        ),
        pytest.param(post(b"Transfer-Encoding:\tchunked\x0b", body=b"0\r\n\r\n"), 400, id="a vertical tab"),
        pytest.param(post(b"Transfer-Encoding: chunked", body=b"5\r\nabcdeX\r\n0\r\n\r\n"), 400, id="a chunk too long"),
        pytest.param(post(b"Transfer-Encoding: chunked", body=b"5\nabcde\r\n0\r\n\r\n"), 400, id="a chunk's bare LF"),
        pytest.param(post(b"Transfer-Encoding: chunked", body=b"-1\r\n\r\n"), 400, id="a chunk of less than nothing"),
        pytest.param(
            post(b"Transfer-Encoding: chunked", body=b"10000000000000000\r\n"), 400, id="a chunk that overflows"
        ),
        pytest.param(post(b"X: a", b" b", body=b""), 400, id="a folded line"),
        pytest.param(post(b"X: a\nContent-Length: 5"), 400, id="a bare LF in a head"),
        pytest.param(post(b"X: a\rContent-Length: 5"), 400, id="a bare CR in a head"),
        pytest.param(post(b"X: a\0b"), 400, id="NUL in a value"),
        pytest.param(post(b"X\0: a"), 400, id="NUL in a name"),
        pytest.param(post(b": a"), 400, id="no name"),
        pytest.param(post(b"no colon"), 400, id="no colon"),
        pytest.param(b"GET /v2\0 HTTP/1.1\r\n\r\n", 400, id="NUL in the target"),
        pytest.param(b"GET  /v2 HTTP/1.1\n\n", 400, id="lines that end in LF"),
        pytest.param(b"GET /v2 HTTP/1.1\r\nHost: t\n\r\n", 400, id="one line that ends in LF"),
    ],
)
def test_a_body_without_one_certain_end_is_refused_and_nothing_behind_it_is_a_request(
    shared_server, connect, sent: bytes, status: int
):
    for _ in range(2):
        client = connect(shared_server).send(LIVE).send(sent + READY)
        assert client.answer().status == 200
        answer = client.answer()
        assert (answer.status, answer.headers["connection"]) == (status, "close")
        assert answer.error
        assert client.ended()


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(LIVE, id="known"),
        pytest.param(b"\r\n\r\n" + LIVE, id="empty lines before it"),
        pytest.param(LIVE.replace(b"t\r\n", b"t\r\nX: 1\r\n"), id="another head"),
    ],
)
def test_a_head_that_is_known_ends_no_other_request(shared_server, connect, tools, first: bytes):
    """Its bytes come as a body, behind a body, within a head, and as a piece of itself."""
    body = tools.infer_json()
    infer = post(b"Content-Length: %d" % len(body), body=body)
    as_body = post(b"Content-Length: %d" % len(LIVE), body=LIVE)
    client = connect(shared_server)
    for _ in range(3):
        assert client.send(first).answer().json == {"live": True}
        assert client.send(infer).answer().json["outputs"][0]["data"] == [10.0] * 3
        assert client.send(as_body).answer().status == 400
        client.send(as_body[: -len(LIVE)])
        shared_server.call(lambda: None)  # what came before is read by now
        assert client.send(LIVE).answer().status == 400, "the bytes of a request in a body are no request"
        assert client.send(infer + LIVE).answer().status == 200
        assert client.answer().json == {"live": True}


@pytest.mark.parametrize(
    ("lines", "ends"),
    [
        pytest.param([b"Connection: close"], True, id="close"),
        pytest.param([b"Connection: keep-alive"], False, id="keep-alive"),
        pytest.param([b"Expect: 100-continue"], False, id="expect"),
    ],
)
def test_what_a_head_says_of_the_connection_holds_each_time(shared_server, connect, tools, lines, ends: bool):
    body = tools.infer_json()
    sent = post(*lines, b"Content-Length: %d" % len(body))
    client = connect(shared_server)
    for _ in range(3):
        client.send(sent)
        if b"Expect: 100-continue" in lines:
            assert client.answer().status == 100
        answer = client.send(body).answer()
        assert answer.status == 200
        assert (answer.headers.get("connection") == "close") == ends
        if ends:
            assert client.ended()
            client = connect(shared_server)


def test_http_1_0_ends_each_time_and_the_same_head_of_1_1_does_not(shared_server, connect):
    for _ in range(3):
        old = connect(shared_server).send(LIVE.replace(b"1.1", b"1.0"))
        assert old.answer().headers["connection"] == "close"
        assert old.ended()
        new = connect(shared_server).send(LIVE)
        assert "connection" not in new.answer().headers
        assert new.send(LIVE).answer().status == 200


def test_the_body_behind_a_known_head_is_its_own(shared_server, connect, tools):
    client = connect(shared_server)
    bodies = [tools.infer_json([[float(n), 0.0, 0.0, 0.0]]) for n in (1, 2, 3)]
    assert len({len(body) for body in bodies}) == 1
    for number, body in enumerate(bodies, 1):
        answer = client.send(post(b"Content-Length: %d" % len(body), body=body)).answer()
        assert answer.json["outputs"][0]["data"] == [float(number)] * 3


def test_a_body_with_the_end_of_a_head_in_it_is_one_body(shared_server, connect, tools):
    body = tools.infer_json().replace(b"{", b"{\r\n\r\n", 1)
    client = connect(shared_server)
    for _ in range(3):
        assert client.send(post(b"Content-Length: %d" % len(body), body=body)).answer().status == 200


@pytest.mark.parametrize("size", [1, 3, 7, 15, 16, 23])
def test_the_preface_of_http2_may_come_in_pieces(shared_server, connect, tools, size: int):
    pytest.importorskip("google.protobuf")
    client = connect(shared_server)
    for at in range(0, len(PREFACE), size):
        client.send(PREFACE[at : at + size])
        shared_server.call(lambda: None)
    client.send(struct.pack(">IBI", 4, 0, 0))
    found = client.socket.recv(9)
    assert struct.unpack(">IBI", found)[0] & 0xFF == 4, "SETTINGS"


@pytest.mark.parametrize(
    "sent",
    [b"PRI * HTTP/1.1\r\n\r\nXY\r\n\r\n", b"PRI / HTTP/2.0\r\n\r\nXY\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nXY\r\n\r\n"],
)
def test_what_begins_like_http2_and_is_not_is_ended(shared_server, connect, sent: bytes):
    client = connect(shared_server)
    for byte in sent:
        client.socket.send(bytes([byte]))
    client.socket.settimeout(10)
    received = b""
    try:
        while piece := client.socket.recv(4096):
            received += piece
    except ConnectionResetError:
        pass
    assert received.startswith((b"HTTP/1.1 400", b"HTTP/1.1 505")) or b"\x07" in received, "a refusal, or GOAWAY"


def test_http2_is_turned_away_where_http_is(start_server, connect):
    server = start_server(connections=1, linger_s=0.2)
    first = connect(server).send(LIVE)
    assert first.answer().status == 200
    second = connect(server).send(PREFACE)
    assert second.answer().status == 503
    assert second.ended()
    assert first.send(LIVE).answer().status == 200
