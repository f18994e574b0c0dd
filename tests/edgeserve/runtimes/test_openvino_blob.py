"""Compiled models of OpenVINO that are kept: on the CPU for real, which exports and imports like an NPU."""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

if find_spec("openvino") is None:  # not importorskip, which would import it with its telemetry on
    pytest.skip("openvino is not installed: pip install 'edgeserve[openvino]'", allow_module_level=True)

from edgeserve.contracts.errors import DeviceError, InputError
from edgeserve.runtimes.base import RuntimeOptions
from edgeserve.runtimes.engine_cache import EngineKey
from edgeserve.runtimes.kept_folder import runtime_cache
from edgeserve.runtimes.openvino import OpenVinoRuntime, device_names
from edgeserve.runtimes.openvino_blob import from_blob
from tests.suites.models import conv_net, save

import openvino  # isort: skip - after the runtime, which turns its telemetry off

ROWS = {"image": np.random.default_rng(0).standard_normal((1, 1, 8, 8)).astype(np.float32)}


@pytest.fixture
def ir(tmp_path: Path) -> Path:
    graph = openvino.convert_model(save(conv_net(batch=1), tmp_path / "source.onnx"))
    (tmp_path / "m").mkdir()
    openvino.save_model(graph, tmp_path / "m/model.xml", compress_to_fp16=False)
    return tmp_path / "m/model.xml"


@pytest.fixture
def load(ir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Callable[..., tuple[np.ndarray, bool]]:
    """Load with a cache and run: the logits, and whether a blob had to be built."""
    caplog.set_level(logging.INFO)

    def load(**options: object) -> tuple[np.ndarray, bool]:
        caplog.clear()
        loaded = OpenVinoRuntime().load(ir, RuntimeOptions(cache=tmp_path / "engines", **options))
        assert loaded.executing_device == "CPU"
        logits = loaded.run(ROWS)["logits"]
        loaded.close()
        return logits, "building the engine of model.xml" in caplog.text

    return load


def blobs(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "engines/openvino").glob("*.engine"))


def test_a_blob_is_built_once_and_computes_the_same(load, tmp_path: Path) -> None:
    first, built = load()
    second, built_again = load()
    assert (built, built_again) == (True, False)
    assert len(blobs(tmp_path)) == 1
    np.testing.assert_array_equal(first, second)


def test_a_blob_has_the_signature_of_the_model(ir: Path, tmp_path: Path) -> None:
    plain = OpenVinoRuntime().load(ir, RuntimeOptions())
    for _ in range(2):
        kept = OpenVinoRuntime().load(ir, RuntimeOptions(cache=tmp_path / "engines"))
        assert kept.signature == plain.signature
        kept.close()
    plain.close()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: data[:-100] + bytes([data[-100] ^ 1]) + data[-99:],
        lambda data: data + b"\0",
    ],
    ids=["empty", "one byte short", "half", "one bit", "one byte more"],
)
def test_a_blob_that_was_changed_is_never_loaded_and_made_anew(load, tmp_path: Path, spoil) -> None:
    expected, _built = load()
    (blob,) = blobs(tmp_path)
    whole = blob.read_bytes()
    blob.write_bytes(spoil(whole))
    logits, built = load()
    assert built
    np.testing.assert_array_equal(logits, expected)
    assert len(blob.read_bytes()) == len(whole)
    assert load()[1] is False


def test_other_settings_weights_and_threads_are_other_blobs(load, ir: Path, tmp_path: Path) -> None:
    before, _built = load()
    assert load(threads=2)[1] is True
    assert load(settings={"INFERENCE_PRECISION_HINT": "bf16"})[1] is True
    weights = ir.with_suffix(".bin")
    data = weights.read_bytes()
    weights.write_bytes(bytes(4) + data[4:])  # the first number of the first kernel
    after, built = load()
    assert built
    assert not np.array_equal(after, before)
    assert len(blobs(tmp_path)) == 4


def test_a_model_that_was_cut_off_is_refused_whatever_is_kept_of_it(load, ir: Path) -> None:
    load()
    ir.write_bytes(ir.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"model\.xml"):
        load()


def test_the_library_gets_no_folder_of_its_own(load, tmp_path: Path) -> None:
    load(settings={"CACHE_DIR": str(tmp_path / "own")})
    assert not (tmp_path / "own").exists()


def test_without_a_folder_and_in_a_simulation_nothing_is_kept(ir: Path, tmp_path: Path) -> None:
    OpenVinoRuntime().load(ir, RuntimeOptions()).close()
    OpenVinoRuntime().load(ir, RuntimeOptions(device="NPU", simulate=True, cache=tmp_path / "engines")).close()
    assert not (tmp_path / "engines").exists()


def test_a_blob_that_another_driver_does_not_take_is_made_anew(tmp_path: Path, ir: Path) -> None:
    """Its own check of versions: the cache holds what was kept, and the library refuses it all the same."""
    cache, key = runtime_cache(tmp_path / "engines", "openvino"), EngineKey(model="m", built_for={})
    core = openvino.Core()
    cache.find_or_build(key, lambda: b"a blob of yesterday's driver", what="m")
    made: list[object] = []

    def compile_model() -> object:
        made.append(core.compile_model(core.read_model(ir), "CPU"))
        return made[-1]

    def take() -> object:
        return from_blob(cache, key, compile_model, lambda blob: core.import_model(blob, "CPU"), what="m")

    assert take() is made[0]
    assert take() is not made[0]
    assert len(made) == 1


def test_a_device_that_exports_nothing_is_compiled_for_at_each_start(tmp_path: Path) -> None:
    class Compiled:
        def export_model(self) -> None:
            raise RuntimeError("Exception from src/plugin.cpp:1:\nexport is not supported")

    cache = runtime_cache(tmp_path / "engines", "openvino")
    for _ in range(2):
        compiled = Compiled()
        found = from_blob(
            cache, EngineKey(model="m", built_for={}), lambda compiled=compiled: compiled, lambda blob: None, what="m"
        )
        assert found is compiled
    assert blobs(tmp_path) == []


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"BOGUS": "1"}, "Unsupported property BOGUS"), ({"INFERENCE_NUM_THREADS": "x"}, "INFERENCE_NUM_THREADS")],
)
def test_a_setting_that_the_device_does_not_know_is_named(ir: Path, settings: dict[str, str], says: str) -> None:
    with pytest.raises(DeviceError, match=says) as caught:
        OpenVinoRuntime().load(ir, RuntimeOptions(settings=settings))
    assert "correct the settings" in caught.value.hint


def test_devices_have_their_full_names() -> None:
    names = device_names()
    assert names["CPU"]
    assert set(names) == set(openvino.Core().available_devices)
