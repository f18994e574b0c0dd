"""Where a server's models come from: what a repository asks of a folder of models, or of the one model it serves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edgeserve.contracts.model_config import ModelConfig
from edgeserve_agent.serving.opened import Opened
from edgeserve_agent.serving.served import Identity


@dataclass(frozen=True, kw_only=True)
class OpenOptions:
    """What a server was told of all its models."""

    threads: int
    """Inside one call; 0 = the runtime decides."""
    scratch: Path
    """A folder, there or not, that lives as long as the models: variants of releases are unpacked into it."""
    cache: Path | None = None
    """Keeps what is built of models on this device (engines); None = it is built for each load."""


@dataclass(frozen=True, kw_only=True)
class FoundVersion:
    """One version that is to be served."""

    identity: Identity
    """Its release digest tells whether the version's files are those that are loaded."""
    open: Callable[[], Opened]
    """Loads it; blocks, and raises an `EdgeServeError` when it cannot be."""

    @property
    def number(self) -> int:
        """The version as a number."""
        identity = self.identity
        return identity.counter or (int(identity.version) if identity.version.isdecimal() else 1)


@dataclass(frozen=True, kw_only=True)
class FoundModel:
    """One model as it lies on disk now."""

    name: str
    config: ModelConfig
    versions: tuple[FoundVersion, ...]
    """Those that the version policy chooses, ascending, at least one; the last answers when none is asked for."""
    beside: str = ""
    """Changes with the files that the configuration names."""
    fingerprint: str
    """Taken before anything was read."""


class ModelSource(Protocol):
    """All of it reads the disk and blocks."""

    def names(self) -> list[str]:
        """Models that there are, sorted."""

    def find(self, name: str, *, config: ModelConfig | None = None) -> FoundModel:
        """Look at one model.

        Args:
            name: Of it.
            config: Instead of its own.

        Raises:
            NotFoundError: There is none of this name.
            EdgeServeError: Its configuration is wrong, or no version is to be served.
        """

    def fingerprint(self, name: str) -> str:
        """What changes when a file of the model changes: names, sizes and times; empty when there is no such model."""
