"""Where a deployment's missing blobs come from: the registry that the desired document names, within local limits."""

from __future__ import annotations

import threading
import time
import urllib.parse
from pathlib import Path

from edgeserve.contracts.errors import DeviceError
from edgeserve.contracts.oci import Descriptor
from edgeserve.release.blobs import BlobFolder
from edgeserve_agent.config import AgentConfig
from edgeserve_agent.download import Downloader
from edgeserve_agent.journal import Entry, Journal


class RegistrySource:
    """A `verify.Source` over HTTP; without a registry everything must be on disk already."""

    def __init__(
        self,
        config: AgentConfig,
        entry: Entry,
        journal: Journal,
        *,
        blobs: BlobFolder,
        partial: Path,
        stop: threading.Event,
    ) -> None:
        self._limit = config.limits.max_download_bytes_per_day
        self._used = journal.downloaded_today(time.time())
        self._blobs = blobs
        self._downloader: Downloader | None = None
        if entry.registry:
            self._downloader = Downloader(
                registry=entry.registry,
                model=entry.record.model,
                token=_token(config, entry.registry),
                blobs=blobs,
                partial=partial,
                stop=stop,
                allowance=max(0, self._limit - self._used) if self._limit else None,
            )

    def fetch(self, blob: Descriptor) -> None:
        """Download one blob unless it is here; see `Downloader.fetch`."""
        if self._downloader is not None:
            self._downloader.fetch(blob)

    def refetch(self, blob: Descriptor) -> bool:
        """Download one blob in the place of a damaged one."""
        if self._downloader is None:
            return False
        self._blobs.remove(blob.digest)
        self._downloader.fetch(blob)
        return True

    def plan(self, missing: int) -> None:
        """Refuse what would pass the device's daily limit.

        Raises:
            DeviceError: It would.
        """
        used = self._used + self.downloaded
        if self._limit and missing and used + missing > self._limit:
            message = f"{missing} bytes to download, {used} of the {self._limit} allowed a day are used"
            raise DeviceError(message, hint="max_download_bytes_per_day is in [limits] of agent.toml")

    @property
    def downloaded(self) -> int:
        """Bytes that came over the network so far."""
        return self._downloader.downloaded if self._downloader else 0

    def close(self) -> None:
        """Close the connections."""
        if self._downloader is not None:
            self._downloader.close()


def _token(config: AgentConfig, registry: str) -> str:
    """The device's token, for the manager that gave it and no other host."""
    if config.manager is None:
        return ""
    ours, theirs = urllib.parse.urlsplit(config.manager.url), urllib.parse.urlsplit(registry)
    return config.manager.token if (ours.scheme, ours.netloc) == (theirs.scheme, theirs.netloc) else ""
