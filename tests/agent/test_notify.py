"""What the service manager hears, at a real datagram socket, from the announcer alone and from a whole agent."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeserve.contracts.desired import Generation, ModelTarget
from edgeserve.contracts.errors import InputError
from edgeserve.contracts.limits import MAX_NOTIFY_STATUS_BYTES, SERVING_SILENT_S, START_EXTENSION_S
from edgeserve_agent.control import ServedRelease, ServingStatus
from edgeserve_agent.deployment import Record, State
from edgeserve_agent.notify import Announcer, Condition, Notifier, condition

READY = Condition(ready=True, live=True, status="serves digits 1")
STARTING = Condition(ready=False, live=True, status="starting")
SILENT = Condition(ready=False, live=False, status="hangs")
EXTENSION = f"EXTEND_TIMEOUT_USEC={START_EXTENSION_S * 1e6:.0f}"


class ServiceManager:
    """The receiving end of sd_notify(3)."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.channel.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self.heard: list[str] = []
        self.awaited = 0
        """Lines up to the last one that was waited for."""

    def hear(self, within_s: float = 0.0) -> list[str]:
        """Lines of the datagrams that are there now, or else of the next one that comes."""
        lines: list[str] = []
        self.channel.settimeout(within_s)
        try:
            while True:
                lines += self.channel.recv(4096).decode().split("\n")
                self.channel.settimeout(0.0)
        except (BlockingIOError, TimeoutError):
            self.heard += lines
            return lines

    def wait_for(self, beginning: str, within_s: float = 30.0) -> str:
        """The next line that begins so, after the one that was waited for before."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            for number, line in enumerate(self.heard[self.awaited :], start=self.awaited + 1):
                if line.startswith(beginning):
                    self.awaited = number
                    return line
            self.hear(0.2)
        raise AssertionError(f"no {beginning} came; heard {self.heard[-20:]}")


@pytest.fixture(params=["path", "abstract"])
def service_manager(request, state_dir):
    abstract = request.param == "abstract"
    if abstract and sys.platform != "linux":
        pytest.skip("abstract sockets are Linux's")
    made = ServiceManager(f"@es-{secrets.token_hex(8)}" if abstract else str(state_dir / "notify"))
    yield made
    made.channel.close()


def announcer(service_manager, watchdog_s: float = 60.0) -> Announcer:
    return Announcer(Notifier(service_manager.address, watchdog_s=watchdog_s))


def test_what_is_new_is_told_once_and_the_watchdog_every_half_period(service_manager):
    one = announcer(service_manager)
    one.tell(100.0, READY)
    assert service_manager.hear() == ["READY=1", "STATUS=serves digits 1", "WATCHDOG=1"]
    one.tell(129.9, READY)
    assert service_manager.hear() == []
    one.tell(130.0, READY)
    assert service_manager.hear() == ["WATCHDOG=1"]
    one.stopping()
    assert service_manager.hear()[0] == "STOPPING=1"


def test_a_start_that_takes_long_asks_for_more_time_and_one_that_hangs_does_not(service_manager):
    one = announcer(service_manager)
    one.tell(0.0, STARTING)
    assert service_manager.hear() == ["STATUS=starting", EXTENSION]
    one.tell(START_EXTENSION_S / 2, STARTING)
    assert service_manager.hear() == [EXTENSION]
    one.tell(START_EXTENSION_S, SILENT)
    assert service_manager.hear() == ["STATUS=hangs"]
    one.tell(START_EXTENSION_S + 1, READY)
    assert service_manager.hear() == ["READY=1", "STATUS=serves digits 1", "WATCHDOG=1"]


def test_a_server_that_hangs_silences_the_watchdog_until_it_answers_again(service_manager):
    one = announcer(service_manager, watchdog_s=2.0)
    one.tell(0.0, READY)
    service_manager.hear()
    for now in (1.0, 2.0, 9.0):
        one.tell(now, SILENT)
    assert service_manager.hear() == ["STATUS=hangs"]
    one.tell(9.1, READY)
    assert service_manager.hear() == ["STATUS=serves digits 1", "WATCHDOG=1"]


def test_without_a_watchdog_there_are_no_pings_and_the_silence_allowed_is_our_own(service_manager):
    one = announcer(service_manager, watchdog_s=0.0)
    one.tell(0.0, READY)
    one.tell(1e6, READY)
    assert service_manager.hear() == ["READY=1", "STATUS=serves digits 1"]
    assert one.silence_s == SERVING_SILENT_S
    assert announcer(service_manager, watchdog_s=10.0).silence_s == 5.0


def test_a_line_of_status_stays_one_line_within_the_bound(service_manager):
    announcer(service_manager).tell(0.0, Condition(ready=True, live=True, status="ü\nREADY=0\n" * 500))
    status = next(line for line in service_manager.hear() if line.startswith("STATUS="))
    assert len(status.encode()) <= MAX_NOTIFY_STATUS_BYTES + len("STATUS=")
    assert "READY=0" not in service_manager.heard


def test_a_service_manager_that_does_not_listen_is_no_error_and_hears_it_all_when_it_does(state_dir):
    path = str(state_dir / "later")
    one = Announcer(Notifier(path, watchdog_s=2.0))
    one.tell(0.0, READY)
    late = ServiceManager(path)
    one.tell(0.1, READY)
    assert late.hear() == ["READY=1", "STATUS=serves digits 1", "WATCHDOG=1"]
    late.channel.close()


def test_a_service_manager_that_does_not_read_stops_nobody(state_dir):
    deaf = ServiceManager(str(state_dir / "deaf"))
    notifier = Notifier(deaf.address)
    taken = [notifier.send("STATUS=x") for _ in range(100_000)]
    assert taken[0]
    assert not taken[-1]  # the queue is full, and nothing waited for it
    deaf.channel.close()


@given(
    steps=st.lists(
        st.tuples(st.floats(0, 100), st.booleans(), st.booleans(), st.sampled_from(["a", "b"])), min_size=1, max_size=40
    )
)
def test_readiness_is_said_once_and_a_ping_is_never_sent_for_one_that_hangs(steps):
    service_manager = ServiceManager(f"@es-{secrets.token_hex(8)}")
    try:
        one = announcer(service_manager, watchdog_s=20.0)
        now, ready, pinged = 0.0, False, float("-inf")
        for after, becomes_ready, live, status in steps:
            now += after
            one.tell(now, Condition(ready=becomes_ready, live=live, status=status))
            lines = service_manager.hear()
            assert ("READY=1" in lines) == (becomes_ready and not ready)
            ready |= becomes_ready
            if ready and live and now - pinged >= 10.0 and pinged >= 0:
                assert "WATCHDOG=1" in lines
            if "WATCHDOG=1" in lines:
                assert live
                assert ready
                pinged = now
    finally:
        service_manager.channel.close()


@pytest.mark.parametrize(
    ("environment", "watchdog_s"),
    [
        ({}, 0.0),
        ({"NOTIFY_SOCKET": "/run/x"}, 0.0),
        ({"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "1500000"}, 1.5),
        ({"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "1500000", "WATCHDOG_PID": "7"}, 1.5),
        ({"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "1500000", "WATCHDOG_PID": "8"}, 0.0),
        ({"WATCHDOG_USEC": "1500000"}, 0.0),
    ],
)
def test_the_variables_are_taken_so_that_children_do_not_get_them(environment, watchdog_s):
    left = {**environment, "PATH": "/bin"}
    assert Notifier.take(left, pid=7).watchdog_s == watchdog_s
    assert left == {"PATH": "/bin"}


@pytest.mark.parametrize(
    "environment", [{"NOTIFY_SOCKET": "vsock:2:1"}, {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1e6"}]
)
def test_variables_that_systemd_would_not_set_are_refused_with_a_hint(environment):
    with pytest.raises(InputError) as refused:
        Notifier.take(dict(environment), pid=1)
    assert refused.value.hint


def test_without_a_service_manager_nothing_is_sent():
    assert not Notifier().send("READY=1")


SERVED = ServedRelease(
    model="digits", version="2", release="r", variant="v", active=True, executing_device="CPU"
)  # fmt: skip
GEN = Generation(1, 1)
TARGET = ModelTarget(model="kws", release="sha256:" + "0" * 64, version="3", counter=3, index_size=1, probation_s=0.0)


@pytest.mark.parametrize(
    ("served", "live", "problem", "ready", "status"),
    [
        (None, True, "", False, "starting the serving process"),
        (None, True, "it died", False, "starting the serving process; it died"),
        (ServingStatus(pid=1, started="x", http_url="u"), True, "", True, "serves no model at u"),
        (ServingStatus(pid=1, started="x", http_url="u", starting=True), True, "", False, "loading models at u"),
        (ServingStatus(pid=1, started="x", http_url="u", releases=(SERVED,)), True, "", True, "serves digits 2 at u"),
        (
            ServingStatus(pid=1, started="x", http_url="u", releases=(SERVED,)), False, "", False,
            "the serving process does not answer",
        ),
    ],
)  # fmt: skip
def test_the_condition_says_in_words_what_the_agent_does(served, live, problem, ready, status):
    assert condition(served, live=live, records=(), problem=problem) == Condition(ready=ready, live=live, status=status)


def test_a_deployment_under_way_is_told():
    records = [
        Record(target=TARGET, gen=GEN, probation_s=0.0, state=state) for state in (State.FETCHING, State.COMMITTED)
    ]
    assert condition(None, live=True, records=records, problem="").status.endswith("; kws 3: fetching")


@pytest.mark.system
def test_the_watchdog_of_a_real_agent_follows_its_server(agent, state_dir, releases, manager, monkeypatch):
    told = ServiceManager(str(state_dir / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", told.address)
    monkeypatch.setenv("WATCHDOG_USEC", "6000000")
    try:
        one = agent().start()
        told.wait_for("READY=1")
        told.wait_for("WATCHDOG=1")
        assert told.heard.index("READY=1") < told.heard.index("WATCHDOG=1")
        server = one.status().pid
        assert b"NOTIFY_SOCKET" not in Path(f"/proc/{server}/environ").read_bytes()
        manager.want(manager.publish(releases.make("1")))
        told.wait_for("STATUS=serves digits 1 at http://127.0.0.1:")
        told.wait_for("WATCHDOG=1")

        os.kill(server, signal.SIGSTOP)
        told.wait_for("STATUS=the serving process does not answer")
        time.sleep(7.0)  # more than a period of the watchdog
        told.hear()
        assert "WATCHDOG=1" not in told.heard[told.awaited :]
        os.kill(server, signal.SIGCONT)
        told.wait_for("STATUS=serves digits 1")
        told.wait_for("WATCHDOG=1")
        assert one.status().pid == server

        assert one.stop() == 0
        told.wait_for("STOPPING=1")
    finally:
        told.channel.close()
