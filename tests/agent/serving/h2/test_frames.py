from __future__ import annotations

import contextlib
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeserve_agent.serving.h2 import frames
from edgeserve_agent.serving.h2.frames import ConnectionViolationError, ErrorCode


@given(st.integers(0, 255), st.integers(0, 255), st.integers(0, 2**31 - 1), st.binary(max_size=200))
def test_frames_split_as_they_were_built(h2: Any, kind: int, flags: int, stream: int, payload: bytes) -> None:
    assert h2.split(frames.frame(kind, flags, stream, payload)) == ([(kind, flags, stream, payload)], b"")


@given(st.dictionaries(st.integers(7, 0xFFFF), st.integers(0, 2**32 - 1)))
def test_settings_come_back(h2: Any, values: dict[int, int]) -> None:
    ((kind, flags, stream, payload),), _ = h2.split(frames.settings(values))
    assert (kind, flags, stream) == (frames.SETTINGS, 0, 0)
    assert dict(frames.parse_settings(payload)) == values


@given(st.binary(max_size=30))
def test_any_settings_are_parsed_or_refused(payload: bytes) -> None:
    if len(payload) % 6:
        with pytest.raises(ConnectionViolationError) as caught:
            frames.parse_settings(payload)
        assert caught.value.code == ErrorCode.FRAME_SIZE_ERROR
    else:
        with contextlib.suppress(ConnectionViolationError):
            assert len(frames.parse_settings(payload)) * 6 == len(payload)


@given(st.binary(max_size=30), st.none() | st.integers(0, 20), st.booleans())
def test_padding_and_priority_are_taken_off(block: bytes, padding: int | None, priority: bool) -> None:
    flags = (frames.PADDED if padding is not None else 0) | (frames.PRIORITIZED if priority else 0)
    head = (bytes([padding]) if padding is not None else b"") + (b"prior" if priority else b"")
    assert frames.header_fragment(flags, head + block + bytes(padding or 0)) == block


@given(st.binary(max_size=10), st.integers(0, 255))
def test_any_headers_are_taken_apart_or_refused(payload: bytes, flags: int) -> None:
    with contextlib.suppress(ConnectionViolationError):
        assert frames.header_fragment(flags, payload) in payload


@pytest.mark.parametrize("length", [0, 3, 5])
def test_a_word_has_four_bytes(length: int) -> None:
    with pytest.raises(ConnectionViolationError) as caught:
        frames.parse_word("RST_STREAM", bytes(length))
    assert caught.value.code == ErrorCode.FRAME_SIZE_ERROR


def test_goaway_says_why_in_few_words(h2: Any) -> None:
    ((kind, _, _, payload),), _ = h2.split(frames.goaway(7, ErrorCode.CANCEL, "ü" * 1000))
    assert (kind, struct.unpack(">II", payload[:8])) == (frames.GOAWAY, (7, 8))
    assert len(payload) <= 8 + 512
