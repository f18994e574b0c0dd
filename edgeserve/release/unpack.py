"""From blobs to a folder that a runtime can load from: files under their titles, and the contract beside them."""

from __future__ import annotations

import contextlib
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from edgeserve import atomic
from edgeserve.contracts.errors import ConflictError, DeviceError
from edgeserve.contracts.limits import MAX_CONFIG_BYTES
from edgeserve.release.blobs import BlobSource
from edgeserve.release.documents import CONTRACT_FILE

if TYPE_CHECKING:
    from edgeserve.release.layout import Variant


def unpack_variant(blobs: BlobSource, variant: Variant, folder: Path) -> None:
    """Make `folder` hold the files of a variant under their titles and its contract as `contract.json`.

    Every byte is checked against its digest on the way. From a `BlobFolder` on the same file system the files are
    hard links, so they take no space; nobody may write to them. `folder` appears whole or not at all; a killed
    process can leave a `.NAME.*.tmp` beside it. When `folder` already holds the variant nothing happens (lengths
    are looked at, not hashes); an empty folder is filled.

    Raises:
        NotFoundError: A blob is missing.
        TrustError: A blob does not have the length or the hash that names it.
        ConflictError: `folder` holds something else.
        DeviceError: It could not be written.
    """
    config = blobs.read(variant.manifest.config.digest, limit=MAX_CONFIG_BYTES)
    if _holds_something(folder):
        if not _holds(folder, variant, config):
            raise ConflictError(f"{folder} holds something else", hint="remove it or choose another folder")
        return
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.mkdir(parents=True)
        for title, descriptor in variant.files.items():
            blobs.place(descriptor.digest, descriptor.size, temporary / title)
        atomic.write_bytes(temporary / CONTRACT_FILE, config)
        atomic.sync_tree(temporary)
        atomic.move(temporary, folder)
    except BaseException as error:
        with contextlib.suppress(OSError):
            shutil.rmtree(temporary)
        if isinstance(error, OSError):
            hint = "check space and permissions of the folder"
            raise DeviceError(f"cannot write {folder}: {error.strerror or error}", hint=hint) from error
        raise


def _holds_something(folder: Path) -> bool:
    try:
        return any(folder.iterdir())
    except FileNotFoundError:
        return False
    except OSError as error:
        raise ConflictError(f"{folder} is not a folder that can be read: {error.strerror}") from error


def _holds(folder: Path, variant: Variant, config: bytes) -> bool:
    try:
        whole = (folder / CONTRACT_FILE).read_bytes() == config
        return whole and all((folder / title).stat().st_size == file.size for title, file in variant.files.items())
    except OSError:
        return False
