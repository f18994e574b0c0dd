"""The stream of changes."""

from __future__ import annotations

import socket
import urllib.parse
from collections.abc import Iterator

import pytest

from edgeserve.contracts.limits import MAX_EVENT_STREAMS


class Stream:
    """An open event stream, read line by line."""

    def __init__(self, url: str, token: str) -> None:
        address = urllib.parse.urlsplit(url)
        self._socket = socket.create_connection((address.hostname, address.port), timeout=20)
        self._socket.sendall(
            f"GET /v1/changes HTTP/1.1\r\nHost: {address.netloc}\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
        )
        self._file = self._socket.makefile("rb")
        self.head = b"".join(iter(self._file.readline, b"\r\n"))

    def next_version(self) -> int:
        for line in self._file:
            if line.startswith(b"id: "):
                return int(line[4:])
        raise EOFError

    def rest(self) -> bytes:
        return self._file.read()

    def close(self) -> None:
        self._file.close()
        self._socket.close()


@pytest.fixture
def stream(manager) -> Iterator[Stream]:
    opened = Stream(manager.url, manager.operator_token)
    yield opened
    opened.close()


def test_a_change_is_told_at_once(stream, manager):
    assert b"text/event-stream" in stream.head
    first = stream.next_version()
    manager.fleet.enrol("default.changes-1", labels={}, actor="test")
    assert stream.next_version() > first


def test_a_stream_beyond_the_limit_is_refused_and_a_closed_one_makes_room(manager, http):
    streams = [Stream(manager.url, manager.operator_token) for _ in range(MAX_EVENT_STREAMS)]
    try:
        for stream in streams:
            stream.next_version()
        assert http("GET", "/v1/changes").status == 503
    finally:
        for stream in streams:
            stream.close()
    manager.fleet.enrol("default.changes-2", labels={}, actor="test")  # the server writes, and sees who is gone
    for _attempt in range(200):
        opened = Stream(manager.url, manager.operator_token)
        status = opened.head.split(b" ")[1]
        opened.close()
        if status == b"200":
            return
    raise AssertionError("closed streams still count")
