"""`edgeserve devices probe`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import pytest

from edgeserve.cli.inventory import rows
from edgeserve.cli.main import main
from edgeserve_devices.inventory import inventory
from edgeserve_devices.probe import probe

TREES = Path(__file__).parent / "trees"


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["devices", "probe", *arguments])
    captured = capsys.readouterr()
    return ended.value.code or 0, captured.out, captured.err


@pytest.mark.parametrize(
    ("tree", "shown"),
    [
        ("raspberry-pi-5", ["82.7 °C (critical 110)", "soft temperature limit (firmware): now", "512.0 MiB, zstd"]),
        ("jetson-orin-nano", ["36.4.3 (JetPack 6)", "25W", "VDD_IN (ina3221): 9.25 W", "up to 1020 MHz"]),
        ("intel-core-ultra", ["4 x P-core, 400 to 4800 MHz", "long_term limit 15 W", "up to 1400 MHz, asleep"]),
        ("orange-pi-5", ["4 x Cortex-A76, 408 to 2400 MHz, limited to 1608 MHz", "driver rknpu 0.9.8"]),
        ("container-cgroup-v2", ["512.0 MiB, 118.2 MiB in use (cgroup v2)", "1.5 (affinity: 4, quota: 1.5"]),
        ("container-cgroup-v1", ["256.0 MiB, 93.8 MiB in use (cgroup v1)", "signs of docker"]),
    ],
)
def test_a_recorded_board_is_shown_with_units(capsys, tree: str, shown: list[str]) -> None:
    code, text, _errors = run(capsys, "--root", str(TREES / tree))
    assert code == 0
    assert [words for words in shown if words not in text] == []


def test_an_empty_folder_is_shown_as_unknown(capsys, tmp_path: Path) -> None:
    code, text, _errors = run(capsys, "--root", str(tmp_path))
    assert code == 0
    assert "none fits" in text
    assert text.count("unknown") >= 8


def test_a_script_gets_what_is_reported_and_beside_it_the_inventory(capsys) -> None:
    code, text, _errors = run(capsys, "--root", str(TREES / "orange-pi-5"), "--json")
    document = json.loads(text)
    assert code == 0
    assert (document["cores"], document["architecture"], document["simulated"]) == (8, "arm64", False)
    assert [kind["processors"] for kind in document["inventory"]["cpu"]["kinds"]] == [4, 4]
    assert document["inventory"]["runtimes"] is None


def test_runtimes_are_asked_on_request(capsys) -> None:
    code, text, _errors = run(capsys, "--json", "--runtimes")
    answers = {each["name"]: each for each in json.loads(text)["inventory"]["runtimes"]}
    assert code == 0
    assert "CPUExecutionProvider" in answers["onnxruntime"]["devices"]


def test_a_file_that_cannot_be_read_is_shown_with_the_reason(capsys, tmp_path: Path) -> None:
    place = tmp_path / "proc/cpuinfo"
    place.parent.mkdir()
    place.symlink_to("cpuinfo")
    text = run(capsys, "--root", str(tmp_path))[1]
    assert re.search(r"not read +/proc/cpuinfo +Too many levels of symbolic links\n", text)


@pytest.mark.parametrize(
    ("path", "reason", "remedy"),
    [
        ("sys/class/powercap/intel-rapl:0/energy_uj", "Permission denied", "energy counters are for root"),
        ("dev/accel/accel0", "Permission denied", "usermod -aG render"),
        ("dev/dri/renderD128", "Permission denied", "usermod -aG render"),
        ("sys/kernel/debug/rknpu/version", "Permission denied", "debugfs"),
        ("sys/class/powercap/intel-rapl:0/energy_uj", "No data available", ""),
        ("proc/cpuinfo", "Permission denied", ""),
    ],
)
def test_what_may_not_be_read_comes_with_what_to_do(tmp_path: Path, path: str, reason: str, remedy: str) -> None:
    found = msgspec.structs.replace(inventory(tmp_path), problems={path: reason})
    group, shown, said = rows(probe(tmp_path), found)[-1]
    assert (group, shown) == ("not read", f"/{path}")
    assert said == reason if not remedy else said.startswith(f"{reason}: ") and remedy in said


def test_a_folder_that_is_not_there_is_refused(capsys, tmp_path: Path) -> None:
    code, text, errors = run(capsys, "--root", str(tmp_path / "gone"))
    assert (code, text) == (2, "")
    assert "gone is not a folder" in errors
