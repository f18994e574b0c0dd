"""Frames of HTTP/2 as bytes (RFC 9113, sections 4, 6 and 7). Pure."""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client sends first (section 3.4)."""
HEADER_BYTES: Final = 9
HEADER: Final = Struct(">IBI")
"""Frame header: length << 8 | type, flags, stream."""
STREAM_MASK: Final = 0x7FFFFFFF
MAX_WINDOW: Final = (1 << 31) - 1
DEFAULT_WINDOW: Final = 65_535
MIN_FRAME_SIZE: Final = 16_384
MAX_FRAME_SIZE: Final = (1 << 24) - 1
DEFAULT_TABLE_SIZE: Final = 4096

# Types: plain integers, since they are compared for every frame.
DATA: Final = 0
HEADERS: Final = 1
PRIORITY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9

# Flags
END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
PRIORITIZED: Final = 0x20

# Settings
HEADER_TABLE_SIZE: Final = 1
ENABLE_PUSH: Final = 2
MAX_CONCURRENT_STREAMS: Final = 3
INITIAL_WINDOW_SIZE: Final = 4
FRAME_SIZE: Final = 5
MAX_HEADER_LIST_SIZE: Final = 6

_SETTING: Final = Struct(">HI")
_WORD: Final = Struct(">I")
_RST: Final = Struct(">IBII")
_MAX_DEBUG_BYTES: Final = 512


class ErrorCode(IntEnum):
    """Why a stream or a connection ended (section 7)."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    SETTINGS_TIMEOUT = 0x4
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    CONNECT_ERROR = 0xA
    ENHANCE_YOUR_CALM = 0xB
    INADEQUATE_SECURITY = 0xC
    HTTP_1_1_REQUIRED = 0xD


class ConnectionViolationError(Exception):
    """The peer broke the protocol so that the connection must end (section 5.4.1)."""

    def __init__(self, code: ErrorCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class StreamViolationError(Exception):
    """The peer broke the protocol so that one stream must end (section 5.4.2)."""

    def __init__(self, code: ErrorCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


# Building --------------------------------------------------------------------------------------------


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Any frame."""
    return HEADER.pack(len(payload) << 8 | kind, flags, stream) + payload


def settings(values: dict[int, int]) -> bytes:
    """SETTINGS."""
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(*item) for item in values.items()))


SETTINGS_ACK: Final = frame(SETTINGS, ACK, 0)


def rst_stream(stream: int, code: ErrorCode) -> bytes:
    """RST_STREAM."""
    return _RST.pack(4 << 8 | RST_STREAM, 0, stream, code)


def window_update(stream: int, increment: int) -> bytes:
    """WINDOW_UPDATE; stream 0 is the connection."""
    return _RST.pack(4 << 8 | WINDOW_UPDATE, 0, stream, increment)


def goaway(last_stream: int, code: ErrorCode, debug: str = "") -> bytes:
    """GOAWAY with a reason in words."""
    words = debug.encode("utf-8", "replace")[:_MAX_DEBUG_BYTES]
    return frame(GOAWAY, 0, 0, _WORD.pack(last_stream) + _WORD.pack(code) + words)


# Parsing ---------------------------------------------------------------------------------------------


def parse_settings(payload: bytes) -> list[tuple[int, int]]:
    """Settings in their order, values checked (section 6.5.2).

    Raises:
        ConnectionViolationError: The length is no multiple of 6, or a value is not allowed.
    """
    if len(payload) % _SETTING.size:
        raise ConnectionViolationError(ErrorCode.FRAME_SIZE_ERROR, f"SETTINGS of {len(payload)} bytes")
    values = list(_SETTING.iter_unpack(payload))
    for name, value in values:
        if name == ENABLE_PUSH and value > 1:
            raise ConnectionViolationError(ErrorCode.PROTOCOL_ERROR, f"ENABLE_PUSH is {value}")
        if name == INITIAL_WINDOW_SIZE and value > MAX_WINDOW:
            raise ConnectionViolationError(ErrorCode.FLOW_CONTROL_ERROR, f"INITIAL_WINDOW_SIZE is {value}")
        if name == FRAME_SIZE and not MIN_FRAME_SIZE <= value <= MAX_FRAME_SIZE:
            raise ConnectionViolationError(ErrorCode.PROTOCOL_ERROR, f"MAX_FRAME_SIZE is {value}")
    return values


def parse_word(kind: str, payload: bytes) -> int:
    """The 32-bit number that is all of a RST_STREAM or WINDOW_UPDATE.

    Raises:
        ConnectionViolationError: The length is not 4.
    """
    if len(payload) != _WORD.size:
        raise ConnectionViolationError(ErrorCode.FRAME_SIZE_ERROR, f"{kind} of {len(payload)} bytes")
    value: int = _WORD.unpack(payload)[0]
    return value


def header_fragment(flags: int, payload: bytes) -> bytes:
    """The field block fragment of a HEADERS frame, without padding and priority (section 6.2).

    Raises:
        ConnectionViolationError: The frame is too short for its flags, or all of it is padding.
    """
    start, padding = 0, 0
    if flags & PADDED:
        if not payload:
            raise ConnectionViolationError(ErrorCode.FRAME_SIZE_ERROR, "padded HEADERS without a length of padding")
        start, padding = 1, payload[0]
    if flags & PRIORITIZED:
        start += 5
        if len(payload) < start:
            raise ConnectionViolationError(ErrorCode.FRAME_SIZE_ERROR, "HEADERS with half a priority")
    if start + padding > len(payload):
        raise ConnectionViolationError(ErrorCode.PROTOCOL_ERROR, "the padding of HEADERS is longer than the frame")
    return payload[start : len(payload) - padding]
