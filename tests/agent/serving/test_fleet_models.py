from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeserve.client.inference import InferenceClient
from edgeserve.contracts.errors import ConflictError, EdgeServeError, InputError, NotFoundError
from edgeserve_agent.serving.fleet_models import FleetModels
from edgeserve_agent.serving.served import Identity
from tests.suites.repository import ROW, put_variant

WARMUP = """
max_batch_size = 4
[[model_warmup]]
name = "w"
inputs.%s = { data_type = "TYPE_FP32", dims = [4], zero_data = true }
"""


class Device:
    """A real server that serves what a device's control part says."""

    def __init__(self, thread: Any, state_dir: Path) -> None:
        self.thread = thread
        self.state_dir = state_dir
        self.client = InferenceClient(thread.url)
        self.models: FleetModels = thread.call(lambda: FleetModels(thread.plane, state_dir, simulate=False, threads=1))

    def load(self, number: int, release: str, *, activate: bool = True) -> None:
        folder = self.state_dir / "variants" / str(number)
        if not folder.exists():
            put_variant(folder, adds=number)
        identity = Identity(model="m", version=f"v{number}", release=release, variant=release, counter=10 * number)
        self.thread.run(self.models.load(identity, folder))
        if activate:
            self.thread.call(self.thread.plane.activate, "m", release)

    def settings(self, text: str) -> None:
        folder = self.state_dir / "models"
        folder.mkdir(exist_ok=True)
        (folder / "m.toml").write_text(text)

    def configure(self) -> None:
        self.thread.run(self.models.configure("m"))

    def served(self, version: str = "") -> Any:
        return self.thread.call(self.thread.plane.find, "m", version)

    def at(self, label: str) -> str:
        return str(self.thread.call(lambda: self.thread.plane.find("m", label=label)).identity.version)

    def adds(self) -> float:
        added = np.unique(self.client.infer("m", {"x": ROW}).outputs["y"] - ROW)
        return float(added.item())


@pytest.fixture
def make(start_server: Callable[..., Any], tmp_path: Path) -> Iterator[Callable[[], Device]]:
    devices: list[Device] = []

    def start() -> Device:
        devices.append(Device(start_server(), tmp_path))
        return devices[-1]

    yield start
    for device in devices:
        device.client.close()


@pytest.fixture
def device(make: Callable[[], Device]) -> Device:
    return make()


def test_settings_are_read_at_load_and_the_counter_is_a_version(device: Device, tools):
    device.settings("threads = 2\ninstance_group = [{ count = 3 }]")
    device.load(1, tools.digest(1))
    assert device.served().config.instances == 3
    assert device.served().config.threads == 2
    assert device.served("10") is device.served("v1")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        pytest.param("threads = 'many'", "threads", id="type"),
        pytest.param("threads = ", "m.toml", id="syntax"),
        pytest.param("name = 'other'", "'other'", id="another's"),
        pytest.param(WARMUP % "z", "no input 'z'", id="does not fit"),
        pytest.param("runtime = 'abacus'", "abacus", id="runtime"),
    ],
)
def test_wrong_settings_do_not_keep_a_good_release_from_answering(
    device: Device, tools, settings: str, says: str, caplog: pytest.LogCaptureFixture
):
    device.settings(settings)
    device.load(1, tools.digest(1))
    assert device.adds() == 1
    assert says in caplog.text
    served = device.served()
    with pytest.raises(InputError, match=says):
        device.configure()
    assert device.served() is served
    device.settings(WARMUP % "x")
    device.configure()
    assert device.served().config.max_batch_size == 4
    assert device.adds() == 1


def test_new_settings_take_the_place_of_the_old_under_load_in_one_step(device: Device, tools):
    for number in (1, 2):
        device.load(number, tools.digest(number), activate=number == 1)
    stop, failures, answered = threading.Event(), [], []

    def ask() -> None:
        client = InferenceClient(device.thread.url)
        try:
            while not stop.is_set():
                result = client.infer("m", {"x": ROW})
                answered.append((result.release, float(result.outputs["y"][0, 0])))
        except EdgeServeError as error:
            failures.append(error.message)
        client.close()

    asking = threading.Thread(target=ask)
    asking.start()
    for count in range(1, 9):
        before = device.served()
        device.settings(f"instance_group = [{{ count = {count} }}]")
        device.configure()
        assert [device.served(version).config.instances for version in ("v1", "v2")] == [count, count]
        assert device.served() is not before
        assert before.retired
    stop.set()
    asking.join()
    assert failures == []
    assert set(answered) == {(tools.digest(1), 2.0)}
    (counters,) = [one for one in device.thread.call(device.thread.plane.counters) if one.version == "v1"]
    assert counters.successes == len(answered)


def test_settings_that_fail_for_one_release_change_none(device: Device, tools):
    for number in (1, 2):
        device.load(number, tools.digest(number))
    before = [device.served(version) for version in ("v1", "v2")]
    (device.state_dir / "variants" / "2" / "model.onnx").write_bytes(b"junk")
    device.settings("threads = 2")
    with pytest.raises(InputError, match=r"model\.onnx"):
        device.configure()
    assert [device.served(version) for version in ("v1", "v2")] == before


def test_a_model_of_which_nothing_is_loaded_cannot_be_configured(device: Device):
    with pytest.raises(NotFoundError, match="nothing of model 'm' is loaded"):
        device.configure()


def test_a_model_can_be_moved_into_a_process_of_its_own_and_back(device: Device, tools):
    device.load(1, tools.digest(1))
    device.settings('isolation = "process"')
    device.configure()
    isolated = device.served().model
    assert isolated.pid not in (None, os.getpid())
    assert device.adds() == 1
    device.settings("")
    device.configure()
    assert device.adds() == 1
    tools.until(lambda: isolated.pid is None, "the process was ended")


def test_labels_follow_the_settings_to_releases_that_are_loaded_and_are_kept(make: Callable[[], Device], tools):
    device = make()
    device.settings("version_labels = { canary = 20 }")
    device.load(1, tools.digest(1))
    with pytest.raises(NotFoundError, match="no label 'canary'"):
        device.at("canary")
    device.load(2, tools.digest(2), activate=False)
    assert device.at("canary") == "v2"
    device.thread.call(device.models.set_label, "m", "mine", tools.digest(1))
    with pytest.raises(NotFoundError, match="is not loaded"):
        device.thread.call(device.models.set_label, "m", "mine", tools.digest(3))
    with pytest.raises(ConflictError, match="canary"):
        device.thread.call(device.models.set_label, "m", "canary", tools.digest(1))
    assert device.at("mine") == "v1"
    device.thread.call(device.models.unload, "m", tools.digest(2))
    with pytest.raises(NotFoundError, match="no label 'canary'"):
        device.at("canary")

    again = make()
    again.load(2, tools.digest(2), activate=False)
    again.load(1, tools.digest(1))
    assert (again.at("canary"), again.at("mine")) == ("v2", "v1")
    again.settings("")
    again.configure()
    with pytest.raises(NotFoundError, match="no label 'canary'"):
        again.at("canary")
    again.thread.call(again.models.set_label, "m", "mine", "")
    with pytest.raises(NotFoundError, match="no label 'mine'"):
        again.at("mine")
