"""Engines on disk: whole and ours, or built again. The builder here is a small one, and real: it compresses."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from edgeserve import atomic
from edgeserve.contracts.errors import DeviceError
from edgeserve.runtimes import engine_cache
from edgeserve.runtimes.engine_cache import SHARED, EngineCache, EngineKey
from edgeserve.runtimes.model_files import digest_files, model_files

MODEL = b"layers " * 1000
FACTS = {"tensorrt": "10.3.0", "cuda": "12.6", "driver": "540.4.0", "soc": "Orin sm_87"}


def key_of(model: bytes = MODEL, **facts: str) -> EngineKey:
    return EngineKey(model=hashlib.sha256(model).hexdigest(), built_for={**FACTS, **facts})


class Builder:
    def __init__(self, model: bytes = MODEL) -> None:
        self.model = model
        self.builds = 0

    def __call__(self) -> bytes:
        self.builds += 1
        return zlib.compress(self.model)


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return open_cache(tmp_path)


def open_cache(folder: Path, **changes) -> EngineCache:
    return EngineCache(folder / "engines", secret=folder / "engines.key", **changes)


def test_what_was_built_is_found_again_by_another_life(cache, tmp_path) -> None:
    build = Builder()
    assert cache.find(key_of()) is None
    assert cache.find_or_build(key_of(), build, what="m") == zlib.compress(MODEL)
    assert open_cache(tmp_path).find_or_build(key_of(), build, what="m") == zlib.compress(MODEL)
    assert build.builds == 1


def test_nobody_else_may_look_at_engines_or_the_secret(cache, tmp_path) -> None:
    cache.find_or_build(key_of(), Builder(), what="m")
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()}
    assert set(modes.values()) == {0o600}
    assert (tmp_path / "engines").stat().st_mode & 0o777 == 0o700
    (tmp_path / "engines").chmod(0o777)
    open_cache(tmp_path)
    assert (tmp_path / "engines").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("fact", FACTS)
def test_every_fact_of_the_key_means_another_engine_and_the_reason_names_it(cache, fact) -> None:
    build = Builder()
    cache.find_or_build(key_of(), build, what="m")
    changed = key_of(**{fact: "another"})
    assert cache.why_absent(changed) == f"{fact} is another, was {FACTS[fact]}"
    cache.find_or_build(changed, build, what="m")
    assert build.builds == 2
    assert cache.why_absent(changed) == cache.why_absent(key_of()) == ""


def test_settings_model_and_format_are_part_of_the_key(cache, monkeypatch) -> None:
    cache.find_or_build(key_of(), Builder(), what="m")
    assert cache.why_absent(replace(key_of(), settings={"level": "5"})) == "the settings of the builder changed"
    assert cache.why_absent(key_of(b"another")) == "it was never built here"
    monkeypatch.setattr(engine_cache, "FORMAT", 2)
    assert cache.find(key_of()) is None


facts = st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=4)
keys = st.builds(EngineKey, model=st.text(max_size=8), built_for=facts, settings=facts)


@given(keys, keys)
def test_keys_have_the_same_name_only_if_they_are_the_same(one, other) -> None:
    assert (one.name == other.name) == (one == other)
    assert bool(one.differs(other)) == (one != other)
    shuffled = replace(one, built_for=dict(reversed(one.built_for.items())))
    assert shuffled.name == one.name


# Tampering -----------------------------------------------------------------------------------------


def files(folder: Path, key: EngineKey) -> tuple[Path, Path]:
    return folder / "engines" / f"{key.name}.engine", folder / "engines" / f"{key.name}.json"


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def edit(folder: Path, **changes) -> None:
    """As someone does who can write to the folder and knows no secret."""
    engine, manifest = files(folder, key_of())
    engine.write_bytes(b"evil")
    content = json.loads(manifest.read_bytes())
    content.update({"sha256": hashlib.sha256(b"evil").hexdigest(), "size": 4, **changes})
    manifest.write_bytes(json.dumps(content).encode())


def swap(folder: Path) -> None:
    for one, other in zip(files(folder, key_of()), files(folder, key_of(b"another")), strict=True):
        kept = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(kept)


def link(path: Path) -> None:
    outside = path.parent.parent / f"outside-{path.name}"
    outside.write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(outside)


def foreign(folder: Path) -> None:
    """An entry of another device: the same key and content, another secret."""
    other = folder / "other"
    other.mkdir()
    open_cache(other).find_or_build(key_of(), Builder(), what="m")
    for one, theirs in zip(files(folder, key_of()), files(other, key_of()), strict=True):
        one.write_bytes(theirs.read_bytes())


def deep(path: Path) -> None:
    path.write_bytes(b"[" * 100_000)


TAMPERED = {
    "first byte of the engine": lambda folder, engine, manifest: flip(engine, 0),
    "last byte of the engine": lambda folder, engine, manifest: flip(engine, -1),
    "engine cut off": lambda folder, engine, manifest: engine.write_bytes(engine.read_bytes()[:-1]),
    "engine empty": lambda folder, engine, manifest: engine.write_bytes(b""),
    "engine with more behind it": lambda folder, engine, manifest: engine.write_bytes(engine.read_bytes() + b"x"),
    "engine missing": lambda folder, engine, manifest: engine.unlink(),
    "engine a symbolic link": lambda folder, engine, manifest: link(engine),
    "engine a folder": lambda folder, engine, manifest: (engine.unlink(), engine.mkdir()),
    "engine a pipe": lambda folder, engine, manifest: (engine.unlink(), os.mkfifo(engine)),
    "manifest missing": lambda folder, engine, manifest: manifest.unlink(),
    "manifest empty": lambda folder, engine, manifest: manifest.write_bytes(b""),
    "manifest cut off": lambda folder, engine, manifest: manifest.write_bytes(manifest.read_bytes()[:-9]),
    "manifest no document": lambda folder, engine, manifest: manifest.write_bytes(b"\xff\xfe"),
    "manifest too deep": lambda folder, engine, manifest: deep(manifest),
    "manifest a symbolic link": lambda folder, engine, manifest: link(manifest),
    "two entries exchanged": lambda folder, engine, manifest: swap(folder),
    "engine of another entry": lambda folder, engine, manifest: engine.write_bytes(
        files(folder, key_of(b"another"))[0].read_bytes()
    ),
    "engine and manifest rewritten": lambda folder, engine, manifest: edit(folder),
    "seal left out": lambda folder, engine, manifest: edit(folder, seal=""),
    "seal not ASCII": lambda folder, engine, manifest: edit(folder, seal="é"),
    "seal of another device": lambda folder, engine, manifest: foreign(folder),
    "secret replaced": lambda folder, engine, manifest: (folder / "engines.key").write_bytes(b"x" * 32),
    "secret cut off": lambda folder, engine, manifest: (folder / "engines.key").write_bytes(b"x" * 31),
    "secret readable by others": lambda folder, engine, manifest: (folder / "engines.key").chmod(0o644),
    "secret a symbolic link": lambda folder, engine, manifest: link(folder / "engines.key"),
}


@pytest.mark.parametrize("tamper", TAMPERED.values(), ids=TAMPERED.keys())
def test_what_was_tampered_with_is_built_again_and_never_loaded(tmp_path, cache, tamper) -> None:
    cache.find_or_build(key_of(b"another"), Builder(b"another"), what="m")
    cache.find_or_build(key_of(), Builder(), what="m")
    tamper(tmp_path, *files(tmp_path, key_of()))
    later, build = open_cache(tmp_path), Builder()
    assert later.find(key_of()) is None
    assert later.why_absent(key_of())
    assert later.find_or_build(key_of(), build, what="m") == zlib.compress(MODEL)
    assert build.builds == 1
    assert open_cache(tmp_path).find(key_of()) == zlib.compress(MODEL)


def test_every_single_byte_of_a_manifest_counts(tmp_path, cache) -> None:
    cache.find_or_build(key_of(), Builder(), what="m")
    _engine, manifest = files(tmp_path, key_of())
    sound = manifest.read_bytes()
    for at in range(len(sound)):
        for bit in (1, 0x20):
            spoilt = bytearray(sound)
            spoilt[at] ^= bit
            manifest.write_bytes(spoilt)
            assert cache.find(key_of()) is None, (at, bit)
    manifest.write_bytes(sound)
    assert cache.find(key_of()) is not None


def test_a_folder_that_is_a_link_is_not_used(tmp_path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "engines").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DeviceError, match="not a folder of this user"):
        open_cache(tmp_path)


# Crashes ---------------------------------------------------------------------------------------------

LIFE = """
    import os, signal, sys, zlib
    from pathlib import Path
    from edgeserve.runtimes.engine_cache import EngineCache, EngineKey
    folder, kill_at, size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    count = 0
    def on_effect(step):
        global count
        print(step, flush=True)
        if count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1
    cache = EngineCache(folder / "engines", secret=folder / "engines.key", on_effect=on_effect, limit_bytes=size)
    def build():
        cache.save(EngineKey(model="shared", built_for={}), b"timings")
        return zlib.compress(b"layers " * 1000)
    cache.find_or_build(EngineKey(model="m", built_for={"driver": "2"}), build, what="m")
"""
LIFE_KEY = EngineKey(model="m", built_for={"driver": "2"})


def live(folder: Path, kill_at: int) -> tuple[int, list[str]]:
    size = len(zlib.compress(MODEL)) + 20
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(LIFE), folder, str(kill_at), str(size)], capture_output=True, text=True
    )
    return ended.returncode, ended.stdout.split()


@pytest.mark.parametrize("driver_before", ["", "1"], ids=["first build", "build that makes room"])
def test_a_build_that_is_cut_off_at_any_step_leaves_nothing_or_a_whole_entry(tmp_path, driver_before) -> None:
    seen: list[str] = []
    for kill_at in range(100):
        folder = tmp_path / str(kill_at)
        folder.mkdir()
        if driver_before:
            old = replace(LIFE_KEY, built_for={"driver": driver_before})
            open_cache(folder).find_or_build(old, Builder(), what="m")
        code, steps = live(folder, kill_at)
        assert code in (0, -signal.SIGKILL), steps
        seen += steps[-1:]
        later = open_cache(folder)
        found = later.find(LIFE_KEY)
        assert found in (None, zlib.compress(MODEL))
        assert (found is not None) == (code == 0 or steps.count("manifest:after") == 2), steps
        assert later.find_or_build(LIFE_KEY, Builder(), what="m") == zlib.compress(MODEL)
        assert list(folder.rglob("*.tmp")) == []
        if code == 0:
            break
    assert {"build:before", "build:after", "engine:before", "engine:after", "manifest:after"} <= set(seen)
    assert ("evict" if driver_before else "secret:before") in seen


def test_what_a_writer_left_half_is_swept_by_the_next_build(tmp_path, cache) -> None:
    (tmp_path / "engines" / ".half.engine.0011.tmp").write_bytes(b"half")
    cache.find_or_build(key_of(), Builder(), what="m")
    assert list((tmp_path / "engines").glob(".*")) == []


# Together --------------------------------------------------------------------------------------------


def test_of_several_that_want_the_same_engine_one_builds(tmp_path) -> None:
    class Slow(Builder):
        def __call__(self) -> bytes:
            begun.wait(10)
            return super().__call__()

    build, begun, results = Slow(), threading.Event(), []

    def want() -> None:
        results.append(open_cache(tmp_path).find_or_build(key_of(), build, what="m"))

    threads = [threading.Thread(target=want) for _ in range(4)]
    for thread in threads:
        thread.start()
    begun.set()
    for thread in threads:
        thread.join()
    assert results == [zlib.compress(MODEL)] * 4
    assert build.builds == 1


def test_a_build_that_fails_leaves_the_way_free_for_the_next(cache) -> None:
    def fail() -> bytes:
        raise DeviceError("no such operation")

    with pytest.raises(DeviceError, match="no such operation"):
        cache.find_or_build(key_of(), fail, what="m")
    assert cache.find_or_build(key_of(), Builder(), what="m")


def test_a_long_build_says_that_it_goes_on(cache, monkeypatch, caplog) -> None:
    monkeypatch.setattr(engine_cache, "ENGINE_PROGRESS_S", 0.01)
    caplog.set_level(logging.INFO)
    said = threading.Event()

    class Seen(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "s so far" in record.getMessage():
                said.set()

    handler = Seen()
    logging.getLogger(engine_cache.__name__).addHandler(handler)
    try:
        cache.find_or_build(key_of(), lambda: b"engine" if said.wait(10) else b"", what="model.onnx")
    finally:
        logging.getLogger(engine_cache.__name__).removeHandler(handler)
    assert "building the engine of model.onnx: it was never built here" in caplog.text
    assert said.is_set()


# Room ------------------------------------------------------------------------------------------------


def test_only_engines_of_installed_models_and_what_all_share_are_kept(cache, tmp_path) -> None:
    shared = EngineKey(model=SHARED, built_for=FACTS)
    cache.save(shared, b"timings")
    for model in (b"installed", b"gone"):
        cache.find_or_build(key_of(model), Builder(model), what="m")
    stray = tmp_path / "engines" / f"{'0' * 64}.engine"
    stray.write_bytes(b"stray")
    assert cache.evict([key_of(b"installed").model])
    assert cache.find(key_of(b"installed"))
    assert cache.find(shared) == b"timings"
    assert cache.find(key_of(b"gone")) is None
    names = {path.stem for path in (tmp_path / "engines").iterdir()} - {"lock"}
    assert names == {key_of(b"installed").name, shared.name}


def test_nothing_is_evicted_while_an_engine_is_being_built(tmp_path, cache) -> None:
    cache.find_or_build(key_of(b"gone"), Builder(), what="m")
    evicted = []

    def build() -> bytes:
        evicted.append(open_cache(tmp_path).evict([]))
        return b"engine"

    cache.find_or_build(key_of(), build, what="m")
    assert evicted == [False]
    assert cache.find(key_of(b"gone"))


def test_room_is_made_first_at_the_cost_of_what_this_device_cannot_load_any_more(tmp_path) -> None:
    cache = open_cache(tmp_path, limit_bytes=100)
    before, first, second, third = key_of(driver="1"), key_of(b"1"), key_of(b"2"), key_of(b"3")
    for number, key in enumerate((first, before, second)):
        cache.save(key, bytes(30))
        os.utime(files(tmp_path, key)[0], (number, number))
    cache.save(third, bytes(30))
    assert [cache.find(key) is not None for key in (before, first, second, third)] == [False, True, True, True]
    cache.save(key_of(b"4"), bytes(30))
    assert [cache.find(key) is not None for key in (first, second, third, key_of(b"4"))] == [False, True, True, True]
    with pytest.raises(DeviceError, match="at most 100"):
        cache.save(key_of(b"5"), bytes(101))


def test_a_disk_without_space_is_an_error_before_the_long_build(cache, monkeypatch) -> None:
    monkeypatch.setattr(atomic, "free_bytes", lambda folder: 1 << 20)
    build = Builder()
    with pytest.raises(DeviceError, match=r"no space for the engine of model\.onnx"):
        cache.find_or_build(key_of(), build, what="model.onnx")
    assert build.builds == 0


def test_a_disk_that_is_full_when_the_engine_is_written_is_an_error(tmp_path, cache) -> None:
    program = f"""
        import errno, resource, signal
        from pathlib import Path
        from edgeserve.contracts.errors import DeviceError
        from edgeserve.runtimes.engine_cache import EngineCache, EngineKey
        cache = EngineCache(Path({str(tmp_path)!r}) / "engines", secret=Path({str(tmp_path)!r}) / "engines.key")
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            cache.find_or_build(EngineKey(model="m", built_for={{}}), lambda: bytes(10000), what="m")
        except DeviceError as error:
            print(error.message)
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True)
    assert os.strerror(errno.EFBIG) in ended.stdout, ended.stderr
    assert cache.find(EngineKey(model="m", built_for={})) is None
    assert list((tmp_path / "engines").glob(".*.tmp")) == []


# Files of a model ----------------------------------------------------------------------------------------


def test_the_files_of_a_variant_are_all_but_its_contract(tmp_path) -> None:
    for name in ("model.onnx", "weights.bin", "model.tensorrt.json", "contract.json"):
        (tmp_path / name).write_bytes(name.encode())
    names = {path.name for path in model_files(tmp_path / "model.onnx")}
    assert names == {"model.onnx", "weights.bin", "model.tensorrt.json"}


def test_the_files_of_a_model_alone_are_it_and_the_weights_that_bear_its_name(tmp_path) -> None:
    for name in ("model.onnx", "model.onnx.data", "model.data", "model2.onnx", "other.onnx"):
        (tmp_path / name).write_bytes(name.encode())
    names = {path.name for path in model_files(tmp_path / "model.onnx")}
    assert names == {"model.onnx", "model.onnx.data", "model.data"}


def test_the_digest_of_files_is_of_their_names_and_contents(tmp_path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(b"1")
    other.write_bytes(b"2")
    digest = digest_files([one, other])
    assert digest == digest_files([other, one])
    one.write_bytes(b"2")
    other.write_bytes(b"1")
    assert digest_files([one, other]) != digest
