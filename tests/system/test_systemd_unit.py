"""The units as systemd's own tools judge them; nothing here needs a running systemd."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).resolve().parents[2] / "agent" / "systemd"
NAMES = ("edgeserve-agent.service", "edgeserve-first-release.service")
MAX_EXPOSURE = 30
"""Tenths, as `systemd-analyze security --threshold` takes them: 3.0 of 10 is "OK", a bare unit has 9.6."""


@pytest.fixture(scope="module")
def analyze():
    tool = shutil.which("systemd-analyze")
    if tool is None:
        reason = "systemd-analyze is not installed (package systemd)"
        if os.environ.get("EDGESERVE_REQUIRE_SYSTEMD"):
            pytest.fail(reason)
        pytest.skip(reason)

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [tool, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    return run


@pytest.fixture(params=["as it is", "with accelerator.conf"])
def folder(request, tmp_path):
    """The units with a program that is there in the place of the agent, which `verify` looks for."""
    for name in NAMES:
        text = (UNITS / name).read_text()
        assert len(re.findall(r"^ExecStart=/opt/edgeserve/current/bin/", text, re.MULTILINE)) == 1
        (tmp_path / name).write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/sh", text, flags=re.MULTILINE))
    if request.param != "as it is":
        drop_ins = tmp_path / f"{NAMES[0]}.d"
        drop_ins.mkdir()
        shutil.copy(UNITS / "accelerator.conf", drop_ins)
    return tmp_path


def test_systemd_has_nothing_to_say_about_the_units(analyze, folder):
    done = analyze("verify", "--man=no", *(folder / name for name in NAMES))
    assert (done.stderr, done.stdout, done.returncode) == ("", "", 0)  # it ends with 0 on an unknown key, too


def test_an_unknown_key_would_be_seen(analyze, folder):
    unit = folder / NAMES[0]
    unit.write_text(unit.read_text().replace("WatchdogSec=", "WatchdogSecs="))
    assert "WatchdogSecs" in analyze("verify", "--man=no", unit).stderr


@pytest.mark.parametrize("name", NAMES)
def test_the_units_are_confined(analyze, folder, name):
    done = analyze("security", "--offline=true", f"--threshold={MAX_EXPOSURE}", folder / name)
    assert done.returncode == 0, done.stdout


def test_a_unit_that_is_not_confined_would_be_seen(analyze, tmp_path):
    unit = tmp_path / "bare.service"
    unit.write_text("[Service]\nExecStart=/bin/sh\n")
    assert analyze("security", "--offline=true", f"--threshold={MAX_EXPOSURE}", unit).returncode == 1


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("Type", "notify", "active means that it serves"),
        ("NotifyAccess", "main", "no child speaks for the agent"),
        ("KillMode", "process", "a control part that dies leaves its server at work"),
        ("RuntimeDirectoryPreserve", "restart", "and its sockets"),
        ("OOMPolicy", "continue", "one that dies for memory does not end the other"),
        ("Restart", "always", "a device always serves"),
    ],
)
def test_what_the_agent_relies_on_is_set(key, value, why):
    assert re.findall(rf"^{key}=(.*)$", (UNITS / NAMES[0]).read_text(), re.MULTILINE) == [value], why
