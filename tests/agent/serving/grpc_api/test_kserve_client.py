"""KServe's gRPC client, in a process of its own with its own environment (`scripts/bench_peers.sh` makes it)."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

pytest.importorskip("grpc")

from edgeserve_agent.serving.grpc.grpcio_server import GrpcioServer

PYTHON = Path(__file__).parents[4] / ".cache/bench-peers/kserve/bin/python"
DEADLINE_S = 10.0
SCRIPT = """
import asyncio, sys
import numpy as np
from kserve import InferInput, InferRequest
from kserve.errors import InvalidInput
from kserve.inference_client import InferenceGRPCClient
import grpc

async def main():
    client = InferenceGRPCClient(sys.argv[1])
    assert await client.is_server_live() and await client.is_server_ready() and await client.is_model_ready("m")
    rows = np.arange(8, dtype=np.float32).reshape(2, 4)
    for binary in (True, False):
        tensor = InferInput("x", [2, 4], "FP32")
        tensor.set_data_from_numpy(rows, binary_data=binary)
        for _ in range(2):
            request = InferRequest(model_name="m", infer_inputs=[tensor], request_id="abc")
            answer = await client.infer(request)
            assert (answer.id, answer.model_name, answer.model_version) == ("abc", "m", "1"), answer
            assert answer.outputs[0].as_numpy()[:, 0].tolist() == rows.sum(axis=1).tolist()
    try:
        await client.infer(InferRequest(model_name="nobody", infer_inputs=[tensor]))
    except (InvalidInput, grpc.RpcError) as error:
        assert "unknown model 'nobody'" in str(error), error
    else:
        raise AssertionError("not refused")
    await client.close()

asyncio.run(main())
print("all well")
"""


@pytest.mark.skipif(not PYTHON.exists(), reason="KServe is not installed: scripts/bench_peers.sh does that")
def test_kserve_infers_with_raw_and_typed_tensors_and_reads_our_errors(host):
    server = GrpcioServer(host.loop, host.service)
    port = host.run(server.listen("127.0.0.1", 0))
    ended = subprocess.run(
        [PYTHON, "-W", "ignore", "-c", SCRIPT, f"127.0.0.1:{port}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    host.run(server.close(DEADLINE_S))
    assert ended.stdout.endswith("all well\n"), ended.stderr
