"""Folders of libraries, which see only what the cache has verified."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from edgeserve.runtimes.engine_cache import EngineKey
from edgeserve.runtimes.kept_folder import KeptFolder, runtime_cache

KEY = EngineKey(model="m", built_for={"driver": "1"})


@pytest.fixture
def cache(tmp_path: Path):
    return runtime_cache(tmp_path / "engines", "onnxruntime")


def load(cache, files: dict[str, bytes] | None = None, key: EngineKey = KEY) -> dict[str, bytes]:
    """What a library finds in its folder; it then puts `files` there."""
    folder = KeptFolder(cache, key, what="m")
    found = {
        path.relative_to(folder.path).as_posix(): path.read_bytes() for path in folder.path.rglob("*") if path.is_file()
    }
    for name, data in (files or {}).items():
        (folder.path / name).parent.mkdir(parents=True, exist_ok=True)
        (folder.path / name).write_bytes(data)
    folder.keep()
    folder.close()
    folder.close()
    assert not folder.path.exists()
    return found


def test_what_a_library_has_put_there_is_there_again(cache) -> None:
    files = {"a.engine": b"1" * 10_000, "sub/timing.cache": b"", "sub/b": b"2"}
    assert load(cache, files) == {}
    assert load(cache) == files
    assert load(cache, key=EngineKey(model="m", built_for={"driver": "2"})) == {}


def test_a_library_that_puts_nothing_there_leaves_nothing(cache, tmp_path: Path) -> None:
    load(cache)
    assert list((tmp_path / "engines/onnxruntime").glob("*.engine")) == []


@pytest.mark.parametrize("spoil", [lambda data: data[:-600], lambda data: data.replace(b"good", b"evil")])
def test_what_was_changed_on_the_disk_no_library_sees(cache, tmp_path: Path, spoil) -> None:
    load(cache, {"a.engine": b"good"})
    (engine,) = (tmp_path / "engines/onnxruntime").glob("*.engine")
    engine.write_bytes(spoil(engine.read_bytes()))
    assert load(cache, {"a.engine": b"new"}) == {}
    assert load(cache) == {"a.engine": b"new"}


@pytest.mark.parametrize("name", ["../outside", "/outside", "a/../../outside"])
def test_a_name_that_leads_out_of_the_folder_is_passed_over(cache, name: str) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for one in (name, "inside"):
            member = tarfile.TarInfo(one)
            member.size = 1
            archive.addfile(member, io.BytesIO(b"x"))
    cache.find_or_build(KEY, packed.getvalue, what="m")
    folder = KeptFolder(cache, KEY, what="m")
    assert [path.name for path in folder.path.iterdir()] == ["inside"]
    assert not (folder.path.parent / "outside").exists()
    folder.close()
