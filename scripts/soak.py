"""Let every kind of client use, misuse and leave one server for a long time; its memory, files and threads stay flat.

Starts `edgeserve serve` on a folder of models in a temporary directory: a small ONNX model, the same in a worker
process of its own that is killed now and then, and a third that is loaded and unloaded over and over. Exits with 1
when a bound is broken or a request that is right is not answered.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

sys.path.insert(0, str(Path(__file__).with_name("fuzz")))
from mutations import mutate
from target_http import SEEDS
from worlds import small_onnx

from edgeserve.client.inference import InferenceClient
from edgeserve.client.local import LocalClient
from edgeserve.client.oip_proto import messages

SAMPLE_S = 5.0
FLAT = 0.02
"""What memory may change, of its mean."""
FEW = 6
"""Descriptors and threads that may come and go."""
KILL_S = 150.0
"""Between two kills of the worker process: fewer than its budget of restarts."""
PATIENCE_S = 30.0
ROW = np.array([[1, 2, 3, 4]], np.float32)
ANSWER = ROW @ np.arange(12, dtype=np.float32).reshape(4, 3)
JSON_BODY = json.dumps(
    {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": ROW.ravel().tolist()}]}
).encode()


class Soak:
    """One server, its clients, and what became of them."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        models = folder / "models"
        for name in ("m", "iso", "extra"):
            (models / name / "1").mkdir(parents=True)
            small_onnx(models / name / "1" / "model.onnx")
        (models / "iso" / "config.toml").write_text('isolation = "process"\n')
        self.folder, self.local, self.uds = folder, folder / "local.sock", folder / "http.sock"
        command = [*options.serve.split(), str(models), "--http", "127.0.0.1:0", "--uds", str(self.uds), "--json"]
        command += ["--local", str(self.local), "--allow-shm", "--model-control", "explicit"]
        command += ["--load-model", "m", "--load-model", "iso"]
        self.log = (folder / "server.log").open("wb")
        self.child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log)
        assert self.child.stdout is not None
        said = b""
        while line := self.child.stdout.readline():
            said += line
            if line.rstrip() == b"}":
                break
        if not said:
            raise SystemExit(
                f"the server ended with {self.child.wait()}: {(folder / 'server.log').read_text()[-2000:]}"
            )
        self.url = str(json.loads(said)["http"])
        parts = urlsplit(self.url)
        self.host, self.port = str(parts.hostname), int(parts.port or 0)
        self.done: Counter[str] = Counter()
        self.wrong: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.stop = threading.Event()

    def loop(self, name: str, step: Callable[[], None], pause_s: float) -> None:
        """Let one client work until the end; what it raises is an answer that was not right."""
        while not self.stop.is_set():
            try:
                step()
                self.done[name] += 1
            except Exception as error:  # noqa: BLE001 - it is counted and shown
                self.wrong[name] += 1
                self.examples.setdefault(name, f"{type(error).__name__}: {error}"[:300])
            self.stop.wait(pause_s)

    # Clients ---------------------------------------------------------------------------------------

    def raw(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), timeout=PATIENCE_S)

    def post(self, path: str, body: bytes, *, expect: Sequence[int] = (200,), **headers: str) -> bytes:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=PATIENCE_S)
        try:
            connection.request("POST", path, body, headers)
            answer = connection.getresponse()
            data = answer.read()
        finally:
            connection.close()
        assert answer.status in expect, f"{path}: {answer.status} {data[:200]!r}"
        return data

    def http_json(self, model: str = "m", expect: Sequence[int] = (200,)) -> Callable[[], None]:
        kept = http.client.HTTPConnection(self.host, self.port, timeout=PATIENCE_S)

        def step() -> None:
            kept.request("POST", f"/v2/models/{model}/infer", JSON_BODY)
            answer = kept.getresponse()
            data = answer.read()
            assert answer.status in expect, f"{answer.status} {data[:200]!r}"
            if answer.status == 200:
                assert json.loads(data)["outputs"][0]["data"] == ANSWER.ravel().tolist(), data

        return step

    def http_binary(self) -> Callable[[], None]:
        client = InferenceClient(self.url)
        rows = np.repeat(ROW, 5000, axis=0)

        def step() -> None:
            given = random.choice((ROW, ROW, ROW, rows))
            found = client.infer("m", {"x": given}).outputs["y"]
            assert (found == ANSWER).all()

        return step

    def v1(self) -> None:
        data = self.post("/v1/models/m:predict", json.dumps({"instances": ROW.tolist()}).encode())
        assert json.loads(data)["predictions"] == ANSWER.tolist(), data

    def over_uds(self) -> None:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE_S)
            client.connect(str(self.uds))
            head = b"POST /v2/models/m/infer HTTP/1.1\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(
                JSON_BODY
            )
            client.sendall(head + JSON_BODY)
            data = b"".join(iter(lambda: client.recv(65536), b""))
            assert data.startswith(b"HTTP/1.1 200"), data[:200]

    def grpc(self) -> Callable[[], None]:
        import grpc

        known = messages()
        request = known.ModelInferRequest(model_name="m", raw_input_contents=[ROW.tobytes()])
        request.inputs.add(name="x", datatype="FP32", shape=[1, 4])
        state: dict[str, object] = {"calls": 0}

        def step() -> None:
            if not state["calls"]:
                state["channel"] = channel = grpc.insecure_channel(
                    f"{self.host}:{self.port}", [("grpc.use_local_subchannel_pool", 1)]
                )
                state["infer"] = channel.unary_unary(
                    "/inference.GRPCInferenceService/ModelInfer",
                    request_serializer=known.ModelInferRequest.SerializeToString,
                    response_deserializer=known.ModelInferResponse.FromString,
                )
            answer = state["infer"](request, timeout=PATIENCE_S)  # type: ignore[operator]
            assert answer.raw_output_contents[0] == ANSWER.tobytes()
            state["calls"] = (int(state["calls"]) + 1) % 500  # type: ignore[call-overload]
            if not state["calls"]:
                state["channel"].close()  # type: ignore[attr-defined]

        return step

    def shared_local(self) -> None:
        with LocalClient(self.local) as client:
            session = client.session("m", shapes={"x": (1, 4)})
            for _ in range(50):
                session.inputs["x"][...] = ROW
                session.run()
                assert (session.outputs["y"] == ANSWER).all()

    def shared_named(self) -> None:
        name = f"soak{os.getpid()}"
        memory = SharedMemory(name=name, create=True, size=64)
        try:
            np.ndarray((1, 4), np.float32, memory.buf)[...] = ROW
            region = f"/v2/systemsharedmemory/region/{name}"
            self.post(f"{region}/register", json.dumps({"key": f"/{name}", "offset": 0, "byte_size": 64}).encode())
            where = {"shared_memory_region": name, "shared_memory_byte_size": 16}
            tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "parameters": where}
            data = self.post("/v2/models/m/infer", json.dumps({"inputs": [tensor]}).encode())
            assert json.loads(data)["outputs"][0]["data"] == ANSWER.ravel().tolist(), data
            self.post(f"{region}/unregister", b"{}")
        finally:
            memory.close()
            memory.unlink()

    def wrong_requests(self) -> None:
        """Bytes that are no request, or a wrong one; anything but a hang is right."""
        with self.raw() as client:
            client.settimeout(PATIENCE_S)
            try:
                client.sendall(mutate(random.choice(SEEDS), random.Random(random.random()), SEEDS))
                client.shutdown(socket.SHUT_WR)
                while client.recv(65536):
                    pass
            except (ConnectionError, OSError) as error:
                if isinstance(error, TimeoutError):
                    raise

    def leaves(self) -> None:
        """A client that goes in the middle of something, now and then with a reset."""
        with self.raw() as client:
            rows = np.repeat(ROW, 20_000, axis=0)
            size = {"binary_data_size": rows.nbytes}
            tensor = {"name": "x", "shape": rows.shape, "datatype": "FP32", "parameters": size}
            head = json.dumps({"inputs": [tensor]}).encode()
            lines = (
                b"POST /v2/models/m/infer HTTP/1.1\r\nInference-Header-Content-Length: %d\r\nContent-Length: %d\r\n\r\n"
            )
            data = lines % (len(head), len(head) + rows.nbytes) + head + rows.tobytes()
            client.sendall(data[: random.choice((7, 60, 400, 100_000, len(data)))])
            if random.random() < 0.5:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            time.sleep(random.choice((0, 0.01)))

    def repository(self) -> None:
        self.post("/v2/repository/models/extra/load", b"{}")
        data = self.post("/v2/models/extra/infer", JSON_BODY)
        assert json.loads(data)["outputs"][0]["data"] == ANSWER.ravel().tolist(), data
        self.post("/v2/repository/models/extra/unload", b"{}")

    def kills(self) -> None:
        """End the worker process of the isolated model."""
        workers = [pid for pid in tree(self.child.pid)[1:] if not children(pid)]
        if workers:
            os.kill(random.choice(workers), signal.SIGKILL)
        self.stop.wait(KILL_S)

    def start(self) -> list[threading.Thread]:
        clients: dict[str, tuple[Callable[[], None], float]] = {
            "V2 JSON": (self.http_json(), 0.005),
            "V2 JSON, isolated": (self.http_json("iso", (200, 500, 503)), 0.02),
            "V2 binary": (self.http_binary(), 0.005),
            "V1": (self.v1, 0.02),
            "Unix socket": (self.over_uds, 0.02),
            "gRPC": (self.grpc(), 0.005),
            "shared memory, local": (self.shared_local, 0.1),
            "shared memory, named": (self.shared_named, 0.1),
            "wrong requests": (self.wrong_requests, 0.01),
            "clients that leave": (self.leaves, 0.02),
            "load and unload": (self.repository, 0.2),
            "kills": (self.kills, 0.0),
        }
        threads = [
            threading.Thread(target=self.loop, args=(name, *client), name=name, daemon=True)
            for name, client in clients.items()
        ]
        for thread in threads:
            thread.start()
        return threads


# Measuring -----------------------------------------------------------------------------------------


def children(pid: int) -> list[int]:
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(one) for task in tasks for one in (task / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def tree(pid: int) -> list[int]:
    """A process and all that descend from it."""
    return [pid, *(one for child in children(pid) for one in tree(child))]


def memory_mib(pid: int) -> float:
    """Private memory of a process."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "VmSwap"))) / 1024


@dataclass(kw_only=True)
class Series:
    """Samples after the warm-up."""

    at: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    own: list[float] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)

    def sample(self, pid: int) -> None:
        self.at.append(time.monotonic())
        self.own.append(memory_mib(pid))
        self.memory.append(sum(map(memory_mib, tree(pid))))
        self.descriptors.append(len(list(Path(f"/proc/{pid}/fd").iterdir())))
        self.threads.append(len(list(Path(f"/proc/{pid}/task").iterdir())))

    def quarters(self, values: Sequence[float]) -> tuple[float, float]:
        """Medians of the first and the last."""
        part = max(1, len(values) // 4)
        return statistics.median(values[:part]), statistics.median(values[-part:])

    def drift(self, values: Sequence[float]) -> tuple[float, float]:
        """What the least-squares line and the last quarter over the first say of growth, as parts of the mean."""
        mean = statistics.fmean(values)
        slope = statistics.linear_regression(self.at, values).slope
        first, last = self.quarters(values)
        return slope * (self.at[-1] - self.at[0]) / mean, (last - first) / mean


def report(soak: Soak, series: Series, options: argparse.Namespace) -> list[str]:
    """Print the table; what is broken."""
    broken = []
    print(f"\n{options.minutes:g} minutes, {sum(soak.done.values())} rounds of clients, {len(series.at)} samples\n")
    print(f"{'client':24}{'rounds':>10}{'failed':>8}")
    for name in sorted({*soak.done, *soak.wrong}):
        print(f"{name:24}{soak.done[name]:>10}{soak.wrong[name]:>8}  {soak.examples.get(name, '')}")
        if soak.wrong[name]:
            broken.append(f"{name}: {soak.wrong[name]} failures, the first: {soak.examples[name]}")
    print(f"\n{'':24}{'first':>10}{'last':>10}{'line':>10}{'quarters':>10}")
    for what, values in (("memory of all, MiB", series.memory), ("of the server, MiB", series.own)):
        line, quarters = series.drift(values)
        first, last = series.quarters(values)
        print(f"{what:24}{first:>10.1f}{last:>10.1f}{line:>+10.2%}{quarters:>+10.2%}")
        tenth = max(1, len(values) // 10)
        means = [statistics.fmean(values[at : at + tenth]) for at in range(0, len(values) - tenth + 1, tenth)]
        print(f"{'  in tenths':24}{'  '.join(f'{mean:.1f}' for mean in means)}")
        if max(line, quarters) > FLAT:
            broken.append(f"{what}: grows by {max(line, quarters):.1%}")
    for what, counts in (("descriptors", series.descriptors), ("threads", series.threads)):
        first, last = series.quarters(counts)
        print(f"{what:24}{first:>10.0f}{last:>10.0f}")
        if last > first + FEW:
            broken.append(f"{what}: {first:.0f} became {last:.0f}")
    return broken


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--warm-up", type=float, default=0.2, metavar="PART", help="of the time that is not counted")
    parser.add_argument("--serve", default=f"{Path(sys.executable).with_name('edgeserve')} serve", help="the command")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgeserve-soak-") as folder:
        soak, series = Soak(Path(folder), options), Series()
        try:
            clients = soak.start()
            began = time.monotonic()
            end = began + options.minutes * 60
            while time.monotonic() < end and soak.child.poll() is None:
                time.sleep(SAMPLE_S)
                if time.monotonic() - began > options.warm_up * options.minutes * 60:
                    series.sample(soak.child.pid)
            soak.stop.set()
            for thread in clients:
                thread.join(2 * PATIENCE_S)
            ended = soak.child.poll()
            if ended is None:
                soak.child.send_signal(signal.SIGTERM)
                ended = soak.child.wait(60)
            broken = report(soak, series, options)
            if ended:
                broken.append(f"the server ended with {ended}")
            log = (Path(folder) / "server.log").read_text()
            print(f"{'worker restarts':24}{log.count('is served again'):>10}")
            if not log.count("is served again"):
                broken.append("no worker process was killed and came back")
            if tracebacks := log.count("Traceback"):
                broken.append(f"{tracebacks} tracebacks in the server's log")
                print(log[-5000:])
        finally:
            soak.child.kill()
            soak.child.wait()
    for one in broken:
        print(f"broken: {one}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
