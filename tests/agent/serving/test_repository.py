from __future__ import annotations

import asyncio
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeserve.client.inference import InferenceClient
from edgeserve.contracts.errors import ConflictError, EdgeServeError, InputError, NotFoundError, TransientError
from edgeserve.contracts.limits import MAX_UPLOADED_FILES
from edgeserve.contracts.model_config import ModelConfig
from edgeserve_agent.serving.config_file import parse_config
from edgeserve_agent.serving.model_folder import ModelFolders
from edgeserve_agent.serving.model_labels import ModelLabels
from edgeserve_agent.serving.model_source import FoundModel, FoundVersion, OpenOptions
from edgeserve_agent.serving.opened import Opened
from edgeserve_agent.serving.repository import Repository
from edgeserve_agent.serving.served import Identity
from tests.suites.repository import ROW, put_version

ALL_VERSIONS = "version_policy: { all { } }"


def config(text: str) -> ModelConfig:
    return parse_config(text.encode(), what="config.pbtxt")


class Server:
    """A real server over a folder of models."""

    def __init__(self, thread: Any, root: Path, state: Path | None, source: Any = None) -> None:
        self.thread = thread
        self.root = root
        self.client = InferenceClient(thread.url)
        options = OpenOptions(threads=1, scratch=root.parent / "scratch")
        self.scratch = options.scratch
        self.repository: Repository = thread.call(
            lambda: Repository(
                thread.plane,
                source or ModelFolders(root, options),
                options=options,
                labels=ModelLabels(state / "labels.json" if state else None),
            )
        )

    def start(self, *models: str, explicit: bool = False) -> dict[str, EdgeServeError]:
        failed: dict[str, EdgeServeError] = self.thread.run(
            self.repository.start(models if models or explicit else None)
        )
        return failed

    def load(self, model: str = "m", **more: Any) -> None:
        self.thread.run(self.repository.load(model, **more))

    def unload(self, model: str = "m") -> None:
        self.thread.run(self.repository.unload(model))

    def index(self, **more: Any) -> list[tuple[str, str, str]]:
        found = self.thread.call(lambda: self.repository.index(**more))
        return [(state.model, state.version, state.state) for state in found]

    def reason(self, model: str, version: str) -> str:
        found = self.thread.call(self.repository.index)
        return next(state.reason for state in found if (state.model, state.version) == (model, version))

    def label(self, label: str, version: int | None, model: str = "m") -> None:
        self.thread.call(self.repository.set_label, model, label, version)

    def at(self, label: str, model: str = "m") -> str:
        """The version that a label leads to."""
        return str(self.thread.call(lambda: self.thread.plane.find(model, label=label)).identity.version)

    def adds(self, model: str = "m", version: str = "") -> float:
        """What the model that answers adds."""
        result = self.client.infer(model, {"x": ROW}, version=version)
        added = np.unique(result.outputs["y"] - ROW)
        assert added.size == 1
        return float(added[0])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


@pytest.fixture
def serve(start_server: Callable[..., Any], root: Path) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(*, state: Path | None = None, source: Any = None) -> Server:
        servers.append(Server(start_server(), root, state, source))
        return servers[-1]

    yield start
    for server in servers:
        server.client.close()
        server.thread.run(server.repository.close())


@pytest.fixture
def server(serve: Callable[..., Server]) -> Server:
    return serve()


# Start -----------------------------------------------------------------------------------------------


def test_all_models_answer_after_start_the_newest_version_by_default(server: Server):
    for name, numbers in (("a", (1, 2)), ("b", (3,))):
        for number in numbers:
            put_version(server.root, name, number, adds=10 * number)
    (server.root / "a" / "config.pbtxt").write_text(ALL_VERSIONS)
    assert server.start() == {}
    assert (server.adds("a"), server.adds("a", "1"), server.adds("a", "2"), server.adds("b")) == (20, 10, 20, 30)
    assert server.index() == [("a", "1", "READY"), ("a", "2", "READY"), ("b", "3", "READY")]
    assert server.client.ready()


def test_explicit_control_loads_what_is_named_and_lists_the_rest(server: Server):
    for name in ("a", "b"):
        put_version(server.root, name, 1, adds=1)
    assert server.start("a", explicit=True) == {}
    assert server.index() == [("a", "1", "READY"), ("b", "", "UNAVAILABLE")]
    assert server.index(ready_only=True) == [("a", "1", "READY")]
    with pytest.raises(NotFoundError, match="unknown model 'b'"):
        server.adds("b")
    assert server.client.ready()
    server.load("b")
    assert server.adds("b") == 1


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        pytest.param(lambda m: (m / "1" / "model.onnx").write_bytes(b"junk"), "not a model", id="broken model"),
        pytest.param(
            lambda m: (m / "config.pbtxt").write_text("max_batch_size: x"), "max_batch_size", id="parse error"
        ),
        pytest.param(lambda m: (m / "config.pbtxt").write_text('name: "n"'), "'n'", id="another's configuration"),
        pytest.param(lambda m: shutil.rmtree(m / "1"), "no version", id="no version"),
        pytest.param(lambda m: (m / "1" / "model.onnx").unlink(), "no model", id="no file"),
    ],
)
def test_a_bad_model_says_why_and_never_keeps_others_from_answering(server: Server, spoil, says: str):
    for name in ("good", "bad", "also"):
        put_version(server.root, name, 1, adds=1)
    spoil(server.root / "bad")
    failed = server.start()
    assert list(failed) == ["bad"]
    assert says in failed["bad"].message
    assert (server.adds("good"), server.adds("also")) == (1, 1)
    with pytest.raises(TransientError, match="model 'bad' is not ready"):
        server.adds("bad")
    assert not server.client.ready()
    states = {model: state for model, _version, state in server.index()}
    assert states == {"good": "READY", "bad": "UNAVAILABLE", "also": "READY"}
    shutil.rmtree(server.root / "bad")
    put_version(server.root, "bad", 1, adds=5)
    server.load("bad")
    assert server.adds("bad") == 5
    assert server.client.ready()


def test_at_first_the_versions_that_can_be_served_are(server: Server):
    put_version(server.root, "m", 1, adds=1)
    put_version(server.root, "m", 2, adds=2).write_bytes(b"junk")
    (server.root / "m" / "config.pbtxt").write_text(ALL_VERSIONS)
    failed = server.start()
    assert "version 2" in failed["m"].message
    assert "1 answers" in failed["m"].message
    assert server.index() == [("m", "1", "READY"), ("m", "2", "UNAVAILABLE")]
    assert server.adds() == 1


# Load and unload -------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["load", "unload"])
@pytest.mark.parametrize("name", ["nope", "../models/m", "..", ""])
def test_a_name_that_is_none_is_refused_and_leaves_no_trace(server: Server, call: str, name: str):
    put_version(server.root, "m", 1, adds=1)
    server.start()
    with pytest.raises(InputError):
        getattr(server, call)(name)
    assert server.index() == [("m", "1", "READY")]


def test_an_unloaded_model_answers_no_more_until_it_is_loaded_again(server: Server):
    put_version(server.root, "m", 1, adds=1)
    server.start()
    for _ in range(2):  # the second is no error
        server.unload()
        assert server.index() == [("m", "1", "UNAVAILABLE")]
        assert server.reason("m", "1") == "unloaded"
    with pytest.raises(NotFoundError):
        server.adds()
    assert server.client.ready()
    server.load()
    assert (server.adds(), server.index()) == (1, [("m", "1", "READY")])


def test_versions_come_and_go_with_loads(server: Server):
    (server.root / "m").mkdir()
    (server.root / "m" / "config.pbtxt").write_text(ALL_VERSIONS)
    put_version(server.root, "m", 1, adds=1)
    put_version(server.root, "m", 3, adds=3)
    server.start()
    assert (server.adds(), server.adds(version="1")) == (3, 1)
    put_version(server.root, "m", 7, adds=7)
    with pytest.raises(NotFoundError, match="no version '7'"):
        server.adds(version="7")
    server.load()
    assert (server.adds(), server.adds(version="3")) == (7, 3)
    shutil.rmtree(server.root / "m" / "7")
    shutil.rmtree(server.root / "m" / "1")
    server.load()
    assert (server.adds(), server.index(ready_only=True)) == (3, [("m", "3", "READY")])
    assert server.reason("m", "7") == "unloaded"
    for version in ("1", "7"):
        with pytest.raises(NotFoundError, match="no version"):
            server.adds(version=version)


def test_a_changed_version_policy_loads_and_unloads_without_touching_what_stays(server: Server):
    for number in (1, 2, 3):
        put_version(server.root, "m", number, adds=number)
    path = server.root / "m" / "config.pbtxt"
    for policy, ready in (
        ("version_policy: { specific { versions: [1, 2] } }", ["1", "2"]),
        ("version_policy: { specific { versions: [2] } }", ["2"]),
        ("version_policy: { latest { num_versions: 2 } }", ["2", "3"]),
        ("version_policy: { all { } }", ["1", "2", "3"]),
    ):
        path.write_text(policy)
        before = {served.identity.version: served for served, _ in server.thread.call(server.thread.plane.releases)}
        server.load()
        assert [version for _, version, _ in server.index(ready_only=True)] == ready
        assert server.adds() == float(ready[-1])
        after = {served.identity.version: served for served, _ in server.thread.call(server.thread.plane.releases)}
        for version in before.keys() & after.keys():
            assert after[version] is before[version]
            assert after[version].config.version_policy == config(policy).version_policy


def test_a_load_without_a_change_changes_nothing(server: Server):
    put_version(server.root, "m", 1, adds=1)
    server.start()
    served = server.thread.call(server.thread.plane.find, "m")
    server.load()
    assert server.thread.call(server.thread.plane.find, "m") is served


# Reload ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["", ALL_VERSIONS])
@pytest.mark.parametrize(
    ("spoil", "failed"),
    [
        pytest.param(lambda m: (m / "2" / "model.onnx").write_bytes(b"junk"), "2", id="new version broken"),
        pytest.param(lambda m: (m / "config.pbtxt").write_text("instance_group { count: -1 }"), "", id="bad config"),
        pytest.param(lambda m: (m / "config.pbtxt").write_text('runtime_: 1 input { name: "z" }'), "2", id="other's"),
    ],
)
def test_what_answered_before_goes_on_when_the_new_fails(server: Server, policy: str, spoil, failed: str):
    put_version(server.root, "m", 1, adds=1)
    (server.root / "m" / "config.pbtxt").write_text(policy)
    server.start()
    put_version(server.root, "m", 2, adds=2)
    spoil(server.root / "m")
    with pytest.raises(InputError) as caught:
        server.load()
    assert server.adds() == 1
    assert server.client.ready()
    assert server.index() in (
        [("m", "", "UNAVAILABLE"), ("m", "1", "READY")],
        [("m", "1", "READY"), ("m", "2", "UNAVAILABLE")],
    )
    assert server.reason("m", failed) in caught.value.message


def test_a_version_whose_new_files_fail_answers_with_the_old(server: Server):
    path = put_version(server.root, "m", 1, adds=1)
    server.start()
    path.write_bytes(b"junk")
    with pytest.raises(InputError, match="what answered before still does"):
        server.load()
    assert server.adds() == 1
    assert server.index() == [("m", "1", "READY")]
    assert "not a model" in server.reason("m", "1")
    put_version(server.root, "m", 1, adds=9)
    server.load()
    assert (server.adds(), server.reason("m", "1")) == (9, "")


def test_a_configuration_that_one_version_cannot_take_changes_none(server: Server):
    for number in (1, 2):
        put_version(server.root, "m", number, adds=number)
    path = server.root / "m" / "config.pbtxt"
    path.write_text(ALL_VERSIONS)
    server.start()
    put_version(server.root, "m", 2, adds=2).write_bytes(b"junk")
    path.write_text(f"{ALL_VERSIONS} instance_group {{ count: 2 }}")
    with pytest.raises(InputError, match="version 2"):
        server.load()
    assert (server.adds(version="1"), server.adds(version="2")) == (1, 2)
    for served, _ in server.thread.call(server.thread.plane.releases):
        assert served.config.instances == 0


def test_a_new_configuration_is_taken_up(server: Server):
    put_version(server.root, "m", 1, adds=1)
    server.start()
    (server.root / "m" / "config.toml").write_text("instance_group = [{ count = 3 }]")
    server.load()
    served = server.thread.call(server.thread.plane.find, "m")
    assert served.config.instances == 3
    assert server.adds() == 1
    (server.root / "m" / "labels.txt").write_text("cat\n")
    (server.root / "m" / "config.toml").write_text('output = [{ name = "y", label_filename = "labels.txt" }]')
    server.load()
    (server.root / "m" / "labels.txt").write_text("horse\n")
    server.load()
    assert server.thread.call(server.thread.plane.find, "m").labels == ("horse",)


# Overrides -------------------------------------------------------------------------------------------


def test_a_request_can_bring_another_configuration_until_the_next_load(server: Server):
    for number in (1, 2, 3):
        put_version(server.root, "m", number, adds=number)
    server.start()
    server.load(config=config("version_policy: { specific { versions: [1, 2] } }"))
    assert [version for _, version, _ in server.index(ready_only=True)] == ["1", "2"]
    with pytest.raises(InputError):
        server.load(config=config("version_policy: { specific { versions: [9] } }"))
    with pytest.raises(InputError, match="'other'"):
        server.load(config=config('name: "other"'))
    assert [version for _, version, _ in server.index(ready_only=True)] == ["1", "2"]
    server.load()
    assert [version for _, version, _ in server.index(ready_only=True)] == ["3"]


def test_a_request_can_bring_the_files_of_a_model_that_is_nowhere(server: Server, tmp_path: Path):
    data = put_version(tmp_path / "elsewhere", "m", 1, adds=5).read_bytes()
    put_version(server.root, "m", 1, adds=1)
    server.start()
    with pytest.raises(InputError, match="need a config"):
        server.load("m", files={"file:1/model.onnx": data})
    server.load("m", config=ModelConfig(), files={"file:1/model.onnx": data})
    assert server.adds("m") == 5  # not what lies in the repository
    server.load("new", config=config(ALL_VERSIONS), files={"1/model.onnx": data, "file:4/model.onnx": data})
    assert server.adds("new", "4") == 5
    assert ("new", "1", "READY") in server.index()
    assert len(list(server.scratch.iterdir())) == 2
    server.load("m")
    assert server.adds("m") == 1
    server.unload("new")
    assert server.index() == [("m", "1", "READY")]
    assert list(server.scratch.iterdir()) == []
    with pytest.raises(NotFoundError):
        server.load("new")


@pytest.mark.parametrize(
    ("files", "says"),
    [
        pytest.param({"file:1/../../../x": b""}, "not VERSION/FILE", id="elsewhere"),
        pytest.param({"file:/etc/x": b""}, "not VERSION/FILE", id="absolute"),
        pytest.param({f"file:1/f{n}": b"" for n in range(MAX_UPLOADED_FILES + 1)}, "at most", id="many"),
        pytest.param({"file:1/model.onnx": b"junk"}, "not a model", id="junk"),
        pytest.param({"file:labels.txt": b""}, "no version", id="no version"),
        pytest.param({"file:config.pbtxt": b""}, "second configuration", id="configuration"),
    ],
)
def test_files_that_cannot_be_served_leave_nothing(server: Server, files: dict[str, bytes], says: str):
    put_version(server.root, "m", 1, adds=1)
    server.start()
    for name in ("m", "new"):
        with pytest.raises(InputError, match=says):
            server.load(name, config=ModelConfig(), files=files)
    assert server.adds() == 1
    assert {model for model, _, _ in server.index()} == {"m"}
    assert not server.scratch.exists() or list(server.scratch.iterdir()) == []
    assert not (server.root.parent / "x").exists()


# Labels ----------------------------------------------------------------------------------------------


def labelled(canary: int) -> str:
    # Triton's format has no labels: they are edgeserve's.
    return f'{{"version_policy": {{"all": {{}}}}, "version_labels": {{"canary": {canary}}}}}'


def test_a_label_of_the_configuration_moves_only_to_a_version_that_is_ready(server: Server):
    for number in (1, 2):
        put_version(server.root, "m", number, adds=number)
    path = server.root / "m" / "config.json"
    path.write_text(labelled(1))
    server.start()
    assert server.at("canary") == "1"
    path.write_text(labelled(2))
    server.load()
    assert server.at("canary") == "2"
    put_version(server.root, "m", 3, adds=3).write_bytes(b"junk")
    path.write_text(labelled(3))
    with pytest.raises(InputError, match="version 3"):
        server.load()
    assert server.at("canary") == "2"
    path.write_text(labelled(9))  # there is no such version
    shutil.rmtree(server.root / "m" / "3")
    server.load()
    assert server.at("canary") == "2"
    put_version(server.root, "m", 2, adds=20)  # the label goes with its version
    server.load()
    assert server.at("canary") == "2"
    assert server.adds(version="2") == 20
    path.write_text('{"version_policy": {"all": {}}}')
    server.load()
    with pytest.raises(NotFoundError, match="no label 'canary'"):
        server.at("canary")


def test_a_label_is_set_by_hand_to_versions_that_answer(server: Server):
    for number in (1, 2):
        put_version(server.root, "m", number, adds=number)
    (server.root / "m" / "config.json").write_text(labelled(1))
    with pytest.raises(NotFoundError, match="not loaded"):
        server.label("mine", 1)
    server.start()
    server.label("mine", 1)
    assert server.at("mine") == "1"
    with pytest.raises(NotFoundError, match="version 3 of model 'm' does not answer"):
        server.label("mine", 3)
    with pytest.raises(ConflictError, match="placed by the model's configuration"):
        server.label("canary", 2)
    with pytest.raises(InputError):
        server.label("a/b", 2)
    assert server.at("mine") == "1"
    server.label("mine", None)
    with pytest.raises(NotFoundError, match="no label 'mine'"):
        server.at("mine")


def test_labels_are_where_they_were_after_a_restart(serve: Callable[..., Server], root: Path, tmp_path: Path):
    for number in (1, 2):
        put_version(root, "m", number, adds=number)
    (root / "m" / "config.json").write_text(labelled(2))
    first = serve(state=tmp_path)
    first.start()
    first.label("mine", 1)
    # Between the two lives version 2 breaks, and the configuration wants a version that is not there.
    (root / "m" / "config.json").write_text(labelled(3))
    second = serve(state=tmp_path)
    second.start()
    assert (second.at("mine"), second.at("canary")) == ("1", "2")
    put_version(root, "m", 2, adds=2).write_bytes(b"junk")
    third = serve(state=tmp_path)
    third.start()
    assert third.at("mine") == "1"
    with pytest.raises(NotFoundError, match="no label 'canary'"):
        third.at("canary")
    put_version(root, "m", 2, adds=2)
    third.load()
    assert third.at("canary") == "2"


# Requests in flight ----------------------------------------------------------------------------------


class GatedSource:
    """One model, whose version is held back or broken as the test says."""

    def __init__(self, tools: Any) -> None:
        self.tools = tools
        self.number = 1
        self.opening = threading.Event()
        self.may_open = threading.Event()
        self.may_open.set()
        self.began = threading.Semaphore(0)
        self.may_answer = threading.Event()
        self.models: dict[int, Any] = {}

    def names(self) -> list[str]:
        return ["m"]

    def fingerprint(self, name: str) -> str:
        return str(self.number) if name == "m" else ""

    def find(self, name: str, *, config: ModelConfig | None = None) -> FoundModel:
        if name != "m":
            raise NotFoundError(name)
        number = self.number
        release = self.tools.digest(number)
        identity = Identity(model="m", version=str(number), release=release, variant=release, counter=number)
        version = FoundVersion(identity=identity, open=lambda: self._open(number))
        return FoundModel(name="m", config=config or ModelConfig(), versions=(version,), fingerprint=str(number))

    def _open(self, number: int) -> Opened:
        self.opening.set()
        assert self.may_open.wait(10)

        def compute(inputs: Any) -> Any:
            if inputs["x"][0, 0] < 0:
                self.began.release()
                assert self.may_answer.wait(10)
            return {"y": np.full((len(inputs["x"]), 3), number, np.float32)}

        self.models[number] = self.tools.model(compute, slow=True)
        return Opened(model=self.models[number], runtime="simulator")


def test_requests_in_flight_are_answered_by_the_version_they_began_with(serve: Callable[..., Server], tools):
    source = GatedSource(tools)
    server = serve(source=source)
    server.start()
    answers: list[float] = []

    def ask() -> None:
        client = InferenceClient(server.thread.url)
        answers.append(float(client.infer("m", {"x": -ROW}).outputs["y"][0, 0]))
        client.close()

    asking = threading.Thread(target=ask)
    asking.start()
    assert source.began.acquire(timeout=10)
    source.number = 2
    server.load()
    assert float(server.client.infer("m", {"x": ROW}).outputs["y"][0, 0]) == 2
    assert server.index() == [("m", "1", "UNLOADING"), ("m", "2", "READY")]
    assert not source.models[1].closed.is_set()
    server.unload()
    assert not source.models[1].closed.is_set()
    tools.until(source.models[2].closed.is_set, "the idle model was closed")
    source.may_answer.set()
    asking.join()
    assert answers == [1]
    tools.until(source.models[1].closed.is_set, "the model was closed after its last answer")


def test_the_old_version_answers_while_the_new_one_loads(serve: Callable[..., Server], tools):
    source = GatedSource(tools)
    server = serve(source=source)
    server.start()
    source.may_open.clear()
    source.opening.clear()
    source.number = 2
    loading = asyncio.run_coroutine_threadsafe(server.repository.load("m"), server.thread.loop)
    assert source.opening.wait(10)
    assert float(server.client.infer("m", {"x": ROW}).outputs["y"][0, 0]) == 1
    assert server.index() == [("m", "1", "READY"), ("m", "2", "LOADING")]
    loading.cancel()  # whoever asked has gone
    source.may_open.set()
    tools.until(lambda: 2 in source.models and source.models[2].closed.is_set(), "what was opened in vain was closed")
    assert float(server.client.infer("m", {"x": ROW}).outputs["y"][0, 0]) == 1
    server.load()
    assert float(server.client.infer("m", {"x": ROW}).outputs["y"][0, 0]) == 2


def test_loads_unloads_and_requests_at_once_give_right_answers_or_clear_errors(server: Server):
    """Two models change while all of three are asked: the third is never disturbed, no answer is mixed."""
    for name in ("a", "b", "still"):
        put_version(server.root, name, 1, adds=1)
    (server.root / "a" / "config.pbtxt").write_text(ALL_VERSIONS)
    server.start()
    stop = threading.Event()
    wrong: list[str] = []
    answered = {"a": 0, "b": 0, "still": 0}

    def ask(name: str) -> None:
        client = InferenceClient(server.thread.url)
        while not stop.is_set():
            try:
                result = client.infer(name, {"x": ROW})
            except EdgeServeError as error:
                if name != "b" or not ("unknown model 'b'" in error.message or "is not ready" in error.message):
                    wrong.append(f"{name}: {error.message}")
                continue
            if float(result.outputs["y"][0, 0]) - 1 != float(result.model_version):
                wrong.append(f"{name} {result.model_version}: {result.outputs}")
            answered[name] += 1
        client.close()

    def grow() -> None:
        for number in range(2, 12):
            put_version(server.root, "a", number, adds=number)
            server.load("a")

    def toggle() -> None:
        for _ in range(15):
            server.unload("b")
            server.load("b")

    asking = [threading.Thread(target=ask, args=(name,)) for name in ("a", "b", "still", "still")]
    changing = [threading.Thread(target=work) for work in (grow, toggle, toggle)]
    for thread in (*asking, *changing):
        thread.start()
    for thread in changing:
        thread.join()
    stop.set()
    for thread in asking:
        thread.join()
    assert wrong == []
    assert all(answered.values()), answered
    assert (server.adds("a"), server.adds("b")) == (11, 1)


# Polling ---------------------------------------------------------------------------------------------


def poll(server: Server, *, new_models: bool = True) -> None:
    server.thread.call(lambda: server.repository.poll(0.02, new_models=new_models))


def test_polling_takes_up_new_changed_and_removed_models(server: Server, tools):
    put_version(server.root, "m", 1, adds=1)
    server.start()
    poll(server)
    put_version(server.root, "m", 2, adds=2)
    tools.until(lambda: server.adds() == 2, "the new version answered")
    put_version(server.root, "new", 1, adds=3)
    tools.until(lambda: ("new", "1", "READY") in server.index(), "the new model answered")
    (server.root / "m" / "2" / "model.onnx").write_bytes(b"junk")
    tools.until(lambda: "not a model" in server.reason("m", "2"), "the broken file was seen")
    assert server.adds() == 2
    shutil.rmtree(server.root / "m")
    tools.until(lambda: not any(model == "m" for model, _, _ in server.index()), "the removed model was gone")
    assert server.adds("new") == 3
    assert server.client.ready()


def test_polling_leaves_alone_what_a_request_has_loaded_or_unloaded(server: Server, tools):
    for name in ("canary", "by-hand", "gone", "never"):
        put_version(server.root, name, 1, adds=1)
    server.start("canary", "by-hand", "gone", explicit=True)
    server.load("by-hand", config=config("max_batch_size: 4"))
    server.unload("gone")
    poll(server, new_models=False)
    for name in ("never", "by-hand", "gone", "canary"):
        put_version(server.root, name, 2, adds=2)
    tools.until(lambda: server.adds("canary") == 2, "the canary was reloaded")
    put_version(server.root, "canary", 3, adds=3)
    tools.until(lambda: server.adds("canary") == 3, "the canary was reloaded again")
    assert server.adds("by-hand") == 1
    assert server.index(ready_only=True) == [("by-hand", "1", "READY"), ("canary", "3", "READY")]


def test_a_folder_that_is_gone_for_a_while_unloads_nothing(server: Server, tools, caplog: pytest.LogCaptureFixture):
    put_version(server.root, "m", 1, adds=1)
    server.start()
    poll(server)
    away = server.root.rename(server.root.with_name("away"))
    tools.until(lambda: caplog.text.count("looking for changes") >= 3, "it looked three times")
    assert server.adds() == 1
    away.rename(server.root)
    put_version(server.root, "m", 2, adds=2)
    tools.until(lambda: server.adds() == 2, "it looked again")


# Where a model runs ----------------------------------------------------------------------------------


def test_a_model_can_run_in_a_process_of_its_own(server: Server, tools):
    put_version(server.root, "m", 1, adds=1)
    path = server.root / "m" / "config.toml"
    path.write_text('isolation = "process"\ninstance_group = [{ count = 2 }]')
    server.start()
    isolated = server.thread.call(server.thread.plane.find, "m").model
    assert isolated.pid not in (None, os.getpid())
    assert server.adds() == 1
    path.write_text("")
    server.load()
    assert server.adds() == 1
    tools.until(lambda: isolated.pid is None, "the process was ended")


def test_a_runtime_that_cannot_load_the_file_is_refused(server: Server):
    put_version(server.root, "m", 1, adds=1)
    server.start()
    with pytest.raises(InputError, match=r"model\.onnx is not an OpenVINO IR"):
        server.load(config=ModelConfig(runtime="openvino"))
    assert server.adds() == 1
