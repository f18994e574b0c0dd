from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.limits import COMPILE_CACHE_LEFTOVER_S
from edgeserve.contracts.oci import REPORT_TYPE
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve.contracts.variant import Precision, Selector, Tolerance, VariantContract
from edgeserve.release.build import ReleaseBuilder
from edgeserve.release.layout import open_release, verify_release
from edgeserve_compilers.cache import Cache, default_folder
from edgeserve_compilers.spec import CompileOptions, PrecisionChoice

ROOM = 1 << 20


def release(folder: Path, *, size: int = 1000) -> Path:
    """A small release with a model file of `size` bytes."""
    signature = Signature(
        inputs=(TensorSpec(name="x", datatype=Datatype.FP32, shape=(-1, 8)),),
        outputs=(TensorSpec(name="scores", datatype=Datatype.FP32, shape=(-1, 10)),),
    )
    contract = VariantContract(
        model="digits", target="x86-cpu", precision=Precision.INT8, runtime="onnxruntime", entry="model.onnx",
        signature=signature, selector=Selector(), tolerance=Tolerance(),
    )  # fmt: skip
    folder.parent.mkdir(parents=True, exist_ok=True)
    file = folder.with_name(f"{folder.name}.onnx")
    file.write_bytes(folder.name.encode().ljust(size, b"\0"))
    builder = ReleaseBuilder(name="digits", version="1", counter=1)
    builder.add_variant(contract, {"model.onnx": file})
    builder.add_evidence("report.json", REPORT_TYPE, b"{}")
    builder.write(folder)
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """No file may grow beyond `limit` bytes: a write then fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_was_put_is_found_again(tmp_path: Path) -> None:
    made = release(tmp_path / "made")
    cache = Cache(tmp_path / "cache" / "edgeserve", ROOM)
    key = Cache.key(model="sha256:00")
    assert cache.get(key) is None
    assert names(tmp_path) == ["made", "made.onnx"], "looking makes no folder"
    assert cache.put(key, made)
    found = cache.get(key)
    assert found is not None
    assert verify_release(found).digest == open_release(made).digest
    assert (tmp_path / "cache" / "edgeserve").stat().st_mode & 0o777 == 0o700
    shutil.rmtree(made)
    assert cache.get(key) == found
    assert cache.get(Cache.key(model="sha256:01")) is None


def test_a_second_put_leaves_the_first_in_place(tmp_path: Path) -> None:
    cache, key = Cache(tmp_path / "cache", ROOM), Cache.key(model="m")
    first, second = release(tmp_path / "first"), release(tmp_path / "second")
    assert cache.put(key, first)
    assert cache.put(key, second)
    found = cache.get(key)
    assert found is not None
    assert open_release(found).digest == open_release(first).digest
    assert names(tmp_path / "cache") == [key]


@pytest.mark.parametrize(
    "parts",
    [
        {"model": "b", "targets": ("x86-cpu",), "options": CompileOptions()},
        {"model": "a", "targets": ("arm-cpu",), "options": CompileOptions()},
        {"model": "a", "targets": ("x86-cpu",), "options": CompileOptions(max_accuracy_drop=0.02)},
        {"model": "a", "targets": ("x86-cpu",), "options": CompileOptions(precision=PrecisionChoice.INT8)},
        {"model": "a", "targets": ("x86-cpu",), "options": CompileOptions(), "onnxruntime": "1.23"},
        {"model": "a", "targets": ("x86-cpu",)},
    ],
    ids=["model", "target", "bound", "precision", "one more part", "one part less"],
)
def test_every_part_makes_another_key(parts: dict[str, object]) -> None:
    key = Cache.key(model="a", targets=("x86-cpu",), options=CompileOptions())
    assert key == Cache.key(options=CompileOptions(), targets=("x86-cpu",), model="a")
    assert key != Cache.key(**parts)


def test_a_key_is_the_same_in_every_process() -> None:
    code = "from edgeserve_compilers.cache import Cache; print(Cache.key(a=1, b=['x'], c={'k': 0.5, 'j': ()}))"
    keys = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert len(keys) == 1
    assert len(keys.pop()) == 64


@pytest.mark.parametrize("key", ["", "../../etc", "A" * 64, "0" * 63, "0" * 64 + "\n"])
def test_what_is_no_key_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(InputError, match="not a key"):
        Cache(tmp_path).get(key)
    with pytest.raises(InputError, match="not a key"):
        Cache(tmp_path).put(key, tmp_path)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink], ids=["cut short", "a bit flipped", "missing"])
@pytest.mark.parametrize("which", ["index.json", "largest blob", "smallest blob"])
def test_a_damaged_entry_is_a_miss_and_goes(tmp_path: Path, damage: object, which: str) -> None:
    cache, key = Cache(tmp_path / "cache", ROOM), Cache.key(model="m")
    made = release(tmp_path / "made")
    cache.put(key, made)
    entry = tmp_path / "cache" / key
    blobs = sorted((entry / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    damage({"index.json": entry / "index.json", "largest blob": blobs[-1], "smallest blob": blobs[0]}[which])
    assert cache.get(key) is None
    assert names(tmp_path / "cache") == []
    assert cache.put(key, made)
    assert cache.get(key) == entry


def test_a_file_where_an_entry_should_be_is_a_miss_and_goes(tmp_path: Path) -> None:
    cache, key = Cache(tmp_path, ROOM), Cache.key(model="m")
    (tmp_path / key).write_bytes(b"no release")
    assert cache.get(key) is None
    assert names(tmp_path) == []


def test_the_entry_used_longest_ago_makes_room(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 40_000)
    keys = [Cache.key(number=number) for number in range(4)]
    for number, key in enumerate(keys[:3]):
        assert cache.put(key, release(tmp_path / f"r{number}", size=10_000))
        os.utime(tmp_path / "cache" / key, (1000 + number, 1000 + number))
    assert cache.get(keys[0]) is not None, "the oldest is used again"
    assert cache.put(keys[3], release(tmp_path / "r3", size=10_000))
    assert set(names(tmp_path / "cache")) == {keys[0], keys[2], keys[3]}
    total = sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert total <= 40_000


def test_what_is_larger_than_the_whole_cache_is_not_kept_and_costs_no_other_entry(tmp_path: Path) -> None:
    cache, key = Cache(tmp_path / "cache", 20_000), Cache.key(number=1)
    assert cache.put(key, release(tmp_path / "small", size=1000))
    assert not cache.put(Cache.key(number=2), release(tmp_path / "large", size=30_000))
    assert names(tmp_path / "cache") == [key]


def test_a_full_disk_fails_no_compilation(tmp_path: Path) -> None:
    cache, key = Cache(tmp_path / "cache", ROOM), Cache.key(model="m")
    made = release(tmp_path / "made", size=50_000)
    with full_disk(5_000):
        assert not cache.put(key, made)
    assert names(tmp_path / "cache") == []
    assert cache.put(key, made)


@pytest.mark.parametrize("place", ["a file", "below a file"])
def test_a_folder_that_cannot_be_made_fails_no_compilation(tmp_path: Path, place: str) -> None:
    (tmp_path / "taken").write_bytes(b"")
    folder = tmp_path / "taken" if place == "a file" else tmp_path / "taken" / "cache"
    cache, key = Cache(folder, ROOM), Cache.key(model="m")
    assert not cache.put(key, release(tmp_path / "made"))
    assert cache.get(key) is None


AS_NOBODY = """
import os, sys
from pathlib import Path
from edgeserve_compilers.cache import Cache
cache = Cache(Path(sys.argv[1]), 1 << 20)
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
print(cache.get(sys.argv[3]) is not None, cache.put(sys.argv[4], Path(sys.argv[2])))
"""


def test_a_cache_that_may_only_be_read_still_answers() -> None:
    folder = Path("/tmp") / f"edgeserve-cache-{os.getpid()}"
    try:
        keys = [Cache.key(number=number) for number in range(2)]
        Cache(folder / "cache", ROOM).put(keys[0], release(folder / "made"))
        for path in (folder, folder / "cache"):
            path.chmod(0o555)
        arguments = [sys.executable, "-c", AS_NOBODY, str(folder / "cache"), str(folder / "made"), *keys]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)
        assert done.stdout.split() == ["True", "False"], done.stderr
    finally:
        for path in (folder, folder / "cache"):
            path.chmod(0o755)
        shutil.rmtree(folder)


def test_leftovers_of_killed_processes_go_once_they_are_old(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", ROOM)
    made = release(tmp_path / "made")
    cache.put(Cache.key(number=1), made)
    old, young, strange = f".{'a' * 64}.0123abcd.tmp", f".{'b' * 64}.0123abcd.tmp", ".model.0123abcd.tmp"
    for name, age in ((old, 2 * COMPILE_CACHE_LEFTOVER_S), (young, 0.0), (strange, 2 * COMPILE_CACHE_LEFTOVER_S)):
        left = tmp_path / "cache" / name
        left.mkdir()
        (left / "half").write_bytes(b"half")
        then = left.stat().st_mtime - age
        os.utime(left, (then, then))
    cache.put(Cache.key(number=2), made)
    assert [name for name in names(tmp_path / "cache") if name.startswith(".")] == sorted([young, strange])


def test_what_others_keep_in_the_folder_is_neither_counted_nor_removed(tmp_path: Path) -> None:
    made = release(tmp_path / "made")
    converter = tmp_path / "cache/converters/onnx2tf"
    converter.mkdir(parents=True)
    (converter / "python").write_bytes(bytes(2 * ROOM))
    os.utime(tmp_path / "cache/converters", (0, 0))
    cache = Cache(tmp_path / "cache", ROOM)
    for number in range(20):
        assert cache.put(Cache.key(number=number), made)
    assert cache.get(Cache.key(number=19)) is not None
    assert (converter / "python").stat().st_size == 2 * ROOM


CRASHES = """
import json, os, signal, sys
from pathlib import Path
from edgeserve_compilers.cache import Cache

root, old, new, old_key, new_key = sys.argv[1:]

def live(folder, at):
    # a process that forks has no threads here; every change on disk counts as a step
    steps = 0
    def before(name):
        real = getattr(os, name)
        def step(*arguments, **options):
            nonlocal steps
            if steps == at:
                os.kill(os.getpid(), signal.SIGKILL)
            steps += 1
            return real(*arguments, **options)
        setattr(os, name, step)
    for name in ("fsync", "replace", "mkdir", "unlink", "rmdir"):
        before(name)
    os._exit(0 if Cache(folder, 30_000).put(new_key, Path(new)) else 3)

codes = []
for at in range(100):
    folder = Path(root) / str(at)
    Cache(folder, 30_000).put(old_key, Path(old))
    child = os.fork()
    if child == 0:
        live(folder, at)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    if codes[-1] != -signal.SIGKILL:
        break
print(json.dumps(codes))
"""


def test_killed_at_any_step_the_cache_holds_whole_entries_only(tmp_path: Path) -> None:
    """Dies by SIGKILL before the n-th change on disk, for every n, while a new entry takes the place of an old one."""
    old, new = release(tmp_path / "old", size=20_000), release(tmp_path / "new", size=20_000)
    keys = [Cache.key(number=1), Cache.key(number=2)]
    arguments = [sys.executable, "-c", CRASHES, str(tmp_path / "crashes"), str(old), str(new), *keys]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    codes = json.loads(done.stdout or "[]")
    assert set(codes[:-1]) == {-signal.SIGKILL}, done.stderr
    assert codes[-1] == 0, "the last one ends by itself"
    assert len(codes) > 10
    for at in range(len(codes)):
        folder = tmp_path / "crashes" / str(at)
        for entry in folder.iterdir():
            if not entry.name.startswith("."):
                assert entry.name in keys
                verify_release(entry)
        cache = Cache(folder, 30_000)
        assert cache.put(keys[1], new), f"killed at step {at}"
        assert cache.get(keys[1]) is not None
        assert cache.get(keys[0]) is None


def test_writers_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    made = [release(tmp_path / f"r{number}", size=10_000) for number in range(3)]
    keys = [Cache.key(number=number) for number in range(3)]
    wrong: list[object] = []

    def work(first: int) -> None:
        cache = Cache(tmp_path / "cache", 25_000)  # room for two: they evict each other all the time
        for turn in range(12):
            number = (first + turn) % 3
            cache.put(keys[number], made[number])
            found = cache.get(keys[number])
            if found is None:
                continue
            try:
                if open_release(found).digest != open_release(made[number]).digest:
                    wrong.append(number)
            except InputError:
                continue  # another one removed it in between: a miss

    threads = [threading.Thread(target=work, args=(first,)) for first in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    for name in names(tmp_path / "cache"):
        assert name in keys, "nothing half-done is left"
        verify_release(tmp_path / "cache" / name)


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, "/home/u/.cache/edgeserve"),
        ({"XDG_CACHE_HOME": "/var/cache/u"}, "/var/cache/u/edgeserve"),
        ({"XDG_CACHE_HOME": "relative"}, "/home/u/.cache/edgeserve"),
        ({"XDG_CACHE_HOME": ""}, "/home/u/.cache/edgeserve"),
        ({"EDGESERVE_CACHE": "/big/disk", "XDG_CACHE_HOME": "/var/cache/u"}, "/big/disk"),
        ({"EDGESERVE_CACHE": ""}, "/home/u/.cache/edgeserve"),
    ],
    ids=json.dumps,
)
def test_where_the_cache_lies(env: dict[str, str], expected: str) -> None:
    assert default_folder(env, Path("/home/u")) == Path(expected)
