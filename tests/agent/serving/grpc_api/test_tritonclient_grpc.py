"""A stranger's clients against our service, in this process: their protobuf files and ours live side by side."""

from __future__ import annotations

import asyncio
import queue
from multiprocessing import shared_memory

import numpy as np
import pytest

from edgeserve.contracts.model_config import ModelConfig
from edgeserve.contracts.task import Task
from edgeserve.contracts.tensors import Datatype
from edgeserve_agent.serving.grpc.grpcio_server import GrpcioServer
from edgeserve_agent.serving.h2.server import H2Server

triton = pytest.importorskip("tritonclient.grpc")
triton_aio = pytest.importorskip("tritonclient.grpc.aio")
utils = pytest.importorskip("tritonclient.utils")

DEADLINE_S = 10.0
ARRAYS = {
    "BOOL": np.array([True, False]),
    "UINT8": np.array([0, 255], np.uint8),
    "UINT16": np.array([0, 65535], np.uint16),
    "UINT32": np.array([0, 2**32 - 1], np.uint32),
    "UINT64": np.array([0, 2**64 - 1], np.uint64),
    "INT8": np.array([-128, 127], np.int8),
    "INT16": np.array([-1, 1], np.int16),
    "INT32": np.array([-1, 1], np.int32),
    "INT64": np.array([-(2**63), 1], np.int64),
    "FP16": np.array([0.5, -2], np.float16),
    "FP32": np.array([0.5, -2], np.float32),
    "FP64": np.array([0.5, 1e300]),
    "BF16": np.array([0.5, -2], np.float32),
    "BYTES": np.array([b"\xff\x00", b"word"], object),
}


@pytest.fixture(scope="module", params=[GrpcioServer, H2Server])
def url(host, request):
    """Of the service, behind either transport."""
    host.serve("classes", lambda inputs: {"y": np.tile(np.float32([0.5, 2, 1]), (len(inputs["x"]), 1))},
               task=Task(kind="classification", labels=("cat", "dog", "owl")))  # fmt: skip
    server = request.param(host.loop, host.service)
    yield f"127.0.0.1:{host.run(server.listen('127.0.0.1', 0))}"
    host.run(server.close(DEADLINE_S))


@pytest.fixture
def client(url):
    with triton.InferenceServerClient(url) as opened:
        yield opened


def tensor(rows=((1, 2, 3, 4),), module=triton):
    array = np.array(rows, np.float32)
    made = module.InferInput("x", array.shape, "FP32")
    made.set_data_from_numpy(array)
    return made


def test_health_and_metadata(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("m")
    assert client.is_model_ready("m", "1")
    assert not client.is_model_ready("nobody")
    assert client.get_server_metadata(as_json=True)["name"] == "edgeserve"
    assert client.get_model_metadata("m", as_json=True)["inputs"] == [
        {"name": "x", "datatype": "FP32", "shape": ["-1", "4"]}
    ]


@pytest.mark.parametrize("datatype", ARRAYS)
def test_every_datatype_makes_the_round(client, host, api, datatype):
    host.serve(f"one-{datatype.lower()}", api.same, signature=api.single(Datatype(datatype)))
    whole = ARRAYS[datatype]
    if datatype == "BF16":
        whole = whole.astype(pytest.importorskip("ml_dtypes").bfloat16)
    for array in (whole, whole[:0]):
        given = triton.InferInput("x", array.shape, datatype)
        given.set_data_from_numpy(array)
        result = client.infer(f"one-{datatype.lower()}", [given])
        assert result.as_numpy("y").tolist() == array.tolist()
        assert result.get_output("y").datatype == datatype


def test_options_of_a_request_and_its_answer(client):
    result = client.infer(
        "m",
        [tensor()],
        outputs=[triton.InferRequestedOutput("y")],
        model_version="1",
        request_id="abc",
        priority=1,
        timeout=1000,
        sequence_id=2**63 - 1,
        sequence_start=True,
        sequence_end=False,
        parameters={"colour": "red", "depth": 3, "fast": True},
    )
    response = result.get_response()
    assert (response.id, response.model_name, response.model_version) == ("abc", "m", "1")
    assert result.as_numpy("y").tolist() == [[10, 10, 10]]
    assert client.infer("m", [tensor()], sequence_id="text", sequence_end=True).as_numpy("y").shape == (1, 3)


def test_classification(client):
    found = client.infer("classes", [tensor()], outputs=[triton.InferRequestedOutput("y", class_count=2)])
    assert found.as_numpy("y").tolist() == [[b"2.000000:1:dog", b"1.000000:2:owl"]]


def test_a_large_tensor_and_a_compressed_one(client):
    rows = np.ones((20 * (1 << 20) // 16, 4), np.float32)
    assert client.infer("m", [tensor(rows)]).as_numpy("y").shape == (len(rows), 3)
    for algorithm in ("gzip", "deflate"):
        assert client.infer("m", [tensor(rows[:1000])], compression_algorithm=algorithm).as_numpy("y").shape == (
            1000,
            3,
        )


@pytest.mark.parametrize(
    ("model", "rows", "status", "says"),
    [
        ("nobody", [[1, 2, 3, 4]], "StatusCode.NOT_FOUND", "unknown model 'nobody'"),
        ("m", [[1, 2, 3]], "StatusCode.INVALID_ARGUMENT", "has shape [1, 3], the model takes [-1, 4]"),
    ],
)
def test_errors_are_read(client, model, rows, status, says):
    with pytest.raises(utils.InferenceServerException) as caught:
        client.infer(model, [tensor(rows)])
    assert caught.value.status() == status
    assert says in caught.value.message()


def test_asynchronous_requests(client):
    answers = queue.Queue()
    for _ in range(20):
        client.async_infer("m", [tensor()], lambda result, error: answers.put((result, error)))
    for _ in range(20):
        result, error = answers.get(timeout=DEADLINE_S)
        assert error is None
        assert result.as_numpy("y").tolist() == [[10, 10, 10]]


def test_streams(client):
    answers = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for identity, model in (("1", "m"), ("2", "nobody"), ("3", "m")):
        client.async_stream_infer(model, [tensor()], request_id=identity, enable_empty_final_response=True)
    found = [answers.get(timeout=DEADLINE_S) for _ in range(3)]
    client.stop_stream()
    assert [result and result.get_response().id for result, _ in found] == ["1", None, "3"]
    assert "unknown model 'nobody'" in found[1][1].message()
    assert found[0][0].get_response().parameters["triton_final_response"].bool_param
    assert answers.empty()


def test_shared_memory(client):
    block = shared_memory.SharedMemory(create=True, size=4096)
    try:
        np.frombuffer(block.buf, np.float32, 4)[:] = [1, 2, 3, 4]
        client.register_system_shared_memory("region", f"/{block.name}", 4096)
        assert client.get_system_shared_memory_status(as_json=True)["regions"]["region"]["byte_size"] == "4096"
        given = triton.InferInput("x", [1, 4], "FP32")
        given.set_shared_memory("region", 16)
        wanted = triton.InferRequestedOutput("y")
        wanted.set_shared_memory("region", 12, offset=64)
        result = client.infer("m", [given], outputs=[wanted])
        assert result.get_output("y").parameters["shared_memory_region"].string_param == "region"
        assert np.frombuffer(block.buf, np.float32, 3, offset=64).tolist() == [10, 10, 10]
        client.unregister_system_shared_memory("region")
        client.unregister_system_shared_memory()
        client.unregister_cuda_shared_memory()
        assert client.get_cuda_shared_memory_status(as_json=True) == {}
    finally:
        block.close()
        block.unlink()


def test_configuration_statistics_repository_and_settings(client, host):
    host.serve("shaped", config=ModelConfig(max_batch_size=16))
    config = client.get_model_config("shaped", as_json=True)["config"]
    assert (config["max_batch_size"], config["input"][0]["data_type"]) == (16, "TYPE_FP32")

    def successes():
        statistics = client.get_inference_statistics("shaped", as_json=True)["model_stats"][0]
        return int(statistics["inference_stats"]["success"].get("count", 0))

    before = successes()
    client.infer("shaped", [tensor()])
    assert successes() == before + 1
    assert [model["name"] for model in client.get_model_repository_index(as_json=True)["models"]] == ["m", "n"]
    client.load_model("m", config='{"max_batch_size": 2}', files={"file:1/model.onnx": b"bytes"})
    assert host.repository.loads[-1][2] == {"1/model.onnx": b"bytes"}
    client.unload_model("m")
    settings = client.update_trace_settings("m", {"trace_rate": "7", "trace_level": ["TIMESTAMPS"]}, as_json=True)
    assert settings["settings"]["trace_level"]["value"] == ["TIMESTAMPS"]
    client.update_trace_settings("m", {"trace_rate": None, "trace_level": None})
    assert client.get_trace_settings("m", as_json=True)["settings"]["trace_rate"]["value"] == ["1000"]
    log = client.update_log_settings({"log_verbose_level": 2, "log_warning": False}, as_json=True)
    assert log["settings"]["log_verbose_level"] == {"uint32_param": 2}
    client.update_log_settings({"log_verbose_level": 0, "log_warning": True})


def test_the_asyncio_client(url):
    async def use():
        async with triton_aio.InferenceServerClient(url) as client:
            assert await client.is_server_ready()
            result = await client.infer("m", [tensor(module=triton_aio)], request_id="9")
            assert result.get_response().id == "9"
            assert result.as_numpy("y").tolist() == [[10, 10, 10]]
            with pytest.raises(utils.InferenceServerException, match="unknown model"):
                await client.infer("nobody", [tensor(module=triton_aio)])

            async def requests():
                for identity, model in (("1", "m"), ("2", "nobody")):
                    yield {"model_name": model, "inputs": [tensor(module=triton_aio)], "request_id": identity}

            answers = [answer async for answer in client.stream_infer(requests())]
            assert answers[0][0].get_response().id == "1"
            assert "unknown model" in answers[1][1].message()

    asyncio.run(use())


def test_bytes_tensors_are_laid_out_as_the_client_does(client, host, api):
    words = np.array([[b"a", b""], [b"\xe2\x82\xac", b"x" * 300]], object)
    host.serve("words", api.same, signature=api.single(Datatype.BYTES, (-1, 2)))
    given = triton.InferInput("x", [2, 2], "BYTES")
    given.set_data_from_numpy(words)
    result = client.infer("words", [given])
    assert result.as_numpy("y").tolist() == words.tolist()
    assert result.get_response().raw_output_contents[0] == utils.serialize_byte_tensor(words).item()
