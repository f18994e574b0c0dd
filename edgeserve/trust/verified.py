"""The result of verification: the only thing that may be activated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from edgeserve.contracts.errors import TrustError
from edgeserve.contracts.names import digest
from edgeserve.contracts.oci import ReleaseIdentity
from edgeserve.release.layout import Variant

OFFLINE_SIGNATURE: Final = "offline release signature"
"""Name of the check that ties a release to keys kept offline (TUF); it is not built yet."""


@dataclass(frozen=True, kw_only=True)
class VerifiedRelease:
    """A variant of a release, and the checks that it passed."""

    digest: str
    """Release digest."""
    identity: ReleaseIdentity
    variant: Variant
    checks: tuple[str, ...]
    """Names of the checks that were made, in their order, such as `manager signature`, `digests`."""

    def __post_init__(self) -> None:
        digest(self.digest)
        if not self.checks or not all(self.checks):
            raise TrustError(f"nothing was checked of release {self.identity.name} {self.identity.version}")

    @property
    def trust(self) -> str:
        """What was checked and, of the chain, what was not."""
        checked = ", ".join(self.checks)
        return checked if OFFLINE_SIGNATURE in self.checks else f"{checked}; no {OFFLINE_SIGNATURE} yet"
