"""Changes to bytes that a hostile or broken client could make: blind ones, and ones that know HTTP and JSON."""

from __future__ import annotations

import random
import re
import struct
from collections.abc import Sequence

WORDS = (
    *(b"\r\n", b"\r\n\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b": ", b"\r\n ", b"0\r\n\r\n", b"\xff", b"%2f"),
    *(b"Content-Length: 5\r\n", b"Content-Length: 0\r\n", b"content-length: 99999999999999999999\r\n"),
    *(b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: identity\r\n", b"transfer-encoding: gzip, chunked\r\n"),
    *(b"Connection: close\r\n", b"Connection: keep-alive\r\n", b"Connection: Upgrade\r\nUpgrade: h2c\r\n"),
    *(b"Expect: 100-continue\r\n", b"Inference-Header-Content-Length: 7\r\n", b"Content-Encoding: gzip\r\n"),
    *(b"Accept-Encoding: gzip\r\n", b"edgeserve-explain: latency\r\n", b"Content-Type: image/png\r\n"),
    *(b"HTTP/1.0", b"HTTP/1.1", b"HTTP/2.0", b"GET ", b"HEAD ", b"POST ", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    *(b"null", b"true", b"false", b"NaN", b"-Infinity", b"1e999", b"-1", b"1e400", b"18446744073709551616", b"[]"),
    *(b"{}", b"[" * 40, b"]" * 40, b'{"a":' * 30, b'"parameters":{"binary_data_size":16}', b'"b64"', b"\\ud800"),
    *(b'"binary_data":true', b'"classification":2', b'"sequence_id":1', b'"priority":1', b'"shape":[1,4]', b"[-1]"),
    *(b'"shared_memory_region":"r"', b"FP16", b"BF16", b"BYTES", b"UINT64", b"4294967296", b"2147483648"),
)  # fmt: skip
LENGTHS = (0, 1, 2, 4, 8, 15, 16, 17, 64, 127, 128, 255, 256, 4095, 4096, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1)
_NUMBER = re.compile(rb"\d+")
_LENGTH = re.compile(rb"(?i)content-length: ?\d+")
MAX_BYTES = 8192


def mutate(data: bytes, pick: random.Random, others: Sequence[bytes]) -> bytes:
    """Between one and five changes of `data`; `others` give pieces."""
    for _ in range(pick.choice((1, 1, 2, 3, 5))):
        data = pick.choice(_CHANGES)(data, pick, others)
    if pick.random() < 0.5:
        data = refit(data)
    return data[:MAX_BYTES]


def refit(data: bytes) -> bytes:
    """Let the Content-Length of the last request fit what comes behind its head."""
    head, end, body = data.rpartition(b"\r\n\r\n")
    at = head.rfind(b"\r\n\r\n") + 1
    fitted = _LENGTH.sub(b"Content-Length: %d" % len(body), head[at:], count=1)
    return head[:at] + fitted + end + body


def _place(data: bytes, pick: random.Random) -> tuple[int, int]:
    start = pick.randint(0, len(data))
    return start, min(len(data), start + pick.choice((0, 1, 1, 2, 4, 8, 16, 64)))


def _flip(data: bytes, pick: random.Random, _others: Sequence[bytes]) -> bytes:
    if not data:
        return b"\0"
    at = pick.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << pick.randrange(8))]) + data[at + 1 :]


def _byte(data: bytes, pick: random.Random, _others: Sequence[bytes]) -> bytes:
    start, stop = _place(data, pick)
    return data[:start] + bytes([pick.randrange(256)]) + data[stop:]


def _cut(data: bytes, pick: random.Random, _others: Sequence[bytes]) -> bytes:
    start, stop = _place(data, pick)
    return data[:start] + data[stop:]


def _end(data: bytes, pick: random.Random, _others: Sequence[bytes]) -> bytes:
    return data[: pick.randint(0, len(data))]


def _again(data: bytes, pick: random.Random, _others: Sequence[bytes]) -> bytes:
    start, stop = _place(data, pick)
    return data[:stop] + data[start:stop] * pick.choice((1, 2, 30)) + data[stop:]


def _word(data: bytes, pick: random.Random, _others: Sequence[bytes]) -> bytes:
    start, stop = _place(data, pick)
    return data[:start] + pick.choice(WORDS) + data[pick.choice((start, stop)) :]


def _line(data: bytes, pick: random.Random, _others: Sequence[bytes]) -> bytes:
    """Insert, double, drop or move a line of a head."""
    lines = data.split(b"\r\n")
    at = pick.randrange(len(lines))
    match pick.randrange(4):
        case 0:
            lines.insert(at, pick.choice(WORDS).rstrip(b"\r\n"))
        case 1:
            lines.insert(at, lines[at])
        case 2:
            del lines[at]
        case _:
            lines.insert(pick.randrange(len(lines)), lines.pop(at))
    return b"\r\n".join(lines)


def _number(data: bytes, pick: random.Random, _others: Sequence[bytes]) -> bytes:
    """Another number in place of one in digits."""
    found = list(_NUMBER.finditer(data))
    if not found:
        return data
    one = pick.choice(found)
    value = int(one[0][:20])
    new = pick.choice((value + 1, max(0, value - 1), pick.choice(LENGTHS), -value))
    return data[: one.start()] + b"%d" % new + data[one.end() :]


def _binary_number(data: bytes, pick: random.Random, _others: Sequence[bytes]) -> bytes:
    """Another number in place of bytes that may be one."""
    start = pick.randint(0, len(data))
    form, most = pick.choice(((">B", 0xFF), (">H", 0xFFFF), ("<I", 0xFFFFFFFF), (">I", 0xFFFFFFFF)))
    new = struct.pack(form, min(most, pick.choice(LENGTHS)))
    return data[:start] + new + data[start + len(new) :]


def _splice(data: bytes, pick: random.Random, others: Sequence[bytes]) -> bytes:
    other = pick.choice(others)
    start, stop = sorted((pick.randint(0, len(other)), pick.randint(0, len(other))))
    at = pick.randint(0, len(data))
    return data[:at] + other[start:stop] + data[at:]


def _follow(data: bytes, pick: random.Random, others: Sequence[bytes]) -> bytes:
    return data + pick.choice(others)


_CHANGES = (
    _flip,
    _byte,
    _cut,
    _end,
    _again,
    _word,
    _word,
    _line,
    _line,
    _number,
    _number,
    _binary_number,
    _splice,
    _follow,
)
