"""Blobs named by their digest: the folder that layouts, the agent's store and the registry have in common."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from edgeserve import atomic
from edgeserve.contracts.errors import DeviceError, InputError, NotFoundError, TrustError
from edgeserve.contracts.names import digest as checked_digest

CHUNK_BYTES: Final = 1 << 20
"""Read at a time: large enough that hashing, not calls, takes the time."""

_HEX: Final = re.compile(r"[0-9a-f]{64}\Z")


def digest_of(data: bytes) -> str:
    """The sha256 digest of `data` as OCI writes it."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def open_regular(path: Path, *, follow: bool = False) -> BinaryIO:
    """Open a regular file for reading; a device or a pipe is refused and never waited for.

    Args:
        path: The file.
        follow: Whether `path` may be a symbolic link: right for what a user names, wrong for what a release holds.

    Raises:
        NotFoundError: Nothing is there.
        InputError: It is not a regular file.
        DeviceError: It cannot be read.
    """
    flags = os.O_RDONLY | _flag("O_CLOEXEC") | _flag("O_NONBLOCK") | _flag("O_BINARY")
    flags |= 0 if follow else _flag("O_NOFOLLOW")
    try:
        descriptor = os.open(path, flags)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(f"{path} is missing") from None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise InputError(f"{path} is not a regular file") from None
        raise DeviceError(f"cannot read {path}: {error.strerror}", hint="check its permissions") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(f"{path} is not a regular file")
    return os.fdopen(descriptor, "rb")


def _flag(name: str) -> int:
    """A flag of `os.open` by name; 0 where the system has none such (Windows, or O_BINARY elsewhere)."""
    return getattr(os, name, 0)


class BlobSource(ABC):
    """Blobs that can be read by digest."""

    @property
    @abstractmethod
    def location(self) -> Path:
        """Where they lie, for errors."""

    @abstractmethod
    def size(self, digest: str) -> int:
        """Length of a blob in bytes.

        Raises:
            NotFoundError: It is not here.
        """

    @abstractmethod
    def open(self, digest: str) -> BinaryIO:
        """Open a blob for reading, seekable. What is read has not been checked against the digest.

        Raises:
            NotFoundError: It is not here.
            InputError: It is not a regular file.
        """

    def has(self, digest: str, size: int | None = None) -> bool:
        """Tell whether a blob is here, of the length `size` when one is given; its hash is not checked."""
        try:
            found = self.size(digest)
        except NotFoundError:
            return False
        return size is None or found == size

    def read(self, digest: str, *, limit: int) -> bytes:
        """Read a whole blob.

        Args:
            digest: Digest that the bytes must have.
            limit: Most bytes that are read.

        Raises:
            NotFoundError: It is not here.
            InputError: It is longer than `limit`.
            TrustError: Its bytes do not have this digest.
        """
        with self.open(digest) as file:
            data = _read(file, limit + 1, self.location)
        if len(data) > limit:
            raise InputError(f"blob {digest} in {self.location} has more than the {limit} bytes allowed for it")
        if digest_of(data) != digest:
            raise self._damaged(digest)
        return data

    def chunks(self, digest: str, size: int) -> Iterator[bytes]:
        """Yield a blob in pieces; the error comes at the end, so what is made of them must be dropped then.

        Raises:
            NotFoundError: It is not here.
            TrustError: Its length is not `size` or its bytes do not have this digest.
        """
        found = self.size(digest)
        if found != size:
            raise TrustError(
                f"blob {digest} in {self.location} has {found} bytes, {size} are declared",
                hint="it was cut short or changed: get the release again",
            )
        hashed = hashlib.sha256()
        left = size
        with self.open(digest) as file:
            while left > 0 and (chunk := _read(file, min(CHUNK_BYTES, left), self.location)):
                hashed.update(chunk)
                left -= len(chunk)
                yield chunk
        if left or hashed.hexdigest() != digest.removeprefix("sha256:"):
            raise self._damaged(digest)

    def verify(self, digest: str, size: int) -> None:
        """Read a blob and check its length and hash.

        Raises:
            NotFoundError: It is not here.
            TrustError: Its length is not `size` or its bytes do not have this digest.
        """
        for _chunk in self.chunks(digest, size):
            pass

    def place(self, digest: str, size: int, destination: Path) -> None:
        """Put a verified copy of a blob at `destination`, durably.

        Raises:
            NotFoundError: It is not here.
            TrustError: Its length or hash is wrong; nothing is at `destination`.
            DeviceError: It could not be written.
        """
        atomic.write_chunks(destination, self.chunks(digest, size))

    def _missing(self, digest: str) -> NotFoundError:
        return NotFoundError(f"blob {digest} is missing from {self.location}", hint="get the release again")

    def _damaged(self, digest: str) -> TrustError:
        return TrustError(
            f"blob {digest} in {self.location} does not have the bytes that its digest names",
            hint="it was damaged or changed: get the release again",
        )


class BlobFolder(BlobSource):
    """Blobs as files, `root/sha256/<hex>`. Nothing is created before the first blob is added."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def location(self) -> Path:
        """The root folder."""
        return self._root

    def path(self, digest: str) -> Path:
        """Where the blob with this digest lies or would lie.

        Raises:
            InputError: `digest` is not one.
        """
        return self._root / "sha256" / checked_digest(digest).removeprefix("sha256:")

    def size(self, digest: str) -> int:
        """Length of a blob in bytes; see `BlobSource.size`."""
        path = self.path(digest)
        try:
            return path.lstat().st_size
        except (FileNotFoundError, NotADirectoryError):
            raise self._missing(digest) from None
        except OSError as error:
            raise DeviceError(f"cannot read {path}: {error.strerror}", hint="check its permissions") from error

    def open(self, digest: str) -> BinaryIO:
        """Open a blob for reading; see `BlobSource.open`."""
        try:
            return open_regular(self.path(digest))
        except NotFoundError:
            raise self._missing(digest) from None

    def add(self, data: bytes) -> str:
        """Store `data`, durably, and return its digest.

        Raises:
            DeviceError: It could not be written.
        """
        digest = digest_of(data)
        if not self.has(digest, len(data)):
            self._prepare()
            atomic.write_bytes(self.path(digest), data)
        return digest

    def add_file(self, source: Path) -> tuple[str, int]:
        """Store a copy of a file, durably; return its digest and its length in bytes.

        Raises:
            NotFoundError: `source` is missing.
            InputError: `source` is not a regular file, or was changed meanwhile.
            DeviceError: It could not be written.
        """
        digest, size = digest_file(source)
        if not self.has(digest, size):
            self._prepare()
            atomic.write_chunks(self.path(digest), file_chunks(source, digest))
        return digest, size

    def place(self, digest: str, size: int, destination: Path) -> None:
        """Hard-link a verified blob to `destination`, or copy it where links cannot be made; see `BlobSource.place`."""
        self.verify(digest, size)
        with contextlib.suppress(OSError):  # another file system, no links on it, or not ours to link
            os.link(self.path(digest), destination)
            return
        super().place(digest, size, destination)

    def digests(self) -> Iterator[str]:
        """Digests of all blobs that are here, in no order; leftovers of interrupted writes are no blobs."""
        try:
            names = os.listdir(self._root / "sha256")  # noqa: PTH208 - a snapshot of names, before the caller removes any
        except (FileNotFoundError, NotADirectoryError):
            return
        for name in names:
            if _HEX.match(name):
                yield f"sha256:{name}"

    def remove(self, digest: str) -> None:
        """Remove a blob; one that is not here is no error.

        Raises:
            DeviceError: It could not be removed.
        """
        try:
            self.path(digest).unlink(missing_ok=True)
        except OSError as error:
            raise DeviceError(f"cannot remove {self.path(digest)}: {error.strerror}") from error

    def _prepare(self) -> None:
        folder = self._root / "sha256"
        if folder.is_dir():
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            atomic.sync_folder(self._root)
            atomic.sync_folder(self._root.parent)
        except OSError as error:
            hint = "check space and permissions of the folder"
            raise DeviceError(f"cannot create {folder}: {error.strerror}", hint=hint) from error


def digest_file(path: Path) -> tuple[str, int]:
    """Digest and length in bytes of a regular file.

    Raises:
        NotFoundError: It is missing.
        InputError: It is not a regular file.
        DeviceError: It cannot be read.
    """
    hashed = hashlib.sha256()
    size = 0
    with open_regular(path, follow=True) as file:
        while chunk := _read(file, CHUNK_BYTES, path):
            hashed.update(chunk)
            size += len(chunk)
    return "sha256:" + hashed.hexdigest(), size


def file_chunks(path: Path, digest: str) -> Iterator[bytes]:
    """Yield the bytes of a file that was hashed before.

    Raises:
        InputError: It no longer has this digest; the error comes at the end.
    """
    hashed = hashlib.sha256()
    with open_regular(path, follow=True) as file:
        while chunk := _read(file, CHUNK_BYTES, path):
            hashed.update(chunk)
            yield chunk
    if hashed.hexdigest() != digest.removeprefix("sha256:"):
        raise InputError(f"{path} changed while it was read", hint="try again when nothing writes to it")


def _read(file: BinaryIO, size: int, path: Path) -> bytes:
    try:
        return file.read(size)
    except OSError as error:
        raise DeviceError(f"cannot read {path}: {error.strerror or error}", hint="check the disk") from error
