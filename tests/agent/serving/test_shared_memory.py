"""Triton's system shared memory. What `qa/L0_shared_memory` asserts is asserted here, too, with a foreign client."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeserve.contracts.errors import ConflictError, InputError, NotFoundError
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve_agent.serving.http_server import HttpServer
from edgeserve_agent.serving.regions import RegionRef, RegionStatus
from edgeserve_agent.serving.rest.api import Api
from edgeserve_agent.serving.rest.shared_memory import SharedMemoryApi
from edgeserve_agent.serving.rest.v2 import V2
from edgeserve_agent.serving.shared_memory import SharedMemory, SharedMemoryLimits
from edgeserve_agent.serving.workers import Workers

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="POSIX shared memory as Linux has it")
SHM = Path("/dev/shm")
SIMPLE = Signature(
    inputs=tuple(TensorSpec(name=f"INPUT{n}", datatype=Datatype.INT32, shape=(-1, 16)) for n in (0, 1)),
    outputs=tuple(TensorSpec(name=f"OUTPUT{n}", datatype=Datatype.INT32, shape=(-1, 16)) for n in (0, 1)),
)

Make = Callable[..., str]


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes objects of shared memory and returns their keys."""
    made: list[Path] = []

    def create(size: int = 64, *, name: str = "", mode: int = 0o600) -> str:
        path = SHM / (name or f"edgeserve-test-{os.getpid()}-{len(made)}")
        path.write_bytes(b"")
        made.append(path)
        os.truncate(path, size)
        path.chmod(mode)
        return f"/{path.name}"

    yield create
    for path in made:
        path.unlink(missing_ok=True)


def object_of(key: str) -> Path:
    return SHM / key[1:]


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


# Registering ------------------------------------------------------------------------------------------


def test_a_region_that_was_registered_is_listed_and_shows_the_memory_of_the_object(make):
    regions, key = SharedMemory(), make(128)
    object_of(key).write_bytes(bytes(range(128)))
    regions.register("a", key, 32, 64)
    assert regions.status() == regions.status("a") == [RegionStatus(name="a", key=key, offset=32, byte_size=64)]
    view = regions.view(RegionRef("a", 8, 4))
    assert bytes(view) == bytes(range(40, 44))
    view[0] = 99
    assert object_of(key).read_bytes()[40] == 99


def test_an_offset_that_no_page_begins_at_is_possible_beyond_the_first_page(make):
    regions, key = SharedMemory(), make(3 * 4096)
    with object_of(key).open("r+b") as file:
        file.seek(5000)
        file.write(b"here")
    regions.register("a", key, 5000, 4)
    assert bytes(regions.view(RegionRef("a", 0, 4))) == b"here"


def test_the_same_name_again_is_refused_in_tritons_words_and_changes_nothing(make):
    regions, key = SharedMemory(), make()
    regions.register("a", key, 0, 64)
    before = regions.generation
    with pytest.raises(ConflictError, match="shared memory region 'a' already in manager"):
        regions.register("a", key, 0, 8)
    assert regions.status("a")[0].byte_size == 64
    assert regions.generation == before


def test_one_object_may_have_several_names(make):
    regions, key = SharedMemory(), make()
    regions.register("a", key, 0, 64)
    regions.register("b", key, 0, 32)
    regions.view(RegionRef("a", 0, 1))[0] = 7
    assert regions.view(RegionRef("b", 0, 1))[0] == 7


@pytest.mark.parametrize(
    ("offset", "size"),
    [(0, 65), (1, 64), (64, 1), (65, 0), (0, 0), (-8, 64), (0, -1), (2**64 - 32, 64), (64, 2**64 - 1), (2**63, 2**63)],
)
def test_a_part_that_the_object_does_not_hold_is_refused(make, offset, size):
    regions, key, before = SharedMemory(SharedMemoryLimits(total_bytes=1 << 70)), make(64), descriptors()
    with pytest.raises(InputError, match="failed to register shared memory region 'a': invalid args"):
        regions.register("a", key, offset, size)
    assert regions.status() == []
    assert descriptors() == before


@pytest.mark.parametrize("key", ["", "/", "//x", "/../etc/passwd", "/a/b", "..", ".", "/..", "a\0b", "/" + "x" * 256])
def test_what_is_no_key_of_shared_memory_is_refused(key):
    with pytest.raises(InputError, match="is not a key of shared memory"):
        SharedMemory().register("a", key, 0, 64)


@pytest.mark.parametrize("name", ["triton_python_backend_shm_region_1", "sem.lock"])
def test_objects_that_belong_to_others_by_their_names_are_refused(make, name):
    key = make(name=f"{name}-edgeserve-{os.getpid()}")
    for spelled in (key, key[1:]):
        with pytest.raises(InputError, match="as the key contains the reserved prefix"):
            SharedMemory().register("a", spelled, 0, 64)


def test_an_object_that_is_not_there_is_said_to_be_missing():
    with pytest.raises(NotFoundError, match="Unable to open shared memory region: '/edgeserve-none'"):
        SharedMemory().register("a", "/edgeserve-none", 0, 64)


def test_a_link_is_not_followed_and_a_fifo_does_not_hang(make, tmp_path):
    target, link, fifo = (
        tmp_path / "secret",
        SHM / f"edgeserve-link-{os.getpid()}",
        SHM / f"edgeserve-fifo-{os.getpid()}",
    )
    target.write_bytes(bytes(64))
    try:
        link.symlink_to(target)
        os.mkfifo(fifo)
        for path in (link, fifo):
            with pytest.raises(InputError, match="shared memory region"):
                SharedMemory().register("a", f"/{path.name}", 0, 64)
    finally:
        link.unlink(missing_ok=True)
        fifo.unlink(missing_ok=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize(("mode", "taken"), [(0o600, False), (0o644, False), (0o660, False), (0o666, True)])
def test_the_servers_root_rights_open_nobody_elses_memory(make, mode, taken):
    key, regions = make(mode=mode), SharedMemory()
    os.chown(object_of(key), 12345, 12345)
    if taken:
        regions.register("a", key, 0, 64)
    else:
        with pytest.raises(InputError, match="belongs to another user"):
            regions.register("a", key, 0, 64)
    assert len(regions.status()) == taken


def test_there_is_a_limit_to_regions_and_to_all_their_bytes(make):
    regions, key = SharedMemory(SharedMemoryLimits(regions=2, total_bytes=100)), make(64)
    regions.register("a", key, 0, 64)
    with pytest.raises(InputError, match="at most 100 are allowed"):
        regions.register("b", key, 0, 37)
    regions.register("b", key, 0, 36)
    with pytest.raises(InputError, match="2 regions are registered"):
        regions.register("c", key, 0, 0)
    regions.unregister("a")
    regions.register("c", key, 0, 64)


@pytest.mark.parametrize("name", ["", "x" * 256])
def test_a_region_needs_a_name(make, name):
    with pytest.raises(InputError, match="1 to 255 characters"):
        SharedMemory().register(name, make(), 0, 64)


# Unregistering ----------------------------------------------------------------------------------------


def test_a_region_can_be_unregistered_before_it_was_registered_and_after(make):
    regions, key = SharedMemory(), make()
    regions.unregister("a")
    regions.register("a", key, 0, 64)
    regions.unregister("a")
    assert regions.status() == []
    with pytest.raises(NotFoundError, match="Unable to find system shared memory region: 'a'"):
        regions.status("a")


def test_unregistering_without_a_name_forgets_all_and_leaks_no_descriptor(make):
    regions, key, before = SharedMemory(), make(), descriptors()
    for number in range(8):
        regions.register(f"r{number}", key, 0, 64)
    regions.unregister()
    assert regions.status() == []
    assert descriptors() == before


def test_a_view_outlives_its_region(make):
    regions, key = SharedMemory(), make()
    regions.register("a", key, 0, 64)
    view = regions.view(RegionRef("a", 0, 4))
    regions.unregister("a")
    object_of(key).unlink()
    view[:] = b"live"
    assert bytes(view) == b"live"


def test_the_generation_rises_with_every_change(make):
    regions, key = SharedMemory(), make()
    seen = [regions.generation]
    for change in (lambda: regions.register("a", key, 0, 64), regions.unregister):
        change()
        seen.append(regions.generation)
    assert seen == sorted(set(seen))


# Views ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ref", "says"),
    [
        (RegionRef("b", 0, 1), "Unable to find shared memory region: 'b'"),
        (RegionRef("a", 64, 0), "Invalid offset for shared memory region: 'a'"),
        (RegionRef("a", 2**64 - 32, 64), "Invalid offset for shared memory region: 'a'"),
        (RegionRef("a", -1, 4), "Invalid offset for shared memory region: 'a'"),
        (RegionRef("a", 32, 33), r"Invalid offset \+ byte size for shared memory region: 'a'"),
        (RegionRef("a", 1, 2**64 - 1), r"Invalid offset \+ byte size for shared memory region: 'a'"),
        (RegionRef("a", 4, -4), r"Invalid offset \+ byte size for shared memory region: 'a'"),
    ],
)
def test_a_view_beyond_the_region_is_refused_in_tritons_words(make, ref, says):
    regions = SharedMemory()
    regions.register("a", make(128), 0, 64)
    with pytest.raises(InputError, match=says):
        regions.view(ref)


@given(offset=st.integers(-70, 140), size=st.integers(-70, 140), start=st.integers(0, 64), length=st.integers(1, 64))
def test_a_view_is_exactly_what_was_asked_for_or_refused(offset, size, start, length):
    key = f"edgeserve-any-{os.getpid()}"
    (SHM / key).write_bytes(bytes(range(128)))
    regions = SharedMemory()
    try:
        regions.register("a", key, start, length)
        fits = 0 <= offset < length and size >= 0 and offset + size <= length
        if fits:
            assert bytes(regions.view(RegionRef("a", offset, size))) == bytes(range(128))[start + offset :][:size]
        else:
            with pytest.raises(InputError, match="Invalid offset"):
                regions.view(RegionRef("a", offset, size))
    finally:
        regions.unregister()
        (SHM / key).unlink()


def test_an_object_that_was_shrunk_gives_an_error_and_no_signal(make):
    regions, key = SharedMemory(), make(8192)
    regions.register("a", key, 0, 8192)
    os.truncate(object_of(key), 4096)
    with pytest.raises(InputError, match="has become smaller"):
        regions.view(RegionRef("a", 0, 4))


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
