"""From pushed blobs to a release that the fleet knows: everything is checked here, nothing is taken on trust."""

from __future__ import annotations

import msgspec

from edgeserve.contracts.errors import NotFoundError
from edgeserve.release.blobs import BlobFolder
from edgeserve.release.layout import Release, Variant, open_blobs
from edgeserve_fleet.service import Fleet
from edgeserve_fleet.views import ReleaseView


class Releases:
    """Registers releases whose blobs are in the registry."""

    def __init__(self, fleet: Fleet, blobs: BlobFolder) -> None:
        self._fleet = fleet
        self._blobs = blobs

    def register(self, digest: str, actor: str) -> ReleaseView:
        """Check every blob of a release (there, length, hash, contracts) and make it known to the fleet.

        Raises:
            NotFoundError: A blob was not pushed.
            TrustError: A blob is not what its digest names.
            InputError: The documents are not those of a release.
            ConflictError: Another release has this name and version.
        """
        release = self._verified(digest)
        return self._fleet.add_release(
            digest=release.digest,
            identity=release.identity,
            index_size=release.index_size,
            variants=[summary(variant) for variant in release.variants],
            actor=actor,
        )

    def _verified(self, digest: str) -> Release:
        try:
            release = open_blobs(self._blobs, digest)
            for descriptor in release.blob_descriptors():
                self._blobs.verify(descriptor.digest, descriptor.size)
        except NotFoundError as error:
            hint = "push it to the registry first: `edgeserve fleet publish` does both"
            raise NotFoundError(error.message, hint=hint) from None
        return release


def summary(variant: Variant) -> dict[str, object]:
    """What the fleet keeps of a variant: enough to match it with devices and to show what it costs."""
    contract = variant.contract
    return {
        "digest": variant.digest,
        "target": contract.target,
        "precision": contract.precision.value,
        "runtime": contract.runtime,
        "size_bytes": sum(layer.size for layer in variant.manifest.layers),
        "memory_bytes": contract.memory_bytes,
        "selector": msgspec.to_builtins(contract.selector),
        "measured": msgspec.to_builtins(contract.measured),
    }
