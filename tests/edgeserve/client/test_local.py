"""The local client against a real server, and the wire format by itself."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from edgeserve.client import local_wire as wire
from edgeserve.client.local import LocalClient
from edgeserve.contracts.errors import (
    ConflictError,
    DeviceError,
    EdgeServeError,
    InputError,
    NotFoundError,
    TransientError,
)
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve.runtimes.base import ONE_DEVICE
from edgeserve_agent.serving.dataplane import DataPlane
from edgeserve_agent.serving.local_server import LocalServer
from edgeserve_agent.serving.opened import Opened
from edgeserve_agent.serving.served import Identity

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the local protocol needs Linux")
WAIT_S = 10.0


class Computing:
    """A loaded model that computes what the test says."""

    executing_device = "simulator"
    fallback = ""
    placement = ONE_DEVICE

    def __init__(self, signature: Signature, compute: Callable[[Mapping[str, Any]], dict[str, Any]]) -> None:
        self.signature = signature
        self.run = compute

    def close(self) -> None:
        """Nothing to do."""


def signature(*specs: TensorSpec) -> Signature:
    return Signature(
        inputs=tuple(spec for spec in specs if spec.name.startswith("x")),
        outputs=tuple(spec for spec in specs if spec.name.startswith("y")),
    )


def spec(name: str, *shape: int, datatype: Datatype = Datatype.FP32) -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=shape)


def rows(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {"y": np.repeat(inputs["x"].sum(axis=1, keepdims=True), 3, axis=1)}


class Local:
    """A data plane with a local socket, on a loop in a thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        self.run(self._start())

    async def _start(self) -> None:
        self.plane = DataPlane(self.loop, workers=1)
        self.server = LocalServer(self.loop, self.plane)
        self.server.listen(self.path)

    def run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(WAIT_S)

    def serve(self, name: str, version: str, model: Computing) -> None:
        release = f"sha256:{int(version):064x}"
        identity = Identity(model=name, version=version, release=release, variant=release)

        async def activate() -> None:
            await self.plane.load(identity, lambda: Opened(model=model, runtime="simulator"))
            self.plane.activate(name, release)

        self.run(activate())

    async def _stop(self) -> None:
        await self.server.close(WAIT_S)
        self.plane.close()

    def close(self) -> None:
        self.run(self._stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


@pytest.fixture
def local(tmp_path) -> Iterator[Local]:
    server = Local(tmp_path / "local.sock")
    server.serve("m", "1", Computing(signature(spec("x", -1, 4), spec("y", -1, 3)), rows))
    yield server
    server.close()


@pytest.fixture
def client(local) -> Iterator[LocalClient]:
    with LocalClient(local.path, timeout_s=WAIT_S) as made:
        yield made


# Calls ------------------------------------------------------------------------------------------------


def test_a_model_infers_on_arrays_of_any_number_of_rows_and_the_caller_owns_the_answer(client):
    model = client.model("m")
    assert (model.name, model.version, model.inputs[0].shape) == ("m", "1", (-1, 4))
    kept = []
    for count in (1, 3, 1, 2, 40):
        array = np.arange(4 * count, dtype=np.float32).reshape(count, 4)
        kept.append((array, model.infer({"x": array})["y"]))
    for array, answer in kept:
        assert answer.tolist() == np.repeat(array.sum(axis=1, keepdims=True), 3, axis=1).tolist()
        assert answer.flags.owndata


def test_a_session_writes_and_reads_the_servers_own_memory(client):
    session = client.session("m", batch=2)
    frame = np.ones((2, 4), np.float32)
    outputs = []
    for factor in range(3):
        session.inputs["x"][...] = frame * factor
        session.run()
        outputs.append(session.outputs["y"])
        assert session.outputs["y"].tolist() == [[4.0 * factor] * 3] * 2
    assert outputs[0] is outputs[1]  # a view, made once


def test_slots_have_their_requests_in_flight_together_and_end_in_any_order(local, client):
    gates = [threading.Event() for _ in range(3)]

    def compute(inputs: Mapping[str, Any]) -> dict[str, Any]:
        row = int(inputs["x"][0, 0])
        if row:
            assert gates[row - 1].wait(WAIT_S)
        return {"y": np.full((1, 3), row, np.float32)}

    # An open second dimension: warm-up on one element fails, so every call runs on a thread.
    def picky(inputs: Mapping[str, Any]) -> dict[str, Any]:
        if inputs["x"].shape[1] == 1:
            raise InputError("too narrow")
        return compute(inputs)

    local.serve("slow", "1", Computing(signature(spec("x", -1, -1), spec("y", -1, 3)), picky))
    session = client.session("slow", {"x": (1, 2)}, slots=3)
    for index, slot in enumerate(session.slots):
        slot.inputs["x"][...] = index + 1
        slot.start()
    with pytest.raises(ConflictError, match="in flight"):
        session.slots[1].start()
    with pytest.raises(TransientError, match="did not answer in time"):
        session.slots[2].wait(timeout_s=0.05)
    for gate in gates:
        gate.set()
    for index in (2, 0, 1):
        assert session.slots[index].wait()["y"].tolist() == [[index + 1.0] * 3]
    assert client.model("m").infer({"x": np.ones((1, 4), np.float32)})["y"][0, 0] == 4.0


def test_texts_go_both_ways_at_any_length(local, client):
    def shout(inputs: Mapping[str, Any]) -> dict[str, Any]:
        return {"y": np.array([text.upper() for text in inputs["x"].ravel()], object).reshape(inputs["x"].shape)}

    texts = signature(spec("x", -1, datatype=Datatype.BYTES), spec("y", -1, datatype=Datatype.BYTES))
    local.serve("shout", "1", Computing(texts, shout))
    model = client.model("shout")
    for given_ in (["a", "bc"], [b"", b"x"], np.array(["long"], object)):
        answer = model.infer({"x": np.array(given_)})["y"]
        assert answer.tolist() == [(t if isinstance(t, bytes) else t.encode()).upper() for t in given_]
    session = client.session("shout", {"x": (1,)}, places={"x": 1 << 20, "y": 1 << 20})
    session.slots[0].set("x", np.array([b"q" * 500_000], object))
    session.run()
    assert session.outputs["y"][0] == b"Q" * 500_000
    with pytest.raises(InputError, match="its place has 1048576"):
        session.slots[0].set("x", np.array([b"q" * (1 << 20)], object))


def test_an_output_whose_shape_only_the_model_knows_is_seen_in_its_shape(local, client):
    def found(inputs: Mapping[str, Any]) -> dict[str, Any]:
        return {"y": np.full((int(inputs["x"][0, 0]), 6), 2, np.float32)}

    local.serve("boxes", "1", Computing(signature(spec("x", 1, 4), spec("y", -1, 6)), found))
    session = client.session("boxes", places={"y": 24 * 200})
    for count in (*range(100), 5, 0, 150):
        session.inputs["x"][...] = count
        session.run()
        assert session.outputs["y"].shape == (count, 6)
        assert (session.outputs["y"] == 2).all()
    session.inputs["x"][...] = 201
    with pytest.raises(InputError, match="output 'y' has 4824 bytes, its place in the region has 4800"):
        session.run()


def test_a_session_follows_the_active_version_and_one_with_a_version_does_not(local, client):
    free, fixed = client.session("m"), client.session("m", version="1")
    local.serve(
        "m", "2", Computing(signature(spec("x", -1, 4), spec("y", -1, 3)), lambda _: {"y": -np.ones((1, 3), "f")})
    )
    for session in (free, fixed):
        session.inputs["x"][...] = 1
        session.run()
    assert free.outputs["y"][0, 0] == -1
    assert fixed.outputs["y"][0, 0] == 4


def test_closed_sessions_take_no_memory_of_the_server_and_their_arrays_stay(local, client):
    sessions = [client.session("m", slots=4) for _ in range(5)]
    assert local.server.mapped_bytes == 5 * 4 * 128
    for session in sessions:
        session.close()
        session.close()
    assert client.model("m").name == "m"  # what was sent before is done
    assert local.server.mapped_bytes == 0
    sessions[0].inputs["x"][...] = 7


def test_no_descriptor_is_left_open(local):
    gc.collect()  # what earlier tests left would be closed in between
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        with LocalClient(local.path) as client:
            client.model("m").infer({"x": np.zeros((1, 4), np.float32)})
    local.run(asyncio.sleep(0.05))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


# Mistakes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({}, "input 'x' is missing"),
        ({"x": np.zeros((1, 4), np.float32), "z": np.zeros(1)}, "input 'z' is not one of the model's"),
        ({"x": np.zeros((1, 4))}, "input 'x' is float64, the model takes FP32"),
        ({"x": np.zeros((1, 5), np.float32)}, r"input 'x' has shape \[1, 5\], the model takes \[-1, 4\]"),
        ({"x": np.zeros(4, np.float32)}, r"input 'x' has shape \[4\]"),
    ],
)
def test_wrong_inputs_are_refused_and_the_connection_goes_on(client, inputs, says):
    model = client.model("m")
    with pytest.raises(InputError, match=says):
        model.infer(inputs)
    assert model.infer({"x": np.ones((1, 4), np.float32)})["y"].shape == (1, 3)


def test_the_servers_errors_keep_their_class_and_hint(local, client):
    with pytest.raises(NotFoundError, match="unknown model 'nope'") as caught:
        client.model("nope")
    assert caught.value.hint

    def breaks(inputs: Mapping[str, Any]) -> dict[str, Any]:
        if inputs["x"].any():
            raise DeviceError("the accelerator is gone", hint="plug it in")
        return {"y": np.zeros((1, 3), np.float32)}

    local.serve("weak", "1", Computing(signature(spec("x", 1, 4), spec("y", 1, 3)), breaks))
    session = client.session("weak")
    session.inputs["x"][...] = 1
    with pytest.raises(DeviceError, match="the accelerator is gone") as failed:
        session.run()
    assert failed.value.hint == "plug it in"
    session.inputs["x"][...] = 0
    session.run()
    assert session.outputs["y"].shape == (1, 3)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"shapes": {"z": (1, 4)}}, "m has no tensor 'z'"),
        ({"shapes": {"x": (1, 5)}}, "has shape"),
        ({"shapes": {"x": (-1, 4)}}, "does not say how large"),
        ({"slots": 65}, "slots"),
        ({"slots": 0}, "slots"),
        ({"batch": 1 << 40}, "do not fit shared memory"),
    ],
)
def test_a_session_that_cannot_be_is_refused(client, options, says):
    with pytest.raises(InputError, match=says):
        client.session("m", **options)
    client.session("m").run()


def test_without_a_server_the_error_says_where_it_was_looked_for(tmp_path):
    with pytest.raises(TransientError, match=r"no server at .*none\.sock"):
        LocalClient(tmp_path / "none.sock")


def test_when_the_server_goes_every_later_call_says_so(local, client):
    session = client.session("m")
    local.run(local.server.close(1.0))
    for _ in range(2):
        with pytest.raises(TransientError, match=r"closed the connection|connection is lost|connection .* broke"):
            session.run()
        session.slots[0].in_flight = False
    with pytest.raises(TransientError, match=r"lost|closed"):
        client.model("m")


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", wire.head(wire.RUN, 0, 0, 1), b"", b"\x11\0\0"]
)
def test_a_server_that_speaks_something_else_is_told_apart(tmp_path, answer):
    path = tmp_path / "other.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            other, _ = listener.accept()
            other.recv(100)
            other.send(answer)
            other.close()

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(TransientError, match=r"does not speak the local protocol|closed the connection|broke"):
            LocalClient(path, timeout_s=WAIT_S)
        thread.join()


# Wire format ------------------------------------------------------------------------------------------

NUMBERS = st.integers(0, 2**32 - 1)
PLAIN = [kind for kind, has_body in wire.FROM_CLIENT.items() if not has_body]
WITH_BODY = [kind for kind, has_body in wire.FROM_CLIENT.items() if has_body]
MESSAGES = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(PLAIN), NUMBERS, NUMBERS, NUMBERS, st.just(b"")),
        st.tuples(st.sampled_from(WITH_BODY), NUMBERS, st.just(0), NUMBERS, st.binary(max_size=100)),
    ),
    max_size=8,
)


@given(messages=MESSAGES, cuts=st.lists(st.integers(0, 1000), max_size=12))
def test_messages_are_read_the_same_however_the_stream_is_cut(messages, cuts):
    messages = [(kind, number, len(body) or extent, tag, body) for kind, number, extent, tag, body in messages]
    messages = [(k, n, len(b) if wire.FROM_CLIENT[k] else e, t, b) for k, n, e, t, b in messages]
    stream = b"".join(wire.HEAD.pack(*message[:4]) + message[4] for message in messages)
    reader, found = wire.MessageReader(wire.FROM_CLIENT), []
    ends = sorted({min(cut, len(stream)) for cut in cuts} | {len(stream)})
    for start, end in zip([0, *ends], ends, strict=False):
        found += reader.take(memoryview(stream)[start:end])
    assert found == messages
    assert not reader.begun


@given(data=st.binary(max_size=200), cut=st.integers(0, 200))
def test_any_bytes_are_messages_or_an_input_error(data, cut):
    reader = wire.MessageReader(wire.FROM_CLIENT)
    try:
        found = [*reader.take(data[:cut]), *reader.take(data[cut:])]
    except InputError:
        return
    assert (
        b"".join(wire.HEAD.pack(*message[:4]) + message[4] for message in found)
        == data[: sum(wire.HEAD.size + len(message[4]) for message in found)]
    )


@given(body=st.binary(max_size=300), kind=st.sampled_from([wire.Plan, wire.Describe, wire.Failed, wire.Layout]))
def test_any_body_is_a_document_or_an_input_error(body, kind):
    with contextlib.suppress(InputError):
        assert isinstance(wire.decode_body(body, kind), kind)


SHAPES = st.lists(st.integers(0, 9), max_size=4).map(tuple)


@given(
    inputs=st.lists(st.tuples(st.sampled_from(list(Datatype)), SHAPES), min_size=1, max_size=6),
    outputs=st.lists(st.integers(0, 5000), max_size=6),
    slots=st.integers(1, 64),
)
def test_tensors_that_are_laid_out_are_aligned_and_do_not_overlap(inputs, outputs, slots):
    specs = [TensorSpec(name=f"x{n}", datatype=datatype, shape=shape) for n, (datatype, shape) in enumerate(inputs)]
    sizes = [100 if s.datatype is Datatype.BYTES else wire.tensor_bytes(s.datatype, s.shape) for s in specs]
    plan = wire.place(
        zip(specs, sizes, strict=True), {f"y{n}": size for n, size in enumerate(outputs)}, model="m", slots=slots
    )
    places = sorted([*plan.inputs, *plan.outputs], key=lambda place: (place.offset, place.byte_size))
    assert all(place.offset % wire.ALIGNMENT == 0 for place in places)
    for one, other in itertools.pairwise(places):
        assert one.offset + one.byte_size <= other.offset or one.byte_size == 0
    assert all(place.offset + place.byte_size <= plan.slot_bytes for place in places)
    assert wire.decode_body(wire.message(wire.OPEN, plan)[wire.HEAD.size :], wire.Plan) == plan


CONTRACTS = [
    kind
    for kind in EdgeServeError.__subclasses__() + InputError.__subclasses__()
    if kind.__module__ == EdgeServeError.__module__  # parts have errors of their own that never cross this wire
]


@pytest.mark.parametrize("kind", CONTRACTS)
def test_every_error_comes_out_of_the_wire_as_it_went_in(kind):
    sent = wire.failed(kind("what", hint="do"), tag=5)
    (message,) = wire.MessageReader(wire.FROM_SERVER).take(sent)
    assert message[3] == 5
    received = wire.error_of(wire.decode_body(message[4], wire.Failed))
    assert (type(received), received.message, received.hint) == (kind, "what", "do")


def test_an_error_of_a_newer_server_is_still_an_error():
    assert type(wire.error_of(wire.Failed(error="Unheard", message="what"))) is EdgeServeError
    assert type(wire.error_of(wire.Failed(error="Final", message="what"))) is EdgeServeError
