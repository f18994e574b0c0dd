"""The whole of it on this machine, in a few seconds: what comes out is checked, never how long anything took."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from edgeserve import npz
from edgeserve.contracts.documents import encode
from edgeserve.contracts.errors import DeviceError, InputError
from edgeserve.contracts.model_config import ModelConfig
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve_agent import slots
from edgeserve_agent.serving.config_file import read_config
from edgeserve_agent.tune.measure import Load, Subject, available_bytes, bench, in_turn
from edgeserve_agent.tune.space import Configuration
from tests.suites.models import model, save
from tests.suites.repository import put_release, put_variant

SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", datatype=Datatype.FP32, shape=(-1, 4)),),
    outputs=(TensorSpec(name="y", datatype=Datatype.FP32, shape=(-1, 3)),),
)
LOAD = Load(concurrencies=(1, 4), window_s=0.02, percentile=90.0)


@pytest.fixture
def null_model(tmp_path: Path) -> Path:
    path = tmp_path / "sums.null.json"
    path.write_bytes(encode(SIGNATURE))
    return path


@pytest.fixture
def onnx_model(tmp_path: Path) -> Path:
    net = model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        inputs={"x": (TensorProto.FLOAT, ["rows", 64])},
        outputs={"y": (TensorProto.FLOAT, ["rows", 64])},
        weights={"w": np.eye(64, dtype=np.float32)},
    )
    return save(net, tmp_path / "eye.onnx")


def edgeserve(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    ended = subprocess.run(
        [sys.executable, "-m", "edgeserve", "tune", *map(str, arguments)], capture_output=True, text=True
    )
    assert ended.returncode == code, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr
    return ended


def test_an_onnx_model_is_tuned_and_the_server_reads_the_result(onnx_model, tmp_path):
    rows = tmp_path / "rows.npz"
    rows.write_bytes(npz.dump({"x": np.ones((5, 64), np.float32)}))
    settings, page = tmp_path / "eye.toml", tmp_path / "eye.html"
    ended = edgeserve(
        onnx_model, "--seconds", 5, "--concurrency", "1,4", "--input", rows, "-o", settings, "--report", page, "--json"
    )
    document = json.loads(ended.stdout)
    report = document["report"]
    assert document["written"] == str(settings)
    assert report["model"] == "eye"
    assert report["runtime"].startswith("onnxruntime ")
    assert report["device"] == "CPU"
    assert report["cores"] >= 1
    # Those that are installed here and refuse an ONNX file say so.
    assert set(report["passed_over"]) <= {"litert", "openvino"}
    winner = next(trial for trial in report["trials"] if trial["is_chosen"])
    assert winner["title"] == report["chosen"]
    assert report["trials"][0] == winner
    measured = [trial for trial in report["trials"] if trial["rounds"]]
    assert len(measured) >= 2
    for trial in measured:
        assert [load["concurrency"] for load in trial["loads"]] == [1, 4]
        assert trial["memory_bytes"] > 1_000_000
        for load in trial["loads"]:
            assert load["requests"] > 0
            assert load["throughput"] > 0
            assert 0 < load["p50_ms"] <= load["tail_ms"]
            assert load["cpu_ms"] > 0
    config = read_config(settings)
    assert config.threads == winner["threads"]
    assert config.instances == winner["instances"]
    assert config.max_batch_size == winner["max_batch_size"]
    assert (config.dynamic_batching is not None) == bool(winner["max_batch_size"])
    assert page.read_text().startswith("<!doctype html>")


def test_people_get_a_table_a_plot_and_what_it_rests_on(null_model):
    said = edgeserve(null_model, "--seconds", 2, "--concurrency", "1").stdout
    assert "chosen" in said
    assert "requests/s" in said
    assert "@ chosen" in said
    assert "measurements in" in said
    assert "Batching off" in said
    assert "instance_group = [{count = " in said
    assert "keep it with -o" in said


def test_where_nothing_holds_the_bound_the_nearest_is_named_and_nothing_written(null_model, tmp_path):
    settings, page = tmp_path / "s.toml", tmp_path / "r.html"
    ended = edgeserve(
        null_model, "--seconds", 2, "--memory-mb", 1, "-o", settings, "--report", page, "--concurrency", 1, code=1
    )
    assert "error: nothing that was tried holds the bounds; nearest: " in ended.stderr
    assert "hint: " in ended.stderr
    assert not settings.exists()
    assert "Nothing meets the bounds." in page.read_text()


def test_a_model_of_the_device_is_tuned_where_the_agent_reads_it(tmp_path):
    state = tmp_path / "state"
    digest = "sha256:" + "a" * 64
    slot = slots.Slot(release=digest, version="3.2", variant=digest)
    shutil.copytree(put_variant(tmp_path / "variant", adds=1), slot.folder(state))
    slots.write(state, slots.Slots(models=(slots.ModelSlots(model="m", active=slot),)))
    settings = state / "models" / "m.toml"
    settings.parent.mkdir()
    settings.write_text("version_labels = {stable = 3}\nthreads = 7\n")
    said = edgeserve("m", "--state-dir", state, "--seconds", 2, "--concurrency", 1).stdout
    assert said.startswith("m 3.2, onnxruntime ")
    assert f"written to {settings}" in said
    assert "takes the settings up when it starts" in said
    config = read_config(settings)
    assert config.version_labels == {"stable": 3}
    assert config.threads != 7
    assert config.instances >= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.onnx"], "there is nothing at"),
        (["MODEL", "--objective", "beauty"], "--objective 'beauty' is not known"),
        (["MODEL", "--concurrency", "1,x"], "--concurrency '1,x' is not a list"),
        (["MODEL", "--concurrency", "0"], "--concurrency '0' is not a list"),
        (["MODEL", "--concurrency", "100000"], "is not a list"),
        (["MODEL", "--percentile", "0"], "--percentile 0 is not between"),
        (["MODEL", "--latency-ms", "-1"], "--latency-ms -1 is not between"),
        (["MODEL", "--memory-mb", "0"], "--memory-mb 0 is not between"),
        (["MODEL", "--seconds", "0"], "--seconds 0 is not between"),
        (["MODEL", "--seconds", "nan"], "--seconds nan is not between"),
        (["MODEL", "-o", "x.json"], "-o x.json is not a .toml"),
        (["MODEL", "-o", "nowhere/x.toml"], "there is no folder"),
        (["MODEL", "--report", "x.pdf"], "--report x.pdf is not a .html"),
        (["MODEL", "--input", "missing.npz"], "there is no file missing.npz"),
        (["MODEL", "--state-dir", "missing"], "there is no state directory"),
        (["MODEL", "-o", "x.toml", "--state-dir", "."], "two places"),
        (["unknown", "--state-dir", "."], "neither a file nor an active model"),
        ([".", "--seconds", "2"], "is a folder of models"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_told_before_anything_is_measured(null_model, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    ended = edgeserve(*(null_model if one == "MODEL" else one for one in arguments), code=2)
    assert message in ended.stderr
    assert ended.stdout == ""


def test_a_file_that_is_no_model_is_the_users_mistake(tmp_path):
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"no model")
    assert "error: broken.onnx is not a model" in edgeserve(path, "--seconds", 2, code=2).stderr


def test_inputs_that_do_not_fit_are_the_users_mistake(null_model, tmp_path):
    rows = tmp_path / "rows.npz"
    rows.write_bytes(npz.dump({"z": np.ones((5, 4), np.float32)}))
    assert "has no array 'x'" in edgeserve(null_model, "--input", rows, code=2).stderr


def test_a_trial_measures_each_load_and_its_memory(null_model):
    with bench(Subject(path=null_model, base=ModelConfig())) as trials:
        ready = trials.trial(Configuration()).ready
        assert (ready.model, ready.runtime, ready.batchable) == ("sums", "null", True)
        samples, memory = trials.measure(Configuration(batch=4, delay_us=200), LOAD)
    assert [sample.concurrency for sample in samples] == [1, 4]
    assert all(sample.requests >= 10 and not sample.failed for sample in samples)
    assert memory > 1_000_000


def test_the_variant_of_a_release_that_fits_this_machine_is_tuned(tmp_path):
    release = put_release(tmp_path / "release", counter=7)
    with bench(Subject(path=release, base=ModelConfig())) as trials:
        ready = trials.trial(Configuration()).ready
        assert (ready.model, ready.version, ready.runtime) == ("sums", "2.1", "null")
        assert trials.measure(Configuration(), LOAD)[0]


def test_a_trial_whose_process_is_killed_says_so_and_the_next_one_is_a_new_one(null_model):
    with bench(Subject(path=null_model, base=ModelConfig())) as trials:
        killed = trials.trial(Configuration())
        killed._process.kill()
        with pytest.raises(DeviceError, match="it was killed, most likely because memory ran out"):
            trials.measure(Configuration(), LOAD)
        samples, _ = trials.measure(Configuration(), LOAD)
    assert samples


def test_a_runtime_that_cannot_load_the_model_is_an_error_of_that_configuration(null_model):
    with bench(Subject(path=null_model, base=ModelConfig())) as trials:
        with pytest.raises(InputError, match="no runtime is named"):
            trials.trial(Configuration(runtime="nowhere"))
        assert trials.measure(Configuration(), LOAD)[0]


def test_processes_end_with_the_bench(null_model):
    with bench(Subject(path=null_model, base=ModelConfig())) as trials:
        found = [trials.trial(Configuration(threads=threads)) for threads in (1, 2)]
    assert all(trial._process.returncode is not None for trial in found)


def test_free_memory_is_what_the_kernel_and_the_control_group_leave(tmp_path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal:       4000000 kB\nMemAvailable:    1000000 kB\n")
    assert available_bytes(tmp_path) == 1_024_000_000
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("1000\n")
    assert available_bytes(tmp_path) == 1_024_000_000
    (group / "memory.max").write_text("501000\n")
    assert available_bytes(tmp_path) == 500_000


def test_each_round_another_one_is_first():
    ones = [Configuration(threads=threads) for threads in (1, 2, 4)]
    orders = [in_turn(ones, number) for number in range(3)]
    assert {order[0] for order in orders} == set(ones)
    assert all(set(order) == set(ones) for order in orders)
