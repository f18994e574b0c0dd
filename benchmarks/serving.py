"""What the model server costs over the bare runtime: one tiny model, one connection, both measured in turn in one run.

    python benchmarks/serving.py [--requests 2000] [--rounds 5]

The client is a raw socket in this process, so `p50` of the server includes both processes' wake-ups; `cpu` is that of
the server's process alone. Figures of different runs or machines cannot be compared; the ratio of one run can.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from edgeserve.demo import __file__ as demo
from edgeserve.runtimes.base import RuntimeOptions
from edgeserve.runtimes.onnx import OnnxRuntime

MODEL = Path(demo).parent / "assets" / "digits-v1.onnx"
RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results" / "serving.md"
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=2000, help="in each round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    image = np.random.default_rng(0).random((1, 1, 8, 8), np.float32)
    raw_model = OnnxRuntime().load(MODEL, RuntimeOptions())
    with tempfile.TemporaryFile("w+") as out:
        command = [sys.executable, "-m", "edgeserve", "serve", str(MODEL), "--http", "127.0.0.1:0", "--json"]
        server = subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL)
        try:
            port = wait_for_port(out, server)
            rows = {"runtime": [], "server, binary": [], "server, JSON": []}
            for _ in range(options.rounds):
                rows["runtime"].append(measure_raw(raw_model, image, options.requests))
                for name, data in (("server, binary", binary(image)), ("server, JSON", as_json(image))):
                    rows[name].append(measure_server(port, data, options.requests, server.pid))
        finally:
            server.terminate()
            server.wait()
    text = table(rows, f"{MODEL.name}, {options.rounds} rounds of {options.requests} requests, medians of rounds")
    print(text)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(f"# What the model server costs over the bare runtime\n\nWritten by `make bench`.\n\n{text}\n")


def table(rows: dict[str, list[tuple[float, float]]], title: str) -> str:
    """Markdown; ratios are to the bare runtime of the same run."""
    lines = [f"{title}; {cpu_name()}, {os.cpu_count()} cores; microseconds a request.", ""]
    lines += ["| | p50 | CPU | CPU over the runtime | ratio |", "|---|--:|--:|--:|--:|"]
    medians = {name: [statistics.median(column) for column in zip(*found, strict=True)] for name, found in rows.items()}
    base = medians["runtime"][1]
    for name, (p50, cpu) in medians.items():
        lines.append(f"| {name} | {p50:.1f} | {cpu:.1f} | {cpu - base:+.1f} | {cpu / base:.2f} |")
    return "\n".join(lines)


def cpu_name() -> str:
    found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else "unknown CPU"


def wait_for_port(out, server: subprocess.Popen) -> int:
    end = time.monotonic() + 30
    while True:
        out.seek(0)
        if found := re.search(r'"http": "http://127\.0\.0\.1:(\d+)"', out.read()):
            return int(found[1])
        if server.poll() is not None or time.monotonic() > end:
            raise SystemExit("the server did not start")
        time.sleep(0.05)


def measure_raw(model, image, count: int) -> tuple[float, float]:
    times = []
    cpu = time.process_time()
    for _ in range(count):
        start = time.perf_counter()
        model.run({"image": image})
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e6, (time.process_time() - cpu) / count * 1e6


def measure_server(port: int, data: bytes, count: int, pid: int) -> tuple[float, float]:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        times = []
        cpu = cpu_s(pid)
        for _ in range(count):
            start = time.perf_counter()
            connection.sendall(data)
            answer = connection.recv(65536)
            times.append(time.perf_counter() - start)
        assert answer.startswith(b"HTTP/1.1 200"), answer
        return statistics.median(times) * 1e6, (cpu_s(pid) - cpu) / count * 1e6


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_S


def binary(image) -> bytes:
    tensor = {"name": "image", "shape": image.shape, "datatype": "FP32"}
    tensor["parameters"] = {"binary_data_size": image.nbytes}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return request(head + image.tobytes(), f"Inference-Header-Content-Length: {len(head)}\r\n")


def as_json(image) -> bytes:
    tensor = {"name": "image", "shape": image.shape, "datatype": "FP32", "data": image.ravel().tolist()}
    return request(json.dumps({"inputs": [tensor]}).encode(), "")


def request(body: bytes, headers: str) -> bytes:
    path = "/v2/models/digits-v1/infer"
    return f"POST {path} HTTP/1.1\r\nHost: b\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body


if __name__ == "__main__":
    main()
