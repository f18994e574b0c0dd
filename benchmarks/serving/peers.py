"""The peers: one class each, with the same version and settings of onnxruntime, in environments of their own.

Each is set up as its documentation says, and then in its own favour: no work per request that it does not insist on,
the model called on the event loop where that is cheaper, as many workers as cores where all cores are measured.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

import wire
from bench import HERE, NAMES, PEERS, ROOT, Bench
from client import Target
from servers import GRPC, JSON, SHM, TCP, UDS, NotStartedError, Server, UnsupportedError
from wire import Model

APPS = HERE / "peers"
NOT_OBTAINABLE = {
    "OpenVINO Model Server": "no package registry has it; its releases are containers and archives",
    "TorchServe": "archived by its authors, and needs Java and PyTorch",
}


def install(name: str) -> None:
    """Make the environment of a peer, if it is not there.

    Raises:
        NotStartedError: It cannot be installed; with the reason.
    """
    subprocess.run([ROOT / "scripts" / "bench_peers.sh", name], check=False)
    if not (PEERS / name / "bin").is_dir():
        reason = PEERS / f"{name}.reason"
        raise NotStartedError(reason.read_text().strip() if reason.is_file() else "it could not be installed")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Peer(Server):
    """A peer."""

    distribution = ""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        self._http, self._grpc, self._more = free_port(), free_port(), free_port()

    def launch(self, cores: Sequence[int]) -> None:
        environment = {"BENCH_REPOSITORY": str(self.bench.repository), "PYTHONPATH": str(APPS)}
        self.spawn(self.command(len(cores)), cores, **(environment | self.environment(len(cores))))

    def command(self, workers: int) -> list[str | Path]:
        raise NotImplementedError

    def environment(self, workers: int) -> dict[str, str]:  # noqa: ARG002 - most need none
        return {}

    def target(self, model: Model, way: str) -> Target:
        port = self._grpc if way == GRPC else self._http
        return Target(address=f"127.0.0.1:{port}", request=self.oip(model, way), model=model)

    @property
    def bin(self) -> Path:
        return PEERS / self.name / "bin"

    def scratch(self) -> Path:
        folder = self.bench.folder / f"{self.name}-{self._http}"
        folder.mkdir(exist_ok=True)
        return folder

    def version(self) -> str:
        code = f"import importlib.metadata as m; print(m.version({self.distribution or self.name!r}))"
        ran = subprocess.run([self.bin / "python", "-c", code], capture_output=True, text=True, check=False)
        return ran.stdout.strip()


class MlServer(Peer):
    """MLServer with a custom runtime, in-process: its parallel workers were slower here, on all cores too."""

    name = "mlserver"
    missing = {SHM: "not in MLServer", UDS: "not in MLServer", TCP: "no binary tensors over HTTP"}  # noqa: RUF012

    def command(self, workers: int) -> list[str | Path]:  # noqa: ARG002
        folder = self.scratch()
        settings = {
            "host": "127.0.0.1", "http_port": self._http, "grpc_port": self._grpc, "metrics_port": self._more,
            "debug": False, "parallel_workers": 0, "metrics_dir": str(folder / "metrics"),
            "environments_dir": str(folder / "environments"),
        }  # fmt: skip
        (folder / "settings.json").write_text(json.dumps(settings))
        for name in NAMES:
            (folder / name).mkdir(exist_ok=True)
            parameters = {"uri": str(self.bench.model_file(name))}
            model = {"name": name, "implementation": "mlserver_model.OnnxModel", "parameters": parameters}
            (folder / name / "model-settings.json").write_text(json.dumps(model))
        return [self.bin / "mlserver", "start", folder]


class KServe(Peer):
    """KServe's Python server with a custom predictor, logging no request. It listens on all addresses."""

    name = "kserve"
    missing = {SHM: "not in KServe", UDS: "not in KServe"}  # noqa: RUF012

    def command(self, workers: int) -> list[str | Path]:
        log = self.scratch() / "log.json"
        log.write_text(json.dumps({"version": 1, "root": {"level": "WARNING"}, "disable_existing_loggers": True}))
        quiet = ["--enable_latency_logging", "False", "--log_config_file", str(log)]
        ports = ["--http_port", str(self._http), "--grpc_port", str(self._grpc), "--workers", str(workers)]
        return [self.bin / "python", APPS / "kserve_app.py", self.bench.repository, *ports, *quiet]


class TritonServer(Peer):
    """NVIDIA's tritonserver, the reference implementation: the binary of the nvidia-pytriton wheel.

    The wheel has the Python backend only, so models run in its stub processes, not in Triton's onnxruntime backend.
    """

    name = "tritonserver"
    distribution = "nvidia-pytriton"
    missing = {UDS: "not in Triton"}  # noqa: RUF012

    def command(self, workers: int) -> list[str | Path]:
        folder = self.scratch()
        for name in NAMES:
            model = self.bench.models[name]
            version = folder / name / "1"
            version.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.bench.model_file(name), version)
            shutil.copy(APPS / "triton_model.py", version / "model.py")
            (folder / name / "config.pbtxt").write_text(_config(model, workers))
        package = next((PEERS / self.name / "lib").glob("python3.*/site-packages/pytriton"))
        home, python = package / "tritonserver", package.parents[1].name.removeprefix("python")
        stub = home / "backends" / "python" / "triton_python_backend_stub"
        if not stub.exists():
            shutil.copy(home / "python_backend_stubs" / python / stub.name, stub)
        return [
            home / "bin" / "tritonserver", "--model-repository", folder, "--backend-directory", home / "backends",
            "--http-address", "127.0.0.1", "--http-port", str(self._http), "--http-thread-count", str(max(2, workers)),
            "--grpc-address", "127.0.0.1", "--grpc-port", str(self._grpc), "--allow-gpu-metrics", "false",
            "--metrics-address", "127.0.0.1", "--metrics-port", str(self._more),
        ]  # fmt: skip

    def environment(self, workers: int) -> dict[str, str]:  # noqa: ARG002
        # The stub processes take their packages from the environment whose Python is first on the path.
        return {"BENCH_PEERS": str(APPS), "PATH": f"{self.bin}:{os.environ['PATH']}"}


def _config(model: Model, instances: int) -> str:
    return f"""
backend: "python"
input [{{ name: "x", data_type: TYPE_FP32, dims: {list(model.shape)} }}]
output [{{ name: "y", data_type: TYPE_FP32, dims: {list(model.output_shape)} }}]
instance_group [{{ count: {instances}, kind: KIND_CPU }}]
"""


class Plain(Peer):
    """A framework for HTTP servers: the protocol is the app's."""

    protocol = "JSON of its own"
    missing = dict.fromkeys((SHM, UDS, TCP, GRPC), "no such protocol")
    path = "/{name}"

    def target(self, model: Model, way: str) -> Target:
        if way in self.missing:
            raise UnsupportedError(self.missing[way])
        request = wire.plain_request(model, self.path.format(name=model.name))
        return Target(address=f"127.0.0.1:{self._http}", request=request, model=model)


class LitServe(Plain):
    """LitServe."""

    name = "litserve"

    def command(self, workers: int) -> list[str | Path]:
        return [self.bin / "python", APPS / "litserve_app.py", self.bench.repository, str(self._http), str(workers)]


class BentoMl(Plain):
    """BentoML."""

    name = "bentoml"

    def command(self, workers: int) -> list[str | Path]:  # noqa: ARG002
        bind = ["--host", "127.0.0.1", "--port", str(self._http)]
        return [self.bin / "bentoml", "serve", "bentoml_app:Models", "--working-dir", APPS, *bind]

    def environment(self, workers: int) -> dict[str, str]:
        quiet = {"BENTOML_DO_NOT_TRACK": "true", "BENTOML_HOME": str(self.scratch())}
        return {"BENCH_WORKERS": str(workers), **quiet}


class FastApi(Plain):
    """FastAPI and uvicorn: the server that a team writes itself."""

    name = "fastapi"
    protocol = "JSON and bytes of its own"
    missing = dict.fromkeys((SHM, UDS, GRPC), "no such protocol")
    path = "/json/{name}"

    def command(self, workers: int) -> list[str | Path]:
        quiet = ["--no-access-log", "--log-level", "warning"]
        bind = ["--host", "127.0.0.1", "--port", str(self._http), "--workers", str(workers)]
        return [self.bin / "python", "-m", "uvicorn", "fastapi_app:app", *bind, *quiet]

    def target(self, model: Model, way: str) -> Target:
        target = super().target(model, way)
        if way == JSON:
            return target
        return Target(address=target.address, request=wire.octets_request(model, f"/octets/{model.name}"), model=model)


ALL = (TritonServer, MlServer, KServe, LitServe, BentoMl, FastApi)
