"""A worker that is started again loads what was loaded, or nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeserve.contracts.errors import DeviceError, InputError
from edgeserve_agent.isolation import source
from edgeserve_agent.isolation.lifecycle import RestartPolicy, State
from edgeserve_agent.isolation.source import ModelFiles
from tests.agent.isolation.processes import until

ONCE = RestartPolicy(first_s=0.01, crashes=1, window_s=600)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model `m.onnx` with files beside it."""
    folder = tmp_path / "1"
    (folder / "deep").mkdir(parents=True)
    for name in ("m.onnx", "m.onnx.data", "m.bin", "weights", "other.onnx", "deep/part"):
        (folder / name).write_text(name)
    return folder


def replace(path: Path) -> None:
    path.with_name("new").write_text("another")
    path.with_name("new").rename(path)


CHANGES = {
    "written to": lambda path: path.write_text("another"),
    "written to in the same length": lambda path: path.write_text(path.read_text().swapcase()),
    "replaced": replace,
    "gone": Path.unlink,
    "a folder now": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize(
    ("name", "whole_folder", "belongs"),
    [
        ("m.onnx", False, True),
        ("m.onnx.data", False, True),
        ("m.bin", False, True),
        ("weights", False, False),
        ("other.onnx", False, False),
        ("m.onnx", True, True),
        ("weights", True, True),
        ("deep/part", True, True),
    ],
)
def test_a_change_of_what_belongs_to_the_model_is_seen(
    folder: Path, name: str, whole_folder: bool, belongs: bool, change: Callable[[Path], object]
) -> None:
    files = ModelFiles(folder / "m.onnx", folder if whole_folder else None)
    assert files.change() == ""
    change(folder / name)
    assert bool(files.change()) is belongs
    assert not belongs or str(folder / name) in files.change()


def test_what_has_the_same_bytes_has_not_changed(folder: Path) -> None:
    files = ModelFiles(folder / "m.onnx", folder)
    data = (folder / "m.onnx").read_bytes()
    (folder / "m.onnx").unlink()
    (folder / "m.onnx").write_bytes(data)
    (folder / "more").touch()
    os.utime(folder / "m.bin", (1, 1))
    assert files.change() == ""


def test_a_name_may_hold_what_patterns_are_made_of(tmp_path: Path) -> None:
    for name in ("[m].onnx", "[m].bin", "m.bin"):
        (tmp_path / name).write_text(name)
    files = ModelFiles(tmp_path / "[m].onnx")
    (tmp_path / "m.bin").unlink()
    assert files.change() == ""
    (tmp_path / "[m].bin").unlink()
    assert "[m].bin" in files.change()


def test_a_model_that_is_a_folder_is_all_that_is_in_it(folder: Path) -> None:
    files = ModelFiles(folder)
    (folder / "weights").write_text("another")
    assert "weights has changed" in files.change()


def test_files_are_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "MAX_MODEL_FOLDER_FILES", 5)
    with pytest.raises(InputError, match="more than 5 files"):
        ModelFiles(folder / "m.onnx", folder)


@pytest.mark.parametrize("change", [CHANGES["written to"], CHANGES["replaced"], CHANGES["gone"]])
@pytest.mark.parametrize("name", ["model.trouble", "weights"])
def test_a_worker_that_crashed_is_not_replaced_by_one_with_other_files(
    load_trouble, ask, tmp_path: Path, name: str, change: Callable[[Path], object]
) -> None:
    folder = tmp_path / "1"
    folder.mkdir()
    (folder / "weights").write_text("all of them")
    model = load_trouble("echo first", policy=ONCE, folder=folder)
    change(folder / name)
    assert ask(model, "echo hello") == b"hello", "what is loaded goes on"
    os.kill(model.pid, signal.SIGKILL)
    until(lambda: model.state is State.FAILED)
    with pytest.raises(
        DeviceError, match=f"could not be started again: .*{name} (has changed since|is gone)"
    ) as raised:
        ask(model, "echo hello")
    assert "load the model again" in raised.value.hint


def test_a_worker_is_replaced_once_its_files_are_back(load_trouble, ask, tmp_path: Path) -> None:
    model = load_trouble("echo first", policy=RestartPolicy(first_s=0.01, longest_s=0.01, crashes=10_000))
    path = tmp_path / "model.trouble"
    path.rename(tmp_path / "away")
    os.kill(model.pid, signal.SIGKILL)
    until(lambda: model.crashes > 2)
    assert "is gone" in model.last_end
    (tmp_path / "away").rename(path)
    until(lambda: model.state is State.SERVING)
    assert ask(model, "echo hello") == b"hello"
