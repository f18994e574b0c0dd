"""Frames at random, mutated, cut anywhere: nothing but the protocol's own end comes of it, in bounded memory.

`EDGESERVE_FUZZ=100000` sets the number of examples.
"""

from __future__ import annotations

import gc
import gzip
import logging
import os
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeserve.contracts.limits import H2_RESET_MEMORY, MAX_CACHED_BLOCKS
from edgeserve_agent.serving.rpc import StatusCode

EXAMPLES = int(os.environ.get("EDGESERVE_FUZZ", "60"))
LIMITS = {
    "concurrent_streams": 4,
    "head_bytes": 4096,
    "message_bytes": 100_000,
    "messages_bytes": 250_000,
    "read_buffer_bytes": 8192,
    "idle_frames": 40,
    "resets": 10,
    "head_s": 10,
    "idle_s": 30,
}


class Zeros(bytes):
    """Zeros that a report of a failure does not write out."""

    def __repr__(self) -> str:
        return f"bytes({len(self)})"


METHODS = st.sampled_from(["Echo", "Echo", "Hold", "Later", "Size", "Early", "Pieces", "Fail", "Unknown"])


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, stream) + payload


def _text(name: str, value: str) -> bytes:
    return b"\x00" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


def _indexed(name: str, value: str) -> bytes:
    return b"\x40" + _text(name, value)[1:]


def _head(method: str, extra: bytes) -> bytes:
    path = _text(":path", f"/test.Echo/{method}")
    return b"\x83\x86" + path + _indexed("content-type", "application/grpc") + extra


EXTRAS = st.one_of(
    st.just(b""),
    st.sampled_from(
        [
            _text("grpc-encoding", "gzip"),
            _text("grpc-timeout", "50m"),
            _text("content-length", "7"),
            _indexed("k", "v"),
            _text("Bad", "x"),
        ]
    ),
)
BODIES = st.one_of(
    st.sampled_from([b"", b"1", b"77", b"50000", b"99999", gzip.compress(bytes(90_000))]),
    st.integers(0, 30_000).map(Zeros),
    st.binary(max_size=30),
)
WORDS = st.one_of(st.integers(1, 70_000), st.sampled_from([0, 2**31 - 1, 2**32 - 1]))
SETTINGS = st.one_of(
    st.tuples(st.just(4), st.one_of(st.integers(0, 200_000), st.just(2**31 - 1))),
    st.tuples(st.just(5), st.integers(16_384, 100_000)),
    st.tuples(st.sampled_from([1, 3, 6, 99]), st.integers(0, 5000)),
)
WHICH = st.integers(0, 3)
"""The newest open stream, or one of those before it."""
PADDING = st.none() | st.integers(0, 255)
ENDS = st.booleans()

GOOD = st.one_of(
    st.tuples(st.just("call"), METHODS, EXTRAS, BODIES, PADDING),
    st.tuples(st.just("open"), METHODS, EXTRAS, st.integers(0, 3)),
    st.tuples(st.just("data"), WHICH, BODIES, PADDING, ENDS),
    st.tuples(st.just("prefix"), WHICH, st.sampled_from([0, 0, 0, 1, 2]), st.integers(0, 120_000)),
    st.tuples(st.just("piece"), WHICH, st.integers(0, 30_000).map(Zeros), PADDING, ENDS),
    st.tuples(st.just("window"), st.none() | WHICH, st.integers(1, 70_000)),
    st.tuples(st.just("settings"), SETTINGS),
    st.tuples(st.just("reset"), WHICH),
    st.tuples(st.just("ping")),
)
STREAMS = st.one_of(st.integers(0, 12), st.integers(0, 2**32 - 1))
BAD = st.one_of(
    st.tuples(st.just("window"), st.none() | WHICH, WORDS),
    st.tuples(
        st.just("bytes"),
        st.one_of(
            st.builds(_frame, st.integers(0, 12), st.integers(0, 255), STREAMS, st.binary(max_size=50)),
            st.builds(lambda f, s, b: _frame(9, f, s, b), st.sampled_from([0, 4]), STREAMS, st.binary(max_size=20)),
            st.binary(max_size=20),
        ),
    ),
)
AROUND = st.one_of(
    st.floats(0.0, 12.0),
    st.sampled_from(["stop reading", "read again", "finish", "late", "late", "finish", "eof", "drain"]),
)
ACTIONS = st.lists(st.one_of(*[GOOD] * 4, AROUND), min_size=3, max_size=40)
MUTATION = st.none() | st.tuples(st.integers(0, 40), st.integers(0, 200), st.integers(1, 255))
INSERTION = st.none() | st.tuples(st.integers(0, 40), BAD)


class Script:
    """Bytes of a client out of what it means to do."""

    def __init__(self) -> None:
        self._open_streams: list[int] = []
        self._next = 1

    def write(self, action: tuple[Any, ...]) -> bytes:
        kind, *details = action
        first = b"" if self._open_streams or kind == "call" else self._open("Echo", b"", 0)
        return first + bytes(getattr(self, f"_{kind}")(*details))

    def _stream(self, which: int) -> int:
        return self._open_streams[-1 - which % len(self._open_streams)]

    def _call(self, method: str, extra: bytes, body: bytes, padding: int | None) -> bytes:
        return self._open(method, extra, 0) + self._data(0, body, padding, True)

    def _open(self, method: str, extra: bytes, pieces: int) -> bytes:
        number = self._next
        self._next += 2
        self._open_streams.append(number)
        block = _head(method, extra)
        if not pieces:
            return _frame(1, 4, number, block)
        cuts = [block[i * 20 : i * 20 + 20 if i < pieces else None] for i in range(pieces + 1)]
        frames = [_frame(9 if i else 1, 4 if i == pieces else 0, number, cut) for i, cut in enumerate(cuts)]
        return b"".join(frames)

    def _data(self, which: int, body: bytes, padding: int | None, ends: bool) -> bytes:
        flag = int(body[:2] == b"\x1f\x8b")
        return self._piece(which, struct.pack(">BI", flag, len(body)) + body, padding, ends)

    def _prefix(self, which: int, flag: int, size: int) -> bytes:
        return _frame(0, 0, self._stream(which), struct.pack(">BI", flag, size))

    def _piece(self, which: int, data: bytes, padding: int | None, ends: bool) -> bytes:
        number = self._stream(which)
        if ends:
            self._open_streams.remove(number)
        if padding is None:
            return _frame(0, int(ends), number, data)
        return _frame(0, 8 | ends, number, bytes([padding]) + data + bytes(padding))

    def _window(self, which: int | None, increment: int) -> bytes:
        return _frame(8, 0, 0 if which is None else self._stream(which), struct.pack(">I", increment))

    def _settings(self, setting: tuple[int, int]) -> bytes:
        return _frame(4, 0, 0, struct.pack(">HI", *setting))

    def _reset(self, which: int) -> bytes:
        number = self._stream(which)
        self._open_streams.remove(number)
        return _frame(3, 0, number, struct.pack(">I", 8))

    def _ping(self) -> bytes:
        return _frame(6, 0, 0, bytes(8))

    def _bytes(self, data: bytes) -> bytes:
        return data


def act(world: Any, peer: Any, action: Any) -> None:
    """What is not bytes."""
    if isinstance(action, float):
        world.loop.advance(action)
    elif action == "stop reading":
        peer.transport.reads = False
    elif action == "read again":
        peer.transport.read_all()
    elif peer.transport.closed:
        return
    elif action == "eof":
        if not peer.connection.eof_received():
            peer.transport.close()
    elif action == "drain":
        peer.connection.drain()
    else:
        for call in world.service.calls:
            if action == "late":
                call.send((b"x" * 20_000,))
            else:
                call.finish(StatusCode.ABORTED, "by the test")
        world.loop.run()


def check_bounds(peer: Any) -> None:
    streams, reader = peer.connection._streams, peer.connection._reader
    assert len(streams.open) <= LIMITS["concurrent_streams"]
    assert len(streams._forgotten) <= H2_RESET_MEMORY
    assert len(streams._decoder.known) <= MAX_CACHED_BLOCKS
    assert len(reader._kept) <= LIMITS["head_bytes"] + 512
    assert reader._block is None or sum(map(len, reader._block)) <= LIMITS["head_bytes"]
    assert set(peer.connection._writer._waiting) <= set(streams.open.values())


@pytest.fixture(autouse=True)
def _unlogged() -> Iterator[None]:
    """pytest keeps what is logged, and a traceback keeps the message that was being answered."""
    logger = logging.getLogger("edgeserve_agent.serving.h2.stream")
    logger.disabled = True
    yield
    logger.disabled = False


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(ACTIONS, INSERTION, MUTATION, st.lists(st.integers(1, 9000), max_size=20))
def test_a_hostile_client_ends_its_own_connection_at_most(
    make_world: Callable[..., Any],
    h2: Any,
    actions: list[Any],
    insertion: tuple[int, tuple[Any, ...]] | None,
    mutation: tuple[int, int, int] | None,
    reads: list[int],
) -> None:
    world = make_world(**LIMITS)
    peer, honest = world.connect(), world.connect()
    script = Script()
    if insertion is not None:
        actions = [*actions[: insertion[0]], insertion[1], *actions[insertion[0] :]]
    for count, action in enumerate(actions):
        if not isinstance(action, tuple):
            act(world, peer, action)
            continue
        sent = script.write(action)
        if mutation is not None and mutation[0] == count and sent:
            changed = bytearray(sent)
            changed[mutation[1] % len(sent)] ^= mutation[2]
            sent = bytes(changed)
        while sent:
            size = reads.pop() if reads else len(sent)
            peer.send(sent[:size])
            sent = sent[size:]
            check_bounds(peer)
    h2.split(bytes(peer.transport.written))
    if not honest.transport.closed:
        assert honest.send(h2.call(1)).responses()[1].messages == [b"hi"]
    for one in (peer, honest):
        one.transport.close()
    world.loop.advance(100)
    assert not world.server._connections
    assert not world.server._watched
    assert all(call.cancelled or call.finished for call in world.service.calls)
    world.service.calls.clear()
    del peer
    if world.server.memory.held:
        gc.collect()
    assert world.server.memory.held == 0


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.binary(max_size=300), st.lists(st.integers(1, 40), max_size=20))
def test_any_bytes_at_all(make_world: Callable[..., Any], h2: Any, sent: bytes, reads: list[int]) -> None:
    for hello in (b"", h2.PREFACE, h2.HELLO):
        peer = make_world(**LIMITS).connect(hello=hello)
        left = sent
        for read in [*reads, len(sent)]:
            peer.send(left[:read])
            left = left[read:]
            check_bounds(peer)
        assert len(peer.transport.written) < 4096 + 20 * len(sent)
