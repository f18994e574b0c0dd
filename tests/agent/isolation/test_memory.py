from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from edgeserve.runtimes.base import RuntimeOptions
from edgeserve_agent.isolation.memory import process_memory
from edgeserve_agent.isolation.runtime import IsolatedRuntime
from tests.agent.isolation.processes import descendants, tree_memory
from tests.suites.models import model, save

MIB = 1 << 20
SIDE = 1024


@pytest.fixture
def weighty(tmp_path: Path) -> Path:
    """A model with 8 MiB of weights."""
    random = np.random.default_rng(0)
    weights = {name: random.standard_normal((SIDE, SIDE)).astype(np.float32) for name in ("w1", "w2")}
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w2"], ["y"]),
    ]
    x = {"x": (TensorProto.FLOAT, ["n", SIDE])}
    return save(
        model(nodes, inputs=x, outputs={"y": (TensorProto.FLOAT, ["n", SIDE])}, weights=weights), tmp_path / "m.onnx"
    )


def test_a_hundred_loads_and_unloads_leave_the_memory_of_the_process_tree_flat(weighty: Path, server) -> None:
    runtime = IsolatedRuntime("onnxruntime", server=server)
    inputs = {"x": np.ones((64, SIDE), np.float32)}
    seen: list[int] = []
    loaded: list[int] = []
    for _ in range(100):
        isolated = runtime.load(weighty, RuntimeOptions())
        isolated.run(inputs)
        loaded.append(isolated.memory().total)
        assert server.pid is not None
        assert isolated.pid in descendants(server.pid)
        isolated.close()
        assert descendants(server.pid) == [], "the worker is gone when close returns"
        seen.append(tree_memory(os.getpid()))
    print(f"tree after 10: {seen[9] / MIB:.2f} MiB, after 100: {seen[99] / MIB:.2f}; worker {loaded[9] / MIB:.2f}")
    assert abs(seen[99] - seen[9]) <= 0.02 * seen[9]
    assert abs(loaded[99] - loaded[9]) <= 0.02 * loaded[9]
    assert min(loaded) > 8 * MIB, "what is compared is a model in memory"


def test_closing_gives_back_what_loading_took(weighty: Path, server) -> None:
    runtime = IsolatedRuntime("onnxruntime", server=server)
    runtime.load(weighty, RuntimeOptions()).close()
    before = tree_memory(os.getpid())
    isolated = runtime.load(weighty, RuntimeOptions())
    assert tree_memory(os.getpid()) > before + 8 * MIB
    isolated.close()
    assert abs(tree_memory(os.getpid()) - before) < 2 * MIB


def test_closing_lets_go_of_the_shared_memory(weighty: Path, server) -> None:
    isolated = IsolatedRuntime("onnxruntime", server=server).load(weighty, RuntimeOptions())
    kept = isolated.run({"x": np.ones((2000, SIDE), np.float32)})
    assert shared() > 0
    isolated.close()
    assert shared() == 0
    assert kept["y"].shape == (2000, SIDE)


def shared() -> int:
    """Mappings of tensors in this process."""
    return Path("/proc/self/maps").read_text().count("memfd:edgeserve-tensors")


def test_descriptors_of_the_serving_process_do_not_grow(weighty: Path, server) -> None:
    runtime = IsolatedRuntime("onnxruntime", server=server)
    runtime.version()
    before = len([*Path("/proc/self/fd").iterdir()])
    for _ in range(5):
        runtime.load(weighty, RuntimeOptions()).close()
        with pytest.raises(Exception, match="absent"):
            runtime.load(weighty.with_name("absent.onnx"), RuntimeOptions())
    assert len([*Path("/proc/self/fd").iterdir()]) == before


def test_a_process_that_is_gone_has_no_memory() -> None:
    assert process_memory(1 << 30).total == 0
    assert process_memory(os.getpid()).anonymous > MIB
