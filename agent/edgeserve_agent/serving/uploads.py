"""Files of a model that a load request brought, on their way to a repository folder of their own."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from edgeserve.contracts.errors import DeviceError, InputError
from edgeserve.contracts.limits import MAX_UPLOADED_BYTES, MAX_UPLOADED_FILES
from edgeserve.contracts.names import file_name, served_name
from edgeserve_agent.serving import warmup
from edgeserve_agent.serving.config_file import CONFIG_FILES
from edgeserve_agent.serving.model_folder import VERSION


def check(files: Mapping[str, bytes], *, has_config: bool) -> None:
    """Hold files against the bounds, before any is written.

    Args:
        files: As in `write`.
        has_config: A configuration came with them.

    Raises:
        InputError: There is none, they are too many or too large, or a name is not allowed.
    """
    if not has_config:
        raise InputError("files of a model need a config beside them", hint="give at least {} as config")
    if len(files) > MAX_UPLOADED_FILES:
        raise InputError(f"{len(files)} files were uploaded, at most {MAX_UPLOADED_FILES} are allowed")
    total = sum(len(data) for data in files.values())
    if total > MAX_UPLOADED_BYTES:
        raise InputError(f"{total} bytes were uploaded, at most {MAX_UPLOADED_BYTES} are allowed")
    for name in files:
        upload_path(name)


def write(scratch: Path, model: str, files: Mapping[str, bytes]) -> Path:
    """Make a repository folder of one model.

    Args:
        scratch: Folder, there or not, in which the new one is made.
        model: Name of the model.
        files: `VERSION/FILE` (or deeper), or the name of a file beside the configuration -> content.

    Returns:
        The repository folder; whoever asked removes it.

    Raises:
        InputError: A name is not allowed.
        DeviceError: It could not be written; nothing is left.
    """
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        root = Path(tempfile.mkdtemp(prefix="upload-", dir=scratch))
    except OSError as error:
        raise DeviceError(f"cannot keep uploaded files: {error.strerror}", hint="check the temporary folder") from error
    try:
        for name, data in files.items():
            _write(root / served_name(model) / upload_path(name), name, data)
    except BaseException:
        remove(root)
        raise
    return root


def remove(folder: Path | None) -> None:
    """Remove what `write` made."""
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def _write(path: Path, name: str, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        raise InputError(f"uploaded file {name[:80]!a} would lie within another") from None
    except OSError as error:
        raise DeviceError(f"cannot write {path}: {error.strerror}", hint="check the space of the folder") from error


def upload_path(name: str) -> Path:
    """Where an uploaded file belongs in its model's folder.

    Raises:
        InputError: It would lie elsewhere, or is a configuration.
    """
    parts = name.removeprefix("file:").split("/")
    try:
        checked = [file_name(part) for part in parts]
    except InputError as error:
        raise InputError(f"uploaded file {name[:80]!a} is not VERSION/FILE", hint=error.hint) from error
    if len(parts) > 4 or (len(parts) > 1 and not (VERSION.match(parts[0]) or parts[0] == warmup.FOLDER)):
        raise InputError(f"uploaded file {name[:80]!a} is not VERSION/FILE", hint="name it such as file:1/model.onnx")
    if parts[0] in CONFIG_FILES:
        raise InputError(f"uploaded file {name} would be a second configuration", hint="give it as config")
    return Path(*checked)
