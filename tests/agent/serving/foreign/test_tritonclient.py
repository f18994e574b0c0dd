"""tritonclient over HTTP, with asyncio and with shared memory, each in a process of its own: importing gevent patches
what other tests use."""

from __future__ import annotations

import sys

import pytest

from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec

pytest.importorskip("tritonclient.utils")

KINDS = [datatype for datatype in Datatype if datatype is not Datatype.BF16]

HTTP = """
import sys
import numpy as np
import tritonclient.http as http
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

client = http.InferenceServerClient(sys.argv[1])
arrays = {
    "BOOL": np.array([True, False]), "BYTES": np.array([b"\\xff\\x00", "\\u00fc".encode()], object),
    **{name: np.array([low, 1], name.lower()) for name, low in (
        ("UINT8", 255), ("UINT16", 65535), ("UINT32", 2**32 - 1), ("UINT64", 2**64 - 1),
        ("INT8", -128), ("INT16", -(2**15)), ("INT32", -(2**31)), ("INT64", -(2**63)))},
    "FP16": np.array([0.5, -2], np.float16), "FP32": np.array([np.nan, np.inf], np.float32),
    "FP64": np.array([1e300, -np.inf]),
}

def tensor(name, array, kind, binary=True):
    made = http.InferInput(name, array.shape, kind)
    made.set_data_from_numpy(array, binary_data=binary)
    return made

def refused(call, status, says):
    try:
        call()
    except InferenceServerException as error:
        assert says in error.message() and error.status() == status, error
    else:
        raise AssertionError(f"not refused: {says}")

for kind, array in arrays.items():
    for algorithm in (None, "gzip", "deflate"):
        found = client.infer(kind.lower(), [tensor("x", array, kind)], request_compression_algorithm=algorithm,
                             response_compression_algorithm=algorithm).as_numpy("y")
        assert found.tobytes() == array.tobytes() if kind != "BYTES" else found.tolist() == array.tolist(), kind
    empty = client.infer(kind.lower(), [tensor("x", array[:0], kind)]).as_numpy("y")
    assert empty.shape == (0,), empty

rows = np.arange(8, dtype=np.float32).reshape(2, 4)
x = tensor("x", rows, "FP32")
best = client.infer("m", [x], outputs=[http.InferRequestedOutput("y", class_count=2)]).as_numpy("y")
assert best.shape == (2, 2) and best[1][0] == b"22.000000:0", best
explain = {"edgeserve-explain": "latency"}
result = client.infer("m", [x], request_id="7", priority=1, timeout=1_000_000, headers=explain)
assert result.get_response()["id"] == "7"
assert all(one.get_result().as_numpy("y").shape == (2, 3) for one in [client.async_infer("m", [x]) for _ in range(8)])

before = client.get_inference_statistics("m")["model_stats"][0]["inference_stats"]["success"]["count"]
client.infer("m", [x])
assert client.get_inference_statistics("m", "7")["model_stats"][0]["inference_stats"]["success"]["count"] == before + 1
assert client.get_model_config("m")["name"] == "m"
assert client.get_trace_settings()["trace_level"] == ["OFF"]
assert client.update_trace_settings("m", {"trace_rate": "7"})["trace_rate"] == "7"
assert client.update_trace_settings("m", {"trace_rate": None})["trace_rate"] == "1000"
assert client.get_log_settings() == client.update_log_settings({"log_verbose_level": 0})
assert {"name": "m", "version": "7", "state": "READY"} in client.get_model_repository_index()
refused(lambda: client.load_model("m"), "501", "not loaded over the network")
refused(lambda: client.get_model_metadata("nobody"), "404", "unknown model 'nobody'")
z = http.InferRequestedOutput("z")
refused(lambda: client.infer("m", [x], outputs=[z]), "400", "'z' is not one of the model's")
assert client.is_model_ready("m", "8") is False and client.is_model_ready("ein name: \\u00fc") is True
client.close()
print("all well")
"""

AIO = """
import asyncio, sys
import numpy as np
import tritonclient.http.aio as http
from tritonclient.utils import InferenceServerException

async def main(url):
    async with http.InferenceServerClient(url) as client:
        assert await client.is_server_live() and await client.is_model_ready("m")
        assert (await client.get_model_metadata("m"))["versions"] == ["7"]
        rows = np.arange(4096 * 4, dtype=np.float32).reshape(-1, 4)
        for binary in (True, False):
            for algorithm in (None, "gzip", "deflate"):
                tensor = http.InferInput("x", rows.shape, "FP32")
                tensor.set_data_from_numpy(rows, binary_data=binary)
                wanted = [http.InferRequestedOutput("y", binary_data=binary)]
                results = await asyncio.gather(*(
                    client.infer("m", [tensor], outputs=wanted, request_compression_algorithm=algorithm,
                                 response_compression_algorithm=algorithm) for _ in range(3)))
                for result in results:
                    assert np.allclose(result.as_numpy("y")[:, 0], rows.sum(axis=1))
        try:
            await client.infer("nobody", [tensor])
        except InferenceServerException as error:
            assert error.status() == "404" and "unknown model 'nobody'" in error.message(), error
        else:
            raise AssertionError("not refused")

asyncio.run(main(sys.argv[1]))
print("all well")
"""

SHARED_MEMORY = """
import sys, uuid
import numpy as np
import tritonclient.http as http
import tritonclient.utils.shared_memory as shm
from tritonclient.utils import InferenceServerException

client = http.InferenceServerClient(sys.argv[1])
prefix = "edgeserve-" + uuid.uuid4().hex
rows = np.arange(8, dtype=np.float32).reshape(2, 4)
into, out = (shm.create_shared_memory_region(name, f"/{prefix}-{name}", 64) for name in ("in", "out"))
try:
    shm.set_shared_memory_region(into, [rows])
    client.unregister_system_shared_memory()
    for name, size in (("in", 64), ("out", 64)):
        client.register_system_shared_memory(name, f"/{prefix}-{name}", size)
    assert [one["name"] for one in client.get_system_shared_memory_status()] == ["in", "out"]
    tensor = http.InferInput("x", rows.shape, "FP32")
    tensor.set_shared_memory("in", rows.nbytes)
    wanted = http.InferRequestedOutput("y")
    wanted.set_shared_memory("out", 24, offset=8)
    result = client.infer("m", [tensor], outputs=[wanted])
    assert result.get_output("y")["shape"] == [2, 3], result.get_response()
    assert shm.get_contents_as_numpy(out, np.float32, [2, 3], offset=8)[:, 0].tolist() == rows.sum(axis=1).tolist()
    for call, says in (
        (lambda: client.register_system_shared_memory("in", f"/{prefix}-in", 64), "in"),
        (lambda: client.register_system_shared_memory("x", f"/{prefix}-nothing", 64), "Unable to open"),
    ):
        try:
            call()
        except InferenceServerException as error:
            assert says in error.message(), error
        else:
            raise AssertionError("not refused")
    client.unregister_system_shared_memory("in")
    assert [one["name"] for one in client.get_system_shared_memory_status()] == ["out"]
    try:
        client.infer("m", [tensor])
    except InferenceServerException as error:
        assert error.status() == "404" and "'in'" in error.message(), error
    else:
        raise AssertionError("not refused")
    client.unregister_system_shared_memory()
    assert client.get_cuda_shared_memory_status() == []
finally:
    for region in (into, out):
        shm.destroy_shared_memory_region(region)
client.close()
print("all well")
"""


def run(run_foreign, script: str, server) -> None:
    printed = run_foreign([sys.executable, "-W", "ignore", "-c", script, f"127.0.0.1:{server.port}"])
    assert printed == "all well\n"


def test_tritonclient_sends_every_datatype_and_speaks_the_extensions(shared_server, run_foreign, tools):
    for kind in KINDS:
        sides = {
            side: (TensorSpec(name=name, datatype=kind, shape=(-1,)),)
            for side, name in (("inputs", "x"), ("outputs", "y"))
        }
        model = tools.model(lambda given: {"y": given["x"]}, signature=Signature(**sides))
        shared_server.serve(model, name=kind.value.lower())
    shared_server.serve(tools.model(), name="ein name: ü")
    run(run_foreign, HTTP, shared_server)


def test_tritonclient_with_asyncio_sends_and_reads_compressed_bodies(shared_server, run_foreign):
    run(run_foreign, AIO, shared_server)


def test_tritonclient_leaves_tensors_in_shared_memory(shm_server, run_foreign):
    run(run_foreign, SHARED_MEMORY, shm_server)
    counters = shm_server.plane.find("m").counters
    assert (counters.successes, counters.failed.count) == (1, 0)
