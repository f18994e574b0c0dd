"""Removes from the state directory what no slot refers to. Runs only while no deployment is under way."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from edgeserve.contracts.errors import EdgeServeError
from edgeserve.contracts.limits import MAX_INDEX_BYTES
from edgeserve.release.blobs import BlobFolder
from edgeserve.release.documents import is_evidence, parse_index, parse_manifest
from edgeserve_agent import finalize, journal, slots
from edgeserve_agent.slots import Slot

_log = logging.getLogger("edgeserve.agent")


def sweep(
    state_dir: Path, blobs: BlobFolder, partial: Path, keep: Iterable[Slot], on_effect: Callable[[str], None]
) -> None:
    """Remove variants, blobs, engines and unfinished downloads that `keep` does not need.

    Raises:
        OSError: Something could not be removed.
        DeviceError: As above, for a blob.
    """
    kept = tuple(keep)
    folders = {slot.folder(state_dir) for slot in kept}
    for folder in _children(state_dir / "variants"):
        if folder not in folders:
            on_effect("sweep:variant")
            shutil.rmtree(folder)
    wanted: set[str] = set()
    for slot in kept:
        wanted |= _blobs_of(slot, blobs)
    for digest in tuple(blobs.digests()):
        if digest not in wanted:
            on_effect("sweep:blob")
            blobs.remove(digest)
    on_effect("sweep:engines")
    finalize.collect(state_dir, folders)
    for unfinished in (*_children(partial), *blobs.location.glob("sha256/.*.tmp")):
        unfinished.unlink()


def clear_leftovers(state_dir: Path) -> None:
    """Remove what writes of the journal and the slots left when they were cut off. Before anything writes there."""
    for name in (journal.FILE, slots.FILE):
        for leftover in state_dir.glob(f".{name}.*.tmp"):
            with contextlib.suppress(OSError):
                leftover.unlink()


def _blobs_of(slot: Slot, blobs: BlobFolder) -> set[str]:
    wanted = {slot.release}
    try:
        index, _identity = parse_index(blobs.read(slot.release, limit=MAX_INDEX_BYTES))
        for descriptor in index.manifests:
            manifest = parse_manifest(blobs.read(descriptor.digest, limit=MAX_INDEX_BYTES))
            wanted |= {descriptor.digest, manifest.config.digest}
            if is_evidence(descriptor) or descriptor.digest == slot.variant:
                wanted |= {layer.digest for layer in manifest.layers}
    except EdgeServeError as error:
        # The unpacked variant goes on serving; a later return to it downloads again.
        _log.warning("release %s (%s) on disk is damaged: %s", slot.version, slot.release, error.message)
    return wanted


def _children(folder: Path) -> tuple[Path, ...]:
    try:
        return tuple(folder.iterdir())
    except FileNotFoundError:
        return ()
