"""TensorFlow Serving's REST API and KServe's V1, through a real server."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from edgeserve.contracts.errors import DeviceError, RejectedError, UnsupportedError
from edgeserve.contracts.task import Task
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec


def signature(inputs: dict[str, tuple[Datatype, tuple[int, ...]]], outputs: Any) -> Signature:
    def specs(tensors: Any) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(name=name, datatype=kind, shape=shape) for name, (kind, shape) in tensors.items())

    return Signature(inputs=specs(inputs), outputs=specs(outputs))


FP32, INT64, BYTES = Datatype.FP32, Datatype.INT64, Datatype.BYTES
PAIR = signature({"a": (FP32, (-1, 2)), "b": (INT64, (-1,))}, {"sum": (FP32, (-1,)), "raw_bytes": (BYTES, (-1,))})
ECHO = signature({"x": (FP32, (-1, 2))}, {"y": (FP32, (-1, 2))})
REGRESSION = signature({"x": (FP32, (-1, 2))}, {"y": (FP32, (-1, 1))})


def pair(inputs: Any) -> dict[str, np.ndarray]:
    raw = np.empty(len(inputs["b"]), object)
    raw[:] = [bytes([value]) for value in inputs["b"].tolist()]
    return {"sum": inputs["a"].sum(axis=1) + inputs["b"].astype(np.float32), "raw_bytes": raw}


def fails(error: Exception) -> Callable[[Any], Any]:
    """A model that works when it is warmed up with zeros, and never again."""

    def compute(inputs: Any) -> Any:
        if inputs["x"].any():
            raise error
        return {"y": inputs["x"]}

    return compute


@pytest.fixture(scope="module")
def server(shared_server, tools) -> Iterator[Any]:
    model = tools.model
    shared_server.serve(model(pair, signature=PAIR), name="pair")
    shared_server.serve(model(lambda given: {"y": given["x"]}, signature=ECHO), name="echo")
    shared_server.serve(model(lambda given: {"y": given["x"][:, :1]}, signature=REGRESSION), name="regression")
    shared_server.serve(model(tools.one_hot(1)), name="classes", task=Task(labels=("cat", "dog", "owl")))
    shared_server.serve(model(tools.one_hot(0)), name="two", number=1)
    shared_server.load(model(tools.one_hot(2)), name="two", number=2)
    shared_server.serve(model(), name="ein name/mit: ümläut")
    for name, error in {
        "broken": DeviceError("it broke"), "full": RejectedError("the queue is full"),
        "cannot": UnsupportedError("it cannot do that"), "bug": ZeroDivisionError("one over nothing"),
    }.items():  # fmt: skip
        shared_server.serve(model(fails(error), signature=ECHO), name=name)
    return shared_server


@pytest.fixture
def call(server, connect, tools) -> Callable[..., Any]:
    client = connect(server)

    def made(path: str, document: Any = None, **headers: str) -> Any:
        if document is None:
            return client.send(tools.request("GET", path, **headers)).answer()
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        return client.send(tools.request("POST", path, body, **headers)).answer()

    return made


ROW = {"instances": [[1, 2, 3, 4]]}


@pytest.mark.parametrize(
    ("model", "request_body", "answer"),
    [
        pytest.param("m", ROW, {"predictions": [[10.0] * 3]}, id="rows"),
        pytest.param("m", {"instances": [{"x": [1, 2, 3, 4]}]}, {"predictions": [[10.0] * 3]}, id="rows by name"),
        pytest.param("m", {"inputs": [[1, 2, 3, 4]]}, {"outputs": [[10.0] * 3]}, id="columns"),
        pytest.param("m", {"inputs": {"x": [[1, 2, 3, 4]]}}, {"outputs": [[10.0] * 3]}, id="columns by name"),
        pytest.param(
            "pair",
            {"instances": [{"a": [1, 2], "b": 3}, {"a": [0, 0], "b": 255}]},
            {"predictions": [{"sum": 6.0, "raw_bytes": {"b64": "Aw=="}}, {"sum": 255.0, "raw_bytes": {"b64": "/w=="}}]},
            id="rows of several",
        ),
        pytest.param(
            "pair",
            {"inputs": {"a": [[1, 2]], "b": [3]}},
            {"outputs": {"sum": [6.0], "raw_bytes": [{"b64": "Aw=="}]}},
            id="columns of several",
        ),
        pytest.param(
            "echo",
            {"instances": [[float("nan"), float("inf")], [1, float("-inf")]]},
            b'{"predictions":[[NaN,Infinity],[1.0,-Infinity]]}',
            id="NaN and infinity both ways",
        ),
    ],
)
def test_predict(call, model: str, request_body: Any, answer: Any):
    found = call(f"/v1/models/{model}:predict", request_body)
    assert found.status == 200, found
    assert found.headers["content-type"] == "application/json"
    assert (found.body if isinstance(answer, bytes) else json.loads(found.body)) == answer


@pytest.mark.parametrize(
    ("path", "best"),
    [
        ("two:predict", 0),
        ("two/versions/1:predict", 0),
        ("two/versions/2:predict", 2),
        ("two/versions/0:predict", 0),
        ("two/labels/stable:predict", 0),
        ("two/labels/candidate:predict", 2),
        ("two/labels/chosen:predict", 2),
    ],
)
def test_versions_and_labels_choose_the_release(server, call, tools, path: str, best: int):
    server.call(server.plane.set_label, "two", "chosen", tools.digest(2))
    assert call(f"/v1/models/{path}", ROW).json["predictions"][0].index(1.0) == best


def test_names_are_percent_encoded(call):
    name = "ein%20name%2Fmit%3A%20%C3%BCml%C3%A4ut"
    assert call(f"/v1/models/{name}:predict", ROW).status == 200
    assert call(f"/v1/models/{name}/versions/1:predict", ROW).status == 200
    assert call(f"/v1/models/{name}").json["name"] == "ein name/mit: ümläut"
    assert call(f"/v2/models/{name}").json["name"] == "ein name/mit: ümläut"


def test_classify_answers_labels_and_scores_the_best_first(call):
    answer = call("/v1/models/classes:classify", {"examples": [{"x": [1, 2, 3, 4]}, {}], "context": {"x": [0] * 4}})
    assert answer.json == {"result": [[["dog", 1.0], ["cat", 0.0], ["owl", 0.0]]] * 2}


def test_regress_answers_a_number_for_each_example(call):
    examples = {"examples": [{"x": [1.5, 0]}, {"x": [2, 0]}]}
    assert call("/v1/models/regression:regress", examples).json == {"result": [1.5, 2.0]}


@pytest.mark.parametrize("verb", ["predict", "classify", "regress"])
@pytest.mark.parametrize(
    ("model", "status", "says"),
    [
        pytest.param("nobody", 404, "unknown model 'nobody'", id="unknown model"),
        pytest.param("echo/versions/9", 404, "no version '9'", id="unknown version"),
        pytest.param("echo/versions/x", 404, "no version 'x'", id="version that is none"),
        pytest.param("echo/labels/x", 404, "no label 'x'", id="unknown label"),
        pytest.param("broken", 500, "it broke", id="the model fails"),
        pytest.param("bug", 500, "the model failed: one over nothing", id="a bug in the model"),
        pytest.param("full", 503, "the queue is full", id="the queue is full"),
        pytest.param("cannot", 501, "it cannot do that", id="unsupported"),
        pytest.param("pair", 400, "", id="wrong input"),
    ],
)
def test_errors_have_tensorflow_servings_form_and_status(call, verb: str, model: str, status: int, says: str):
    row = {"instances": [[1, 2]]} if verb == "predict" else {"examples": [{"x": [1, 2]}]}
    answer = call(f"/v1/models/{model}:{verb}", row)
    assert answer.status == status
    assert says in answer.error
    assert ("retry-after" in answer.headers) == (status == 503)


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        pytest.param("m:predict", {"instances": [[1]], "inputs": [[1]]}, "either", id="both keys"),
        pytest.param("m:predict", {}, "either", id="neither key"),
        pytest.param("m:predict", {"instances": []}, "empty", id="no rows"),
        pytest.param("m:predict", {"instances": [[1, 2]]}, "has shape [1, 2]", id="shape"),
        pytest.param("pair:predict", {"instances": [{"a": [1, 2]}]}, "'b' is missing", id="an input is missing"),
        pytest.param("m:predict", {"instances": [["a"] * 4]}, "Expected `float`", id="datatype"),
        pytest.param("m:predict", b"[" * 100_000, "not a JSON object", id="deep"),
        pytest.param("m:predict", b"\xff\xfe", "not a JSON object", id="not text"),
        pytest.param("m:predict", {"inputs": [[1] * 4], "signature_name": "x"}, "signature_name", id="signature"),
        pytest.param("m:classify", {"examples": []}, "empty", id="no examples"),
        pytest.param("m:regress", {"examples": [{"x": [1] * 4}]}, "one number for each", id="not a regression"),
    ],
)
def test_a_wrong_request_is_400_and_counted_as_such(server, call, path: str, body: Any, says: str):
    counters = server.plane.find(path.partition(":")[0]).counters
    before = counters.rejected
    answer = call(f"/v1/models/{path}", body)
    assert answer.status == 400
    assert says in answer.error
    assert counters.rejected == before + ("one number" not in says)


@pytest.mark.parametrize(("model", "status"), [("m", 501), ("nobody", 404)])
def test_models_are_not_explained(call, model: str, status: int):
    assert call(f"/v1/models/{model}:explain", ROW).status == status


@pytest.mark.parametrize(
    ("verb", "path", "allow"),
    [("GET", "/v1/models/m:predict", "POST"), ("POST", "/v1/models/m", "GET"), ("POST", "/v1/models", "GET")],
)
def test_a_wrong_verb_is_405(server, connect, tools, verb: str, path: str, allow: str):
    answer = connect(server).send(tools.request(verb, path)).answer()
    assert (answer.status, answer.headers["allow"]) == (405, allow)
    assert answer.error


@pytest.mark.parametrize("path", ["/v1", "/v1/models/m/versions", "/v1/models/m/x/1:predict", "/v1/models/m:guess"])
def test_what_is_no_path_of_theirs_is_404_in_json(call, path: str):
    answer = call(path)
    assert answer.status == 404
    assert answer.error


def test_the_root_is_kserves_liveness(call):
    assert call("/").json == {"status": "alive"}


def test_the_list_of_models_is_what_openai_and_kserve_read(call):
    document = call("/v1/models").json
    assert document["object"] == "list"
    assert "m" in document["models"]
    assert {"id": "m", "object": "model", "created": 0, "owned_by": "edgeserve", "name": "m"} in document["data"]


def test_a_model_is_what_openai_kserve_and_tensorflow_serving_read(call):
    document = call("/v1/models/two").json
    assert (document["id"], document["object"], document["name"], document["ready"]) == ("two", "model", "two", True)
    states = [
        {
            "version": version, "state": "AVAILABLE",
            "status": {"error_code": "OK", "errorCode": "OK", "error_message": "", "errorMessage": ""},
        }
        for version in ("1", "2")
    ]  # fmt: skip
    assert document["model_version_status"] == document["modelVersionStatus"] == states
    only = call("/v1/models/two/versions/2").json["model_version_status"]
    assert only == call("/v1/models/two/labels/candidate").json["model_version_status"] == states[1:]


@pytest.mark.parametrize("path", ["/v1/models/coming", "/v1/models/coming/versions/0"])
def test_a_model_that_is_being_loaded_is_not_ready(start_server, connect, tools, path: str):
    server = start_server()
    server.call(server.plane.expect, "coming")
    answer = connect(server).send(tools.request("GET", path)).answer()
    assert answer.status == 503
    assert answer.json["ready"] is False
    assert answer.json["model_version_status"][0]["state"] == "LOADING"
    refused = connect(server).send(tools.request("POST", "/v1/models/coming:predict", b"{}")).answer()
    assert (refused.status, "is not ready" in refused.error) == (503, True)


@pytest.mark.parametrize("path", ["pair", "pair/versions/1", "pair/versions/0", "pair/labels/stable"])
def test_metadata_has_the_names_of_tensorflow_serving_and_of_ovms_client(call, path: str):
    document = call(f"/v1/models/{path}/metadata").json
    spec = {"name": "pair", "signature_name": "", "signatureName": "", "version": "1"}
    assert document["model_spec"] == document["modelSpec"] == spec
    snake = document["metadata"]["signature_def"]["signature_def"]["serving_default"]
    camel = document["metadata"]["signatureDef"]["signatureDef"]["serving_default"]
    assert snake == camel
    assert snake["method_name"] == snake["methodName"] == "tensorflow/serving/predict"
    assert snake["inputs"]["a"]["dtype"] == "DT_FLOAT"
    assert snake["inputs"]["a"]["tensor_shape"]["dim"] == [{"size": "-1", "name": ""}, {"size": "2", "name": ""}]
    assert snake["outputs"]["raw_bytes"]["tensorShape"] == snake["outputs"]["raw_bytes"]["tensor_shape"]
    assert snake["outputs"]["raw_bytes"]["dtype"] == "DT_STRING"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/models/m:predict", ROW),
        ("/v2/models/m/infer", {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}),
    ],
)
def test_a_request_that_asks_is_told_how_its_time_was_spent(call, path: str, body: Any):
    assert "server-timing" not in call(path, body).headers
    timing = call(path, body, edgeserve_explain="latency").headers["server-timing"]
    names = [part.partition(";")[0].strip() for part in timing.split(",")]
    assert names == ["queue", "input", "compute", "output", "batch"]
    assert 'batch;desc="1"' in timing


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/models/pair:predict", {"inputs": {"a": [[1, 2]]}}),
        ("/v2/models/m/infer", {"inputs": [{"name": "z", "shape": [1], "datatype": "FP32", "data": [1]}]}),
    ],
)
def test_a_wrong_request_that_asks_for_its_time_is_still_a_wrong_request(call, path: str, body: Any):
    answer = call(path, body, edgeserve_explain="latency")
    assert answer.status == 400
    assert "missing" in answer.error


def test_the_request_id_of_a_header_serves_for_feedback(call):
    assert call("/v1/models/classes:predict", ROW, x_request_id="r1").status == 200
    counted = call("/v2/models/classes/feedback", {"id": "r1", "label": "dog"})
    assert counted.json == {"counted": 1, "unknown": 0, "duplicate": 0}
