"""FleetClient and the `edgeserve fleet` commands, against a real manager process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from edgeserve.cli import fleet as commands
from edgeserve.client.fleet import FleetClient, failure
from edgeserve.client.registry import RegistryClient
from edgeserve.contracts.errors import (
    ConflictError,
    DeviceError,
    EdgeServeError,
    InputError,
    NotFoundError,
    TransientError,
    TrustError,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@pytest.fixture
def cli(fleet_process, monkeypatch):
    """Runs `edgeserve fleet ...` in this process, against the manager process."""
    for key, value in fleet_process.environment.items():
        monkeypatch.setenv(key, value)

    def run(*arguments: str, code: int = 0) -> str:
        result = CliRunner().invoke(commands.app, list(arguments))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        return result.stdout

    return run


# Finding the manager -------------------------------------------------------------------------------


def test_arguments_win_over_the_environment_and_that_over_the_folder(tmp_path):
    (tmp_path / "addresses.json").write_text('{"http": "http://folder:1", "mqtt": ""}')
    (tmp_path / "operator.token").write_text("folder-token\n")
    environment = {"EDGESERVE_FLEET_URL": "http://environment:1", "EDGESERVE_FLEET_TOKEN": "environment-token"}
    found = [
        FleetClient.from_environment(environment, url="http://flag:1", token="flag-token", folder=tmp_path),
        FleetClient.from_environment(environment, folder=tmp_path),
        FleetClient.from_environment({}, folder=tmp_path),
    ]
    assert [(client.url, client.token) for client in found] == [
        ("http://flag:1", "flag-token"),
        ("http://environment:1", "environment-token"),
        ("http://folder:1", "folder-token"),
    ]


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        pytest.param({}, "no fleet manager is named", id="nothing"),
        pytest.param({"EDGESERVE_FLEET_URL": "http://localhost:1"}, "no token", id="no token"),
        pytest.param(
            {"EDGESERVE_FLEET_URL": "localhost:1", "EDGESERVE_FLEET_TOKEN": "t"}, "not the URL", id="no scheme"
        ),
        pytest.param(
            {"EDGESERVE_FLEET_URL": "http://localhost:1", "EDGESERVE_FLEET_TOKEN": "a\nb"}, "token", id="token in two"
        ),
    ],
)
def test_a_manager_that_is_not_named_is_an_error_with_a_way_out(tmp_path, environment, message):
    with pytest.raises(InputError, match=message) as caught:
        FleetClient.from_environment(environment, folder=tmp_path)
    assert caught.value.hint


def test_an_address_file_that_is_damaged_is_named(tmp_path):
    (tmp_path / "addresses.json").write_text("{")
    with pytest.raises(InputError, match=r"addresses\.json"):
        FleetClient.from_environment({}, folder=tmp_path)


# Answers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InputError), (401, TrustError), (403, TrustError), (404, NotFoundError), (409, ConflictError),
        (413, InputError), (418, InputError), (429, TransientError), (500, DeviceError), (503, TransientError),
        (599, TransientError), (302, InputError),
    ],
)  # fmt: skip
def test_a_status_is_an_error_of_the_right_kind(status, kind):
    error = failure(status, b'{"error": "what", "hint": "do"}', what="asking")
    assert (type(error), error.message, error.hint) == (kind, "what", "do")


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"[" * 100_000, b'{"error": 7}', b"\xff"])
def test_an_answer_that_says_nothing_names_the_request(body):
    assert "asking" in failure(500, body, what="asking").message


def test_an_answer_cannot_write_to_the_terminal():
    error = failure(400, json.dumps({"error": "a\x1b[2Jb\nc", "hint": "\x07"}).encode(), what="asking")
    assert (error.message, error.hint) == ("a?[2Jb?c", "?")


def test_a_manager_that_is_away_is_a_transient_error_that_says_so():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(TransientError, match=f"cannot reach the fleet manager at http://127.0.0.1:{port}.*refused"):
        FleetClient(f"http://127.0.0.1:{port}", "token").devices()


class _Strange(BaseHTTPRequestHandler):
    """A server that is no fleet manager."""

    def do_GET(self) -> None:
        if self.path == "/v1/status":
            self.send_response(302)
            self.send_header("Location", "http://127.0.0.1:9/steal")
            self.end_headers()
            return
        body = b"[]" if self.path.startswith("/v1/devices/") else b"<html>"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: Any) -> None:
        """Quiet."""


@pytest.fixture
def strange() -> Iterator[FleetClient]:
    server = HTTPServer(("127.0.0.1", 0), _Strange)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield FleetClient(f"http://127.0.0.1:{server.server_port}", "token")
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_server_that_is_no_manager_is_told_apart(strange):
    with pytest.raises(TransientError, match="did not answer with JSON"):
        strange.devices()
    with pytest.raises(TransientError, match="did not answer with an object"):
        strange.device("a")


def test_a_token_is_never_carried_to_another_server(strange):
    with pytest.raises(InputError, match="302"):
        strange.status()


def test_a_wrong_token_is_a_trust_error(fleet_process):
    with pytest.raises(TrustError, match="not valid"):
        FleetClient(fleet_process.url, "wrong").devices()


def test_the_same_key_makes_one_rollout(fleet_process, cli, make_release):
    client = fleet_process.client()
    cli("publish", str(folder_of(make_release("client-key"))))
    spec = {"release": "client-key:v1", "waves": "1", "selector": {"none": "such"}}
    first, again = (client.create_rollout(spec, idempotency_key="once") for _ in range(2))
    assert first["rollout"] == again["rollout"]
    assert client.create_rollout(spec)["rollout"] != first["rollout"]


def folder_of(release: Any) -> Path:
    path: Path = release.blobs.location.parent
    return path


# Commands ------------------------------------------------------------------------------------------


def test_enrolment_writes_the_agents_configuration_for_its_owner_alone(cli, fleet_process, tmp_path):
    output = tmp_path / "agent.toml"
    arguments = ["enroll", "cli-1", "--label", "site=hall-3", "--label", "line=2", "--profile", "raspberry-pi-5"]
    said = cli(*arguments, "--simulate", "--http", "127.0.0.1:0", "-o", str(output))
    config = tomllib.loads(output.read_text())
    assert output.stat().st_mode & 0o777 == 0o600
    assert config["state_dir"] == str(tmp_path / "edgeserve-agent" / "cli-1")
    assert config["device"] == {"id": "default.cli-1", "profile": "raspberry-pi-5", "simulate": True}
    assert config["manager"].pop("token") not in said
    key = config["manager"].pop("key")
    assert key.startswith("ed25519:")
    assert config["manager"] == {"url": fleet_process.url, "poll_s": 60}
    assert config["mqtt"]["url"].startswith("mqtt://127.0.0.1:")
    assert config["serving"] == {"http": "127.0.0.1:0"}
    assert config["limits"] == {"minimum_probation_s": 10}
    assert config["telemetry"] == {"stats_s": 10}
    view = fleet_process.client().device("cli-1")
    assert view["labels"] == {"site": "hall-3", "line": "2"}


def test_a_configuration_that_exists_is_kept_and_nothing_is_enrolled(cli, fleet_process, tmp_path):
    output = tmp_path / "agent.toml"
    output.write_text("mine")
    with pytest.raises(ConflictError, match="exists already"):
        cli("enroll", "cli-2", "-o", str(output))
    assert output.read_text() == "mine"
    with pytest.raises(NotFoundError):
        fleet_process.client().device("cli-2")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["enroll", "a+b"], "device name", id="wildcard"),
        pytest.param(["enroll", "<b>x</b>"], "device name", id="markup"),
        pytest.param(["enroll", "cli-3", "--profile", "no-such-board"], "no-such-board", id="unknown profile"),
        pytest.param(["enroll", "cli-3", "--http", "0.0.0.0:80"], "--http: 0.0.0.0 can be reached", id="public"),
        pytest.param(["enroll", "cli-3", "--http", "8000"], "--http: '8000' is not HOST:PORT", id="no address"),
        pytest.param(["enroll", "cli-3", "--label", "site"], "KEY=VALUE", id="label"),
        pytest.param(["enroll", "cli-3", "--label", "a=1", "--label", "a=2"], "twice", id="label twice"),
        pytest.param(["enroll", "cli-3", "--simulate"], "--profile", id="simulate what"),
        pytest.param(["enroll", "cli-3", "-o", "no/such/folder/agent.toml"], "does not exist", id="folder"),
        pytest.param(["why", "unknown"], "not enrolled", id="unknown device"),
        pytest.param(["publish", "no-such-release"], "no-such-release", id="no release"),
        pytest.param(["rollout", "create", "none:v1", "--waves", "1"], "none", id="unknown release"),
        pytest.param(["rollout", "create", "none:v1", "--waves", "1", "--selector", "x"], "KEY=VALUE", id="selector"),
        pytest.param(["rollout", "status", "unknown"], "unknown", id="unknown rollout"),
        pytest.param(["rollout", "watch", "unknown"], "unknown", id="watch nothing"),
    ],
)
def test_a_mistake_is_told_with_what_is_wrong(cli, fleet_process, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        cli(*arguments)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(NotFoundError):
        fleet_process.client().device("cli-3")


def test_a_token_that_cannot_be_written_is_said_to_be_lost_with_the_way_out(cli, tmp_path, monkeypatch):
    folder = tmp_path / "agent.toml"
    folder.mkdir()
    with pytest.raises(DeviceError, match="the new token is lost") as caught:
        cli("enroll", "cli-6", "--force", "-o", str(folder))
    assert "edgeserve fleet revoke cli-6" in caught.value.hint
    assert "revoked default.cli-6" in cli("revoke", "cli-6")
    assert "enrolled default.cli-6" in cli("enroll", "cli-6", "-o", str(tmp_path / "a.toml"))


def test_a_release_is_published_once_and_listed(cli, make_release):
    release = make_release("cli-model")
    first = cli("publish", str(folder_of(release)))
    assert first.splitlines()[:2] == ["cli-model:v1", release.digest]
    assert "the rest was there" in cli("publish", str(folder_of(release)))
    assert json.loads(cli("publish", str(folder_of(release)), "--json"))["digest"] == release.digest
    assert "cli-model:v1" in cli("releases")
    assert release.digest in [row["digest"] for row in json.loads(cli("releases", "--json"))]


def test_a_damaged_release_is_refused_before_anything_is_sent(cli, make_release):
    release = make_release("cli-damaged")
    weights = next(iter(release.variants[0].files.values()))
    release.blobs.path(weights.digest).write_bytes(b"x" * weights.size)
    with pytest.raises(TrustError):
        cli("publish", str(folder_of(release)))
    assert "cli-damaged" not in cli("releases")


def test_a_rollout_from_plan_to_end(cli, make_release, tmp_path):
    cli("publish", str(folder_of(make_release("cli-rollout"))))
    cli("enroll", "cli-r1", "--label", "test=rollout", "-o", str(tmp_path / "agent.toml"))
    order = ["cli-rollout:v1", "--waves", "1", "--selector", "test=rollout", "--on-fail", "abort"]
    assert "default.cli-r1" in cli("rollout", "plan", *order)
    created = json.loads(cli("rollout", "create", *order, "--margin", "0.05", "--min-samples", "10", "--json"))
    assert (created["state"], created["spec"]["gate"]["margin"]) == ("draft", 0.05)
    rollout = created["rollout"]
    assert rollout in cli("rollout", "status")
    assert "cli-rollout:v1 is draft" in cli("rollout", "status", rollout)
    assert "aborted" in cli("rollout", "abort", rollout)
    assert "aborted" in cli("rollout", "watch", rollout, code=1)
    assert json.loads(cli("rollout", "watch", rollout, "--json", code=1))["state"] == "aborted"
    assert json.loads(cli("rollout", "status", rollout, "--json"))["state"] == "aborted"


def test_devices_and_why_are_shown(cli, tmp_path):
    cli("enroll", "cli-4", "-o", str(tmp_path / "agent.toml"))
    assert "default.cli-4" in cli("devices")
    assert "default.cli-4" in [row["device"] for row in json.loads(cli("devices", "--json"))]
    assert cli("why", "cli-4").strip()
    assert "revoked default.cli-4" in cli("revoke", "cli-4")
    assert "revoked" in cli("devices")


def test_status_shows_the_address(cli, fleet_process):
    assert fleet_process.url in cli("status")
    assert json.loads(cli("status", "--json"))["url"] == fleet_process.url


def test_every_command_has_help():
    group = typer.main.get_command(commands.app)
    assert {"serve", "enroll", "devices", "releases", "publish", "why", "rollout"} <= set(group.commands)  # type: ignore[attr-defined]
    for command in group.commands.values():  # type: ignore[attr-defined]
        assert command.get_short_help_str()


# The process ---------------------------------------------------------------------------------------


def test_the_process_says_where_everything_is(fleet_process):
    assert f"export EDGESERVE_FLEET_URL={fleet_process.url}" in fleet_process.log
    assert f"export EDGESERVE_FLEET_TOKEN=$(cat {fleet_process.folder / 'operator.token'})" in fleet_process.log
    assert fleet_process.token not in fleet_process.log


def serve(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgeserve", "fleet", "serve", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env={**os.environ})


def test_a_port_in_use_is_named(tmp_path):
    pytest.importorskip("uvicorn", reason="uvicorn is not installed: pip install 'edgeserve[fleet]'")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = serve("--state-dir", str(tmp_path / "s"), "--listen", f"127.0.0.1:{port}")
    assert done.returncode == 1
    assert f"port {port} of 127.0.0.1 is in use" in done.stderr
    assert "hint:" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_manager_that_starts_again_is_the_same_manager(tmp_path_factory, fleet_process):
    process = type(fleet_process)(tmp_path_factory.mktemp("again"))
    process.start()
    enrolment = process.client().enrol("again-1")
    url, status = process.url, process.client().status()
    assert process.stop() == 0
    process.start()
    try:
        assert process.url == url
        assert process.client().status()["mqtt_url"] == status["mqtt_url"]
        assert process.client().device("again-1")["device"] == "default.again-1"
        again = process.client().enrol("again-2")
        assert again["manager_key"] == enrolment["manager_key"]
    finally:
        process._process.send_signal(signal.SIGINT)
        assert process._process.wait(30) == 0


def test_a_stop_ends_open_streams_and_downloads_that_nobody_reads(tmp_path_factory, fleet_process, make_release):
    process = type(fleet_process)(tmp_path_factory.mktemp("stop"))
    process.start()
    release = make_release("stop", weights=bytes(64 << 20))
    RegistryClient(process.url, "stop", token=process.token).push(release)
    weights = next(iter(release.variants[0].files.values()))
    with contextlib.ExitStack() as open_connections:
        for path in ("/v1/changes", f"/v2/stop/blobs/{weights.digest}"):
            address = urllib.parse.urlsplit(process.url)
            connection = open_connections.enter_context(socket.create_connection((address.hostname, address.port)))
            head = f"GET {path} HTTP/1.1\r\nHost: {address.netloc}\r\nAuthorization: Bearer {process.token}\r\n\r\n"
            connection.sendall(head.encode())
            assert connection.recv(64).startswith(b"HTTP/1.1 200")
        assert process.stop() == 0
    assert "Traceback" not in process.log


def test_errors_of_the_clients_are_edgeserves_own(fleet_process):
    with pytest.raises(EdgeServeError):
        fleet_process.client().act("unknown", "start")
