"""What a model was loaded from: a worker that is started again must load the same, or nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from glob import escape
from pathlib import Path

from edgeserve.contracts.errors import EdgeServeError, InputError, NotFoundError
from edgeserve.contracts.limits import MAX_MODEL_FOLDER_FILES
from edgeserve.release.blobs import digest_file


class ModelFiles:
    """The digests of a model's files as they are when this is made, which is before the model is loaded.

    Args:
        path: What is handed to the runtime.
        folder: Has nothing but what belongs to the model; None = what bears the model's name beside it does, such as
            `m.onnx.data` and `m.bin` beside `m.onnx`.

    Raises:
        InputError: There are more files than a model has.
    """

    def __init__(self, path: Path, folder: Path | None = None) -> None:
        self._digests: dict[Path, str] = {}
        for file in _files(path, folder):
            if len(self._digests) >= MAX_MODEL_FOLDER_FILES:
                raise InputError(f"{folder or path.parent} has more than {MAX_MODEL_FOLDER_FILES} files")
            # What cannot be read here is not loaded, either, and the runtime knows best what is wrong with it.
            with contextlib.suppress(EdgeServeError):
                self._digests[file] = digest_file(file)[0]

    def change(self) -> str:
        """What is not any more as it was, in one sentence; empty = nothing. Reads the files."""
        for file, digest in self._digests.items():
            try:
                now = digest_file(file)[0]
            except NotFoundError:
                return f"{file} is gone"
            except EdgeServeError as error:
                return error.message
            if now != digest:
                return f"{file} has changed since the model was loaded"
        return ""


def _files(path: Path, folder: Path | None) -> Iterator[Path]:
    yield path
    if folder is None and path.is_dir():
        folder = path
    beside = path.parent.glob(f"{escape(path.stem)}.*") if folder is None else folder.rglob("*")
    yield from sorted(file for file in beside if file != path)
