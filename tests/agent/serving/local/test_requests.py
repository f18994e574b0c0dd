"""Requests through shared memory: what crosses the socket, and what the memory holds after."""

from __future__ import annotations

import mmap
import sys
import threading
from typing import Any

import numpy as np
import pytest

from edgeserve.client import local_wire as wire
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from tests.agent.serving.local.raw_client import WAIT_S, X, plan_of, run

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memfd and SO_PEERCRED are Linux")


# What it does -----------------------------------------------------------------------------------------


def test_a_request_of_16_bytes_is_answered_with_16_bytes_and_tensors_never_cross_the_socket(node, connect, memory):
    client, descriptor = connect(node).greet(), memory()
    number = client.open(plan_of(), descriptor)
    region = np.frombuffer(mmap.mmap(descriptor, 4096), np.float32)
    region[:4] = [1, 2, 3, 4]
    kind, of, _, layout, body = run(client, number)
    assert (kind, of, body) == (wire.LAYOUT, number, b'{"shapes":[[1,3]]}')
    assert client.read() == (wire.DONE, layout, 0, 9, b"")
    assert region[16:19].tolist() == [10.0] * 3
    region[:4] = 1
    assert run(client, number, tag=10) == (wire.DONE, layout, 0, 10, b"")
    assert region[16:19].tolist() == [4.0] * 3


def test_requests_in_one_packet_are_all_answered_and_each_slot_has_its_own_memory(node, connect, memory):
    client, descriptor = connect(node).greet(), memory()
    number = client.open(plan_of(slots=8), descriptor)
    region = np.frombuffer(mmap.mmap(descriptor, 4096), np.float32).reshape(-1, 32)
    region[:8, :4] = np.arange(8)[:, None]
    client.send(b"".join(wire.head(wire.RUN, number, slot, 100 + slot) for slot in range(8)))
    answers = [answer for answer in (client.read() for _ in range(9)) if answer[0] == wire.DONE]
    assert sorted((slot, tag) for _, _, slot, tag, _ in answers) == [(slot, 100 + slot) for slot in range(8)]
    assert region[:8, 16].tolist() == [4.0 * slot for slot in range(8)]


def test_a_plan_follows_the_release_that_answers(node, connect, memory, tools):
    client = connect(node).greet()
    number = client.open(plan_of(), memory())
    assert run(client, number)[0] == wire.LAYOUT
    assert client.read()[0] == wire.DONE
    other = Signature(
        inputs=(TensorSpec(name="z", datatype=Datatype.FP32, shape=(-1, 4)),), outputs=tools.signature.outputs
    )
    node.server.serve(tools.model(lambda inputs: {"y": inputs["z"][:, :3]}, signature=other), number=2)
    client.send(wire.head(wire.RUN, number, 0, 3))
    assert "input 'x' is not one of the model's: z" in client.error().message
    node.server.call(node.server.plane.activate, "m", tools.digest(1))
    assert run(client, number)[0] == wire.DONE


def test_a_release_is_unloaded_although_a_plan_knows_it(node, connect, memory, tools):
    client = connect(node).greet()
    number = client.open(plan_of(), memory())
    node.server.call(node.server.plane.unload, "m", tools.digest(1))
    client.send(wire.head(wire.RUN, number, 0, 3))
    assert client.error().message == "unknown model 'm'"


def test_slow_requests_are_answered_as_they_end_and_a_slot_in_use_takes_no_second_one(start, connect, memory, tools):
    release = [threading.Event() for _ in range(2)]

    def compute(inputs: Any) -> Any:
        row = int(inputs["x"][0, 0])
        assert not row or release[row - 1].wait(WAIT_S)
        return {"y": np.full((1, 3), row, np.float32)}

    node = start(tools.model(compute, slow=True))
    client, descriptor = connect(node).greet(), memory()
    number = client.open(plan_of(slots=2), descriptor)
    region = np.frombuffer(mmap.mmap(descriptor, 4096), np.float32)
    region[0], region[32] = 1, 2
    client.send(wire.head(wire.RUN, number, 0, 1) + wire.head(wire.RUN, number, 0, 2))
    assert "slot 0 of plan 1 is in use" in client.error().message
    release[0].set()
    assert client.read()[0] == wire.LAYOUT
    assert client.read()[::3] == (wire.DONE, 1)
    client.send(wire.head(wire.RUN, number, 1, 3))
    release[1].set()
    assert client.read()[::3] == (wire.DONE, 3)
    assert region[48] == 2.0


@pytest.mark.parametrize("datatype", list(Datatype))
def test_every_datatype_goes_there_and_back(start, connect, memory, tools, datatype):
    spec = TensorSpec(name="x", datatype=datatype, shape=(-1, 2))
    signature = Signature(inputs=(spec,), outputs=(TensorSpec(name="y", datatype=datatype, shape=(-1, 2)),))
    node = start(tools.model(lambda inputs: {"y": inputs["x"].copy()}, signature=signature))
    client, descriptor = connect(node).greet(), memory()
    exact = TensorSpec(name="x", datatype=datatype, shape=(1, 2))
    size = 64 if datatype is Datatype.BYTES else 2 * datatype.item_bytes
    plan = wire.place([(exact, size)], {"y": 64}, model="m")
    number = client.open(plan, descriptor)
    region = mmap.mmap(descriptor, 4096)
    blob = b"\1\0\0\0a\2\0\0\0bc" if datatype is Datatype.BYTES else b"\1" * (2 * datatype.item_bytes)
    content = wire.LENGTH.pack(len(blob)) + blob if datatype is Datatype.BYTES else blob
    region[: len(content)] = content
    assert run(client, number)[0] == wire.LAYOUT
    assert client.read()[0] == wire.DONE
    assert region[64 : 64 + len(content)] == content


def test_more_layouts_than_are_remembered_are_numbered_anew(start, connect, memory, tools):
    count = [0]

    def compute(inputs: Any) -> Any:
        count[0] += 1
        return {"y": np.zeros((count[0] % 90 + 1, 3), np.float32)}

    node = start(tools.model(compute))
    client = connect(node).greet()
    number = client.open(wire.place([(X, 16)], {"y": 2048}, model="m"), memory())
    known: dict[int, bytes] = {}
    for tag in range(200):
        answer = run(client, number, tag=tag)
        while answer[0] == wire.LAYOUT:
            known[answer[3]] = answer[4]
            answer = client.read()
        assert answer[0] == wire.DONE
        rows = count[0] % 90 + 1
        assert known[answer[1]] == b'{"shapes":[[%d,3]]}' % rows
    assert len(known) <= 64
