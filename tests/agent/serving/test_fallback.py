"""Another device than the one asked for is told wherever an operator looks."""

from __future__ import annotations

import pytest

WHY = "TENSORRT was asked for, CUDA:0 runs it: this ONNX Runtime has no TensorrtExecutionProvider"


@pytest.fixture
def server(start_server, tools):
    started = start_server()
    fallen = tools.model()
    fallen.executing_device, fallen.fallback, fallen.placement = "CUDA:0", WHY, {"CUDA": 5, "CPU": 2}
    started.serve(fallen, name="fallen")
    started.serve(tools.model(), name="plain", number=2)
    return started


def test_the_models_metadata_say_why_and_where_its_operations_are(server, connect, tools) -> None:
    properties = connect(server).send(tools.request("GET", "/v2/models/fallen")).answer().json["properties"]
    assert properties["executing_device"] == "CUDA:0"
    assert properties["fallback"] == WHY
    assert properties["placement"] == "operations: 2 on CPU, 5 on CUDA"


def test_a_model_that_runs_as_asked_for_says_nothing_of_it(server, connect, tools) -> None:
    properties = connect(server).send(tools.request("GET", "/v2/models/plain")).answer().json["properties"]
    assert not {"fallback", "placement"} & set(properties)


def test_metrics_count_it(server, connect, tools) -> None:
    text = connect(server).send(tools.request("GET", "/metrics")).answer().body.decode()
    lines = [line for line in text.splitlines() if line.startswith("edgeserve_release_fallback{")]
    assert {('model="fallen"' in line, line[-1]) for line in lines} == {(True, "1"), (False, "0")}
