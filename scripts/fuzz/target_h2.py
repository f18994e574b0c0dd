"""HTTP/2 frames to gRPC: a hostile client ends its own connection at most, and cuts change no answer.

The bytes of an input come behind the preface.
"""

from __future__ import annotations

import random
import re
import struct
import zlib

import hpack
from target_grpc import _INFER, _row
from worlds import FindingError, Wire, World

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _WINDOW, _CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, stream) + payload


def _text(text: bytes) -> bytes:
    return bytes([len(text)]) + text


def _head(path: str = _INFER, *more: tuple[bytes, bytes], indexed: bool = False) -> bytes:
    pairs = ((b":path", path.encode()), (b"content-type", b"application/grpc"), (b"te", b"trailers"), *more)
    sign = b"\x40" if indexed else b"\0"
    return b"\x83\x86" + b"".join(sign + _text(name) + _text(value) for name, value in pairs)


_BODY = _row().SerializeToString()
_MESSAGE = struct.pack(">BI", 0, len(_BODY)) + _BODY


def _call(
    stream: int, *more: tuple[bytes, bytes], path: str = _INFER, body: bytes = _MESSAGE, indexed: bool = False
) -> bytes:
    return _frame(_HEADERS, 4, stream, _head(path, *more, indexed=indexed)) + _frame(_DATA, 1, stream, body)


_SETUP = _frame(_SETTINGS, 0, 0)
_BLOCK = _head()
SEEDS = [
    _SETUP + _call(1),
    _SETUP + _call(1, indexed=True) + _call(3) + _frame(_PING, 0, 0, b"12345678"),
    _SETUP + _frame(_HEADERS, 1, 1, _BLOCK[:9]) + _frame(_CONTINUATION, 4, 1, _BLOCK[9:]),
    _SETUP + _frame(_HEADERS, 4, 1, _BLOCK) + _frame(_DATA, 0, 1, _MESSAGE[:7]) + _frame(_DATA, 1, 1, _MESSAGE[7:]),
    _SETUP + _frame(_HEADERS, 4, 1, _BLOCK) + _frame(_DATA, 9, 1, b"\3" + _MESSAGE + b"\0\0\0"),
    _SETUP + _frame(_HEADERS, 4, 1, _BLOCK) + _frame(_RESET, 0, 1, b"\0\0\0\x08"),
    _SETUP + _call(1, (b"grpc-timeout", b"1S"), (b"grpc-encoding", b"gzip")) + _call(3, path="/no"),
    _SETUP + _call(1, path="/inference.GRPCInferenceService/ServerLive", body=bytes(5)),
    _SETUP + _call(1, path="/inference.GRPCInferenceService/ModelStreamInfer", body=_MESSAGE * 2),
    _SETUP + _call(1, path="/inference.GRPCInferenceService/ModelMetadata", body=b"\0\0\0\0\3\x0a\1m"),
    _SETUP + _call(1, path="/grpc.health.v1.Health/Watch", body=bytes(5)),
    _frame(_SETTINGS, 0, 0, struct.pack(">HI", 4, 10)) + _call(1) + _frame(_WINDOW, 0, 1, struct.pack(">I", 1000)),
    _frame(_SETTINGS, 0, 0, struct.pack(">HI", 1, 0)) + _frame(_WINDOW, 0, 0, struct.pack(">I", 1)) + _call(1),
    _SETUP + _frame(_GOAWAY, 0, 0, bytes(8)) + _frame(_SETTINGS, 1, 0),
]  # fmt: skip
_FIRST_ERROR = re.compile(r"\d+")


class H2Target:
    """A server that sees every client."""

    seeds = SEEDS

    def __init__(self) -> None:
        self._world = World()
        self._honest = _PREFACE + SEEDS[0]
        self._count = 0

    def close(self) -> None:
        """End the server."""
        self._world.close()

    def check(self, data: bytes) -> object:
        """Raise `FindingError` for a bug, half frames, memory that is not given back, or answers that differ."""
        stream = _PREFACE + data
        pick = random.Random(zlib.crc32(data))
        cuts = sorted({pick.randint(0, len(stream)) for _ in range(pick.choice((1, 2, 6)))})
        whole, cut = (self._answers(self._world.talk(stream, places)) for places in ([], cuts))
        self._bounds()
        if whole[1] is None and cut[1] is None and whole[0] != cut[0]:
            raise FindingError(f"answers differ, cut at {cuts}:\n{whole}\n{cut}")
        # A message that is refused before its end has come leaves a stream whose late frames are passed over.
        if whole[1] != cut[1] and not whole[2] and not cut[2]:
            raise FindingError(f"ends differ, cut at {cuts}: {whole[1]} and {cut[1]}")
        self._count += 1
        if self._count % 50 == 1:
            found, _, _ = self._answers(self._world.talk(self._honest, []))
            if ("grpc-status", "0") not in found[1][1]:
                raise FindingError(f"an honest client got {found}")
        kinds = sorted({_FIRST_ERROR.sub("", str(one[1][-2:]))[:60] for one in whole[0].values()})
        return tuple(kinds[:3]), _FIRST_ERROR.sub("", whole[1] or "")[:60]

    def _bounds(self) -> None:
        server = self._world.server._h2  # noqa: SLF001
        if server is None:
            return
        if server.memory.held or server._connections or server._watched:  # noqa: SLF001
            raise FindingError(f"kept: {server.memory.held} bytes, {server._connections}, {server._watched}")  # noqa: SLF001

    def _answers(self, wire: Wire) -> tuple[dict[int, tuple[bytes, list[tuple[str, str]]]], str | None, bool]:
        """By stream data and fields; why the connection was ended; whether a request was answered before its end."""
        decoder = hpack.Decoder()
        found: dict[int, tuple[bytes, list[tuple[str, str]]]] = {}
        ended, early, at, data = None, False, 0, bytes(wire.written)
        while at < len(data):
            if len(data) - at < 9:
                raise FindingError("half a frame was written")
            word, _flags, stream = struct.unpack_from(">IBI", data, at)
            kind, payload = word & 0xFF, data[at + 9 : at + 9 + (word >> 8)]
            at += 9 + (word >> 8)
            if at > len(data):
                raise FindingError("half a frame was written")
            body, fields = found.get(stream, (b"", []))
            if kind == _DATA:
                found[stream] = body + payload, fields
            elif kind == _HEADERS:
                found[stream] = body, [*fields, *((str(n), str(v)) for n, v in decoder.decode(payload))]
            elif kind == _RESET and payload == bytes(4):
                early = True
            elif kind == _RESET:
                found[stream] = body, [*fields, ("reset", payload.hex())]
            elif kind == _GOAWAY and payload[4:8] != bytes(4):
                ended = payload[8:].decode()
        return found, ended, early
