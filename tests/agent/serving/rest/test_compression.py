"""Compressed bodies, both ways: through a real server, and the rules alone."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeserve.contracts.errors import InputError, TooLargeError
from edgeserve.contracts.limits import CODEC_THREAD_BYTES, COMPRESS_FROM_BYTES, MAX_REQUEST_BYTES
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve_agent.serving.rest.compression import accepted, deflate, inflate

INFER = "/v2/models/m/infer"
ROWS = 40_000
WIDE = Signature(
    inputs=(TensorSpec(name="x", datatype=Datatype.FP32, shape=(-1, 4)),),
    outputs=(TensorSpec(name="y", datatype=Datatype.FP32, shape=(-1, 4)),),
)


def compressed(data: bytes, coding: str) -> bytes:
    return gzip.compress(data) if coding.endswith("gzip") else zlib.compress(data)


def plain(data: bytes, coding: str) -> bytes:
    return gzip.decompress(data) if coding == "gzip" else zlib.decompress(data)


def request_of(rows: np.ndarray, *, binary: bool = False, binary_answer: bool = False) -> tuple[bytes, int]:
    tensor: dict[str, Any] = {"name": "x", "shape": rows.shape, "datatype": "FP32"}
    if binary:
        tensor["parameters"] = {"binary_data_size": rows.nbytes}
    else:
        tensor["data"] = rows.ravel().tolist()
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": binary_answer}}).encode()
    return head + (rows.tobytes() if binary else b""), len(head)


@pytest.fixture(scope="module")
def server(shared_server, tools):
    shared_server.serve(tools.model(lambda given: {"y": given["x"]}, signature=WIDE), name="echo")
    return shared_server


@pytest.fixture
def send(server, connect, tools) -> Callable[..., Any]:
    client = connect(server)
    return lambda body, path=INFER, **headers: client.send(tools.request("POST", path, body, **headers)).answer()


@pytest.mark.parametrize("coding", ["gzip", "deflate", "x-gzip", "GZIP", " gzip "])
@pytest.mark.parametrize("binary", [False, True])
def test_a_compressed_request_is_answered(send, coding: str, binary: bool):
    body, head = request_of(np.float32([[1, 2, 3, 4]]), binary=binary)
    more = {"Inference-Header-Content-Length": str(head)} if binary else {}  # of the JSON before compression
    answer = send(compressed(body, coding.strip().lower()), Content_Encoding=coding, **more)
    assert answer.json["outputs"][0]["data"] == [10.0] * 3


@pytest.mark.parametrize("coding", ["identity", "Identity", ""])
def test_identity_is_no_compression(send, coding: str):
    body, _ = request_of(np.float32([[1, 2, 3, 4]]))
    assert send(body, Content_Encoding=coding).status == 200


@pytest.mark.parametrize("path", ["/v1/models/m:predict", "/invocations"])
def test_every_dialect_takes_them(send, path: str):
    body = gzip.compress(b'{"instances": [[1, 2, 3, 4]]}')
    answer = send(body, path, Content_Encoding="gzip", X_Amzn_SageMaker_Target_Model="m")
    assert answer.json == {"predictions": [[10.0] * 3]}


@pytest.mark.parametrize("pieces", [1, 7])
def test_chunks_of_a_compressed_body_are_put_together_first(server, connect, pieces: int):
    body, head = request_of(np.float32([[1, 2, 3, 4]]), binary=True)
    data = gzip.compress(body)
    size = -(-len(data) // pieces)
    chunks = [data[start : start + size] for start in range(0, len(data), size)]
    lines = [
        f"POST {INFER} HTTP/1.1", "Host: test", "Transfer-Encoding: chunked", "Content-Encoding: gzip",
        f"Inference-Header-Content-Length: {head}", "", "",
    ]  # fmt: skip
    wire = "\r\n".join(lines).encode() + b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in [*chunks, b""])
    assert connect(server).send(wire).answer().json["outputs"][0]["data"] == [10.0] * 3


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_large_bodies_are_worked_on_beside_the_loop_and_come_back_whole(send, coding: str):
    rows = np.random.default_rng(5).normal(size=(ROWS, 4)).astype(np.float32)
    body, head = request_of(rows, binary=True, binary_answer=True)
    assert len(body) > CODEC_THREAD_BYTES
    answer = send(
        compressed(body, coding), "/v2/models/echo/infer", Content_Encoding=coding, Accept_Encoding=coding,
        Inference_Header_Content_Length=str(head),
    )  # fmt: skip
    assert (answer.status, answer.headers["content-encoding"]) == (200, coding)
    whole = plain(answer.body, coding)
    assert whole[int(answer.headers["inference-header-content-length"]) :] == rows.tobytes()


@pytest.mark.parametrize(
    ("body", "coding", "status", "says"),
    [
        pytest.param(b"{}", "br", 415, "'br' is not known", id="unknown coding"),
        pytest.param(b"{}", "gzip, gzip", 415, "is not known", id="twice"),
        pytest.param(b"{}", "\xff", 415, "is not known", id="no name"),
        pytest.param(b"{}", "gzip", 400, "the body is not gzip", id="not compressed"),
        pytest.param(gzip.compress(b"{}"), "deflate", 400, "the body is not deflate", id="of the other coding"),
        pytest.param(gzip.compress(b"{}" * 99)[:-9], "gzip", 400, "ends early", id="cut off"),
        pytest.param(gzip.compress(b"{}")[:-8] + bytes(8), "gzip", 400, "the body is not gzip", id="wrong checksum"),
        pytest.param(gzip.compress(b"{}") + b"x", "gzip", 400, "bytes behind its end", id="more behind"),
        pytest.param(gzip.compress(b"{}"), "gzip", 400, "not an inference request", id="nothing in it"),
    ],
)
def test_a_body_that_cannot_be_decompressed_is_refused(send, body: bytes, coding: str, status: int, says: str):
    answer = send(body, Content_Encoding=coding)
    assert answer.status == status
    assert says in answer.error
    assert ("accept-encoding" in answer.headers) == (status == 415)


def test_a_bomb_is_refused_and_the_server_goes_on(send):
    bomb = gzip.compress(bytes(MAX_REQUEST_BYTES + 1))
    assert len(bomb) < CODEC_THREAD_BYTES  # small enough to be begun on the loop
    answer = send(bomb, Content_Encoding="gzip")
    assert answer.status == 413
    assert "decompressed body is larger" in answer.error
    assert send(request_of(np.float32([[1, 2, 3, 4]]))[0]).status == 200


LARGE_JSON = request_of(np.zeros((600, 4), np.float32))[0]
LARGE_BINARY = request_of(np.zeros((600, 4), np.float32), binary_answer=True)[0]
SMALL_JSON = request_of(np.zeros((1, 4), np.float32))[0]


@pytest.mark.parametrize(
    ("body", "accepts", "coding"),
    [
        pytest.param(LARGE_JSON, "gzip", "gzip", id="asked by name"),
        pytest.param(LARGE_JSON, "deflate", "deflate", id="the other by name"),
        pytest.param(LARGE_JSON, "gzip, deflate, br", "gzip", id="what a library can read"),
        pytest.param(LARGE_JSON, "deflate, br", "deflate", id="without gzip"),
        pytest.param(LARGE_JSON, "gzip;q=0, deflate", "deflate", id="gzip is not wanted"),
        pytest.param(LARGE_JSON, "gzip;q=0", None, id="nothing is wanted"),
        pytest.param(LARGE_JSON, "identity", None, id="identity"),
        pytest.param(LARGE_JSON, "br", None, id="unknown"),
        pytest.param(LARGE_JSON, None, None, id="not asked"),
        pytest.param(SMALL_JSON, "gzip, deflate", None, id="fits a packet"),
        pytest.param(SMALL_JSON, "gzip", "gzip", id="fits a packet and asked by name"),
        pytest.param(LARGE_BINARY, "gzip, deflate", None, id="tensors hardly shrink"),
        pytest.param(LARGE_BINARY, "gzip", "gzip", id="tensors asked by name"),
    ],
)
def test_answers_are_compressed_for_those_who_ask(send, body: bytes, accepts: str | None, coding: str | None):
    expected = send(body, "/v2/models/echo/infer")
    headers = {"Accept-Encoding": accepts} if accepts is not None else {}
    answer = send(body, "/v2/models/echo/infer", **headers)
    assert answer.headers.get("content-encoding") == coding
    assert (plain(answer.body, coding) if coding else answer.body) == expected.body
    assert ("vary" in answer.headers) == (coding is not None)
    for name in ("content-type", "edgeserve-release", "inference-header-content-length"):
        assert answer.headers.get(name) == expected.headers.get(name)


def test_an_error_is_not_compressed(send):
    assert send(b"{}", Accept_Encoding="gzip").error


def test_head_has_the_headers_of_the_compressed_answer_and_no_body(server, connect, tools):
    client = connect(server)
    answer = client.send(tools.request("HEAD", "/metrics", Accept_Encoding="gzip")).answer(head_only=True)
    assert answer.headers["content-encoding"] == "gzip"
    assert client.send(tools.request("GET", "/v2/health/live")).answer().status == 200


@given(st.lists(st.binary(max_size=300), max_size=4), st.sampled_from([b"gzip", b"deflate"]))
def test_what_was_deflated_is_inflated(chunks: list[bytes], coding: bytes):
    whole = b"".join(chunks)
    assert inflate(deflate(chunks, coding), coding, limit=len(whole)) == whole
    if whole:
        with pytest.raises(TooLargeError):
            inflate(deflate(chunks, coding), coding, limit=len(whole) - 1)


@given(st.binary(max_size=200), st.sampled_from([b"gzip", b"deflate"]))
def test_any_bytes_are_inflated_or_refused(body: bytes, coding: bytes):
    try:
        found = inflate(body, coding, limit=1000)
    except InputError:
        return
    assert plain(body, coding.decode()) == found


@given(st.text(alphabet="gzipdeflat*;q=01., ", max_size=40), st.booleans())
def test_an_answer_has_one_of_our_codings_or_none(header: str, binary: bool):
    assert accepted(header.encode(), size=COMPRESS_FROM_BYTES, binary=binary) in (b"", b"gzip", b"deflate")


def test_what_comes_out_of_bodies_counts_against_the_memory_for_all_and_comes_back(start_server, connect, tools):
    limit = 2 * CODEC_THREAD_BYTES
    server = start_server(bodies_bytes=limit)
    server.serve(tools.model(lambda given: {"y": given["x"]}, signature=WIDE))
    client = connect(server)
    for size, status in [(limit + 16, 503), *[(limit - 4096, 200)] * 3]:
        body, head = request_of(np.zeros((size // 16, 4), np.float32), binary=True, binary_answer=True)
        headers = {"Content-Encoding": "gzip", "Inference-Header-Content-Length": str(head)}
        assert client.send(tools.request("POST", INFER, gzip.compress(body), **headers)).answer().status == status
    assert server.call(lambda: server.server._http._held) == 0
