"""Configuration of `edgeserve fleet serve`: TOML file, then environment `EDGESERVE_FLEET_*`, then flags."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from edgeserve.contracts.errors import InputError

_ENVIRONMENT: Final = {
    "EDGESERVE_FLEET_STATE_DIR": "state_dir",
    "EDGESERVE_FLEET_DB": "db",
    "EDGESERVE_FLEET_BROKER": "broker",
    "EDGESERVE_FLEET_BROKER_USER": "broker_user",
    "EDGESERVE_FLEET_BROKER_PASSWORD": "broker_password",
    "EDGESERVE_FLEET_LISTEN": "listen",
    "EDGESERVE_FLEET_PUBLIC_URL": "public_url",
}
EMBEDDED: Final = "embedded"


class FleetConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the manager runs. In a file, every field is a key at the top level of `fleet.toml`."""

    state_dir: str = "edgeserve-fleet"
    """Folder of the database, keys, blobs and the embedded broker."""
    db: str = ""
    """Database file or URL; empty = `fleet.db` in the state folder."""
    broker: str = EMBEDDED
    """`embedded`, or `mqtt[s]://HOST[:PORT]` of a broker whose users somebody else keeps."""
    broker_user: str = "fm"
    broker_password: str = ""
    """Of the manager at that broker; best given as EDGESERVE_FLEET_BROKER_PASSWORD."""
    listen: str = "127.0.0.1:8080"
    """Address of REST API, registry and web page; port 0 = the one of the last run, or any."""
    public_url: str = ""
    """URL under which devices reach the manager; empty = the address it listens on."""
    tls_certificate: str = ""
    tls_key: str = ""
    """PEM files; with both, the manager speaks HTTPS."""
    insecure_dev: bool = False
    """Allow a public address without TLS."""

    def __post_init__(self) -> None:
        host, _port = self.address()
        if bool(self.tls_certificate) != bool(self.tls_key):
            raise InputError("TLS needs both tls_certificate and tls_key")
        if self.public_url and not self.public_url.startswith(("http://", "https://")):
            raise InputError(f"public_url {self.public_url[:80]!r} is not an http or https URL")
        if not is_loopback(host) and not self.tls and not self.insecure_dev:
            raise InputError(
                f"listening on {host} without TLS would send tokens in the clear",
                hint="set tls_certificate and tls_key in fleet.toml, listen on 127.0.0.1, or accept it: --insecure-dev",
            )
        if is_wildcard(host) and not self.public_url:
            raise InputError(
                f"devices cannot reach {host}", hint="say under which URL they reach the manager: --public-url"
            )

    @property
    def tls(self) -> bool:
        """Whether the manager speaks HTTPS itself."""
        return bool(self.tls_certificate and self.tls_key)

    @property
    def insecure(self) -> bool:
        """Whether tokens cross a network in the clear."""
        return not self.tls and not is_loopback(self.address()[0])

    def address(self) -> tuple[str, int]:
        """Host and port of `listen`.

        Raises:
            InputError: It is not HOST:PORT.
        """
        host, colon, port = self.listen.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not colon or not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
            raise InputError(f"listen address {self.listen[:80]!r} is not HOST:PORT", hint="write 127.0.0.1:8080")
        return host, int(port)


def load(path: Path | None, environment: Mapping[str, str], flags: Mapping[str, object]) -> FleetConfig:
    """Merge the file, the environment and the flags; a later one wins. None among the flags means not given.

    Raises:
        InputError: The file cannot be read or is not TOML, or a value is refused.
    """
    values: dict[str, object] = {}
    if path is not None:
        try:
            values |= msgspec.toml.decode(path.read_bytes(), type=dict[str, object])
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{path} is not TOML: {error}") from error
    values |= {field: environment[name] for name, field in _ENVIRONMENT.items() if environment.get(name)}
    values |= {field: value for field, value in flags.items() if value is not None}
    try:
        return msgspec.convert(values, FleetConfig)
    except msgspec.ValidationError as error:
        raise InputError(f"configuration of the fleet manager is not valid: {error}") from error


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_wildcard(host: str) -> bool:
    """Tell whether `host` means every address of this machine."""
    return host in ("0.0.0.0", "::")  # noqa: S104 - recognised, not bound
