"""The story that `edgeserve demo` tells, over the public command line and REST API only."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import typer

from edgeserve.client.fleet import FleetClient
from edgeserve.contracts.errors import DeviceError, EdgeServeError
from edgeserve.demo import report
from edgeserve.demo.processes import Child, Children, wait_until
from edgeserve.demo.traffic import Traffic

ASSETS: Final = Path(__file__).parent / "assets"
TARGETS: Final = ("x86-cpu", "arm-cpu", "intel-npu")
PROBATION_S: Final = 2.0
OBSERVE_S: Final = 1.0
REQUESTS_PER_SECOND: Final = 60.0
ROLLOUT_PATIENCE_S: Final = 90.0


@dataclass(frozen=True, kw_only=True)
class DemoDevice:
    """One agent of the demo."""

    name: str
    profile: str
    simulate: bool = True


FLEET: Final = (
    DemoDevice(name="camera-1", profile="raspberry-pi-5"),
    DemoDevice(name="camera-2", profile="raspberry-pi-5"),
    DemoDevice(name="sensor-1", profile="raspberry-pi-4"),
    DemoDevice(name="gateway-1", profile="x86-64", simulate=False),
    DemoDevice(name="gateway-2", profile="x86-64", simulate=False),
    DemoDevice(name="kiosk-1", profile="intel-core-ultra"),
)


class Story:
    """One run of the demo in one folder."""

    def __init__(self, folder: Path, children: Children) -> None:
        self._folder = folder
        self._children = children
        self._environment = {"OPENBLAS_NUM_THREADS": "1"}
        self._began = time.monotonic()
        self._rollouts: list[report.Rollout] = []
        self.addresses: dict[str, str] = {}
        self.manager_url = ""

    def tell(self) -> report.Outcome:
        """Run the whole story and return what happened."""
        self._chapter("1  Compile a real model for three targets, with real calibration data")
        compiling = {"v1": self._start_compile("v1")}
        manager = self._start_manager()
        self._await_manager(manager)
        fleet = FleetClient.from_environment(self._environment)
        self._start_agents()
        typer.echo(self._finish_compile("v1", compiling["v1"]))
        compiling |= {version: self._start_compile(version) for version in ("v2", "v3")}

        self._chapter("2  Publish it to a manager with its own broker and registry")
        typer.echo(f"fleet manager on {self.manager_url}; {len(FLEET)} agents on unlike devices have enrolled:")
        typer.echo(self._cli("fleet", "devices"))
        typer.echo(self._cli("fleet", "publish", str(self._release("v1"))))

        self._chapter("3  Roll out v1 to all")
        self._roll_out("v1", waves=str(len(FLEET)), fleet=fleet)
        self.addresses = {name: self._address(name) for name in self._names()}
        traffic = Traffic(ASSETS / "stream.npz", self.addresses, rate_hz=REQUESTS_PER_SECOND)
        traffic.start()
        try:
            for version in ("v2", "v3"):
                typer.echo(self._finish_compile(version, compiling[version]))
                self._cli("fleet", "publish", str(self._release(version)))
            self._chapter("4  Roll out v2, which is better, in waves of 1, 3 and 6 with a gate between them")
            self._roll_out("v2", waves="1,3,6", fleet=fleet)
            self._settle(traffic)
            self._chapter("5  Roll out v3, whose answers are wrong: the gate must take it back")
            self._roll_out("v3", waves="1,3,6", fleet=fleet)
            self._settle(traffic)
        finally:
            traffic.stop()
        return self._outcome(fleet, traffic)

    # chapters -------------------------------------------------------------------------------------

    def _start_compile(self, version: str) -> Child:
        arguments = ["edgeserve", "compile", str(ASSETS / f"digits-{version}.onnx")]
        for target in TARGETS:
            arguments += ["--target", target]
        validation = "validation-v3.npz" if version == "v3" else "validation.npz"
        arguments += ["--calibration", str(ASSETS / "calibration.npz"), "--validation", str(ASSETS / validation)]
        arguments += [
            "--name",
            "digits",
            "--version",
            version,
            "--counter",
            version[1:],
            "-o",
            str(self._release(version)),
        ]
        return self._children.start(f"compile-{version}", arguments, self._environment)

    def _finish_compile(self, version: str, child: Child) -> str:
        if child.wait() != 0:
            raise DeviceError(f"compiling {version} failed:\n{child.tail(20)}")
        return child.log.read_text().strip("\n")

    def _start_manager(self) -> Child:
        arguments = ["edgeserve", "fleet", "serve", "--state-dir", str(self._manager_dir), "--listen", "127.0.0.1:0"]
        return self._children.start("manager", arguments, self._environment)

    def _await_manager(self, manager: Child) -> None:
        addresses = self._manager_dir / "addresses.json"
        token = self._manager_dir / "operator.token"
        wait_until("manager", lambda: addresses.is_file() and token.is_file(), child=manager)
        self.manager_url = msgspec.json.decode(addresses.read_bytes())["http"]
        self._environment["EDGESERVE_FLEET_URL"] = self.manager_url
        self._environment["EDGESERVE_FLEET_TOKEN"] = token.read_text().strip()

    def _start_agents(self) -> None:
        for device in FLEET:
            config = self._device_dir(device.name) / "agent.toml"
            config.parent.mkdir(parents=True, exist_ok=True)
            arguments = ["fleet", "enroll", device.name, "--profile", device.profile, "--http", "127.0.0.1:0"]
            arguments += ["--state-dir", str(config.parent / "state"), "-o", str(config)]
            arguments += ["--minimum-probation", str(PROBATION_S), "--stats-every", "0.5"]
            self._cli(*arguments, *(["--simulate"] if device.simulate else []))
            self._children.start(
                f"agent-{device.name}", ["edgeserve_agent", "--config", str(config)], self._environment
            )

    def _roll_out(self, version: str, *, waves: str, fleet: FleetClient) -> None:
        began = time.monotonic()
        created = self._cli(
            "fleet", "rollout", "create", f"digits:{version}", "--waves", waves, "--probation", str(PROBATION_S),
            "--observe", str(OBSERVE_S), "--deadline", "60", "--start", "--json",
        )  # fmt: skip
        rollout_id = msgspec.json.decode(created)["rollout"]
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._run("fleet", "rollout", "watch", rollout_id, timeout_s=ROLLOUT_PATIENCE_S)
        ended = time.monotonic()
        view = fleet.rollout(rollout_id)
        self._rollouts.append(
            report.Rollout(
                version=version, release=view["release"], state=view["state"], began=began, ended=ended,
                touched=tuple(sorted(touched(view))),
            )
        )  # fmt: skip

    def _settle(self, traffic: Traffic) -> None:
        """Let the fleet answer a little longer, so that the last figures rest on enough answers."""
        enough = traffic.sent + 100 * len(FLEET)
        wait_until("further answers", lambda: traffic.sent >= enough, timeout_s=20.0)

    def _outcome(self, fleet: FleetClient, traffic: Traffic) -> report.Outcome:
        return report.Outcome(
            devices=tuple(fleet.devices()),
            rollouts=tuple(self._rollouts),
            traffic=traffic,
            seconds=time.monotonic() - self._began,
        )

    # plumbing -------------------------------------------------------------------------------------

    def _cli(self, *arguments: str) -> str:
        """Run a command quietly and return what it printed."""
        done = self._run(*arguments, capture=True)
        if done.returncode != 0:
            raise DeviceError(f"`edgeserve {' '.join(arguments[:3])}` failed: {done.stderr.strip()}")
        return done.stdout.strip("\n")

    def _run(
        self, *arguments: str, capture: bool = False, timeout_s: float = 120.0
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "edgeserve", *arguments],
            env={**os.environ, **self._environment},
            capture_output=capture,
            text=True,
            check=False,
            timeout=timeout_s,
        )

    def _address(self, name: str) -> str:
        path = self._device_dir(name) / "state" / "addresses.json"
        return str(msgspec.json.decode(wait_until(f"address of {name}", lambda: read_or_none(path)))["http"])

    def _release(self, version: str) -> Path:
        return self._folder / f"digits-{version}"

    def _device_dir(self, name: str) -> Path:
        return self._folder / "devices" / name

    @property
    def _manager_dir(self) -> Path:
        return self._folder / "fleet"

    @staticmethod
    def _names() -> Sequence[str]:
        return [device.name for device in FLEET]

    def _chapter(self, title: str) -> None:
        typer.secho(f"\n{title}  [{time.monotonic() - self._began:.0f} s]", bold=True)


def touched(view: dict[str, Any]) -> list[str]:
    """Names of the devices that a rollout offered its release to."""
    return [row["device"] for row in view["devices"] if row["offered_at"]]


def read_or_none(path: Path) -> bytes | None:
    """The bytes of a file that may not be there yet."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def run(folder: Path, *, keep: bool) -> int:
    """Run the demo; returns its exit code, 0 only when everything happened as told.

    Raises:
        DeviceError: A part could not be started.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also when a shell started us in the background
    with Children(folder / "logs") as children:
        story = Story(folder, children)
        try:
            outcome = story.tell()
        except EdgeServeError as error:
            raise DeviceError(error.message, hint=f"the logs are in {folder / 'logs'}") from error
        report.show(outcome)
        if keep:
            report.show_addresses(story.manager_url, story.addresses, folder)
            wait_for_interrupt()
        return 1 if outcome.broken() else 0


def wait_for_interrupt() -> None:
    """Sleep until Ctrl-C."""
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        typer.echo("ending every process")
