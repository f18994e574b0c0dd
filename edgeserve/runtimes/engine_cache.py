"""What a runtime built of a model on this device (engines of TensorRT), kept from one start to the next.

An engine is machine code that the device will run. An entry is therefore two files, the engine and a manifest, and it
is used only if its manifest carries the seal of this device (HMAC-SHA256, RFC 2104, with a secret of 32 random bytes
in a file of mode 0600 outside the folder), names the very key that is asked for, and has the size and SHA-256 of the
bytes that were read, which are the bytes that are handed out. Everything else is built again and never loaded.

What the seal stops: engines of another device or another life of it (a copied card, a restored backup), a folder that
someone may write to who cannot read the secret (a container's volume, a share), entries exchanged among each other,
bits that rot. What it does not stop: whoever acts as the agent's user or as root, or may write to the state directory;
he can seal what he likes, and needs no engine to run code. Nor does it judge the model: the release's signature does.

Names only the standard library and msgspec: the control part of the agent, which has no numpy, collects garbage here.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import logging
import os
import shutil
import stat
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Final

import msgspec

from edgeserve import atomic
from edgeserve.contracts.errors import ConflictError, DeviceError, EdgeServeError
from edgeserve.contracts.limits import (
    ENGINE_PROGRESS_S,
    MAX_CONFIG_BYTES,
    MAX_ENGINE_BYTES,
    MAX_ENGINE_CACHE_BYTES,
    MAX_ENGINE_ENTRIES,
    MIN_FREE_BYTES,
)
from edgeserve.release.blobs import open_regular
from edgeserve.runtimes.device_secret import device_secret

SHARED: Final = "shared"
"""`EngineKey.model` of what serves the builds of all models, such as timings; it is never evicted for its model."""
FORMAT: Final = 1
"""Of entries and keys: an edgeserve that writes or builds them otherwise counts it up, and all is built anew."""
_LOCK: Final = "lock"
_ENGINE: Final = ".engine"
_MANIFEST: Final = ".json"
_BROKEN: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_log = logging.getLogger(__name__)


class NoSpaceError(DeviceError):
    """An engine cannot be kept: no fault of the model."""


class EngineKey(msgspec.Struct, frozen=True, kw_only=True):
    """All that an engine depends on."""

    model: str
    """SHA-256 of the model's files, or SHARED."""
    built_for: dict[str, str]
    """Facts of the device by the names of `Finalize.cache_key`: `tensorrt`, `cuda`, `driver`, `soc`."""
    settings: dict[str, str] = {}
    """Of the builder."""

    @property
    def name(self) -> str:
        """Of the entry: hexadecimal SHA-256 of the key and FORMAT."""
        return hashlib.sha256(_canonical((FORMAT, self))).hexdigest()

    def differs(self, other: EngineKey) -> str:
        """What is another than in `other`, for people; empty when nothing is."""
        changed = [
            f"{fact} is {self.built_for.get(fact, 'absent')}, was {other.built_for.get(fact, 'absent')}"
            for fact in sorted({*self.built_for, *other.built_for})
            if self.built_for.get(fact) != other.built_for.get(fact)
        ]
        changed += ["the settings of the builder changed"] if self.settings != other.settings else []
        changed += ["the model changed"] if self.model != other.model else []
        return "; ".join(changed)


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What lies beside an engine."""

    format: int
    key: EngineKey
    sha256: str
    size: int
    seconds: float
    """That building it took."""
    seal: str = ""
    """HMAC-SHA256 of the rest, hexadecimal."""


class EngineCache:
    """One folder of engines. Several processes may use it at once.

    Args:
        folder: Made with mode 0700 when it is not there.
        secret: File of the device's secret, outside the folder; made with mode 0600 when it is not there.
        limit_bytes: Of all engines together.
        on_effect: Called before and after every step that changes the disk, with its name: the seam of the crash tests.

    Raises:
        DeviceError: The folder or the secret cannot be made, or belongs to someone else.
    """

    def __init__(
        self,
        folder: Path,
        *,
        secret: Path,
        limit_bytes: int = MAX_ENGINE_CACHE_BYTES,
        on_effect: Callable[[str], None] = lambda _step: None,
    ) -> None:
        self.folder = folder
        self._limit_bytes = limit_bytes
        self._on_effect = on_effect
        _own_folder(folder)
        self._secret = device_secret(secret, locked=lambda: self._locked("an engine"), on_effect=on_effect)

    def find(self, key: EngineKey) -> bytes | None:
        """The engine of a key; None when there is none that is whole, of this very key and sealed here."""
        manifest = self._manifest(key.name)
        if manifest is None or manifest.key != key or manifest.format != FORMAT:
            return None
        return self._engine(key.name, manifest)

    def why_absent(self, key: EngineKey) -> str:
        """Why `find` gives nothing, for the log; empty when it gives something."""
        if self.find(key) is not None:
            return ""
        if _exists(self._path(key.name, _MANIFEST)) or _exists(self._path(key.name, _ENGINE)):
            return "what is in the cache was changed, cut off, or sealed elsewhere"
        others = [one.key for one in self._manifests() if one.key.model == key.model]
        if others:
            latest = max(others, key=lambda other: _written(self._path(other.name, _MANIFEST)))
            return key.differs(latest)
        return "it was never built here"

    def find_or_build(self, key: EngineKey, build: Callable[[], bytes], *, what: str) -> bytes:
        """The engine of a key, built if need be; of several processes that want it, one builds.

        Args:
            key: Of the engine.
            build: Makes it; runs while the folder is locked, and may call `find` and `save`.
            what: The model's name, for the log.

        Raises:
            NoSpaceError: No space for it.
            EdgeServeError: As `build` raises.
        """
        found = self.find(key)
        if found is not None:
            return found
        with self._locked(what):
            found = self.find(key)
            if found is not None:
                return found
            self._clear_leftovers()
            if atomic.free_bytes(self.folder) < MIN_FREE_BYTES:
                raise NoSpaceError(
                    f"no space for the engine of {what} in {self.folder}",
                    hint="free some of the disk",
                )
            _log.info("building the engine of %s: %s", what, self.why_absent(key))
            began = time.monotonic()
            self._on_effect("build:before")
            with _reporting(what):
                data = build()
            self._on_effect("build:after")
            seconds = time.monotonic() - began
            self.save(key, data, seconds=seconds)
            _log.info("built the engine of %s in %.1f s, %d bytes", what, seconds, len(data))
            return data

    def save(self, key: EngineKey, data: bytes, *, seconds: float = 0.0) -> None:
        """Put an entry in place of what is there. Call it from the `build` of `find_or_build`.

        Raises:
            NoSpaceError: No space, or larger than the limit; what was there is gone or whole.
        """
        if len(data) > min(self._limit_bytes, MAX_ENGINE_BYTES):
            raise NoSpaceError(
                f"the engine has {len(data)} bytes, at most {min(self._limit_bytes, MAX_ENGINE_BYTES)} are kept"
            )
        self._make_room(key, len(data))
        manifest = Manifest(
            format=FORMAT, key=key, sha256=hashlib.sha256(data).hexdigest(), size=len(data), seconds=round(seconds, 3)
        )
        manifest = msgspec.structs.replace(manifest, seal=self._seal(manifest))
        self._on_effect("engine:before")
        self._remove(key.name)
        # The engine first: one whose manifest is missing is none.
        try:
            atomic.write_bytes(self._path(key.name, _ENGINE), data, mode=0o600)
            self._on_effect("engine:after")
            atomic.write_bytes(self._path(key.name, _MANIFEST), _canonical(manifest), mode=0o600)
        except DeviceError as error:
            raise NoSpaceError(f"the engine cannot be kept: {error.message}", hint=error.hint) from error
        self._on_effect("manifest:after")

    def remove(self, key: EngineKey) -> None:
        """Drop an entry, such as one that its library does not take."""
        self._remove(key.name)

    def evict(self, models: Collection[str]) -> bool:
        """Drop the engines of all other models, and what is no entry of this device.

        Args:
            models: `EngineKey.model` of those that are installed.

        Returns:
            False when nothing was done because an engine is being built just now.

        Raises:
            DeviceError: Something could not be removed.
        """
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self._locked("", wait=False))
            except ConflictError:
                return False
            self._clear_leftovers()
            for name in self._names():
                manifest = self._manifest(name)
                if manifest is None or manifest.key.model not in (*models, SHARED):
                    self._on_effect("evict")
                    self._remove(name)
        return True

    def _manifests(self) -> list[Manifest]:
        found = (self._manifest(name) for name in self._names())
        return [manifest for manifest in found if manifest is not None]

    def _names(self) -> list[str]:
        names = {path.stem for path in self.folder.iterdir() if path.suffix in (_ENGINE, _MANIFEST)}
        return sorted(names)

    def _manifest(self, name: str) -> Manifest | None:
        try:
            with open_regular(self._path(name, _MANIFEST)) as file:
                data = file.read(MAX_CONFIG_BYTES)
            manifest = msgspec.json.decode(data, type=Manifest)
        except (*_BROKEN, EdgeServeError, OSError):
            return None
        if _canonical(manifest) != data:
            return None
        is_sealed = hmac.compare_digest(manifest.seal.encode(), self._seal(manifest).encode())
        return manifest if is_sealed and manifest.key.name == name else None

    def _engine(self, name: str, manifest: Manifest) -> bytes | None:
        try:
            with open_regular(self._path(name, _ENGINE)) as file:
                if os.fstat(file.fileno()).st_size != manifest.size:
                    return None
                data = file.read(manifest.size)
        except (EdgeServeError, OSError):
            return None
        return data if hashlib.sha256(data).hexdigest() == manifest.sha256 else None

    def _seal(self, manifest: Manifest) -> str:
        sealed = _canonical(msgspec.structs.replace(manifest, seal=""))
        return hmac.new(self._secret, sealed, hashlib.sha256).hexdigest()

    def _make_room(self, key: EngineKey, size: int) -> None:
        """Drop entries until there is room: first what another driver or library built, then the oldest."""
        sizes = {name: _size(self._path(name, _ENGINE)) for name in self._names() if name != key.name}
        current = {one.key.name for one in self._manifests() if one.key.built_for == key.built_for}
        order = sorted(sizes, key=lambda name: (name in current, _written(self._path(name, _ENGINE))))
        while order and (sum(sizes.values()) + size > self._limit_bytes or len(sizes) >= MAX_ENGINE_ENTRIES):
            name = order.pop(0)
            _log.info("an engine of %d bytes is dropped from %s to make room", sizes.pop(name), self.folder)
            self._on_effect("evict")
            self._remove(name)

    def _remove(self, name: str) -> None:
        try:
            # The manifest first: what is left by a cut is no entry.
            for path in (self._path(name, _MANIFEST), self._path(name, _ENGINE)):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise DeviceError(f"cannot remove {error.filename}: {error.strerror}") from error

    def _clear_leftovers(self) -> None:
        """Remove what a writer left that was cut off; the lock says that none is at work."""
        for leftover in self.folder.glob(".*.tmp"):
            with contextlib.suppress(OSError):
                leftover.unlink()

    def _path(self, name: str, suffix: str) -> Path:
        return self.folder / f"{name}{suffix}"

    @contextlib.contextmanager
    def _locked(self, what: str, *, wait: bool = True) -> Iterator[None]:
        """Hold the folder. The kernel lets go of it with the process, however that ends.

        One lock for all entries: two engines that are built at once would each be tuned while the other disturbs.
        """
        import fcntl  # not on Windows, where nothing builds engines

        descriptor = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    raise ConflictError(f"an engine is being built in {self.folder}") from None
                _log.info("%s waits until another engine is built", what)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _reporting(what: str) -> Iterator[None]:
    """Say every now and then that it goes on."""
    done = threading.Event()

    def report() -> None:
        began = time.monotonic()
        while not done.wait(ENGINE_PROGRESS_S):
            _log.info("building the engine of %s: %.0f s so far", what, time.monotonic() - began)

    thread = threading.Thread(target=report, name="engine-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _own_folder(folder: Path) -> None:
    """Make sure that `folder` is a folder of this user, which nobody else may enter."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            raise DeviceError(
                f"{folder} is not a folder of this user, so no engines are kept in it", hint="remove it, or chown it"
            )
        if found.st_mode & 0o077:
            folder.chmod(0o700)
    except OSError as error:
        raise DeviceError(f"cannot use {folder} for engines: {error.strerror}") from error


def _canonical(value: object) -> bytes:
    return msgspec.json.encode(value, order="deterministic")


def _exists(path: Path) -> bool:
    return os.path.lexists(path)


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0


def _written(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except OSError:
        return 0.0
