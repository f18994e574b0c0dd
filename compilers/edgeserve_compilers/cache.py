"""Releases that were compiled before, by all that they were made from. It saves time and never costs a compilation.

An entry is a release folder named by its key. It appears whole or not at all, is verified before it is given out, and
the one that was used longest ago goes first when there is no room. Several processes may use one cache at once: entries
of one key serve alike, so whoever comes second leaves the first one's in place.

Whoever may write to the folder can choose what `compile` answers: it is made for its owner alone.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Final

from edgeserve import atomic
from edgeserve.contracts.documents import encode
from edgeserve.contracts.errors import EdgeServeError, InputError, TrustError
from edgeserve.contracts.limits import COMPILE_CACHE_BYTES, COMPILE_CACHE_LEFTOVER_S
from edgeserve.release.build import copy_release
from edgeserve.release.layout import verify_release

_KEY: Final = re.compile(r"[0-9a-f]{64}\Z")
_TEMPORARY: Final = re.compile(r"\.[0-9a-f]{64}\.[0-9a-f]{8}\.tmp\Z")
_PACKAGES: Final = ("edgeserve", "edgeserve_compilers", "edgeserve_devices")
_SOURCES: Final = ("*.py", "*.j2", "*.css")


RELEASES: Final = "compile"
"""Folder of `default_folder` that a `Cache` may have for itself: others keep what is theirs beside it."""


def default_folder(env: Mapping[str, str], home: Path) -> Path:
    """Where caches lie: `EDGESERVE_CACHE`, else `XDG_CACHE_HOME/edgeserve`, else `~/.cache/edgeserve`.

    A relative XDG_CACHE_HOME is ignored, as the XDG Base Directory Specification asks.

    Args:
        env: Environment variables; an empty one counts as absent.
        home: The user's home folder.
    """
    if chosen := env.get("EDGESERVE_CACHE"):
        return Path(chosen)
    shared = Path(env.get("XDG_CACHE_HOME", ""))
    return (shared if shared.is_absolute() else home / ".cache") / "edgeserve"


class Cache:
    """The folder with the entries; it is made when the first one is put.

    Args:
        folder: Holds entries and nothing else.
        limit_bytes: All entries together are kept below it.
    """

    def __init__(self, folder: Path, limit_bytes: int = COMPILE_CACHE_BYTES) -> None:
        self._folder = folder
        self._limit = limit_bytes

    @staticmethod
    def key(**parts: object) -> str:
        """Name an entry by all that decides its content.

        edgeserve's own version and code are part of every key, so an edited installation never gets what another code
        made. Give the rest: digests of model and data, options, targets, identity of the release, versions of the
        libraries, the CPU (latencies are measured), and the digest of each `module:function` of the user.

        Args:
            parts: JSON-like values and `msgspec` structs.

        Returns:
            Hexadecimal sha256 of their canonical JSON.
        """
        whole = {"parts": parts, "edgeserve": version("edgeserve"), "code": _code_digest()}
        return hashlib.sha256(encode(whole)).hexdigest()

    def get(self, key: str) -> Path | None:
        """The release folder of an entry, every byte verified; None when there is none.

        A damaged entry is removed. Read it at once (`copy_release`): another process may remove it later, but the one
        used last is the last to go.
        """
        entry = self._entry(key)
        try:
            verify_release(entry)
            with contextlib.suppress(OSError):  # a cache on a read-only disk is still a cache
                os.utime(entry)
            return entry
        except (InputError, TrustError):
            self._remove(entry)
        except (EdgeServeError, OSError):
            pass  # unreadable now, perhaps not tomorrow
        return None

    def put(self, key: str, release_folder: Path) -> bool:
        """Keep a copy of a release, and make room for it.

        Returns:
            Whether the entry is there now. False is no error: the disk is full or read-only, or the release is larger
            than the whole cache.
        """
        entry = self._entry(key)
        try:
            size = _size(release_folder)
            if size > self._limit:
                return False
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._make_room(size)
            if not entry.exists():
                copy_release(release_folder, entry)
        except (EdgeServeError, OSError):
            pass  # perhaps another process was faster
        return entry.exists()

    def _entry(self, key: str) -> Path:
        if not _KEY.match(key):
            raise InputError(f"{key[:80]!r} is not a key of the cache", hint="make it with Cache.key")
        return self._folder / key

    def _make_room(self, size: int) -> None:
        """Remove what killed processes left, then the entries used longest ago until `size` bytes more have room."""
        for leftover in self._folder.iterdir():
            with contextlib.suppress(OSError):
                if (
                    _TEMPORARY.match(leftover.name)
                    and time.time() - leftover.lstat().st_mtime > COMPILE_CACHE_LEFTOVER_S
                ):
                    _discard(leftover)
        entries = sorted(self._entries())
        total = sum(held for _used, _path, held in entries) + size
        for _used, path, held in entries:
            if total <= self._limit:
                return
            self._remove(path)
            total -= held

    def _entries(self) -> Iterator[tuple[int, Path, int]]:
        """When each entry was last used (nanoseconds), where it lies, how many bytes it has."""
        for path in self._folder.iterdir():
            if _KEY.match(path.name):
                with contextlib.suppress(OSError):  # another process removes it
                    yield path.stat().st_mtime_ns, path, _size(path)

    def _remove(self, entry: Path) -> None:
        """Take an entry out of sight first: a half-removed one is never found."""
        aside = entry.with_name(f".{entry.name}.{secrets.token_hex(4)}.tmp")
        with contextlib.suppress(EdgeServeError, OSError):
            atomic.move(entry, aside)
            _discard(aside)


def _discard(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


@functools.cache
def _code_digest() -> str:
    """Of the source of the packages that decide what a compilation makes."""
    state = hashlib.sha256()
    for package in _PACKAGES:
        root = Path(str(resources.files(package)))
        for path in sorted(path for pattern in _SOURCES for path in root.rglob(pattern)):
            state.update(f"{package}/{path.relative_to(root)}\0".encode())
            state.update(hashlib.sha256(path.read_bytes()).digest())
    return state.hexdigest()
