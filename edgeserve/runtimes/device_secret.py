"""A secret that no other device knows and no other user may read, in a file: what seals are made with."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

from edgeserve import atomic
from edgeserve.contracts.errors import DeviceError, EdgeServeError
from edgeserve.release.blobs import open_regular

SECRET_BYTES: Final = 32


def device_secret(
    path: Path, *, locked: Callable[[], AbstractContextManager[None]], on_effect: Callable[[str], None]
) -> bytes:
    """Read the secret, or make one: SECRET_BYTES random bytes in a file of mode 0600.

    One that is damaged, belongs to another user or could have been read by one is replaced; what was sealed with it
    counts no more.

    Args:
        path: The file.
        locked: Keeps other processes from making one at the same time.
        on_effect: Called before and after the file is written.

    Raises:
        DeviceError: It cannot be written, or the file system does not keep owners and modes.
    """
    secret = _read(path)
    if secret:
        return secret
    with locked():
        secret = _read(path)
        if secret:  # another process was first
            return secret
        on_effect("secret:before")
        atomic.write_bytes(path, secrets.token_bytes(SECRET_BYTES), mode=0o600)
        on_effect("secret:after")
        secret = _read(path)
    if not secret:
        raise DeviceError(f"{path} cannot be kept to this user", hint="the file system must know owners and modes")
    return secret


def _read(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            found = os.fstat(file.fileno())
            data = file.read(SECRET_BYTES + 1)
    except (EdgeServeError, OSError):
        return b""
    is_ours = found.st_uid == os.geteuid() and not found.st_mode & 0o077
    return data if is_ours and len(data) == SECRET_BYTES else b""
