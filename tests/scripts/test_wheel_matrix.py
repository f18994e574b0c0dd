from __future__ import annotations

import importlib.util
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from edgeserve_devices.profiles import load_profile, profile_names

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def matrix() -> ModuleType:
    spec = importlib.util.spec_from_file_location("wheel_matrix", ROOT / "scripts" / "wheel_matrix.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["wheel_matrix"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def wheel(folder: Path, name: str, tag: str = "py3-none-any", requires: tuple[str, ...] = (), python: str = "") -> None:
    """A wheel without any code: what a resolver reads of one."""
    metadata = [f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0", *(f"Requires-Dist: {each}" for each in requires)]
    metadata += [f"Requires-Python: {python}"] if python else []
    with zipfile.ZipFile(folder / f"{name}-1.0-{tag}.whl", "w") as archive:
        archive.writestr(f"{name}-1.0.dist-info/METADATA", "\n".join(metadata) + "\n")
        archive.writestr(f"{name}-1.0.dist-info/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        archive.writestr(f"{name}-1.0.dist-info/RECORD", "")


@pytest.fixture
def index(tmp_path: Path) -> tuple[str, ...]:
    """pip's options for an index of three wheels: `app` needs `old` before Python 3.11 and `arm` on 64-bit Arm."""
    requires = ('old; python_version < "3.11"', 'arm; platform_machine == "aarch64"')
    wheel(tmp_path, "app", requires=requires, python=">=3.10")
    wheel(tmp_path, "old")
    wheel(tmp_path, "arm", "cp311-cp311-manylinux_2_28_aarch64")
    return ("--no-index", "--find-links", str(tmp_path))


@pytest.mark.parametrize(
    ("python", "glibc", "machine", "packages"),
    [
        pytest.param("3.11", "2.36", "x86_64", {"app"}, id="nothing-that-is-for-others"),
        pytest.param("3.10", "2.36", "x86_64", {"app", "old"}, id="markers-are-of-the-target-python"),
        pytest.param("3.11", "2.36", "aarch64", {"app", "arm"}, id="markers-are-of-the-target-machine"),
        pytest.param("3.11", "2.28", "aarch64", {"app", "arm"}, id="the-oldest-glibc-that-will-do"),
    ],
)
def test_pip_resolves_for_the_device_and_not_for_this_machine(
    matrix, index, python: str, glibc: str, machine: str, packages: set[str]
) -> None:
    resolution = matrix.resolve(matrix.System(python, glibc, machine), ["app"], index)
    assert set(resolution.packages) == packages, resolution.reason
    assert resolution.reason == ""


@pytest.mark.parametrize(
    ("python", "glibc", "said"),
    [
        pytest.param("3.11", "2.27", "No matching distribution found for arm", id="glibc-too-old"),
        pytest.param("3.12", "2.36", "No matching distribution found for arm", id="no-wheel-for-the-python"),
        pytest.param("3.8", "2.36", "app", id="python-too-old"),
    ],
)
def test_what_does_not_install_comes_with_the_words_of_pip(matrix, index, python: str, glibc: str, said: str) -> None:
    resolution = matrix.resolve(matrix.System(python, glibc, "aarch64"), ["app"], index)
    assert resolution.packages == {}
    assert said in resolution.reason
    assert "/" not in resolution.reason, "no place of this machine"


def test_the_tags_go_down_from_the_glibc_of_the_system(matrix) -> None:
    tags = matrix.platforms(matrix.System("3.11", "2.19", "aarch64"))
    assert tags == [
        "manylinux_2_19_aarch64",
        "manylinux_2_18_aarch64",
        "manylinux_2_17_aarch64",
        "manylinux2014_aarch64",
        "linux_aarch64",
    ]


@pytest.mark.parametrize(
    ("stderr", "said"),
    [
        ("WARNING: Location 'file:///x' is ignored\nERROR: No way\nERROR: None at all\n", "No way None at all"),
        ("ERROR: app @ file:///x/app.whl needs more\n", "app needs more"),
        ("ERROR: none (from versions: 1.0, 1.1, 2.0, 3.0)\n", "none (from versions: 1.0, ..., 3.0)"),
        ("ERROR: none (from versions: none)\n", "none (from versions: none)"),
        ("", "pip gave no reason"),
    ],
)
def test_a_reason_is_one_line_without_places(matrix, stderr: str, said: str) -> None:
    assert matrix.reason(stderr) == said


def test_each_distinct_system_is_asked_once(matrix) -> None:
    profiles = [load_profile(name) for name in profile_names()]
    wanted = [matrix.request(profile) for profile in profiles]
    assert None not in wanted
    assert len(set(wanted)) < len(wanted) / 2
    by_name = {profile.name: each for profile, each in zip(profiles, wanted, strict=True)}
    assert by_name["raspberry-pi-5"] == by_name["raspberry-pi-4"]
    assert by_name["jetson-orin-nano"].runtimes == ("onnxruntime>=1.20,<1.24", "ai-edge-litert>=2.0"), (
        "TensorRT is on no index"
    )
    assert matrix.with_newer_python(by_name["raspberry-pi-5"]) is None
    assert matrix.with_newer_python(by_name["jetson-nano"]).system == matrix.System("3.10", "2.27", "aarch64")


def test_a_profile_that_says_otherwise_than_pip_is_named(matrix) -> None:
    nano, pi = load_profile("jetson-nano"), load_profile("raspberry-pi-5")
    here, nowhere = matrix.Resolution({"edgeserve": "1"}), matrix.Resolution({}, "No way")
    found = {matrix.request(nano): nowhere, matrix.request(pi): here}
    assert matrix.disagreements([nano, pi], found) == []
    found = {matrix.request(nano): here, matrix.request(pi): nowhere}
    assert matrix.disagreements([nano, pi], found) == [
        "jetson-nano.toml says installable = false, pip says true",
        "raspberry-pi-5.toml says installable = true, pip says false",
    ]


def test_the_page_names_versions_reasons_and_ways_out(matrix) -> None:
    nano, pi = load_profile("jetson-nano"), load_profile("raspberry-pi-5")
    found = {
        matrix.request(nano): matrix.Resolution({}, "No way"),
        matrix.with_newer_python(matrix.request(nano)): matrix.Resolution({"edgeserve": "1", "onnxruntime": "1.23.2"}),
        matrix.request(pi): matrix.Resolution({"edgeserve": "1", "onnxruntime": "1.32.0", "numpy": "2.4.6"}),
        **{each: matrix.Resolution({}, "Not there") for each in matrix.OTHERS.values()},
    }
    lines = matrix.page([nano, pi], found, date="2026-01-01").splitlines()
    assert "1 of 2 profiles can be installed on their system's own Python." in lines
    assert [line for line in lines if line.startswith("| raspberry-pi-5")] == [
        "| raspberry-pi-5 | Debian GNU/Linux 12 (bookworm) | 3.11 | 2.36 | aarch64 | yes | 1.32.0 |  |  | 2.4.6 |  |"
    ]
    at = next(number for number, line in enumerate(lines) if line.startswith("- **jetson-nano**"))
    assert "pip: `No way`" in lines[at]
    assert "it installs: onnxruntime 1.23.2." in lines[at + 1]
    tables = [line.count("|") for line in lines if line.startswith("|")]
    assert len(set(tables)) == 2, "every row has the columns of its header"


def test_the_page_in_the_repository_is_about_the_shipped_profiles(matrix) -> None:
    text = matrix.OUTPUT.read_text()
    for name in profile_names():
        answer = "**no**" if load_profile(name).installable is False else "yes"
        (row,) = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
        assert f"| {answer} |" in row
    assert "://" not in text
