"""HTTP/2 as bytes: frames to send, and what came back."""

from __future__ import annotations

import struct
from typing import NamedTuple

import hpack

from edgeserve_agent.serving.rpc import StatusCode

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITIZED = 1, 1, 4, 8, 32
CODES = (
    *("NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT", "STREAM_CLOSED"),
    *("FRAME_SIZE_ERROR", "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR", "ENHANCE_YOUR_CALM"),
)


class Frame(NamedTuple):
    kind: int
    flags: int
    stream: int
    payload: bytes

    @property
    def reset(self) -> str | None:
        return CODES[int.from_bytes(self.payload, "big")] if self.kind == RST_STREAM else None

    @property
    def goaway(self) -> str | None:
        return CODES[int.from_bytes(self.payload[4:8], "big")] if self.kind == GOAWAY else None

    @property
    def debug(self) -> str:
        return self.payload[8:].decode()


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, stream) + payload


def split(data: bytes) -> tuple[list[Frame], bytes]:
    """Whole frames, and what is left."""
    frames, position = [], 0
    while len(data) - position >= 9:
        word, flags, stream = struct.unpack_from(">IBI", data, position)
        stop = position + 9 + (word >> 8)
        if stop > len(data):
            break
        frames.append(Frame(word & 0xFF, flags, stream, data[position + 9 : stop]))
        position = stop
    return frames, data[position:]


def fields(*pairs: tuple[str, str]) -> bytes:
    """A block of fields that are not indexed."""
    block = b""
    for name, value in pairs:
        for text in (name, value):
            raw = text.encode("latin-1")
            assert len(raw) < 127 or text is value
            block += b"\x00" if text is name else b""
            block += bytes([len(raw)]) + raw if len(raw) < 127 else b"\x7f" + varint(len(raw) - 127) + raw
    return block


def varint(number: int) -> bytes:
    out = b""
    while number >= 128:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def head(path: str = "/test.Echo/Echo", *more: tuple[str, str], **replaced: str) -> bytes:
    """The block of a gRPC request; `replaced`: `method`, `scheme`, `type`; an empty one is left out."""
    pseudo = ((":method", replaced.get("method", "POST")), (":scheme", replaced.get("scheme", "http")), (":path", path))
    kind = replaced.get("type", "application/grpc")
    return fields(*[pair for pair in pseudo if pair[1]], *([("content-type", kind)] if kind else []), *more)


def message(body: bytes, flag: int = 0) -> bytes:
    return struct.pack(">BI", flag, len(body)) + body


def call(stream: int, body: bytes = b"hi", path: str = "/test.Echo/Echo", *more: tuple[str, str]) -> bytes:
    """A whole unary call."""
    return frame(HEADERS, END_HEADERS, stream, head(path, *more)) + frame(DATA, END_STREAM, stream, message(body))


def settings(**values: int) -> bytes:
    names = {"table": 1, "push": 2, "streams": 3, "window": 4, "frame": 5, "list": 6}
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", names[name], value) for name, value in values.items()))


HELLO = PREFACE + settings()


class Response(NamedTuple):
    headers: dict[str, str]
    messages: list[bytes]
    trailers: dict[str, str]

    @property
    def status(self) -> StatusCode:
        return StatusCode(int(self.trailers["grpc-status"]))


class ResponseReader:
    """Responses out of frames; checks that they come in the order that HTTP/2 wants."""

    def __init__(self) -> None:
        self._decoder = hpack.Decoder()

    def responses(self, frames: list[Frame]) -> dict[int, Response]:
        """Those that ended."""
        blocks: dict[int, list[dict[str, str]]] = {}
        data: dict[int, bytes] = {}
        ended: dict[int, Response] = {}
        for item in frames:
            if item.kind not in (HEADERS, DATA):
                continue
            assert item.stream not in ended, item
            if item.kind == HEADERS:
                assert item.flags & END_HEADERS
                blocks.setdefault(item.stream, []).append(dict(self._decoder.decode(item.payload)))
            else:
                assert item.stream in blocks
                data[item.stream] = data.get(item.stream, b"") + item.payload
            if item.flags & END_STREAM:
                first, *rest = blocks[item.stream]
                assert ":status" in first
                body = data.get(item.stream, b"")
                messages = []
                while body:
                    flag, size = struct.unpack_from(">BI", body)
                    assert flag == 0
                    assert len(body) >= 5 + size
                    messages.append(body[5 : 5 + size])
                    body = body[5 + size :]
                ended[item.stream] = Response(first, messages, rest[0] if rest else first)
        return ended
