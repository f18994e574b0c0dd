"""Triton's system shared memory. What `qa/L0_shared_memory` asserts is asserted here and in test_http.py, too."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeserve.contracts.errors import ConflictError, InputError, NotFoundError
from edgeserve_agent.serving.regions import RegionRef, RegionStatus
from edgeserve_agent.serving.shared_memory import SharedMemory, SharedMemoryLimits
from tests.agent.serving.shared_memory.objects import SHM, object_of

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="POSIX shared memory as Linux has it")


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def collected_descriptors() -> int:
    """Without those that earlier tests left to the collector, which it may close at any time."""
    gc.collect()
    return descriptors()


# Registering ------------------------------------------------------------------------------------------


def test_a_region_that_was_registered_is_listed_and_shows_the_memory_of_the_object(make):
    regions, key = SharedMemory(), make(128)
    object_of(key).write_bytes(bytes(range(128)))
    regions.register("a", key, 32, 64)
    assert regions.status() == regions.status("a") == [RegionStatus(name="a", key=key, offset=32, byte_size=64)]
    view = regions.view(RegionRef("a", 8, 4))
    assert bytes(view) == bytes(range(40, 44))
    view[0] = 99
    assert object_of(key).read_bytes()[40] == 99


def test_an_offset_that_no_page_begins_at_is_possible_beyond_the_first_page(make):
    regions, key = SharedMemory(), make(3 * 4096)
    with object_of(key).open("r+b") as file:
        file.seek(5000)
        file.write(b"here")
    regions.register("a", key, 5000, 4)
    assert bytes(regions.view(RegionRef("a", 0, 4))) == b"here"


def test_the_same_name_again_is_refused_in_tritons_words_and_changes_nothing(make):
    regions, key = SharedMemory(), make()
    regions.register("a", key, 0, 64)
    before = regions.generation
    with pytest.raises(ConflictError, match="shared memory region 'a' already in manager"):
        regions.register("a", key, 0, 8)
    assert regions.status("a")[0].byte_size == 64
    assert regions.generation == before


def test_one_object_may_have_several_names(make):
    regions, key = SharedMemory(), make()
    regions.register("a", key, 0, 64)
    regions.register("b", key, 0, 32)
    regions.view(RegionRef("a", 0, 1))[0] = 7
    assert regions.view(RegionRef("b", 0, 1))[0] == 7


@pytest.mark.parametrize(
    ("offset", "size"),
    [(0, 65), (1, 64), (64, 1), (65, 0), (0, 0), (-8, 64), (0, -1), (2**64 - 32, 64), (64, 2**64 - 1), (2**63, 2**63)],
)
def test_a_part_that_the_object_does_not_hold_is_refused(make, offset, size):
    regions, key, before = SharedMemory(SharedMemoryLimits(total_bytes=1 << 70)), make(64), collected_descriptors()
    with pytest.raises(InputError, match="failed to register shared memory region 'a': invalid args"):
        regions.register("a", key, offset, size)
    assert regions.status() == []
    assert descriptors() == before


@pytest.mark.parametrize("key", ["", "/", "//x", "/../etc/passwd", "/a/b", "..", ".", "/..", "a\0b", "/" + "x" * 256])
def test_what_is_no_key_of_shared_memory_is_refused(key):
    with pytest.raises(InputError, match="is not a key of shared memory"):
        SharedMemory().register("a", key, 0, 64)


@pytest.mark.parametrize("name", ["triton_python_backend_shm_region_1", "sem.lock"])
def test_objects_that_belong_to_others_by_their_names_are_refused(make, name):
    key = make(name=f"{name}-edgeserve-{os.getpid()}")
    for spelled in (key, key[1:]):
        with pytest.raises(InputError, match="as the key contains the reserved prefix"):
            SharedMemory().register("a", spelled, 0, 64)


def test_an_object_that_is_not_there_is_said_to_be_missing():
    with pytest.raises(NotFoundError, match="Unable to open shared memory region: '/edgeserve-none'"):
        SharedMemory().register("a", "/edgeserve-none", 0, 64)


def test_a_link_is_not_followed_and_a_fifo_does_not_hang(make, tmp_path):
    target, link, fifo = (
        tmp_path / "secret",
        SHM / f"edgeserve-link-{os.getpid()}",
        SHM / f"edgeserve-fifo-{os.getpid()}",
    )
    target.write_bytes(bytes(64))
    try:
        link.symlink_to(target)
        os.mkfifo(fifo)
        for path in (link, fifo):
            with pytest.raises(InputError, match="shared memory region"):
                SharedMemory().register("a", f"/{path.name}", 0, 64)
    finally:
        link.unlink(missing_ok=True)
        fifo.unlink(missing_ok=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize(("mode", "taken"), [(0o600, False), (0o644, False), (0o660, False), (0o666, True)])
def test_the_servers_root_rights_open_nobody_elses_memory(make, mode, taken):
    key, regions = make(mode=mode), SharedMemory()
    os.chown(object_of(key), 12345, 12345)
    if taken:
        regions.register("a", key, 0, 64)
    else:
        with pytest.raises(InputError, match="belongs to another user"):
            regions.register("a", key, 0, 64)
    assert len(regions.status()) == taken


def test_there_is_a_limit_to_regions_and_to_all_their_bytes(make):
    regions, key = SharedMemory(SharedMemoryLimits(regions=2, total_bytes=100)), make(64)
    regions.register("a", key, 0, 64)
    with pytest.raises(InputError, match="at most 100 are allowed"):
        regions.register("b", key, 0, 37)
    regions.register("b", key, 0, 36)
    with pytest.raises(InputError, match="2 regions are registered"):
        regions.register("c", key, 0, 0)
    regions.unregister("a")
    regions.register("c", key, 0, 64)


@pytest.mark.parametrize("name", ["", "x" * 256])
def test_a_region_needs_a_name(make, name):
    with pytest.raises(InputError, match="1 to 255 characters"):
        SharedMemory().register(name, make(), 0, 64)


# Unregistering ----------------------------------------------------------------------------------------


def test_a_region_can_be_unregistered_before_it_was_registered_and_after(make):
    regions, key = SharedMemory(), make()
    regions.unregister("a")
    regions.register("a", key, 0, 64)
    regions.unregister("a")
    assert regions.status() == []
    with pytest.raises(NotFoundError, match="Unable to find system shared memory region: 'a'"):
        regions.status("a")


def test_unregistering_without_a_name_forgets_all_and_leaks_no_descriptor(make):
    regions, key, before = SharedMemory(), make(), collected_descriptors()
    for number in range(8):
        regions.register(f"r{number}", key, 0, 64)
    regions.unregister()
    assert regions.status() == []
    assert descriptors() == before


def test_a_view_outlives_its_region(make):
    regions, key = SharedMemory(), make()
    regions.register("a", key, 0, 64)
    view = regions.view(RegionRef("a", 0, 4))
    regions.unregister("a")
    object_of(key).unlink()
    view[:] = b"live"
    assert bytes(view) == b"live"


def test_the_generation_rises_with_every_change(make):
    regions, key = SharedMemory(), make()
    seen = [regions.generation]
    for change in (lambda: regions.register("a", key, 0, 64), regions.unregister):
        change()
        seen.append(regions.generation)
    assert seen == sorted(set(seen))


# Views ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ref", "says"),
    [
        (RegionRef("b", 0, 1), "Unable to find shared memory region: 'b'"),
        (RegionRef("a", 64, 0), "Invalid offset for shared memory region: 'a'"),
        (RegionRef("a", 2**64 - 32, 64), "Invalid offset for shared memory region: 'a'"),
        (RegionRef("a", -1, 4), "Invalid offset for shared memory region: 'a'"),
        (RegionRef("a", 32, 33), r"Invalid offset \+ byte size for shared memory region: 'a'"),
        (RegionRef("a", 1, 2**64 - 1), r"Invalid offset \+ byte size for shared memory region: 'a'"),
        (RegionRef("a", 4, -4), r"Invalid offset \+ byte size for shared memory region: 'a'"),
    ],
)
def test_a_view_beyond_the_region_is_refused_in_tritons_words(make, ref, says):
    regions = SharedMemory()
    regions.register("a", make(128), 0, 64)
    with pytest.raises(InputError, match=says):
        regions.view(ref)


@given(offset=st.integers(-70, 140), size=st.integers(-70, 140), start=st.integers(0, 64), length=st.integers(1, 64))
def test_a_view_is_exactly_what_was_asked_for_or_refused(offset, size, start, length):
    key = f"edgeserve-any-{os.getpid()}"
    (SHM / key).write_bytes(bytes(range(128)))
    regions = SharedMemory()
    try:
        regions.register("a", key, start, length)
        fits = 0 <= offset < length and size >= 0 and offset + size <= length
        if fits:
            assert bytes(regions.view(RegionRef("a", offset, size))) == bytes(range(128))[start + offset :][:size]
        else:
            with pytest.raises(InputError, match="Invalid offset"):
                regions.view(RegionRef("a", offset, size))
    finally:
        regions.unregister()
        (SHM / key).unlink()


def test_an_object_that_was_shrunk_gives_an_error_and_no_signal(make):
    regions, key = SharedMemory(), make(8192)
    regions.register("a", key, 0, 8192)
    os.truncate(object_of(key), 4096)
    with pytest.raises(InputError, match="has become smaller"):
        regions.view(RegionRef("a", 0, 4))
