"""One serving process, found and kept alive; a program that only listens stands in its place."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgeserve.contracts.errors import DeviceError
from edgeserve.contracts.limits import BACKOFF_MAX_S, SERVING_LOAD_S, SERVING_SILENT_S
from edgeserve_agent.supervisor import Supervisor, _age_s, is_alive

pytestmark = pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs /proc")
SLEEPING = "import time; time.sleep(600)"


@pytest.fixture
def command(configure, tmp_path, monkeypatch):
    """A command line like that of the real serving process, for a package that only sleeps."""
    package = tmp_path / "stand_in" / "edgeserve_agent" / "serving"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").touch()
    (package / "__main__.py").write_text(SLEEPING)
    monkeypatch.setenv("PYTHONPATH", str(package.parent.parent))
    monkeypatch.chdir(package.parent.parent)  # `-m` looks here first
    return (sys.executable, "-m", "edgeserve_agent.serving", "--state-dir", str(configure().folder), "--threads", "1")


@pytest.fixture
def left_behind(command, eventually):
    """A serving process of an earlier life, which does not answer yet."""
    process = subprocess.Popen(command)
    eventually(lambda: b"edgeserve_agent.serving" in Path(f"/proc/{process.pid}/cmdline").read_bytes())
    yield process
    process.kill()
    process.wait()


def test_a_process_that_does_not_answer_yet_is_found_and_no_second_one_started(configure, command, left_behind):
    supervisor = Supervisor(configure(), command=command)
    supervisor.adopt()
    assert supervisor.poll(time.monotonic()) is None
    assert supervisor.pid == left_behind.pid


def test_a_process_with_other_settings_is_ended_and_started_anew(configure, command, left_behind, eventually):
    supervisor = Supervisor(configure(), command=(*command[:-1], "2"))
    supervisor.adopt()
    assert left_behind.wait(10) != 0
    supervisor.poll(time.monotonic())
    assert supervisor.pid not in (None, left_behind.pid)
    supervisor.stop(0.0)


def test_a_process_that_never_answers_is_ended(configure, command, left_behind, eventually):
    supervisor = Supervisor(configure(), command=command)
    supervisor.adopt()
    now = time.monotonic()
    supervisor.poll(now + SERVING_LOAD_S - 1)
    assert is_alive(left_behind.pid)
    supervisor.poll(now + SERVING_LOAD_S + 1)
    left_behind.wait(10)
    assert supervisor.poll(now + SERVING_LOAD_S + 1).how == "died"


def test_a_process_that_cannot_be_started_is_tried_again_later(configure):
    supervisor = Supervisor(configure(), command=("/no/such/python",))
    now = time.monotonic()
    with pytest.raises(DeviceError, match="cannot start the serving process"):
        supervisor.poll(now)
    supervisor.poll(now + 1)
    with pytest.raises(DeviceError):
        supervisor.poll(now + BACKOFF_MAX_S + 1)


def test_a_dead_child_that_nobody_waited_for_is_not_alive(eventually):
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    try:
        eventually(lambda: not is_alive(process.pid))
    finally:
        process.wait()


def test_an_old_process_that_does_not_answer_gets_no_new_time_to_load_in(configure, command, left_behind, monkeypatch):
    monkeypatch.setattr("edgeserve_agent.supervisor._age_s", lambda _pid: 3600.0)
    supervisor = Supervisor(configure(), command=command)
    supervisor.adopt()
    now = time.monotonic()
    supervisor.poll(now + SERVING_SILENT_S / 2)
    assert is_alive(left_behind.pid)
    assert supervisor.is_live(now + SERVING_SILENT_S / 2, silence_s=1.0)
    supervisor.poll(now + SERVING_SILENT_S + 1)
    left_behind.wait(10)


def test_the_age_of_a_process_is_known(left_behind):
    assert 0.0 < _age_s(left_behind.pid) < 60.0
    assert _age_s(2**30) == 0.0
