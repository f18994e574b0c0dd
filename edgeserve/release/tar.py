"""A release in one tar file: read at offsets, never extracted; written byte for byte the same every time.

Format: POSIX.1-1988 ustar, with GNU's base-256 sizes where 8 GiB need them (libarchive's tar(5) describes both).
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final

from edgeserve.contracts.errors import DeviceError, InputError, NotFoundError
from edgeserve.contracts.limits import KIB, MAX_TAR_HEADERS
from edgeserve.contracts.names import digest as checked_digest
from edgeserve.release.blobs import BlobSource, open_regular

_BLOCK: Final = tarfile.BLOCKSIZE
_NAME: Final = re.compile(r"oci-layout|index\.json|blobs/sha256/[0-9a-f]{64}")
_FILES: Final = (tarfile.REGTYPE, tarfile.AREGTYPE)
_EXTENDED: Final = (tarfile.XHDTYPE, tarfile.XGLTYPE)
_MAX_EXTENDED_BYTES: Final = 64 * KIB
_MEANINGFUL: Final = re.compile(rb"\d+ (?:path|linkpath|size|GNU\.sparse\.[\w.]+)=")
_REMADE: Final = "edgeserve writes no such tar: get the release from who made it"
_KINDS: Final = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.CONTTYPE: "a contiguous file",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
    tarfile.GNUTYPE_LONGNAME: "an over-long name",
    tarfile.GNUTYPE_LONGLINK: "an over-long link",
}


@dataclass(frozen=True)
class Extent:
    """Where a member's bytes lie in the tar file."""

    offset: int
    size: int


def read_members(path: Path) -> dict[str, Extent]:
    """Index the members of a tar that an image layout has: `oci-layout`, `index.json`, `blobs/sha256/*`.

    Other plain files are passed over, as image-spec allows them; none is ever read.

    Raises:
        NotFoundError: The file is missing.
        InputError: It is not a tar, is truncated, has too many members, one of them is a link, a device or a sparse
            file, has a name that leaves the folder, or is there twice.
    """
    members: dict[str, Extent] = {}
    with open_regular(path, follow=True) as file:
        end = file.seek(0, io.SEEK_END)
        offset = 0
        for _ in range(MAX_TAR_HEADERS):
            info = _header(file, offset, path)
            if info is None:
                return members
            data = Extent(offset + _BLOCK, info.size)
            offset = data.offset + _padded(info.size)
            if info.size < 0 or offset > end:
                raise InputError(f"{path} is truncated", hint="get it again")
            if info.type in _EXTENDED:
                _check_extended(file, data, path)
            elif info.type != tarfile.DIRTYPE:
                name = _member_name(info, path)
                if name in members:
                    raise InputError(f"{path} has two members {name}")
                if _NAME.fullmatch(name):
                    members[name] = data
    raise InputError(f"{path} has more than {MAX_TAR_HEADERS} members")


class TarBlobs(BlobSource):
    """The blobs inside a release's tar."""

    def __init__(self, path: Path, members: dict[str, Extent]) -> None:
        self._path = path
        self._members = members

    @property
    def location(self) -> Path:
        """The tar file."""
        return self._path

    def size(self, digest: str) -> int:
        """Length of a blob in bytes; see `BlobSource.size`."""
        return self._extent(digest).size

    def open(self, digest: str) -> BinaryIO:
        """Open a blob for reading; see `BlobSource.open`."""
        return open_member(self._path, self._extent(digest))

    def _extent(self, digest: str) -> Extent:
        try:
            return self._members["blobs/" + checked_digest(digest).replace(":", "/")]
        except KeyError:
            raise self._missing(digest) from None


def read_member(path: Path, members: dict[str, Extent], name: str, *, limit: int) -> bytes:
    """Read a small member whole.

    Raises:
        NotFoundError: There is no such member.
        InputError: It is longer than `limit`.
    """
    extent = members.get(name)
    if extent is None:
        raise NotFoundError(f"{path} has no {name}", hint="give a release: an OCI image layout")
    if extent.size > limit:
        raise InputError(f"{name} in {path} has {extent.size} bytes, at most {limit} are allowed")
    with open_member(path, extent) as file:
        return file.read()


def open_member(path: Path, extent: Extent) -> BinaryIO:
    """Open a part of a file as if it were a file; seekable.

    Raises:
        NotFoundError, InputError, DeviceError: As `edgeserve.release.blobs.open_regular`.
    """
    return io.BufferedReader(_Section(open_regular(path, follow=True), extent))


def tar_chunks(members: Iterable[tuple[str, int, Iterable[bytes]]]) -> Iterator[bytes]:
    """Yield a tar of regular files (name, length in bytes, content): no times, no owners, mode 0644.

    Folders get members of their own, before the first file in them.
    """
    folders: set[str] = set()
    length = 0
    for name, size, content in members:
        for parent in sorted(str(folder) for folder in PurePosixPath(name).parents if str(folder) != "."):
            if parent not in folders:
                folders.add(parent)
                length += _BLOCK
                yield _written_header(parent, 0, tarfile.DIRTYPE, 0o755)
        yield _written_header(name, size, tarfile.REGTYPE, 0o644)
        yield from content
        yield bytes(_padded(size) - size)
        length += _BLOCK + _padded(size)
    yield bytes(2 * _BLOCK + -(length + 2 * _BLOCK) % tarfile.RECORDSIZE)


def _header(file: BinaryIO, offset: int, path: Path) -> tarfile.TarInfo | None:
    """The header at `offset`; None at the end mark."""
    try:
        file.seek(offset)
        block = file.read(_BLOCK)
    except OSError as error:
        raise DeviceError(f"cannot read {path}: {error.strerror or error}", hint="check the disk") from error
    if offset == 0 and block[:2] in (b"\x1f\x8b", b"BZ", b"\xfd7", b"\x28\xb5"):
        raise InputError(f"{path} is compressed", hint="unpack it to a plain .tar first")
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        if len(block) == _BLOCK and not any(block):
            return None
        if offset and len(block) < _BLOCK:
            raise InputError(f"{path} is truncated: it has no end mark", hint="get it again") from error
        raise InputError(
            f"{path} is not a release's tar, or it is damaged at byte {offset}: {error}",
            hint="give the folder or the .tar of a release; get it again if it is damaged",
        ) from error


def _member_name(info: tarfile.TarInfo, path: Path) -> str:
    name = info.name.removeprefix("./")
    shown = ascii(info.name[:100])
    if info.type not in _FILES:
        kind = _KINDS.get(info.type, f"of the unknown type {info.type!r}")
        raise InputError(f"{path}: member {shown} is {kind}; a release has only plain files and folders", hint=_REMADE)
    if name.startswith("/") or ".." in name.split("/"):
        raise InputError(f"{path}: member {shown} lies outside of the release", hint=_REMADE)
    return name


def _check_extended(file: BinaryIO, data: Extent, path: Path) -> None:
    """Refuse extended headers (pax) that change what a member is; times and owners in them are of no interest."""
    if data.size > _MAX_EXTENDED_BYTES:
        raise InputError(f"{path} has an extended header of {data.size} bytes, at most {_MAX_EXTENDED_BYTES}")
    file.seek(data.offset)
    if _MEANINGFUL.search(file.read(data.size)):
        raise InputError(
            f"{path} has an extended header that renames, resizes or thins out a member",
            hint="a release's tar needs none: write it again with edgeserve, or with tar --format=gnu",
        )


def _written_header(name: str, size: int, kind: bytes, mode: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.mode = size, kind, mode
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "strict")


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


class _Section(io.RawIOBase):
    """A part of an open file, which it closes."""

    def __init__(self, file: BinaryIO, extent: Extent) -> None:
        self._file = file
        self._extent = extent
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._extent.size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # the stub wants any buffer
        wanted = min(len(buffer), max(0, self._extent.size - self._position))
        self._file.seek(self._extent.offset + self._position)
        data = self._file.read(wanted)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
