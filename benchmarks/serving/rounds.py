"""The interleaved rounds: every server is up, all but one are paused, and each round visits each of them once."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import procs
from bench import HERE, PYTHON, Bench
from client import Sample, Target, WrongAnswerError, background, measure
from findings import OWN, RAW, Findings
from servers import GRPC, JSON, SHM, TCP, UDS, WAYS, Edgeserve, Server, UnsupportedError
from wire import Request, floats

CONNECTIONS = 32
ARRANGEMENTS = ("one caller a core, 1 thread each", "1 caller, a thread a core", "1 caller, a spinning thread a core")


class RawProcess:
    """raw.py on the cores given, waiting for commands while it is not its turn."""

    def __init__(self, bench: Bench, cores: Sequence[int]) -> None:
        command = ["taskset", "-c", ",".join(map(str, cores)), PYTHON, HERE / "raw.py", bench.folder]
        self._popen = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=procs.environment_of({}),
        )
        self.versions = self.ask(do="load")

    @property
    def pid(self) -> int:
        return self._popen.pid

    def ask(self, **command: object) -> dict:
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        self._popen.stdin.write(json.dumps(command) + "\n")
        self._popen.stdin.flush()
        return json.loads(self._popen.stdout.readline())

    def stop(self) -> None:
        self._popen.communicate()


class Echoes(Server):
    """The two echo servers, for requests and replies of given lengths."""

    name = "echo"

    def __init__(self, bench: Bench, request_bytes: int, reply_bytes: int) -> None:
        super().__init__(bench)
        self._sizes = (request_bytes, reply_bytes)
        self._paths = {kind: bench.sockets / f"echo-{kind}.sock" for kind in ("c", "python")}

    def launch(self, cores: Sequence[int]) -> None:
        request, reply = map(str, self._sizes)
        for path in self._paths.values():
            path.unlink(missing_ok=True)
        c, python = self._paths.values()
        self.spawn(
            [self.bench.loadgen, "--echo", f"unix:{c}", "--request-bytes", request, "--reply-bytes", reply], cores
        )
        self.spawn([PYTHON, HERE / "echo.py", python, request, reply], cores)
        for path in self._paths.values():
            self.until(lambda path=path: _connect(path))

    def echo(self, kind: str) -> Target:
        model = self.bench.models["mlp"]
        body, reply = bytes(self._sizes[0]), self._sizes[1]
        request = Request(proto="bytes", path="/", body=body, reply_bytes=reply, read=lambda _: floats(model.output))
        return Target(address=f"unix:{self._paths[kind]}", request=request, model=model)


def _connect(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.connect(str(path))


@dataclass(frozen=True, kw_only=True)
class Stage:
    """All that is up for the rounds."""

    bench: Bench
    findings: Findings
    raw: RawProcess
    """On the server's core."""
    raw_wide: RawProcess
    """On all cores."""
    narrow: list[Server]
    """On the server's core."""
    wide: list[Server]
    """On all cores."""
    models: Sequence[str]


def one_round(stage: Stage) -> None:
    """Visit everything once, in this order in even rounds and the other way in odd ones."""
    step = -1 if stage.findings.round % 2 else 1
    for server in stage.narrow[::step]:
        with _awake(server):
            if server.name == OWN:
                # Right before and right after: their mean is the bare runtime of this minute.
                before = _raw(stage)
                _pinned_rows(stage, server)
                _echoes(stage, server)
                after = _raw(stage)
                for model, found in before.items():
                    mean = {name: (value + after[model][name]) / 2 for name, value in found.items()}
                    stage.findings.add(RAW, model, **mean)
            else:
                _pinned_rows(stage, server)
    if "cnn" in stage.models:
        for server in stage.wide[::step]:
            with _awake(server):
                _wide_rows(stage, server)
            if server.name == OWN:
                _raw_wide(stage)


@contextlib.contextmanager
def _awake(server: Server) -> Iterator[None]:
    server.resume()
    try:
        yield
    finally:
        server.pause()


def _raw(stage: Stage) -> dict[str, dict[str, float]]:
    durations = stage.bench.durations
    secs = {"mlp": durations.tiny / 2, "cnn": durations.big}
    return {name: stage.raw.ask(do="calls", name=name, secs=secs[name]) for name in stage.models}


def _raw_wide(stage: Stage) -> None:
    cores = len(stage.bench.all_cores)
    for name, (callers, threads, spin) in zip(
        ARRANGEMENTS, ((cores, 1, False), (1, cores, False), (1, cores, True)), strict=True
    ):
        found = stage.raw_wide.ask(
            do="throughput", name="cnn", secs=stage.bench.durations.big, callers=callers, threads=threads, spin=spin
        )
        stage.findings.add(RAW, f"all/{name}", rps=found["rps"])


def _pinned_rows(stage: Stage, server: Server) -> None:
    durations = stage.bench.durations
    if "mlp" in stage.models:
        for way in WAYS:
            _row(stage, server, f"mlp32/{way}", "mlp", way, connections=CONNECTIONS, secs=durations.tiny)
        for way in (UDS, TCP, JSON):
            _row(stage, server, f"mlp1/{way}", "mlp", way, connections=1, secs=durations.tiny / 2)
    if "cnn" in stage.models:
        for way in WAYS:
            _row(stage, server, f"cnn1/{way}", "cnn", way, connections=1, secs=_big_secs(stage, server))


def _big_secs(stage: Stage, server: Server) -> float:
    return stage.bench.durations.big / (1 if isinstance(server, Edgeserve) else 2)


def _row(
    stage: Stage, server: Server, row: str, model: str, way: str, *, connections: int, secs: float, **more
) -> Sample | None:
    """Measure one row and write it down, or why it cannot be."""
    if f"{server.name}|{row}" in stage.findings.missing:
        return None
    try:
        target = server.target(stage.bench.models[model], way)
        sample = measure(stage.bench, server.pids, target, connections=connections, secs=secs, **more)
    except UnsupportedError as reason:
        stage.findings.lack(server.name, row, str(reason))
        return None
    except (WrongAnswerError, subprocess.TimeoutExpired) as reason:
        print(f"{server.name} {row}: {reason}", file=sys.stderr)
        stage.findings.lack(server.name, row, f"failed: {str(reason)[:200]}")
        return None
    stage.findings.add(
        server.name, row, cpu_us=sample.cpu_us, p50_us=sample.p50_us, min_us=sample.min_us, rps=sample.rps,
        client_busy=sample.client_busy,
    )  # fmt: skip
    return sample


def _echoes(stage: Stage, server: Server) -> None:
    """The echo of the bytes of a request of the tiny model as the Unix socket carries it (TCP where there is none)."""
    if "mlp" not in stage.models:
        return
    way = TCP if UDS in server.missing else UDS
    sample = measure(stage.bench, server.pids, server.target(stage.bench.models["mlp"], way), connections=1, secs=0.1)
    echoes = Echoes(stage.bench, sample.request_bytes, sample.reply_bytes)
    echoes.launch(stage.bench.server_cores)
    try:
        for kind in ("c", "python"):
            found = measure(
                stage.bench, echoes.pids, echoes.echo(kind), connections=1, secs=stage.bench.durations.tiny / 2
            )
            stage.findings.add("echo", kind, min_us=found.min_us, p50_us=found.p50_us)
    finally:
        echoes.stop()


def _wide_rows(stage: Stage, server: Server) -> None:
    cores = stage.bench.all_cores
    best = next((way for way in (TCP, GRPC, JSON) if way not in server.missing), JSON)
    more = (SHM, UDS) if isinstance(server, Edgeserve) else ()
    for way in (*more, best):
        row = "all/served" if way == best else f"all/{way}"
        _row(stage, server, row, "cnn", way, connections=2 * len(cores), secs=_big_secs(stage, server), cores=cores)
    if "mlp" in stage.models:
        _beside(stage, server, best)


def _beside(stage: Stage, server: Server, way: str) -> None:
    """The tiny model's latency while one client keeps the CNN busy, which takes one core."""
    bench, secs = stage.bench, stage.bench.durations.tiny
    own_way = UDS if UDS not in server.missing else (TCP if TCP not in server.missing else JSON)
    heavy = server.target(bench.models["cnn"], way)
    with background(bench, heavy, connections=1, secs=secs + 1.2) as rates:
        _row(stage, server, "beside", "mlp", own_way, connections=1, secs=secs, cores=bench.all_cores)
    if rates:
        stage.findings.add(server.name, "beside", cnn_rps=rates[0])
