"""Real releases of the null runtime, a real HTTP server in the place of the manager, real agent processes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeserve.contracts.desired import DESIRED_TYPE, HALT_TYPE, Desired, Generation, Halt, ModelTarget
from edgeserve.contracts.documents import encode
from edgeserve.contracts.oci import GOLDEN_TYPE
from edgeserve.contracts.reported import Event, Reported
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve.contracts.variant import Precision, Selector, Tolerance, VariantContract
from edgeserve.golden import Golden
from edgeserve.release.blobs import BlobFolder
from edgeserve.release.build import ReleaseBuilder
from edgeserve.release.layout import Release
from edgeserve.trust import envelope
from edgeserve.trust.keys import SigningKey
from edgeserve_agent import control, slots
from edgeserve_agent.config import AgentConfig, build
from edgeserve_agent.journal import Journal, read_journal

DEADLINE_S = 20.0
DEVICE = "default.pi-1"
TOKEN = "device-token"
SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", datatype=Datatype.FP32, shape=(-1, 4)),),
    outputs=(TensorSpec(name="y", datatype=Datatype.FP32, shape=(-1, 3)),),
)


def eventually(condition: Callable[[], Any], *, within: float = DEADLINE_S) -> Any:
    """Poll until `condition` gives something true, and return it."""
    deadline = time.monotonic() + within
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)
    return found


class Releases:
    """Makes releases; each version has a file of its own, and one file is in all of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def make(
        self, version: str = "1", *, counter: int = 1, model: str = "digits", golden: bool = True, good: bool = True,
        padding: int = 0, beside: tuple[dict[str, Any], ...] = (), **changes: Any,
    ) -> Release:  # fmt: skip
        """`changes` are of the contract; each of `beside` makes a further variant. `signature` is the model's, too."""
        fields: dict[str, Any] = {
            "model": model, "target": "null", "precision": Precision.FP32, "runtime": "null",
            "entry": "model.null.json", "signature": SIGNATURE, "selector": Selector(),
            "tolerance": Tolerance(atol=1e-6),
        }  # fmt: skip
        builder = ReleaseBuilder(name=model, version=version, counter=counter)
        for number, differences in enumerate((changes, *beside)):
            contract = VariantContract(**{**fields, **differences})
            content = version.encode() + b"\0" * (padding + number)
            files = {"model.null.json": encode(contract.signature), "weights.bin": content}
            paths = {name: self.folder / f"{number}-{name}" for name in files}
            for name, data in files.items():
                paths[name].write_bytes(data)
            builder.add_variant(contract, paths)
        if golden:
            rows = np.arange(8, dtype=np.float32).reshape(2, 4)
            answers = np.repeat(rows.sum(axis=1, keepdims=True), 3, axis=1) + (0 if good else 1)
            data = Golden(inputs={"x": rows}, outputs={"y": answers.astype(np.float32)}).dump()
            builder.add_evidence("golden.npz", GOLDEN_TYPE, data)
        return builder.write(self.folder / f"{model}-{version}")


def target_of(release: Release, /, **changes: Any) -> ModelTarget:
    fields: dict[str, Any] = {
        "model": release.identity.name, "release": release.digest, "version": release.identity.version,
        "counter": release.identity.counter, "index_size": release.index_size, "probation_s": 0.0,
    }  # fmt: skip
    return ModelTarget(**{**fields, **changes})


@dataclass
class Manager:
    """A manager as far as a device sees it: signed documents, reports, a registry."""

    blobs: BlobFolder
    url: str = ""
    key: SigningKey = field(default_factory=SigningKey.generate)
    envelope: bytes | None = None
    halted: bytes | None = None
    n: int = 0
    reported: Reported | None = None
    events: list[Event] = field(default_factory=list)
    stats: list[bytes] = field(default_factory=list)
    gets: list[str] = field(default_factory=list)
    acknowledge: bool = True
    refuse: str = ""
    """`halt` or `desired`: answered with status 500."""

    def publish(self, release: Release) -> ModelTarget:
        for blob in release.blob_descriptors():
            self.blobs.add(release.blobs.read(blob.digest, limit=1 << 30))
        return target_of(release)

    def document(self, *targets: ModelTarget, **changes: Any) -> Desired:
        now = time.time()
        fields: dict[str, Any] = {
            "id": f"d-{self.n}", "issuer": "fm", "device": DEVICE, "gen": Generation(1, self.n), "issued_at": now,
            "expires_at": now + 3600, "registry": self.url, "models": targets,
        }  # fmt: skip
        return Desired(**{**fields, **changes})

    def sign(self, document: Any, payload_type: str = DESIRED_TYPE) -> bytes:
        return envelope.sign(document, payload_type=payload_type, key=self.key)

    def want(self, *targets: ModelTarget, **changes: Any) -> bytes:
        self.n += 1
        self.envelope = self.sign(self.document(*targets, **changes))
        return self.envelope

    def halt(self, *releases: str) -> None:
        self.n += 1
        document = Halt(id=f"h-{self.n}", issuer="fm", term=1, version=self.n, releases=releases)
        self.halted = self.sign(document, HALT_TYPE)

    def states(self) -> list[str]:
        return [f"{event.state.value}" for event in self.events]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every answer waits 40 ms for a delayed acknowledgement
    manager: Manager

    def do_GET(self) -> None:
        manager = self.manager
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer(401)
            return
        if self.path.startswith("/v1/me/"):
            envelope = {"/v1/me/desired": manager.envelope, "/v1/me/halt": manager.halted}[self.path]
            if envelope is None or self.path.endswith(manager.refuse or " "):
                self._answer(500 if manager.refuse else 204)
                return
            etag = f'"{hashlib.sha256(envelope).hexdigest()}"'
            known = self.headers.get("If-None-Match") == etag
            self._answer(304 if known else 200, b"" if known else envelope, {"ETag": etag})
            return
        manager.gets.append(self.path)
        digest = self.path.rpartition("/")[2]
        if not manager.blobs.has(digest):
            self._answer(404)
            return
        data = manager.blobs.path(digest).read_bytes()
        start = self.headers.get("Range", "").removeprefix("bytes=").removesuffix("-")
        if start:
            headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
            self._answer(206, data[int(start) :], headers)
        else:
            self._answer(200, data)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/v1/me/reported":
            self.manager.reported = _decode(body, Reported)
            self._answer(204)
        elif self.path == "/v1/me/events":
            events = _decode(body, list[Event])
            if not self.manager.acknowledge:
                self._answer(500)
                return
            self.manager.events += [event for event in events if event not in self.manager.events]
            last = events[-1].fence
            ack = {"device": DEVICE, "install_id": last.install_id, "epoch": last.epoch, "seq": last.seq}
            self._answer(200, json.dumps(ack).encode())
        else:
            self.manager.stats.append(body)
            self._answer(204)

    def _answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status not in (204, 304):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name in http.server
        pass


def _decode(body: bytes, kind: Any) -> Any:
    import msgspec

    return msgspec.json.decode(body, type=kind)


@pytest.fixture(name="eventually")
def _eventually() -> Callable[..., Any]:
    return eventually


@pytest.fixture
def target() -> Callable[..., ModelTarget]:
    """The line of a desired document for a release."""
    return target_of


@pytest.fixture
def releases(tmp_path: Path) -> Releases:
    return Releases(tmp_path / "releases")


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(BlobFolder(tmp_path / "registry"))
    handler = type("Handler", (_Handler,), {"manager": made})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    made.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield made
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def state_dir() -> Iterator[Path]:
    """Short enough for a socket, which pytest's own folders are not; in memory, where fsync costs nothing."""
    memory = "/dev/shm"
    folder = Path(tempfile.mkdtemp(prefix="es-", dir=memory if os.access(memory, os.W_OK) else None))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def configure(state_dir: Path, manager: Manager) -> Callable[..., AgentConfig]:
    """Makes a configuration; sections are given as dictionaries, None leaves one out."""

    def make(**sections: Any) -> AgentConfig:
        document: dict[str, Any] = {
            "device": {"id": DEVICE},
            "manager": {"url": manager.url, "token": TOKEN, "key": manager.key.public.text, "poll_s": 0.2},
            "serving": {"http": "127.0.0.1:0"},
            "limits": {"minimum_probation_s": 0.0},
            "telemetry": {"stats_s": 0.5},
            "state_dir": str(state_dir),
        }
        for name, section in sections.items():
            known = document.get(name)
            document[name] = {**known, **section} if isinstance(known, dict) and section is not None else section
        return build({name: section for name, section in document.items() if section is not None}, "test")

    return make


class Agent:
    """An agent process as it is deployed."""

    def __init__(self, config: AgentConfig, folder: Path) -> None:
        self.config = config
        self.file = folder / "agent.toml"
        self.file.write_text(_toml(config))
        self.log = folder / "agent.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Agent:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "edgeserve_agent", "--config", str(self.file)], stdout=log, stderr=log
            )
        return self

    def kill(self) -> None:
        """SIGKILL to the control part alone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(DEADLINE_S)

    def status(self) -> control.ServingStatus | None:
        try:
            return control.call(self.config.socket_path, control.Status(), control.ServingStatus)
        except Exception:  # noqa: BLE001 - not there yet
            return None

    def active(self, model: str = "digits") -> str:
        """Version that answers; empty when none does."""
        status = self.status()
        found = [one.version for one in status.releases if one.active and one.model == model] if status else []
        return found[0] if found else ""

    def journal(self) -> Journal:
        found = read_journal(self.config.folder)
        assert found is not None
        return found

    def slots(self, model: str = "digits") -> slots.ModelSlots:
        return slots.read(self.config.folder).of(model)

    def end(self) -> None:
        status = self.status()
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if status is not None:
            with_serving_gone(status.pid)


def with_serving_gone(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _toml(config: AgentConfig) -> str:
    import msgspec

    lines = []
    tables = []
    for name, value in msgspec.to_builtins(config).items():
        if isinstance(value, dict):
            tables.append(f"[{name}]")
            tables += [f"{key} = {json.dumps(item)}" for key, item in value.items()]
        elif value is not None:
            lines.append(f"{name} = {json.dumps(value)}")
    return "\n".join((*lines, *tables)) + "\n"


@pytest.fixture
def agent(configure: Callable[..., AgentConfig], tmp_path: Path) -> Iterator[Callable[..., Agent]]:
    """Makes agents; what runs at the end of the test is ended."""
    made: list[Agent] = []

    def make(**sections: Any) -> Agent:
        made.append(Agent(configure(**sections), tmp_path))
        return made[-1]

    yield make
    for one in made:
        one.end()
        print(one.log.read_text() if one.log.exists() else "")  # pytest shows it when the test failed
