"""The manager's state folder: one owner at a time, its secrets, and where it listens."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from pathlib import Path

import msgspec

from edgeserve.atomic import write_bytes
from edgeserve.contracts.documents import encode
from edgeserve.contracts.errors import ConflictError, DeviceError, NotFoundError
from edgeserve.trust.keys import SigningKey


class Addresses(msgspec.Struct, frozen=True):
    """`addresses.json`: where the manager and its broker listen."""

    http: str = ""
    mqtt: str = ""


class Ports(msgspec.Struct, frozen=True):
    """`ports.json`: what "any port" meant the last time. Enrolled agents know them, so they are taken again if free."""

    http: int = 0
    mqtt: int = 0


class StateFolder:
    """Opens the folder, making it when it is missing (mode 0700), and holds it until `close`.

    Raises:
        ConflictError: Another manager holds it.
        DeviceError: It cannot be made or used.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = (self.path / "manager.lock").open("ab")
        except OSError as error:
            raise DeviceError(f"cannot use the state folder {path}: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise ConflictError(
                f"another fleet manager runs in {path}", hint="stop it, or give another --state-dir"
            ) from None

    def close(self) -> None:
        """Let another manager have it."""
        self._lock.close()

    def signing_key(self) -> SigningKey:
        """The director's key, which signs every document that goes down; made at the first start.

        Raises:
            InputError: The file is not a key.
        """
        path = self.path / "director.key"
        try:
            return SigningKey.load(path)
        except NotFoundError:
            key = SigningKey.generate()
            key.save(path)
            return key

    @property
    def operator_token_path(self) -> Path:
        """The operator's token."""
        return self.path / "operator.token"

    def announce(self, addresses: Addresses) -> None:
        """Write `addresses.json`, for whoever started the manager."""
        write_bytes(self.path / "addresses.json", encode(addresses))

    @property
    def ports(self) -> Ports:
        """Ports of the last run; 0 when there was none."""
        try:
            return msgspec.json.decode((self.path / "ports.json").read_bytes(), type=Ports)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return Ports()

    @ports.setter
    def ports(self, ports: Ports) -> None:
        write_bytes(self.path / "ports.json", encode(ports))


def listen(host: str, port: int, *, preferred: int = 0) -> socket.socket:
    """Open a listening socket.

    Args:
        host: Name or address to bind.
        port: 0 = `preferred` if it is free, or any.
        preferred: Port of the last run: agents know it.

    Raises:
        DeviceError: The port is in use, or the address is not this machine's.
    """
    if not port and preferred:
        with contextlib.suppress(DeviceError):
            return listen(host, preferred)
    try:
        family, kind, protocol, _name, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise DeviceError(
            f"cannot listen on {host}: {error.strerror}", hint="use an address of this machine"
        ) from error
    listener = socket.socket(family, kind, protocol)  # the event loop sets TCP_NODELAY only where the protocol is named
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(512)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            hint = "stop what listens there, or choose another port with --listen HOST:PORT (port 0 = any)"
            raise DeviceError(f"port {port} of {host} is in use", hint=hint) from error
        raise DeviceError(f"cannot listen on {host}:{port}: {os.strerror(error.errno or 0)}") from error
    os.set_inheritable(listener.fileno(), False)
    return listener
