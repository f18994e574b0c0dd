"""Links over TLS."""

from __future__ import annotations

import datetime as dt
import ipaddress
import socket
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edgeserve.contracts.errors import InputError
from edgeserve.link.base import LinkConfig, LinkState
from edgeserve.link.mosquitto import find_mosquitto
from edgeserve.link.mqtt import MqttLink


class TestTls:
    def test_a_broker_is_reached_by_tls_and_only_when_its_authority_is_trusted(self, tmp_path, until) -> None:
        _write_certificates(tmp_path)
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        config = tmp_path / "tls.conf"
        config.write_text(
            f"listener {port} 127.0.0.1\nallow_anonymous true\nuser root\n"
            f"certfile {tmp_path / 'server.pem'}\nkeyfile {tmp_path / 'server.key'}\n"
        )
        log = (tmp_path / "log").open("wb")
        with log, subprocess.Popen([find_mosquitto(), "-c", config], stdout=log, stderr=log) as child:
            try:
                states: list[LinkState] = []
                messages: list[bytes] = []
                link = MqttLink(
                    LinkConfig(url=f"mqtts://127.0.0.1:{port}", client_id="x", ca_file=str(tmp_path / "ca.pem")),
                    on_message=lambda message: messages.append(message.payload),
                    on_state=states.append,
                )
                link.subscribe("t")
                link.start()
                until(lambda: link.connected, "it is connected")
                payload = bytes(200_000)  # larger than a TLS record: the rest waits where poll does not see it
                assert link.publish("t", payload).wait(10)
                until(lambda: messages == [payload], "the message arrives")
                link.stop()

                distrusted: list[LinkState] = []
                other = MqttLink(
                    LinkConfig(url=f"mqtts://127.0.0.1:{port}", client_id="y"),
                    on_message=print,
                    on_state=distrusted.append,
                )
                other.start()
                until(distrusted.__len__, "it refuses")
                other.stop()
                assert "certificate" in distrusted[0].reason
                assert not any(state.connected for state in distrusted)
            finally:
                child.terminate()

    def test_a_file_that_is_no_authority_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "empty.pem").write_text("not a certificate")
        for name in ("empty.pem", "missing.pem"):
            config = LinkConfig(url="mqtts://broker", client_id="x", ca_file=str(tmp_path / name))
            with pytest.raises(InputError, match=name):
                MqttLink(config, on_message=print, on_state=print)


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority, key_cert_sign=authority, crl_sign=authority, content_commitment=False,
        key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _write_certificates(folder: Path) -> None:
    """An authority and a certificate for 127.0.0.1 that it signed."""
    now = dt.datetime.now(dt.timezone.utc)
    keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("ca", "server")}
    names = {name: x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"test {name}")]) for name in keys}
    for name, key in keys.items():
        address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(names[name])
            .issuer_name(names["ca"])
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=name == "ca", path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(keys["ca"].public_key()), critical=False)
            .add_extension(address, critical=False)
            .add_extension(_usage(authority=name == "ca"), critical=True)  # from Python 3.13 on demanded of authorities
            .sign(keys["ca"], hashes.SHA256())
        )
        (folder / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        pkcs8, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        (folder / f"{name}.key").write_bytes(key.private_bytes(serialization.Encoding.PEM, pkcs8, plain))
