"""HTTP as a check needs it: every answer remembers what was sent, and nothing is retried, redirected or decoded."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, urlsplit

import urllib3

from edgeserve.conformance.check import NoAnswer, Violation
from edgeserve.contracts.errors import InputError, TransientError

_SHOWN: Final = 300
"""Characters of a body that a finding quotes."""
_MOST_RAW_BYTES: Final = 1 << 20
"""Of an answer on a raw socket that is read."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a server answered to one request."""

    sent: str
    status: int
    headers: Mapping[str, str]
    """Case does not matter when looking one up."""
    body: bytes

    @property
    def shown(self) -> str:
        """Status, content type and the begin of the body."""
        kind = self.headers.get("content-type", "no content type")
        return f"{self.status} ({kind}) {shorten(self.body.decode('utf-8', 'backslashreplace'))}".rstrip()

    def must(self, condition: object, expected: str, got: str = "") -> None:
        """Raise `Violation` unless `condition` holds; what was sent and came is known here."""
        if not condition:
            raise Violation(sent=self.sent, expected=expected, got=got or self.shown)

    def ok(self) -> Answer:
        """Status exactly 200: clients take 202 and 204 for failures."""
        self.must(self.status == 200, "status 200")
        return self

    def json(self) -> Any:  # noqa: ANN401 - whatever JSON has
        """The body as JSON."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            raise Violation(sent=self.sent, expected="a JSON body", got=self.shown) from None

    def document(self) -> dict[str, Any]:
        """The body as a JSON object."""
        found = self.json()
        self.must(isinstance(found, dict), "a JSON object")
        return dict(found)

    def refused(self, *, most: int = 599) -> str:
        """An error answer as the protocol has it: status and a JSON object with a text `error`; returns the text.

        Args:
            most: 599 for what the protocol's text asks ("an HTTP error status, typically 400"), 499 for "the client's
                mistake".
        """
        wanted = f'{"an error" if most == 599 else "a 4xx"} status and a JSON object {{"error": "..."}}'
        self.must(400 <= self.status <= most, wanted)
        try:
            found = json.loads(self.body)
        except (ValueError, RecursionError):
            found = None
        self.must(isinstance(found, dict) and isinstance(found.get("error"), str) and found["error"], wanted)
        return str(found["error"])


class Http:
    """Sends requests to one server.

    Args:
        url: Such as `http://127.0.0.1:8000`, with or without a path.
        timeout_s: For connecting, and again for each wait for bytes.

    Raises:
        InputError: `url` is not one.
    """

    def __init__(self, url: str, *, timeout_s: float) -> None:
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
            raise InputError(f"{url[:120]!r} is not the URL of a server", hint="write http://HOST:PORT")
        self.url = url.rstrip("/")
        self.host: str = parts.hostname
        self._secure = parts.scheme == "https"
        self._port = port or (443 if self._secure else 80)
        self._path = parts.path.rstrip("/")
        self._timeout_s = timeout_s
        self._pool = self._fresh_pool()

    def get(self, path: str, *, headers: Mapping[str, str] | None = None) -> Answer:
        """GET a path."""
        return self.send("GET", path, headers=headers)

    def post(
        self,
        path: str,
        document: object = None,
        *,
        body: bytes | Iterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """POST a JSON document, or a body as it is."""
        if body is None and document is not None:
            body = json.dumps(document).encode()
            headers = {"Content-Type": "application/json", **(headers or {})}
        return self.send("POST", path, body=b"" if body is None else body, headers=headers)

    def send(
        self,
        method: str,
        path: str,
        *,
        body: bytes | Iterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send a request; an iterable body goes out in chunks.

        Raises:
            Violation: The server gave no answer that is HTTP.
        """
        whole = body if isinstance(body, bytes | None) else b"(in chunks)"
        sent = " ".join(filter(None, (method, path, _headers(headers), shown_body(whole))))
        try:
            answer = self._pool.urlopen(
                method,
                self._path + path,
                body=body,
                headers=dict(headers or {}),
                redirect=False,
                decode_content=False,
                chunked=body is not None and not isinstance(body, bytes),
            )
        except urllib3.exceptions.HTTPError as error:
            self._pool = self._fresh_pool()
            raise NoAnswer(sent=sent, expected="an HTTP answer", got=f"{type(error).__name__}: {error}") from error
        if answer.status >= 500:  # such a server may close the connection without saying so
            self._pool = self._fresh_pool()
        return Answer(sent=sent, status=answer.status, headers=answer.headers, body=answer.data)

    def reach(self) -> None:
        """Make sure that something listens there.

        Raises:
            TransientError: Nothing does.
        """
        try:
            self._connect().close()
        except OSError as error:
            raise TransientError(
                f"no connection to {self.url}: {error}", hint="is the server running, and is this its HTTP port?"
            ) from error

    def raw(self, data: bytes, *, close: bool = True) -> bytes:
        """Send bytes on a connection of their own and return what comes until the end, or until the time is up.

        Args:
            data: Sent as they are.
            close: Say that nothing more will be sent.
        """
        received = bytearray()
        try:
            with self._connect() as connection:
                connection.sendall(data)
                if close and not self._secure:
                    connection.shutdown(socket.SHUT_WR)
                while len(received) < _MOST_RAW_BYTES and (part := connection.recv(65536)):
                    received += part
        except OSError:  # reset or silent: what came is the answer
            pass
        return bytes(received)

    def on_one_connection(self, talk: Callable[[socket.socket], None]) -> None:
        """Talk on a raw connection of its own."""
        with self._connect() as connection:
            talk(connection)

    def target(self, path: str) -> bytes:
        """A path as the request line of a raw request has it."""
        return (self._path + path).encode()

    def _fresh_pool(self) -> urllib3.HTTPConnectionPool:
        kind = urllib3.HTTPSConnectionPool if self._secure else urllib3.HTTPConnectionPool
        return kind(self.host, self._port, maxsize=16, retries=False, timeout=self._timeout_s)

    def _connect(self) -> socket.socket:
        connection = socket.create_connection((self.host, self._port), timeout=self._timeout_s)
        if self._secure:
            return ssl.create_default_context().wrap_socket(connection, server_hostname=self.host)
        return connection


def model_path(model: str, version: str = "") -> str:
    """`/v2/models/M[/versions/V]`, percent-encoded."""
    path = f"/v2/models/{quote(model, safe='')}"
    return f"{path}/versions/{quote(version, safe='')}" if version else path


def shorten(text: str) -> str:
    """Text that fits a finding."""
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text)} characters)"


def shown_body(body: bytes | None) -> str:
    """A body as a finding quotes it."""
    return "" if not body else shorten(body.decode("utf-8", "backslashreplace"))


def _headers(headers: Mapping[str, str] | None) -> str:
    shown = {name: value for name, value in (headers or {}).items() if name != "Content-Type"}
    return " ".join(f"[{name}: {value}]" for name, value in shown.items())
