"""A whole system on one machine: a real manager with its broker, real agents, a real client. No part is replaced."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgeserve.client.fleet import FleetClient
from edgeserve.client.inference import InferenceClient
from edgeserve.client.registry import RegistryClient
from edgeserve.contracts.errors import EdgeServeError
from edgeserve.contracts.oci import GOLDEN_TYPE
from edgeserve.contracts.task import Task
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve.contracts.variant import Precision, Selector, Tolerance, VariantContract
from edgeserve.demo.processes import Child, Children, wait_until
from edgeserve.demo.story import ASSETS
from edgeserve.demo.traffic import Traffic
from edgeserve.golden import Golden
from edgeserve.release.build import ReleaseBuilder
from edgeserve.release.layout import Release
from edgeserve.runtimes.base import RuntimeOptions
from edgeserve.runtimes.onnx import OnnxRuntime

MODEL = "digits"
SIGNATURE = Signature(
    inputs=(TensorSpec(name="image", datatype=Datatype.FP32, shape=(-1, 1, 8, 8)),),
    outputs=(TensorSpec(name="logits", datatype=Datatype.FP32, shape=(-1, 10)),),
)
STALLING_AGENT = Path(__file__).with_name("stalling_agent.py")


def build_release(folder: Path, version: str, *, counter: int) -> Release:
    """The demo's float model as a release with one variant that runs anywhere; the golden set is the model's own."""
    model_file = ASSETS / f"digits-{version}.onnx"
    with np.load(ASSETS / "validation.npz") as arrays:
        images = {"image": arrays["image"][:8]}
    model = OnnxRuntime().load(model_file, RuntimeOptions())
    golden = Golden(inputs=images, outputs=model.run(images))
    model.close()
    contract = VariantContract(
        model=MODEL,
        target="x86-cpu",
        precision=Precision.FP32,
        runtime="onnxruntime",
        entry="model.onnx",
        signature=SIGNATURE,
        task=Task(),
        selector=Selector(),
        tolerance=Tolerance(rtol=1e-3, atol=1e-3),
    )
    builder = ReleaseBuilder(name=MODEL, version=version, counter=counter)
    builder.add_variant(contract, {"model.onnx": model_file})
    builder.add_evidence("golden.npz", GOLDEN_TYPE, golden.dump())
    return builder.write(folder / f"{MODEL}-{version}")


@pytest.fixture(scope="session")
def releases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Release]:
    """v1 is weak, v2 good, v3 answers wrongly (but reproduces its golden set)."""
    folder = tmp_path_factory.mktemp("releases")
    return {version: build_release(folder, version, counter=n) for n, version in enumerate(("v1", "v2", "v3"), start=1)}


class World:
    """Processes and folders of one test."""

    def __init__(self, folder: Path, releases: Mapping[str, Release]) -> None:
        self.folder = folder
        self.releases = releases
        self.children = Children(folder / "logs")
        self.fleet_dir = folder / "fleet"
        self.listen = f"127.0.0.1:{free_port()}"
        self.manager: Child | None = None
        self.agents: dict[str, Child] = {}
        self._lives = 0

    # the manager ----------------------------------------------------------------------------------

    def start_manager(self) -> None:
        self._lives += 1
        (self.fleet_dir / "addresses.json").unlink(missing_ok=True)
        arguments = ["edgeserve", "fleet", "serve", "--state-dir", str(self.fleet_dir), "--listen", self.listen]
        self.manager = self.children.start(f"manager-{self._lives}", arguments, QUIET)
        wait_until("manager", self._manager_answers, child=self.manager)

    def stop_manager(self) -> None:
        assert self.manager is not None
        self.manager.signal(signal.SIGTERM)
        self.manager.wait()

    def kill_manager(self) -> None:
        """SIGKILL of the manager process alone, as the kernel would: its broker is left to itself."""
        assert self.manager is not None
        self.manager.process.kill()
        self.manager.wait()

    def kill_broker(self) -> None:
        """SIGKILL of the embedded broker."""
        assert self.manager is not None
        for pid in descendants(self.manager.process.pid):
            if Path(f"/proc/{pid}/comm").read_text().strip() == "mosquitto":
                os.kill(pid, signal.SIGKILL)
                return
        raise AssertionError("the manager has no mosquitto")

    def _manager_answers(self) -> bool:
        try:
            return bool(self.fleet.status())
        except (EdgeServeError, OSError):
            return False

    @property
    def fleet(self) -> FleetClient:
        token = (self.fleet_dir / "operator.token").read_text().strip()
        return FleetClient(f"http://{self.listen}", token)

    def publish(self, version: str) -> None:
        release = self.releases[version]
        client = self.fleet
        RegistryClient(client.url, MODEL, token=client.token).push(release)
        client.register_release(release.digest)

    def roll_out(self, version: str, waves: str, **options: Any) -> str:
        """Create and start a rollout; returns its id."""
        spec = {"release": f"{MODEL}:{version}", "waves": waves, "selector": {}, "gate": {}, "probation_s": 0.5}
        spec |= {"observe_s": 0.2, "wave_deadline_s": 60.0, "on_fail": "rollback", **options}
        view = self.fleet.create_rollout(spec)
        self.fleet.act(view["rollout"], "start")
        return str(view["rollout"])

    def wait_for_rollout(self, rollout: str, *states: str, timeout_s: float = 60.0) -> dict[str, Any]:
        def ended() -> dict[str, Any] | None:
            try:
                view = self.fleet.rollout(rollout)
            except EdgeServeError:
                return None
            return view if view["state"] in states else None

        try:
            return wait_until(f"rollout that is {' or '.join(states)}", ended, timeout_s=timeout_s)
        except EdgeServeError as error:
            view = self.fleet.rollout(rollout)
            raise AssertionError(f"{error}; it is {view['state']} ({view['reason']}): {view['devices']}") from error

    # the devices ----------------------------------------------------------------------------------

    def enrol(self, *names: str, mqtt: bool = True) -> None:
        for name in names:
            config = self.folder / "devices" / name / "agent.toml"
            config.parent.mkdir(parents=True)
            command = ["fleet", "enroll", name, "--http", "127.0.0.1:0", "--state-dir", str(self.state_dir(name))]
            command += ["--minimum-probation", "0.5", "--stats-every", "0.3", "-o", str(config)]
            token = (self.fleet_dir / "operator.token").read_text().strip()
            subprocess.run(
                [sys.executable, "-m", "edgeserve", *command],
                env={**os.environ, "EDGESERVE_FLEET_URL": f"http://{self.listen}", "EDGESERVE_FLEET_TOKEN": token},
                check=True, capture_output=True, timeout=60,
            )  # fmt: skip
            text = config.read_text().replace("poll_s = 60", "poll_s = 0.5" if not mqtt else "poll_s = 5")
            if not mqtt:
                text = "\n".join(
                    line if not line.startswith('url = "mqtt') else 'url = ""' for line in text.split("\n")
                )
            config.write_text(text)

    def state_dir(self, name: str) -> Path:
        return self.folder / "devices" / name / "s"

    def start_agent(self, name: str, *, stall_at: str = "") -> Child:
        """Start an agent; with `stall_at`, one that stops for ever at that effect and leaves the file `stalled`."""
        self._lives += 1
        config = self.folder / "devices" / name / "agent.toml"
        log = self.folder / "logs" / f"{name}-{self._lives}.log"
        log.parent.mkdir(exist_ok=True)
        if stall_at:
            command = [sys.executable, str(STALLING_AGENT), str(config), stall_at]
            child = Child(f"{name}-{self._lives}", command, log, QUIET)
            self.children.adopt(child)
        else:
            child = self.children.start(f"{name}-{self._lives}", ["edgeserve_agent", "--config", str(config)], QUIET)
        self.agents[name] = child
        return child

    def kill_agent(self, name: str, *, whole: bool = True) -> None:
        """SIGKILL of the control part, and of the serving part too when `whole`."""
        child = self.agents[name]
        if whole:
            child.signal(signal.SIGKILL)
            (self.state_dir(name) / "addresses.json").unlink(missing_ok=True)
        else:
            child.process.kill()
        child.wait()

    def url(self, name: str) -> str:
        path = self.state_dir(name) / "addresses.json"

        def read() -> str | None:
            try:
                return str(msgspec.json.decode(path.read_bytes())["http"])
            except (FileNotFoundError, msgspec.DecodeError):
                return None

        return wait_until(f"address of {name}", read, child=self.agents[name])

    def answers_with(self, name: str) -> str:
        """Version that answers a request on a device now; empty when nothing answers."""
        image = np.zeros((1, 1, 8, 8), np.float32)
        try:
            result = InferenceClient(self.url(name), timeout_s=5.0).infer(MODEL, {"image": image})
        except EdgeServeError:
            return ""
        return self.version_of(result.release)

    def version_of(self, digest: str) -> str:
        return next((version for version, release in self.releases.items() if release.digest == digest), digest)

    def wait_for_version(self, name: str, version: str, timeout_s: float = 60.0) -> None:
        child = self.agents[name]
        wait_until(f"{version} on {name}", lambda: self.answers_with(name) == version, child=child, timeout_s=timeout_s)

    def traffic(self, *names: str, rate_hz: float = 100.0) -> Traffic:
        return Traffic(ASSETS / "stream.npz", {name: self.url(name) for name in names}, rate_hz=rate_hz)

    def up(self, *names: str, version: str = "v1") -> None:
        """Manager, agents, and a release on all of them."""
        self.start_manager()
        self.enrol(*names)
        for name in names:
            self.start_agent(name)
        self.publish(version)
        rollout = self.roll_out(version, str(len(names)))
        self.wait_for_rollout(rollout, "succeeded")
        for name in names:
            self.wait_for_version(name, version)


QUIET = {"OPENBLAS_NUM_THREADS": "1"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def descendants(pid: int) -> list[int]:
    """Process ids below `pid`."""
    below = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            below += [int(child), *descendants(int(child))]
    return below


def eventually(what: str, true: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """Like tmp_path, but with a short name: a socket path has at most 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="es-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def world(short_folder: Path, releases: dict[str, Release]) -> Iterator[World]:
    world = World(short_folder, releases)
    try:
        yield world
    finally:
        world.children.stop()
