"""Measures what the agent takes of a small board: disk, memory, CPU of a start; writes docs/results/footprint.md.

    python benchmarks/footprint.py [--repeats N] [--data DIR] [--output FILE] [--print]

`edgeserve[agent]` is installed into an environment of its own, with compiled modules, as on a device. The keyword
spotter is compiled from the test data (docs/testdata.md). Linux only. About two minutes.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeserve.client.inference import InferenceClient

ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(ROOT / "benchmarks" / "serving"), str(ROOT / "scripts")]
from procs import cpu_s  # noqa: E402
from run import facts  # noqa: E402
from wheel_matrix import build_wheel  # noqa: E402

PAGE = ROOT / "docs" / "results" / "footprint.md"
CONTROL_MIB = 30.0
"""Bound: anonymous memory of the control part."""
WHOLE_MIB = 120.0
"""Bound: RSS of all processes of the agent together, with ONNX Runtime and the keyword spotter."""
REQUESTS = 1000
SPOTTING = "with the keyword spotter, with a fleet"
SETTLE_S = 3.0
MIB = 1 << 20
ENVIRONMENT = {
    name: value for name, value in os.environ.items() if not name.startswith("PYTHON") and "proxy" not in name.lower()
} | {"OPENBLAS_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"}
"""As in the unit. PYTHONDONTWRITEBYTECODE would make a start compile what it imports."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """MiB of one process."""

    rss: float
    pss: float
    anonymous: float


@dataclass(frozen=True, kw_only=True)
class Life:
    """One start of the agent."""

    control: Memory
    server: Memory
    cpu_s: float
    """User and system time of both processes until READY=1."""
    wall_s: float

    @property
    def rss(self) -> float:
        return self.control.rss + self.server.rss

    @property
    def pss(self) -> float:
        return self.control.pss + self.server.pss


def memory(pid: int) -> Memory:
    """Of /proc/PID/smaps_rollup (proc(5))."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return Memory(rss=kib["Rss"] / 1024, pss=kib["Pss"] / 1024, anonymous=(kib["Anonymous"] + kib["Swap"]) / 1024)


class Device:
    """The environment, a folder for state, and a service manager's ear."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.environment = scratch / "venv"
        self.python = self.environment / "bin" / "python"

    def install(self) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", self.environment], check=True)
        command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--python", self.python]
        subprocess.run(
            [*command, "install", build_wheel(self.scratch)], check=True, env=ENVIRONMENT, stderr=subprocess.DEVNULL
        )

    def live(self, config: Path, *, model: str = "", row: np.ndarray | None = None) -> Life:
        """Start the agent, wait until it says that it is ready, let it answer, measure, end it."""
        state = state_of(config)
        with service_manager(self.scratch / "notify") as ready:
            began = time.monotonic()
            process = subprocess.Popen(
                [self.python, "-m", "edgeserve_agent", "--config", config],
                env=ENVIRONMENT | {"NOTIFY_SOCKET": str(self.scratch / "notify")},
                stderr=(self.scratch / "agent.log").open("ab"),
            )
            try:
                ready()
                wall, cpu = time.monotonic() - began, cpu_s(process.pid)
                addresses = json.loads((state / "addresses.json").read_bytes())
                if row is not None:
                    client = InferenceClient(addresses["http"])
                    for _ in range(REQUESTS):
                        client.infer(model, {"input_1": row})
                time.sleep(SETTLE_S)
                return Life(
                    control=memory(process.pid), server=memory(addresses["pid"]), cpu_s=cpu, wall_s=wall
                )  # fmt: skip
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(60)


@contextmanager
def service_manager(path: Path) -> Iterator[Any]:
    """Gives a function that waits for READY=1."""
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(path))
        channel.settimeout(120)

        def ready() -> None:
            while b"READY=1" not in channel.recv(4096).split(b"\n"):
                pass

        yield ready


def state_of(config: Path) -> Path:
    text = config.read_text()
    return Path(json.loads(text.partition("state_dir = ")[2].split("\n")[0]))


def edgeserve(*arguments: object, **environment: str) -> str:
    command = [sys.executable, "-m", "edgeserve", *map(str, arguments)]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[2:])} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


@contextmanager
def fleet(scratch: Path) -> Iterator[Mapping[str, str]]:
    """A manager with its broker; gives the environment that `edgeserve fleet` needs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        listen = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [
        sys.executable,
        "-m",
        "edgeserve",
        "fleet",
        "serve",
        "--state-dir",
        scratch / "fleet",
        "--listen",
        listen,
    ]
    with (scratch / "fleet.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        token = scratch / "fleet" / "operator.token"
        deadline = time.monotonic() + 60
        while not (token.exists() and (scratch / "fleet" / "addresses.json").exists()):
            if time.monotonic() > deadline or process.poll() is not None:
                raise SystemExit(f"the manager did not start:\n{(scratch / 'fleet.log').read_text()}")
            time.sleep(0.1)
        yield {"EDGESERVE_FLEET_URL": f"http://{listen}", "EDGESERVE_FLEET_TOKEN": token.read_text().strip()}
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def sizes(environment: Path) -> dict[str, int]:
    """Bytes on disk of each distribution, compiled modules included: the files of its RECORD."""
    found = {}
    for record in environment.glob("lib/*/site-packages/*.dist-info/RECORD"):
        with record.open(newline="") as lines:
            paths = [record.parents[1] / row[0] for row in csv.reader(lines) if row]
        name = record.parent.name.removesuffix(".dist-info").replace("-", " ")
        found[name] = sum(path.stat().st_size for path in paths if path.is_file())
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def of(lives: list[Life], what: Any) -> str:
    """Median and range."""
    values = [what(life) for life in lives]
    return f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


def page(found: dict[str, list[Life]], packages: dict[str, int], about: Mapping[str, str]) -> str:
    """The document."""
    arm = "aarch64" in about["Machine"]
    return "\n".join(
        [
            "# What the agent takes of a small board",
            "",
            "Written by `make bench-footprint` (`benchmarks/footprint.py`).",
            ""
            if arm
            else "Nobody has measured it on a board yet: this is x86-64, and figures for 64-bit Arm are unverified.",
            "",
            " ".join(f"{key}: {value}." for key, value in about.items()),
            "",
            *bounds(found),
            *tables(found),
            *disk(packages),
        ]
    )


def bounds(found: dict[str, list[Life]]) -> list[str]:
    every = [life for lives in found.values() for life in lives]
    rows = (
        ("control part, anonymous memory, in all rows below", CONTROL_MIB, every, lambda one: one.control.anonymous),
        ("both processes with ONNX Runtime and KWS, RSS added", WHOLE_MIB, found[SPOTTING], Life.rss.fget),
    )  # fmt: skip
    lines = [
        "## Bounds",
        "",
        "Held when the largest of all starts is within the bound. MiB are 2^20 bytes; memory is read from",
        "`/proc/PID/smaps_rollup`. Adding RSS counts twice what the processes share; PSS counts it once.",
        "",
        "| what | bound, MiB | median [least, most] | |",
        "|---|--:|--:|---|",
    ]
    for what, bound, lives, value in rows:
        held = "held" if max(map(value, lives)) <= bound else "**MISSED**"
        lines.append(f"| {what} | ≤ {bound:.0f} | {of(lives, value)} | {held} |")
    return [*lines, ""]


def tables(found: dict[str, list[Life]]) -> list[str]:
    lines = [
        f"## Memory {SETTLE_S:.0f} s after the start, MiB",
        "",
        "| agent | control: anonymous | control: RSS | server: anonymous | server: RSS | both: RSS | both: PSS |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, lives in found.items():
        control = [of(lives, lambda one: one.control.anonymous), of(lives, lambda one: one.control.rss)]
        server = [of(lives, lambda one: one.server.anonymous), of(lives, lambda one: one.server.rss)]
        cells = [name, *control, *server, of(lives, Life.rss.fget), of(lives, Life.pss.fget)]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"The keyword spotter is MLCommons Tiny's DS-CNN, compiled to int8; memory is read after {REQUESTS} requests.",
        "",
        "## A start, until the agent says that it is ready",
        "",
        "| agent | CPU of both processes, s | wall, s |",
        "|---|--:|--:|",
    ]
    for name, lives in found.items():
        lines.append(f"| {name} | {of(lives, lambda one: one.cpu_s)} | {of(lives, lambda one: one.wall_s)} |")
    return [*lines, "", "Modules were compiled when the agent was installed; files are in the page cache.", ""]


def disk(packages: dict[str, int]) -> list[str]:
    small = [size for size in packages.values() if size < MIB]
    return [
        f"## Disk: {sum(packages.values()) / MIB:.0f} MiB",
        "",
        "`edgeserve[agent]` as pip installs it, compiled modules included; `install.sh` leaves out tests, headers and",
        "converters.",
        "",
        "| package | MiB |",
        "|---|--:|",
        *(f"| {name} | {size / MIB:.1f} |" for name, size in packages.items() if size >= MIB),
        f"| {len(small)} smaller ones | {sum(small) / MIB:.1f} |",
        "",
    ]


def measure(scratch: Path, data: Path, repeats: int) -> tuple[dict[str, list[Life]], dict[str, int]]:
    device = Device(scratch)
    print("installing edgeserve[agent]", file=sys.stderr, flush=True)
    device.install()
    clips = data / "data" / "kws_mfcc_even.npz"
    release = scratch / "release"
    print("compiling the keyword spotter", file=sys.stderr, flush=True)
    edgeserve(
        "compile", data / "models" / "kws_dscnn_float32.tflite", "--target", "x86-cpu", "--precision", "int8",
        "--calibration", clips, "--name", "kws", "--version", "1", "-o", release,
    )  # fmt: skip
    with np.load(clips) as arrays:
        row = arrays["x"][:1].astype(np.float32)
    found: dict[str, list[Life]] = {}
    with fleet(scratch) as environment:
        for name, with_model, with_fleet in (
            ("without a model, without a fleet", False, False),
            ("without a model, with a fleet", False, True),
            (SPOTTING, True, True),
        ):
            print(name, file=sys.stderr, flush=True)
            state = scratch / f"state-{len(found)}"
            config = scratch / f"agent-{len(found)}.toml"
            if with_fleet:
                options = ("--http", "127.0.0.1:0", "--minimum-probation", 0.5, "--state-dir", state, "-o", config)
                edgeserve("fleet", "enroll", f"box-{len(found)}", *options, **environment)
            else:
                where = f"state_dir = {json.dumps(str(state))}\n"
                config.write_text(where + '[device]\nid = "default.box"\n[serving]\nhttp = "127.0.0.1:0"\n')
            if with_model:
                edgeserve("agent", "install", release, "--config", config)
                device.live(config, model="kws", row=row)  # its probation ends
            found[name] = [device.live(config, model="kws", row=row if with_model else None) for _ in range(repeats)]
    return found, sizes(device.environment)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    data = Path(os.environ.get("EDGESERVE_TESTDATA") or ROOT.parent / "shared" / "realdata")
    parser.add_argument("--data", type=Path, default=data, help="folder of docs/testdata.md")
    parser.add_argument("--output", type=Path, default=PAGE)
    parser.add_argument("--print", action="store_true", dest="only_print", help="write no page")
    options = parser.parse_args()
    if not options.data.is_dir():
        raise SystemExit(f"there are no test data at {options.data}: name their folder in EDGESERVE_TESTDATA")
    about = facts()
    scratch = Path(tempfile.mkdtemp(prefix="es-"))
    try:
        found, packages = measure(scratch, options.data, options.repeats)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    text = page(found, packages, about | {"Starts": str(options.repeats)})
    print(text)
    if not options.only_print:
        options.output.write_text(text)
    return int("MISSED" in text)


if __name__ == "__main__":
    sys.exit(main())
