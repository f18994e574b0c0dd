from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from edgeserve.contracts import topics
from edgeserve.contracts.errors import DeviceError, InputError
from edgeserve.link import mosquitto
from edgeserve.link.mosquitto import Mosquitto, find_mosquitto, mosquitto_version

OWNER_SCRIPT = """
import sys, time
from pathlib import Path
from edgeserve.link.mosquitto import Mosquitto
broker = Mosquitto(Path(sys.argv[1]))
broker.start()
print(broker.pid, broker.port, flush=True)
time.sleep(60)
"""


@pytest.fixture
def taken_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def executable(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


class TestUsers:
    def test_a_user_gets_in_without_a_restart_and_nobody_is_disturbed(self, broker, peer, until) -> None:
        device = peer("default.a")
        pid = broker.pid
        broker.add_user("default.new", "new-secret")
        new = peer("default.new")
        assert broker.pid == pid
        assert device.connects() == 1
        assert device.publish(topics.reported("default.a"), b"still there").wait(5)
        assert new.publish(topics.reported("default.new"), b"in").wait(5)

    def test_a_changed_password_shuts_out_who_uses_the_old_one(self, broker, peer, until) -> None:
        device = peer("default.a")
        broker.add_user("default.a", "changed")
        until(lambda: any(state.reason.startswith("not authorised") for state in device.states), "it is shut out")
        assert peer("default.a", client_id="again", password="changed").link.connected

    def test_a_removed_user_is_dropped_and_stays_out(self, broker, peer, until) -> None:
        device = peer("default.a")
        other = peer("default.b")
        broker.remove_user("default.a")
        until(lambda: any(state.reason.startswith("not authorised") for state in device.states), "it is shut out")
        assert other.link.connected
        assert other.connects() == 1
        broker.remove_user("default.a")

    @pytest.mark.parametrize("password", ["x", "with:colon", "with space", "naïve ☃", "$7$101$", "p" * 512])
    def test_the_broker_understands_our_password_file(self, broker, peer, password: str) -> None:
        broker.add_user("default.a", password)
        assert peer("default.a", password=password).link.connected

    def test_users_outlast_the_object_that_added_them(self, broker, peer) -> None:
        broker.stop()
        folder = broker.log_path.parent
        with Mosquitto(folder, port=broker.port):
            assert peer("default.a").link.connected

    def test_passwords_are_salted_and_readable_by_the_owner_only(self, broker) -> None:
        broker.add_users({"default.a": "same", "default.b": "same"})
        path = broker.log_path.parent / "passwords"
        lines = dict(line.split(":", 1) for line in path.read_text().splitlines())
        assert lines["default.a"] != lines["default.b"]
        assert "same" not in path.read_text()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700

    @pytest.mark.parametrize(
        ("username", "password"),
        [
            pytest.param("default.+", "x", id="wildcard"),
            pytest.param("#", "x", id="hash"),
            pytest.param("default.a/b", "x", id="level"),
            pytest.param("default.a\nfm", "x", id="line-break"),
            pytest.param("default.a:b", "x", id="colon"),
            pytest.param("", "x", id="empty"),
            pytest.param("default.a", "", id="empty-password"),
        ],
    )
    def test_a_user_that_could_widen_the_rules_is_refused(self, tmp_path: Path, username: str, password: str) -> None:
        broker = Mosquitto(tmp_path)
        with pytest.raises(InputError):
            broker.add_user(username, password)
        assert not (tmp_path / "passwords").exists()


class TestProcess:
    def test_the_broker_ends_with_its_owner_and_leaves_no_process(self, tmp_path: Path) -> None:
        with Mosquitto(tmp_path) as broker:
            pid = broker.pid
            assert pid is not None
            os.kill(pid, 0)
            broker.start()
            assert broker.pid == pid, "starting a running one changes nothing"
        assert not broker.running
        assert broker.pid is None
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        broker.stop()

    def test_a_broker_keeps_its_port_over_kill_and_start(self, tmp_path: Path) -> None:
        with Mosquitto(tmp_path) as broker:
            url, pid = broker.url, broker.pid
            broker.kill()
            assert not broker.running
            broker.start()
            assert broker.url == url
            assert broker.pid != pid

    def test_the_broker_of_a_killed_owner_is_replaced(self, tmp_path: Path) -> None:
        command = [sys.executable, "-c", OWNER_SCRIPT, tmp_path]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
            pid, port = map(int, owner.stdout.readline().split())
            owner.send_signal(signal.SIGKILL)
        os.kill(pid, 0)  # it lives on without its owner
        with Mosquitto(tmp_path, port=port) as broker:
            assert broker.pid != pid
            assert not mosquitto._alive(pid)

    def test_a_process_that_only_has_the_number_of_an_old_broker_is_left_alone(self, tmp_path: Path) -> None:
        broker = Mosquitto(tmp_path)
        (tmp_path / "mosquitto.pid").write_text(f"{os.getpid()}\n")
        with broker:
            assert broker.running

    @pytest.mark.parametrize("content", ["", "x", "-1", "99999999"])
    def test_a_damaged_pid_file_does_no_harm(self, tmp_path: Path, content: str) -> None:
        broker = Mosquitto(tmp_path)
        (tmp_path / "mosquitto.pid").write_text(content)
        with broker:
            assert broker.running

    def test_a_long_log_is_turned_over(self, tmp_path: Path, monkeypatch) -> None:
        monkeypatch.setattr(mosquitto, "_MAX_LOG_BYTES", 10)
        broker = Mosquitto(tmp_path)
        broker.log_path.write_text("old lines " * 10)
        with broker:
            assert "old lines" not in broker.log_path.read_text()
        assert "old lines" in (tmp_path / "mosquitto.log.1").read_text()


class TestFailures:
    def test_a_taken_port_is_named(self, tmp_path: Path, taken_port: int) -> None:
        broker = Mosquitto(tmp_path, port=taken_port)
        with pytest.raises(DeviceError, match=f"port {taken_port} .* taken") as caught:
            broker.start()
        assert caught.value.hint
        assert not broker.running

    def test_a_port_that_somebody_else_took_first_is_given_up_for_another(
        self, tmp_path: Path, taken_port: int, monkeypatch
    ) -> None:
        free_port = mosquitto._free_port
        offered = iter([taken_port, taken_port])
        monkeypatch.setattr(mosquitto, "_free_port", lambda host: next(offered, None) or free_port(host))
        with Mosquitto(tmp_path) as broker:
            assert broker.port not in (0, taken_port)

    def test_an_address_of_another_machine_is_refused(self, tmp_path: Path) -> None:
        for port in (0, 18830):
            with pytest.raises(DeviceError):
                Mosquitto(tmp_path, host="192.0.2.1", port=port).start()

    def test_a_broker_that_ends_at_once_is_shown_with_its_last_words(self, tmp_path: Path, monkeypatch) -> None:
        broken = executable(tmp_path / "broken", "echo it hurts here >&2; exit 3")
        monkeypatch.setenv("EDGESERVE_MOSQUITTO", str(broken))
        with pytest.raises(DeviceError, match="it hurts here") as caught:
            Mosquitto(tmp_path / "broker").start()
        assert "mosquitto.log" in caught.value.hint

    def test_a_broker_that_never_listens_is_ended(self, tmp_path: Path, monkeypatch) -> None:
        hanging = executable(tmp_path / "hanging", "echo $$ > " + str(tmp_path / "pid") + "; exec sleep 60")
        monkeypatch.setenv("EDGESERVE_MOSQUITTO", str(hanging))
        monkeypatch.setattr(mosquitto, "_START_S", 0.5)
        with pytest.raises(DeviceError, match="did not start"):
            Mosquitto(tmp_path / "broker").start()
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / "pid").read_text()), 0)

    def test_a_folder_that_is_a_file_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(DeviceError, match="file"):
            Mosquitto(tmp_path / "file")


class TestFinding:
    def test_it_is_found_outside_of_path(self, monkeypatch) -> None:
        monkeypatch.delenv("EDGESERVE_MOSQUITTO", raising=False)
        binary = find_mosquitto()
        monkeypatch.setenv("PATH", "/nowhere")
        monkeypatch.setattr(mosquitto, "_FOLDERS", (str(binary.parent),))
        assert find_mosquitto() == binary
        assert mosquitto_version(binary)[:1].isdigit()

    def test_the_variable_goes_before_path(self, tmp_path: Path, monkeypatch) -> None:
        own = executable(tmp_path / "own", "echo mosquitto version 9.8.7")
        monkeypatch.setenv("EDGESERVE_MOSQUITTO", str(own))
        assert find_mosquitto() == own
        assert mosquitto_version(own) == "9.8.7"

    @pytest.mark.parametrize("named", ["/nowhere/mosquitto", "/tmp"])
    def test_a_variable_that_names_no_program_is_an_error_with_a_way_out(self, monkeypatch, named: str) -> None:
        monkeypatch.setenv("EDGESERVE_MOSQUITTO", named)
        with pytest.raises(DeviceError, match=named) as caught:
            find_mosquitto()
        assert "apt install mosquitto" in caught.value.hint

    def test_a_machine_without_it_is_told_how_to_get_it(self, tmp_path: Path, monkeypatch) -> None:
        monkeypatch.delenv("EDGESERVE_MOSQUITTO", raising=False)
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr(mosquitto, "_FOLDERS", ())
        with pytest.raises(DeviceError) as caught:
            find_mosquitto()
        assert "apt install mosquitto" in caught.value.hint
