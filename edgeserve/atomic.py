"""Files that are either the old or the new, never half: write, fsync, rename, fsync the folder.

The only place of the project that renames files.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from pathlib import Path

from edgeserve.contracts.errors import DeviceError


def write_bytes(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Put `data` at `path`, durably, replacing what is there.

    Raises:
        DeviceError: No space, no permission or an I/O error; `path` is as it was.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)  # noqa: TID251, PTH105 - the one place
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise _device_error(path, error) from error


def move(source: Path, destination: Path) -> None:
    """Rename a finished and synced file or folder to `destination` on the same file system, durably.

    Raises:
        DeviceError: The rename failed; both are as they were.
    """
    try:
        os.replace(source, destination)  # noqa: TID251, PTH105 - the one place
        sync_folder(destination.parent)
    except OSError as error:
        raise _device_error(destination, error) from error


def sync_folder(folder: Path) -> None:
    """Make renames and new names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Make every file and folder below `folder` durable, before it is moved into place."""
    for root, _folders, files in os.walk(folder):
        for name in files:
            descriptor = os.open(Path(root, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_folder(Path(root))


def free_bytes(folder: Path) -> int:
    """Bytes that an unprivileged process may still write on the file system of `folder`."""
    return shutil.disk_usage(folder).free


def _device_error(path: Path, error: OSError) -> DeviceError:
    return DeviceError(
        f"cannot write {path}: {error.strerror or error}", hint="check space and permissions of the folder"
    )
