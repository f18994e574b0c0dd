"""Engines on a device: built in the trial, kept, built anew before they are needed, and swept."""

from __future__ import annotations

import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import onnx.reference
import pytest

from edgeserve.contracts.errors import DeviceError
from edgeserve.contracts.limits import FINALIZE_TIMEOUT_S, TRIAL_TIMEOUT_S
from edgeserve.contracts.oci import GOLDEN_TYPE
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve.contracts.variant import Finalize, Precision, Selector, Tolerance, VariantContract
from edgeserve.golden import Golden
from edgeserve.release.build import ReleaseBuilder
from edgeserve.release.unpack import unpack_variant
from edgeserve.runtimes.base import RuntimeOptions
from edgeserve.runtimes.engine_cache import EngineCache, EngineKey
from edgeserve.runtimes.model_files import digest_files, model_files
from edgeserve_agent.download import StoppedError
from edgeserve_agent.finalize import cache_folder, collect, finalize, time_limit_s
from edgeserve_agent.isolation.messages import Fork, LoadOrder, Order, encode, from_text
from edgeserve_agent.isolation.options import IsolationOptions
from edgeserve_agent.sandbox import TrialError, run_trial
from edgeserve_agent.supervisor import is_alive
from tests.suites import tensorrt_simulator
from tests.suites.models import conv_net, images, save

pytestmark = pytest.mark.skipif(not tensorrt_simulator.compiler(), reason="no C compiler for the simulator of CUDA")
FINALIZE = Finalize(
    action="tensorrt-engine",
    steps=("build it",),
    options={"typing": "strong", "timing_cache": "timing.cache"},
    cache_key=("model", "tensorrt", "cuda", "driver", "soc"),
    seconds=40.0,
)
SIGNATURE = Signature(
    inputs=(TensorSpec(name="image", datatype=Datatype.FP32, shape=(-1, 1, 8, 8)),),
    outputs=(TensorSpec(name="logits", datatype=Datatype.FP32, shape=(-1, 10)),),
)


@pytest.fixture(scope="module")
def libraries(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("simulator")
    tensorrt_simulator.install(folder)
    return folder


@pytest.fixture
def builds(libraries, tmp_path, monkeypatch):
    """Children find the simulators; gives the number of engines that were built."""
    counted = tmp_path / "builds"
    wanted = tensorrt_simulator.environment(libraries, TENSORRT_SIMULATOR_BUILDS=str(counted))
    for name in ("PYTHONPATH", "LD_LIBRARY_PATH", "TENSORRT_SIMULATOR_BUILDS"):
        monkeypatch.setenv(name, wanted[name])
    return lambda: len(counted.read_bytes()) if counted.exists() else 0


def make(folder: Path, version: str = "1", *, counter: int = 1, seed: int = 0):
    """A release as `compile --target jetson-gpu` makes it, but for machines of every architecture."""
    folder.mkdir(parents=True, exist_ok=True)
    model = conv_net(seed=seed)
    path = save(model, folder / "model.onnx")
    contract = VariantContract(
        model="digits", target="jetson-gpu", precision=Precision.FP16, runtime="onnxruntime",
        runtime_device="TensorRT", entry="model.onnx", signature=SIGNATURE, selector=Selector(),
        tolerance=Tolerance(agreement=0.9), finalize=FINALIZE,
    )  # fmt: skip
    rows = images(4)
    answers = onnx.reference.ReferenceEvaluator(model).run(None, {"image": rows})[0]
    builder = ReleaseBuilder(name="digits", version=version, counter=counter)
    builder.add_variant(contract, {"model.onnx": path})
    golden = Golden(inputs={"image": rows}, outputs={"logits": answers.astype(np.float32)})
    builder.add_evidence("golden.npz", GOLDEN_TYPE, golden.dump())
    return builder.write(folder / "release")


@pytest.fixture
def variant(tmp_path, builds):
    release = make(tmp_path / "made")
    folder = tmp_path / "variant"
    unpack_variant(release.blobs, release.variants[0], folder)
    golden = release.blobs.path(release.evidence["golden.npz"].digest)
    return SimpleNamespace(folder=folder, golden=golden, cache=tmp_path / "engines")


def attempt(variant, **changes):
    fields = {"simulate": False, "threads": 1, "stop": threading.Event(), "cache": variant.cache, **changes}
    return run_trial(variant.folder, variant.golden, **fields)


def build(variant, **changes) -> None:
    fields = {"simulate": False, "threads": 1, "stop": threading.Event(), "cache": variant.cache, **changes}
    finalize(variant.folder, **fields)


def test_a_trial_builds_the_engine_keeps_it_and_tells_how_far_it_is(variant, builds, monkeypatch) -> None:
    monkeypatch.setenv("TENSORRT_SIMULATOR_SECONDS", "0.5")
    told: list[str] = []
    answer = attempt(variant, progress=told.append)
    assert answer.executing_device == "TensorRT 10.3 on Imitation GPU (sm_87)"
    assert (answer.passed, answer.fallback, answer.agreement) == (True, "", pytest.approx(1))
    assert told[0].startswith("building the engine of model.onnx: it was never built here ("), told
    attempt(variant)
    build(variant)
    assert builds() == 1


def test_without_tensorrt_the_variant_runs_elsewhere_and_the_answer_says_so(variant, monkeypatch) -> None:
    monkeypatch.delenv("PYTHONPATH")
    answer = attempt(variant)
    assert answer.executing_device == "CPU"
    assert answer.fallback.startswith("TensorRT was asked for, CPU runs it")


def test_a_build_that_is_not_wanted_any_more_is_ended_and_leaves_the_way_free(variant, monkeypatch, builds) -> None:
    monkeypatch.setenv("TENSORRT_SIMULATOR_SECONDS", "60")
    stop = threading.Event()
    with pytest.raises(StoppedError):
        attempt(variant, stop=stop, progress=lambda text: stop.set() if "building" in text else None)
    monkeypatch.delenv("TENSORRT_SIMULATOR_SECONDS")
    assert attempt(variant).passed
    assert builds() == 1


def test_a_build_has_a_limit_of_its_own_and_the_error_says_what_was_going_on(variant, monkeypatch) -> None:
    contract = VariantContract(
        model="m", target="null", precision=Precision.FP32, runtime="null", entry="m", signature=SIGNATURE,
        selector=Selector(), tolerance=Tolerance(),
    )  # fmt: skip
    assert time_limit_s(contract) == TRIAL_TIMEOUT_S
    built = VariantContract(
        **{name: getattr(contract, name) for name in contract.__struct_fields__} | {"finalize": FINALIZE}
    )
    assert time_limit_s(built) == TRIAL_TIMEOUT_S + FINALIZE_TIMEOUT_S
    monkeypatch.setenv("TENSORRT_SIMULATOR_SECONDS", "60")
    with pytest.raises(TrialError, match=r"longer than 4 s, last: building the engine of model\.onnx"):
        attempt(variant, timeout_s=4.0)


def test_a_disk_without_space_is_no_fault_of_the_release(variant, tmp_path) -> None:
    program = (
        "import sys\nfrom edgeserve import atomic\natomic.free_bytes = lambda folder: 0\n"
        "from edgeserve_agent.trial import main\nsys.exit(main(sys.argv[1:]))"
    )
    with pytest.raises(DeviceError, match="no space for the engine") as raised:
        attempt(variant, command=(sys.executable, "-c", program))
    assert not isinstance(raised.value, TrialError)


def test_an_engine_that_was_tampered_with_is_built_again_before_it_is_used(variant, builds) -> None:
    build(variant)
    for engine in (variant.cache / "tensorrt").glob("*.engine"):
        engine.write_bytes(engine.read_bytes()[:-1] + b"!")
    assert attempt(variant).passed
    assert builds() == 2


def test_what_cannot_be_built_any_more_blames_the_device(variant, monkeypatch) -> None:
    (variant.folder / "model.onnx").unlink()
    with pytest.raises(DeviceError, match=r"building what model\.onnx needs here") as raised:
        build(variant)
    assert not isinstance(raised.value, TrialError)


def test_nothing_is_built_on_a_simulated_device(variant, builds) -> None:
    build(variant, simulate=True)
    answer = attempt(variant, simulate=True)
    assert answer.executing_device == "CPU (simulated)"
    assert builds() == 0


# The cache is swept with the blobs -----------------------------------------------------------------------


def key_of(folder: Path) -> EngineKey:
    return EngineKey(model=digest_files(model_files(folder / "model.onnx")), built_for={})


def test_engines_of_variants_that_are_gone_are_swept(tmp_path) -> None:
    state_dir = tmp_path / "state"
    folders = []
    for seed in (0, 1):
        release = make(tmp_path / str(seed), seed=seed)
        folders.append(state_dir / "variants" / str(seed))
        unpack_variant(release.blobs, release.variants[0], folders[-1])
    caches = [
        EngineCache(cache_folder(state_dir) / runtime, secret=state_dir / "engines.key")
        for runtime in ("tensorrt", "onnxruntime")
    ]
    for cache in caches:
        for folder in folders:
            cache.save(key_of(folder), b"engine")
    collect(state_dir, folders[:1])
    assert [[cache.find(key_of(folder)) is not None for folder in folders] for cache in caches] == [[True, False]] * 2
    (folders[0] / "contract.json").unlink()
    collect(state_dir, folders[:1])
    assert caches[0].find(key_of(folders[0])) is not None, "nothing is dropped for a folder that cannot be read"


def test_where_nothing_was_ever_built_nothing_is_made(tmp_path) -> None:
    collect(tmp_path, [])
    assert list(tmp_path.iterdir()) == []


def test_a_cache_is_named_to_a_process_of_a_model_of_its_own(tmp_path) -> None:
    options = RuntimeOptions(cache=tmp_path, settings={"typing": "strong"})
    order = Fork(order=LoadOrder(runtime="null", path="/m", options=options, isolation=IsolationOptions()))
    assert msgspec.msgpack.Decoder(Order, dec_hook=from_text).decode(encode(order)) == order


# Whole agents ----------------------------------------------------------------------------------------


def engines(state_dir: Path) -> set[str]:
    return {path.name for path in (state_dir / "engines" / "tensorrt").glob("*.engine")}


@pytest.mark.system
@pytest.mark.parametrize("isolation", ["none", "process"])
def test_a_device_serves_from_the_engine_that_its_trial_built_and_builds_it_anew_for_another_version(
    builds, agent, manager, state_dir, tmp_path, eventually, monkeypatch, isolation
) -> None:
    monkeypatch.setenv("TENSORRT_SIMULATOR_SECONDS", "0.5")
    (state_dir / "models").mkdir()
    (state_dir / "models" / "digits.toml").write_text(f'isolation = "{isolation}"\n')
    one = agent().start()
    manager.want(manager.publish(make(tmp_path / "one")))
    eventually(lambda: manager.states()[-1:] == ["committed"], within=60)
    assert one.active() == "1"
    assert builds() == 1
    report = eventually(lambda: manager.reported and manager.reported.models[0].executing_device)
    assert report == "TensorRT 10.3 on Imitation GPU (sm_87)"
    one.stop()
    # JetPack was updated: the model is not ready before its engine is.
    monkeypatch.setenv("TENSORRT_SIMULATOR_VERSION", "10.7.0")
    one.start()
    eventually(lambda: one.active() == "1", within=60)
    assert builds() == 2
    log = one.log.read_text()
    assert "tensorrt is 10.7.0, was 10.3.0" in log
    assert "digits 1: its engine is built" in log


@pytest.mark.system
def test_a_newer_order_ends_a_build_that_takes_long_and_the_report_shows_how_far_it_was(
    builds, agent, manager, state_dir, tmp_path, eventually, monkeypatch
) -> None:
    monkeypatch.setenv("TENSORRT_SIMULATOR_SECONDS", "100")
    one = agent().start()
    manager.want(manager.publish(make(tmp_path / "one")))
    progress = eventually(lambda: manager.reported and [m.progress for m in manager.reported.models if m.progress])
    assert progress[0].startswith("building the engine of model.onnx: it was never built here (")
    assert progress[0].endswith("s) of about 40 s")
    second = manager.publish(make(tmp_path / "two", "2", counter=2, seed=1))
    manager.want(second)
    eventually(lambda: manager.reported.models[0].release == second.release, within=30)
    one.stop()
    assert builds() == 0
    assert engines(state_dir) == set()


@pytest.mark.system
def test_while_an_engine_is_built_anew_the_server_answers_that_the_model_is_not_ready_and_can_be_stopped(
    builds, agent, manager, state_dir, tmp_path, eventually, monkeypatch
) -> None:
    one = agent().start()
    manager.want(manager.publish(make(tmp_path / "one")))
    eventually(lambda: manager.states()[-1:] == ["committed"], within=60)
    one.stop()
    monkeypatch.setenv("TENSORRT_SIMULATOR_VERSION", "10.7.0")
    monkeypatch.setenv("TENSORRT_SIMULATOR_SECONDS", "100")
    one.start()
    eventually(lambda: "building the engine of model.onnx: tensorrt is 10.7.0" in one.log.read_text(), within=60)
    status = one.status()
    assert status is not None
    assert one.active() == ""
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{status.http_url}/v2/models/digits/ready", timeout=10)
    assert refused.value.code in (400, 503)
    refused.value.close()
    one.stop()
    eventually(lambda: not is_alive(status.pid))
    assert builds() == 1
