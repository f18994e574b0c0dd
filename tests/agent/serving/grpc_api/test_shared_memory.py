"""Tensors in registered shared memory over gRPC."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("google.protobuf")

from edgeserve.client.oip_proto import messages
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve_agent.serving.rpc import StatusCode


@pytest.fixture
def region(host, tmp_path):
    """A registered region of 64 bytes, named `r`; what is in it."""
    from multiprocessing import shared_memory

    block = shared_memory.SharedMemory(create=True, size=4096)
    try:
        answer = host.ask("SystemSharedMemoryRegister", name="r", key=f"/{block.name}", offset=0, byte_size=64)
        assert not hasattr(answer, "__len__"), answer
        yield block.buf
        host.ask("SystemSharedMemoryUnregister", name="")
    finally:
        block.close()
        block.unlink()


def _place(tensor, offset, size):
    tensor.parameters["shared_memory_region"].string_param = "r"
    tensor.parameters["shared_memory_offset"].int64_param = offset
    tensor.parameters["shared_memory_byte_size"].int64_param = size


def test_tensors_in_shared_memory_take_no_slot_in_and_an_empty_one_out(host, api, region):
    two = Signature(
        inputs=(
            TensorSpec(name="a", datatype=Datatype.INT32, shape=(2,)),
            TensorSpec(name="b", datatype=Datatype.INT32, shape=(2,)),
        ),
        outputs=(
            TensorSpec(name="p", datatype=Datatype.INT32, shape=(2,)),
            TensorSpec(name="q", datatype=Datatype.INT32, shape=(2,)),
        ),
    )
    host.serve("two", lambda inputs: {"p": inputs["a"] + 1, "q": inputs["b"] + 1}, signature=two)
    np.frombuffer(region, np.int32, 2)[:] = [10, 20]
    message = messages().ModelInferRequest(model_name="two", raw_input_contents=[np.int32([1, 2]).tobytes()])
    _place(message.inputs.add(name="a", datatype="INT32", shape=[2]), 0, 8)
    message.inputs.add(name="b", datatype="INT32", shape=[2])
    _place(message.outputs.add(name="p"), 16, 8)
    message.outputs.add(name="q")
    for _ in range(2):
        response = host.infer(message)
        assert list(response.raw_output_contents) == [b"", np.int32([2, 3]).tobytes()]
        assert response.outputs[0].parameters["shared_memory_region"].string_param == "r"
        assert response.outputs[0].parameters["shared_memory_offset"].int64_param == 16
        assert response.outputs[0].parameters["shared_memory_byte_size"].int64_param == 8
        assert np.frombuffer(region, np.int32, 2, offset=16).tolist() == [11, 21]


def test_regions_are_listed_and_errors_of_theirs_say_what_is_wrong(host, api, region):
    status = host.ask("SystemSharedMemoryStatus")
    assert [(name, entry.byte_size) for name, entry in status.regions.items()] == [("r", 64)]
    assert host.ask("SystemSharedMemoryStatus", name="none")[0] is StatusCode.NOT_FOUND
    again = host.ask("SystemSharedMemoryRegister", name="r", key="/anything", offset=0, byte_size=64)
    assert again[0] is StatusCode.ALREADY_EXISTS
    message = api.request()
    _place(message.outputs.add(name="y"), 0, 4)
    code, text = host.infer(message)
    assert code is StatusCode.INVALID_ARGUMENT
    assert "shared memory size specified with the request for output 'y' (4 bytes) should be at least 12" in text
