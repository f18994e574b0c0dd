"""What a run of the benchmark works with: folders, models, cores, durations."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import procs
from wire import Model

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PYTHON = Path(sys.executable)
PEERS = ROOT / ".cache" / "bench-peers"
NAMES = ("mlp", "kws", "cnn")


@dataclass(frozen=True, kw_only=True)
class Durations:
    """Seconds and repeats."""

    rounds: int
    tiny: float
    """Of a row of the tiny model."""
    big: float
    """Of a row of the CNN; of peers half of it."""
    idle: float
    starts: int
    """Cold starts of edgeserve and of the bare runtime; peers get 3 at most."""
    memories: int
    """Fresh processes whose memory is measured; of peers one."""


FULL = Durations(rounds=9, tiny=1.0, big=2.0, idle=8.0, starts=9, memories=3)
QUICK = Durations(rounds=3, tiny=0.4, big=0.8, idle=3.0, starts=3, memories=1)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A run."""

    folder: Path
    """Scratch: models, logs, sockets."""
    models: dict[str, Model]
    sockets: Path
    """A folder with a short name: the path of a Unix socket may have 107 bytes."""
    loadgen: Path
    durations: Durations
    server_cores: tuple[int, ...]
    client_cores: tuple[int, ...]

    @property
    def repository(self) -> Path:
        return self.folder / "repository"

    @property
    def all_cores(self) -> tuple[int, ...]:
        return tuple(sorted(os.sched_getaffinity(0)))

    def model_file(self, name: str) -> Path:
        return self.repository / name / "1" / "model.onnx"


def prepare(folder: Path, durations: Durations) -> Bench:
    """Build the load client and the models.

    Raises:
        SystemExit: There is no C compiler, or only one core: client and server must not share it.
    """
    cores = sorted(os.sched_getaffinity(0))
    compiler = shutil.which("cc") or shutil.which("gcc")
    if len(cores) < 2 or compiler is None:
        raise SystemExit("error: the benchmark needs two cores, one each for server and client, and a C compiler")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    loadgen = folder / "loadgen"
    subprocess.run([compiler, "-O2", "-o", loadgen, HERE.parent / "loadgen.c"], check=True)
    # In a process of its own: a runtime mapped here too would halve its share in the memory figures of the others.
    subprocess.run([PYTHON, HERE / "models.py", folder], check=True, env=procs.environment_of({}))
    facts = json.loads((folder / "models.json").read_text())
    models = {
        name: Model(
            name=name,
            shape=tuple(facts[name]["shape"]),
            input=(folder / f"{name}.input").read_bytes(),
            output_shape=tuple(facts[name]["output_shape"]),
            output=(folder / f"{name}.output").read_bytes(),
        )
        for name in NAMES
    }
    return Bench(
        folder=folder,
        models=models,
        sockets=Path(tempfile.mkdtemp(prefix="bench-")),
        loadgen=loadgen,
        durations=durations,
        server_cores=(cores[0],),
        client_cores=(cores[1],),
    )
