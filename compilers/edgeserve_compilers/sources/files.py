"""Files and folders from outside, read whole and within bounds; libraries that may be missing."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

from edgeserve import plugins
from edgeserve.contracts.errors import InputError
from edgeserve.contracts.limits import MAX_MODEL_FILE_BYTES, MAX_MODEL_FOLDER_FILES
from edgeserve.runtimes.checks import check_file


def read(path: Path) -> bytes:
    """Content of a file.

    Raises:
        NotFoundError: There is nothing.
        InputError: It is no file, too large, or cannot be read.
    """
    check_file(path)
    if path.stat().st_size > MAX_MODEL_FILE_BYTES:
        raise InputError(f"{path} has {path.stat().st_size} bytes, at most {MAX_MODEL_FILE_BYTES} are allowed")
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def folder_digest(folder: Path) -> str:
    """Hash over the names and contents of the files of a folder, in order of their names.

    Raises:
        InputError: It has too many or too large files, or one cannot be read.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if len(files) > MAX_MODEL_FOLDER_FILES:
        raise InputError(f"{folder} has {len(files)} files, at most {MAX_MODEL_FOLDER_FILES} are allowed")
    if (total := sum(path.stat().st_size for path in files)) > MAX_MODEL_FILE_BYTES:
        raise InputError(f"{folder} has {total} bytes, at most {MAX_MODEL_FILE_BYTES} are allowed")
    digest = hashlib.sha256()
    for path in files:
        content = hashlib.sha256(read(path)).hexdigest()
        digest.update(f"{path.relative_to(folder).as_posix()}\0{content}\n".encode())
    return "sha256:" + digest.hexdigest()


@contextlib.contextmanager
def needs(what: str) -> Iterator[None]:
    """Turn a failing import into the error that says which extra to install for `what`.

    Raises:
        DeviceError: A package is missing.
    """
    try:
        yield
    except ImportError as error:
        raise plugins.missing(error, what) from error
