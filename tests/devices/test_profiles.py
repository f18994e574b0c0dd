from __future__ import annotations

from pathlib import Path

import pytest

from edgeserve import plugins
from edgeserve.contracts.errors import InputError, NotFoundError
from edgeserve.contracts.variant import Precision
from edgeserve_devices.profiles import load_profile, profile_names, recognise, x86_64_level

SHIPPED = (
    "arm64",
    "aws-graviton2",
    "aws-graviton3",
    "aws-graviton4",
    "intel-arrow-lake",
    "intel-core-ultra",
    "intel-lunar-lake",
    "intel-meteor-lake",
    "intel-n100",
    "jetson-agx-orin",
    "jetson-nano",
    "jetson-orin-nano",
    "jetson-orin-nx",
    "jetson-thor",
    "jetson-xavier-nx",
    "orange-pi-5",
    "raspberry-pi-3",
    "raspberry-pi-4",
    "raspberry-pi-5",
    "raspberry-pi-zero-2-w",
    "x86-64",
    "x86-64-v2",
    "x86-64-v3",
    "x86-64-v4",
)
FOLDER = Path(__file__).parents[2] / "devices/edgeserve_devices/profiles"
TREES = Path(__file__).parent / "trees"
GOOD = """
title = "Gateway"
architecture = "amd64"
cpu = "Some CPU"
cpu_features = ["avx2"]
cores = 2
memory_mib = 512
targets = ["x86-cpu"]
runtimes = ["onnxruntime"]
"""


@pytest.fixture(autouse=True)
def no_own_profiles(monkeypatch) -> None:
    monkeypatch.delenv("EDGESERVE_PROFILES", raising=False)


def test_the_shipped_profiles_are_listed() -> None:
    assert profile_names() == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_profile_is_whole_and_names_its_sources(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert profile.facts().profile == name
    assert "onnxruntime" in profile.runtimes
    text = (FOLDER / f"{name}.toml").read_text()
    assert text.startswith("# ")
    assert "http" in text.split("title =")[0], "the comment cites where the facts come from"


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_profile_says_what_decides_how_it_is_installed_and_used(name: str) -> None:
    profile = load_profile(name)
    assert profile.os
    assert profile.python
    assert profile.glibc
    assert profile.threads
    assert profile.installable in (True, False), "make wheel-matrix asks pip"
    assert all(specifier for specifier in profile.runtimes.values()), "a version that is known to work is named"
    assert len(set(profile.cpu_features)) == len(profile.cpu_features)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_target_of_a_shipped_profile_exists(name: str) -> None:
    assert set(load_profile(name).targets) <= set(plugins.names(plugins.TARGETS))


def test_a_system_with_a_python_that_is_too_old_is_not_called_installable() -> None:
    old = {name for name in SHIPPED if tuple(map(int, load_profile(name).python.split("."))) < (3, 10)}
    assert old == {"jetson-nano", "jetson-xavier-nx"}
    assert {name for name in SHIPPED if not load_profile(name).installable} == old


def test_only_hardware_that_edgeserve_ran_on_is_called_verified() -> None:
    assert {name for name in SHIPPED if load_profile(name).verified} == {"x86-64", "x86-64-v3", "x86-64-v4"}


@pytest.mark.parametrize(
    ("name", "features", "without"),
    [
        ("raspberry-pi-zero-2-w", {"asimd"}, {"asimddp", "asimdhp"}),
        ("raspberry-pi-3", {"asimd"}, {"asimddp", "asimdhp"}),
        ("jetson-xavier-nx", {"asimdhp"}, {"asimddp"}),
        ("orange-pi-5", {"asimddp", "asimdhp"}, {"i8mm", "sve"}),
        ("aws-graviton2", {"asimddp", "asimdhp"}, {"i8mm", "bf16", "sve"}),
        ("aws-graviton3", {"asimddp", "i8mm", "bf16", "sve"}, {"sve2"}),
        ("aws-graviton4", {"asimddp", "i8mm", "bf16", "sve2"}, set()),
        ("jetson-thor", {"asimddp", "i8mm", "bf16", "sve2"}, set()),
        ("arm64", {"asimd"}, {"asimddp", "crc32"}),
        ("intel-n100", {"avx2", "avx_vnni"}, {"avx512f"}),
        ("intel-lunar-lake", {"avx2", "avx_vnni"}, {"avx512f"}),
        ("x86-64-v2", {"sse4_2"}, {"avx"}),
        ("x86-64-v3", {"avx2", "fma"}, {"avx512f", "avx_vnni"}),
        ("x86-64-v4", {"avx512f", "avx512bw"}, {"avx512_vnni", "amx_int8"}),
    ],
)
def test_a_profile_promises_the_instructions_of_its_kind(name: str, features: set[str], without: set[str]) -> None:
    promised = set(load_profile(name).cpu_features)
    assert features <= promised
    assert not without & promised


def test_facts_say_whether_they_are_simulated() -> None:
    profile = load_profile("intel-core-ultra")
    assert profile.facts(simulated=True).simulated
    assert not profile.facts().simulated
    assert [(each.kind, each.vendor) for each in profile.facts().accelerators] == [("npu", "intel"), ("gpu", "intel")]


def test_facts_name_the_runtimes_without_versions() -> None:
    facts = load_profile("jetson-orin-nano").facts()
    assert facts.runtimes == ("onnxruntime", "litert", "tensorrt")
    assert (facts.python, facts.libc) == ("3.10", "glibc 2.35")


@pytest.mark.parametrize(
    ("written", "read"),
    [
        pytest.param('["onnxruntime", "null"]', {"onnxruntime": "", "null": ""}, id="names-alone"),
        pytest.param("[]", {}, id="none"),
        pytest.param('{ onnxruntime = "*", openvino = "" }', {"onnxruntime": "", "openvino": ""}, id="any-version"),
        pytest.param('{ onnxruntime = " >=1.20, <1.24" }', {"onnxruntime": ">=1.20, <1.24"}, id="a-range"),
        pytest.param('{ tensorrt = "==10.3.*" }', {"tensorrt": "==10.3.*"}, id="a-prefix"),
    ],
)
def test_runtimes_are_a_list_of_names_or_a_table_of_versions(tmp_path: Path, written: str, read: dict) -> None:
    (tmp_path / "gateway.toml").write_text(GOOD.replace('["onnxruntime"]', written))
    assert load_profile("gateway", folder=tmp_path).runtimes == read


def test_what_a_profile_does_not_say_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "gateway.toml").write_text(GOOD)
    profile = load_profile("gateway", folder=tmp_path)
    assert (profile.python, profile.glibc, profile.threads, profile.facts().libc) == ("", "", 0, "")
    assert (profile.precision, profile.installable) == (None, None)
    assert (profile.thermal.throttle_c, profile.thermal.critical_c) == (None, None)


def test_everything_that_a_profile_can_say_is_read(tmp_path: Path) -> None:
    more = 'python = "3.11"\nglibc = "2.36"\nprecision = "int8"\nthreads = 2\ninstallable = true\n'
    (tmp_path / "gateway.toml").write_text(GOOD + more + "[thermal]\nthrottle_c = 80\ncritical_c = 85.5\n")
    profile = load_profile("gateway", folder=tmp_path)
    assert (profile.python, profile.glibc, profile.precision, profile.threads) == ("3.11", "2.36", Precision.INT8, 2)
    assert (profile.thermal.throttle_c, profile.thermal.critical_c, profile.installable) == (80, 85.5, True)


@pytest.mark.parametrize("name", ["nope", "", "../profiles/x86-64", "x86-64.toml", "<script>"])
def test_an_unknown_name_is_answered_with_the_known_ones(name: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        load_profile(name)
    for known in SHIPPED:
        assert known in caught.value.hint


def test_profiles_of_the_user_are_added_and_go_before_shipped_ones(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "gateway.toml").write_text(GOOD)
    (tmp_path / "x86-64.toml").write_text(GOOD)
    monkeypatch.setenv("EDGESERVE_PROFILES", str(tmp_path))
    assert profile_names() == tuple(sorted((*SHIPPED, "gateway")))
    assert load_profile("gateway").memory_bytes == 512 << 20
    assert not load_profile("gateway").verified
    assert load_profile("x86-64").title == "Gateway"
    assert load_profile("raspberry-pi-5").cpu == "Cortex-A76"


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="gone"):
        profile_names(folder=tmp_path / "gone")


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("not toml [", id="not-toml"),
        pytest.param("\xff", id="not-text"),
        pytest.param("", id="empty"),
        pytest.param(GOOD.replace("cores = 2", "cores = 0"), id="no-core"),
        pytest.param(GOOD.replace("cores = 2", 'cores = "2"'), id="wrong-type"),
        pytest.param(GOOD.replace('"amd64"', '"x86_64"'), id="architecture-in-other-words"),
        pytest.param(GOOD.replace("memory_mib = 512", "memory_mib = 0"), id="no-memory"),
        pytest.param(GOOD.replace('targets = ["x86-cpu"]', "targets = []"), id="no-target"),
        pytest.param(GOOD + 'colour = "red"\n', id="unknown-field"),
        pytest.param(GOOD + "#" * (1 << 20), id="too-large"),
        pytest.param(GOOD + "threads = 3\n", id="more-threads-than-cores"),
        pytest.param(GOOD + "threads = -1\n", id="negative-threads"),
        pytest.param(GOOD + 'python = "3.11.2"\n', id="python-with-three-numbers"),
        pytest.param(GOOD + 'glibc = "musl"\n', id="glibc-without-a-number"),
        pytest.param(GOOD + 'precision = "int7"\n', id="precision-that-is-none"),
        pytest.param(GOOD + "thermal = { throttle_c = 90, critical_c = 80 }\n", id="throttles-after-the-limit"),
        pytest.param(GOOD + "thermal = { throttle_c = nan }\n", id="temperature-that-is-no-number"),
        pytest.param(GOOD + "thermal = { critical_c = 358 }\n", id="kelvin"),
        pytest.param(GOOD + "thermal = { warm_c = 40 }\n", id="unknown-temperature"),
        pytest.param(GOOD.replace('["onnxruntime"]', '{ onnxruntime = "1.20" }'), id="version-without-operator"),
        pytest.param(GOOD.replace('["onnxruntime"]', '{ onnxruntime = ">=1.20; rm" }'), id="version-with-a-marker"),
        pytest.param(GOOD.replace('["onnxruntime"]', "{ onnxruntime = 1.2 }"), id="version-that-is-a-number"),
    ],
)
def test_a_file_that_is_no_profile_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "gateway.toml").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"gateway\.toml"):
        load_profile("gateway", folder=tmp_path)


def test_a_name_that_is_no_device_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "My_Gateway.toml").write_text(GOOD)
    with pytest.raises(InputError, match="My_Gateway"):
        load_profile("My_Gateway", folder=tmp_path)


MACHINES = [
    ("Raspberry Pi 5 Model B Rev 1.1", "Cortex-A76", "raspberry-pi-5"),
    ("Raspberry Pi Compute Module 5 Rev 1.0", "Cortex-A76", "raspberry-pi-5"),
    ("Raspberry Pi 4 Model B Rev 1.5", "Cortex-A72", "raspberry-pi-4"),
    ("Raspberry Pi 400 Rev 1.0", "Cortex-A72", "raspberry-pi-4"),
    # https://github.com/juj/fbcp-ili9341/issues/202
    ("Raspberry Pi Compute Module 4 Rev 1.0", "Cortex-A72", "raspberry-pi-4"),
    # https://github.com/hrw/arm-socs-table/issues/29 and /issues/6
    ("Raspberry Pi 3 Model B Plus Rev 1.3", "Cortex-A53", "raspberry-pi-3"),
    ("Raspberry Pi 3 Model B Rev 1.2", "Cortex-A53", "raspberry-pi-3"),
    # https://github.com/adafruit/Adafruit_Python_PlatformDetect/pull/210
    ("Raspberry Pi Zero 2 W Rev 1.0", "Cortex-A53", "raspberry-pi-zero-2-w"),
    ("Raspberry Pi Zero W Rev 1.1", "", ""),
    ("Raspberry Pi 2 Model B Rev 1.1", "", ""),
    # rk3588s-orangepi-5.dts of Linux
    ("Xunlong Orange Pi 5", "Cortex-A55 + Cortex-A76", "orange-pi-5"),
    ("Xunlong Orange Pi PC 2", "Cortex-A53", ""),
    # https://github.com/rbonghi/jetson_stats/issues/586
    ("NVIDIA Jetson Nano Developer Kit", "Cortex-A57", "jetson-nano"),
    # tegra194-p3509-0000+p3668-0000.dts of Linux
    ("NVIDIA Jetson Xavier NX Developer Kit (SD-card)", "", "jetson-xavier-nx"),
    ("NVIDIA Jetson AGX Xavier Developer Kit", "", ""),
    # https://github.com/rbonghi/jetson_stats/issues/400, /603, /476, /617 and /711
    ("NVIDIA Orin Nano Developer Kit", "Cortex-A78AE", "jetson-orin-nano"),
    ("NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", "", "jetson-orin-nano"),
    ("NVIDIA Jetson Orin NX Engineering Reference Developer Kit", "Cortex-A78AE", "jetson-orin-nx"),
    ("NVIDIA Jetson AGX Orin Developer Kit", "Cortex-A78AE", "jetson-agx-orin"),
    ("Jetson AGX Orin", "Cortex-A78AE", "jetson-agx-orin"),
    ("NVIDIA Jetson AGX Thor Developer Kit", "Neoverse-V3AE", "jetson-thor"),
    ("", "Intel(R) Core(TM) Ultra 7 155U", "intel-core-ultra"),
    ("", "Intel(R) Core(TM) Ultra 9 288V", "intel-core-ultra"),
    ("", "Intel(R) Core(TM) Ultra 9 285H", "intel-core-ultra"),
    ("", "Intel(R) N100", "intel-n100"),
    ("", "Intel(R) Core(TM) i7-9700K CPU @ 3.60GHz", ""),
    ("", "AMD EPYC 9R14", ""),
    ("", "Neoverse-N1", ""),
    ("Radxa ROCK 5B", "Cortex-A55 + Cortex-A76", ""),
    ("", "", ""),
]


@pytest.mark.parametrize(("board", "cpu", "expected"), MACHINES)
def test_a_machine_is_recognised_or_left_unnamed(board: str, cpu: str, expected: str) -> None:
    assert recognise(board, cpu) == expected


@pytest.mark.parametrize("tree", sorted(path.name for path in TREES.iterdir() if (path / "proc/device-tree").is_dir()))
def test_a_recorded_board_fits_one_profile_only(tree: str) -> None:
    board = (TREES / tree / "proc/device-tree/model").read_text().rstrip("\0\n")
    fitting = [name for name in SHIPPED if load_profile(name).recognise.fits(board, "")]
    assert len(fitting) <= 1
    assert recognise(board, "") == "".join(fitting)


def test_a_machine_that_fits_two_profiles_is_left_unnamed(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(GOOD + 'recognise = { board = "Raspberry Pi" }\n')
    assert recognise("Raspberry Pi 5 Model B", "", folder=tmp_path) == ""


@pytest.mark.parametrize(
    ("table", "board", "cpu", "expected"),
    [
        ('{ board = ["One", "Two"] }', "Two rev 1", "", "mine"),
        ('{ board = ["One", "Two"] }', "Board Two", "", ""),
        ('{ cpu = ["A1", "B2"] }', "", "Fast B2 CPU", "mine"),
        ('{ board = "", cpu = "" }', "Anything", "Any CPU", ""),
        ('{ board = [""], cpu = ["", ""] }', "Anything", "Any CPU", ""),
        ("{ board = [] }", "Anything", "Any CPU", ""),
    ],
)
def test_several_names_may_stand_for_one_kind(tmp_path: Path, table: str, board: str, cpu: str, expected: str) -> None:
    (tmp_path / "mine.toml").write_text(GOOD + f"recognise = {table}\n")
    assert recognise(board, cpu, folder=tmp_path) == expected


V2 = "fpu cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3"
V3 = f"{V2} avx avx2 bmi1 bmi2 f16c fma abm movbe xsave"
V4 = f"{V3} avx512f avx512bw avx512cd avx512dq avx512vl"


@pytest.mark.parametrize(
    ("flags", "level"),
    [
        ("", ""),
        ("fpu sse sse2", ""),
        (V2, "x86-64-v2"),
        (f"{V2} avx avx2", "x86-64-v2"),
        (V3, "x86-64-v3"),
        (f"{V3} avx512f", "x86-64-v3"),
        (V4, "x86-64-v4"),
        (f"{V4} avx512_vnni amx_int8", "x86-64-v4"),
        (V4.replace("movbe ", ""), "x86-64-v2"),
        (V4.replace("cx16 ", ""), ""),
    ],
)
def test_a_level_is_reached_with_all_that_it_and_those_below_ask_for(flags: str, level: str) -> None:
    assert x86_64_level(flags.split()) == level


@pytest.mark.parametrize("level", ["x86-64-v2", "x86-64-v3", "x86-64-v4"])
def test_the_profile_of_a_level_promises_what_the_level_asks_for(level: str) -> None:
    asked = {"x86-64-v2": V2, "x86-64-v3": V3, "x86-64-v4": V4}[level].split()
    promised = load_profile(level).cpu_features
    assert set(promised) <= set(asked)
    assert x86_64_level([*promised, "cx16", "lahf_lm", "pni", "abm", "movbe", "xsave"]) == level
