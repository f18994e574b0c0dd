"""A release on disk: an OCI image layout (image-spec v1.1), as a folder or as one tar."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final

from edgeserve.contracts.documents import decode
from edgeserve.contracts.errors import InputError, NotFoundError
from edgeserve.contracts.limits import KIB, MAX_CONFIG_BYTES, MAX_INDEX_BYTES, MAX_RELEASE_BLOBS
from edgeserve.contracts.oci import (
    INDEX_TYPE,
    RELEASE_TYPE,
    Descriptor,
    ImageLayout,
    Index,
    LayoutIndex,
    Manifest,
    ReleaseIdentity,
)
from edgeserve.contracts.variant import VariantContract
from edgeserve.release.blobs import BlobFolder, BlobSource, open_regular
from edgeserve.release.documents import (
    check_variant,
    files_of,
    is_evidence,
    parse_contract,
    parse_index,
    parse_manifest,
)
from edgeserve.release.tar import TarBlobs, read_member, read_members
from edgeserve.release.unpack import unpack_variant

LAYOUT_FILE: Final = "oci-layout"
INDEX_FILE: Final = "index.json"
_MAX_LAYOUT_BYTES: Final = 4 * KIB
_NOT_AS_WRITTEN: Final = "edgeserve writes no such release: get it from who made it, and do not use this one"


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One compiled form of the model, as the release describes it."""

    descriptor: Descriptor
    """The entry of the release's index."""
    manifest: Manifest
    contract: VariantContract

    @property
    def digest(self) -> str:
        """Digest of the manifest: the variant's name everywhere."""
        return self.descriptor.digest

    @property
    def files(self) -> dict[str, Descriptor]:
        """Title -> descriptor of every file."""
        return files_of(self.manifest)


@dataclass(frozen=True, kw_only=True)
class Release:
    """An opened release: its documents are read, checked and held against each other; model files are not read."""

    digest: str
    """Digest of the image index blob."""
    identity: ReleaseIdentity
    index: Index
    index_size: int
    variants: tuple[Variant, ...]
    """In the order of the index."""
    evidence_manifest: Manifest | None
    blobs: BlobSource

    @property
    def evidence(self) -> dict[str, Descriptor]:
        """Title -> descriptor of every piece of evidence: `report.json`, `golden.npz`, `provenance.json`."""
        return files_of(self.evidence_manifest) if self.evidence_manifest else {}

    def read_evidence(self, title: str, *, limit: int) -> bytes:
        """Read one piece of evidence, verified.

        Raises:
            NotFoundError: The release has none with this title.
            InputError: It is longer than `limit` bytes.
            TrustError: Its bytes do not have its digest.
        """
        descriptor = self.evidence.get(title)
        if descriptor is None:
            name = f"{self.identity.name} {self.identity.version}"
            has = ", ".join(self.evidence) or "none"
            raise NotFoundError(f"release {name} has no evidence {title[:80]!r}", hint=f"it has: {has}")
        return _read(self.blobs, descriptor, limit=limit, what=title)

    def unpack(self, variant: Variant, folder: Path) -> None:
        """Put a variant's files, verified, and its contract into `folder`; see `unpack_variant`."""
        unpack_variant(self.blobs, variant, folder)

    def blob_descriptors(self) -> tuple[Descriptor, ...]:
        """Every blob of the release, each once: those that others name come before those that name them.

        Raises:
            InputError: One blob is named twice with two lengths.
        """
        manifests = [variant.manifest for variant in self.variants]
        if self.evidence_manifest:
            manifests.append(self.evidence_manifest)
        root = Descriptor(media_type=INDEX_TYPE, digest=self.digest, size=self.index_size, artifact_type=RELEASE_TYPE)
        named = [blob for manifest in manifests for blob in (*manifest.layers, manifest.config)]
        found: dict[str, Descriptor] = {}
        for descriptor in (*named, *self.index.manifests, root):
            if found.setdefault(descriptor.digest, descriptor).size != descriptor.size:
                raise InputError(f"the release declares two lengths for blob {descriptor.digest}")
        return tuple(found.values())

    def open_blob(self, digest: str) -> BinaryIO:
        """Open a blob for reading; what is read has not been checked against the digest.

        Raises:
            NotFoundError: The release has none with this digest.
        """
        return self.blobs.open(digest)


def open_release(path: Path) -> Release:
    """Read the documents of a release: a folder or a `.tar`. Model files and evidence are not read.

    Raises:
        NotFoundError: Nothing is at `path`, or a document's blob is missing.
        InputError: It is not a release, or a document is too large or not valid.
        TrustError: A document does not have the length or the digest that names it.
    """
    if not path.exists():
        raise NotFoundError(f"{path} does not exist", hint="give the folder or the .tar of a release")
    read: Callable[..., bytes]
    if path.is_dir():
        blobs: BlobSource = BlobFolder(path / "blobs")
        read = partial(_read_file, path)
    else:
        members = read_members(path)
        blobs = TarBlobs(path, members)
        read = partial(read_member, path, members)
    try:
        data = read(LAYOUT_FILE, limit=_MAX_LAYOUT_BYTES)
        decode(data, ImageLayout, what=f"{path}: {LAYOUT_FILE}", limit=_MAX_LAYOUT_BYTES)
        data = read(INDEX_FILE, limit=MAX_INDEX_BYTES)
        index = decode(data, LayoutIndex, what=f"{path}: {INDEX_FILE}", limit=MAX_INDEX_BYTES)
        return _opened(_root(index, path), blobs)
    except InputError as error:
        message = error.message if str(path) in error.message else f"{path}: {error.message}"
        raise type(error)(message, hint=error.hint or _NOT_AS_WRITTEN) from error


def open_blobs(blobs: BlobSource, digest: str) -> Release:
    """Read the documents of the release whose image index has `digest`, from blobs that lie in no layout (a registry).

    Raises:
        NotFoundError, InputError, TrustError: As `open_release`.
    """
    return _opened(Descriptor(media_type=INDEX_TYPE, digest=digest, size=blobs.size(digest)), blobs)


def verify_release(path: Path) -> Release:
    """Open a release and check length and hash of every blob it names.

    Raises:
        NotFoundError, InputError, TrustError: As `open_release`, for every blob.
    """
    release = open_release(path)
    for descriptor in release.blob_descriptors():
        release.blobs.verify(descriptor.digest, descriptor.size)
    return release


def _opened(root: Descriptor, blobs: BlobSource) -> Release:
    index, identity = parse_index(_read(blobs, root, limit=MAX_INDEX_BYTES, what="image index"))
    variants = []
    evidence = None
    for descriptor in index.manifests:
        manifest = parse_manifest(_read(blobs, descriptor, limit=MAX_INDEX_BYTES, what="image manifest"))
        if is_evidence(descriptor):
            evidence = manifest
            continue
        config = _read(blobs, manifest.config, limit=MAX_CONFIG_BYTES, what="variant contract")
        contract = parse_contract(manifest, config)
        check_variant(identity, descriptor, contract)
        variants.append(Variant(descriptor=descriptor, manifest=manifest, contract=contract))
    release = Release(
        digest=root.digest,
        identity=identity,
        index=index,
        index_size=root.size,
        variants=tuple(variants),
        evidence_manifest=evidence,
        blobs=blobs,
    )
    count = len(release.blob_descriptors())
    if count > MAX_RELEASE_BLOBS:
        raise InputError(f"the release names {count} blobs, at most {MAX_RELEASE_BLOBS} are allowed")
    return release


def _read(blobs: BlobSource, descriptor: Descriptor, *, limit: int, what: str) -> bytes:
    """Read a blob of the length that its descriptor declares, and no longer than `limit`."""
    if descriptor.size > limit:
        raise InputError(f"{what} {descriptor.digest} declares {descriptor.size} bytes, at most {limit} are allowed")
    return b"".join(blobs.chunks(descriptor.digest, descriptor.size))


def _root(index: LayoutIndex, path: Path) -> Descriptor:
    """The one image index that a layout's `index.json` names."""
    found = [descriptor for descriptor in index.manifests if descriptor.media_type == INDEX_TYPE]
    if len(found) > 1:  # some tools drop artifactType when they copy, so it only decides where it must
        found = [descriptor for descriptor in found if descriptor.artifact_type == RELEASE_TYPE]
    if len(found) != 1:
        what = "no release" if not found else f"{len(found)} releases"
        raise InputError(
            f"{path} is an OCI image layout with {what} in it",
            hint="give a folder or .tar that holds one edgeserve release",
        )
    return found[0]


def _read_file(folder: Path, name: str, *, limit: int) -> bytes:
    try:
        with open_regular(folder / name) as file:
            data = file.read(limit + 1)
    except NotFoundError:
        raise NotFoundError(f"{folder} has no {name}", hint="give a release: an OCI image layout") from None
    if len(data) > limit:
        raise InputError(f"{name} in {folder} has more than the {limit} bytes allowed for it")
    return data
