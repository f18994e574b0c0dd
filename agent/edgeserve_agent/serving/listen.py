"""Where the server may listen: loopback only, as long as it has neither TLS nor tokens."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from typing import Final

from edgeserve.contracts.errors import InputError

_MAX_PORT: Final = 65535


@dataclass(frozen=True)
class Address:
    """A host, as a numeric address, and a port; port 0 = any."""

    host: str
    port: int

    def url(self, port: int) -> str:
        """The URL of the server once `port` is known."""
        return f"http://[{self.host}]:{port}" if ":" in self.host else f"http://{self.host}:{port}"


def listen_address(text: str, *, insecure_dev: bool) -> Address:
    """Read `HOST:PORT`.

    Raises:
        InputError: It is not that, the host is unknown, or the address is public and `insecure_dev` is not given.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdecimal() or int(port[:6]) > _MAX_PORT:
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
