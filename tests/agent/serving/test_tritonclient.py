"""A stranger's client against our server."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("tritonclient.utils")

# In a process of its own: importing gevent patches what the other tests use.
SCRIPT = """
import sys
import numpy as np
import tritonclient.http as http
from tritonclient.utils import InferenceServerException

client = http.InferenceServerClient(sys.argv[1])
assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("m")
assert client.get_server_metadata()["name"] == "edgeserve"
assert client.get_model_metadata("m")["inputs"][0] == {"name": "x", "datatype": "FP32", "shape": [-1, 4]}

rows = np.arange(8, dtype=np.float32).reshape(2, 4)
for binary_in in (True, False):
    for outputs in (None, True, False):
        tensor = http.InferInput("x", [2, 4], "FP32")
        tensor.set_data_from_numpy(rows, binary_data=binary_in)
        wanted = None if outputs is None else [http.InferRequestedOutput("y", binary_data=outputs)]
        result = client.infer("m", [tensor], outputs=wanted, request_id="abc", model_version="7")
        assert result.as_numpy("y")[:, 0].tolist() == rows.sum(axis=1).tolist()
        assert result.get_response()["id"] == "abc"
        assert result.get_response()["model_name"] == "m"

futures = [client.async_infer("m", [tensor]) for _ in range(5)]
assert all(future.get_result().as_numpy("y").shape == (2, 3) for future in futures)

for name, shape, says in (("x", [2, 5], "has shape [2, 5]"), ("z", [2, 4], "'x' is missing")):
    wrong = http.InferInput(name, shape, "FP32")
    wrong.set_data_from_numpy(np.zeros(shape, np.float32))
    try:
        client.infer("m", [wrong])
    except InferenceServerException as error:
        assert says in error.message() and error.status() == "400", error
    else:
        raise AssertionError("not refused")
try:
    client.infer("nope", [tensor])
except InferenceServerException as error:
    assert "unknown model 'nope'" in error.message() and error.status() == "404", error
else:
    raise AssertionError("not refused")
client.close()
print("all well")
"""


def test_tritonclient_infers_with_binary_and_json_and_reads_our_errors(shared_server):
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, f"127.0.0.1:{shared_server.port}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.stdout == "all well\n", ended.stderr
