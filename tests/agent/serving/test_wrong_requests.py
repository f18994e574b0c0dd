"""The same mistake in every dialect: the status and the message that its own clients read."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeserve.client.oip_proto import messages, service_methods
from edgeserve.contracts.errors import DeviceError
from edgeserve_agent.serving.model_folder import ModelFolders
from edgeserve_agent.serving.model_source import OpenOptions
from edgeserve_agent.serving.repository import Repository
from tests.suites.repository import put_version

grpc = pytest.importorskip("grpc")
SERVICE = "/inference.GRPCInferenceService"
DEADLINE_S = 10.0
DEPTH = 100_000


def v2(data: Any, *, name: str = "x", datatype: str = "FP32", shape: tuple[int, ...] = (1, 4), **more: Any) -> bytes:
    tensor = {"name": name, "shape": shape, "datatype": datatype, "data": data}
    return json.dumps({"inputs": [tensor], **more}).encode()


def proto(
    model: str = "m", *, name: str = "x", datatype: str = "FP32", shape: tuple[int, ...] = (1, 4), raw: int = 16
) -> Any:
    message = messages().ModelInferRequest(model_name=model, raw_input_contents=[bytes(raw)])
    message.inputs.add(name=name, datatype=datatype, shape=shape)
    return message


@pytest.fixture
def mistaken(start_server: Callable[..., Any], tools) -> Any:
    """A server with `m`, with `broken`, which fails, and with `coming`, which is not there yet."""
    server = start_server(body_bytes=1 << 20)
    warm = threading.Event()

    def broken(inputs: Any) -> Any:
        if warm.is_set():
            raise DeviceError("the accelerator is gone", hint="look at its cable")
        return {"y": np.ones((1, 3), np.float32)}

    server.serve(tools.model())
    server.serve(tools.model(broken), name="broken", number=2)
    warm.set()
    server.call(server.plane.expect, "coming")
    return server


ROW = [1.0, 2.0, 3.0, 4.0]
MISTAKES = [
    # V2's model and body; V1's model and body; the message of gRPC; HTTP's status; that of gRPC; words of each.
    pytest.param("nope", v2(ROW), {"instances": [ROW]}, proto("nope"), 404, "NOT_FOUND", "nope", id="no such model"),
    pytest.param(
        "coming", v2(ROW), {"instances": [ROW]}, proto("coming"), 503, "UNAVAILABLE", "loaded", id="not there yet"
    ),
    pytest.param(
        "broken", v2(ROW), {"instances": [ROW]}, proto("broken"), 500, "INTERNAL", "cable", id="a model that fails"
    ),
    pytest.param(
        "m",
        v2([1.0], shape=(1, 1)),
        {"instances": [[1.0]]},
        proto(shape=(1, 1), raw=4),
        400,
        "INVALID_ARGUMENT",
        "[1, 1]",
        id="a wrong shape",
    ),
    pytest.param(
        "m",
        v2(ROW, name="z"),
        {"inputs": {"z": [ROW]}},
        proto(name="z"),
        400,
        "INVALID_ARGUMENT",
        "'",
        id="a wrong name",
    ),
    pytest.param(
        "m",
        v2([1, 2, 3, 4], datatype="INT64"),
        {"instances": [["a", "b", "c", "d"]]},
        proto(datatype="INT64", raw=32),
        400,
        "INVALID_ARGUMENT",
        "x",
        id="a wrong datatype",
    ),
    pytest.param(
        "m", v2(ROW[:3]), {"instances": [ROW, ROW[:3]]}, proto(raw=12), 400, "INVALID_ARGUMENT", "x", id="too little"
    ),
    pytest.param(
        "m",
        v2([ROW, ROW[:2]], shape=(2, 4)),
        {"instances": [[*ROW, 5.0]]},
        proto(raw=17),
        400,
        "INVALID_ARGUMENT",
        "x",
        id="too much",
    ),
    pytest.param(
        "m",
        b'{"inputs":[]}',
        {"instances": [ROW], "inputs": [ROW]},
        messages().ModelInferRequest(model_name="m"),
        400,
        "INVALID_ARGUMENT",
        "",
        id="none, or both",
    ),
]


@pytest.mark.parametrize(("model", "oip", "rows", "message", "status", "code", "says"), MISTAKES)
def test_a_mistake_has_the_same_meaning_in_every_dialect(
    mistaken, connect, tools, model, oip: bytes, rows: dict[str, Any], message, status: int, code: str, says: str
):
    client = connect(mistaken)
    for path, body in ((f"/v2/models/{model}/infer", oip), (f"/v1/models/{model}:predict", json.dumps(rows).encode())):
        answer = client.send(tools.request("POST", path, body)).answer()
        assert (answer.status, answer.headers["content-type"]) == (status, "application/json"), path
        assert says in answer.error
        assert ("retry-after" in answer.headers) == (status == 503)
    with grpc.insecure_channel(f"127.0.0.1:{mistaken.port}") as channel:
        known = service_methods()[f"{SERVICE}/ModelInfer"]
        call = channel.unary_unary(
            f"{SERVICE}/ModelInfer",
            request_serializer=known.request.SerializeToString,
            response_deserializer=known.response.FromString,
        )
        with pytest.raises(grpc.RpcError) as refused:
            call(message, timeout=DEADLINE_S)
        assert refused.value.code().name == code
        assert says in refused.value.details()
        good = call(proto(), timeout=DEADLINE_S)
        assert len(good.raw_output_contents) == 1, "the connection lives"
    assert client.send(tools.request("POST", "/v2/models/m/infer", tools.infer_json())).answer().status == 200


@pytest.mark.parametrize(
    ("sent", "status", "says"),
    [
        pytest.param(("POST", "/v1/models/m:explain", b"{}"), 501, "explain", id="what V1 has and we do not"),
        pytest.param(("GET", "/v1/models/m:predict", b""), 405, "POST", id="a wrong verb of V1"),
        pytest.param(("GET", "/v2/models/m/infer", b""), 405, "POST", id="a wrong verb of V2"),
        pytest.param(
            ("POST", "/v1/models/m/versions/9:predict", b'{"instances":[]}'), 404, "9", id="no such version in V1"
        ),
        pytest.param(("POST", "/v2/models/m/versions/9/infer", v2(ROW)), 404, "9", id="no such version in V2"),
        pytest.param(("POST", "/v1/models/m/labels/no:predict", b'{"instances":[]}'), 404, "no", id="no such label"),
        pytest.param(("GET", "/v3", b""), 404, "/v3", id="no such path"),
        pytest.param(("POST", "/v1/models/m:predict", b"no"), 400, "JSON", id="no JSON in V1"),
        pytest.param(("POST", "/v2/models/m/infer", b"no"), 400, "request", id="no JSON in V2"),
        pytest.param(("POST", "/v1/models/m:predict", b"\xff\xfe{}"), 400, "JSON", id="no UTF-8 in V1"),
        pytest.param(
            ("POST", "/v2/models/m/infer", v2("\xff").replace(b"\\u00ff", b"\xff")), 400, "", id="no UTF-8 in V2"
        ),
        pytest.param(
            ("POST", "/v2/models/m/infer", v2(["a"], datatype="BYTES", shape=(1,)).replace(b'"a"', b'"\xff"')),
            400,
            "input 'x'",
            id="a text that is no UTF-8",
        ),
        pytest.param(("POST", "/v2/models/m/infer", b"x" * ((1 << 20) + 1)), 413, "larger", id="too large"),
    ],
)
def test_what_cannot_be_is_refused_in_the_words_of_http(mistaken, connect, tools, sent, status: int, says: str):
    method, path, body = sent
    client = connect(mistaken).send(tools.request(method, path, body))
    answer = client.answer()
    assert (answer.status, answer.headers["content-type"]) == (status, "application/json")
    assert says in answer.error


@pytest.mark.parametrize(
    ("path", "data", "code"),
    [
        pytest.param(f"{SERVICE}/Nope", b"", "UNIMPLEMENTED", id="no such method"),
        pytest.param("/other.Service/Nope", b"", "UNIMPLEMENTED", id="no such service"),
        pytest.param(f"{SERVICE}/ModelInfer", b"\xff\xff", "INVALID_ARGUMENT", id="no message"),
        pytest.param(f"{SERVICE}/ModelMetadata", b"\xff", "INVALID_ARGUMENT", id="no message of another method"),
        pytest.param(f"{SERVICE}/ModelMetadata", b"\x0a\x04nope", "NOT_FOUND", id="metadata of no model"),
        pytest.param(f"{SERVICE}/ModelMetadata", b"\x0a\x01m\x12\x019", "NOT_FOUND", id="metadata of no version"),
    ],
)
def test_what_cannot_be_is_refused_in_the_words_of_grpc(mistaken, path: str, data: bytes, code: str):
    with grpc.insecure_channel(f"127.0.0.1:{mistaken.port}") as channel:
        with pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary(path)(data, timeout=DEADLINE_S)
        assert refused.value.code().name == code
        assert refused.value.details()


# Nested without end -------------------------------------------------------------------------------------


def tensor(data: str) -> tuple[str, str]:
    return f'{{"inputs":[{{"name":"x","shape":[1,4],"datatype":"FP32",{data}', "}]}"


PLACES = {
    "/v2/models/m/infer": [
        ("", ""),
        tensor('"data":'),
        tensor('"data":[[1,2,3,4]],"parameters":'),
        tensor('"data":[[1,2,3,4]],"parameters":{"a":'),
        ('{"id":', ',"inputs":[]}'),
        ('{"inputs":[],"unknown":', "}"),
    ],
    "/v1/models/m:predict": [
        ("", ""),
        ('{"instances":', "}"),
        ('{"inputs":', "}"),
        ('{"inputs":{"x":', "}}"),
        ('{"instances":[NaN,', "]}"),
        ('{"signature_name":', ',"instances":[]}'),
    ],
    "/v1/models/m:classify": [
        ("", ""),
        ('{"examples":', "}"),
        ('{"examples":[{"x":', "}]}"),
        ('{"context":', ',"examples":[{}]}'),
    ],
    "/v1/models/m:regress": [("", ""), ('{"examples":[{"x":[NaN,', "]}]}")],
    "/models/m/invoke": [("", ""), ('{"instances":', "}"), tensor('"data":')],
    "/models": [("", ""), ('{"model_name":', "}")],
    "/v2/models/m/feedback": [("", ""), ('{"id":"1","label":', "}"), ('[{"id":"1","label":1},', "]")],
    "/v2/repository/index": [("", ""), ('{"ready":', "}")],
    "/v2/repository/models/m/load": [("", ""), ('{"parameters":', "}"), ('{"parameters":{"config":', "}}")],
    "/v2/repository/models/m/unload": [("", ""), ('{"parameters":', "}")],
    "/v2/systemsharedmemory/region/r/register": [("", ""), ('{"key":', "}")],
    "/v2/trace/setting": [("", ""), ('{"trace_rate":', "}")],
    "/v2/models/m/trace/setting": [("", ""), ('{"trace_level":', "}")],
    "/v2/logging": [("", ""), ('{"log_info":', "}")],
}
NESTS = {"lists": ("[", "]"), "objects": ('{"a":', "}"), "lists without end": ("[", "")}


@pytest.fixture
def with_repository(start_server: Callable[..., Any], tmp_path: Path) -> Any:
    """A server whose model `m` comes from a repository."""
    put_version(tmp_path / "models", "m", 1, adds=1)
    server = start_server()
    options = OpenOptions(threads=1, scratch=tmp_path / "scratch")
    repository = server.call(
        lambda: Repository(server.plane, ModelFolders(tmp_path / "models", options), options=options)
    )
    server.server.repository = repository
    assert server.run(repository.start(["m"])) == {}
    return server


def nested(before: str, after: str, nest: str) -> bytes:
    opening, closing = NESTS[nest]
    inner = "1" if nest == "objects" else ""
    return (before + opening * DEPTH + inner + closing * DEPTH + after).encode()


@pytest.mark.parametrize("path", PLACES)
def test_json_that_is_nested_without_end_is_refused_wherever_it_stands(with_repository, connect, tools, path: str):
    client = connect(with_repository)
    for nest in NESTS:
        for before, after in PLACES[path]:
            answer = client.send(tools.request("POST", path, nested(before, after, nest))).answer()
            ignored = "unknown" in before or "signature_name" in before or "ready" in before
            assert answer.status in ((200, 400) if ignored or "unload" in path else (400, 404, 422, 501)), (
                before,
                nest,
            )
            assert answer.status == 200 or answer.error
        assert client.send(tools.request("GET", "/v2/health/live")).answer().status == 200


@pytest.mark.parametrize("nest", NESTS)
def test_json_within_a_grpc_message_that_is_nested_without_end_is_refused(with_repository, nest: str):
    request = messages().RepositoryModelLoadRequest(model_name="m")
    request.parameters["config"].string_param = nested("", "", nest).decode()
    known = service_methods()[f"{SERVICE}/RepositoryModelLoad"]
    with grpc.insecure_channel(f"127.0.0.1:{with_repository.port}") as channel:
        call = channel.unary_unary(f"{SERVICE}/RepositoryModelLoad", request_serializer=known.request.SerializeToString)
        with pytest.raises(grpc.RpcError) as refused:
            call(request, timeout=DEADLINE_S)
        assert refused.value.code().name == "INVALID_ARGUMENT"
        assert refused.value.details()
