"""Files that are either the old or the new, never half: write, fsync, rename, fsync the folder.

The only place of the project that renames files.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from edgeserve.contracts.errors import ConflictError, DeviceError

_BINARY: Final[int] = getattr(os, "O_BINARY", 0)
"""Windows ends lines in its own way else."""
_SYNCED: Final = os.O_RDWR if sys.platform == "win32" else os.O_RDONLY
"""How a file is opened that is to be synced: Windows asks for the right to write."""


def write_bytes(path: Path, data: bytes, *, mode: int = 0o644, replace: bool = True) -> None:
    """Put `data` at `path`, durably, replacing what is there unless `replace` is false.

    Raises:
        ConflictError: Something is at `path` and `replace` is false.
        DeviceError: No space, no permission or an I/O error; `path` holds the old or the new, whole.
    """
    write_chunks(path, (data,), mode=mode, replace=replace)


def write_chunks(path: Path, chunks: Iterable[bytes], *, mode: int = 0o644, replace: bool = True) -> None:
    """Put the concatenation of `chunks` at `path` as `write_bytes` does, without holding it in memory.

    An error that `chunks` raises while it is read ends the write and passes through; `path` is as it was.

    Raises:
        ConflictError: Something is at `path` and `replace` is false.
        DeviceError: No space, no permission or an I/O error; `path` holds the old or the new, whole.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, mode)
        with os.fdopen(descriptor, "wb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            os.replace(temporary, path)  # noqa: TID251, PTH105 - the one place
        else:
            os.link(temporary, path)  # fails where a rename would replace
            temporary.unlink()
        sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, FileExistsError):
            raise ConflictError(f"{path} exists already", hint="remove it or choose another name") from error
        if isinstance(error, OSError):
            raise _device_error(path, error) from error
        raise


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
    """Make renames and new names in `folder` durable; Windows cannot open folders, and does so by itself."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Make every file and folder below `folder` durable, before it is moved into place.

    Raises:
        DeviceError: An I/O error.
    """
    try:
        for root, _folders, files in os.walk(folder):
            for name in files:
                descriptor = os.open(Path(root, name), _SYNCED)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
            sync_folder(Path(root))
    except OSError as error:
        raise _device_error(folder, error) from error


def free_bytes(folder: Path) -> int:
    """Bytes that an unprivileged process may still write on the file system of `folder`."""
    return shutil.disk_usage(folder).free


def _device_error(path: Path, error: OSError) -> DeviceError:
    return DeviceError(
        f"cannot write {path}: {error.strerror or error}", hint="check space and permissions of the folder"
    )
