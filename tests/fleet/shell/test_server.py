"""Configuration, the state folder, and how a manager comes up and goes down."""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
import signal
import socket
import time
from pathlib import Path

import pytest
import urllib3
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edgeserve.contracts.errors import ConflictError, DeviceError, InputError, TransientError
from edgeserve.contracts.limits import MAX_UPLOADS, UPLOAD_LIFETIME_S
from edgeserve_fleet.config import FleetConfig, is_loopback, load
from edgeserve_fleet.server import Manager
from edgeserve_fleet.state import Ports, StateFolder, listen
from edgeserve_fleet.uploads import Uploads

# Configuration -------------------------------------------------------------------------------------


def test_a_flag_wins_over_the_environment_and_that_over_the_file(tmp_path):
    file = tmp_path / "fleet.toml"
    file.write_text('listen = "127.0.0.1:1"\ndb = "file.db"\nstate_dir = "file"\n')
    environment = {"EDGESERVE_FLEET_DB": "environment.db", "EDGESERVE_FLEET_STATE_DIR": "environment"}
    found = load(file, environment, {"state_dir": "flag", "listen": None})
    assert (found.listen, found.db, found.state_dir) == ("127.0.0.1:1", "environment.db", "flag")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("listen = ", "is not TOML", id="not TOML"),
        pytest.param('lisen = "127.0.0.1:1"', "lisen", id="unknown key"),
        pytest.param("listen = 8080", "listen", id="wrong type"),
        pytest.param('listen = "8080"', "not HOST:PORT", id="no host"),
        pytest.param('listen = "127.0.0.1:http"', "not HOST:PORT", id="port is a word"),
        pytest.param('listen = "127.0.0.1:70000"', "not HOST:PORT", id="port too high"),
        pytest.param('listen = "192.0.2.1:80"', "without TLS", id="public address"),
        pytest.param('listen = "0.0.0.0:80"', "without TLS", id="every address"),
        pytest.param('listen = "[::]:80"', "without TLS", id="every IPv6 address"),
        pytest.param('listen = "example.org:80"', "without TLS", id="name"),
        pytest.param('listen = "0.0.0.0:80"\ninsecure_dev = true', "cannot reach", id="where do devices go"),
        pytest.param('tls_key = "k.pem"', "both", id="key alone"),
        pytest.param('public_url = "fleet.example.org"', "public_url", id="URL without scheme"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(tmp_path, text, message):
    file = tmp_path / "fleet.toml"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        load(file, {}, {})


def test_a_configuration_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.toml"):
        load(tmp_path / "nothing.toml", {}, {})


@pytest.mark.parametrize(
    ("host", "found"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("fleet", False),
    ],
)
def test_loopback_is_told_from_the_rest(host, found):
    assert is_loopback(host) is found


def test_a_public_address_is_insecure_unless_it_speaks_tls():
    asked = {"listen": "192.0.2.1:80"}
    assert FleetConfig(**asked, insecure_dev=True).insecure
    assert not FleetConfig(**asked, tls_certificate="c", tls_key="k").insecure
    assert not FleetConfig(insecure_dev=True).insecure


# The state folder ----------------------------------------------------------------------------------


def test_a_folder_has_one_manager_at_a_time(tmp_path):
    first = StateFolder(tmp_path / "state")
    with pytest.raises(ConflictError, match="another fleet manager runs"):
        StateFolder(tmp_path / "state")
    first.close()
    StateFolder(tmp_path / "state").close()


def test_the_key_and_the_ports_are_kept(tmp_path):
    state = StateFolder(tmp_path / "state")
    assert state.ports == Ports()
    key = state.signing_key().public.text
    assert (tmp_path / "state").stat().st_mode & 0o077 == 0
    assert (tmp_path / "state" / "director.key").stat().st_mode & 0o777 == 0o600
    state.ports = Ports(http=1, mqtt=2)
    state.close()
    again = StateFolder(tmp_path / "state")
    assert (again.signing_key().public.text, again.ports) == (key, Ports(http=1, mqtt=2))
    again.close()


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"http": "x"}'])
def test_ports_that_cannot_be_read_are_forgotten(tmp_path, damage):
    state = StateFolder(tmp_path / "state")
    (state.path / "ports.json").write_text(damage)
    assert state.ports == Ports()
    state.close()


def test_a_key_that_is_none_is_refused_and_never_replaced(tmp_path):
    state = StateFolder(tmp_path / "state")
    key = state.path / "director.key"
    key.write_text("not a key")
    key.chmod(0o600)
    with pytest.raises(InputError, match=r"director\.key"):
        state.signing_key()
    assert key.read_text() == "not a key"
    state.close()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DeviceError, match="cannot use the state folder"):
        StateFolder(tmp_path / "file" / "state")


def test_the_port_of_the_last_run_is_taken_again_if_it_is_free():
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        assert first.proto == socket.IPPROTO_TCP, "without it asyncio leaves Nagle's algorithm on: 40 ms a request"
        with listen("127.0.0.1", 0, preferred=port) as other:
            assert other.getsockname()[1] != port
        with pytest.raises(DeviceError, match=f"port {port} of 127.0.0.1 is in use") as caught:
            listen("127.0.0.1", port)
        assert caught.value.hint
    with listen("127.0.0.1", 0, preferred=port) as again:
        assert again.getsockname()[1] == port


def test_an_address_of_another_machine_is_refused():
    with pytest.raises(DeviceError, match="cannot listen on 192"):
        listen("192.0.2.1", 0)


# Uploads -------------------------------------------------------------------------------------------


def test_an_upload_that_nobody_continues_is_removed_by_age(tmp_path):
    now = 1000.0
    uploads = Uploads(tmp_path, clock=lambda: now)
    old = uploads.begin()
    now = (tmp_path / old).stat().st_mtime + UPLOAD_LIFETIME_S - 1
    kept = uploads.begin()
    assert uploads.offset(old) == 0
    now += 2
    (tmp_path / kept).write_bytes(b"fresh")
    now = (tmp_path / kept).stat().st_mtime + UPLOAD_LIFETIME_S + 1
    with uploads.claim(kept):
        uploads.begin()
    assert {path.name for path in tmp_path.iterdir()} >= {kept}, "one that is being written stays"
    assert not (tmp_path / old).exists()


def test_uploads_are_bounded(tmp_path):
    uploads = Uploads(tmp_path)
    sessions = [uploads.begin() for _ in range(MAX_UPLOADS)]
    with pytest.raises(TransientError, match="under way"):
        uploads.begin()
    uploads.cancel(sessions[0])
    uploads.begin()


def test_one_request_at_a_time_writes_an_upload(tmp_path):
    uploads = Uploads(tmp_path)
    session = uploads.begin()
    with uploads.claim(session), pytest.raises(ConflictError, match="another request"), uploads.claim(session):
        pass
    with uploads.claim(session):
        pass


# The whole -----------------------------------------------------------------------------------------


def certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fleet")])
    now = dt.datetime.now(dt.timezone.utc)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate_path, key_path = folder / "certificate.pem", folder / "key.pem"
    certificate_path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificate_path, key_path


def test_with_a_certificate_the_manager_speaks_https(serve, tmp_path):
    made, key = certificate(tmp_path)
    config = FleetConfig(
        state_dir=str(tmp_path / "s"), listen="127.0.0.1:0", tls_certificate=str(made), tls_key=str(key)
    )
    with serve(config) as manager, urllib3.PoolManager(ca_certs=str(made), retries=False) as pool:
        assert manager.url.startswith("https://")
        assert pool.request("GET", f"{manager.url}/healthz").data == b"ok\n"
        body = f"token={manager.operator_token}".encode()
        login = pool.request("POST", f"{manager.url}/login", body=body, redirect=False)
        assert "secure" in login.headers["Set-Cookie"].lower()
        plain = socket.create_connection(manager._socket.getsockname())
        with plain:
            plain.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"200" not in plain.recv(100)


def test_what_is_open_to_a_network_says_so(serve, tmp_path):
    config = FleetConfig(
        state_dir=str(tmp_path / "s"), listen="0.0.0.0:0", public_url="http://fleet.test:1", insecure_dev=True
    )
    with serve(config) as manager, urllib3.PoolManager(retries=False) as pool:
        url = f"http://127.0.0.1:{manager._socket.getsockname()[1]}"
        headers = {"Authorization": f"Bearer {manager.operator_token}"}
        assert pool.request("GET", f"{url}/v1/status", headers=headers).json()["insecure"] is True
        assert b"--insecure-dev" in pool.request("GET", f"{url}/fragment", headers=headers).data
        enrolment = pool.request("POST", f"{url}/v1/devices", headers=headers, json={"device": "a"}).json()
        assert enrolment["manager_url"] == "http://fleet.test:1"


@pytest.mark.parametrize("content", [None, "not a certificate"], ids=["missing", "garbage"])
def test_a_certificate_that_is_none_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "c.pem").write_text(content)
    config = FleetConfig(
        state_dir=str(tmp_path / "s"),
        listen="127.0.0.1:0",
        tls_certificate=str(tmp_path / "c.pem"),
        tls_key=str(tmp_path / "c.pem"),
    )
    with pytest.raises(InputError, match=r"c\.pem"):
        Manager(config)


def test_a_device_that_was_revoked_when_the_last_run_was_killed_is_shut_out_of_the_broker(serve, tmp_path):
    config = FleetConfig(state_dir=str(tmp_path / "s"), listen="127.0.0.1:0")
    users = tmp_path / "s" / "mosquitto" / "passwords"
    with serve(config) as manager:
        for device in ("default.stays", "default.goes"):
            manager._broker.add_user(device, manager.fleet.enrol(device, labels={}, actor="test"))
        manager.fleet.revoke("default.goes", actor="test")
        assert "default.goes" in users.read_text()
    with serve(config):
        assert "default.goes" not in users.read_text()
        assert "default.stays" in users.read_text()


def test_a_broker_that_died_is_started_again_where_it_was(manager):
    broker = manager._broker
    port, pid = broker.port, broker.pid
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while not (broker.running and broker.pid != pid and manager.status().mqtt_connected):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert broker.port == port
