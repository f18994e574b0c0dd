from __future__ import annotations

import json
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgeserve.client.inference import InferenceClient
from edgeserve.contracts.documents import encode
from edgeserve.contracts.errors import DeviceError, EdgeServeError
from edgeserve.contracts.task import Task
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve.contracts.variant import Precision, Selector, Tolerance, VariantContract
from edgeserve_agent import slots
from edgeserve_agent.control import (
    SOCKET,
    Activate,
    Configure,
    Done,
    Load,
    ReadStats,
    ServingStats,
    ServingStatus,
    SetLabel,
    Status,
    Stop,
    Unload,
    call,
)
from edgeserve_agent.serving.__main__ import main

ROW = np.array([[1, 2, 3, 4]], np.float32)


def digest(number: int) -> str:
    return f"sha256:{number:064x}"


def put_variant(state_dir: Path, number: int) -> slots.Slot:
    """A null variant that tells its release by the number of its classes: the answer has shape [rows, number + 1]."""
    signature = Signature(
        inputs=(TensorSpec(name="x", datatype=Datatype.FP32, shape=(-1, 4)),),
        outputs=(TensorSpec(name="y", datatype=Datatype.FP32, shape=(-1, number + 1)),),
    )
    contract = VariantContract(
        model="m",
        target="null",
        precision=Precision.FP32,
        runtime="null",
        entry="m.null.json",
        signature=signature,
        task=Task(),
        selector=Selector(),
        tolerance=Tolerance(),
    )
    slot = slots.Slot(release=digest(number), version=f"v{number}", variant=digest(number))
    folder = slot.folder(state_dir)
    folder.mkdir(parents=True)
    (folder / "m.null.json").write_bytes(encode(signature))
    (folder / "contract.json").write_bytes(encode(contract))
    return slot


class Process:
    """A serving process."""

    def __init__(self, state_dir: Path, *options: str) -> None:
        self.state_dir = state_dir
        self.socket = state_dir / SOCKET
        self.log = (state_dir.parent / f"{state_dir.name}.log").open("ab")
        arguments = ["--state-dir", str(state_dir), "--http", "127.0.0.1:0", *options]
        self.child = subprocess.Popen([sys.executable, "-m", "edgeserve_agent.serving", *arguments], stderr=self.log)

    def url(self) -> str:
        return str(json.loads((self.state_dir / "addresses.json").read_bytes())["http"])

    def answers(self) -> bool:
        try:
            return InferenceClient(self.url()).ready()
        except (OSError, ValueError):
            assert self.child.poll() is None, "the process ended"
            return False

    def classes(self) -> int:
        """How many classes the active release has: its number + 1."""
        client = InferenceClient(self.url())
        try:
            return client.infer("m", {"x": ROW}).outputs["y"].shape[1]
        finally:
            client.close()

    def end(self, number: int) -> int:
        self.child.send_signal(number)
        return self.child.wait(20)


@pytest.fixture(scope="module")
def start(tools) -> Iterator[Callable[..., Process]]:
    started: list[Process] = []

    def begin(state_dir: Path, *options: str) -> Process:
        process = Process(state_dir, *options)
        started.append(process)
        pid = process.child.pid
        tools.until(lambda: f'"pid":{pid},' in text(state_dir / "addresses.json"), "the process listened")
        tools.until(process.socket.exists, "the control socket was there")
        return process

    yield begin
    for process in started:
        process.child.kill()
        process.child.wait()
        process.log.close()


def text(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def a_device(folder: Path) -> Path:
    """A state directory in which release 1 is active."""
    folder.mkdir()
    slots.write(folder, slots.Slots(models=(slots.ModelSlots(model="m", active=put_variant(folder, 1)),)))
    return folder


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return a_device(tmp_path / "state")


@pytest.fixture(scope="module")
def running(start, tmp_path_factory: pytest.TempPathFactory, tools) -> Process:
    """One process for tests that change nothing for the others."""
    process = start(a_device(tmp_path_factory.mktemp("shared") / "state"))
    tools.until(process.answers, "it was ready")
    return process


def load(process: Process, slot: slots.Slot) -> None:
    command = Load(
        model="m",
        version=slot.version,
        release=slot.release,
        variant=slot.variant,
        folder=str(slot.folder(process.state_dir)),
    )
    call(process.socket, command, Done)


def test_it_serves_from_its_slots_alone_and_again_after_kill_9(start, state_dir: Path, tools):
    for _ in range(2):
        process = start(state_dir)
        tools.until(process.answers, "it was ready")
        assert process.classes() == 2
        assert process.end(signal.SIGKILL) == -signal.SIGKILL


def test_sigterm_and_stop_end_it_in_order(start, state_dir: Path, tools):
    process = start(state_dir)
    assert process.end(signal.SIGTERM) == 0
    assert not (state_dir / "addresses.json").exists()
    assert not process.socket.exists()
    process = start(state_dir)
    call(process.socket, Stop(), Done)
    assert process.child.wait(20) == 0


def test_the_control_socket_is_for_its_owner_only_and_tells_what_is_served(running: Process):
    process = running
    assert stat.S_IMODE(process.socket.stat().st_mode) == 0o600
    status = call(process.socket, Status(), ServingStatus)
    assert (status.pid, status.http_url, status.insecure) == (process.child.pid, process.url(), False)
    (served,) = status.releases
    assert (served.model, served.version, served.release, served.active) == ("m", "v1", digest(1), True)
    assert served.executing_device == "null"


def test_simulated_hardware_and_an_insecure_server_say_so(start, state_dir: Path, tools):
    process = start(state_dir, "--simulate", "--insecure-dev")
    tools.until(process.answers, "it was ready")
    status = call(process.socket, Status(), ServingStatus)
    assert status.insecure
    assert status.releases[0].executing_device == "null (simulated)"


@pytest.mark.parametrize(
    ("command", "says"),
    [
        pytest.param(Activate(model="m", release=digest(9)), "not loaded", id="activate"),
        pytest.param(
            Load(model="m", version="v9", release=digest(9), variant=digest(9), folder="/nowhere"),
            "/nowhere",
            id="load",
        ),
    ],
)
def test_a_command_that_fails_says_why_and_changes_nothing(running: Process, command, says: str):
    process = running
    with pytest.raises(DeviceError) as caught:
        call(process.socket, command, Done)
    assert says in caught.value.message
    assert process.classes() == 2


def test_a_line_that_is_no_command_is_answered_and_the_process_lives(running: Process):
    process = running
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(process.socket))
        connection.sendall(b'{"type":"Explode"}\nnonsense\n')
        reader = connection.makefile("rb")
        assert [json.loads(reader.readline())["type"] for _ in range(2)] == ["Failed", "Failed"]
        reader.close()
    call(process.socket, Status(), ServingStatus)


def test_the_previous_release_answers_when_the_active_one_cannot_be_loaded(start, state_dir: Path, tools):
    broken = slots.Slot(release=digest(2), version="v2", variant=digest(2))
    good = slots.read(state_dir).of("m").active
    slots.write(state_dir, slots.Slots(models=(slots.ModelSlots(model="m", active=broken, previous=good),)))
    process = start(state_dir)
    tools.until(process.answers, "it was ready")
    assert process.classes() == 2


def test_one_model_that_cannot_be_loaded_does_not_keep_the_others(start, state_dir: Path, tools):
    broken = slots.Slot(release=digest(2), version="v2", variant=digest(2))
    slots.write(state_dir, slots.read(state_dir).having(slots.ModelSlots(model="a", active=broken)))
    process = start(state_dir)
    served = lambda: [one.model for one in call(process.socket, Status(), ServingStatus).releases]  # noqa: E731
    tools.until(lambda: served() == ["m"], "the good model was loaded")
    assert process.classes() == 2
    assert not process.answers()
    with pytest.raises(EdgeServeError, match=r"model 'a' is not ready: v2: cannot read"):
        InferenceClient(process.url()).infer("a", {"x": ROW})


def test_settings_and_labels_are_taken_up_without_a_restart_and_kept_over_one(start, state_dir: Path, tools):
    process = start(state_dir)
    tools.until(process.answers, "it was ready")
    second = put_variant(state_dir, 2)
    load(process, second)
    call(process.socket, SetLabel(model="m", label="next", release=digest(2)), Done)
    (state_dir / "models").mkdir()
    (state_dir / "models" / "m.toml").write_text("version_labels = { first = 7 }\nthreads = 'many'")
    with pytest.raises(DeviceError, match="threads"):
        call(process.socket, Configure(model="m"), Done)
    assert process.classes() == 2
    (state_dir / "models" / "m.toml").write_text("version_labels = { first = 7 }\ninstance_group = [{ count = 2 }]")
    call(process.socket, Configure(model="m"), Done)
    assert process.classes() == 2
    with pytest.raises(DeviceError, match="not loaded"):
        call(process.socket, SetLabel(model="m", label="next", release=digest(3)), Done)
    process.end(signal.SIGKILL)

    first = slots.read(state_dir).of("m").active
    assert first is not None
    first = msgspec.structs.replace(first, counter=7)
    slots.write(state_dir, slots.Slots(models=(slots.ModelSlots(model="m", active=first, previous=second),)))
    process = start(state_dir)
    tools.until(process.answers, "it was ready")
    labels = json.loads((state_dir / "labels.json").read_bytes())["models"]["m"]
    assert {label: place["stands_for"] for label, place in labels.items()} == {"next": digest(2), "first": digest(1)}
    assert InferenceClient(process.url()).infer("m", {"x": ROW}, version="7").release == digest(1)


def test_swapping_releases_under_load_loses_no_request_and_mixes_no_answers(start, state_dir: Path, tools):
    process = start(state_dir)
    tools.until(process.answers, "it was ready")
    releases = {number: put_variant(state_dir, number) for number in (2, 3)}
    stop, failures, answered = threading.Event(), [], []

    def hammer() -> None:
        client = InferenceClient(process.url())
        while not stop.is_set():
            try:
                result = client.infer("m", {"x": ROW})
            except EdgeServeError as error:
                failures.append(error.message)
                continue
            number = int(result.release.removeprefix("sha256:"), 16)
            answered.append(number)
            if result.outputs["y"].shape != (1, number + 1) or result.model_version != f"v{number}":
                failures.append(f"{result.release} answered {result.outputs['y'].shape}")
        client.close()

    threads = [threading.Thread(target=hammer) for _ in range(4)]
    for thread in threads:
        thread.start()
    active = digest(1)
    for turn in range(40):
        slot = releases[2 + turn % 2]
        load(process, slot)
        before = len(answered)
        call(process.socket, Activate(model="m", release=slot.release), Done)
        call(process.socket, Unload(model="m", release=active), Done)
        active = slot.release
        tools.until(lambda seen=before: len(answered) > seen + 8 or failures, "requests were answered")
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert set(answered) == {1, 2, 3}
    stats = call(process.socket, ReadStats(), ServingStats)
    assert sum(one.requests for one in stats.releases) == len(answered)
    assert [one.failures for one in stats.releases] == [0, 0, 0]


def test_feedback_reaches_the_statistics(running: Process):
    (before,) = call(running.socket, ReadStats(), ServingStats).releases
    client = InferenceClient(running.url())
    client.infer("m", {"x": ROW}, request_id="a")
    client.infer("m", {"x": ROW}, request_id="b")
    client.feedback("m", [("a", 0), ("b", 1)])
    client.close()
    (after,) = call(running.socket, ReadStats(), ServingStats).releases
    grown = after.since(before)
    assert (grown.requests, grown.feedback, grown.correct, sum(grown.latency)) == (2, 2, 1, 2)


@pytest.fixture
def run_to_the_end(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    def run(*arguments: str) -> tuple[int, str]:
        code = main(arguments)
        return code, capfd.readouterr().err

    return run


def test_a_port_in_use_ends_it_with_the_port_named(running: Process, tmp_path: Path, run_to_the_end):
    port = running.url().rpartition(":")[2]
    code, said = run_to_the_end("--state-dir", str(tmp_path / "other"), "--http", f"127.0.0.1:{port}")
    assert code == 1
    assert f"error: port {port} of 127.0.0.1 is in use" in said
    assert "hint:" in said
    assert "Traceback" not in said
    assert not (tmp_path / "other" / "addresses.json").exists()


def test_a_second_process_on_one_state_directory_is_refused_and_the_first_lives(running: Process, run_to_the_end):
    code, said = run_to_the_end("--state-dir", str(running.state_dir), "--http", "127.0.0.1:0")
    assert code == 1
    assert "another process serves from" in said
    assert running.answers()
    call(running.socket, Status(), ServingStatus)


@pytest.mark.parametrize(
    ("make", "arguments", "code", "says"),
    [
        pytest.param(None, ["--http", "0.0.0.0:0"], 2, "neither TLS nor tokens", id="public bind"),
        pytest.param(None, ["--http", "nowhere"], 2, "not HOST:PORT", id="no port"),
        pytest.param("slots.json", ["--http", "127.0.0.1:0"], 1, "slots.json", id="damaged slots"),
    ],
)
def test_a_wrong_start_ends_with_a_reason_and_a_hint(
    tmp_path: Path, run_to_the_end, make, arguments, code: int, says: str
):
    folder = tmp_path / "state"
    folder.mkdir()
    if make:
        (folder / make).write_bytes(b"{damaged")
    found, said = run_to_the_end("--state-dir", str(folder), *arguments)
    assert found == code
    assert says in said
    assert "hint:" in said
    assert "Traceback" not in said


def test_a_state_directory_with_too_long_a_path_is_refused(tmp_path: Path, run_to_the_end):
    folder = tmp_path / ("d" * 120)
    code, said = run_to_the_end("--state-dir", str(folder), "--http", "127.0.0.1:0")
    assert code == 1
    assert "shorter path" in said
