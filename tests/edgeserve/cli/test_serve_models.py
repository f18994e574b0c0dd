from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgeserve.client.inference import InferenceClient
from edgeserve.contracts.errors import InputError, NotFoundError
from edgeserve_agent.serving.model_source import OpenOptions
from edgeserve_agent.serving.startup import ModelControl, serve_plan
from tests.suites.repository import ROW, put_release, put_version


class Served:
    """`edgeserve serve ... --json`, once it has said where."""

    def __init__(self, log: Path, *arguments: object) -> None:
        command = [sys.executable, "-m", "edgeserve", "serve", *map(str, arguments), "--http", "127.0.0.1:0", "--json"]
        with log.open("ab") as errors:
            self.child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors)
        assert self.child.stdout is not None
        text = b""
        while not text.endswith(b"\n}\n") and (line := self.child.stdout.readline()):
            text += line
        try:
            self.said = json.loads(text)
        except ValueError:
            self.child.kill()
            self.child.communicate()
            raise AssertionError(log.read_text()) from None
        self.client = InferenceClient(self.said["http"])

    def adds(self, model: str, version: str = "") -> float:
        return float(self.client.infer(model, {"x": ROW}, version=version).outputs["y"][0, 0] - 1)

    def end(self) -> int:
        self.child.send_signal(signal.SIGTERM)
        self.child.communicate(timeout=20)
        return self.child.returncode


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    served: list[Served] = []

    def start(*arguments: object) -> Served:
        served.append(Served(tmp_path / "log", *arguments))
        return served[-1]

    yield start
    for one in served:
        one.client.close()
        one.child.kill()
        one.child.communicate()


def test_a_folder_of_models_is_served_and_a_bad_one_reported(serve: Callable[..., Served], tmp_path: Path):
    root = tmp_path / "models"
    put_version(root, "a", 1, adds=1)
    put_version(root, "a", 2, adds=2)
    put_version(root, "bad", 1, adds=0).write_bytes(b"junk")
    put_release(root / "b" / "release", counter=4)
    served = serve(root, "--poll-seconds", "0.05")
    models = {(one["model"], one["version"]) for one in served.said["models"]}
    assert models == {("a", "2"), ("b", "4")}
    assert "model 'bad'" in (tmp_path / "log").read_text()
    assert served.adds("a") == 2
    put_version(root, "a", 3, adds=3)
    end = time.monotonic() + 20
    while served.adds("a") != 3:
        assert time.monotonic() < end
    assert served.end() == 0


def test_named_models_alone_are_loaded_under_explicit_control(serve: Callable[..., Served], tmp_path: Path):
    for name in ("a", "b"):
        put_version(tmp_path / "models", name, 1, adds=1)
    served = serve(tmp_path / "models", "--model-control", "explicit", "--load-model", "b")
    assert [one["model"] for one in served.said["models"]] == ["b"]
    with pytest.raises(NotFoundError):
        served.adds("a")


def test_one_model_takes_a_configuration(serve: Callable[..., Served], tmp_path: Path):
    path = put_version(tmp_path, "m", 1, adds=1)
    (tmp_path / "c.toml").write_text("isolation = 'process'\nversion_labels = { stable = 1 }")
    served = serve(path, "--config", tmp_path / "c.toml", "--state-dir", tmp_path / "state")
    assert (served.said["model"], served.said["version"]) == ("model", "1")
    assert served.adds("model") == 1
    assert (
        json.loads((tmp_path / "state" / "labels.json").read_bytes())["models"]["model"]["stable"]["stands_for"] == "1"
    )
    assert served.end() == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param({"name": "n"}, "--name is for one model", id="name of a folder"),
        pytest.param({"config": "c.toml"}, "--config is for one model", id="configuration of a folder"),
        pytest.param({"load": ["m"]}, "all are loaded", id="named, but all"),
        pytest.param({"load": ["../m"], "control": ModelControl.EXPLICIT}, "model name", id="name that is none"),
        pytest.param({"poll_s": -1.0}, "--poll-seconds", id="negative time"),
        pytest.param({"poll_s": float("nan")}, "--poll-seconds", id="no time"),
        pytest.param({"path": "empty"}, "has no models", id="empty folder"),
        pytest.param({"path": "m/1/model.onnx", "config": "c.toml"}, "c.toml", id="no configuration"),
        pytest.param({"path": "m/1/model.onnx", "config": "bad.toml"}, "threads", id="bad configuration"),
        pytest.param({"path": "m/1/model.onnx", "config": "other.toml"}, "'other'", id="another's configuration"),
    ],
)
def test_what_the_command_line_says_is_checked_first(tmp_path: Path, arguments: dict, says: str):
    put_version(tmp_path / "models", "m", 1, adds=0)
    (tmp_path / "models" / "empty").mkdir()
    (tmp_path / "models" / "bad.toml").write_text("threads = 'many'")
    (tmp_path / "models" / "other.toml").write_text("name = 'other'")
    path = tmp_path / "models" / arguments.pop("path", "")
    if "config" in arguments:
        arguments["config"] = tmp_path / "models" / arguments["config"]
    with pytest.raises(InputError) as caught:
        serve_plan(path, options=OpenOptions(threads=1, scratch=tmp_path / "scratch"), **arguments)
    assert says in caught.value.message


def test_the_one_model_that_cannot_be_served_ends_the_command(tmp_path: Path):
    (tmp_path / "m.onnx").write_bytes(b"junk")
    command = [sys.executable, "-m", "edgeserve", "serve", str(tmp_path / "m.onnx"), "--http", "127.0.0.1:0"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == InputError.exit_code
    assert "m.onnx is not a model" in ended.stderr
    assert "Traceback" not in ended.stderr
