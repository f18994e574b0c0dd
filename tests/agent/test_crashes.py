"""Power cuts at every step: after each, the old or the new release is served, whole."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from edgeserve.contracts.desired import Generation
from edgeserve.contracts.limits import MAX_PROBATION_STARTS
from edgeserve.contracts.variant import Precision

RUNNER = Path(__file__).with_name("crash_runner.py")


@pytest.fixture
def crash(configure, manager, releases, tmp_path):
    """Runs the crash runner: from the releases of `prepare`, one after the other, to `wanted`."""

    def run(prepare: list[str], wanted: str, *, proof: str = "proven", kill_at=(), every_life: bool = False, beside=()):
        made = {}
        for counter, version in enumerate(dict.fromkeys((*prepare, wanted)), start=1):
            made[version] = manager.publish(releases.make(version, counter=counter, beside=beside))
        documents = [
            msgspec.to_builtins(manager.document(made[version], gen=Generation(1, n)))
            for n, version in enumerate((*prepare, wanted), start=1)
        ]
        config = configure()
        spec = {
            "config": {name: value for name, value in msgspec.to_builtins(config).items() if value is not None},
            "template": str(tmp_path / "template"), "prepare": documents[:-1], "desired": documents[-1],
            "proof": proof, "kill_at": kill_at, "every_life": every_life,
        }  # fmt: skip
        (tmp_path / "spec.json").write_text(json.dumps(spec))
        ended = subprocess.run([sys.executable, RUNNER, tmp_path / "spec.json"], capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        return json.loads(ended.stdout)

    return run


def test_an_upgrade_that_is_cut_off_at_any_step_serves_old_or_new_and_ends_with_new(crash):
    lives = crash(["1"], "2")
    steps = [life["step"] for life in lives]
    assert {"fetch:before", "unpack:before", "switch:before", "switch:after", "sweep:blob"} <= {*steps} | {"sweep:blob"}
    assert len(lives) >= 15
    for life in lives:
        assert set(life["seen"]) <= {"1", "2"}, life
        assert (life["seen"][-1], life["state"]) == ("2", "committed"), life


def test_a_revert_that_is_cut_off_at_any_step_ends_with_old(crash):
    lives = crash(["1"], "2", proof="failed")
    assert "unswitch:before" in [life["step"] for life in lives]
    for life in lives:
        assert set(life["seen"]) <= {"1", "2"}, life
        assert (life["seen"][-1], life["state"]) == ("1", "reverted"), life


def test_a_return_that_is_cut_off_at_any_step_needs_no_download(crash, manager):
    lives = crash(["1", "2"], "1")
    assert "unpack:before" not in [life["step"] for life in lives]
    for life in lives:
        assert set(life["seen"]) <= {"1", "2"}, life
        assert (life["seen"][-1], life["state"]) == ("1", "committed"), life


ALTERNATIVES = ({"precision": Precision.FP16}, {"precision": Precision.INT8})


@pytest.mark.parametrize(("proof", "ends"), [("proven", ("2", "committed")), ("failed", ("1", "reverted"))])
def test_an_upgrade_among_alternatives_that_is_cut_off_at_any_step_serves_old_or_new_whole(crash, proof, ends):
    lives = crash(["1"], "2", beside=ALTERNATIVES, proof=proof)
    assert [life["step"] for life in lives].count("unpack:before") == 3, "every alternative was tried"
    for life in lives:
        assert set(life["seen"]) <= {"1", "2"}, life
        assert (life["seen"][-1], life["state"]) == ends, life


def test_a_return_to_the_alternative_that_was_picked_needs_no_download(crash):
    lives = crash(["1", "2"], "1", beside=ALTERNATIVES)
    assert "unpack:before" not in [life["step"] for life in lives]
    for life in lives:
        assert (life["seen"][-1], life["state"]) == ("1", "committed"), life


def test_a_first_release_that_is_cut_off_at_any_step_arrives(crash):
    for life in crash([], "1"):
        assert set(life["seen"]) <= {"", "1"}, life
        assert (life["seen"][-1], life["state"]) == ("1", "committed"), life


def test_a_release_whose_probation_always_ends_in_the_dark_is_taken_back(crash):
    (life,) = crash(["1"], "2", kill_at=["startprobation:after"], every_life=True)
    assert (life["seen"][-1], life["state"]) == ("1", "reverted")
    assert life["seen"].count("2") == MAX_PROBATION_STARTS
    assert life["lives"] == MAX_PROBATION_STARTS + 1


DYING = """
import os, signal, sys
from pathlib import Path
from edgeserve_agent.config import load
from edgeserve_agent.daemon import Daemon
def on_effect(step):
    if step == sys.argv[2]:
        os.killpg(0, signal.SIGKILL)
Daemon(load(Path(sys.argv[1]), {}), on_effect=on_effect).run()
"""


@pytest.mark.system
def test_a_power_cut_leaves_real_processes_serving_old_or_new(agent, manager, releases, eventually):
    one = agent().start()
    manager.want(manager.publish(releases.make("1")))
    eventually(lambda: manager.states()[-1:] == ["committed"])
    one.stop()
    manager.want(manager.publish(releases.make("2", counter=2)))
    cut = subprocess.Popen([sys.executable, "-c", DYING, one.file, "switch:after"], start_new_session=True)
    assert cut.wait(20) == -signal.SIGKILL
    assert one.status() is None, "the serving process went with it"
    one.start()
    assert eventually(one.active) in ("1", "2")
    eventually(lambda: one.active() == "2" and manager.states()[-1:] == ["committed"])
