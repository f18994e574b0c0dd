"""KServe's REST client in both of its protocols, and its gRPC client on the same port."""

from __future__ import annotations

import pytest

REST = """
import asyncio, sys
import httpx
import numpy as np
from kserve import InferInput, InferRequest
from kserve.inference_client import InferenceRESTClient, RESTConfig
from kserve.protocol.infer_type import RequestedOutput

async def refused(call, status, says):
    try:
        await call
    except httpx.HTTPStatusError as error:
        assert error.response.status_code == status and says in str(error), error
    else:
        raise AssertionError(f"not refused: {says}")

async def v1(url):
    client = InferenceRESTClient(RESTConfig(protocol="v1"))
    assert await client.is_server_live(url)
    assert await client.is_model_ready(url, "m") is True
    assert await client.is_model_ready(url, "coming") is False
    for data in ({"instances": [[1, 2, 3, 4]]}, {"instances": [{"x": [1, 2, 3, 4]}]}):
        assert await client.infer(url, data, model_name="m") == {"predictions": [[10.0] * 3]}
    await refused(client.infer(url, {"instances": [[1, 2]]}, model_name="m"), 400, "has shape [1, 2]")
    await refused(client.infer(url, {"instances": [[1]]}, model_name="nobody"), 404, "unknown model 'nobody'")
    await refused(client.explain(url, "m", {"instances": [[1] * 4]}), 501, "not explained")
    await client.close()

async def v2(url):
    client = InferenceRESTClient(RESTConfig(protocol="v2"))
    assert await client.is_server_live(url)
    await refused(client.is_server_ready(url), 503, "'ready': False")  # "coming" is not there yet
    assert await client.is_model_ready(url, "m") is True
    assert await client.is_model_ready(url, "coming") is False
    rows = np.arange(8, dtype=np.float32).reshape(2, 4)
    for binary_in in (True, False):
        for binary_out in (True, False):
            tensor = InferInput("x", [2, 4], "FP32")
            tensor.set_data_from_numpy(rows, binary_data=binary_in)
            wanted = [RequestedOutput("y", parameters={"binary_data": binary_out})]
            request = InferRequest("m", [tensor], request_id="abc", request_outputs=wanted)
            answer = await client.infer(url, request, model_name="m")
            assert (answer.id, answer.model_name) == ("abc", "m"), answer
            assert answer.outputs[0].as_numpy()[:, 0].tolist() == rows.sum(axis=1).tolist()
    wrong = InferInput("x", [2, 3], "FP32")
    wrong.set_data_from_numpy(rows[:, :3], binary_data=False)
    await refused(client.infer(url, InferRequest("m", [wrong]), model_name="m"), 400, "has shape [2, 3]")
    await refused(client.infer(url, request, model_name="nobody"), 404, "unknown model 'nobody'")
    await client.close()

asyncio.run({"v1": v1, "v2": v2}[sys.argv[2]](sys.argv[1]))
print("all well")
"""

GRPC = """
import asyncio, sys
import grpc
import numpy as np
from kserve import InferInput, InferRequest
from kserve.errors import InvalidInput
from kserve.inference_client import InferenceGRPCClient

async def main(url):
    client = InferenceGRPCClient(url)
    assert await client.is_server_live() and await client.is_model_ready("m")
    assert not await client.is_server_ready()
    rows = np.arange(8, dtype=np.float32).reshape(2, 4)
    for binary in (True, False):
        tensor = InferInput("x", [2, 4], "FP32")
        tensor.set_data_from_numpy(rows, binary_data=binary)
        answer = await client.infer(InferRequest(model_name="m", infer_inputs=[tensor], request_id="abc"))
        assert (answer.id, answer.model_name, answer.model_version) == ("abc", "m", "7"), answer
        assert answer.outputs[0].as_numpy()[:, 0].tolist() == rows.sum(axis=1).tolist()
    try:
        await client.infer(InferRequest(model_name="nobody", infer_inputs=[tensor]))
    except (InvalidInput, grpc.RpcError) as error:
        assert "unknown model 'nobody'" in str(error), error
    else:
        raise AssertionError("not refused")
    await client.close()

asyncio.run(main(sys.argv[1]))
print("all well")
"""


@pytest.fixture
def server(start_server, tools):
    """With a model that is served and one that is not yet."""
    started = start_server()
    started.serve(tools.model(), version="7")
    started.call(started.plane.expect, "coming")
    return started


@pytest.mark.parametrize("protocol", ["v1", "v2"])
def test_kserves_rest_client_infers_reads_readiness_and_our_errors(server, kserve_python, run_foreign, protocol: str):
    printed = run_foreign([kserve_python, "-W", "ignore", "-c", REST, server.url, protocol])
    assert printed.endswith("all well\n")


def test_kserves_grpc_client_infers_on_the_port_of_http(server, kserve_python, run_foreign):
    printed = run_foreign([kserve_python, "-W", "ignore", "-c", GRPC, f"127.0.0.1:{server.port}"])
    assert printed.endswith("all well\n")
