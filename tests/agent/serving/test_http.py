from __future__ import annotations

import asyncio
import socket
import threading

import numpy as np
import pytest
import uvloop

from edgeserve_agent.serving.http_server import HttpServer

GET_LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: t\r\n\r\n"


@pytest.fixture(params=[uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])
def make_loop(request):
    return request.param


def test_a_connection_is_kept_and_used_again(start_server, connect):
    client = connect(start_server())
    for _ in range(3):
        answer = client.send(GET_LIVE).answer()
        assert (answer.status, answer.json) == (200, {"live": True})


def test_pipelined_requests_are_answered_in_order_though_the_first_is_slow(start_server, connect, tools):
    server = start_server()
    server.serve(tools.model(slow=True))
    burst = b"".join(
        tools.request("POST", "/v2/models/m/infer", tools.infer_json([[float(n), 0, 0, 0]], id=str(n)))
        + tools.request("GET", f"/no/{n}")
        for n in range(20)
    )
    client = connect(server).send(burst)
    for n in range(20):
        assert client.answer().json["id"] == str(n)
        assert f"/no/{n}" in client.answer().error


def test_more_pipelined_requests_than_are_read_ahead_are_all_answered(start_server, connect, tools):
    server = start_server(pipelined=4)
    server.serve(tools.model(slow=True))
    body = tools.infer_json()
    client = connect(server)
    sender = threading.Thread(target=client.send, args=(tools.request("POST", "/v2/models/m/infer", body) * 100,))
    sender.start()
    assert [client.answer().status for _ in range(100)] == [200] * 100
    sender.join()


@pytest.mark.parametrize(
    ("sent", "status", "says"),
    [
        pytest.param(b"nonsense\r\n\r\n", 400, "not an HTTP request", id="not http"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "not an HTTP request", id="TLS"),
        pytest.param(b"GET / HTTP/9.9\r\n\r\n", 400, "not an HTTP request", id="unknown version"),
        pytest.param(b"GET /\r\n\r\n", 505, "HTTP/1.1", id="HTTP/0.9"),
        pytest.param(b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400, "Content-Length", id="negative length"),
        pytest.param(
            b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            400,
            "Content-Length",
            id="two lengths",
        ),
        pytest.param(
            b"POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
            "Transfer-Encoding",
            id="length and chunks",
        ),
        pytest.param(
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", 400, "not an HTTP request", id="bad chunk"
        ),
        pytest.param(b"CONNECT a:1 HTTP/1.1\r\n\r\n", 400, "upgrades", id="connect"),
        pytest.param(
            b"POST / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 3\r\n\r\nabc",
            400,
            "upgrades",
            id="upgrade with a body",
        ),
        pytest.param(b"POST / HTTP/1.1\r\nContent-Length: 1000000000\r\n\r\n", 413, "larger than", id="1 GB declared"),
        pytest.param(
            b"POST / HTTP/1.1\r\nContent-Length: 1000000000\r\nExpect: 100-continue\r\n\r\n",
            413,
            "larger than",
            id="1 GB announced",
        ),
        pytest.param(b"POST / HTTP/1.1\r\nContent-Length: 3\r\nExpect: tea\r\n\r\n", 417, "100-continue", id="expect"),
        pytest.param(b"GET / HTTP/1.1\r\nX: " + b"a" * 70_000 + b"\r\n\r\n", 431, "larger than", id="long header"),
        pytest.param(b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", 431, "larger than", id="long path"),
        pytest.param(b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 40_000, 431, "larger than", id="head without end"),
        pytest.param(
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"A: bcdefgh\r\n" * 10_000,
            431,
            "larger than",
            id="trailers without end",
        ),
    ],
)
def test_what_cannot_be_a_request_is_refused_and_the_connection_ends(
    start_server, connect, sent: bytes, status: int, says: str
):
    client = connect(start_server(linger_s=1.0)).send(GET_LIVE + sent)
    assert client.answer().status == 200
    answer = client.answer()
    assert (answer.status, answer.headers["connection"]) == (status, "close")
    assert says in answer.error
    assert client.ended()


@pytest.mark.parametrize(
    ("sent", "limits"),
    [
        pytest.param(b"G", {"head_s": 0.1}, id="one byte"),
        pytest.param(b"GET / HTTP/1.1\r\nA: b\r\n", {"head_s": 0.1}, id="half a head"),
        pytest.param(
            b"POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\nabc",
            {"head_s": 0.1, "body_bytes_per_s": 1e6},
            id="half a body",
        ),
        pytest.param(
            b"POST / HTTP/1.1\r\nContent-Length: 10000\r\n\r\nabc",
            {"head_s": 0.1, "body_bytes_per_s": 1e6, "read_buffer_bytes": 1024},
            id="half a long body",
        ),
        pytest.param(
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n",
            {"head_s": 0.1, "body_bytes_per_s": 1e6},
            id="half the chunks",
        ),
    ],
)
def test_a_request_that_does_not_arrive_in_time_is_ended(start_server, connect, sent: bytes, limits):
    client = connect(start_server(**limits)).send(sent)
    assert client.answer().status == 408
    assert client.ended()


def test_a_client_that_sends_a_byte_now_and_then_is_ended_all_the_same(start_server, connect, tools):
    server = start_server(head_s=0.3)
    client = connect(server).send(b"GET / HTTP/1.1\r\n")
    client.socket.setblocking(False)
    received = b""

    def answered() -> bool:
        nonlocal received
        try:
            client.socket.send(b"a")
            received += client.socket.recv(4096)
        except BlockingIOError:
            pass
        except ConnectionError:
            return True
        return b"408" in received

    tools.until(answered, "the server ended it")


def test_an_idle_connection_is_closed(start_server, connect):
    client = connect(start_server(idle_s=0.1)).send(GET_LIVE)
    assert client.answer().status == 200
    assert client.ended()


def test_a_client_that_does_not_read_its_answers_is_cut_off(start_server, connect, tools):
    server = start_server(head_s=0.1, body_bytes_per_s=1e9)
    server.serve(tools.model(lambda inputs: {"y": np.zeros((len(inputs["x"]), 3), np.float32)}))
    body = tools.infer_json([[0.0] * 4] * 100, shape=[100, 4])
    data = tools.request("POST", "/v2/models/m/infer", body)
    client = connect(server)
    client.socket.settimeout(5.0)

    def flood() -> None:
        with pytest.raises(OSError):  # noqa: PT012 - the pressure comes back to the sender, then the end
            while True:
                client.send(data)

    flood()


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_connection_close_is_honoured(start_server, connect, version: str):
    header = "Connection: close\r\n" if version == "1.1" else ""
    client = connect(start_server()).send(f"GET /v2/health/live HTTP/{version}\r\n{header}\r\n".encode())
    answer = client.answer()
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    assert client.ended()


def test_http_1_0_is_kept_alive_when_it_asks(start_server, connect):
    client = connect(start_server())
    for _ in range(2):
        answer = client.send(b"GET /v2/health/live HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").answer()
        assert answer.headers["connection"] == "keep-alive"


def test_a_client_that_ended_its_side_gets_its_answers(start_server, connect, tools):
    server = start_server()
    server.serve(tools.model(slow=True))
    client = connect(server).send(tools.request("POST", "/v2/models/m/infer", tools.infer_json()) * 3)
    client.socket.shutdown(socket.SHUT_WR)
    assert [client.answer().status for _ in range(3)] == [200] * 3
    assert client.ended()


def test_a_request_that_ends_early_is_told_so(start_server, connect):
    client = connect(start_server()).send(b"POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\nabc")
    client.socket.shutdown(socket.SHUT_WR)
    assert "ended early" in client.answer().error


def test_an_upgrade_is_not_taken_and_the_request_answered(start_server, connect):
    client = connect(start_server())
    client.send(b"GET /v2/health/live HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
    assert client.answer().status == 200
    assert client.ended()


def test_head_gets_the_head_only(start_server, connect):
    client = connect(start_server()).send(b"HEAD /v2/health/live HTTP/1.1\r\n\r\n" + GET_LIVE)
    answer = client.answer(head_only=True)
    assert (answer.status, answer.headers["content-length"]) == (200, "13")
    assert client.answer().json == {"live": True}


def test_too_many_connections_are_refused_and_room_is_made_again(start_server, connect, tools):
    server = start_server(connections=2, linger_s=0.2)
    first, _second = connect(server).send(GET_LIVE), connect(server).send(GET_LIVE)
    assert [client.answer().status for client in (first, _second)] == [200, 200]
    third = connect(server)
    assert third.answer().status == 503
    assert third.ended()
    first.close()

    def admitted() -> bool:
        return connect(server).send(GET_LIVE).answer().status == 200

    tools.until(admitted, "there was room again")


def test_a_target_with_scheme_and_host_is_taken_for_its_path(start_server, connect, tools):
    client = connect(start_server())
    for target in ("http://device.local:8000/v2/health/live", "HTTPS://device/v2/health/live?x=1"):
        assert client.send(tools.request("GET", target)).answer().json == {"live": True}
    assert client.send(tools.request("GET", "http://device")).answer().json == {"status": "alive"}


def test_a_stopping_server_finishes_what_is_in_flight_and_takes_nothing_new(start_server, connect, tools):
    server = start_server()
    held = tools.held()
    server.serve(tools.model(held, slow=True))
    held.arm()
    idle = connect(server).send(GET_LIVE)
    assert idle.answer().status == 200
    busy = connect(server).send(tools.request("POST", "/v2/models/m/infer", tools.infer_json()))
    assert held.begun.wait(10)
    closing = threading.Thread(target=lambda: server.run(server.server.close(drain_s=10.0)))
    closing.start()
    assert idle.ended()

    def refused() -> bool:
        try:
            connect(server)
        except ConnectionRefusedError:
            return True
        return False

    tools.until(refused, "nothing listened")
    held.release()
    answer = busy.answer()
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    assert busy.ended()
    closing.join()


def test_a_client_that_leaves_takes_its_waiting_requests_with_it(start_server, connect, tools):
    server = start_server()
    model = tools.model(slow=True)
    server.serve(model)
    leaving = connect(server).send(tools.request("POST", "/v2/models/m/infer", tools.infer_json()) * 50)
    leaving.answer()
    leaving.close()
    assert connect(server).send(tools.request("POST", "/v2/models/m/infer", tools.infer_json())).answer().status == 200
    server.call(server.plane.unload, "m", tools.digest(1))
    tools.until(model.closed.is_set, "its last request was done")


def test_http2_that_is_not_taken_ends_the_connection_and_nothing_else(make_loop):
    loop, failures, lost = make_loop(), [], threading.Event()
    loop.set_exception_handler(lambda _loop, context: failures.append(context))

    def refuse(transport, _first: bytes) -> None:
        transport.close()
        loop.call_later(0.05, lost.set)

    async def serve() -> bytes:
        server = HttpServer(loop, lambda _request, _reply: None, http2=refuse)
        port = await server.listen("127.0.0.1", 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        received = await reader.read()
        writer.close()
        await server.close(0)
        return received

    try:
        assert loop.run_until_complete(serve()) == b""
    finally:
        loop.close()
    assert failures == []
