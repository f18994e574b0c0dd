"""`edgeserve agent` as a user calls it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest


@pytest.fixture
def edgeserve(state_dir):
    def run(*arguments, code=0):
        ended = subprocess.run(
            [sys.executable, "-m", "edgeserve", "agent", *map(str, arguments), "--state-dir", str(state_dir)],
            capture_output=True, text=True,
        )  # fmt: skip
        assert ended.returncode == code, ended.stderr
        assert "Traceback" not in ended.stderr
        return ended.stdout + ended.stderr

    return run


def test_a_device_without_a_fleet_installs_serves_and_rolls_back(edgeserve, agent, releases, eventually):
    one = agent(manager=None)

    def first_model():
        return json.loads(edgeserve("status", "--json"))["models"][0]

    for counter, version in enumerate(("1", "2"), start=1):
        release = releases.make(version, counter=counter)
        assert "probation" in edgeserve("install", release.blobs.location.parent, "--config", one.file)
        one.start()
        eventually(lambda: one.active() == version and not one.journal().in_flight())  # noqa: B023 - called now
        one.stop()
    model = first_model()
    assert (model["active"], model["previous"], model["state"]) == ("2", "1", "committed")
    assert "probation" in edgeserve("rollback", "digits")
    assert first_model()["active"] == "1"


def test_what_cannot_be_done_says_why(edgeserve, releases, tmp_path):
    assert "hint:" in edgeserve("rollback", "digits", code=2)
    assert "error:" in edgeserve("install", tmp_path / "nothing", code=2)
    bad = releases.make("1", good=False)
    assert "golden set" in edgeserve("install", bad.blobs.location.parent, code=1)
