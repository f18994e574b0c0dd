"""Both ends of a lane in one process: two regions over the same memfd, as the two processes have them."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgeserve.contracts.errors import DeviceError, EdgeServeError, InputError
from edgeserve.contracts.limits import ISOLATION_REGION_BYTES
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve.runtimes.base import ONE_DEVICE, Tensor, Tensors
from edgeserve_agent.isolation import worker
from edgeserve_agent.isolation.channel import Lane, Shapes, TensorReader, TensorWriter, WorkerGoneError
from edgeserve_agent.isolation.messages import Failure, encode
from edgeserve_agent.isolation.region import Region

NUMBERS = [datatype for datatype in Datatype if datatype is not Datatype.BYTES]


def spec(name: str, datatype: Datatype, rank: int) -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=(-1,) * rank)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
    datatype = draw(st.sampled_from([*NUMBERS, Datatype.BYTES]))
    if datatype is Datatype.BYTES:
        flat = np.array([draw(st.binary(max_size=40)) for _ in range(int(np.prod(shape)))] + [None], object)[:-1]
        return flat.reshape(shape)
    array = draw(hnp.arrays(np.dtype(datatype.numpy_name), shape))
    return array.T if draw(st.booleans()) else array


@pytest.fixture
def ends() -> Iterator[tuple[Region, Region]]:
    with_one = Region.create()
    ours, theirs = with_one, Region(os.dup(with_one.descriptor))
    yield ours, theirs
    ours.close()
    theirs.close()


@given(calls=st.lists(st.lists(tensors(), min_size=1, max_size=4), min_size=1, max_size=4), start=st.integers(0, 300))
def test_what_is_written_is_read(calls: list[list[Tensor]], start: int) -> None:
    ours = Region.create()
    theirs = Region(os.dup(ours.descriptor))
    for arrays in calls:
        named = {str(index): array for index, array in enumerate(arrays)}
        specs = tuple(
            spec(
                name,
                Datatype.BYTES if array.dtype == object else Datatype(array.dtype.name.upper().replace("FLOAT", "FP")),
                array.ndim,
            )
            for name, array in named.items()
        )
        writer, reader = TensorWriter(ours, specs), TensorReader(theirs, specs)
        for _repeated in range(2):
            message = writer.write(named, start)
            found = reader.read(message, start)
            assert list(found) == list(named)
            assert reader.end == writer.end
            for name, array in named.items():
                assert found[name].dtype == array.dtype
                assert found[name].shape == array.shape
                np.testing.assert_array_equal(found[name], array)
    ours.close()
    theirs.close()


def test_a_region_grows_by_need_and_both_ends_see_it(ends: tuple[Region, Region]) -> None:
    ours, theirs = ends
    specs = (spec("x", Datatype.UINT8, 1),)
    writer, reader = TensorWriter(ours, specs), TensorReader(theirs, specs)
    sizes = []
    for count in (1, 100_000, 5, 3_000_000, 3_100_000, 0):
        given = {"x": np.arange(count).astype(np.uint8)}
        np.testing.assert_array_equal(reader.read(writer.write(given, 0), 0)["x"], given["x"])
        sizes.append(os.fstat(ours.descriptor).st_size)
    assert sizes[0] == 65536
    assert sizes == sorted(sizes)
    assert sizes[-1] < 3_100_000 * 1.25
    assert sizes[3] == sizes[4], "inputs that grow slowly do not map anew each time"


def test_beyond_its_bound_a_region_does_not_grow(ends: tuple[Region, Region]) -> None:
    with pytest.raises(InputError, match="256 MiB") as raised:
        ends[0].reserve(ISOLATION_REGION_BYTES + 1)
    assert "fewer rows" in raised.value.hint
    assert os.fstat(ends[0].descriptor).st_size == 0


def test_the_other_process_cannot_take_memory_away(ends: tuple[Region, Region]) -> None:
    ends[0].reserve(100_000)
    with pytest.raises(PermissionError):
        os.ftruncate(ends[1].descriptor, 0)


SPECS = (spec("a", Datatype.FP32, 2), spec("b", Datatype.BYTES, 1))


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\xc1",
        b"\x93\x01\x02",
        encode(Shapes(())),
        encode(Shapes(((8, (1, 2)),))),
        encode(Shapes(((8, (1, 2)), (1 << 60, (1,))))),
        encode(Shapes(((7, (1, 2)), (4, (1,))))),
        encode(Shapes(((8, (1, -2)), (4, (1,))))),
        encode(Shapes(((-8, (1, 2)), (4, (1,))))),
        encode(Shapes(((8, (1, 2)), (4, (2,))))),
        encode(Shapes(((0, (0, 1 << 62)), (4, (1,))))),
        encode(Shapes(((8, (1,) * 70), (4, (1,))))),
    ],
)
def test_a_message_that_lies_is_an_error_and_no_crash(ends: tuple[Region, Region], message: bytes) -> None:
    ends[0].reserve(1000)
    reader = TensorReader(ends[1], SPECS)
    with pytest.raises(DeviceError):
        reader.read(message, 0)
    good = TensorWriter(ends[0], SPECS).write({"a": np.ones((1, 2), np.float32), "b": np.array([b"x"], object)}, 0)
    assert reader.read(good, 0)["b"][0] == b"x"


@given(
    message=st.binary(max_size=60)
    | st.builds(
        lambda parts: encode([parts]),
        st.lists(st.tuples(st.integers(-9, 1 << 63), st.lists(st.integers(-2, 1 << 40), max_size=5)), max_size=3),
    )
)
def test_no_message_whatever_reads_beyond_the_region(message: bytes) -> None:
    region = Region.create()
    region.reserve(256)
    try:
        views = TensorReader(region, SPECS).read(message, 0)
    except DeviceError:
        return
    finally:
        region.close()
    assert views["a"].nbytes <= 65536


class WorkerEnd:
    """The worker's loop on a thread, over a real socket and a real memfd."""

    def __init__(self, compute: Callable[[Mapping[str, Tensor]], Tensors], signature: Signature) -> None:
        self.signature = signature
        self.executing_device = "simulator"
        self.fallback = ""
        self.placement = ONE_DEVICE
        self.run = compute
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        region = Region.create()
        self.lane = Lane(ours, region)
        self.lane.prepare(signature.inputs, signature.outputs)
        self._wire, self._region = theirs, Region(os.dup(region.descriptor))
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        worker.answer_calls(self, self._wire, self._region)
        self._wire.close()
        self._region.close()

    def close(self) -> None:
        self.lane.close()
        self._thread.join()


@pytest.fixture
def lane_to() -> Iterator[Callable[..., Lane]]:
    made: list[WorkerEnd] = []

    def build(compute, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> Lane:
        made.append(WorkerEnd(compute, Signature(inputs=inputs, outputs=outputs)))
        return made[-1].lane

    yield build
    for end in made:
        end.close()


X = (spec("x", Datatype.FP32, 1),)
Y = (spec("y", Datatype.FP32, 1),)


def test_outputs_that_are_the_inputs_themselves_are_right(lane_to) -> None:
    lane = lane_to(lambda inputs: {"y": inputs["x"][::-1]}, X, Y)
    for count in (3, 3, 50_000, 0, 3):
        given = np.arange(count, dtype=np.float32)
        np.testing.assert_array_equal(lane.call({"x": given})["y"], given[::-1])


def test_outputs_larger_than_the_region_let_it_grow(lane_to) -> None:
    lane = lane_to(lambda inputs: {"y": np.repeat(inputs["x"], 100_000)}, X, Y)
    for value in (1.0, 2.0):
        answer = lane.call({"x": np.full(3, value, np.float32)})["y"]
        assert answer.shape == (300_000,)
        assert (answer == value).all()
        assert answer.flags.owndata
        assert answer.flags.writeable


@pytest.mark.parametrize(
    ("compute", "kind", "message"),
    [
        (lambda inputs: {"y": inputs["x"].astype(np.float64)}, DeviceError, "'y' is of type float64"),
        (lambda inputs: {}, DeviceError, "KeyError"),
        (lambda inputs: {"y": np.zeros(ISOLATION_REGION_BYTES // 4, np.float32)}, InputError, "256 MiB"),
        (lambda inputs: 1 / 0, DeviceError, "ZeroDivisionError in the worker process"),
    ],
    ids=["datatype", "missing", "too large", "raised"],
)
def test_a_model_that_breaks_its_word_fails_the_call_and_not_the_lane(lane_to, compute, kind, message: str) -> None:
    def twice(inputs):
        return {"y": inputs["x"] * 2} if inputs["x"][0] else compute(inputs)

    lane = lane_to(twice, X, Y)
    with pytest.raises(EdgeServeError, match=message) as raised:
        lane.call({"x": np.zeros(1, np.float32)})
    assert type(raised.value) is kind
    assert lane.in_step
    assert lane.call({"x": np.ones(1, np.float32)})["y"] == [2.0]


@pytest.mark.parametrize(
    "answer", [b"\xc1", b"\x81\xa1x", encode(Shapes(())), encode(Failure(kind="?", message=""))[:-1]]
)
def test_nonsense_from_the_worker_leaves_the_lane_out_of_step(answer: bytes) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    lane = Lane(ours, Region.create())
    lane.prepare(X, Y)
    theirs.send(answer)
    with pytest.raises(DeviceError):
        lane.call({"x": np.ones(1, np.float32)})
    assert not lane.in_step
    lane.close()
    theirs.close()


@pytest.mark.parametrize("when", ["before", "unread", "read"])
def test_a_worker_that_is_gone_is_told_from_one_that_left_in_mid_call(when: str) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    lane = Lane(ours, Region.create())
    lane.prepare(X, Y)

    def leave() -> None:
        theirs.recv(100, socket.MSG_PEEK if when == "unread" else 0)
        theirs.close()

    leaver = threading.Thread(target=leave)
    if when == "before":
        theirs.close()
    else:
        leaver.start()
    with pytest.raises(WorkerGoneError) as raised:
        lane.call({"x": np.ones(1, np.float32)})
    assert raised.value.begun is (when == "read")
    if when != "before":
        leaver.join()
    lane.close()


def test_errors_cross_with_class_message_and_hint() -> None:
    class NarrowError(InputError):
        """Not one that the other side knows."""

    for error, kind in (
        (InputError("a", hint="b"), InputError),
        (NarrowError("a", hint="b"), InputError),
        (DeviceError("a", hint="b"), DeviceError),
    ):
        again = Failure.of(error).error()
        assert (type(again), again.message, again.hint) == (kind, "a", "b")
    assert type(Failure.of(MemoryError()).error()) is DeviceError
    assert len(Failure.of(InputError("x" * 10**6)).message) < 10_000
