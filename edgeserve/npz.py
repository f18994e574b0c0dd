"""Named arrays in one file (`.npz`), read without trust and written with the same bytes every time.

`numpy.load` is not used: it allocates what a header claims before it looks at how much is there.
"""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.limits import MAX_NPZ_ARRAYS, MAX_NPZ_TEXT_BYTES, MAX_TENSOR_RANK

Array = npt.NDArray[np.generic]

_KINDS: Final = "biuf"
"""Kinds of numpy dtypes that are plain numbers."""
_TEXT: Final = "US"
"""Kinds of dtypes that are text of a fixed width."""
_LAST_CODE_POINT: Final = 0x10FFFF
_SURROGATES: Final = (0xD800, 0xDFFF)
_METHODS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def load(source: bytes | Path, *, what: str, limit: int, text: bool = False) -> dict[str, Array]:
    """Read every array of an npz file.

    Args:
        source: The file, or its content.
        what: Name of the file for errors.
        limit: Most bytes allowed, of the file and of all arrays together.
        text: Arrays of text of a fixed width (`U`, `S`) are allowed, too.

    Returns:
        Writable, C-contiguous arrays by name, in the order of the file.

    Raises:
        InputError: Cannot be read, is not a zip of arrays, is damaged or too large, or holds objects (pickle).
    """
    try:
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
        if size > limit:
            raise InputError(f"{what} has {size} bytes, at most {limit} are allowed")
        with zipfile.ZipFile(io.BytesIO(source) if isinstance(source, bytes) else source) as archive:
            return _arrays(archive, what, limit, _KINDS + _TEXT if text else _KINDS)
    except OSError as error:
        raise InputError(f"cannot read {what}: {error.strerror or error}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise InputError(
            f"{what} is not an npz file, or is damaged: {error}", hint="write it with numpy.savez"
        ) from error


def dump(arrays: Mapping[str, Array]) -> bytes:
    """Write arrays as a compressed npz; the same arrays give the same bytes, whatever the time or the machine."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, np.asarray(array, order="C"), version=(1, 0), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system = 3
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, member.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=6)
    return content.getvalue()


def _arrays(archive: zipfile.ZipFile, what: str, limit: int, kinds: str) -> dict[str, Array]:
    entries = archive.infolist()
    if len(entries) > MAX_NPZ_ARRAYS:
        raise InputError(f"{what} holds {len(entries)} arrays, at most {MAX_NPZ_ARRAYS} are allowed")
    total = sum(entry.file_size for entry in entries)
    if total > limit:
        raise InputError(f"{what} unpacks to {total} bytes, at most {limit} are allowed")
    arrays: dict[str, Array] = {}
    for entry in entries:
        name, dot, kind = entry.filename.rpartition(".")
        if dot + kind != ".npy" or not name:
            raise InputError(f"{what} holds {entry.filename[:80]!r}, which is not an array (.npy)")
        if name in arrays:
            raise InputError(f"{what} holds two arrays named {name[:80]!r}")
        if entry.compress_type not in _METHODS:
            raise InputError(f"{what} is packed with an unknown method", hint="write it with numpy.savez_compressed")
        with archive.open(entry) as member:
            arrays[name] = _array(member, entry.file_size, f"array {name[:80]!r} of {what}", kinds)
    return arrays


def _array(member: IO[bytes], size: int, what: str, kinds: str) -> Array:
    start = io.BytesIO(
        member.read(min(size, 64 * 1024))
    )  # an npy header of version 1 or 2 that numpy accepts is smaller
    shape, fortran, dtype = _header(start, what)
    if dtype.hasobject:
        raise InputError(f"{what} holds Python objects (pickle), which are never loaded", hint="store numbers only")
    if dtype.kind not in kinds:
        raise InputError(f"{what} has dtype {dtype}, which is not a plain number")
    if dtype.kind in _TEXT and not 0 < dtype.itemsize <= MAX_NPZ_TEXT_BYTES:
        raise InputError(f"{what} has text of {dtype.itemsize} bytes, 1 to {MAX_NPZ_TEXT_BYTES} are allowed")
    wanted = math.prod(shape) * dtype.itemsize
    if wanted > size - start.tell():
        raise InputError(f"{what} claims shape {list(shape)} of {dtype} but is truncated")
    buffer = bytearray(start.read(wanted))
    buffer += member.read(wanted - len(buffer))
    if len(buffer) != wanted or start.read(1) or member.read(1):
        raise InputError(f"{what} has another length than its shape {list(shape)} of {dtype} says")
    array: Array = np.frombuffer(buffer, dtype).reshape(shape, order="F" if fortran else "C")
    array = np.ascontiguousarray(array, dtype.newbyteorder("=")).reshape(shape)
    if dtype.kind == "U":
        _check_text(array, what)
    return array


def _check_text(array: Array, what: str) -> None:
    """Numpy takes any four bytes for a character, and fails where they become a string."""
    points = array.reshape(-1).view(np.uint32)
    if np.any((points > _LAST_CODE_POINT) | ((points >= _SURROGATES[0]) & (points <= _SURROGATES[1]))):
        raise InputError(f"{what} holds text that is not Unicode")


def _header(start: io.BytesIO, what: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    try:
        version = np.lib.format.read_magic(start)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, dtype = read(start)
    except (ValueError, KeyError) as error:
        raise InputError(f"{what} is not an array in numpy's format: {error}") from error
    if len(shape) > MAX_TENSOR_RANK or any(size < 0 for size in shape):
        raise InputError(f"{what} claims the shape {list(shape)[:20]}")
    return shape, fortran, dtype
