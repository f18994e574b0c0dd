from __future__ import annotations

from pathlib import Path

import pytest

from edgeserve.contracts.errors import InputError, NotFoundError
from edgeserve_devices.profiles import load_profile, profile_names, recognise

SHIPPED = ("intel-core-ultra", "jetson-orin-nano", "raspberry-pi-4", "raspberry-pi-5", "x86-64")
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
    text = (Path(__file__).parents[2] / "devices/edgeserve_devices/profiles" / f"{name}.toml").read_text()
    assert text.startswith("# ")
    assert "http" in text.split("title =")[0], "the comment cites where the facts come from"


def test_only_hardware_that_edgeserve_ran_on_is_called_verified() -> None:
    assert {name for name in SHIPPED if load_profile(name).verified} == {"x86-64"}


def test_facts_say_whether_they_are_simulated() -> None:
    profile = load_profile("intel-core-ultra")
    assert profile.facts(simulated=True).simulated
    assert not profile.facts().simulated
    assert [(each.kind, each.vendor) for each in profile.facts().accelerators] == [("npu", "intel"), ("gpu", "intel")]


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


@pytest.mark.parametrize(
    ("board", "cpu", "expected"),
    [
        ("Raspberry Pi 5 Model B Rev 1.1", "Cortex-A76", "raspberry-pi-5"),
        ("NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", "", "jetson-orin-nano"),
        ("", "Intel(R) Core(TM) Ultra 9 288V", "intel-core-ultra"),
        ("Radxa ROCK 5B", "Cortex-A55 + Cortex-A76", ""),
        ("", "", ""),
    ],
)
def test_a_machine_is_recognised_or_left_unnamed(board: str, cpu: str, expected: str) -> None:
    assert recognise(board, cpu) == expected


def test_a_machine_that_fits_two_profiles_is_left_unnamed(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(GOOD + 'recognise = { board = "Raspberry Pi" }\n')
    assert recognise("Raspberry Pi 5 Model B", "", folder=tmp_path) == ""
