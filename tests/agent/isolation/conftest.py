from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from edgeserve.runtimes.base import RuntimeOptions
from edgeserve_agent.isolation.forkserver import ForkServer
from edgeserve_agent.isolation.lifecycle import RestartPolicy
from edgeserve_agent.isolation.model import IsolatedModel
from edgeserve_agent.isolation.options import IsolationOptions
from edgeserve_agent.isolation.runtime import IsolatedRuntime

Load = Callable[..., IsolatedModel]


@pytest.fixture
def server() -> Iterator[ForkServer]:
    server = ForkServer()
    yield server
    server.close()


@pytest.fixture
def trouble_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The runtime `trouble` is installed for processes that are started from now on."""
    site = tmp_path / "site"
    info = site / "trouble-1.dist-info"
    info.mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("trouble_runtime.py"), site)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: trouble\nVersion: 1\n")
    (site / "broken_runtime.py").write_text("raise ZeroDivisionError('no error of imports')\n")
    (info / "entry_points.txt").write_text(
        "[edgeserve.runtimes]\ntrouble = trouble_runtime:TroubleRuntime\nbroken = broken_runtime:BrokenRuntime\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{site}{os.pathsep}{os.environ.get('PYTHONPATH', '')}".rstrip(os.pathsep))


@pytest.fixture
def load_trouble(trouble_installed: None, server: ForkServer, tmp_path: Path) -> Iterator[Load]:
    """Loads models of the runtime `trouble`; closes them afterwards."""
    models: list[IsolatedModel] = []

    def load(
        on_load: str = "", *, policy: RestartPolicy | None = None, folder: Path | None = None, **isolation: float
    ) -> IsolatedModel:
        path = (folder or tmp_path) / "model.trouble"
        path.write_text(on_load)
        runtime = IsolatedRuntime(
            "trouble",
            isolation=IsolationOptions(**isolation),
            folder=folder,
            server=server,
            policy=policy or RestartPolicy(),
        )
        model = runtime.load(path, RuntimeOptions())
        models.append(model)
        return model

    yield load
    for model in models:
        model.close()


@pytest.fixture
def ask() -> Callable[[IsolatedModel, str], bytes]:
    """Gives a model of the runtime `trouble` one order and returns its answer."""

    def ask(model: IsolatedModel, order: str) -> bytes:
        answer: bytes = model.run({"order": np.array([order.encode()], object)})["answer"][0]
        return answer

    return ask
