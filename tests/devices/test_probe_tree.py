"""A folder that means harm: reading it never raises, never leaves it, never takes more than allowed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeserve.contracts.limits import (
    MAX_PROBE_CPUS,
    MAX_PROBE_FILE_BYTES,
    MAX_PROBE_FILES,
    MAX_PROBE_NAMES,
    MAX_PROBE_TEXT_CHARS,
)
from edgeserve_devices.inventory import Inventory, inventory
from edgeserve_devices.probe import probe
from edgeserve_devices.probes.tree import Tree, cpu_list, integer, printable

TREES = Path(__file__).parent / "trees"
PATHS = sorted({str(path.relative_to(tree)) for tree in TREES.iterdir() for path in tree.rglob("*") if path.is_file()})
WORDS = (
    b"processor\t: 0\n", b"flags\t: sse avx2\n", b"CPU part\t: 0xd0b\n", b"model name\t: \x1b[2J\n", b"\n\n", b"\0",
    b"-1", b"9" * 30, b"max", b"0-99999999", b"MemTotal: 1 kB\n", b"some avg10=0.00 avg60=0.00 avg300=0.00 total=1\n",
    b"DRIVER=intel_vpu\n", b"DRIVER=RKNPU\n", b"4:memory:/../..\n", b"0x8086", b"ina3221", b"nvidia,tegra1\0",
    b"\xff\xfe", "\u0665\u0000\ud7ff\u202e".encode(), b"soctherm_oc", b"1e60:2864", b"PRETTY_NAME=\x07\n",
    b"/dev/a / ext4 ro 0 0\n",
)  # fmt: skip
CONTENT = st.one_of(st.binary(max_size=80), st.lists(st.sampled_from(WORDS), max_size=8).map(b"".join))


def texts(document: object) -> Iterator[str]:
    """Every string of a document, keys included."""
    if isinstance(document, str):
        yield document
    elif isinstance(document, dict):
        for key, value in document.items():
            yield from texts(key)
            yield from texts(value)
    elif isinstance(document, (list, tuple)):
        for value in document:
            yield from texts(value)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(PATHS), CONTENT, max_size=40))
def test_whatever_the_files_hold_the_answer_is_a_bounded_document(files: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        found, facts = inventory(Path(folder)), probe(Path(folder))
    assert msgspec.json.decode(msgspec.json.encode(found), type=Inventory) == found
    assert len(msgspec.json.encode(facts)) < 8192
    assert [text for text in texts(msgspec.to_builtins([found, facts])) if not text.isprintable()] == []


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from(PATHS), max_size=12, unique=True),
    st.sampled_from(["folder", "loop", "out", "pipe", "gone"]),
)
def test_whatever_stands_in_the_place_of_a_file_the_answer_comes(names: list[str], kind: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind == "folder":
                path.mkdir(exist_ok=True)
            elif kind == "pipe":
                os.mkfifo(path)
            elif not path.exists():
                path.symlink_to({"loop": path.name, "out": "/proc/self/environ", "gone": "nowhere"}[kind])
        assert inventory(Path(folder)).cpu.processors == 0


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    os.mkfifo(tmp_path / "proc/cpuinfo")
    assert Tree(tmp_path).text("proc/cpuinfo") == ""


@pytest.mark.parametrize("target", ["/etc/passwd", "../../../../../../../../etc/passwd"])
@pytest.mark.parametrize("place", ["etc/os-release", "etc"])
def test_a_link_out_of_the_folder_is_not_followed_and_said(tmp_path: Path, target: str, place: str) -> None:
    root = tmp_path / "root"
    (root / place).parent.mkdir(parents=True)
    (root / place).symlink_to(target if place != "etc" else str(Path(target).parent))
    tree = Tree(root)
    path = "etc/os-release" if place != "etc" else "etc/passwd"
    assert tree.text(path) == ""
    assert tree.problems == {path: "it leads out of the folder"}


def test_a_link_inside_of_the_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "usr/lib").mkdir(parents=True)
    (tmp_path / "etc").mkdir()
    (tmp_path / "usr/lib/os-release").write_text('PRETTY_NAME="Inside"\n')
    (tmp_path / "etc/os-release").symlink_to("../usr/lib/os-release")
    assert probe(tmp_path).os == "Inside"


@pytest.mark.parametrize("path", ["../passwd", "proc/../../passwd", "proc/\0", ".."])
def test_a_path_that_climbs_is_nothing(tmp_path: Path, path: str) -> None:
    (tmp_path / "passwd").write_text("secret")
    (tmp_path / "root/proc").mkdir(parents=True)
    tree = Tree(tmp_path / "root")
    assert (tree.text(path), tree.names(path), tree.exists(path)) == ("", (), False)


def test_a_loop_of_links_is_said(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").symlink_to("cpuinfo")
    tree = Tree(tmp_path)
    assert tree.text("proc/cpuinfo") == ""
    assert tree.problems == {"proc/cpuinfo": "Too many levels of symbolic links"}


def test_of_a_huge_file_only_the_beginning_is_read(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    with (tmp_path / "proc/cpuinfo").open("wb") as file:
        file.truncate(1 << 34)
    assert len(Tree(tmp_path).text("proc/cpuinfo")) == MAX_PROBE_FILE_BYTES


def test_of_a_huge_folder_a_part_is_listed(tmp_path: Path) -> None:
    for number in range(MAX_PROBE_NAMES + 10):
        (tmp_path / f"thermal_zone{number}").touch()
    assert len(Tree(tmp_path).names("", "thermal_zone")) == MAX_PROBE_NAMES


def test_after_so_many_files_nothing_more_is_read_and_that_is_said(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("x")
    tree = Tree(tmp_path)
    assert {tree.text("proc/cpuinfo") for _ in range(MAX_PROBE_FILES)} == {"x"}
    assert tree.text("proc/cpuinfo") == ""
    assert [reason for reason in tree.problems.values() if "the rest was not looked at" in reason]


def test_names_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("cpu10", "cpu2", "cpu0", "cpufreq", "cpu\x1b1", "gpu0"):
        (tmp_path / name).touch()
    assert Tree(tmp_path).names("", "cpu") == ("cpu0", "cpu2", "cpu10", "cpufreq")


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A folder of a process without privileges: root reads whatever it likes."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        files = {
            "sys/class/powercap/intel-rapl:0/name": "package-0\n",
            "sys/class/powercap/intel-rapl:0/energy_uj": "1\n",
            "sys/class/accel/accel0/device/uevent": "DRIVER=intel_vpu\n",
            "dev/accel/accel0": "",
        }
        for name, content in files.items():
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
            path.chmod(0o400 if name.endswith("energy_uj") else 0o600 if name.startswith("dev") else 0o444)
            if os.geteuid() != 0 and name.endswith(("energy_uj", "accel0")):
                path.chmod(0)
        before = os.geteuid()
        if before == 0:
            os.seteuid(65534)
        try:
            yield Path(folder)
        finally:
            os.seteuid(before)


def test_what_may_not_be_read_is_told_from_what_is_not_there(unprivileged: Path) -> None:
    found = inventory(unprivileged)
    (package,) = found.power.energy
    assert (package.name, package.energy_uj) == ("package-0", None)
    assert found.problems["sys/class/powercap/intel-rapl:0/energy_uj"] == "Permission denied"
    assert "sys/class/powercap/intel-rapl:0/max_energy_range_uj" not in found.problems


def test_a_node_that_this_user_may_not_open_is_said(unprivileged: Path) -> None:
    found = inventory(unprivileged)
    assert [each.name for each in found.accelerators] == ["Intel NPU"]
    assert found.problems["dev/accel/accel0"] == "Permission denied"


@given(st.text(max_size=2000))
def test_text_of_a_kernel_cannot_move_the_cursor(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert len(shown) <= MAX_PROBE_TEXT_CHARS


@given(st.sets(st.integers(0, 4000), max_size=60), st.text(max_size=10))
def test_a_list_of_processors_is_read_back(numbers: set[int], junk: str) -> None:
    assert cpu_list(",".join(map(str, sorted(numbers)))) == numbers
    assert all(0 <= number < MAX_PROBE_CPUS for number in cpu_list(f"{junk},0-{junk}"))


@pytest.mark.parametrize(
    ("text", "expected"), [("0-3", {0, 1, 2, 3}), ("0 1 2", {0, 1, 2}), ("3-1", set()), ("", set()), ("7\n", {7})]
)
def test_lists_of_processors_come_with_ranges(text: str, expected: set[int]) -> None:
    assert cpu_list(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("42\n", 42),
        ("-5", -5),
        ("max", None),
        ("", None),
        ("9" * 19, None),
        ("\u0665", None),
        ("1.5", None),
        ("7\0", 7),
    ],
)
def test_a_number_fits_64_bits_or_is_none(text: str, expected: int | None) -> None:
    assert integer(text) == expected
