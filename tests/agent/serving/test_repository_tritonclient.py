"""A stranger's client that loads and unloads models of our server."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeserve_agent.serving.model_folder import ModelFolders
from edgeserve_agent.serving.model_source import OpenOptions
from edgeserve_agent.serving.repository import Repository
from tests.suites.repository import put_version

pytest.importorskip("tritonclient.utils")

# In a process of its own: importing gevent patches what the other tests use.
SCRIPT = """
import json, pathlib, sys
import numpy as np
import tritonclient.http as http
from tritonclient.utils import InferenceServerException

client = http.InferenceServerClient(sys.argv[1], network_timeout=20)
data = pathlib.Path(sys.argv[2]).read_bytes()
row = np.ones((1, 4), np.float32)

def adds(model, version=""):
    tensor = http.InferInput("x", [1, 4], "FP32")
    tensor.set_data_from_numpy(row)
    return float(client.infer(model, [tensor], model_version=version).as_numpy("y")[0, 0] - 1)

def refused(call, says):
    try:
        call()
    except InferenceServerException as error:
        assert says in error.message(), error
    else:
        raise AssertionError("not refused")

def ready(model):
    return sorted(one["version"] for one in client.get_model_repository_index() if one["name"] == model
                  and one.get("state") == "READY")

assert client.is_server_ready() and not client.is_model_ready("m")
assert [one["name"] for one in client.get_model_repository_index()] == ["bad", "m"]
client.load_model("m")
assert client.is_model_ready("m") and adds("m") == 2 and ready("m") == ["2"]
client.load_model("m", config=json.dumps({"version_policy": {"specific": {"versions": ["1"]}}}))
assert ready("m") == ["1"] and adds("m", "1") == 1 and not client.is_model_ready("m", "2")
client.load_model("m", config="{}", files={"file:7/model.onnx": data})
assert ready("m") == ["7"] and adds("m") == 5
refused(lambda: client.load_model("m", config="{]"), "config")
refused(lambda: client.load_model("m", files={"file:7/model.onnx": data}), "config")
refused(lambda: client.load_model("m", config="{}", files={"file:7/../../../model.onnx": data}), "VERSION/FILE")
refused(lambda: client.load_model("bad"), "model.onnx")
refused(lambda: client.load_model("nope"), "nope")
assert ready("m") == ["7"] and adds("m") == 5
bad = [one for one in client.get_model_repository_index() if one["name"] == "bad"]
assert [(one["state"], "model.onnx" in one["reason"]) for one in bad] == [("UNAVAILABLE", True)], bad
client.unload_model("m")
assert not client.is_model_ready("m") and ready("m") == []
refused(lambda: adds("m"), "m")
client.load_model("m")
assert adds("m") == 2
client.close()
print("all well")
"""


def test_tritonclient_loads_configures_uploads_and_unloads(start_server: Callable[..., Any], tmp_path: Path):
    root = tmp_path / "models"
    for number in (1, 2):
        put_version(root, "m", number, adds=number)
    put_version(root, "bad", 1, adds=0).write_bytes(b"junk")
    upload = put_version(tmp_path / "elsewhere", "m", 1, adds=5)
    thread = start_server()
    options = OpenOptions(threads=1, scratch=tmp_path / "scratch")
    repository = thread.call(lambda: Repository(thread.plane, ModelFolders(root, options), options=options))
    thread.server.repository = repository
    assert thread.run(repository.start([])) == {}
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, f"127.0.0.1:{thread.port}", str(upload)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.stdout == "all well\n", ended.stderr
