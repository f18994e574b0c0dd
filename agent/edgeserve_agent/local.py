"""Install and roll back without a fleet, on a device whose agent is stopped: the same machine, the same journal.

The next start of the agent puts the release on probation.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path

from edgeserve import atomic
from edgeserve.contracts.desired import ModelTarget
from edgeserve.contracts.errors import DeviceError, NotFoundError
from edgeserve.contracts.oci import Descriptor
from edgeserve.release.layout import Release, open_blobs, open_release
from edgeserve_agent import slots
from edgeserve_agent.config import AgentConfig
from edgeserve_agent.daemon import locked
from edgeserve_agent.deployer import Deployer, Job
from edgeserve_agent.deployment import Record
from edgeserve_agent.hardware import device_facts
from edgeserve_agent.installer import Installer
from edgeserve_agent.journal import JournalFile


def install(config: AgentConfig, path: Path) -> Record:
    """Install a release from a folder or tar.

    Returns:
        The deployment: on probation, committed when it was installed already, or rejected with the reason.

    Raises:
        ConflictError: The agent runs.
        NotFoundError, InputError, TrustError: `path` is not a sound release.
        DeviceError: The state directory cannot be written.
    """
    release = open_release(path)
    target = ModelTarget(
        model=release.identity.name,
        release=release.digest,
        version=release.identity.version,
        counter=release.identity.counter,
        index_size=release.index_size,
        probation_s=config.limits.minimum_probation_s,
    )
    with locked(config.folder):
        return _Local(config).deploy(target, release)


def rollback(config: AgentConfig, model: str) -> Record:
    """Return to the release that answered before.

    Raises:
        ConflictError: The agent runs.
        NotFoundError: There is nothing to return to.
        DeviceError: The state directory cannot be written.
    """
    with locked(config.folder):
        previous = slots.read(config.folder).of(model).previous
        if previous is None:
            raise NotFoundError(f"no earlier release of {model[:80]!r} is kept here", hint="install one")
        local = _Local(config)
        release = local.kept(previous.release)
        target = ModelTarget(
            model=model,
            release=previous.release,
            version=previous.version,
            counter=release.identity.counter,
            index_size=release.index_size,
            probation_s=config.limits.minimum_probation_s,
        )
        return local.deploy(target, None)


class _Local:
    """One local deployment, carried out on the calling thread."""

    def __init__(self, config: AgentConfig) -> None:
        facts, targets = device_facts(config.device)
        self._journal = JournalFile(config.folder)
        self._jobs: deque[Job] = deque()
        self._installer = Installer(
            config=config, facts=facts, targets=targets, journal=lambda: self._journal.value, serving=None
        )
        self._deployer = Deployer(
            config=config, journal=self._journal, installer=self._installer, submit=self._jobs.append
        )

    def kept(self, digest: str) -> Release:
        """A release whose blobs are on disk."""
        return open_blobs(self._installer.blobs, digest)

    def deploy(self, target: ModelTarget, source: Release | None) -> Record:
        if source is not None:
            for blob in source.blob_descriptors():
                self._copy(source, blob)
        self._deployer.order(target, self._journal.value.gen_seen, "", force=True)
        while self._jobs:
            job = self._jobs.popleft()
            self._deployer.finished(job, self._installer.perform(job.effect, job.entry, job.stop))
        entry = self._journal.value.entry(target.model)
        if entry is None:
            raise DeviceError(self._deployer.problem or f"the order for {target.model} could not be saved")
        return entry.record

    def _copy(self, source: Release, blob: Descriptor) -> None:
        path = self._installer.blobs.path(blob.digest)
        if not self._installer.blobs.has(blob.digest, blob.size):
            path.parent.mkdir(parents=True, exist_ok=True)
            # Never a hard link: whoever gave us the release may write to its files later.
            atomic.write_chunks(path, source.blobs.chunks(blob.digest, blob.size))
