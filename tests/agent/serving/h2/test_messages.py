from __future__ import annotations

import gc
import gzip
import struct
import threading
import zlib
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeserve_agent.serving.h2.inflating import inflate
from edgeserve_agent.serving.h2.messages import MessageAssembler, MessageMemory, MessageRefusedError
from edgeserve_agent.serving.rpc import StatusCode

LARGE = 20_000
BODIES = st.lists(st.one_of(st.binary(max_size=40), st.integers(0, 40_000).map(lambda size: b"L" * size)), max_size=6)


def _assembler(
    memory: MessageMemory | None = None, *, encoding: str = "identity", most: int = 50_000
) -> MessageAssembler:
    return MessageAssembler(memory or MessageMemory(1 << 20), max_bytes=most, encoding=encoding, time=lambda: 100.0)


def _feed(assembler: MessageAssembler, data: bytes | memoryview) -> Iterator[bytes]:
    view = memoryview(data)
    while view:
        count, message = assembler.take(view)
        view = view[count:]
        if message is not None:
            yield bytes(message)


def _prefixed(body: bytes, flag: int = 0) -> bytes:
    return struct.pack(">BI", flag, len(body)) + body


@given(BODIES, st.lists(st.integers(1, 30_000), max_size=20), st.booleans())
def test_messages_come_whole_however_they_are_split(bodies: list[bytes], cuts: list[int], straight: bool) -> None:
    sent = b"".join(map(_prefixed, bodies))
    assembler, got, position = _assembler(), [], 0
    for cut in [*cuts, len(sent)]:
        piece = memoryview(sent)[position : position + cut]
        position += len(piece)
        room = assembler.room()
        if straight and room is not None and piece:
            count = min(len(room), len(piece))
            room[:count] = piece[:count]
            message = assembler.advance(count)
            if message is not None:
                got.append(bytes(message))
            piece = piece[count:]
        got += _feed(assembler, piece)
    assert got == bodies
    assert not assembler.in_message


@pytest.mark.parametrize(
    ("data", "encoding", "code", "words"),
    [
        (_prefixed(bytes(50_001)), "identity", StatusCode.RESOURCE_EXHAUSTED, "50000"),
        (b"\x00\xff\xff\xff\xff", "identity", StatusCode.RESOURCE_EXHAUSTED, "50000"),
        (_prefixed(b"x", 2), "identity", StatusCode.INTERNAL, "flag"),
        (_prefixed(b"x", 1), "identity", StatusCode.INTERNAL, "compressed"),
    ],
)
def test_refusals(data: bytes, encoding: str, code: StatusCode, words: str) -> None:
    with pytest.raises(MessageRefusedError, match=words) as caught:
        list(_feed(_assembler(encoding=encoding), data))
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("body", "encoding", "code", "words"),
    [
        (gzip.compress(bytes(50_001), mtime=0), "gzip", StatusCode.RESOURCE_EXHAUSTED, "50000"),
        (zlib.compress(bytes(10_000_000)), "deflate", StatusCode.RESOURCE_EXHAUSTED, "50000"),
        (b"no gzip", "gzip", StatusCode.INTERNAL, "gzip"),
        (gzip.compress(b"abc", mtime=0)[:-2], "gzip", StatusCode.INTERNAL, "gzip"),
        (gzip.compress(b"abc", mtime=0) + b"more", "gzip", StatusCode.INTERNAL, "gzip"),
        (b"", "gzip", StatusCode.INTERNAL, "gzip"),
    ],
)
def test_what_cannot_be_decompressed(body: bytes, encoding: str, code: StatusCode, words: str) -> None:
    with pytest.raises(MessageRefusedError, match=words) as caught:
        inflate(body, encoding, limit=1 << 30, max_bytes=50_000)
    assert caught.value.code == code


def test_decompressing_gives_up_at_its_limit() -> None:
    packed = gzip.compress(bytes(50_000))
    assert inflate(packed, "gzip", limit=49_999, max_bytes=50_000) is None
    assert inflate(packed, "gzip", limit=50_000, max_bytes=50_000) == bytes(50_000)


def test_a_message_of_exactly_the_limit_is_taken() -> None:
    assert [len(m) for m in _feed(_assembler(), _prefixed(bytes(50_000)))] == [50_000]


def test_an_uncompressed_message_is_allowed_where_a_way_of_compressing_is_named() -> None:
    assembler = _assembler(encoding="gzip")
    assert list(_feed(assembler, _prefixed(b"packed", 1) + _prefixed(b"plain"))) == [b"packed", b"plain"]
    assert not assembler.compressed


def _new(memory: MessageMemory) -> memoryview:
    data, claim = memory.new(LARGE)
    memory.grow(claim, LARGE)
    return data


def test_a_length_without_bytes_holds_no_memory_and_bytes_hold_in_proportion() -> None:
    memory = MessageMemory(1 << 20)
    whole = _prefixed(bytes(50_000))
    assembler, held = _assembler(memory), []
    for size in (5, 1, 99, 900, 4000, 45_000):
        list(_feed(assembler, whole[:size]))
        whole = whole[size:]
        held.append(memory.held)
    assert held[0] == 0
    assert held[1:] == [4, 400, 4000, 20_000, 0]


def test_a_message_whose_rest_finds_no_memory_is_refused() -> None:
    memory = MessageMemory(40_000)
    assembler = _assembler(memory)
    list(_feed(assembler, _prefixed(bytes(50_000))[:9000]))
    with pytest.raises(MessageRefusedError):
        list(_feed(assembler, bytes(41_005)))
    del assembler
    assert memory.held <= 40_000


def test_memory_counts_for_as_long_as_someone_holds_it() -> None:
    memory = MessageMemory(3 * LARGE)
    held = [_new(memory), memory.adopt(bytes(LARGE)), _new(memory)]
    part = memoryview(held[0])[100:200]
    assert memory.held == 3 * LARGE
    with pytest.raises(MessageRefusedError) as caught:
        memory.reserve(1)
    assert caught.value.code == StatusCode.RESOURCE_EXHAUSTED
    held.clear()
    gc.collect()
    assert memory.held == LARGE, "a slice keeps all of it"
    del part
    assert memory.held == 0


def test_memory_may_be_freed_in_another_thread() -> None:
    memory = MessageMemory(LARGE)
    held = [_new(memory)]
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    assert memory.held == 0


def test_small_messages_are_not_counted() -> None:
    memory = MessageMemory(0)
    assert list(_feed(_assembler(memory), _prefixed(b"small"))) == [b"small"]
    assert memory.adopt(b"small") == b"small"


def test_a_message_has_time_for_its_length() -> None:
    assembler = _assembler()
    assert not assembler.overdue(1e9, grace_s=10, bytes_per_s=1000)
    list(_feed(assembler, _prefixed(bytes(2000))[:50]))
    assert not assembler.overdue(111.9, grace_s=10, bytes_per_s=1000)
    assert assembler.overdue(112.1, grace_s=10, bytes_per_s=1000)
