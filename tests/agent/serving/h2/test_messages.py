from __future__ import annotations

import gc
import gzip
import struct
import threading
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeserve_agent.serving.h2.messages import MessageAssembler, MessageMemory, MessageRefusedError
from edgeserve_agent.serving.rpc import StatusCode

LARGE = 20_000
BODIES = st.lists(st.one_of(st.binary(max_size=40), st.integers(0, 40_000).map(lambda size: b"L" * size)), max_size=6)


def _assembler(
    memory: MessageMemory | None = None, *, encoding: str = "identity", most: int = 50_000
) -> MessageAssembler:
    return MessageAssembler(memory or MessageMemory(1 << 20), max_bytes=most, encoding=encoding, time=lambda: 100.0)


def _prefixed(body: bytes, flag: int = 0) -> bytes:
    return struct.pack(">BI", flag, len(body)) + body


@given(BODIES, st.lists(st.integers(1, 30_000), max_size=20), st.sampled_from(["identity", "gzip"]), st.booleans())
def test_messages_come_whole_however_they_are_split(
    bodies: list[bytes], cuts: list[int], encoding: str, straight: bool
) -> None:
    compressed = encoding == "gzip"
    sent = b"".join(_prefixed(gzip.compress(body), 1) if compressed else _prefixed(body) for body in bodies)
    assembler, got, position = _assembler(encoding=encoding), [], 0
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
        got += [bytes(message) for message in assembler.feed(piece)]
    assert got == bodies
    assert not assembler.in_message


@pytest.mark.parametrize(
    ("data", "encoding", "code", "words"),
    [
        (_prefixed(bytes(50_001)), "identity", StatusCode.RESOURCE_EXHAUSTED, "50000"),
        (b"\x00\xff\xff\xff\xff", "identity", StatusCode.RESOURCE_EXHAUSTED, "50000"),
        (_prefixed(gzip.compress(bytes(50_001)), 1), "gzip", StatusCode.RESOURCE_EXHAUSTED, "50000"),
        (_prefixed(zlib.compress(bytes(10_000_000)), 1), "deflate", StatusCode.RESOURCE_EXHAUSTED, "50000"),
        (_prefixed(b"x", 2), "identity", StatusCode.INTERNAL, "flag"),
        (_prefixed(b"x", 1), "identity", StatusCode.INTERNAL, "compressed"),
        (_prefixed(b"no gzip", 1), "gzip", StatusCode.INTERNAL, "gzip"),
        (_prefixed(gzip.compress(b"abc")[:-2], 1), "gzip", StatusCode.INTERNAL, "gzip"),
        (_prefixed(gzip.compress(b"abc") + b"more", 1), "gzip", StatusCode.INTERNAL, "gzip"),
        (_prefixed(b"", 1), "gzip", StatusCode.INTERNAL, "gzip"),
    ],
)
def test_refusals(data: bytes, encoding: str, code: StatusCode, words: str) -> None:
    with pytest.raises(MessageRefusedError, match=words) as caught:
        list(_assembler(encoding=encoding).feed(memoryview(data)))
    assert caught.value.code == code


def test_a_message_of_exactly_the_limit_is_taken() -> None:
    assert [len(m) for m in _assembler().feed(memoryview(_prefixed(bytes(50_000))))] == [50_000]
    packed = _prefixed(gzip.compress(bytes(50_000)), 1)
    assert [len(m) for m in _assembler(encoding="gzip").feed(memoryview(packed))] == [50_000]


def test_an_uncompressed_message_is_allowed_where_a_way_of_compressing_is_named() -> None:
    assert [bytes(m) for m in _assembler(encoding="gzip").feed(memoryview(_prefixed(b"plain")))] == [b"plain"]


def test_memory_counts_for_as_long_as_someone_holds_it() -> None:
    memory = MessageMemory(3 * LARGE)
    held = [memory.new(LARGE), memory.adopt(bytes(LARGE)), memory.new(LARGE)]
    part = memoryview(held[0])[100:200]
    assert memory.held == 3 * LARGE
    with pytest.raises(MessageRefusedError) as caught:
        memory.new(1)
    assert caught.value.code == StatusCode.RESOURCE_EXHAUSTED
    held.clear()
    gc.collect()
    assert memory.held == LARGE, "a slice keeps all of it"
    del part
    assert memory.held == 0


def test_memory_may_be_freed_in_another_thread() -> None:
    memory = MessageMemory(LARGE)
    held = [memory.new(LARGE)]
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    assert memory.held == 0


def test_small_messages_are_not_counted() -> None:
    memory = MessageMemory(0)
    assert [bytes(m) for m in _assembler(memory).feed(memoryview(_prefixed(b"small")))] == [b"small"]
    assert memory.adopt(b"small") == b"small"


def test_a_message_has_time_for_its_length() -> None:
    assembler = _assembler()
    assert not assembler.overdue(1e9, grace_s=10, bytes_per_s=1000)
    list(assembler.feed(memoryview(_prefixed(bytes(2000))[:50])))
    assert not assembler.overdue(111.9, grace_s=10, bytes_per_s=1000)
    assert assembler.overdue(112.1, grace_s=10, bytes_per_s=1000)
