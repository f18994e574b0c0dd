from __future__ import annotations

import urllib.parse
from typing import Any

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeserve.contracts.limits import MAX_CACHED_BLOCKS, MAX_STATUS_MESSAGE_BYTES
from edgeserve_agent.serving.h2.frames import ConnectionViolationError, ErrorCode
from edgeserve_agent.serving.h2.hpack import (
    OK_BLOCK,
    RESPONSE_BLOCK,
    BlockDecoder,
    http_status_block,
    literal,
    percent_encoded,
    status_block,
)
from edgeserve_agent.serving.rpc import StatusCode

NAMES = st.sampled_from(["a", "bb", "user-agent", ":path", "content-type", "x" * 300])
VALUES = st.one_of(st.sampled_from(["", "1", "2", "application/grpc", "v" * 3000]), st.text("abc", max_size=4))
BLOCKS = st.lists(
    st.one_of(
        st.lists(st.tuples(NAMES, VALUES, st.booleans()), max_size=5),
        st.sampled_from([0, 60, 200, 4096]),
    ),
    max_size=40,
)


def _decoder() -> BlockDecoder[tuple[Any, ...]]:
    return BlockDecoder(tuple, max_list_bytes=65536)


@given(BLOCKS)
def test_remembered_blocks_read_as_those_that_are_decoded_anew(blocks: list[Any]) -> None:
    """A client's encoder, its table filling, shrinking and changing between calls that repeat each other."""
    encoder, reference, decoder = hpack.Encoder(), hpack.Decoder(), _decoder()
    for block in blocks:
        if isinstance(block, int):
            encoder.header_table_size = block
            continue
        encoded = encoder.encode(
            [hpack.HeaderTuple(n, v) if i else hpack.NeverIndexedHeaderTuple(n, v) for n, v, i in block]
        )
        try:
            expected = tuple(map(tuple, reference.decode(encoded, raw=True)))
        except hpack.HPACKError:  # the library's encoder errs when its table is resized several times in a row
            with pytest.raises(ConnectionViolationError):
                decoder.decode(encoded)
            return
        assert decoder.decode(encoded) == expected


@given(st.lists(st.binary(max_size=12), max_size=30))
def test_any_bytes_read_as_the_library_reads_them(blocks: list[bytes]) -> None:
    reference, decoder = hpack.Decoder(), _decoder()
    for block in blocks:
        try:
            expected = tuple(map(tuple, reference.decode(block, raw=True)))
        except (hpack.HPACKError, IndexError, ValueError):
            with pytest.raises(ConnectionViolationError) as caught:
                decoder.decode(block)
            assert caught.value.code == ErrorCode.COMPRESSION_ERROR
            return
        assert decoder.decode(block) == expected


def test_a_block_that_leaves_the_table_alone_is_read_once_and_forgotten_when_the_table_changes() -> None:
    reads = []
    decoder: BlockDecoder[int] = BlockDecoder(lambda fields: reads.append(fields) or len(reads), max_list_bytes=65536)
    encoder = hpack.Encoder()
    first = encoder.encode([("a", "1")])
    again = encoder.encode([("a", "1")])
    assert again != first
    assert [decoder.decode(first), decoder.decode(again), decoder.decode(again)] == [1, 2, 2]
    decoder.decode(encoder.encode([("b", "2")]))
    assert decoder.decode(again) == 4, "the same byte now means b: 2"
    assert reads[-1] == [(b"b", b"2")]


def test_blocks_that_change_the_table_take_effect_each_time() -> None:
    decoder = _decoder()
    insertion = b"\x40\x01a\x011"
    for count in range(1, 4):
        assert decoder.decode(insertion) == ((b"a", b"1"),)
        assert decoder.decode(bytes([0x80 | 61 + count])) == ((b"a", b"1"),), "one more entry for each"


def test_few_blocks_are_remembered() -> None:
    decoder = _decoder()
    for number in range(100):
        decoder.decode(literal(b"a", b"%d" % number))
    decoder.decode(literal(b"a", b"x" * 10_000))
    assert len(decoder.known) == MAX_CACHED_BLOCKS


@given(st.binary(min_size=1, max_size=300).map(bytes.lower), st.binary(max_size=70_000))
def test_literals_decode_to_what_they_say(name: bytes, value: bytes) -> None:
    decoder = hpack.Decoder(max_header_list_size=1 << 20)
    assert [tuple(field) for field in decoder.decode(literal(name, value), raw=True)] == [(name, value)]
    assert not decoder.header_table.dynamic_entries


def test_the_blocks_of_responses() -> None:
    decode = hpack.Decoder().decode
    assert dict(decode(RESPONSE_BLOCK)) == {":status": "200", "content-type": "application/grpc"}
    assert dict(decode(OK_BLOCK)) == {"grpc-status": "0"}
    assert dict(decode(http_status_block(415))) == {":status": "415"}
    assert dict(decode(status_block(StatusCode.NOT_FOUND, "50 % är", grpc_accept_encoding="gzip"))) == {
        "grpc-status": "5",
        "grpc-message": "50 %25 %C3%A4r",
        "grpc-accept-encoding": "gzip",
    }


@given(st.text(max_size=300))
def test_a_message_comes_back_as_it_was_said(text: str) -> None:
    encoded = percent_encoded(text)
    assert encoded.strip() == encoded, "strict clients refuse a value with a space at either end"
    assert all(0x20 <= byte <= 0x7E for byte in encoded)
    if len(encoded) < MAX_STATUS_MESSAGE_BYTES:
        expected = text.encode("utf-8", "replace").decode()
        assert urllib.parse.unquote(encoded.decode(), errors="strict") == expected


@given(st.text(min_size=700), st.integers(0, 5))
def test_a_long_message_is_cut_between_escapes(text: str, shift: int) -> None:
    encoded = percent_encoded("a" * (MAX_STATUS_MESSAGE_BYTES - 10 - shift) + "ä" * 30 + text)
    assert MAX_STATUS_MESSAGE_BYTES - 3 <= len(encoded) <= MAX_STATUS_MESSAGE_BYTES
    assert b"%" in encoded[-12:]
    assert all(len(part) >= 2 for part in encoded.split(b"%")[1:])


def test_a_message_is_not_cut_behind_a_space() -> None:
    assert percent_encoded("a" * (MAX_STATUS_MESSAGE_BYTES - 1) + " b") == b"a" * (MAX_STATUS_MESSAGE_BYTES - 1)
