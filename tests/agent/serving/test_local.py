"""The local protocol from the outside: raw sockets that say what they like, and processes that die."""

from __future__ import annotations

import asyncio
import fcntl
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeserve.client import local_wire as wire
from edgeserve.contracts.errors import DeviceError, InputError
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve_agent.serving.local_server import LocalLimits, LocalServer

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memfd and SO_PEERCRED are Linux")
WAIT_S = 10.0
X = TensorSpec(name="x", datatype=Datatype.FP32, shape=(1, 4))


class Raw:
    """A client that only knows bytes."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(WAIT_S)
        self.socket.connect(str(path))

    def send(self, data: bytes, *descriptors: int) -> Raw:
        if descriptors:
            socket.send_fds(self.socket, [data], list(descriptors))
        else:
            self.socket.sendall(data)
        return self

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self.socket.recv(count - len(data))
            if not more:
                raise EOFError
            data += more
        return data

    def read(self) -> wire.Message:
        kind, number, extent, tag = wire.HEAD.unpack(self._exactly(wire.HEAD.size))
        return kind, number, extent, tag, self._exactly(extent) if wire.FROM_SERVER[kind] else b""

    def error(self) -> Any:
        kind, _, _, _, body = self.read()
        assert kind == wire.FAILED, kind
        return wire.error_of(wire.decode_body(body, wire.Failed))

    def ended(self) -> bool:
        try:
            self._exactly(1)
        except (EOFError, ConnectionResetError):
            return True
        return False

    def greet(self) -> Raw:
        assert self.send(wire.head(wire.HELLO, wire.VERSION, wire.MAGIC, 7)).read()[::3] == (wire.WELCOME, 7)
        return self

    def open(self, plan: wire.Plan, memory: int) -> int:
        kind, number, _, _, body = self.send(wire.message(wire.OPEN, plan, tag=1)).read()
        assert kind == wire.READY, body
        kind, again, _, _, body = self.send(wire.head(wire.REGION, number, 0, 2), memory).read()
        assert (kind, again) == (wire.OPENED, number), body
        return number

    def refused_region(self, memory: int, plan: wire.Plan | None = None) -> Any:
        """Why a descriptor is not taken as a region."""
        number = self.send(wire.message(wire.OPEN, plan or plan_of(), tag=1)).read()[1]
        return self.send(wire.head(wire.REGION, number, 0, 2), memory).error()


class Node:
    """A model server with a local socket."""

    def __init__(self, server: Any, path: Path, bounds: LocalLimits | None, users: tuple[int, ...] = ()) -> None:
        self.server = server
        self.path = path
        self.local = LocalServer(server.loop, server.plane, users=users, bounds=bounds)
        server.call(self.local.listen, path)

    @property
    def state(self) -> tuple[int, int]:
        """Connections and mapped bytes."""
        return self.server.call(lambda: (self.local.connections, self.local.mapped_bytes))

    def close(self, drain_s: float = WAIT_S) -> None:
        self.server.run(self.local.close(drain_s))


@pytest.fixture
def start(start_server, tmp_path) -> Iterator[Callable[..., Node]]:
    """Starts servers."""
    running: list[Node] = []

    def make(model: Any = None, *, users: tuple[int, ...] = (), **bounds: Any) -> Node:
        node = Node(
            start_server(), tmp_path / f"local{len(running)}.sock", LocalLimits(**bounds) if bounds else None, users
        )
        if model is not None:
            node.server.serve(model)
        running.append(node)
        return node

    yield make
    for node in running:
        node.close()


@pytest.fixture
def node(start, tools) -> Node:
    return start(tools.model())


@pytest.fixture
def connect() -> Iterator[Callable[[Node], Raw]]:
    clients: list[Raw] = []

    def make(node: Node) -> Raw:
        clients.append(Raw(node.path))
        return clients[-1]

    yield make
    for client in clients:
        client.socket.close()


@pytest.fixture
def memory() -> Iterator[Callable[..., int]]:
    """Makes memfds, sealed unless told otherwise."""
    made: list[int] = []

    def make(size: int = 4096, *, seals: int | None = None, flags: int = 0) -> int:
        descriptor = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | flags)
        made.append(descriptor)
        os.ftruncate(descriptor, size)
        wanted = fcntl.F_SEAL_SHRINK if seals is None else seals
        if wanted:
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, wanted)
        return descriptor

    yield make
    for descriptor in made:
        os.close(descriptor)


def plan_of(**more: Any) -> wire.Plan:
    return wire.place([(X, 16)], {"y": 12}, **{"model": "m", **more})


def document(**more: Any) -> Any:
    """The plan as a JSON document with other fields."""
    import msgspec

    return {**msgspec.to_builtins(plan_of()), **more}


def send_document(client: Raw, kind: int, body: Any) -> Raw:
    import msgspec

    json = msgspec.json.encode(body)
    return client.send(wire.HEAD.pack(kind, 0, len(json), 5) + json)


def run(client: Raw, number: int, slot: int = 0, tag: int = 9) -> wire.Message:
    return client.send(wire.head(wire.RUN, number, slot, tag)).read()


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


# Bounds -----------------------------------------------------------------------------------------------


def test_a_flood_of_descriptors_leaves_none_open(node, connect, memory):
    client, descriptor, count = connect(node).greet(), memory(), len(list(Path("/proc/self/fd").iterdir()))
    client.send(wire.head(wire.DESCRIBE, 0, 0, 1), *[descriptor] * 200).error()  # nobody waits for any
    number = client.send(wire.message(wire.OPEN, plan_of(), tag=1)).read()[1]
    for _ in range(5):
        client.send(wire.head(wire.DESCRIBE, 0, 0, 1), *[descriptor] * 200).error()
    assert len(list(Path("/proc/self/fd").iterdir())) <= count + 1
    assert client.send(wire.head(wire.REGION, number, 0, 2), *[descriptor] * 200).read()[0] == wire.OPENED
    assert len(list(Path("/proc/self/fd").iterdir())) <= count + 1  # the mapping has one
    assert run(client, number)[0] == wire.LAYOUT


def test_there_are_limits_to_connections_plans_and_bytes(start, connect, memory, tools):
    node = start(tools.model(), connections=2, plans=2, total_bytes=300)
    first, second, third = connect(node).greet(), connect(node).greet(), connect(node)
    assert "2 local connections are open" in third.error().message
    assert third.ended()
    numbers = [first.open(plan_of(), memory()), first.open(plan_of(), memory())]
    assert "the connection has 2 plans" in first.send(wire.message(wire.OPEN, plan_of(), tag=1)).error().message
    assert "at most 300 are allowed" in second.send(wire.message(wire.OPEN, plan_of(), tag=1)).error().message
    first.send(wire.head(wire.CLOSE, numbers[0], 0, 5))
    assert run(first, numbers[1])[0] == wire.LAYOUT
    assert second.open(plan_of(), memory())


def test_one_plan_at_a_time_waits_for_its_region(node, connect):
    client = connect(node).greet()
    client.send(wire.message(wire.OPEN, plan_of(), tag=1)).read()
    assert "another plan waits for its region" in client.send(wire.message(wire.OPEN, plan_of(), tag=2)).error().message


@pytest.mark.parametrize("begun", [b"", b"\1\0\0", wire.HEAD.pack(wire.OPEN, 0, 100, 1) + b"half"])
def test_half_a_message_is_not_waited_for_for_ever(start, connect, tools, begun):
    node = start(tools.model(), message_s=0.1)
    client = connect(node)
    if len(begun) > 3:
        client.greet()
    client.send(begun) if begun else None
    assert isinstance(client.error(), InputError)
    assert client.ended()


def test_a_client_with_nothing_to_say_is_left_alone(start, connect, memory, tools):
    node = start(tools.model(), message_s=0.05)
    client = connect(node).greet()
    number = client.open(plan_of(), memory())
    node.server.run(asyncio.sleep(0.2))
    assert run(client, number)[0] == wire.LAYOUT


def test_a_client_that_does_not_read_is_not_read_from(node, connect, memory):
    client = connect(node).greet()
    number = client.open(plan_of(), memory())
    client.socket.setblocking(False)
    sent = 0
    block = wire.head(wire.RUN, number, 0, 1) * 64
    refused = 0
    while refused < 3:  # the server had its chance in between
        try:
            sent += client.socket.send(block)
        except BlockingIOError:
            refused += 1
            node.server.call(lambda: None)
        assert sent < 1 << 26, "the server takes everything"
    client.socket.settimeout(WAIT_S)
    answered = 0
    while answered < sent // 16:
        answered += client.read()[0] == wire.DONE
    assert answered == sent // 16


# Who may, and the end ---------------------------------------------------------------------------------


def test_the_socket_is_the_owners_alone_unless_others_are_named(node, start, tools):
    assert node.path.stat().st_mode & 0o777 == 0o600
    assert start(tools.model(), users=(12345,)).path.stat().st_mode & 0o777 == 0o666


OTHER_USER = """
import os, sys
from edgeserve.client.local import LocalClient
from edgeserve.contracts.errors import DeviceError
os.chdir(sys.argv[1])
os.setuid(12345)
try:
    print(LocalClient(sys.argv[2]).model("m").name)
except DeviceError as error:
    print(error.message)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize(("users", "says"), [((), b"user 12345 may not use this server\n"), ((12345,), b"m\n")])
def test_another_user_is_let_in_only_if_named(start, tools, users, says):
    node = start(tools.model(), users=users)
    node.path.chmod(0o666)
    node.path.parent.chmod(0o755)
    ended = subprocess.run(
        [sys.executable, "-c", OTHER_USER, str(node.path.parent), node.path.name],
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert ended.stdout == says, ended.stderr


def test_a_live_server_is_not_pushed_aside_and_a_dead_one_is(node, start, tools, tmp_path):
    other = LocalServer(node.server.loop, node.server.plane)
    with pytest.raises(DeviceError, match="another server listens"):
        node.server.call(other.listen, node.path)
    file = tmp_path / "file"
    file.write_text("precious")
    with pytest.raises(InputError, match="not a socket"):
        node.server.call(other.listen, file)
    assert file.read_text() == "precious"
    stale = tmp_path / "stale.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(stale))
    node.server.call(other.listen, stale)
    Raw(stale).greet().socket.close()
    node.server.run(other.close(0.1))
    assert not stale.exists()


KILLED = """
import sys, time
from edgeserve.client.local import LocalClient
client = LocalClient(sys.argv[1])
session = client.session("m", slots=2)
session.inputs["x"][...] = 1
session.slots[0].start()
print("started", flush=True)
time.sleep(60)
"""


def test_what_a_killed_client_shared_is_gone_when_its_request_is_done(start, tools):
    began, go_on, seen = threading.Event(), threading.Event(), []

    def compute(inputs: Any) -> Any:
        if inputs["x"].any():
            began.set()
            assert go_on.wait(WAIT_S)
            seen.append(float(inputs["x"].sum()))
        return {"y": np.zeros((len(inputs["x"]), 3), np.float32)}

    node = start(tools.model(compute, slow=True))
    client = subprocess.Popen([sys.executable, "-c", KILLED, str(node.path)], stdout=subprocess.PIPE)
    try:
        assert client.stdout is not None
        assert client.stdout.readline() == b"started\n"
        assert began.wait(WAIT_S)
        assert node.state == (1, 256)
        client.send_signal(signal.SIGKILL)
        tools.until(lambda: node.state == (1, 0), "the regions are given back")
        assert "edgeserve-tensors" in Path("/proc/self/maps").read_text()
        go_on.set()
        tools.until(lambda: node.state == (0, 0), "the connection is forgotten")
        assert seen == [4.0]
        tools.until(lambda: "edgeserve-tensors" not in Path("/proc/self/maps").read_text(), "the memory is unmapped")
    finally:
        client.kill()
        client.wait()
        assert client.stdout is not None
        client.stdout.close()


def test_a_plan_that_is_closed_gives_its_memory_back_and_answers_what_runs_with_an_error(start, connect, memory, tools):
    began, go_on = threading.Event(), threading.Event()

    def compute(inputs: Any) -> Any:
        if inputs["x"].any():
            began.set()
            assert go_on.wait(WAIT_S)
        return {"y": np.ones((1, 3), np.float32)}

    node = start(tools.model(compute, slow=True))
    client, descriptor = connect(node).greet(), memory()
    number = client.open(plan_of(), descriptor)
    mmap.mmap(descriptor, 4096)[:16] = b"\1" * 16
    client.send(wire.head(wire.RUN, number, 0, 1))
    assert began.wait(WAIT_S)
    client.send(wire.head(wire.CLOSE, number, 0, 2))
    tools.until(lambda: node.state == (1, 0), "the region is given back")
    go_on.set()
    assert "the plan was closed" in client.error().message
    again = client.open(plan_of(), descriptor)
    assert again != number
    assert run(client, again)[0] == wire.LAYOUT


def test_a_server_that_stops_answers_what_it_has_begun(start, connect, memory, tools):
    began, go_on = threading.Event(), threading.Event()

    def compute(inputs: Any) -> Any:
        if inputs["x"].any():
            began.set()
            assert go_on.wait(WAIT_S)
        return {"y": np.ones((1, 3), np.float32)}

    node = start(tools.model(compute, slow=True))
    client, idle, descriptor = connect(node).greet(), connect(node).greet(), memory()
    number = client.open(plan_of(), descriptor)
    mmap.mmap(descriptor, 4096)[:16] = b"\1" * 16
    client.send(wire.head(wire.RUN, number, 0, 1))
    assert began.wait(WAIT_S)
    closing = asyncio.run_coroutine_threadsafe(node.local.close(WAIT_S), node.server.loop)
    assert idle.ended()
    assert not node.path.exists()
    go_on.set()
    assert client.read()[0] == wire.LAYOUT
    assert client.read()[0] == wire.DONE
    assert client.ended()
    closing.result(WAIT_S)
    assert node.state == (0, 0)
