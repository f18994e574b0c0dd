"""Blobs on their way in. A session is one file; its length is the resume point, so it survives a restart."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

from edgeserve.atomic import free_bytes
from edgeserve.contracts.errors import ConflictError, DeviceError, InputError, NotFoundError, TransientError
from edgeserve.contracts.limits import MAX_BLOB_BYTES, MAX_UPLOADS, MIN_FREE_BYTES, UPLOAD_LIFETIME_S

_SESSION: Final = re.compile(r"[0-9a-f]{32}\Z")


class Uploads:
    """Upload sessions in a folder on the file system of the blobs. Safe to use from several threads.

    Args:
        folder: Made if absent; what an earlier run left and nobody continued is removed by age.
        clock: Unix seconds, compared with modification times.
    """

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._clock = clock
        self._lock = threading.Lock()
        self._busy: set[str] = set()
        folder.mkdir(parents=True, exist_ok=True)

    def begin(self) -> str:
        """Open a session and return its id.

        Raises:
            TransientError: MAX_UPLOADS sessions are open.
        """
        self._sweep()
        session = secrets.token_hex(16)
        with self._lock:
            if sum(1 for _ in self._folder.iterdir()) >= MAX_UPLOADS:
                raise TransientError(f"{MAX_UPLOADS} uploads are under way", hint="try again when some have ended")
            (self._folder / session).touch(mode=0o600, exist_ok=False)
        return session

    def offset(self, session: str) -> int:
        """Bytes that have arrived.

        Raises:
            NotFoundError: There is no such session.
        """
        try:
            return self._path(session).stat().st_size
        except FileNotFoundError:
            raise _unknown(session) from None

    @contextlib.contextmanager
    def claim(self, session: str) -> Iterator[Path]:
        """Hold a session for one request and get its file.

        Raises:
            NotFoundError: There is no such session.
            ConflictError: Another request holds it.
        """
        path = self._path(session)
        with self._lock:
            if session in self._busy:
                raise ConflictError(f"upload {session} is being written by another request")
            if not path.is_file():
                raise _unknown(session)
            self._busy.add(session)
        try:
            yield path
        finally:
            with self._lock:
                self._busy.discard(session)

    def cancel(self, session: str) -> None:
        """Forget a session and its bytes.

        Raises:
            NotFoundError: There is no such session.
            ConflictError: A request is writing it.
        """
        with self.claim(session) as path:
            path.unlink()

    def _sweep(self) -> None:
        oldest = self._clock() - UPLOAD_LIFETIME_S
        for path in self._folder.iterdir():
            with contextlib.suppress(NotFoundError, ConflictError, FileNotFoundError):
                if path.stat().st_mtime < oldest:
                    self.cancel(path.name)

    def _path(self, session: str) -> Path:
        if not _SESSION.match(session):
            raise _unknown(session)
        return self._folder / session


def append(file: BinaryIO, data: bytes) -> None:
    """Write `data` at the end of an upload.

    Raises:
        InputError: The blob would be longer than MAX_BLOB_BYTES.
        DeviceError: The disk is (almost) full; what arrived before is kept.
    """
    if file.tell() + len(data) > MAX_BLOB_BYTES:
        raise InputError(f"blob is longer than the {MAX_BLOB_BYTES} bytes that are allowed")
    try:
        if free_bytes(Path(os.fspath(file.name)).parent) < MIN_FREE_BYTES + len(data):
            raise DeviceError("the disk of the registry is full", hint="free some space, then push again")
        file.write(data)
        file.flush()
    except OSError as error:
        raise DeviceError(f"cannot store the upload: {error.strerror}", hint="check space and permissions") from error


def sync_file(path: Path) -> None:
    """Make the bytes of a file durable.

    Raises:
        DeviceError: An I/O error.
    """
    try:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    except OSError as error:
        raise DeviceError(f"cannot store the upload: {error.strerror}", hint="check the disk") from error


def _unknown(session: str) -> NotFoundError:
    return NotFoundError(f"there is no upload {session[:40]!a}", hint="start again: an idle upload is forgotten")
