"""The bare runtime: `session.run` and nothing around it, in a process of its own, as the servers are.

    python benchmarks/serving/raw.py FOLDER

Takes commands on stdin, one JSON line each, and replies on stdout. Sessions have the settings of `edgeserve serve`: one
thread inside a call, no spinning.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnxruntime

SHAPES = {"mlp": (1, 4), "kws": (1, 1, 98, 40), "cnn": (1, 3, 224, 224)}
FEW = 20
"""Calls between looks at the clock, for models of microseconds."""


def session(path: Path, *, threads: int = 1, spin: bool = False) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class Raw:
    """The models in memory, measured on command."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sessions: dict[tuple[str, int, bool], onnxruntime.InferenceSession] = {}

    def load(self, name: str, *, threads: int = 1, spin: bool = False) -> onnxruntime.InferenceSession:
        key = (name, threads, spin)
        if key not in self._sessions:
            path = self._folder / "repository" / name / "1" / "model.onnx"
            self._sessions[key] = session(path, threads=threads, spin=spin)
        return self._sessions[key]

    def inputs(self, name: str) -> dict[str, np.ndarray]:
        data = (self._folder / f"{name}.input").read_bytes()
        return {"x": np.frombuffer(data, np.float32).reshape(SHAPES[name])}

    def calls(self, name: str, secs: float) -> dict[str, float]:
        """One thread calls for `secs`: CPU of a call, and the shortest and the median call."""
        run, feed = self.load(name).run, self.inputs(name)
        names = ["y"]
        for _ in range(3):
            run(names, feed)
        count, cpu, end = 0, time.process_time(), time.perf_counter() + secs
        while time.perf_counter() < end:
            for _ in range(FEW if name == "mlp" else 1):
                run(names, feed)
                count += 1
        cpu = time.process_time() - cpu
        spans, end = [], time.perf_counter() + secs / 4
        while time.perf_counter() < end:
            begin = time.perf_counter()
            run(names, feed)
            spans.append(time.perf_counter() - begin)
        spans.sort()
        return {
            "cpu_us": cpu / count * 1e6,
            "rps": count / secs,
            "min_us": spans[0] * 1e6,
            "p50_us": spans[len(spans) // 2] * 1e6,
        }

    def throughput(self, name: str, secs: float, callers: int, threads: int, spin: bool) -> dict[str, float]:
        """`callers` threads, which live through the measurement, call one session that has `threads` inside a call."""
        run, feed = self.load(name, threads=threads, spin=spin).run, self.inputs(name)
        counts = [0] * callers
        begin = threading.Barrier(callers + 1)
        end = [0.0]

        def work(index: int) -> None:
            run(["y"], feed)
            begin.wait()
            while time.perf_counter() < end[0]:
                run(["y"], feed)
                counts[index] += 1

        workers = [threading.Thread(target=work, args=(index,)) for index in range(callers)]
        for worker in workers:
            worker.start()
        end[0] = time.perf_counter() + secs
        begin.wait()
        for worker in workers:
            worker.join()
        return {"rps": sum(counts) / secs}


def main() -> None:
    raw = Raw(Path(sys.argv[1]))
    for line in sys.stdin:
        command = json.loads(line)
        do = command.pop("do")
        if do == "load":
            for name in SHAPES:
                raw.load(name).run(["y"], raw.inputs(name))
            reply = {"onnxruntime": onnxruntime.__version__, "numpy": np.__version__}
        else:
            reply = {"calls": raw.calls, "throughput": raw.throughput}[do](**command)
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
