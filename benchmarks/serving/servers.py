"""What every server is to the benchmark: processes that can be started, paused and asked. And edgeserve's own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import procs
import wire
from bench import NAMES, PYTHON, Bench
from client import Target, WrongAnswerError, ask, call
from wire import Model, Request

SHM, UDS, TCP, JSON, GRPC = WAYS = ("shm", "uds-binary", "tcp-binary", "tcp-json", "grpc")
"""How tensors travel: in Triton's system shared memory, binary over a Unix socket and over TCP, JSON, gRPC."""
START_S = 90.0


class UnsupportedError(Exception):
    """A server cannot do a row; says why."""


class NotStartedError(Exception):
    """A server does not run here; says why."""


class Server:
    """A server with all three models. Sub-classes say how it is started and which requests it takes."""

    name = ""
    missing: dict[str, str] = {}  # noqa: RUF012 - by way: why it has it not
    protocol = "Open Inference Protocol"

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self._children: list[procs.Child] = []
        self._regions: dict[str, tuple[str, Path]] = {}

    def launch(self, cores: Sequence[int]) -> None:
        """Start on the cores given, with as many instances of a model as there are cores; do not wait."""
        raise NotImplementedError

    def target(self, model: Model, way: str) -> Target:
        """Where a request of that way goes.

        Raises:
            UnsupportedError: The server cannot do that.
        """
        raise NotImplementedError

    def first(self) -> Target:
        """The plainest request there is, for the first answer after a start."""
        return self.target(self.bench.models["mlp"], JSON)

    def start(self, cores: Sequence[int]) -> None:
        """Start and wait until each model answers.

        Raises:
            NotStartedError: It ended, or never answered rightly.
        """
        self.launch(cores)
        for name in NAMES:
            self.until(lambda name=name: ask(self.target(self.bench.models[name], JSON), timeout_s=5))
        self._share()

    def first_answer(self) -> None:
        """Wait for the first right answer after `launch`."""
        self.until(lambda: ask(self.first(), timeout_s=5), pause_s=0.002)

    def until(self, attempt: Callable[[], object], *, pause_s: float = 0.1) -> None:
        """Repeat an attempt until it succeeds."""
        deadline = time.monotonic() + START_S
        while (error := _attempt(attempt)) is not None:
            ended = [child for child in self._children if child.popen.poll() is not None]
            if ended or time.monotonic() > deadline:
                log = (ended or self._children)[0].log.read_text(errors="replace")
                last = (log.strip() or "nothing").splitlines()[-1]
                self.stop()
                what = "it ended" if ended else f"it was not ready after {START_S:.0f} s ({error})"
                raise NotStartedError(f"{what}; it said last: {last[-200:]}") from error
            time.sleep(pause_s)

    @property
    def pids(self) -> list[int]:
        """Roots of its process trees."""
        return [child.pid for child in self._children]

    def pause(self) -> None:
        for pid in self.pids:
            procs.pause(pid)

    def resume(self) -> None:
        for pid in self.pids:
            procs.resume(pid)

    def stop(self) -> None:
        for child in self._children:
            procs.stop(child)
        self._children = []
        for _, path in self._regions.values():
            path.unlink(missing_ok=True)
        self._regions = {}

    def kill_and_count(self) -> float:
        """End it at once; its CPU seconds, to the microsecond when it has no children."""
        coarse = sum(map(procs.cpu_s, self.pids))
        if len(self._children) == 1 and len(procs.tree(self.pids[0])) == 1:
            child = self._children.pop()
            child.popen.kill()
            _, status, used = os.wait4(child.pid, 0)
            child.popen.returncode = os.waitstatus_to_exitcode(status)
            return used.ru_utime + used.ru_stime
        self.stop()
        return coarse

    def spawn(self, command: Sequence[str | Path], cores: Sequence[int], **environment: str) -> procs.Child:
        log = self.bench.folder / "logs" / f"{self.name}-{time.monotonic_ns()}.log"
        log.parent.mkdir(exist_ok=True)
        child = procs.start(command, cores=cores, log=log, environment=environment)
        self._children.append(child)
        return child

    def oip(self, model: Model, way: str) -> Request:
        """A request of the Open Inference Protocol."""
        if way in self.missing:
            raise UnsupportedError(self.missing[way])
        if way == SHM:
            if model.name not in self._regions:
                raise UnsupportedError("no shared memory")
            region, _ = self._regions[model.name]
            return wire.shm_request(model, region, f"/{region}")
        return {UDS: wire.binary_request, TCP: wire.binary_request, JSON: wire.json_request, GRPC: wire.grpc_request}[
            way
        ](model)

    def _share(self) -> None:
        """Make regions of shared memory and tell the server of them."""
        if SHM in self.missing:
            return
        for model in self.bench.models.values():
            region = f"bench-{self.name}-{os.getpid()}-{self._children[0].pid}-{model.name}"
            path, size = Path("/dev/shm") / region, len(model.input) + len(model.output)
            path.write_bytes(bytes(size))
            self._regions[model.name] = (region, path)
            self._register(model, *wire.shm_register(region, f"/{region}", size))

    def _register(self, model: Model, path: str, body: bytes) -> None:
        call(self.target(model, JSON).address, path, body)


class Edgeserve(Server):
    """`edgeserve serve`, with nothing switched off."""

    name = "edgeserve"

    def __init__(self, bench: Bench, *, grpc: bool = True, only: str = "") -> None:
        """`grpc`: with a gRPC port; `only`: serve the file of this model alone, as the plainest start."""
        super().__init__(bench)
        self._grpc, self._only = grpc, only
        self._said: dict[str, dict[str, str]] = {}  # by model, or "" for all
        options = _options_of_serve()
        self.missing = {
            way: f"{option} is not supported by this build"
            for way, option in ((SHM, "--allow-shm"), (UDS, "--uds"), (GRPC, "--grpc"))
            if option not in options
        }
        if not grpc:
            self.missing.setdefault(GRPC, "gRPC is off")

    def launch(self, cores: Sequence[int]) -> None:
        if self._only:
            self._serve(self.bench.model_file(self._only), cores, self._only)
            return
        try:
            self._serve(self.bench.repository, cores, "")
        except NotStartedError as reason:
            # Until it takes a repository: a process for each model.
            print(f"edgeserve serves no repository, one process per model instead: {reason}", file=sys.stderr)
            for name in NAMES:
                self._serve(self.bench.model_file(name), cores, name)

    def _serve(self, what: Path, cores: Sequence[int], name: str) -> None:
        command: list[str | Path] = [PYTHON.with_name("edgeserve"), "serve", what, "--http", "127.0.0.1:0", "--json"]
        if name:
            command += ["--name", name]
        if UDS not in self.missing:
            command += ["--uds", self.bench.sockets / f"{time.monotonic_ns()}.sock"]
        if GRPC not in self.missing:
            command += ["--grpc", "127.0.0.1:0"]
        if SHM not in self.missing:
            command += ["--allow-shm"]
        child = self.spawn(command, cores)
        self.until(lambda: self._said.update({name: _json_line(child.log)}), pause_s=0.002)

    def target(self, model: Model, way: str) -> Target:
        request = self.oip(model, way)
        said = self._said.get(model.name) or self._said[""]
        if way == GRPC:
            address = said["grpc"].rpartition("//")[2]
        elif way in (SHM, UDS) and "uds" in said:
            address = "unix:" + said["uds"].removeprefix("unix:")
        else:
            address = said["http"].removeprefix("http://")
        return Target(address=address, request=request, model=model)

    def facts(self) -> dict[str, str]:
        """What the page says of it: the bounds depend on whether gRPC is spoken by grpcio."""
        found = {}
        if GRPC not in self.missing:
            own = not any(procs.maps(pid, "cygrpc") for pid in self.pids)
            found["edgeserve's gRPC"] = "its own HTTP/2" if own else "grpcio"
        if len(self.pids) > 1:
            found["edgeserve"] = "one process per model, for this build serves no repository"
        return found


class Daemon(Server):
    """The serving process of a device, as its agent starts it."""

    name = "edgeserve (daemon)"
    missing = {way: "starts only" for way in WAYS if way != JSON}  # noqa: RUF012

    def __init__(self, bench: Bench, state_dir: Path) -> None:
        super().__init__(bench)
        self._state_dir = state_dir

    def launch(self, cores: Sequence[int]) -> None:
        (self._state_dir / "addresses.json").unlink(missing_ok=True)
        command = [PYTHON, "-m", "edgeserve_agent.serving", "--state-dir", self._state_dir, "--http", "127.0.0.1:0"]
        self.spawn(command, cores)

    def target(self, model: Model, way: str) -> Target:
        said = json.loads((self._state_dir / "addresses.json").read_bytes())
        return Target(address=said["http"].removeprefix("http://"), request=self.oip(model, way), model=model)


def _attempt(what: Callable[[], object]) -> Exception | None:
    try:
        what()
    except (OSError, WrongAnswerError, LookupError) as error:
        return error
    return None


def _options_of_serve() -> set[str]:
    command = [PYTHON.with_name("edgeserve"), "serve", "--help"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"--[a-z][a-z-]+", said))


def _json_line(log: Path) -> dict[str, str]:
    """The object that `--json` prints once the server listens; LookupError until it is there."""
    text = log.read_text(errors="replace")
    for begin in re.finditer(r"^\{", text, re.MULTILINE):
        with contextlib.suppress(ValueError):
            return dict(json.JSONDecoder().raw_decode(text, begin.start())[0])
    raise LookupError("it did not say where it listens")
