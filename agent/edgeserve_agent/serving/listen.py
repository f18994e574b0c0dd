"""Where the server may listen: loopback only, as long as it has neither TLS nor tokens."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgeserve.contracts.errors import InputError

_MAX_PORT: Final = 65535


@dataclass(frozen=True)
class Address:
    """A host, as a numeric address, and a port; port 0 = any."""

    host: str
    port: int

    def authority(self, port: int) -> str:
        """`HOST:PORT` once `port` is known."""
        return f"[{self.host}]:{port}" if ":" in self.host else f"{self.host}:{port}"

    def url(self, port: int) -> str:
        """The URL of the server once `port` is known."""
        return f"http://{self.authority(port)}"


def listen_address(text: str, *, insecure_dev: bool) -> Address:
    """Read `HOST:PORT`.

    Raises:
        InputError: It is not that, the host is unknown, or the address is public and `insecure_dev` is not given.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdecimal() or len(port) > 5 or int(port) > _MAX_PORT:
        raise InputError(f"{text[:120]!r} is not HOST:PORT", hint="such as 127.0.0.1:8000; port 0 takes any free one")
    numeric = _resolved(host.removeprefix("[").removesuffix("]"))
    if not ipaddress.ip_address(numeric).is_loopback and not insecure_dev:
        raise InputError(
            f"{host} can be reached from the network, and the server has neither TLS nor tokens",
            hint="listen on 127.0.0.1 behind a proxy that has them; on a network of your own, "
            "--insecure-dev (insecure_dev = true in agent.toml)",
        )
    return Address(numeric, int(port))


def _resolved(host: str) -> str:
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise InputError(f"host {host[:120]!r} is not known: {error}", hint="write a numeric address") from error
    # Of several addresses IPv4 is taken: `localhost` means 127.0.0.1 to most clients.
    first = min(found, key=lambda entry: entry[0] is not socket.AF_INET)
    return str(first[4][0])


@dataclass(frozen=True, kw_only=True)
class Listening:
    """Everywhere that a server was told to listen."""

    http: Address
    grpc: Address | None = None
    """For gRPC alone; `http` speaks it, too."""
    uds: Path | None = None
    """Unix socket that speaks HTTP and gRPC."""
    local: Path | None = None
    """Unix socket for `edgeserve.client.local`."""

    @classmethod
    def of(
        cls,
        *,
        http: str,
        grpc: str = "",
        uds: str | Path | None = None,
        local: str | Path | None = None,
        insecure_dev: bool = False,
    ) -> Listening:
        """Read the addresses; what is empty is not listened on.

        Raises:
            InputError: As `listen_address`.
        """
        return cls(
            http=listen_address(http, insecure_dev=insecure_dev),
            grpc=listen_address(grpc, insecure_dev=insecure_dev) if grpc else None,
            uds=Path(uds) if uds else None,
            local=Path(local) if local else None,
        )
