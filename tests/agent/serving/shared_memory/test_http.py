"""Tensors in shared memory over HTTP, and a foreign client that shares its own."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve_agent.serving.http_server import HttpServer
from edgeserve_agent.serving.rest.api import Api
from edgeserve_agent.serving.rest.shared_memory import SharedMemoryApi
from edgeserve_agent.serving.rest.v2 import V2
from edgeserve_agent.serving.shared_memory import SharedMemory
from edgeserve_agent.serving.workers import Workers
from tests.agent.serving.shared_memory.objects import object_of

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="POSIX shared memory as Linux has it")
SIMPLE = Signature(
    inputs=tuple(TensorSpec(name=f"INPUT{n}", datatype=Datatype.INT32, shape=(-1, 16)) for n in (0, 1)),
    outputs=tuple(TensorSpec(name=f"OUTPUT{n}", datatype=Datatype.INT32, shape=(-1, 16)) for n in (0, 1)),
)


# Over HTTP --------------------------------------------------------------------------------------------


def http_server(server: Any, regions: SharedMemory | None) -> HttpServer:
    dialects = [V2(server.plane, insecure=False, regions=regions), SharedMemoryApi(regions)]
    return HttpServer(
        server.loop,
        Api(dialects, workers=lambda: Workers(server.loop, threads=1, name="codec"), hold=lambda _count: True).handle,
    )


@pytest.fixture
def shm_server(start_server, tools) -> Iterator[tuple[int, Any]]:
    """A server with shared memory; its port, and the server's thread."""
    server = start_server()
    regions = SharedMemory()
    http = http_server(server, regions)
    yield server.run(http.listen("127.0.0.1", 0)), server
    server.run(http.close(1.0))
    server.call(regions.unregister)


def say(client: Any, tools: Any, verb: str, path: str, document: Any = None) -> Any:
    body = b"" if document is None else json.dumps(document).encode()
    return client.send(tools.request(verb, path, body)).answer()


def infer_shared(*, offset: int = 0, out: int = 12, out_offset: int = 16, size: int = 16) -> dict[str, Any]:
    def where(at: int, length: int) -> dict[str, Any]:
        return {"shared_memory_region": "a", "shared_memory_offset": at, "shared_memory_byte_size": length}

    return {
        "inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "parameters": where(offset, size)}],
        "outputs": [{"name": "y", "parameters": where(out_offset, out)}],
    }


def test_tensors_go_through_registered_memory_and_not_through_the_socket(shm_server, connect, tools, make):
    port, server = shm_server
    server.serve(tools.model())
    client, key = connect(port), make()
    object_of(key).write_bytes(np.arange(16, dtype=np.float32).tobytes())
    registered = say(client, tools, "POST", "/v2/systemsharedmemory/region/a/register", {"key": key, "byte_size": 64})
    assert (registered.status, registered.json) == (200, {})
    listed = [{"name": "a", "key": key, "offset": 0, "byte_size": 64}]
    for path in ("/v2/systemsharedmemory/status", "/v2/systemsharedmemory/region/a/status"):
        assert say(client, tools, "GET", path).json == listed
    answer = say(client, tools, "POST", "/v2/models/m/infer", infer_shared())
    assert "data" not in answer.json["outputs"][0]
    assert answer.json["outputs"][0]["shape"] == [1, 3]
    assert np.frombuffer(object_of(key).read_bytes()[16:28], np.float32).tolist() == [6.0] * 3
    for _ in range(2):
        gone = say(client, tools, "POST", "/v2/systemsharedmemory/region/a/unregister")
        assert (gone.status, gone.json) == (200, {})
    refused = say(client, tools, "POST", "/v2/models/m/infer", infer_shared())
    assert "Unable to find shared memory region: 'a'" in refused.error


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (infer_shared(out=11), "should be at least 12 bytes to hold the results"),
        (infer_shared(out_offset=2**64 - 32), "Invalid offset for shared memory region: 'a'"),
        (infer_shared(out_offset=60), "Invalid offset + byte size for shared memory region: 'a'"),
        (infer_shared(offset=2**64 - 8), "Invalid offset for shared memory region: 'a'"),
        (infer_shared(size=2**64 - 1), "Invalid offset + byte size for shared memory region: 'a'"),
        (infer_shared(size=32), "32 bytes"),
    ],
)
def test_a_tensor_that_does_not_fit_its_region_is_refused(shm_server, connect, tools, make, request_, says):
    port, server = shm_server
    server.serve(tools.model())
    client, key = connect(port), make()
    say(client, tools, "POST", "/v2/systemsharedmemory/region/a/register", {"key": key, "byte_size": 64})
    answer = say(client, tools, "POST", "/v2/models/m/infer", request_)
    assert answer.status == 400
    assert says in answer.error


def test_a_region_can_be_unregistered_during_inference(shm_server, connect, tools, make):
    port, server = shm_server
    began, go_on = threading.Event(), threading.Event()

    def compute(inputs: Any) -> Any:
        if began.is_set() or not armed.is_set():
            return {"y": np.zeros((1, 3), np.float32)}
        began.set()
        assert go_on.wait(10)
        return {"y": inputs["x"].sum() * np.ones((1, 3), np.float32)}

    armed = threading.Event()
    server.serve(tools.model(compute, slow=True))
    armed.set()
    client, other, key = connect(port), connect(port), make()
    object_of(key).write_bytes(np.ones(16, np.float32).tobytes())
    say(client, tools, "POST", "/v2/systemsharedmemory/region/a/register", {"key": key, "byte_size": 64})
    wanted = infer_shared()
    del wanted["outputs"]
    client.send(tools.request("POST", "/v2/models/m/infer", json.dumps(wanted).encode()))
    assert began.wait(10)
    assert say(other, tools, "POST", "/v2/systemsharedmemory/unregister").status == 200
    assert say(other, tools, "GET", "/v2/systemsharedmemory/status").json == []
    object_of(key).unlink()
    go_on.set()
    assert client.answer().json["outputs"][0]["data"] == [4.0] * 3


@pytest.mark.parametrize(
    ("document", "status", "says"),
    [
        ({"key": "/edgeserve-none", "byte_size": 64}, 404, "Unable to open shared memory region"),
        ({"key": "/../x", "byte_size": 64}, 400, "not a key"),
        ({"byte_size": 64}, 400, "failed to register shared memory region 'a'"),
        ({"key": "/x", "byte_size": 2**70}, 400, "failed to register shared memory region 'a'"),
        ({"key": "/x", "byte_size": "64"}, 400, "failed to register shared memory region 'a'"),
        ([], 400, "failed to register shared memory region 'a'"),
    ],
)
def test_a_registration_that_cannot_be_is_refused(shm_server, connect, tools, document, status, says):
    answer = say(connect(shm_server[0]), tools, "POST", "/v2/systemsharedmemory/region/a/register", document)
    assert answer.status == status
    assert says in answer.error


def test_of_cuda_memory_there_is_none_and_clients_that_ask_go_on(shm_server, connect, tools):
    client = connect(shm_server[0])
    assert say(client, tools, "GET", "/v2/cudasharedmemory/status").json == []
    assert say(client, tools, "POST", "/v2/cudasharedmemory/unregister").json == {}
    assert say(client, tools, "POST", "/v2/cudasharedmemory/region/a/unregister").json == {}
    refused = say(client, tools, "POST", "/v2/cudasharedmemory/region/a/register", {"raw_handle": {}})
    assert refused.status == 501


def test_switched_off_there_are_no_regions_and_none_can_be_registered(start_server, connect, tools):
    server = start_server()
    http = http_server(server, None)
    client = connect(server.run(http.listen("127.0.0.1", 0)))
    assert say(client, tools, "GET", "/v2/systemsharedmemory/status").json == []
    assert say(client, tools, "POST", "/v2/systemsharedmemory/unregister").json == {}
    refused = say(client, tools, "POST", "/v2/systemsharedmemory/region/a/register", {"key": "/x", "byte_size": 1})
    assert refused.status == 400
    assert "--allow-shm" in refused.error
    server.run(http.close(0.1))


FOREIGN = """
import os, sys
import numpy as np
import tritonclient.http as http
import tritonclient.utils.shared_memory as shm
from tritonclient.utils import InferenceServerException

client = http.InferenceServerClient(sys.argv[1])
prefix = f"/edgeserve-foreign-{os.getpid()}-"
client.unregister_system_shared_memory()
handles = {}
for name in ("input0", "input1", "output0", "output1"):
    handles[name] = shm.create_shared_memory_region(name, prefix + name, 64)
try:
    shm.set_shared_memory_region(handles["input0"], [np.arange(16, dtype=np.int32)])
    shm.set_shared_memory_region(handles["input1"], [np.ones(16, np.int32)])
    client.unregister_system_shared_memory("input0")
    assert client.get_system_shared_memory_status() == []
    for name in handles:
        client.register_system_shared_memory(name, prefix + name, 64)
    assert len(client.get_system_shared_memory_status()) == 4

    def refused(says, function, *arguments, **more):
        try:
            function(*arguments, **more)
        except InferenceServerException as error:
            assert says in str(error), error
        else:
            raise AssertionError("not refused: " + says)

    refused("shared memory region 'input0' already in manager", client.register_system_shared_memory,
            "input0", prefix + "input0", 64)
    for size, offset in ((65, 0), (64, 1), (1, 64), (0, 65)):
        refused("failed to register shared memory region", client.register_system_shared_memory,
                "other", prefix + "input0", size, offset=offset)

    def infer(offset=0, size=64, shared=True):
        inputs = [http.InferInput(f"INPUT{n}", [1, 16], "INT32") for n in (0, 1)]
        inputs[0].set_shared_memory("input0", 64)
        if shared:
            inputs[1].set_shared_memory("input1", 64)
        else:
            inputs[1].set_data_from_numpy(np.ones((1, 16), np.int32), binary_data=True)
        outputs = [http.InferRequestedOutput(f"OUTPUT{n}", binary_data=n == 0) for n in (0, 1)]
        for n in (0, 1):
            outputs[n].set_shared_memory(f"output{n}", size, offset=offset)
        result = client.infer("simple", inputs, outputs=outputs)
        for n, sign in ((0, 1), (1, -1)):
            output = result.get_output(f"OUTPUT{n}")
            assert output["shape"] == [1, 16] and output["datatype"] == "INT32", output
            found = shm.get_contents_as_numpy(handles[f"output{n}"], np.int32, output["shape"])
            assert (found[0] == np.arange(16) + sign).all(), found

    infer()
    infer(shared=False)
    refused("Invalid offset for shared memory region", infer, offset=2**64 - 32)
    refused("shared memory size specified with the request for output 'OUTPUT0'", infer, size=60)
    client.unregister_system_shared_memory("output0")
    assert len(client.get_system_shared_memory_status()) == 3
    refused("Unable to find shared memory region: 'output0'", infer)
    client.unregister_system_shared_memory()
    assert client.get_system_shared_memory_status() == []
finally:
    for handle in handles.values():
        shm.destroy_shared_memory_region(handle)
client.close()
print("all well")
"""


def test_tritonclient_shares_memory_with_us(shm_server, tools):
    pytest.importorskip("tritonclient.utils.shared_memory")
    port, server = shm_server
    server.serve(tools.model(simple, signature=SIMPLE), name="simple")
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FOREIGN, f"127.0.0.1:{port}"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ended.stdout == "all well\n", ended.stderr


def simple(inputs: Any) -> Any:
    """Triton's example model: the sum, and the difference."""
    return {"OUTPUT0": inputs["INPUT0"] + inputs["INPUT1"], "OUTPUT1": inputs["INPUT0"] - inputs["INPUT1"]}
