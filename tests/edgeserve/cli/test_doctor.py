from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from edgeserve.cli.main import main
from edgeserve.doctor import environment
from edgeserve.doctor.findings import Environment


@pytest.fixture
def machine(monkeypatch):
    """Let the doctor see a machine of our making; the real one is read by tests/edgeserve/doctor."""

    def set_up(**change: object) -> None:
        healthy = Environment(
            python=(3, 11, 7), pointer_bits=64, edgeserve="0.1.0", packages={"numpy": "2.0"}, mosquitto="2.0.11",
            mosquitto_path="/usr/sbin/mosquitto", folder="/data", free_bytes=1 << 40, now=2.0, installed_at=1.0,
        )  # fmt: skip
        monkeypatch.setattr(environment, "read_environment", lambda _folder: dataclasses.replace(healthy, **change))

    return set_up


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["doctor", *arguments])
    captured = capsys.readouterr()
    return ended.value.code or 0, captured.out, captured.err


def test_a_healthy_machine_ends_with_0(machine, capsys) -> None:
    machine()
    code, shown, _errors = run(capsys)
    assert code == 0
    assert "2.0.11 at /usr/sbin/mosquitto" in shown


def test_something_broken_ends_with_1_and_says_what_to_do(machine, capsys) -> None:
    machine(packages={"onnxruntime": "1.32", "onnxruntime-gpu": "1.31"})
    code, shown, _errors = run(capsys)
    assert code == 1
    assert "! onnxruntime and onnxruntime-gpu: pip uninstall onnxruntime onnxruntime-gpu" in shown


def test_what_is_not_installed_is_no_failure(machine, capsys) -> None:
    machine(mosquitto_error="the MQTT broker mosquitto is not installed")
    code, shown, _errors = run(capsys)
    assert code == 0
    assert "- mosquitto: apt install mosquitto" in shown


def test_scripts_get_json(machine, capsys) -> None:
    machine(free_bytes=0)
    code, shown, _errors = run(capsys, "--json")
    document = json.loads(shown)
    assert code == 1
    assert document["ok"] is False
    disk = next(finding for finding in document["findings"] if finding["subject"] == "disk")
    assert disk["verdict"] == "broken"
    assert disk["hint"]


def test_the_machine_of_the_tests_is_fit_and_its_home_stays_untouched(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    code, shown, _errors = run(capsys, "--json")
    assert code == 0, shown
    assert list(tmp_path.iterdir()) == []
