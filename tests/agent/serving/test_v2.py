from __future__ import annotations

import json
import socket
import struct
import threading

import numpy as np
import pytest

from edgeserve.contracts.model_config import InstanceGroup, ModelConfig
from edgeserve.contracts.task import Task
from edgeserve_agent.serving.counters import FailureReason
from edgeserve_agent.serving.server import EXTENSIONS

INFER = "/v2/models/m/infer"


def wire_tensor(values) -> tuple[bytes, str]:
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "x",
                    "shape": list(values.shape),
                    "datatype": "FP32",
                    "parameters": {"binary_data_size": values.nbytes},
                }
            ],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    return head + values.tobytes(), str(len(head))


@pytest.mark.parametrize(
    ("path", "document"),
    [
        ("/v2/health/live", {"live": True}),
        ("/v2/health/ready", {"ready": True, "live": True}),
        ("/v2/models", {"models": ["m"]}),
        ("/v2/models/m/ready", {"name": "m", "version": "7", "ready": True}),
        ("/v2/models/m/versions/7/ready", {"name": "m", "version": "7", "ready": True}),
        ("/v2/models/%6d/ready?verbose=1", {"name": "m", "version": "7", "ready": True}),
    ],
)
def test_what_the_server_says_of_itself(shared_server, connect, tools, path: str, document: dict):
    answer = connect(shared_server).send(tools.request("GET", path)).answer()
    assert (answer.status, answer.json) == (200, document)


def test_server_metadata_names_the_extension_and_whether_it_is_insecure(shared_server, connect, tools):
    document = connect(shared_server).send(tools.request("GET", "/v2")).answer().json
    assert document["name"] == "edgeserve"
    assert document["extensions"] == list(EXTENSIONS)
    assert document["insecure"] is False


@pytest.mark.parametrize("path", ["/v2/models/m", "/v2/models/m/versions/7"])
def test_model_metadata_describes_tensors_and_release(shared_server, connect, tools, path: str):
    document = connect(shared_server).send(tools.request("GET", path)).answer().json
    assert document["versions"] == ["7"]
    assert document["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    assert document["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}]
    assert document["properties"]["release"] == tools.digest(1)
    assert document["properties"]["executing_device"] == "simulator"


def test_an_answer_names_model_version_id_and_release(shared_server, connect, tools):
    answer = connect(shared_server).send(tools.request("POST", INFER, tools.infer_json(id="abc"))).answer()
    assert answer.headers["edgeserve-release"] == tools.digest(1)
    assert answer.json == {
        "model_name": "m",
        "model_version": "7",
        "id": "abc",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 3], "data": [10.0, 10.0, 10.0]}],
    }


def test_a_binary_tensor_is_answered_with_one(shared_server, connect, tools):
    values = np.arange(8, dtype=np.float32).reshape(2, 4)
    body, length = wire_tensor(values)
    data = tools.request("POST", INFER, body, inference_header_content_length=length)
    answer = connect(shared_server).send(data).answer()
    assert answer.headers["content-type"] == "application/octet-stream"
    head = int(answer.headers["inference-header-content-length"])
    assert json.loads(answer.body[:head])["outputs"][0]["parameters"] == {"binary_data_size": 24}
    found = np.frombuffer(answer.body[head:], np.float32).reshape(2, 3)
    assert found[:, 0].tolist() == values.sum(axis=1).tolist()


@pytest.mark.parametrize(
    ("method", "path", "status", "says"),
    [
        pytest.param("GET", "/v3", 404, "no such path", id="unknown dialect"),
        pytest.param("GET", "/v2/models/m/nope", 404, "no such path", id="unknown path"),
        pytest.param("GET", "/v2/models/x", 404, "unknown model 'x'", id="unknown model"),
        pytest.param("POST", "/v2/models/x/infer", 404, "unknown model 'x'", id="unknown model infer"),
        pytest.param("POST", "/v2/models/x/feedback", 400, "not feedback", id="empty feedback"),
        pytest.param("GET", "/v2/models/m/versions/8", 404, "no version '8'; loaded: 7", id="unknown version"),
        pytest.param("POST", "/v2/models/m/versions/8/infer", 404, "no version '8'", id="unknown version infer"),
        pytest.param("GET", "/v2/models/..%2f..%2fetc", 404, "unknown model '../../etc'", id="climbing"),
        pytest.param("GET", "/v2/models/%ff%3Cb%3E", 404, "unknown model", id="markup"),
        pytest.param("POST", "/v2", 405, "use GET", id="POST /v2"),
        pytest.param("DELETE", "/v2/models/m", 405, "use GET", id="DELETE"),
        pytest.param("GET", INFER, 405, "use POST", id="GET infer"),
        pytest.param("PUT", INFER, 405, "use POST", id="PUT infer"),
        pytest.param("POST", INFER, 400, "not an inference request", id="empty body"),
    ],
)
def test_a_request_that_cannot_be_is_refused_and_the_connection_lives(
    shared_server, connect, tools, method: str, path: str, status: int, says: str
):
    client = connect(shared_server)
    answer = client.send(tools.request(method, path)).answer()
    assert answer.status == status
    assert says in answer.error
    assert client.send(tools.request("GET", "/v2/health/live")).answer().status == 200


def test_a_wrong_verb_is_told_the_right_one(shared_server, connect, tools):
    assert connect(shared_server).send(tools.request("POST", "/metrics")).answer().headers["allow"] == "GET"


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        pytest.param({"shape": [1, 5], "values": [[0.0] * 5]}, "shape [1, 5]", id="shape"),
        pytest.param({"shape": [4], "values": [0.0] * 4}, "shape [4]", id="rank"),
        pytest.param({"datatype": "INT32", "values": [[1, 2, 3, 4]]}, "datatype INT32", id="datatype"),
        pytest.param({"name": "z"}, "'x' is missing", id="name"),
        pytest.param({"outputs": [{"name": "z"}]}, "'z' is not one of the model's: y", id="output"),
    ],
)
def test_inputs_that_do_not_fit_the_model_are_the_clients_mistake(shared_server, connect, tools, wrong, says: str):
    body = tools.infer_json(wrong.pop("values", None), **wrong)
    answer = connect(shared_server).send(tools.request("POST", INFER, body)).answer()
    assert answer.status == 400
    assert says in answer.error


def test_nan_in_json_is_refused_with_the_way_out(shared_server, connect, tools):
    body = tools.infer_json([[float("nan"), 1, 2, 3]])
    assert b"NaN" in body
    answer = connect(shared_server).send(tools.request("POST", INFER, body)).answer()
    assert answer.status == 400
    assert "binary tensor" in answer.error


@pytest.mark.parametrize("length", ["x", "-1", "99999", "9" * 5000])
def test_a_json_length_that_is_none_is_refused(shared_server, connect, tools, length: str):
    data = tools.request("POST", INFER, tools.infer_json(), inference_header_content_length=length)
    answer = connect(shared_server).send(data).answer()
    assert answer.status == 400
    assert "Inference-Header-Content-Length" in answer.error


def test_any_content_type_is_taken(shared_server, connect, tools):
    data = tools.request("POST", INFER, tools.infer_json(), content_type="text/html; charset=x")
    assert connect(shared_server).send(data).answer().status == 200


def test_a_model_that_is_being_loaded_is_not_ready_yet(start_server, connect, tools):
    server = start_server()
    server.call(server.plane.expect, "m")
    client = connect(server)
    for path in ("/v2/health/ready", "/v2/models/m/ready"):
        answer = client.send(tools.request("GET", path)).answer()
        assert (answer.status, answer.json["ready"]) == (503, False)
    answer = client.send(tools.request("POST", INFER, tools.infer_json())).answer()
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert "is being loaded" in answer.error
    assert client.send(tools.request("GET", "/v2/health/live")).answer().status == 200


def test_a_model_that_fails_is_the_servers_fault_and_the_release_is_named(start_server, connect, tools):
    server = start_server()
    fail = threading.Event()

    def compute(inputs):
        if fail.is_set():
            raise RuntimeError("out of order")
        return {"y": np.zeros((1, 3), np.float32)}

    server.serve(tools.model(compute))
    fail.set()
    answer = connect(server).send(tools.request("POST", INFER, tools.infer_json())).answer()
    assert answer.status == 500
    assert "out of order" in answer.error
    assert answer.headers["edgeserve-release"] == tools.digest(1)


@pytest.fixture
def judged(start_server, connect, tools):
    """A server whose model says class 1, and a client that sent the requests a and b."""
    server = start_server()
    server.serve(tools.model(tools.one_hot(1)), task=Task(labels=("cat", "dog", "owl")))
    client = connect(server)
    for request_id in "ab":
        client.send(tools.request("POST", INFER, tools.infer_json(id=request_id))).answer()

    def give(document) -> tuple[int, dict]:
        answer = client.send(tools.request("POST", "/v2/models/m/feedback", json.dumps(document).encode())).answer()
        return answer.status, answer.json

    return give


def test_single_feedback_is_counted_once(judged):
    assert judged({"id": "a", "label": 1}) == (200, {"counted": 1, "unknown": 0, "duplicate": 0})
    status, document = judged({"id": "a", "label": 1})
    assert status == 409
    assert "feedback already" in document["error"]
    status, document = judged({"id": "c", "label": 1})
    assert status == 404
    assert "no recent request" in document["error"]


def test_a_batch_of_feedback_tells_what_became_of_it(judged):
    items = [{"id": "a", "label": "dog"}, {"id": "a", "label": 0}, {"id": "b", "label": [2]}, {"id": "c", "label": 0}]
    assert judged({"feedback": items}) == (200, {"counted": 2, "unknown": 1, "duplicate": 1})


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({"id": "a"}, "not feedback"),
        ({"id": 1, "label": 1}, "not feedback"),
        ({"id": "a", "label": 1.5}, "not feedback"),
        ({"id": "a", "label": True}, "not feedback"),
        ({"id": "a", "label": 3}, "0 to 2"),
        ({"id": "a", "label": "bird"}, "3 labels"),
        ({"feedback": [{"id": "x", "label": 1}] * 5000}, "at most"),
        ([1], "not feedback"),
    ],
)
def test_feedback_that_cannot_be_is_refused(judged, document, says: str):
    status, answer = judged(document)
    assert status == 400
    assert says in answer["error"]


def parse_metrics(text: str) -> dict[str, float]:
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def test_metrics_count_what_happened(start_server, connect, tools):
    server = start_server()
    server.serve(tools.model(), version="1.0")
    client = connect(server)
    rows = tools.infer_json([[0.0] * 4] * 5, shape=[5, 4])
    for body in (tools.infer_json(), rows, b"{}"):
        client.send(tools.request("POST", INFER, body)).answer()
    answer = client.send(tools.request("GET", "/metrics")).answer()
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    metrics = parse_metrics(answer.body.decode())
    triton = '{model="m",version="1.0"}'
    release = f'model="m",version="1.0",release="{tools.digest(1)}"'
    assert metrics[f"nv_inference_request_success{triton}"] == 2
    assert metrics['nv_inference_request_failure{model="m",version="1.0",reason="BACKEND"}'] == 0
    assert metrics[f"nv_inference_count{triton}"] == 6
    assert metrics[f"nv_inference_exec_count{triton}"] == 2
    assert metrics[f"nv_inference_request_duration_us{triton}"] > 0
    assert metrics[f"edgeserve_requests_total{{{release}}}"] == 2
    assert metrics[f"edgeserve_requests_rejected_total{{{release}}}"] == 1
    buckets = [value for name, value in metrics.items() if "duration_seconds_bucket" in name]
    assert buckets == sorted(buckets)
    assert buckets[-1] == metrics[f"edgeserve_request_duration_seconds_count{{{release}}}"] == 2
    assert metrics["edgeserve_insecure"] == 0


def test_a_request_whose_client_has_gone_does_not_run_if_it_has_not_begun(start_server, connect, tools):
    server = start_server()
    began, go_on, seen = threading.Event(), threading.Event(), []

    def compute(inputs):
        seen.append(float(inputs["x"][0, 0]))
        began.set()
        assert go_on.wait(10)
        return {"y": np.zeros((len(inputs["x"]), 3), np.float32)}

    warm = tools.model(slow=True)
    server.serve(warm, config=ModelConfig(instance_group=(InstanceGroup(count=1),)))
    warm._compute = compute
    first = connect(server).send(tools.request("POST", INFER, tools.infer_json([[1.0, 0, 0, 0]])))
    assert began.wait(10)
    gone = connect(server).send(tools.request("POST", INFER, tools.infer_json([[2.0, 0, 0, 0]])))
    (served, _active) = next(server.plane.releases())
    tools.until(lambda: served.in_flight == 2, "the second request waits")
    # Reset, not closed: a client that has only closed its side may still read the answer.
    gone.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    gone.close()
    cancelled = lambda: served.counters.failures[FailureReason.CANCELED]  # noqa: E731
    tools.until(lambda: len(server.server._http._connections) == 1, "the server saw the client go")
    go_on.set()
    assert first.answer().status == 200
    tools.until(lambda: cancelled() == 1, "the second was dropped")
    assert seen == [1.0]
