"""Blobs over HTTP by digest: resumed after a power cut, never longer than declared, hashed while they stream.

Two kinds of address, as in the OCI distribution specification 1.1: `/v2/MODEL/manifests/DIGEST` (image index and
manifests) and `/v2/MODEL/blobs/DIGEST` (everything else).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import random
import re
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

import urllib3

from edgeserve import __version__, atomic
from edgeserve.contracts.errors import DeviceError, NotFoundError, TransientError, TrustError
from edgeserve.contracts.limits import (
    BACKOFF_FIRST_S,
    BACKOFF_MAX_S,
    DOWNLOAD_ATTEMPTS,
    DOWNLOAD_CHUNK_BYTES,
    MIN_FREE_BYTES,
)
from edgeserve.contracts.oci import INDEX_TYPE, MANIFEST_TYPE, Descriptor
from edgeserve.release.blobs import BlobFolder

_NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_MOST_DAMAGED: Final = 2
_MOST_REDIRECTS: Final = 3
_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-\d+/(?:\d+|\*)\Z")
_TIMEOUT: Final = urllib3.Timeout(connect=10.0, read=30.0)
_log = logging.getLogger("edgeserve.agent")


class StoppedError(TransientError):
    """The deployment that wanted the download has ended."""


class Downloader:
    """Brings blobs of one model into a folder.

    Args:
        registry: Base URL of the OCI distribution API.
        model: Repository in it.
        token: Sent as a Bearer token to the registry's own host and to no other.
        blobs: Where verified blobs go.
        partial: Folder for unfinished ones, on the same file system as `blobs`.
        stop: Ends a download, also while it waits for its next attempt.
        allowance: Bytes that may be received in all, damaged ones and repetitions too; None = any number.
        backoff_s: First delay between attempts; doubles, with full jitter.
        min_free_bytes: What must stay free on the disk.
    """

    def __init__(
        self,
        *,
        registry: str,
        model: str,
        token: str,
        blobs: BlobFolder,
        partial: Path,
        stop: threading.Event,
        allowance: int | None = None,
        backoff_s: float = BACKOFF_FIRST_S,
        min_free_bytes: int = MIN_FREE_BYTES,
    ) -> None:
        self._base = f"{registry.rstrip('/')}/v2/{model}"
        self._token = token
        self._blobs = blobs
        self._partial = partial
        self._stop = stop
        self._allowance = allowance
        self._backoff_s = backoff_s
        self._min_free_bytes = min_free_bytes
        self._http = urllib3.PoolManager(retries=False, timeout=_TIMEOUT)
        self.downloaded = 0
        """Bytes received so far."""

    def close(self) -> None:
        """Close the connections."""
        self._http.clear()

    def fetch(self, blob: Descriptor) -> None:
        """Bring one blob here unless it is.

        Raises:
            TrustError: The server sends more than declared, other bytes than the digest names, or redirects elsewhere.
            NotFoundError: The registry does not have it.
            TransientError: No progress in DOWNLOAD_ATTEMPTS attempts.
            StoppedError: `stop` was set.
            DeviceError: The disk has no room, or the registry refuses this device.
        """
        if self._blobs.has(blob.digest, blob.size):
            return
        path = self._partial / blob.digest.removeprefix("sha256:")
        failures = damaged = 0
        furthest = _size(path)
        while not self._blobs.has(blob.digest, blob.size):
            if self._stop.is_set():
                raise StoppedError(f"download of {blob.digest} was stopped")
            try:
                self._attempt(path, blob)
            except _DamagedError as error:
                path.unlink(missing_ok=True)
                damaged += 1
                failures += 1
                if damaged >= _MOST_DAMAGED:
                    raise TrustError(str(error), hint="the registry's copy is damaged: publish it again") from error
            except (_TryAgainError, urllib3.exceptions.HTTPError) as error:
                failures = 1 if _size(path) > furthest else failures + 1
                furthest = max(furthest, _size(path))
                if failures >= DOWNLOAD_ATTEMPTS:
                    message = f"download of {blob.digest} made no progress in {failures} attempts: {error}"
                    raise TransientError(message, hint=f"check that {self._base} can be reached from here") from error
                _log.info("download of %s: %s", blob.digest, error)
                self._stop.wait(self._delay(failures))

    def _delay(self, failures: int) -> float:
        return random.uniform(0, min(BACKOFF_MAX_S, self._backoff_s * 2 ** (failures - 1)))  # noqa: S311 - jitter

    def _attempt(self, path: Path, blob: Descriptor) -> None:
        with _disk_errors(path, blob), _open_partial(path) as file:
            hashed = hashlib.sha256()
            have = _rehash(file, hashed)
            if have > blob.size:
                _empty(file)
                hashed, have = hashlib.sha256(), 0
            self._check_space(path.parent, blob.size - have)
            if have < blob.size or blob.size == 0:
                with contextlib.closing(self._request(blob, have)) as response:
                    start = _start_of(response, have)
                    if start != have:
                        _empty(file)
                        hashed, have = hashlib.sha256(), 0
                    have = self._receive(response, file, hashed, have, blob)
            file.flush()
            os.fsync(file.fileno())
        if have < blob.size:
            raise _TryAgainError(f"the connection ended after {have} of {blob.size} bytes")
        if hashed.hexdigest() != blob.digest.removeprefix("sha256:"):
            raise _DamagedError(f"the registry sent other bytes than {blob.digest} names")
        target = self._blobs.path(blob.digest)
        with _disk_errors(path, blob):
            target.parent.mkdir(parents=True, exist_ok=True)
        atomic.move(path, target)

    def _receive(
        self, response: urllib3.BaseHTTPResponse, file: BinaryIO, hashed: hashlib._Hash, have: int, blob: Descriptor
    ) -> int:
        for chunk in response.stream(DOWNLOAD_CHUNK_BYTES, decode_content=False):
            have += len(chunk)
            if have > blob.size:
                raise _DamagedError(f"the registry sends more than the {blob.size} bytes of {blob.digest}")
            file.write(chunk)
            hashed.update(chunk)
            self.downloaded += len(chunk)
            if self._allowance is not None and self.downloaded > self._allowance:
                message = f"the {self._allowance} bytes that may still be downloaded today are used up"
                raise DeviceError(message, hint="max_download_bytes_per_day is in [limits] of agent.toml")
            if self._stop.is_set():
                raise StoppedError(f"download of {blob.digest} was stopped")
        return have

    def _request(self, blob: Descriptor, have: int) -> urllib3.BaseHTTPResponse:
        is_document = blob.media_type in (INDEX_TYPE, MANIFEST_TYPE)
        url = f"{self._base}/{'manifests' if is_document else 'blobs'}/{blob.digest}"
        headers = {
            "Accept": blob.media_type if is_document else "application/octet-stream",
            "Accept-Encoding": "identity",
            "User-Agent": f"edgeserve-agent/{__version__}",
        }
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        if have:
            headers["Range"] = f"bytes={have}-"
        for _hop in range(_MOST_REDIRECTS + 1):
            response = self._http.request("GET", url, headers=headers, preload_content=False, redirect=False)
            if response.status not in (301, 302, 303, 307, 308):
                return response
            response.close()
            url = _same_origin(url, response.headers.get("Location", ""))
        raise TrustError(f"the registry redirects {blob.digest} more than {_MOST_REDIRECTS} times")

    def _check_space(self, folder: Path, needed: int) -> None:
        free = atomic.free_bytes(folder)
        if free - needed < self._min_free_bytes:
            message = f"{needed} bytes to download, but {free} are free and {self._min_free_bytes} of them must stay so"
            raise DeviceError(message, hint=f"make room on the file system of {folder}")


class _TryAgainError(Exception):
    """This attempt failed; the next may not."""


class _DamagedError(Exception):
    """The bytes are wrong."""


def _start_of(response: urllib3.BaseHTTPResponse, have: int) -> int:
    """Offset of the first byte that a response brings; 0 when the server ignores ranges."""
    status = response.status
    if status == 206:
        match = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
        if not match or int(match[1]) != have:
            raise _DamagedError(f"asked for bytes from {have}, got {response.headers.get('Content-Range', '')[:60]!r}")
        return have
    if status == 200:
        return 0
    if status == 416:
        raise _DamagedError(f"the registry has no byte {have} of it")
    if status in (401, 403):
        raise DeviceError(f"the registry refuses this device (status {status})", hint="run `edgeserve fleet enroll`")
    if status in (404, 410):
        raise NotFoundError(f"the registry does not have it (status {status})", hint="publish the release again")
    if status == 429 or status >= 500:
        raise _TryAgainError(f"the registry answers with status {status}")
    raise DeviceError(f"the registry answers with status {status}", hint="check the address of the registry")


def _same_origin(url: str, location: str) -> str:
    target = urllib.parse.urljoin(url, location)
    here, there = urllib.parse.urlsplit(url), urllib.parse.urlsplit(target)
    if not location or (here.scheme, here.netloc) != (there.scheme, there.netloc):
        raise TrustError(
            f"the registry redirects to another host, {there.netloc[:80]!r}", hint="name the host that has the files"
        )
    return target


def _open_partial(path: Path) -> BinaryIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    return os.fdopen(descriptor, "r+b")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _empty(file: BinaryIO) -> None:
    file.seek(0)
    file.truncate()


def _rehash(file: BinaryIO, hashed: hashlib._Hash) -> int:
    """Hash what an earlier attempt left; the position is then at its end."""
    have = 0
    while chunk := file.read(DOWNLOAD_CHUNK_BYTES):
        hashed.update(chunk)
        have += len(chunk)
    return have


@contextlib.contextmanager
def _disk_errors(path: Path, blob: Descriptor) -> Iterator[None]:
    """A full disk must leave room for the journal: what was downloaded is given up."""
    try:
        yield
    except urllib3.exceptions.HTTPError:
        raise
    except OSError as error:
        if error.errno in _NO_SPACE:
            with contextlib.suppress(OSError):
                path.unlink()
            raise DeviceError(f"no room for {blob.digest} ({blob.size} bytes): {error.strerror}") from error
        raise DeviceError(f"cannot write {path}: {error.strerror or error}") from error
