"""What the clients speak to: a real model server, and a real `edgeserve fleet serve` process with its broker."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgeserve.client.fleet import FleetClient
from edgeserve.contracts.task import Task
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve.contracts.variant import Precision, Selector, Tolerance, VariantContract
from edgeserve.release.build import ReleaseBuilder
from edgeserve.release.layout import Release
from edgeserve.runtimes.null import NullModel
from edgeserve_agent.serving.listen import Address
from edgeserve_agent.serving.opened import Opened
from edgeserve_agent.serving.served import Identity
from edgeserve_agent.serving.server import ModelServer

RELEASE = "sha256:" + "7" * 64
SERVED = {
    "sums": Signature(
        inputs=(TensorSpec(name="x", datatype=Datatype.FP32, shape=(-1, 4)),),
        outputs=(
            TensorSpec(name="y", datatype=Datatype.FP32, shape=(-1, 3)),
            TensorSpec(name="z", datatype=Datatype.INT64, shape=(-1,)),
        ),
    ),
    "texts": Signature(
        inputs=(TensorSpec(name="t", datatype=Datatype.BYTES, shape=(-1,)),),
        outputs=(TensorSpec(name="u", datatype=Datatype.BYTES, shape=(-1,)),),
    ),
    "halves": Signature(
        inputs=(TensorSpec(name="h", datatype=Datatype.FP16, shape=(-1, 2)),),
        outputs=(TensorSpec(name="h", datatype=Datatype.FP16, shape=(-1,)),),
    ),
}


@pytest.fixture(scope="session", autouse=True)
def _heap(small_heap: None) -> None:
    """Servers run within the tests' process."""


@pytest.fixture(scope="module")
def server_url() -> Iterator[str]:
    """A model server with the null models of SERVED, release RELEASE, version 1.0; the model `late` never comes."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = ModelServer(loop, threads=1, insecure=False, limits=None)

    async def prepare() -> str:
        for name, signature in SERVED.items():
            opened = Opened(model=NullModel(signature, "null"), runtime="null", task=Task(labels=("a", "b", "c")))
            identity = Identity(model=name, version="1.0", release=RELEASE, variant=RELEASE)
            await server.plane.load(identity, lambda opened=opened: opened)  # type: ignore[misc]
            server.plane.activate(name, RELEASE)
        server.plane.expect("late")
        return await server.listen(Address("127.0.0.1", 0))

    yield asyncio.run_coroutine_threadsafe(prepare(), loop).result(10)
    asyncio.run_coroutine_threadsafe(server.close(drain_s=10), loop).result(20)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


class FleetProcess:
    """One manager process; it keeps its state folder and ports when it is started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "state"
        self._log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        addresses = self.folder / "addresses.json"
        addresses.unlink(missing_ok=True)
        command = [sys.executable, "-m", "edgeserve", "fleet", "serve", "--state-dir", str(self.folder)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen([*command, "--listen", "127.0.0.1:0"], stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while not addresses.exists():
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.02)

    def stop(self) -> int:
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(30)

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def url(self) -> str:
        return str(json.loads((self.folder / "addresses.json").read_bytes())["http"])

    @property
    def token(self) -> str:
        return (self.folder / "operator.token").read_text().strip()

    @property
    def environment(self) -> dict[str, str]:
        return {"EDGESERVE_FLEET_URL": self.url, "EDGESERVE_FLEET_TOKEN": self.token}

    def client(self) -> FleetClient:
        return FleetClient(self.url, self.token)


@pytest.fixture(scope="session")
def fleet_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetProcess]:
    pytest.importorskip("uvicorn", reason="uvicorn is not installed: pip install 'edgeserve[fleet]'")
    process = FleetProcess(tmp_path_factory.mktemp("fleet"))
    process.start()
    yield process
    assert process.stop() == 0, process.log


@pytest.fixture
def make_release(tmp_path: Path) -> Callable[..., Release]:
    """Builds a release: `make_release("digits", "v1", weights=b"...")`."""

    def make(name: str, version: str = "v1", *, counter: int = 1, weights: bytes = b"weights" * 1000) -> Release:
        signature = Signature(
            inputs=(TensorSpec(name="x", datatype=Datatype.FP32, shape=(-1, 4)),),
            outputs=(TensorSpec(name="y", datatype=Datatype.FP32, shape=(-1, 2)),),
        )
        model = tmp_path / f"{name}-{version}.onnx"
        model.write_bytes(weights)
        builder = ReleaseBuilder(name=name, version=version, counter=counter)
        builder.add_variant(
            VariantContract(
                model=name, target="x86-cpu", precision=Precision.INT8, runtime="onnxruntime", entry="model.onnx",
                signature=signature, selector=Selector(), tolerance=Tolerance(agreement=0.9),
            ),
            {"model.onnx": model},
        )  # fmt: skip
        return builder.write(tmp_path / f"{name}-{version}")

    return make
