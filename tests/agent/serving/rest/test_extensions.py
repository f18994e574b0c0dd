"""Triton's repository, statistics, configuration, trace and logging extensions over HTTP."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROW = b'{"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 1, 1, 1]}]}'


@pytest.fixture
def call(connect, tools) -> Callable[..., Any]:
    def made(server: Any, verb: str, path: str, body: Any = b"") -> Any:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return connect(server).send(tools.request(verb, path, data)).answer()

    return made


# Repository ----------------------------------------------------------------------------------------


def adds(call: Any, server: Any, version: str = "") -> float:
    path = f"/v2/models/m{version and '/versions/' + version}/infer"
    return call(server, "POST", path, ROW).json["outputs"][0]["data"][0] - 1


def test_models_are_loaded_configured_uploaded_and_unloaded(repository_server, call, tmp_path: Path):
    def post(path: str, body: Any = b"") -> Any:
        return call(repository_server, "POST", f"/v2/repository/{path}", body)

    assert [one["name"] for one in post("index").json] == ["bad", "m"]
    assert post("index", {"ready": True}).json == []
    loaded = post("models/m/load")
    assert (loaded.status, loaded.body) == (200, b"")
    assert post("index", {"ready": True}).json == [{"name": "m", "version": "2", "state": "READY"}]
    assert adds(call, repository_server) == 2
    config = json.dumps({"version_policy": {"all": {}}})
    assert post("models/m/load", {"parameters": {"config": config}}).status == 200
    assert (adds(call, repository_server, "1"), adds(call, repository_server, "2")) == (1, 2)
    content = base64.b64encode((tmp_path / "models/m/1/model.onnx").read_bytes()).decode()
    assert post("models/m/load", {"parameters": {"config": "{}", "file:7/model.onnx": content}}).status == 200
    assert adds(call, repository_server, "7") == 1
    assert post("models/m/unload", {"parameters": {"unload_dependents": True}}).status == 200
    assert post("index", {"ready": True}).json == []
    assert call(repository_server, "POST", "/v2/models/m/infer", ROW).status in (404, 503)


def test_a_repository_named_in_the_path_is_the_one_there_is(repository_server, call):
    assert call(repository_server, "POST", "/v2/repository/any/models/m/load").status == 200
    assert len(call(repository_server, "POST", "/v2/repository/any/index", b"{}").json) > 0
    assert call(repository_server, "POST", "/v2/repository/any/models/m/unload", b"{}").status == 200


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        pytest.param("models/nobody/load", b"", 404, "nobody", id="unknown"),
        pytest.param("models/..%2F..%2Fetc/load", b"", 400, "not allowed", id="climbing"),
        pytest.param("models/nobody/unload", b"", 404, "nobody", id="unload unknown"),
        pytest.param("models/m/load", b"{", 400, "not a repository request", id="not JSON"),
        pytest.param("models/m/load", b"[" * 100_000, 400, "not a repository request", id="deep"),
        pytest.param("models/m/load", {"parameters": {"config": "{]"}}, 400, "config", id="wrong config"),
        pytest.param("models/m/load", {"parameters": {"config": 7}}, 400, "config", id="config of a type"),
        pytest.param("models/m/load", {"parameters": {"x": 1}}, 400, "no parameter 'x'", id="unknown parameter"),
        pytest.param(
            "models/m/load", {"parameters": {"config": "{}", "file:1/m": "*"}}, 400, "not base64", id="not base64"
        ),
        pytest.param("models/m/load", {"parameters": {"file:1/m": "YQ=="}}, 400, "config", id="files without config"),
        pytest.param("models/m/unload", {"parameters": {"unload_dependents": 1}}, 400, "true or false", id="a flag"),
        pytest.param("index", {"ready": 1}, 400, "not a repository request", id="ready"),
    ],
)
def test_wrong_repository_requests_are_refused(repository_server, call, path: str, body: Any, status: int, says: str):
    answer = call(repository_server, "POST", f"/v2/repository/{path}", body)
    assert answer.status == status
    assert says in answer.error


def test_a_model_that_cannot_be_loaded_says_why_there_and_in_the_index(repository_server, call):
    answer = call(repository_server, "POST", "/v2/repository/models/bad/load")
    assert answer.status in (400, 500)
    assert "model.onnx" in answer.error
    index = call(repository_server, "POST", "/v2/repository/index").json
    bad = next(one for one in index if one["name"] == "bad")
    assert bad["state"] == "UNAVAILABLE"
    assert "model.onnx" in bad["reason"]


@pytest.mark.parametrize("what", ["load", "unload"])
def test_a_server_without_a_repository_lists_but_does_not_load(shared_server, call, what: str):
    answer = call(shared_server, "POST", f"/v2/repository/models/m/{what}")
    assert (answer.status, "not loaded over the network" in answer.error) == (501, True)
    assert {"name": "m", "version": "7", "state": "READY"} in call(shared_server, "POST", "/v2/repository/index").json


# Statistics and configuration ----------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v2/models/m/stats", "/v2/models/m/versions/7/stats", "/v2/models/stats"])
def test_statistics_grow_with_each_request(shared_server, call, path: str):
    def counted() -> dict[str, Any]:
        models = call(shared_server, "GET", path).json["model_stats"]
        return next(one for one in models if (one["name"], one["version"]) == ("m", "7"))

    before = counted()
    for _ in range(3):
        assert call(shared_server, "POST", "/v2/models/m/infer", ROW).status == 200
    after = counted()
    assert after["inference_count"] == before["inference_count"] + 3
    for name in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
        assert after["inference_stats"][name]["count"] == before["inference_stats"][name]["count"] + 3
    assert after["inference_stats"]["compute_infer"]["ns"] > before["inference_stats"]["compute_infer"]["ns"]
    assert after["last_inference"] >= max(before["last_inference"], 1)


def test_the_configuration_says_how_a_model_is_served(shared_server, call):
    for path in ("/v2/models/m/config", "/v2/models/m/versions/7/config"):
        document = call(shared_server, "GET", path).json
        assert (document["name"], document["max_batch_size"]) == ("m", 0)
        assert document["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [-1, 4]}]


@pytest.mark.parametrize("what", ["stats", "config"])
@pytest.mark.parametrize(("model", "status"), [("nobody", 404), ("m/versions/8", 404)])
def test_what_is_not_served_has_neither(shared_server, call, what: str, model: str, status: int):
    assert call(shared_server, "GET", f"/v2/models/{model}/{what}").status == status


# Trace and logging ---------------------------------------------------------------------------------


@pytest.fixture
def settings(start_server, tools) -> Iterator[Any]:
    """A server whose settings may be changed; the level of the log is put back."""
    level = logging.getLogger().level
    server = start_server()
    server.serve(tools.model())
    yield server
    logging.getLogger().setLevel(level)


def test_trace_settings_of_a_model_differ_until_they_are_cleared(settings, call):
    whole = call(settings, "GET", "/v2/trace/setting").json
    assert whole["trace_level"] == ["OFF"]
    assert call(settings, "GET", "/v2/models/m/trace/setting").json == whole
    changes = {"trace_level": ["TIMESTAMPS", "TENSORS"], "trace_rate": 5}
    changed = call(settings, "POST", "/v2/models/m/trace/setting", changes).json
    assert (changed["trace_level"], changed["trace_rate"]) == (["TIMESTAMPS", "TENSORS"], "5")
    assert call(settings, "GET", "/v2/trace/setting").json == whole
    cleared = call(settings, "POST", "/v2/models/m/trace/setting", {"trace_level": None, "trace_rate": None}).json
    assert cleared == whole
    assert call(settings, "POST", "/v2/trace/setting").json == whole


def test_log_settings_govern_the_log(settings, call):
    before = call(settings, "GET", "/v2/logging").json
    assert before["log_info"] is True
    changed = call(settings, "POST", "/v2/logging", {"log_info": False, "log_warning": False}).json
    assert changed == {**before, "log_info": False, "log_warning": False}
    assert logging.getLogger().level == logging.ERROR
    assert call(settings, "POST", "/v2/logging", {"log_verbose_level": 1}).json["log_verbose_level"] == 1
    assert logging.getLogger().level == logging.DEBUG


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        pytest.param("/v2/trace/setting", {"trace_x": "1"}, 400, "no trace setting 'trace_x'", id="unknown trace"),
        pytest.param("/v2/trace/setting", {"trace_rate": "-1"}, 400, "from 0 to", id="wrong trace"),
        pytest.param("/v2/trace/setting", {"trace_rate": True}, 400, "'true'", id="bool for a rate"),
        pytest.param("/v2/trace/setting", {"trace_rate": {}}, 400, "object of settings", id="object for a rate"),
        pytest.param("/v2/trace/setting", {"trace_file": "/x"}, 501, "over the network", id="fixed trace"),
        pytest.param("/v2/models/nobody/trace/setting", {}, 404, "unknown model", id="unknown model"),
        pytest.param("/v2/logging", {"log_x": True}, 400, "no log setting 'log_x'", id="unknown log"),
        pytest.param("/v2/logging", {"log_info": "yes"}, 400, "true or false", id="wrong log"),
        pytest.param("/v2/logging", {"log_file": "/x"}, 501, "over the network", id="fixed log"),
        pytest.param("/v2/logging", b"[]", 400, "object of settings", id="a list"),
        pytest.param("/v2/logging", b"[" * 100_000, 400, "object of settings", id="deep"),
        pytest.param("/v2/logging", b'{"log_info": \xff}', 400, "object of settings", id="not UTF-8"),
    ],
)
def test_wrong_settings_change_nothing(settings, call, path: str, body: Any, status: int, says: str):
    paths = ("/v2/trace/setting", "/v2/logging")
    before = [call(settings, "GET", one).json for one in paths]
    answer = call(settings, "POST", path, body)
    assert answer.status == status
    assert says in answer.error
    assert [call(settings, "GET", one).json for one in paths] == before
