"""SageMaker's and Vertex AI's conventions, through a real server."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeserve.contracts.task import ImageInput, Task
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec

BINARY = "application/vnd.sagemaker-triton.binary+json;json-header-size="
V2 = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}


def one_input(datatype: Datatype, *shape: int) -> Signature:
    spec = {"datatype": datatype, "shape": shape}
    return Signature(inputs=(TensorSpec(name="x", **spec),), outputs=(TensorSpec(name="y", **spec),))


def echo(given: Any) -> Any:
    return {"y": given["x"]}


def binary_request(rows: np.ndarray) -> tuple[bytes, int]:
    tensor = {"name": "x", "shape": rows.shape, "datatype": "FP32", "parameters": {"binary_data_size": rows.nbytes}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return head + rows.tobytes(), len(head)


@pytest.fixture(scope="module")
def server(shared_server, tools) -> Iterator[Any]:
    pair = Signature(
        inputs=tuple(TensorSpec(name=name, datatype=Datatype.FP32, shape=(-1, 1)) for name in "ab"),
        outputs=(TensorSpec(name="y", datatype=Datatype.FP32, shape=(-1, 1)),),
    )
    picture = Signature(
        inputs=(TensorSpec(name="x", datatype=Datatype.FP32, shape=(-1, 3, 8, 8)),),
        outputs=(TensorSpec(name="y", datatype=Datatype.FP32, shape=(-1, 2)),),
    )

    def brightness(given: Any) -> Any:
        mean = given["x"].mean(axis=(1, 2, 3))
        return {"y": np.stack([1 - mean, mean], axis=1).astype(np.float32)}

    model = tools.model
    shared_server.serve(model(lambda given: {"y": given["a"]}, signature=pair), name="pair")
    shared_server.serve(model(echo, signature=one_input(Datatype.FP32, -1, 2)), name="echo")
    shared_server.serve(model(echo, signature=one_input(Datatype.UINT8, -1, 2)), name="bytes")
    shared_server.serve(model(echo, signature=one_input(Datatype.BYTES, -1, 2)), name="texts")
    task = Task(inputs=(ImageInput(size=(8, 8), scale=1 / 255),), labels=("dark", "bright"))
    shared_server.serve(model(brightness, signature=picture), name="pictures", task=task)
    return shared_server


@pytest.fixture
def invoke(server, connect, tools) -> Callable[..., Any]:
    client = connect(server)

    def made(body: Any, *, model: str = "m", content_type: str = "application/json", **headers: str) -> Any:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers |= {"Content-Type": content_type, "X-Amzn-SageMaker-Target-Model": model}
        return client.send(tools.request("POST", "/invocations", data, **headers)).answer()

    return made


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        pytest.param({"instances": [[1, 2, 3, 4]]}, {"predictions": [[10.0] * 3]}, id="instances"),
        pytest.param({"inputs": [[1, 2, 3, 4]]}, {"outputs": [[10.0] * 3]}, id="a whole tensor"),
        pytest.param({"inputs": {"x": [[1, 2, 3, 4]]}}, {"outputs": [[10.0] * 3]}, id="tensors by name"),
    ],
)
def test_invocations_take_tensorflow_servings_json(invoke, body: Any, answer: Any):
    assert invoke(body).json == answer


def test_invocations_take_json_of_the_open_inference_protocol(invoke):
    answer = invoke({**V2, "id": "7"}).json
    assert (answer["model_name"], answer["id"], answer["outputs"][0]["data"]) == ("m", "7", [10.0] * 3)


@pytest.mark.parametrize("separator", [";", "; "])
def test_binary_tensors_are_announced_in_the_content_type_both_ways(invoke, separator: str):
    rows = np.arange(8, dtype=np.float32).reshape(2, 4)
    body, length = binary_request(rows)
    answer = invoke(body, content_type=BINARY.replace(";", separator) + str(length))
    assert answer.status == 200
    assert answer.headers["content-type"].startswith(BINARY)
    head = int(answer.headers["content-type"].removeprefix(BINARY))
    assert json.loads(answer.body[:head])["outputs"][0]["shape"] == [2, 3]
    assert np.frombuffer(answer.body[head:], np.float32).reshape(2, 3)[:, 0].tolist() == rows.sum(axis=1).tolist()


def test_binary_answers_to_json_are_announced_there_too(invoke):
    answer = invoke({**V2, "parameters": {"binary_data_output": True}})
    head = int(answer.headers["content-type"].removeprefix(BINARY))
    assert answer.body[head:] == np.full(3, 10, np.float32).tobytes()


@pytest.mark.parametrize(
    ("model", "text", "predictions"),
    [
        ("echo", b"1,2.5\n-3,NaN\n", '{"predictions":[[1.0,2.5],[-3.0,NaN]]}'),
        ("echo", b"1e2,.5\r\n\r\ninf,nan", '{"predictions":[[100.0,0.5],[Infinity,NaN]]}'),
        ("bytes", b"1,255", '{"predictions":[[1,255]]}'),
        ("texts", "a,ü\n".encode(), '{"predictions":[["a","ü"]]}'),
    ],
)
def test_rows_of_csv_are_rows_of_the_only_input(invoke, model: str, text: bytes, predictions: str):
    answer = invoke(text, model=model, content_type="text/csv; charset=utf-8")
    assert answer.status == 200, answer
    assert answer.headers["edgeserve-release"]
    assert answer.body.decode() == predictions


@pytest.mark.parametrize(
    ("model", "text", "says"),
    [
        pytest.param("echo", b"1,2\n3", "unequal lengths", id="ragged"),
        pytest.param("echo", b"a,b\n1,2", "not CSV of FP32", id="a line of names"),
        pytest.param("echo", b"1,2,3", "has shape [1, 3]", id="shape"),
        pytest.param("echo", b"", "shape", id="nothing"),
        pytest.param("echo", b"1,\xff", "not CSV", id="not UTF-8"),
        pytest.param("echo", b"1,1e39", "does not fit FP32", id="too large"),
        pytest.param("bytes", b"1,256", "<= 255", id="too large for a byte"),
        pytest.param("bytes", b"1,1.5", "not CSV of UINT8", id="a fraction"),
        pytest.param("pair", b"1,2", "has a, b", id="several inputs"),
    ],
)
def test_wrong_csv_is_refused_and_counted(server, invoke, model: str, text: bytes, says: str):
    counters = server.plane.find(model).counters
    before = counters.rejected
    answer = invoke(text, model=model, content_type="text/csv")
    assert answer.status == 400
    assert says in answer.error
    assert counters.rejected == before + 1


@pytest.mark.parametrize("content_type", ["image/png", "application/x-image", "application/octet-stream"])
def test_a_picture_is_answered_in_words(invoke, content_type: str):
    file = io.BytesIO()
    Image.new("RGB", (20, 10), "white").save(file, "PNG")
    answer = invoke(file.getvalue(), model="pictures", content_type=content_type)
    assert answer.status == 200
    assert answer.json["predictions"][0]["classes"][0]["label"] == "bright"


@pytest.mark.parametrize(
    ("body", "model", "status", "says"),
    [
        pytest.param(V2, "nobody", 404, "unknown model 'nobody'", id="unknown model"),
        pytest.param(b"", "m", 400, "not an inference request", id="nothing"),
        pytest.param(b"[" * 100_000, "m", 400, "not an inference request", id="deep"),
        pytest.param(b'{"inputs": ' + b"[" * 100_000, "m", 400, "not an inference request", id="deep inputs"),
        pytest.param({"inputs": []}, "m", 400, "'x' is missing", id="no inputs"),
        pytest.param({"instances": [[1]], "inputs": [[1]]}, "m", 400, "either", id="both keys"),
    ],
)
def test_wrong_invocations_are_refused(invoke, body: Any, model: str, status: int, says: str):
    answer = invoke(body, model=model)
    assert answer.status == status
    assert says in answer.error


def test_where_there_are_several_models_one_must_be_named(server, connect, tools):
    answer = connect(server).send(tools.request("POST", "/invocations", json.dumps(V2).encode())).answer()
    assert answer.status == 400
    assert "X-Amzn-SageMaker-Target-Model" in answer.error


def test_ping_and_the_only_model(start_server, connect, tools):
    server = start_server()
    server.call(server.plane.expect, "m")
    client = connect(server)
    assert client.send(tools.request("GET", "/ping")).answer().status == 503
    server.serve(tools.model())
    answer = client.send(tools.request("GET", "/ping")).answer()
    assert (answer.status, answer.json) == (200, {"ready": True})
    assert client.send(tools.request("POST", "/invocations", json.dumps(V2).encode())).answer().status == 200


def test_vertex_calls_the_paths_of_the_environment(monkeypatch, start_server, connect, tools):
    monkeypatch.setenv("AIP_HEALTH_ROUTE", "/v1/endpoints/7/deployedModels/8")
    monkeypatch.setenv("AIP_PREDICT_ROUTE", "/v1/endpoints/7/deployedModels/8:predict")
    server = start_server()
    server.serve(tools.model())
    client = connect(server)
    assert client.send(tools.request("GET", "/v1/endpoints/7/deployedModels/8")).answer().json == {"ready": True}
    body = json.dumps({"instances": [{"x": [1, 2, 3, 4]}], "parameters": {"confidence": 0.5}}).encode()
    answer = client.send(tools.request("POST", "/v1/endpoints/7/deployedModels/8:predict", body)).answer()
    assert answer.json == {"predictions": [[10.0] * 3]}
    assert client.send(tools.request("GET", "/ping")).answer().status == 200
    paths = client.send(tools.request("GET", "/openapi.json")).answer().json["paths"]
    assert {"/v1/endpoints/7/deployedModels/8", "/v1/endpoints/7/deployedModels/8:predict"} <= set(paths)


@pytest.mark.parametrize("route", ["", "/"])
def test_an_empty_route_of_the_environment_is_none(monkeypatch, start_server, connect, tools, route: str):
    monkeypatch.setenv("AIP_HEALTH_ROUTE", route)
    assert connect(start_server()).send(tools.request("GET", "/")).answer().json == {"status": "alive"}


def test_multi_model_endpoints_load_list_invoke_and_unload(repository_server, connect, tools):
    client = connect(repository_server)

    def call(verb: str, path: str, document: Any = None) -> Any:
        body = json.dumps(document).encode() if document is not None else b""
        return client.send(tools.request(verb, path, body)).answer()

    wanted = {"model_name": "m", "url": "/opt/ml/models/m/model"}
    row = {"instances": [[1, 1, 1, 1]]}
    assert call("GET", "/models").json == {"models": []}
    assert call("GET", "/models/m").status == 404
    assert call("POST", "/models/m/invoke", row).status in (404, 503)
    assert call("DELETE", "/models/m").status == 404
    assert (call("POST", "/models", wanted).status, call("POST", "/models", wanted).status) == (200, 409)
    assert call("GET", "/models").json == {"models": [{"modelName": "m", "modelUrl": ""}]}
    assert call("GET", "/models/m").json == {"modelName": "m", "modelUrl": ""}
    assert call("POST", "/models/m/invoke", row).json == {"predictions": [[3.0] * 4]}
    assert (call("DELETE", "/models/m").status, call("DELETE", "/models/m").status) == (200, 404)
    assert call("GET", "/models").json == {"models": []}
    assert call("POST", "/models", {"model_name": "nobody"}).status == 404
    assert call("POST", "/models", {"model_name": "../m"}).status == 400
    assert call("POST", "/models", {"url": "x"}).status == 400
    assert call("POST", "/models", {"model_name": "bad"}).status in (400, 500)


@pytest.mark.parametrize(("verb", "path"), [("POST", "/models"), ("DELETE", "/models/m")])
def test_a_server_without_a_repository_loads_nothing(server, connect, tools, verb: str, path: str):
    answer = connect(server).send(tools.request(verb, path, b'{"model_name": "other"}')).answer()
    assert (answer.status, "not loaded over the network" in answer.error) == (501, True)
