"""Which models answer after a start, and what loads and unloads change."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from edgeserve.contracts.errors import InputError, NotFoundError, TransientError
from edgeserve.contracts.model_config import ModelConfig
from tests.agent.serving.repository.model_server import ALL_VERSIONS, Server, config
from tests.suites.repository import put_version


def unreadable(folder: Path) -> None:
    """Its model file is one that whoever may open it cannot read from, such as of a disk that is broken."""
    (folder / "1" / "model.onnx").unlink()
    (folder / "1" / "model.onnx").symlink_to("/proc/self/mem")


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
        pytest.param(unreadable, "cannot read", id="file that cannot be read"),
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
    if find_spec("openvino") is None:
        pytest.skip("openvino is not installed: pip install 'edgeserve[openvino]'")
    put_version(server.root, "m", 1, adds=1)
    server.start()
    with pytest.raises(InputError, match=r"model\.onnx is not an OpenVINO IR"):
        server.load(config=ModelConfig(runtime="openvino"))
    assert server.adds() == 1
