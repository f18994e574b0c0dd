"""From the bytes of a release's documents to values, checked against each other. Pure: the bytes come from anywhere."""

from __future__ import annotations

from edgeserve.contracts.documents import decode
from edgeserve.contracts.errors import InputError
from edgeserve.contracts.limits import MAX_CONFIG_BYTES, MAX_INDEX_BYTES, MAX_VARIANTS
from edgeserve.contracts.names import file_name
from edgeserve.contracts.oci import (
    EVIDENCE_TYPE,
    MANIFEST_TYPE,
    PRECISION,
    TARGET,
    TITLE,
    Descriptor,
    Index,
    Manifest,
    ReleaseIdentity,
    identity_of,
)
from edgeserve.contracts.variant import VARIANT_CONFIG_TYPE, VariantContract

CONTRACT_FILE = "contract.json"
"""Name under which the variant contract lies beside the unpacked files; no file of a variant may have it."""


def parse_index(data: bytes) -> tuple[Index, ReleaseIdentity]:
    """Read the image index of a release.

    Raises:
        InputError: Too large, not an image index, not a release, or it names what a release does not have.
    """
    index = decode(data, Index, what="image index", limit=MAX_INDEX_BYTES)
    identity = identity_of(index)
    what = f"release {identity.name} {identity.version}"
    if len(index.manifests) > MAX_VARIANTS:
        raise InputError(f"{what} names {len(index.manifests)} manifests, at most {MAX_VARIANTS} are allowed")
    for descriptor in index.manifests:
        if descriptor.media_type != MANIFEST_TYPE or descriptor.artifact_type not in (
            "",
            VARIANT_CONFIG_TYPE,
            EVIDENCE_TYPE,
        ):
            kind = descriptor.artifact_type or descriptor.media_type
            raise InputError(
                f"{what} names a {kind[:80]!r}, which this edgeserve does not know", hint="update edgeserve"
            )
        if descriptor.size > MAX_INDEX_BYTES:
            raise InputError(
                f"manifest {descriptor.digest} declares {descriptor.size} bytes, at most {MAX_INDEX_BYTES} are allowed"
            )
    if len({descriptor.digest for descriptor in index.manifests}) != len(index.manifests):
        raise InputError(f"{what} names one manifest twice")
    evidence = sum(map(is_evidence, index.manifests))
    if evidence > 1:
        raise InputError(f"{what} names {evidence} evidence manifests, at most one is allowed")
    if evidence == len(index.manifests):
        raise InputError(f"{what} has no variant")
    return index, identity


def parse_manifest(data: bytes) -> Manifest:
    """Read the manifest of a variant or of the evidence.

    Raises:
        InputError: Too large, not an image manifest, or its files have no plain unique titles.
    """
    manifest = decode(data, Manifest, what="image manifest", limit=MAX_INDEX_BYTES)
    files_of(manifest)
    if manifest.config.size > MAX_CONFIG_BYTES:
        raise InputError(
            f"config {manifest.config.digest} declares {manifest.config.size} bytes, "
            f"at most {MAX_CONFIG_BYTES} are allowed"
        )
    return manifest


def parse_contract(manifest: Manifest, config: bytes) -> VariantContract:
    """Read the contract of a variant from its config blob and hold the manifest's files against it.

    Raises:
        InputError: The manifest is not a variant's, the contract is not valid or of an unknown schema, or the files
            have no plain unique titles or lack the entry.
    """
    if manifest.config.media_type != VARIANT_CONFIG_TYPE:
        raise InputError(
            f"config of the manifest is a {manifest.config.media_type[:80]!r}, a variant has {VARIANT_CONFIG_TYPE!r}"
        )
    contract = decode(config, VariantContract, what="variant contract", limit=MAX_CONFIG_BYTES)
    files = files_of(manifest)
    if contract.entry not in files:
        raise InputError(f"variant {contract.target} lacks its entry {contract.entry!r}, it has {sorted(files)}")
    if CONTRACT_FILE in {title.lower() for title in files}:
        raise InputError(f"variant {contract.target} has a file named {CONTRACT_FILE}, which is kept for the contract")
    return contract


def check_variant(identity: ReleaseIdentity, descriptor: Descriptor, contract: VariantContract) -> None:
    """Hold what the index says of a variant against the variant's own contract.

    Raises:
        InputError: The contract is of another model, or the annotations name another target or precision.
    """
    if contract.model != identity.name:
        raise InputError(f"release {identity.name} has a variant of another model, {contract.model!r}")
    for key, value in ((TARGET, contract.target), (PRECISION, contract.precision.value)):
        said = descriptor.annotations.get(key, value)
        if said != value:
            raise InputError(
                f"variant {descriptor.digest}: the index says {key} is {said[:80]!r}, its contract {value!r}"
            )


def files_of(manifest: Manifest) -> dict[str, Descriptor]:
    """The files of a manifest: title -> descriptor.

    Raises:
        InputError: A title is missing, is not a plain file name, or two are the same (also but for upper and lower
            case: not every file system can hold both).
    """
    files: dict[str, Descriptor] = {}
    folded: set[str] = set()
    for layer in manifest.layers:
        title = layer.annotations.get(TITLE)
        if title is None:
            raise InputError(f"file {layer.digest} of the manifest has no annotation {TITLE}")
        if file_name(title).lower() in folded:
            raise InputError(f"two files of the manifest are titled {title!r}")
        folded.add(title.lower())
        files[title] = layer
    return files


def is_evidence(descriptor: Descriptor) -> bool:
    """Tell whether a descriptor of a release's index names its evidence manifest; the others name variants."""
    return descriptor.artifact_type == EVIDENCE_TYPE
