"""Listening on a path: takes over from a dead server, never from a live one."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path
from typing import Final

from edgeserve.contracts.errors import DeviceError, InputError

OWNER_ONLY: Final = 0o600
EVERYONE: Final = 0o666


def listen_unix(path: Path, *, mode: int = OWNER_ONLY, backlog: int = 128) -> socket.socket:
    """A listening socket that does not block.

    Args:
        path: Where; its folder must exist.
        mode: Who may connect.
        backlog: Connections that may wait to be accepted.

    Raises:
        InputError: There is something else at `path`.
        DeviceError: Another server listens there, or the socket cannot be made.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o777 & ~mode)  # the right mode from the first moment
    try:
        _clear(path)
        listener.bind(str(path))
        listener.listen(backlog)
    except OSError as error:
        listener.close()
        hint = "choose a shorter path: Unix sockets allow about 100 characters" if "too long" in str(error) else ""
        raise DeviceError(f"cannot listen on {path}: {error.strerror or error}", hint=hint) from error
    except BaseException:
        listener.close()
        raise
    finally:
        os.umask(mask)
    listener.setblocking(False)
    return listener


def _clear(path: Path) -> None:
    """Remove the socket of a server that is gone."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise InputError(f"{path} is there already and not a socket", hint="choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        if probe.connect_ex(str(path)) not in (errno.ECONNREFUSED, errno.ENOENT):
            raise DeviceError(f"another server listens on {path}", hint="stop it, or choose another path")
    path.unlink(missing_ok=True)
