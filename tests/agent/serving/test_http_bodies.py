"""Bodies of requests: how they come, in whose memory, and until when."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest
import uvloop

GET_LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: t\r\n\r\n"


@pytest.fixture(params=[uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])
def make_loop(request):
    return request.param


def test_a_refused_body_that_keeps_coming_does_not_destroy_the_answer(start_server, connect):
    server = start_server(body_bytes=1000)
    client = connect(server).send(b"POST /x HTTP/1.1\r\nContent-Length: 3000000\r\n\r\n")
    for _ in range(30):
        client.send(b"x" * 100_000)
    assert client.answer().status == 413


def test_a_chunked_body_is_put_together(start_server, connect, tools):
    server = start_server()
    server.serve(tools.model())
    body = tools.infer_json()
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(body[at : at + 7]), body[at : at + 7]) for at in range(0, len(body), 7))
    head = b"POST /v2/models/m/infer HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    client = connect(server).send(head + chunks + b"0\r\nTrailer: dropped\r\n\r\n" + GET_LIVE)
    assert client.answer().json["outputs"][0]["data"] == [10.0] * 3
    assert client.answer().status == 200


def test_chunks_beyond_the_limit_are_refused_while_they_come(start_server, connect):
    client = connect(start_server(body_bytes=1000))
    client.send(b"POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + b"64\r\n%s\r\n" % (b"x" * 100) * 11)
    assert client.answer().status == 413


def test_a_body_is_asked_for_when_the_client_waits_for_it(start_server, connect, tools):
    server = start_server()
    server.serve(tools.model())
    body = tools.infer_json()
    head = b"POST /v2/models/m/infer HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body)
    client = connect(server)
    for _ in range(2):
        assert client.send(head).answer().status == 100
        assert client.send(body).answer().status == 200


def test_a_body_larger_than_the_shared_buffer_arrives_whole(start_server, connect, tools):
    server = start_server(read_buffer_bytes=4096)
    server.serve(tools.model())
    rows = np.arange(40_000, dtype=np.float32).reshape(10_000, 4)
    head = b'{"inputs":[{"name":"x","shape":[10000,4],"datatype":"FP32","parameters":{"binary_data_size":160000}}]}'
    data = tools.request(
        "POST", "/v2/models/m/infer", head + rows.tobytes(), Inference_Header_Content_Length=str(len(head))
    )
    client = connect(server)
    for _ in range(2):
        found = client.send(data + GET_LIVE).answer().json["outputs"][0]["data"]
        assert np.array_equal(np.array(found, np.float32).reshape(-1, 3)[:, 0], rows.sum(axis=1))
        assert client.answer().status == 200


def test_bodies_beyond_the_memory_for_all_are_refused_and_the_memory_comes_back(start_server, connect, tools):
    server = start_server(bodies_bytes=10_000, uncounted_bytes=1000, read_buffer_bytes=1024, linger_s=0.1)
    big = b"POST /v2/models/m/infer HTTP/1.1\r\nContent-Length: 6000\r\n\r\n"
    first = connect(server).send(big + b"x")
    tools.until(lambda: server.call(lambda: server.server._http._held) == 6000, "the first body was counted")
    answer = connect(server).send(big).answer()
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    first.close()
    tools.until(lambda: server.call(lambda: server.server._http._held) == 0, "the memory came back")
    assert connect(server).send(big + b"x" * 6000).answer().status == 404


@pytest.mark.parametrize("times", [1, 3], ids=["a new head", "a head that is known"])
def test_bodies_that_fit_the_shared_buffer_count_too_until_they_are_answered(start_server, connect, tools, times: int):
    server = start_server(bodies_bytes=3000, uncounted_bytes=1000)
    server.serve(tools.model(), name="quick")
    body = tools.infer_json(parameters={"note": "x" * 2000})
    for _ in range(times):
        assert connect(server).send(tools.request("POST", "/v2/models/quick/infer", body)).answer().status == 200
    assert server.call(lambda: server.server._http._held) == 0

    held = tools.held()
    server.serve(tools.model(held, slow=True))
    held.arm()
    first = connect(server).send(tools.request("POST", "/v2/models/m/infer", body))
    assert held.begun.wait(10)
    assert server.call(lambda: server.server._http._held) == len(body)
    assert connect(server).send(tools.request("POST", "/v2/models/quick/infer", body)).answer().status == 503
    assert (
        connect(server).send(tools.request("POST", "/v2/models/quick/infer", tools.infer_json())).answer().status == 200
    )
    held.release()
    assert first.answer().status == 200
    assert server.call(lambda: server.server._http._held) == 0


def test_a_body_that_was_not_asked_for_yet_has_all_its_time(start_server, connect, tools):
    server = start_server(head_s=0.2, body_bytes_per_s=1e9)
    held = tools.held()
    server.serve(tools.model(held, slow=True))
    held.arm()
    body = tools.infer_json()
    head = b"POST /v2/models/m/infer HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body)
    client = connect(server).send(tools.request("POST", "/v2/models/m/infer", body) + head)
    assert held.begun.wait(10)
    time.sleep(0.6)  # three times as long as a request may take
    held.release()
    assert client.answer().status == 200
    assert client.answer().status == 100
    assert client.send(body).answer().status == 200
