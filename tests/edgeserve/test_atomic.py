from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edgeserve import atomic
from edgeserve.contracts.errors import ConflictError, DeviceError, InputError


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """No file may grow beyond `limit` bytes: a write then fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    atomic.write_bytes(path, b"old")
    atomic.write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["state.json"]


def test_chunks_make_one_file(tmp_path: Path) -> None:
    atomic.write_chunks(tmp_path / "x", (bytes([n]) for n in range(5)))
    assert (tmp_path / "x").read_bytes() == bytes(range(5))


def test_the_mode_is_the_one_asked_for(tmp_path: Path) -> None:
    atomic.write_bytes(tmp_path / "key", b"", mode=0o600)
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


def test_a_file_that_must_be_new_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "key"
    atomic.write_bytes(path, b"first", replace=False)
    with pytest.raises(ConflictError, match="exists already"):
        atomic.write_bytes(path, b"second", replace=False)
    assert path.read_bytes() == b"first"
    assert names(tmp_path) == ["key"]


@pytest.mark.parametrize("replace", [True, False])
def test_on_a_full_disk_the_old_file_stands(tmp_path: Path, replace: bool) -> None:
    path = tmp_path / "journal.json"
    if replace:
        path.write_bytes(b"old")
    with full_disk(1000), pytest.raises(DeviceError, match=r"cannot write .*journal\.json") as caught:
        atomic.write_bytes(path, b"x" * 5000, replace=replace)
    assert "space" in caught.value.hint
    assert names(tmp_path) == (["journal.json"] if replace else [])
    assert not replace or path.read_bytes() == b"old"


@pytest.mark.parametrize("error", [InputError("the source changed"), KeyboardInterrupt()], ids=["error", "ctrl-c"])
def test_an_error_of_the_source_passes_through_and_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"half"
        raise error

    with pytest.raises(type(error)) as caught:
        atomic.write_chunks(tmp_path / "x", chunks())
    assert caught.value is error
    assert names(tmp_path) == []


def test_a_folder_that_is_not_there_is_an_error_of_the_device(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="No such file"):
        atomic.write_bytes(tmp_path / "nowhere" / "x", b"")
    with pytest.raises(DeviceError, match="No such file"):
        atomic.move(tmp_path / "nothing", tmp_path / "x")


def test_a_folder_moves_into_place_but_not_over_another(tmp_path: Path) -> None:
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    with pytest.raises(DeviceError):
        atomic.move(tmp_path / "new", tmp_path / "old")
    assert names(tmp_path / "old") == ["old"]
    atomic.move(tmp_path / "new", tmp_path / "there")
    assert names(tmp_path / "there") == ["new"]


def test_data_are_on_disk_before_the_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace  # noqa: TID251 - to note when it is called

    def note_fsync(descriptor: int) -> None:
        steps.append("sync folder" if Path(f"/proc/self/fd/{descriptor}").is_dir() else "sync file")
        fsync(descriptor)

    def note_replace(source: Path, destination: Path) -> None:
        steps.append("rename")
        replace(source, destination)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    atomic.write_bytes(tmp_path / "x", b"data")
    assert steps == ["sync file", "rename", "sync folder"]
    steps.clear()
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    (tmp_path / "folder" / "inner" / "file").touch()
    atomic.sync_tree(tmp_path / "folder")
    assert steps == ["sync folder", "sync file", "sync folder"]


def test_free_space_is_a_number_of_bytes(tmp_path: Path) -> None:
    assert atomic.free_bytes(tmp_path) > 0
