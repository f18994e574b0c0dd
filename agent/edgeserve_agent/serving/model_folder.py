"""A folder of models in Triton's layout ("Model Repository").

    REPOSITORY/MODEL/config.pbtxt | config.toml | config.json        or none
    REPOSITORY/MODEL/VERSION/model.onnx | model.xml and .bin | model.tflite | model.null.json
    REPOSITORY/MODEL/VERSION/                                        ... a release: its folder, or a .tar in it
    REPOSITORY/MODEL/release/ | release.tar                          a release whose counter is the version
    REPOSITORY/MODEL/LABELS.txt, warmup/                             what the configuration names

Versions are numbers that do not begin with 0; what else lies there is passed over, as are hidden files.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from edgeserve.contracts.errors import ConflictError, DeviceError, EdgeServeError, InputError, NotFoundError
from edgeserve.contracts.limits import MAX_MODEL_FOLDER_FILES, MAX_MODEL_VERSIONS, MAX_REPOSITORY_MODELS
from edgeserve.contracts.model_config import ModelConfig
from edgeserve.contracts.names import file_name, served_name
from edgeserve_agent.serving import warmup
from edgeserve_agent.serving.config_file import CONFIG_FILES, find_config
from edgeserve_agent.serving.model_source import FoundModel, FoundVersion, OpenOptions
from edgeserve_agent.serving.opened import Opened
from edgeserve_agent.serving.served import Identity
from edgeserve_agent.serving.standalone import (
    HANDLER,
    RUNTIMES,
    check_name,
    digest_of,
    open_model_file,
    open_release_variant,
)

VERSION: Final = re.compile(r"[1-9][0-9]{0,17}\Z")
_RELEASES: Final = ("release", "release.tar")
_LAYOUT: Final = "oci-layout"


def is_repository(folder: Path) -> bool:
    """Tell a folder of models from a release, which is a folder, too."""
    return _is_folder(folder) and not _is_there(folder / _LAYOUT)


class ModelFolders:
    """`ModelSource` of a repository folder. Links are followed, but never in circles.

    Args:
        root: The folder.
        options: What the server was told.
    """

    def __init__(self, root: Path, options: OpenOptions) -> None:
        self._root = root
        self._options = options

    def names(self) -> list[str]:
        """Folders whose names a model can have."""
        return sorted(entry.name for entry in self._folders() if _is_name(entry.name))

    def unusable(self) -> list[str]:
        """Folders, hidden ones aside, whose names no model can have."""
        return sorted(ascii(entry.name) for entry in self._folders() if not _is_name(entry.name))

    def find(self, name: str, *, config: ModelConfig | None = None) -> FoundModel:
        """Look at one model; see `ModelSource.find`."""
        folder = self._folder(name)
        fingerprint = _fingerprint(folder)
        if config is None:
            config = find_config(folder)
        check_name(config, name, f"the configuration in {folder}")
        versions = _versions(folder)
        chosen = config.version_policy.chosen(tuple(versions))
        if not chosen:
            there = ", ".join(str(number) for number in sorted(versions)) or "none"
            raise InputError(
                f"model {name!r} has no version that its version policy serves; there: {there}",
                hint=f"put the model into {folder}/1/",
            )
        found = tuple(self._version(name, folder, number, versions[number], config) for number in chosen)
        if len({version.identity.release for version in found}) != len(found):
            raise ConflictError(f"two versions of model {name!r} are the same release")
        return FoundModel(name=name, config=config, versions=found, beside=_beside(folder), fingerprint=fingerprint)

    def fingerprint(self, name: str) -> str:
        """By names, sizes and times of all files; empty when there is no such model."""
        try:
            return _fingerprint(self._folder(name))
        except EdgeServeError:
            return ""

    def _folders(self) -> Iterator[Path]:
        folders = [self._root / name for name in _listed(self._root) if _is_folder(self._root / name)]
        if len(folders) > MAX_REPOSITORY_MODELS:
            raise InputError(f"{self._root} has {len(folders)} models, at most {MAX_REPOSITORY_MODELS} are allowed")
        yield from folders

    def _folder(self, name: str) -> Path:
        folder = self._root / served_name(name)
        if not _is_folder(folder):
            raise NotFoundError(f"there is no model {name!r} in the repository", hint=f"looked for the folder {folder}")
        return folder

    def _version(self, name: str, folder: Path, number: int, path: Path, config: ModelConfig) -> FoundVersion:
        """What cannot be opened is found out by whoever opens it: the other versions are not its concern."""
        options = self._options
        identity = partial(Identity, model=name, version=str(number), counter=number)
        try:
            content = _content(path, config)
            if content.is_release:
                digest = _release_digest(content.path)
                opener = partial(open_release_variant, content.path, options=options, config=config, folder=folder)
            else:
                digest = digest_of(_files(path), salt=str(number))
                opener = partial(
                    open_model_file,
                    content.path,
                    threads=options.threads,
                    config=config,
                    folder=folder,
                    version=path,
                )
        except (EdgeServeError, OSError) as error:
            digest, opener = f"unreadable:{number}", partial(_fail, error)
        return FoundVersion(identity=identity(release=digest, variant=digest), open=opener)


def _is_name(text: str) -> bool:
    try:
        served_name(text)
    except InputError:
        return False
    return True


def _is_folder(path: Path) -> bool:
    """As `Path.is_dir`, which raises for a name that is too long and for one that may not be looked at."""
    return os.path.isdir(path)  # noqa: PTH112


def _is_there(path: Path) -> bool:
    """As `Path.exists`, with the same exceptions to be spared."""
    return os.path.exists(path)  # noqa: PTH110


def _fail(error: Exception) -> Opened:
    raise error


def _listed(folder: Path) -> list[str]:
    """Names of what is not hidden, sorted.

    Raises:
        DeviceError: It cannot be read.
    """
    try:
        return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DeviceError(f"cannot read {folder}: {error.strerror}", hint="check its permissions") from error


def _versions(folder: Path) -> dict[int, Path]:
    """Number -> its folder, or the release that brings its number along."""
    entries = _listed(folder)
    found = {int(name): folder / name for name in entries if VERSION.match(name) and _is_folder(folder / name)}
    if len(found) > MAX_MODEL_VERSIONS:
        raise InputError(f"{folder} has {len(found)} versions, at most {MAX_MODEL_VERSIONS} are allowed")
    for name in _RELEASES:
        if name not in entries:
            continue
        from edgeserve.release.layout import open_release

        number = max(1, open_release(folder / name).identity.counter)
        if number in found:
            raise ConflictError(f"{folder} has version {number} twice: {found[number].name} and {name}")
        found[number] = folder / name
    return found


@dataclass(frozen=True, kw_only=True)
class _Content:
    path: Path
    is_release: bool


def _content(path: Path, config: ModelConfig) -> _Content:
    """What to open of a version's folder.

    Raises:
        InputError: Nothing in it is a model, or it is not clear which.
    """
    if path.suffix == ".tar" or _is_there(path / _LAYOUT):
        return _Content(path=path, is_release=True)
    if config.default_model_filename:
        named = path / file_name(config.default_model_filename)
        if not os.path.isfile(named):  # noqa: PTH113 - as above
            raise InputError(f"{path} has no {named.name}, which default_model_filename names")
        return _Content(path=named, is_release=False)
    names = _listed(path)
    if HANDLER in names:
        return _Content(path=path / HANDLER, is_release=False)
    models = [name for name in names if any(name.endswith(suffix) for suffix in RUNTIMES)]
    usual = [name for name in models if name.startswith("model.")]
    releases = [name for name in names if name.endswith(".tar") or _is_there(path / name / _LAYOUT)]
    candidates = usual or models or releases
    if len(candidates) != 1:
        what = f"{len(candidates)} models: {', '.join(candidates)}"[:200] if candidates else "no model"
        known = ", ".join(f"model{suffix}" if suffix.startswith(".") else suffix for suffix in RUNTIMES)
        raise InputError(f"{path} has {what}", hint=f"put one of {known} or a release there")
    return _Content(path=path / candidates[0], is_release=candidates == releases)


def _release_digest(path: Path) -> str:
    from edgeserve.release.layout import open_release

    return open_release(path).digest


def _files(folder: Path) -> list[Path]:
    return [path for path, status in _walk(folder) if stat.S_ISREG(status.st_mode)]


def _fingerprint(folder: Path) -> str:
    hashed = hashlib.sha256()
    for path, status in _walk(folder):
        name = os.fsencode(path.relative_to(folder))
        times = () if stat.S_ISDIR(status.st_mode) else (status.st_size, status.st_mtime_ns, status.st_ino)
        hashed.update(b"%s\0%s\0" % (name, repr(times).encode()))
    return hashed.hexdigest()


def _beside(folder: Path) -> str:
    """What changes when a file changes that is neither a version's nor the configuration: labels, warm-up data."""
    hashed = hashlib.sha256()
    for name in _listed(folder):
        if name == warmup.FOLDER:
            hashed.update(_fingerprint(folder / name).encode())
        elif name not in (*CONFIG_FILES, *_RELEASES):
            try:
                status = (folder / name).stat()
            except OSError:
                continue  # gone, or a link that leads nowhere
            if stat.S_ISREG(status.st_mode):
                hashed.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode("utf-8", "surrogateescape"))
    return hashed.hexdigest()


def _walk(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Everything below a folder that is not hidden, in a fixed order; through links, each folder once.

    Raises:
        InputError: It is more than a model has.
    """
    seen: set[tuple[int, int]] = set()
    count = 0
    pending = [folder]
    while pending:
        current = pending.pop()
        try:
            status = current.stat()
            if not stat.S_ISDIR(status.st_mode):
                yield current, status
                continue
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            yield current, status
            inside = _listed(current)[::-1]
        except (OSError, DeviceError):
            continue  # gone, or a link that leads nowhere
        count += len(inside)
        if count > MAX_MODEL_FOLDER_FILES:
            raise InputError(f"{folder} has more than {MAX_MODEL_FOLDER_FILES} files")
        pending += [current / name for name in inside]
