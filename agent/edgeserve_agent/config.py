"""`agent.toml`: who the device is, whom it obeys, and limits that no remote document can loosen.

The file, then `EDGESERVE_*` of the environment (`EDGESERVE_MQTT_URL` for `url` in `[mqtt]`), then flags.
"""

from __future__ import annotations

import fnmatch
import ipaddress
import os
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from edgeserve.contracts.errors import EdgeServeError, InputError
from edgeserve.contracts.limits import MAX_CONFIG_BYTES
from edgeserve.contracts.names import device_id
from edgeserve_agent.control import SOCKET

DEFAULT_FILE: Final = Path("agent.toml")
DEFAULT_STATE_DIR: Final = "/var/lib/edgeserve"
_MAX_SOCKET_PATH: Final = 100  # sockaddr_un holds 108 bytes on Linux and 104 on macOS


def _between(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise InputError(f"{name} of {value} is not between {low} and {high}")


class DeviceSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[device]`."""

    id: str
    """`tenant.device`."""
    profile: str = ""
    """Device profile; empty = probe the machine."""
    simulate: bool = False
    """Run variants for the profile's hardware on what is here, and say so."""

    def __post_init__(self) -> None:
        device_id(self.id)
        if self.simulate and not self.profile:
            raise InputError("simulate needs a profile", hint='add profile = "raspberry-pi-5" to [device]')


class ManagerSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[manager]`: the HTTP side of the fleet."""

    url: str
    token: str
    key: str
    """Public key that signs all documents that go down, pinned by `edgeserve fleet enroll`."""
    poll_s: float = 60.0
    """Seconds without the broker after which the agent asks over HTTP, and between two questions."""

    def __post_init__(self) -> None:
        _between("poll_s", self.poll_s, 0.1, 24 * 3600)
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise InputError(f"url {self.url[:120]!r} of the manager is not one", hint="write http(s)://HOST[:PORT]")
        if not self.token.isascii() or any(sign <= " " for sign in self.token) or not self.token:
            raise InputError("token of the manager is empty or has a blank", hint="run `edgeserve fleet enroll` again")


class MqttSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[mqtt]`: the broker. User name is the device id, password the manager's token."""

    url: str = ""
    """Empty = no broker, documents are polled."""
    ca_file: str = ""


class ServingSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[serving]`."""

    http: str = "127.0.0.1:8000"
    """HTTP and gRPC."""
    grpc: str = ""
    """A port for gRPC alone; empty = none."""
    uds: str = ""
    """Path of a Unix socket that speaks HTTP and gRPC; empty = none."""
    local: str = ""
    """Path of a Unix socket for `edgeserve.client.local`; empty = none."""
    allow_shm: bool = False
    """Clients on this machine may register shared memory by name."""
    threads: int = 1
    insecure_dev: bool = False
    """Allow addresses other than loopback without TLS and token; every report shows it."""

    def __post_init__(self) -> None:
        _between("threads", self.threads, 0, 1024)
        for name, text in (("http", self.http), ("grpc", self.grpc)):
            host, colon, port = text.rpartition(":")
            if text and (not colon or not host or not port.isdecimal() or int(port) > 65535):
                raise InputError(f"{name} {text[:80]!r} of the server is not HOST:PORT", hint="such as 127.0.0.1:8000")
        if not self.http:
            raise InputError("http of the server is empty", hint="such as 127.0.0.1:8000")
        for name, path in (("uds", self.uds), ("local", self.local)):
            if len(os.fsencode(path)) >= _MAX_SOCKET_PATH:
                raise InputError(f"{name} of the server has {len(os.fsencode(path))} bytes, at most {_MAX_SOCKET_PATH}")


class LimitsSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[limits]`: the device's own."""

    minimum_probation_s: float = 10.0
    allowed_models: tuple[str, ...] = ("*",)
    """Names or patterns with `*`."""
    max_failure_share: float = 0.05
    """Share of requests that may fail in probation."""
    max_download_bytes_per_day: int = 0
    """0 = no limit."""
    allow_handlers: bool = False
    """Releases may bring Python that this device runs, confined."""

    def __post_init__(self) -> None:
        _between("minimum_probation_s", self.minimum_probation_s, 0, 7 * 24 * 3600)
        _between("max_failure_share", self.max_failure_share, 0, 1)
        _between("max_download_bytes_per_day", self.max_download_bytes_per_day, 0, 1 << 62)

    def allows(self, model: str) -> bool:
        """Tell whether a model of this name may be installed."""
        return any(fnmatch.fnmatchcase(model, pattern) for pattern in self.allowed_models)


class TelemetrySection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[telemetry]`."""

    stats_s: float = 10.0
    """Seconds between two statistics."""

    def __post_init__(self) -> None:
        _between("stats_s", self.stats_s, 0.1, 24 * 3600)


class AgentConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of `agent.toml`."""

    device: DeviceSection
    manager: ManagerSection | None = None
    """None = no fleet: releases come by `edgeserve agent install`."""
    mqtt: MqttSection = MqttSection()
    serving: ServingSection = ServingSection()
    limits: LimitsSection = LimitsSection()
    telemetry: TelemetrySection = TelemetrySection()
    state_dir: str = DEFAULT_STATE_DIR

    def __post_init__(self) -> None:
        path = self.socket_path
        if len(os.fsencode(path)) >= _MAX_SOCKET_PATH:
            raise InputError(
                f"state_dir {self.state_dir} is too long: a socket path has less than {_MAX_SOCKET_PATH} bytes, "
                f"{path} has {len(os.fsencode(path))}",
                hint="choose a shorter state_dir, such as one below /var/lib or /tmp",
            )
        if self.manager and not self.serving.insecure_dev:
            for name, url in (("manager.url", self.manager.url), ("mqtt.url", self.mqtt.url)):
                _check_plain(name, url)

    @property
    def folder(self) -> Path:
        """The state directory, absolute."""
        return Path(self.state_dir).absolute()

    @property
    def socket_path(self) -> Path:
        """Where the serving process answers the control part."""
        return self.folder / SOCKET


def load(path: Path, environment: Mapping[str, str], flags: Mapping[str, object] | None = None) -> AgentConfig:
    """Read the configuration.

    Args:
        path: `agent.toml`.
        environment: Usually `os.environ`; only names that correspond to a key are looked at.
        flags: Top-level keys given on the command line, such as `state_dir`.

    Raises:
        InputError: The file is missing or not TOML, a key is unknown, missing or has a wrong value.
    """
    try:
        data = path.read_bytes()
        if len(data) > MAX_CONFIG_BYTES:
            raise InputError(f"{path} has {len(data)} bytes, at most {MAX_CONFIG_BYTES} are allowed")
        document = msgspec.toml.decode(data, type=dict[str, Any])
    except FileNotFoundError:
        hint = "`edgeserve fleet enroll` writes it; or name another with --config"
        raise InputError(f"there is no {path}", hint=hint) from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not TOML: {error}") from error
    _apply_environment(document, environment)
    document.update(flags or {})
    return build(document, str(path))


def build(document: Mapping[str, object], source: str) -> AgentConfig:
    """Make a configuration from keys and values; `source` names where they are from, for the error.

    Raises:
        InputError: A key is unknown, missing or has a wrong value.
    """
    try:
        return msgspec.convert(document, AgentConfig)
    except msgspec.ValidationError as error:
        cause = error.__cause__
        hint = cause.hint if isinstance(cause, EdgeServeError) else "the keys are described in agent/README.md"
        raise InputError(f"{source}: {error}", hint=hint) from error
    except EdgeServeError as error:
        raise InputError(f"{source}: {error.message}", hint=error.hint) from error


def _apply_environment(document: dict[str, Any], environment: Mapping[str, str]) -> None:
    for field in msgspec.structs.fields(AgentConfig):
        prefix = f"EDGESERVE_{field.name.upper()}"
        section = _section_of(field.type)
        if section is None:
            if prefix in environment:
                document[field.name] = environment[prefix]
            continue
        for key in msgspec.structs.fields(section):
            text = environment.get(f"{prefix}_{key.name.upper()}")
            if text is None:
                continue
            table = document.setdefault(field.name, {})
            if isinstance(table, dict):
                table[key.name] = _value(f"{prefix}_{key.name.upper()}", text, key.type)


def _section_of(kind: object) -> type[msgspec.Struct] | None:
    kinds = getattr(kind, "__args__", (kind,))
    return next((one for one in kinds if isinstance(one, type) and issubclass(one, msgspec.Struct)), None)


def _value(name: str, text: str, kind: Any) -> object:  # noqa: ANN401 - the type of a field, as msgspec gives it
    try:
        if kind == tuple[str, ...]:
            return tuple(part.strip() for part in text.split(","))
        return msgspec.convert(text, kind, strict=False)
    except msgspec.ValidationError as error:
        raise InputError(f"{name} in the environment: {error}") from error


def _check_plain(name: str, url: str) -> None:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme in ("http", "mqtt") and not _is_loopback(parts.hostname or ""):
        raise InputError(
            f"{name} {url[:120]!r} would send the device's token over the network without TLS",
            hint="use https:// and mqtts://, or insecure_dev = true in [serving] on a network of your own",
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
