"""Clients that send what they should not."""

from __future__ import annotations

import fcntl
import mmap
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from edgeserve.client import local_wire as wire
from edgeserve.contracts.errors import InputError
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from tests.agent.serving.local.raw_client import Raw, plan_of, run

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memfd and SO_PEERCRED are Linux")


def document(**more: Any) -> Any:
    """The plan as a JSON document with other fields."""
    import msgspec

    return {**msgspec.to_builtins(plan_of()), **more}


def send_document(client: Raw, kind: int, body: Any) -> Raw:
    import msgspec

    json = msgspec.json.encode(body)
    return client.send(wire.HEAD.pack(kind, 0, len(json), 5) + json)


# Mistakes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": "nope"}, "unknown model 'nope'"),
        ({"version": "9"}, "has no version '9'"),
        ({"inputs": []}, "inputs"),
        ({"slots": 0}, "slots"),
        ({"slots": 65}, "slots"),
        ({"slot_bytes": 2**63}, "slot_bytes"),
        ({"slot_bytes": 100}, "multiple of 64"),
        ({"slot_bytes": 64}, "ends beyond its slot"),
        ({"slot_bytes": 2**30, "slots": 64}, "are more than"),
        (
            {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "offset": 4, "byte_size": 16}]},
            "multiple of 64",
        ),
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "offset": -64, "byte_size": 16}]}, "offset"),
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "offset": 0, "byte_size": 12}]}, "needs 16"),
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4], "offset": 0, "byte_size": 16}]}, "shape"),
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [2**31] * 8, "offset": 0, "byte_size": 16}]}, "needs"),
        ({"inputs": [{"name": "x", "datatype": "FP64", "shape": [1, 4], "offset": 0, "byte_size": 32}]}, "takes FP32"),
        (
            {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 5], "offset": 0, "byte_size": 20}]},
            "takes [-1, 4]",
        ),
        ({"inputs": [{"name": "w", "datatype": "FP32", "shape": [1, 4], "offset": 0, "byte_size": 16}]}, "not one of"),
        ({"outputs": [{"name": "w", "offset": 64, "byte_size": 12}]}, "not one of the model's: y"),
        ({"outputs": [{"name": "y", "offset": 64, "byte_size": 12}] * 2}, "same name"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_and_the_connection_goes_on(node, connect, memory, changes, says):
    client = connect(node).greet()
    error = send_document(client, wire.OPEN, document(**changes)).error()
    assert says in error.message
    assert isinstance(error, InputError)
    assert run(client, client.open(plan_of(), memory()))[0] == wire.LAYOUT
    assert node.state[1] == 128


def test_what_is_no_sealed_memory_of_that_size_is_not_mapped(node, connect, memory, tmp_path):
    client = connect(node).greet()
    with (tmp_path / "file").open("w+b") as file:
        file.truncate(4096)
        assert "not of a memfd" in client.refused_region(file.fileno()).message
    assert "not sealed against shrinking" in client.refused_region(memory(seals=0)).message
    assert "has 64 bytes, the plan needs 128" in client.refused_region(memory(64)).message
    written = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_WRITE
    assert "cannot be written" in client.refused_region(memory(seals=written)).message
    assert "without a descriptor" in _region_without_descriptor(client).message
    assert node.state[1] == 0


def _region_without_descriptor(client: Raw) -> Any:
    number = client.send(wire.message(wire.OPEN, plan_of(), tag=1)).read()[1]
    return client.send(wire.head(wire.REGION, number, 0, 2)).error()


def test_a_region_cannot_shrink_under_the_server(node, connect, memory):
    client, descriptor = connect(node).greet(), memory()
    number = client.open(plan_of(), descriptor)
    with pytest.raises(PermissionError):
        os.ftruncate(descriptor, 0)
    assert run(client, number)[0] == wire.LAYOUT


def test_memory_whose_pages_were_taken_out_reads_as_zeros(node, connect, memory):
    """fallocate(2) may punch holes in sealed memory, and the server must live."""
    client, descriptor = connect(node).greet(), memory()
    number = client.open(plan_of(), descriptor)
    punched = subprocess.run(
        ["fallocate", "--punch-hole", "--offset", "0", "--length", "4096", f"/proc/{os.getpid()}/fd/{descriptor}"],
        check=False, capture_output=True,
    )  # fmt: skip
    assert punched.returncode == 0, punched.stderr
    assert run(client, number)[0] == wire.LAYOUT
    assert client.read()[0] == wire.DONE


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (wire.LENGTH.pack(2**63), "says that it has"),
        (wire.LENGTH.pack(57), "says that it has 57 bytes, its place has 56"),
        (wire.LENGTH.pack(4) + b"\xff\xff\xff\xff", "ends within element"),
        (wire.LENGTH.pack(0), "need more"),
    ],
)
def test_texts_that_lie_about_their_length_are_refused(start, connect, memory, tools, content, says):
    signature = Signature(
        inputs=(TensorSpec(name="x", datatype=Datatype.BYTES, shape=(-1,)),), outputs=tools.signature.outputs
    )
    node = start(tools.model(lambda _: {"y": np.zeros((1, 3), np.float32)}, signature=signature))
    client, descriptor = connect(node).greet(), memory()
    spec = TensorSpec(name="x", datatype=Datatype.BYTES, shape=(1,))
    number = client.open(wire.place([(spec, 64)], {"y": 12}, model="m"), descriptor)
    mmap.mmap(descriptor, 4096)[: len(content)] = content
    assert says in client.send(wire.head(wire.RUN, number, 0, 1)).error().message


def test_a_truth_value_that_is_neither_0_nor_1_is_refused(start, connect, memory, tools):
    signature = Signature(
        inputs=(TensorSpec(name="x", datatype=Datatype.BOOL, shape=(-1,)),), outputs=tools.signature.outputs
    )
    node = start(tools.model(lambda _: {"y": np.zeros((1, 3), np.float32)}, signature=signature))
    client, descriptor = connect(node).greet(), memory()
    spec = TensorSpec(name="x", datatype=Datatype.BOOL, shape=(4,))
    number = client.open(wire.place([(spec, 4)], {"y": 12}, model="m"), descriptor)
    mmap.mmap(descriptor, 4096)[:4] = b"\0\1\2\0"
    assert "neither 0 nor 1" in client.send(wire.head(wire.RUN, number, 0, 1)).error().message


def test_an_output_larger_than_its_place_is_an_error_and_overwrites_nothing(start, connect, memory, tools):
    node = start(tools.model(lambda _: {"y": np.ones((9, 3), np.float32)}))
    client, descriptor = connect(node).greet(), memory()
    number = client.open(plan_of(), descriptor)
    assert "output 'y' has 108 bytes, its place in the region has 12" in (
        client.send(wire.head(wire.RUN, number, 0, 1)).error().message
    )
    assert not any(mmap.mmap(descriptor, 4096)[:])


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (wire.head(wire.RUN, 99, 0, 4), "there is no plan 99"),
        (wire.head(wire.RUN, 1, 1, 4), "plan 1 has 1 slots, there is no slot 1"),
        (wire.head(wire.CLOSE, 99, 0, 4), "there is no plan 99"),
        (wire.head(wire.REGION, 1, 0, 4), "REGION comes after READY"),
        (wire.head(wire.HELLO, 1, wire.MAGIC, 4), "HELLO comes once"),
        (wire.HEAD.pack(wire.OPEN, 0, 3, 4) + b"{}}", "not a Plan"),
        (wire.HEAD.pack(wire.DESCRIBE, 0, 2, 4) + b"[]", "not a Describe"),
        (wire.HEAD.pack(wire.DESCRIBE, 0, 4, 4) + b"\xff\xfe{}", "not a Describe"),
    ],
)
def test_a_message_out_of_place_is_an_error_with_its_tag_and_the_connection_goes_on(
    node, connect, memory, message, says
):
    client = connect(node).greet()
    number = client.open(plan_of(), memory())
    kind, _, _, tag, body = client.send(message).read()
    assert (kind, tag) == (wire.FAILED, 4)
    assert says in wire.decode_body(body, wire.Failed).message
    assert run(client, number)[0] == wire.LAYOUT


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "is no kind of message"),
        (wire.head(wire.HELLO, wire.VERSION, 0, 1), "begins with HELLO"),
        (wire.head(wire.RUN, 1, 0, 1), "begins with HELLO"),
        (wire.head(wire.HELLO, 2, wire.MAGIC, 1), "version 2 of the local protocol"),
        (wire.HEAD.pack(wire.OPEN, 0, 2**32 - 1, 1), "a message has 4294967295 bytes"),
        (wire.head(wire.DONE, 0, 0, 0), "is no kind of message"),
    ],
)
def test_what_is_not_the_protocol_is_told_so_and_cut_off(node, connect, tools, data, says):
    client = connect(node).send(data)
    assert says in client.error().message
    assert client.ended()
    tools.until(lambda: node.state == (0, 0), "the connection is forgotten")


def test_garbage_behind_a_greeting_is_cut_off_too(node, connect, memory):
    client = connect(node).greet()
    client.open(plan_of(), memory())
    client.send(os.urandom(8) + bytes(8) + b"\xff" * 64)
    client.error()
    assert client.ended()
