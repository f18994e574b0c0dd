"""From a line of the desired document to a `VerifiedRelease`: numbered checks, and nothing else can be activated.

The same list is gone through while a release is fetched (nothing is asked for that an earlier check has not allowed)
and again, from disk, before it is tried and before it is loaded.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import Final, Protocol

from edgeserve import __version__
from edgeserve.contracts.desired import ModelTarget
from edgeserve.contracts.device import DeviceFacts
from edgeserve.contracts.errors import DeviceError, InputError, NotFoundError, TrustError
from edgeserve.contracts.limits import MAX_ALTERNATIVES, MAX_CONFIG_BYTES, MAX_GOLDEN_BYTES, MAX_INDEX_BYTES
from edgeserve.contracts.oci import GOLDEN_TYPE, INDEX_TYPE, Descriptor, Index
from edgeserve.release.blobs import BlobFolder
from edgeserve.release.documents import check_variant, is_evidence, parse_contract, parse_index, parse_manifest
from edgeserve.release.layout import Variant
from edgeserve.trust.verified import VerifiedRelease
from edgeserve_agent.config import LimitsSection
from edgeserve_devices.match import choose, title

CHECKS: Final = (
    "the device's own limits allow the model",
    "the index has the digest and length that the desired document names",
    "the index says the name, version and counter that the desired document says",
    "every manifest and contract has the digest and length that the index names",
    "a variant fits this device",
    "this agent is new enough for it",
    "the release has a golden set",
    "every file has the digest and length that its manifest names",
)
"""What a `VerifiedRelease` of this module went through, in order."""
_log = logging.getLogger("edgeserve.agent")


class Source(Protocol):
    """Where blobs come from when they are not on disk."""

    def fetch(self, blob: Descriptor) -> None:
        """Bring one blob into the folder unless it is there."""

    def refetch(self, blob: Descriptor) -> bool:
        """Replace one blob that is damaged; False when there is nowhere to get it from."""

    def plan(self, missing: int) -> None:
        """Told, before the files of the variant are fetched, how many bytes of them are missing; may refuse."""


class NoSource:
    """Everything must be on disk."""

    def fetch(self, blob: Descriptor) -> None:
        """Nothing to do: reading the blob will tell."""

    def refetch(self, blob: Descriptor) -> bool:  # noqa: ARG002 - part of the protocol
        """There is nowhere to get it from."""
        return False

    def plan(self, missing: int) -> None:
        """Nothing to do, as above."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A verified release with what the device needs of it."""

    verified: VerifiedRelease
    golden: Descriptor
    alternatives: tuple[Variant, ...]
    """Variants between which only a trial on this device can decide, each as verified as the first, `variant`."""

    @property
    def variant(self) -> Variant:
        """The variant for this device; where there are alternatives, the best guess."""
        return self.verified.variant


def verify(
    target: ModelTarget,
    *,
    blobs: BlobFolder,
    source: Source,
    limits: LimitsSection,
    facts: DeviceFacts,
    targets: tuple[str, ...] = (),
    only: str = "",
) -> Candidate:
    """Go through all checks.

    Args:
        target: What the desired document says.
        blobs: What is on disk.
        source: Where the rest comes from.
        limits: Of this device.
        facts: What variants are matched against.
        targets: Preferred targets, best first.
        only: Manifest digest of the variant that was picked before; empty = all between which a trial must decide,
            at most MAX_ALTERNATIVES, less those that there is no room or allowance for.

    Raises:
        TrustError: Bytes are not what a digest names, or the release is not the one that the target describes.
        InputError: A document of the release is not valid.
        DeviceError: Nothing of it runs here.
        NotFoundError: A blob is missing.
    """
    store = _Store(blobs, source)

    # 1. The device's own limits allow the model.
    if not limits.allows(target.model):
        hint = f"allowed_models in [limits] of agent.toml has {', '.join(limits.allowed_models)}"
        raise DeviceError(f"this device does not allow the model {target.model}", hint=hint)

    # 2. The index has the digest and length that the desired document names.
    root = Descriptor(media_type=INDEX_TYPE, digest=target.release, size=target.index_size)
    index, identity = parse_index(store.read(root, MAX_INDEX_BYTES))

    # 3. The index says the name, version and counter that the desired document says.
    for what, said, wanted in (
        ("name", identity.name, target.model),
        ("version", identity.version, target.version),
        ("counter", identity.counter, target.counter),
    ):
        if said != wanted:
            raise TrustError(f"release {target.release} has {what} {said!r}, the desired document says {wanted!r}")

    # 4. Every manifest and contract has the digest and length that the index names.
    variants = []
    for descriptor in index.manifests:
        if is_evidence(descriptor):
            continue
        manifest = parse_manifest(store.read(descriptor, MAX_INDEX_BYTES))
        contract = parse_contract(manifest, store.read(manifest.config, MAX_CONFIG_BYTES))
        check_variant(identity, descriptor, contract)
        variants.append(Variant(descriptor=descriptor, manifest=manifest, contract=contract))

    # 5. A variant fits this device.
    choice = choose([variant.contract for variant in variants], facts, targets=targets)
    if choice.index is None:
        raise DeviceError(f"no variant fits this device: {'; '.join(choice.reasons)[:1000]}")
    fitting = [variants[position] for position in choice.alternatives[:MAX_ALTERNATIVES]]
    if only:
        fitting = [variant for variant in fitting if variant.digest == only]
        if not fitting:
            raise DeviceError(f"this device now fits another variant than {only}")

    # 6. This agent is new enough for it.
    usable = [variant for variant in fitting if _numbers(variant.contract.minimum_agent) <= _numbers(__version__)]
    if not usable:
        raise DeviceError(
            f"the variant needs edgeserve {fitting[0].contract.minimum_agent[:40]}, this is {__version__}",
            hint="update edgeserve on the device",
        )

    # 7. The release has a golden set.
    golden = _golden(index, store)

    # 8. Every file has the digest and length that its manifest names.
    whole = _whole(usable, golden, store)
    verified = VerifiedRelease(digest=target.release, identity=identity, variant=whole[0], checks=CHECKS)
    return Candidate(verified=verified, golden=golden, alternatives=whole)


class _Store:
    """Blobs that are fetched when they are missing, and once more when they are damaged."""

    def __init__(self, blobs: BlobFolder, source: Source) -> None:
        self._blobs = blobs
        self._source = source

    def ensure(self, blob: Descriptor) -> None:
        self._source.fetch(blob)
        try:
            self._blobs.verify(blob.digest, blob.size)
        except TrustError:
            if not self._source.refetch(blob):
                raise
            self._blobs.verify(blob.digest, blob.size)

    def read(self, blob: Descriptor, limit: int) -> bytes:
        if blob.size > limit:
            raise InputError(f"{blob.digest} declares {blob.size} bytes, at most {limit} are allowed")
        self.ensure(blob)
        return self._blobs.read(blob.digest, limit=limit)

    def ensure_all(self, files: tuple[Descriptor, ...]) -> None:
        self._source.plan(sum(blob.size for blob in files if not self._blobs.has(blob.digest, blob.size)))
        for blob in files:
            self.ensure(blob)


def _whole(usable: list[Variant], golden: Descriptor, store: _Store) -> tuple[Variant, ...]:
    """The variants whose files are here, every byte: one is enough, so what has no room for another leaves that out.

    Raises:
        TrustError, TransientError: As `verify`: bytes that are wrong, and a network that fails, leave nothing out.
        DeviceError, NotFoundError: There is none.
    """
    whole: list[Variant] = []
    first: DeviceError | NotFoundError | None = None
    for variant in usable:
        try:
            store.ensure_all((*variant.manifest.layers, golden))
        except (DeviceError, NotFoundError) as error:
            first = first or error
            if len(usable) > 1:
                _log.info("%s is left out: %s", title(variant.contract), error.message)
            continue
        whole.append(variant)
    if not whole:
        assert first is not None
        raise first
    return tuple(whole)


def _golden(index: Index, store: _Store) -> Descriptor:
    for descriptor in index.manifests:
        if is_evidence(descriptor):
            manifest = parse_manifest(store.read(descriptor, MAX_INDEX_BYTES))
            for layer in manifest.layers:
                if layer.media_type == GOLDEN_TYPE:
                    if layer.size > MAX_GOLDEN_BYTES:
                        raise InputError(f"golden set declares {layer.size} bytes, at most {MAX_GOLDEN_BYTES}")
                    return layer
    raise NotFoundError("the release has no golden set, so it cannot be tried here", hint="compile it with edgeserve")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version[:40])[:3])
