"""No command writes to the home folder of whoever runs it, nor to the folders of XDG, unless it is told to.

`edgeserve compile` keeps a cache by design; it is named in EDGESERVE_CACHE here, and must be all there is.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.suites.models import conv_net, save

XDG = ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Of a user whose folders are all empty and in one place."""
    home = tmp_path / "home"
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("ORT_", "XDG_", "EDGESERVE_", "OPENVINO"))
    }
    folders = {name: str(home / name.lower()) for name in XDG}
    for folder in (home, *map(Path, folders.values())):
        folder.mkdir()
    return kept | folders | {"HOME": str(home), "EDGESERVE_CACHE": str(tmp_path / "cache"), "MPLBACKEND": "agg"}


def files_of(environment: dict[str, str]) -> list[Path]:
    return [path for path in Path(environment["HOME"]).rglob("*") if path.is_file()]


def edgeserve(environment: dict[str, str], folder: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "edgeserve", *words],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_probing_every_runtime_writes_nothing(environment: dict[str, str], tmp_path: Path) -> None:
    assert "onnxruntime" in edgeserve(environment, tmp_path, "devices", "probe", "--runtimes")
    assert files_of(environment) == []


def test_doctor_writes_nothing(environment: dict[str, str], tmp_path: Path) -> None:
    edgeserve(environment, tmp_path, "doctor")
    assert files_of(environment) == []


@pytest.mark.parametrize("target", ["x86-cpu", "intel-cpu"])
def test_compiling_writes_to_its_cache_alone(environment: dict[str, str], tmp_path: Path, target: str) -> None:
    if target == "intel-cpu":
        pytest.importorskip("nncf", reason="nncf is not installed: pip install 'edgeserve[openvino]'")
    model = save(conv_net(), tmp_path / "m.onnx")
    random = np.random.default_rng(0)
    rows = random.standard_normal((40, 1, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=rows, y=random.integers(0, 10, 40))
    data = ["--validation", "data.npz", "--precision", "fp32"]
    edgeserve(environment, tmp_path, "compile", str(model), "--target", target, *data, "-o", "out")
    assert (tmp_path / "out").exists()
    assert files_of(environment) == []


def test_serving_writes_nothing(environment: dict[str, str], tmp_path: Path) -> None:
    model = save(conv_net(), tmp_path / "m.onnx")
    with subprocess.Popen(
        [sys.executable, "-m", "edgeserve", "serve", str(model), "--http", "127.0.0.1:0", "--json"],
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        assert server.stdout is not None
        try:
            assert "127.0.0.1" in "".join(iter(server.stdout.readline, "}\n"))
            server.send_signal(signal.SIGTERM)
            server.wait(60)
        finally:
            server.kill()
    assert files_of(environment) == []
