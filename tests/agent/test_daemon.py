"""Whole agent processes against a real HTTP manager, with the real serving process and no broker."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import msgspec
import pytest

from edgeserve.contracts.telemetry import decode_stats
from edgeserve_agent.supervisor import is_alive

pytestmark = pytest.mark.system


def test_the_life_of_a_device(agent, manager, releases, eventually):
    one = agent().start()
    first = manager.publish(releases.make("1"))
    manager.want(first)
    eventually(lambda: manager.states()[-1:] == ["committed"])
    assert manager.states() == ["fetching", "staged", "activating", "probation", "committed"]
    assert one.active() == "1"

    # An upgrade.
    manager.want(manager.publish(releases.make("2", counter=2)))
    eventually(lambda: one.active() == "2" and manager.states()[-1] == "committed")
    report = eventually(lambda: manager.reported if manager.reported.models[0].version == "2" else None)
    model = report.models[0]
    assert (model.target, model.precision, model.executing_device) == ("null", "fp32", "null")
    assert (model.previous, model.state.value) == (first.release, "committed")
    assert model.latency_ms > 0
    assert report.http_url.startswith("http://127.0.0.1:")

    # A release that does not reproduce its golden set is refused, and not tried again.
    bad = manager.publish(releases.make("3", counter=3, good=False))
    manager.want(bad)
    eventually(lambda: manager.states()[-1] == "rejected")
    assert "golden set is not reproduced" in manager.events[-1].reason
    eventually(lambda: manager.reported.quarantined == (bad.release,))
    manager.want(bad)
    eventually(lambda: manager.reported.gen_seen.n == manager.n)
    assert one.active() == "2"
    assert manager.states().count("rejected") == 1

    # The fleet takes the second release back: no byte is fetched.
    asked = len(manager.gets)
    manager.want(first)
    eventually(lambda: one.active() == "1" and manager.states()[-1] == "committed")
    assert manager.gets[asked:] == []

    # The control part dies; the server does not notice, and is found again.
    pid = one.status().pid
    one.kill()
    assert one.active() == "1"
    epoch = manager.reported.fence.epoch
    one.start()
    eventually(lambda: manager.reported.fence.epoch == epoch + 1)
    assert one.status().pid == pid

    eventually(lambda: manager.stats)
    assert decode_stats(manager.stats[-1], limit=1 << 16).device == "default.pi-1"

    # SIGTERM ends both.
    assert one.stop() == 0
    assert not is_alive(pid)


def test_a_server_that_dies_in_probation_takes_its_release_with_it(agent, manager, releases, eventually):
    one = agent().start()
    manager.want(manager.publish(releases.make("1")))
    eventually(lambda: manager.states()[-1:] == ["committed"])
    target = manager.publish(releases.make("2", counter=2))
    manager.want(msgspec.structs.replace(target, probation_s=600.0))
    eventually(lambda: one.active() == "2" and manager.states()[-1] == "probation")
    os.kill(one.status().pid, signal.SIGSEGV)
    eventually(lambda: manager.states()[-1] == "reverted")
    assert "SIGSEGV" in manager.events[-1].reason
    eventually(lambda: one.active() == "1")
    assert one.slots().active.version == "1"
    eventually(lambda: manager.reported.quarantined == (target.release,))

    # Then the journal is damaged: a new installation, which still serves and obeys.
    before = manager.reported.fence.install_id
    one.stop()
    (one.config.folder / "journal.json").write_bytes(b"\0" * 100)
    one.start()
    eventually(lambda: manager.reported.fence.install_id != before)
    eventually(lambda: one.active() == "2")  # it serves 1 until it obeys, which may be over before anyone looks
    assert one.config.folder.joinpath("journal.json.damaged-1").exists()
    assert "damaged" in manager.reported.error or manager.reported.gen_seen.n == manager.n


def test_a_device_that_polls_refuses_a_halted_release_and_takes_one_on_probation_back(
    agent, manager, releases, eventually
):
    one = agent().start()
    manager.want(manager.publish(releases.make("1")))
    eventually(lambda: manager.states()[-1:] == ["committed"])

    # Halted before it is offered: the list is obeyed first, so no byte is fetched.
    second = manager.publish(releases.make("2", counter=2))
    asked = len(manager.gets)
    manager.halt(second.release)
    manager.want(second)
    eventually(lambda: manager.states()[-1] == "rejected")
    assert manager.events[-1].reason == "halted by the fleet"
    assert (manager.gets[asked:], one.active()) == ([], "1")

    # Halted while it is on probation; the desired document still wants it.
    third = msgspec.structs.replace(manager.publish(releases.make("3", counter=3)), probation_s=600.0)
    manager.want(third)
    eventually(lambda: one.active() == "3" and manager.states()[-1] == "probation")
    manager.halt(second.release, third.release)
    eventually(lambda: manager.states()[-1] == "reverted")
    assert manager.events[-1].reason == "halted by the fleet"
    eventually(lambda: one.active() == "1")


def test_without_an_answer_about_halted_releases_nothing_wanted_is_obeyed(agent, manager, releases, eventually):
    one = agent().start()
    eventually(lambda: manager.reported)
    manager.refuse = "halt"
    manager.want(manager.publish(releases.make("1")))
    eventually(lambda: "question for halt with status 500" in manager.reported.error)
    assert (manager.states(), one.active()) == ([], "")
    manager.refuse = ""
    eventually(lambda: manager.states()[-1:] == ["committed"])
    eventually(lambda: manager.reported.error == "")


def test_an_order_that_could_not_be_saved_is_not_lost_and_damaged_slots_stop_no_server(
    agent, manager, releases, eventually
):
    one = agent().start()
    eventually(lambda: manager.reported)
    journal = one.config.folder / "journal.json"
    journal.unlink()
    journal.mkdir()  # no file can be renamed over a folder
    manager.want(manager.publish(releases.make("1")))
    eventually(lambda: "journal.json" in manager.reported.error)
    journal.rmdir()
    eventually(lambda: one.active() == "1" and manager.states()[-1:] == ["committed"])

    # The next life of the control part cannot start; what answers goes on.
    pid = one.status().pid
    one.kill()
    slots = one.config.folder / "slots.json"
    slots.write_bytes(b"\0" * 100)
    assert one.start().process.wait(20) == 1
    assert "cannot read" in one.log.read_text()
    assert (one.active(), one.status().pid) == ("1", pid)


def test_a_port_in_use_is_reported_and_waited_for(agent, manager, eventually):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        one = agent(serving={"http": address}).start()
        eventually(lambda: manager.reported and "serving process" in manager.reported.error)
    eventually(lambda: manager.reported.http_url == f"http://{address}")
    eventually(lambda: manager.reported.error == "")
    again = subprocess.run(
        [sys.executable, "-m", "edgeserve_agent", "--config", one.file], capture_output=True, text=True
    )
    assert again.returncode == 2
    assert "another agent runs" in again.stderr
    assert "hint:" in again.stderr


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"serving": {"http": "0.0.0.0:0"}}, "0.0.0.0"),
        ({"device": {"profile": "no-such-board"}}, "no-such-board"),
        ({"manager": {"key": "rsa:x"}}, "public key"),
    ],
    ids=["public address", "unknown profile", "no key"],
)
def test_settings_that_cannot_work_end_the_agent_with_code_2(agent, eventually, sections, words):
    one = agent(**sections).start()
    assert one.process.wait(20) == 2
    assert words in one.log.read_text()
    assert "Traceback" not in one.log.read_text()
