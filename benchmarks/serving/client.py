"""The load client's side of a measurement: run it against a server, count the server's CPU, check the answer."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import procs
from bench import Bench
from wire import Model, Request, floats

RELATIVE, ABSOLUTE = 1e-4, 1e-6
"""How far an answer may lie from the bare runtime's: enough for a decimal text, far too little for a wrong answer."""


class WrongAnswerError(Exception):
    """What a server said is not what the model computes, or it said nothing."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where a request goes."""

    address: str
    """`HOST:PORT` or `unix:PATH`."""
    request: Request
    model: Model


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One measurement of one row."""

    cpu_us: float
    """Server's CPU of the process tree over all requests that were answered."""
    min_us: float
    p50_us: float
    rps: float
    total: int
    opened: int
    errors: int
    client_busy: float
    """Share of its core that the client used: near 1 it was the client that bounded the throughput."""
    request_bytes: int
    reply_bytes: int


def measure(
    bench: Bench,
    pids: Sequence[int],
    target: Target,
    *,
    connections: int,
    secs: float,
    cores: Sequence[int] | None = None,
    warm: float = 0.2,
) -> Sample:
    """Load a server for `secs` and check the last answer.

    Args:
        pids: Roots of the server's process trees.
        cores: Of the client; its own one if not given.

    Raises:
        WrongAnswerError: A request failed or the answer is wrong.
    """
    with _command(bench, target, connections, secs, warm, cores or bench.client_cores) as (command, save):
        before = sum(map(procs.cpu_s, pids))
        ran = subprocess.run(command, capture_output=True, text=True, timeout=secs + warm + 60, check=False)
        cpu = sum(map(procs.cpu_s, pids)) - before
        if ran.returncode:
            raise WrongAnswerError(ran.stderr.strip())
        found = json.loads(ran.stdout)
        if found["errors"] or found["connection_errors"] or not found["measured"]:
            raise WrongAnswerError(
                f"{found['errors']} errors (last: {found['last_error']}), {found['connection_errors']} broken "
                f"connections, {found['measured']} answers: {save.read_bytes()[-200:] if save.exists() else b''!r}"
            )
        check(target, save.read_bytes())
    return Sample(
        cpu_us=cpu / found["total"] * 1e6,
        min_us=found["min_us"],
        p50_us=found["p50_us"],
        rps=found["rps"],
        total=found["total"],
        opened=found["opened"],
        errors=found["errors"],
        client_busy=found["client_cpu_s"] / (secs + warm),
        request_bytes=found["request_bytes"],
        reply_bytes=found["reply_bytes"],
    )


@contextlib.contextmanager
def background(bench: Bench, target: Target, *, connections: int, secs: float) -> Iterator[list[float]]:
    """Load a server beside the body of the `with`; requests per second are in the list afterwards. Client unpinned."""
    rates: list[float] = []

    def work() -> None:
        with _command(bench, target, connections, secs, 0, bench.all_cores) as (command, _):
            ran = subprocess.run(command, capture_output=True, text=True, timeout=secs + 60, check=False)
            if ran.returncode == 0:
                rates.append(json.loads(ran.stdout)["rps"])

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.2)
    try:
        yield rates
    finally:
        thread.join()


@contextlib.contextmanager
def _command(
    bench: Bench, target: Target, connections: int, secs: float, warm: float, cores: Sequence[int]
) -> Iterator[tuple[list[str], Path]]:
    request = target.request
    names = [bench.folder / f"{kind}-{threading.get_ident()}" for kind in ("body", "input", "reply")]
    body, data, save = names
    body.write_bytes(request.body)
    command = ["taskset", "-c", ",".join(map(str, cores)), bench.loadgen, "--addr", target.address]
    command += ["--proto", request.proto, "--path", request.path, "--body", body, "--save", save]
    command += ["--connections", connections, "--secs", secs, "--warm", warm]
    for header in request.headers:
        command += ["--header", header]
    if request.reply_bytes:
        command += ["--reply-bytes", request.reply_bytes]
    if request.shm:
        data.write_bytes(target.model.input)
        command += ["--shm", request.shm, "--shm-input", data]
        blank_output(target)
    try:
        yield [str(part) for part in command], save
    finally:
        for name in names:
            name.unlink(missing_ok=True)


def blank_output(target: Target) -> None:
    """What an earlier row left in the shared output must not pass for an answer."""
    name, _, _, at, size = target.request.shm.split(":")
    with Path(f"/dev/shm{name}").open("r+b") as region:
        region.seek(int(at))
        region.write(bytes(int(size)))


def check(target: Target, reply: bytes) -> None:
    """Compare a reply with what the bare runtime computed.

    Raises:
        WrongAnswerError: It differs, or cannot be read.
    """
    wanted = floats(target.model.output)
    try:
        got = target.request.read(reply)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise WrongAnswerError(f"the reply cannot be read ({error!r}): {reply[:200]!r}") from error
    if len(got) != len(wanted):
        raise WrongAnswerError(f"{len(got)} numbers, not {len(wanted)}")
    for index, (one, other) in enumerate(zip(got, wanted, strict=True)):
        if not abs(one - other) <= ABSOLUTE + RELATIVE * abs(other):
            raise WrongAnswerError(f"number {index} is {one}, not {other}")


def call(address: str, path: str, body: bytes, headers: Sequence[str] = (), *, timeout_s: float = 30) -> bytes:
    """POST once and return head and body of the response.

    Raises:
        OSError: It cannot be reached.
        WrongAnswerError: Its status is not 200.
    """
    unix = address.startswith("unix:")
    with socket.socket(socket.AF_UNIX if unix else socket.AF_INET) as connection:
        connection.settimeout(timeout_s)
        host, _, port = address.rpartition(":")
        connection.connect(address[5:] if unix else (host, int(port)))
        lines = [
            f"POST {path} HTTP/1.1",
            "Host: localhost",
            "Connection: close",
            f"Content-Length: {len(body)}",
            *headers,
        ]
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        response = http.client.HTTPResponse(connection, method="POST")
        try:
            response.begin()
            content = response.read()
        except http.client.HTTPException as error:
            raise ConnectionError(f"no HTTP response: {error!r}") from error
    if response.status != 200:
        raise WrongAnswerError(f"{path}: {response.status} {content[:300]!r}")
    kept = [f"{name}: {value}" for name, value in response.getheaders() if name.lower() != "transfer-encoding"]
    return "\r\n".join(["HTTP/1.1 200", *kept, "", ""]).encode() + content


def ask(target: Target, *, timeout_s: float = 30) -> None:
    """Send an HTTP request once and check the answer.

    Raises:
        OSError: The server cannot be reached.
        WrongAnswerError: It answers something else.
    """
    request = target.request
    check(target, call(target.address, request.path, request.body, request.headers, timeout_s=timeout_s))
