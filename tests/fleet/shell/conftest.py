"""A real manager in a thread: real HTTP on a free port, real database, real broker. Nothing is replaced."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import urllib3

from edgeserve.contracts.oci import GOLDEN_TYPE, REPORT_TYPE
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve.contracts.variant import Precision, Selector, Tolerance, VariantContract
from edgeserve.release.build import ReleaseBuilder
from edgeserve.release.layout import Release
from edgeserve_fleet.config import FleetConfig
from edgeserve_fleet.server import Manager


@contextmanager
def serving(config: FleetConfig) -> Iterator[Manager]:
    """A manager that answers until the block ends."""
    with Manager(config) as manager:
        thread = threading.Thread(target=manager.serve)
        thread.start()
        try:
            yield manager
        finally:
            manager.stop()
            thread.join(timeout=20)
            assert not thread.is_alive(), "the manager did not stop"


class Http:
    """Plain HTTP against one manager, so that tests see what goes over the wire."""

    def __init__(self, manager: Manager) -> None:
        self.manager = manager
        self.url = manager.url
        self._pool = urllib3.PoolManager(retries=False, timeout=30.0)

    def __call__(
        self, method: str, path: str, *, token: str | None = "", body: Any = None, headers: dict[str, str] | None = None
    ) -> urllib3.BaseHTTPResponse:
        """Ask; the token is the operator's unless another is given, None = no token."""
        sent = dict(headers or {})
        if token is not None:
            sent["Authorization"] = f"Bearer {token or self.manager.operator_token}"
        if isinstance(body, bytes):
            return self._pool.request(method, self.url + path, headers=sent, body=body, redirect=False)
        return self._pool.request(method, self.url + path, headers=sent, json=body, redirect=False)

    def close(self) -> None:
        self._pool.clear()


@pytest.fixture
def serve() -> Callable[[FleetConfig], AbstractContextManager[Manager]]:
    """Runs managers of a test's own: `with serve(config) as manager`."""
    return serving


@pytest.fixture(scope="session")
def manager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Manager]:
    """One manager for all tests of this folder: they name their own devices and releases."""
    folder = tmp_path_factory.mktemp("fleet")
    with serving(FleetConfig(state_dir=str(folder), listen="127.0.0.1:0")) as started:
        yield started


@pytest.fixture
def http(manager: Manager) -> Iterator[Http]:
    client = Http(manager)
    yield client
    client.close()


@pytest.fixture
def make_http() -> Iterator[Callable[[Manager], Http]]:
    """HTTP against managers of a test's own."""
    clients: list[Http] = []

    def make(manager: Manager) -> Http:
        clients.append(Http(manager))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def build_release(folder: Path, name: str, version: str, *, counter: int, weights: bytes) -> Release:
    signature = Signature(
        inputs=(TensorSpec(name="x", datatype=Datatype.FP32, shape=(-1, 4)),),
        outputs=(TensorSpec(name="y", datatype=Datatype.FP32, shape=(-1, 2)),),
    )
    model = folder / f"{name}-{version}.onnx"
    model.write_bytes(weights)
    builder = ReleaseBuilder(name=name, version=version, counter=counter)
    builder.add_variant(
        VariantContract(
            model=name, target="x86-cpu", precision=Precision.INT8, runtime="onnxruntime", entry="model.onnx",
            signature=signature, selector=Selector(), tolerance=Tolerance(agreement=0.9),
        ),
        {"model.onnx": model},
    )  # fmt: skip
    builder.add_evidence("report.json", REPORT_TYPE, b"{}")
    builder.add_evidence("golden.npz", GOLDEN_TYPE, b"golden")
    return builder.write(folder / f"{name}-{version}")


@pytest.fixture
def make_release(tmp_path: Path) -> Callable[..., Release]:
    """Builds a release of any name: `make_release("digits", "v1", weights=b"...")`."""

    def make(name: str, version: str = "v1", *, counter: int = 1, weights: bytes = b"weights" * 1000) -> Release:
        return build_release(tmp_path, name, version, counter=counter, weights=weights)

    return make
