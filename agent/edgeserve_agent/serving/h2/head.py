"""The head of a request: what its fields say, checked by RFC 9113 (section 8) and "gRPC over HTTP2". Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from types import MappingProxyType
from typing import Final

from edgeserve_agent.serving.h2.hpack import Field
from edgeserve_agent.serving.rpc import StatusCode

_NAME: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+\Z")
_VALUE: Final = re.compile(rb"[^\x00\r\n]*\Z")
_TIMEOUT: Final = re.compile(r"([0-9]{1,8})([HMSmun])\Z")
_UNITS_S: Final = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_PSEUDO: Final = frozenset((b":method", b":scheme", b":path", b":authority"))
_CONNECTION_SPECIFIC: Final = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade")
)
_PROTOCOL: Final = frozenset(
    ("content-type", "content-length", "te", "grpc-timeout", "grpc-encoding", "grpc-accept-encoding")
)
ENCODINGS: Final = ("identity", "deflate", "gzip")


@dataclass(frozen=True, kw_only=True)
class RequestHead:
    """A request's head that was read."""

    path: str = ""
    metadata: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    timeout_s: float | None = None
    encoding: str = "identity"
    content_length: int | None = None
    malformed: str | None = None
    """Why it is no request of HTTP/2: the stream is reset."""
    http_status: HTTPStatus | None = None
    """The HTTP status of a request that is not gRPC's."""
    refused: tuple[StatusCode, str] | None = None
    """The gRPC status of a request that cannot be served."""


def read_head(fields: list[Field]) -> RequestHead:
    """Read the fields of a request; what is wrong with them is in the result."""
    pseudo: dict[bytes, bytes] = {}
    regular: dict[str, str] = {}
    for name, value in fields:
        wrong = _wrong_field(name, value)
        if wrong is not None:
            return RequestHead(malformed=wrong)
        if name.startswith(b":"):
            if name not in _PSEUDO or name in pseudo or regular:
                return RequestHead(malformed=f"pseudo-header {name!r} is unknown, repeated or too late")
            pseudo[name] = value
        else:
            key, text = name.decode("ascii"), value.decode("latin-1")
            if key == "content-length" and regular.get(key, text) != text:
                return RequestHead(malformed="two content-length that differ")
            regular[key] = f"{regular[key]},{text}" if key in regular and key != "content-length" else text
    if not (pseudo.get(b":method") and pseudo.get(b":scheme") and pseudo.get(b":path")):
        return RequestHead(malformed="without :method, :scheme and :path")
    length = regular.get("content-length")
    if length is not None and not (length.isascii() and length.isdecimal() and len(length) <= 18):
        return RequestHead(malformed="content-length is not a number")
    timeout = regular.get("grpc-timeout")
    timeout_s = None if timeout is None else parse_timeout(timeout)
    encoding = regular.get("grpc-encoding", "identity")
    refused = None
    if timeout is not None and timeout_s is None:
        refused = StatusCode.INVALID_ARGUMENT, f"grpc-timeout {timeout[:80]!r} is not one to eight digits and a unit"
    elif encoding not in ENCODINGS:
        refused = StatusCode.UNIMPLEMENTED, f"grpc-encoding {encoding[:80]!r} is not known; {', '.join(ENCODINGS)} are"
    return RequestHead(
        path=pseudo[b":path"].decode("latin-1"),
        metadata=MappingProxyType({name: value for name, value in regular.items() if name not in _PROTOCOL}),
        timeout_s=timeout_s,
        encoding=encoding,
        content_length=None if length is None else int(length),
        refused=refused,
        http_status=_refusal(pseudo[b":method"], regular.get("content-type", "")),
    )


def wrong_trailer(fields: list[Field]) -> str | None:
    """What is wrong with the trailers of a request (section 8.1)."""
    for name, value in fields:
        if name.startswith(b":"):
            return f"pseudo-header {name!r} among trailers"
        wrong = _wrong_field(name, value)
        if wrong is not None:
            return wrong
    return None


def parse_timeout(text: str) -> float | None:
    """Seconds of a `grpc-timeout`; None when it is not one."""
    found = _TIMEOUT.match(text)
    return None if found is None else int(found[1]) * _UNITS_S[found[2]]


def _wrong_field(name: bytes, value: bytes) -> str | None:
    """What is wrong with one field (sections 8.2.1 and 8.2.2)."""
    if _NAME.match(name.removeprefix(b":")) is None:
        return f"field name {name[:80]!r}"
    if _VALUE.match(value) is None or value.strip(b" \t") != value:
        return f"value of field {name[:80]!r}"
    if name in _CONNECTION_SPECIFIC or (name == b"te" and value != b"trailers"):
        return f"connection-specific field {name!r}"
    return None


def _refusal(method: bytes, content_type: str) -> HTTPStatus | None:
    if method != b"POST":
        return HTTPStatus.METHOD_NOT_ALLOWED
    lower = content_type.lower()
    kind = lower.removeprefix("application/grpc")
    if kind == lower or kind[:1] not in ("", "+", ";"):
        return HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    return None
