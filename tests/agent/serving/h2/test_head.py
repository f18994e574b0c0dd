from __future__ import annotations

from http import HTTPStatus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeserve_agent.serving.h2.head import parse_timeout, read_head, wrong_trailer
from edgeserve_agent.serving.rpc import StatusCode

HEAD = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/a.B/C"),
    (b":authority", b"localhost"),
    (b"te", b"trailers"),
    (b"content-type", b"application/grpc"),
]


def test_a_request_of_grpc() -> None:
    head = read_head([*HEAD, (b"grpc-timeout", b"250m"), (b"grpc-encoding", b"gzip"), (b"x", b"1"), (b"k-bin", b"AAE")])
    assert (head.path, head.timeout_s, head.encoding) == ("/a.B/C", 0.25, "gzip")
    assert dict(head.metadata) == {"x": "1", "k-bin": "AAE"}
    assert (head.malformed, head.http_status, head.refused, head.content_length) == (None, None, None, None)


def test_repeated_metadata_is_joined() -> None:
    assert read_head([*HEAD, (b"a", b"1"), (b"b", b"2"), (b"a", b"3")]).metadata == {"a": "1,3", "b": "2"}


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (b"application/grpc", None),
        (b"application/grpc+proto", None),
        (b"application/grpc;charset=utf-8", None),
        (b"Application/GRPC", None),
        (b"application/grpc-web", HTTPStatus.UNSUPPORTED_MEDIA_TYPE),
        (b"application/json", HTTPStatus.UNSUPPORTED_MEDIA_TYPE),
        (b"", HTTPStatus.UNSUPPORTED_MEDIA_TYPE),
    ],
)
def test_only_grpc_is_served(kind: bytes, status: HTTPStatus | None) -> None:
    assert read_head([*HEAD[:5], (b"content-type", kind)]).http_status == status


def test_other_methods_and_types_have_their_status() -> None:
    assert read_head([(b":method", b"GET"), *HEAD[1:]]).http_status == HTTPStatus.METHOD_NOT_ALLOWED
    assert read_head(HEAD[:5]).http_status == HTTPStatus.UNSUPPORTED_MEDIA_TYPE


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1H", 3600.0),
        ("2M", 120.0),
        ("3S", 3.0),
        ("4m", 0.004),
        ("5u", 5e-6),
        ("6n", 6e-9),
        ("99999999S", 99999999.0),
        ("0S", 0.0),
        ("", None),
        ("S", None),
        ("1", None),
        ("1s", None),
        ("-1S", None),
        ("123456789S", None),
        ("1S\n", None),
        ("\u0661S", None),
    ],
)
def test_timeouts(text: str, seconds: float | None) -> None:
    assert parse_timeout(text) == pytest.approx(seconds) if seconds is not None else parse_timeout(text) is None


@pytest.mark.parametrize(
    ("field", "code"),
    [
        ((b"grpc-timeout", b"soon"), StatusCode.INVALID_ARGUMENT),
        ((b"grpc-encoding", b"snappy"), StatusCode.UNIMPLEMENTED),
    ],
)
def test_what_cannot_be_served_says_why(field: tuple[bytes, bytes], code: StatusCode) -> None:
    refused = read_head([*HEAD, field]).refused
    assert refused is not None
    assert refused[0] == code
    assert field[0].decode() in refused[1]
    assert field[1].decode() in refused[1]


@given(st.lists(st.tuples(st.binary(max_size=8), st.binary(max_size=8)), max_size=6))
def test_no_fields_surprise_it(fields: list[tuple[bytes, bytes]]) -> None:
    for tried in (fields, [*HEAD, *fields]):
        head = read_head(tried)
        if head.malformed is None:
            assert head.path
            assert all(name == name.lower() and not name.startswith(":") for name in head.metadata)
    wrong_trailer(fields)
