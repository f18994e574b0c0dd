"""Frames from a handler's process: whatever it sends becomes the tensors asked for, or an error of the device."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgeserve.contracts.errors import DeviceError, InputError
from edgeserve.contracts.limits import HANDLER_HEAD_BYTES, HANDLER_TENSOR_BYTES
from edgeserve.contracts.tensors import Datatype, TensorSpec, datatype_of
from edgeserve.runtimes.handler_frames import Answer, BrokenFrameError, Call, Failed, Part, Wire, pack

SPEC = TensorSpec(name="y", datatype=Datatype.FP32, shape=(-1, 2))


@pytest.fixture
def pair() -> Iterator[tuple[Wire, socket.socket]]:
    ours, theirs = socket.socketpair()
    wire = Wire(ours)
    wire.set_deadline(10)
    with theirs:
        yield wire, theirs
    wire.close()


def head(*parts: Part) -> bytes:
    data = msgspec.msgpack.encode(Answer(parts=parts))
    return struct.pack("<I", len(data)) + data


@given(
    array=arrays.arrays(
        st.sampled_from(["float32", "float64", "float16", "int8", "uint64", "bool"]),
        arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
    )
)
def test_a_tensor_arrives_as_it_was_sent(array: np.ndarray) -> None:
    ours, theirs = socket.socketpair()
    sender, receiver = Wire(theirs), Wire(ours)
    spec = TensorSpec(name="t", datatype=datatype_of(array.dtype.name), shape=array.shape)
    parts, blobs = pack({"t": array})
    sender.send(Answer(parts=parts), blobs)
    answer = receiver.receive(Answer)
    (found,) = receiver.receive_tensors(answer.parts, [spec], "run").values()
    sender.close()
    receiver.close()
    assert found.dtype == array.dtype
    assert found.shape == array.shape
    assert found.tobytes() == array.tobytes()


@given(data=st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_broken_frame(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    wire = Wire(ours)
    theirs.sendall(data)
    theirs.close()
    try:
        answer = wire.receive(Answer | Failed)
        if isinstance(answer, Answer):
            wire.receive_tensors(answer.parts, [SPEC], "run")
    except (DeviceError, EOFError):
        pass
    finally:
        wire.close()


@given(
    shape=st.lists(st.integers(-(1 << 62), 1 << 62), max_size=20).map(tuple),
    size=st.integers(-(1 << 62), 1 << 62),
    name=st.text(max_size=5) | st.just("y"),
    dtype=st.sampled_from(["float32", "object", "no such"]),
)
def test_any_head_is_taken_at_its_word_only_when_it_fits(shape, size: int, name: str, dtype: str) -> None:
    ours, theirs = socket.socketpair()
    wire = Wire(ours)
    theirs.close()
    try:
        tensors = wire.receive_tensors([Part(name, dtype, shape, size)], [SPEC], "run")
        assert tensors["y"].shape == shape
        assert tensors["y"].size == 0 == size
    except (DeviceError, EOFError):
        pass
    finally:
        wire.close()


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (Part("y", "float32", (1, 2), 7), "has 7 bytes"),
        (Part("y", "float32", (1, 2), HANDLER_TENSOR_BYTES + 1), "more than"),
        (Part("y", "float32", (1, 2), -1), "more than"),
        (Part("y", "float32", (1 << 61, 2), 8), "has 8 bytes"),
    ],
)
def test_a_head_that_contradicts_itself_breaks_the_connection(pair, part: Part, message: str) -> None:
    wire, _theirs = pair
    with pytest.raises(BrokenFrameError, match=message):
        wire.receive_tensors([part], [SPEC], "run")


def test_after_a_wrong_answer_the_next_one_is_read_from_its_start(pair) -> None:
    wire, theirs = pair
    right = np.ones((1, 2), np.float32)
    theirs.sendall(head(Part("z", "float32", (25_000,), 100_000)) + bytes(100_000))
    with pytest.raises(DeviceError, match="returned 'z', not 'y'"):
        wire.receive_tensors(wire.receive(Answer).parts, [SPEC], "run")
    theirs.sendall(head(Part("y", "float32", (1, 2), 8)) + right.tobytes())
    assert wire.receive_tensors(wire.receive(Answer).parts, [SPEC], "run")["y"].tolist() == [[1, 1]]


def test_every_byte_of_a_bool_is_made_legal(pair) -> None:
    wire, theirs = pair
    theirs.sendall(b"\x00\x01\xff")
    spec = TensorSpec(name="b", datatype=Datatype.BOOL, shape=(3,))
    (found,) = wire.receive_tensors([Part("b", "bool", (3,), 3)], [spec], "run").values()
    assert found.view(np.uint8).tolist() == [0, 1, 1]


def test_a_head_beyond_the_limit_is_neither_sent_nor_believed(pair) -> None:
    wire, theirs = pair
    theirs.sendall(struct.pack("<I", HANDLER_HEAD_BYTES + 1))
    with pytest.raises(BrokenFrameError, match="head of"):
        wire.receive(Answer)
    with pytest.raises(InputError, match="at most"):
        wire.send(Call(step="run", parts=tuple(Part("x" * 200, "int8", (1,), 1) for _ in range(1000))))


def test_inputs_beyond_the_limit_are_the_clients_to_mend() -> None:
    large = np.broadcast_to(np.zeros(1, np.int8), (HANDLER_TENSOR_BYTES + 1,))
    with pytest.raises(InputError, match="256 MiB"):
        pack({"x": large})


def test_a_passed_deadline_is_a_timeout(pair) -> None:
    wire, _theirs = pair
    wire.set_deadline(0)
    with pytest.raises(TimeoutError):
        wire.receive(Answer)
