"""A folder that a library keeps what it builds in, between the library and `engine_cache`.

Libraries read their cache folders without a question. So they never get the real one: what was kept is unpacked, after
the cache has verified it, into a folder of this load alone, and what was built is packed into one entry.
"""

from __future__ import annotations

import io
import logging
import tarfile
import tempfile
from pathlib import Path

from edgeserve.runtimes.engine_cache import EngineCache, EngineKey, NoSpaceError

_log = logging.getLogger(__name__)


class KeptFolder:
    """A folder for one load of a model; gone when it is closed.

    Args:
        cache: Holds what was kept.
        key: Of it.
        what: Name of the model, for the log.

    Raises:
        DeviceError: No folder can be made.
    """

    def __init__(self, cache: EngineCache, key: EngineKey, *, what: str) -> None:
        self._cache = cache
        self._key = key
        self._what = what
        self._folder = tempfile.TemporaryDirectory(prefix="edgeserve-", ignore_cleanup_errors=True)
        self.path = Path(self._folder.name)
        """Empty, or with what was kept."""
        kept = cache.find(key)
        self.found = kept is not None
        """Whether something was kept."""
        if kept is not None:
            _unpack(kept, self.path)

    def keep(self) -> None:
        """Keep what the library has put there, if nothing was kept before and there is room."""
        if self.found or not any(path.is_file() for path in self.path.rglob("*")):
            return
        try:
            self._cache.find_or_build(self._key, lambda: _pack(self.path), what=self._what)
        except NoSpaceError as error:  # the model runs all the same
            _log.warning("what was built of %s is not kept: %s", self._what, error.message)

    def close(self) -> None:
        """Remove the folder. May be called twice."""
        self._folder.cleanup()


def runtime_cache(folder: Path, runtime: str) -> EngineCache:
    """The cache of one runtime in `RuntimeOptions.cache`; the device's secret lies beside that folder.

    Raises:
        DeviceError: It cannot be made, or belongs to someone else.
    """
    return EngineCache(folder / runtime, secret=folder.with_name(f"{folder.name}.key"))


def _pack(folder: Path) -> bytes:
    """Files of a folder as a tar archive that is the same for the same files."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()):
            data = path.read_bytes()
            member = tarfile.TarInfo(path.relative_to(folder).as_posix())
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return packed.getvalue()


def _unpack(data: bytes, folder: Path) -> None:
    """Write the files of an archive that this device has packed and sealed; a name that leads out is passed over."""
    root = folder.resolve()
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        for member in archive:
            target = (root / member.name).resolve()
            content = archive.extractfile(member) if member.isfile() else None
            if content is None or not target.is_relative_to(root):
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content.read())
