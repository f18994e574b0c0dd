"""HTTP/1.1: the same bytes give the same answers however they are cut, and whether or not heads are known."""

from __future__ import annotations

import gzip
import json
import random
import re
import struct
import zlib

from worlds import FindingError, World

from edgeserve.contracts.limits import MAX_KNOWN_HEAD_BYTES, MAX_KNOWN_HEADS

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
_ERROR = re.compile(rb'"error":"([^":]{0,30})')
_CHANGING = re.compile(rb"(?i)metrics|stats|explain|trace|logging|%")
"""Requests whose answers change from one to the next; their statuses are compared alone."""
_HTTP2 = b"PRI * HTTP/2.0\r\n"


def _request(line: str, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"{line} HTTP/1.1", "Host: h", *headers]
    if body or line.startswith("POST"):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def _v2(*, rows: int = 1, **more: object) -> bytes:
    tensor = {"name": "x", "shape": [rows, 4], "datatype": "FP32", "data": [1.5, 2, 3, 4] * rows}
    return json.dumps({"inputs": [tensor], **more}).encode()


_BINARY = b'{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","parameters":{"binary_data_size":16}}]}'
_INFER = "POST /v2/models/m/infer"
_ROW = struct.pack("<4f", 1, 2, 3, 4)
_LONG = json.dumps({"instances": [[0.5, 1, 2, 3]] * 300}).encode()
_CHUNKED = (
    b"POST /v2/models/m/infer HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    + b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in (_v2()[:20], _v2()[20:]))
    + b"0\r\nT: x\r\n\r\n"
)

SEEDS = [
    _request("GET /v2/health/live"),
    _request("HEAD /v2/health/ready"),
    _request("GET /v2"),
    _request("GET /v2/models/m"),
    _request("GET /v2/models/m/versions/1/ready"),
    _request("GET /v2/models/m/stats"),
    _request("GET /metrics"),
    _request("GET /openapi.json"),
    _request("POST /v2/repository/index", b"{}"),
    _request("POST /v2/repository/models/m/load", b"{}"),
    _request("GET /v2/systemsharedmemory/status"),
    _request("POST /v2/models/m/feedback", b'{"id":"1","label":0}'),
    _request("GET /v1/models/m/metadata"),
    _request("GET /v1/models"),
    _request(_INFER, _v2()),
    _request(_INFER, _v2(rows=3, id="7", outputs=[{"name": "y", "parameters": {"binary_data": True}}])),
    _request(_INFER, _v2(parameters={"priority": 1, "timeout": 10**6, "own": "x"})),
    _request(_INFER, _BINARY + _ROW, f"Inference-Header-Content-Length: {len(_BINARY)}"),
    _request(_INFER, _ROW * 300, "Inference-Header-Content-Length: 0"),
    _request(_INFER, gzip.compress(_v2(), mtime=0), "Content-Encoding: gzip", "Accept-Encoding: gzip"),
    _request(_INFER, b"\x89PNG\r\n\x1a\n" + b"x" * 40, "Content-Type: image/png"),
    _request(_INFER, _v2(), "Expect: 100-continue"),
    _request(_INFER, _v2(), "Connection: close"),
    _request("POST /v1/models/m:predict", b'{"instances": [[1,2,3,4]]}'),
    _request("POST /v1/models/m:predict", b'{"inputs": {"x": [[1,2,3,NaN]]}}'),
    _request("POST /v1/models/m:predict", _LONG),
    _request("POST /v1/models/m:classify", b'{"examples": [{"x": [1,2,3,4]}], "context": {}}'),
    _request("POST /v1/models/m/versions/1:regress", b'{"examples": [{"x": [1,2,3,4]}]}'),
    _request("POST /invocations", b'{"inputs": [[1,2,3,4]]}', "Content-Type: application/json"),
    _request("GET /ping"),
    _CHUNKED,
    b"GET /v2/health/live HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    b"\r\n\r\nGET /v2/health/live HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
    _HTTP2 + b"\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0\0\0\10\6\0\0\0\0\0abcdefgh",
    _request(_INFER, _v2()) * 3 + _request("GET /v2/health/live"),
    _request(_INFER, b"GET /v2 HTTP/1.1\r\n\r\n" + b"x" * 30),
]


class HttpTarget:
    """A warm server, and one that forgets each head at once."""

    seeds = SEEDS

    def __init__(self) -> None:
        self._warm, self._forgetful = World(), World()

    def close(self) -> None:
        """End the servers."""
        self._warm.close()
        self._forgetful.close()

    def check(self, data: bytes) -> object:
        """Raise `FindingError` if the answers differ, or there is none; else say what kind of answers they were."""
        cuts = _cuts(data)
        whole = bytes(self._warm.talk(data, []).written)
        known = bytes(self._warm.talk(data, []).written)
        cut = bytes(self._forgetful.talk(data, cuts, forgetful=True).written)
        heads = self._warm.http.known_heads
        if len(heads) > MAX_KNOWN_HEADS or any(len(head) > MAX_KNOWN_HEAD_BYTES for head in list(heads)[-3:]):
            raise FindingError("too many heads are kept")
        if data.startswith(_HTTP2):
            return b"HTTP/2", len(whole) // 40
        forms = [_form(data, written) for written in (whole, known, cut)]
        if not forms[0] == forms[1] == forms[2]:
            raise FindingError(f"answers differ, cut at {cuts}:\n" + "\n".join(repr(form) for form in forms))
        if not whole and data.strip(b"\r\n"):
            raise FindingError("no answer")
        statuses = tuple(_STATUS.findall(whole))
        if b"500" in statuses:
            raise FindingError(f"a failure of the server: {whole!r}")
        return statuses[-3:], tuple(re.sub(rb"\d+|'.*?'", b"", one) for one in _ERROR.findall(whole)[-2:])


def _form(data: bytes, written: bytes) -> object:
    # Whether the client is asked to go on depends on whether its body has come.
    if _CHANGING.search(data):
        return [status for status in _STATUS.findall(written) if status != b"100"]
    return written.replace(_CONTINUE, b"")


def _cuts(data: bytes) -> list[int]:
    pick = random.Random(zlib.crc32(data))
    if len(data) < 400 and pick.random() < 0.1:
        return list(range(1, len(data)))
    return sorted({pick.randint(0, len(data)) for _ in range(pick.choice((1, 1, 2, 4, 12)))})
