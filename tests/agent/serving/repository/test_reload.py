"""New files, new configurations, and those that requests bring: what fails changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeserve.contracts.errors import InputError, NotFoundError
from edgeserve.contracts.limits import MAX_UPLOADED_FILES
from edgeserve.contracts.model_config import ModelConfig
from tests.agent.serving.repository.model_server import ALL_VERSIONS, Server, config
from tests.suites.repository import put_version


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
