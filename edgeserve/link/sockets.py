"""What the link needs of sockets: a way to wake its thread, and TLS that leaves nothing open."""

from __future__ import annotations

import contextlib
import socket
import ssl

from edgeserve.contracts.errors import InputError
from edgeserve.link.base import LinkConfig


class Waker:
    """Ends a `poll` from another thread."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def fileno(self) -> int:
        """Descriptor to poll for reading."""
        return self._reader.fileno()

    def wake(self) -> None:
        """End the current or next `poll`; from any thread."""
        with contextlib.suppress(OSError):  # full: it is awake already; closed: nobody sleeps
            self._writer.send(b"\0")

    def clear(self) -> None:
        """Take note of being awake."""
        with contextlib.suppress(BlockingIOError):
            self._reader.recv(4096)

    def close(self) -> None:
        """Close both ends; may be called twice."""
        self._reader.close()
        self._writer.close()


def tls_context(config: LinkConfig) -> ssl.SSLContext | None:
    """The TLS settings of a link; None for one without TLS.

    Raises:
        InputError: The file of certificate authorities cannot be used.
    """
    if not config.address().tls:
        return None
    try:
        context = ssl.create_default_context(cafile=config.ca_file or None)
    except OSError as error:
        raise InputError(
            f"cannot use {config.ca_file} to check the broker's certificate: {error}",
            hint="give a PEM file of the authority that signed it",
        ) from error
    context.sslsocket_class = _TlsSocket
    return context


class _TlsSocket(ssl.SSLSocket):
    """Closes itself when the handshake fails; paho forgets it then."""

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except OSError:
            self.close()
            raise
