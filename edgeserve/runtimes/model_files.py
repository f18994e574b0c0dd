"""Which files a model consists of, and a digest of them all: what is built of it is kept under that."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path

import msgspec

from edgeserve.release.blobs import open_regular
from edgeserve.release.documents import CONTRACT_FILE


def model_files(path: Path) -> tuple[Path, ...]:
    """The files that an engine is built from: those of the variant, or of a model alone it and its weights beside it.

    Args:
        path: The ONNX file; weights outside it begin with its name, or its name without the suffix.
    """
    beside = [other for other in path.parent.iterdir() if other.is_file() and other != path]
    if (path.parent / CONTRACT_FILE).is_file():
        return (path, *(other for other in beside if other.name != CONTRACT_FILE))
    return (path, *(other for other in beside if other.name.startswith((path.name, f"{path.stem}."))))


def digest_files(paths: Collection[Path]) -> str:
    """SHA-256 of the names and contents of files, in the order of their names.

    Raises:
        EdgeServeError: One is missing, is no regular file or cannot be read.
    """
    whole = hashlib.sha256()
    for path in sorted(paths, key=lambda path: path.name):
        with open_regular(path, follow=True) as file:
            one = hashlib.sha256()
            while chunk := file.read(1 << 20):
                one.update(chunk)
        whole.update(msgspec.json.encode((path.name, one.hexdigest())))
    return whole.hexdigest()
