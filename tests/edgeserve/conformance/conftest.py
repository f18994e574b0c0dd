from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import urllib3

from edgeserve.conformance.http import Http
from edgeserve.conformance.run import Report, Verdict, chosen, run
from edgeserve.conformance.target import Target

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@dataclass(frozen=True)
class Message:
    """A request or an answer on its way through the proxy."""

    verb: str = ""
    path: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def with_json(self, document: Any) -> Message:
        """The same answer with another JSON body and nothing binary."""
        return replace(self, body=json.dumps(document).encode(), headers={"Content-Type": "application/json"})

    def changed(self, **fields: Any) -> Message:
        """The same JSON with some keys changed; None leaves one out."""
        document = {**self.json, **fields}
        return self.with_json({key: value for key, value in document.items() if value is not None})


Fault = Callable[[Message, Callable[[Message], Message]], Message]
"""Is given a request and what forwards one to the real server; returns the answer that the client gets."""


class FaultyProxy:
    """A real server behind a proxy that spoils some requests or answers."""

    def __init__(self, upstream: str, fault: Fault) -> None:
        self._pool = urllib3.PoolManager(maxsize=16, retries=False, timeout=10)
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # head and body in one packet: apart they wait for each other's acknowledgement

            def answer(self) -> None:
                asked = Message(verb=self.command, path=self.path, headers=dict(self.headers), body=self.read_body())
                reply = fault(asked, lambda message: proxy.forward(upstream, message))
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(reply.body)))
                self.end_headers()
                self.wfile.write(reply.body)

            do_GET = do_POST = answer  # noqa: N815

            def read_body(self) -> bytes:
                if self.headers.get("Transfer-Encoding") != "chunked":
                    return self.rfile.read(int(self.headers.get("Content-Length") or 0))
                parts = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)

            def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
                """Nothing: tests print what they need."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def forward(self, upstream: str, message: Message) -> Message:
        dropped = {"host", "content-length", "transfer-encoding", "connection"}
        headers = {name: value for name, value in message.headers.items() if name.lower() not in dropped}
        answer = self._pool.request(
            message.verb, upstream + message.path, body=message.body, headers=headers, decode_content=False
        )
        kept = {name: value for name, value in answer.headers.items() if name.lower() not in dropped}
        return Message(status=answer.status, headers=kept, body=answer.data)

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._pool.clear()


@contextmanager
def serving(*arguments: str) -> Iterator[dict[str, Any]]:
    """`edgeserve serve` in a process of its own; yields what it prints as JSON."""
    command = [sys.executable, "-m", "edgeserve", "serve", *arguments, "--http", "127.0.0.1:0", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        lines = []
        while line := process.stdout.readline():
            lines.append(line)
            if line.startswith("}"):
                break
        yield json.loads("".join(lines))
    finally:
        process.terminate()
        process.wait(timeout=20)
        process.stdout.close()


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """The suite's own model repository."""
    from edgeserve.conformance.models import write_models

    folder = tmp_path_factory.mktemp("conformance") / "models"
    write_models(folder)
    return folder


@pytest.fixture(scope="session")
def server(models):
    """URL of edgeserve's own server with every model of the suite."""
    with serving(str(models)) as printed:
        yield printed["http"]


@dataclass(frozen=True)
class Tools:
    message: type[Message]
    check: Callable[..., Report]
    failed: Callable[[Report], set[str]]
    spoiled: Callable[[str, Fault], Any]


def _check(url: str, *only: str, assumed: tuple[str, ...] = ()) -> Report:
    return run(Target(Http(url, timeout_s=10), assumed=assumed), chosen(only))


def _failed(report: Report) -> set[str]:
    return {outcome.id for outcome in report.outcomes if outcome.verdict is Verdict.FAIL}


@contextmanager
def _spoiled(upstream: str, fault: Fault) -> Iterator[str]:
    proxy = FaultyProxy(upstream, fault)
    try:
        yield proxy.url
    finally:
        proxy.close()


@pytest.fixture(scope="session")
def tools():
    return Tools(message=Message, check=_check, failed=_failed, spoiled=_spoiled)
