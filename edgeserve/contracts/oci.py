"""The OCI documents that make up a release (image-spec v1.1: image layout, image index, image manifest)."""

from __future__ import annotations

from typing import Final

import msgspec

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.limits import MAX_BLOB_BYTES, MAX_RELEASE_BLOBS
from edgeserve.contracts.names import digest, model_name, version_name

INDEX_TYPE: Final = "application/vnd.oci.image.index.v1+json"
MANIFEST_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
LAYOUT_VERSION: Final = "1.0.0"
EMPTY_TYPE: Final = "application/vnd.oci.empty.v1+json"
EMPTY_BLOB: Final = b"{}"
EVIDENCE_TYPE: Final = "application/vnd.edgeserve.evidence.v1"
RELEASE_TYPE: Final = "application/vnd.edgeserve.release.v1"

REPORT_TYPE: Final = "application/vnd.edgeserve.report.v1+json"
GOLDEN_TYPE: Final = "application/vnd.edgeserve.golden.v1+npz"
PROVENANCE_TYPE: Final = "application/vnd.edgeserve.provenance.v1+json"
SKETCH_TYPE: Final = "application/vnd.edgeserve.sketch.v1+json"
AGREEMENT_TYPE: Final = "application/vnd.edgeserve.agreement.v1+json"
REPORT_PAGE_TYPE: Final = "text/html"

TITLE: Final = "org.opencontainers.image.title"
REF_NAME: Final = "org.opencontainers.image.ref.name"
CREATED: Final = "org.opencontainers.image.created"
NAME: Final = "io.edgeserve.name"
VERSION: Final = "org.opencontainers.image.version"
COUNTER: Final = "io.edgeserve.counter"
TARGET: Final = "io.edgeserve.target"
PRECISION: Final = "io.edgeserve.precision"


class Platform(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """OCI platform of a manifest, in Go's words."""

    architecture: str
    os: str
    """Written even when it is `linux`: image-spec requires it."""
    variant: str = ""


class Descriptor(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A pointer to a blob: what it is, its digest and its exact length in bytes.

    Fields stand in the order of the structs of image-spec's Go package, here and in the other documents: tools that
    decode an index and encode it again (`skopeo copy --all`) then get the same bytes, so the release digest stays.
    """

    media_type: str
    digest: str
    size: int
    annotations: dict[str, str] = {}
    platform: Platform | None = None
    artifact_type: str = ""

    def __post_init__(self) -> None:
        digest(self.digest)
        if not 0 <= self.size <= MAX_BLOB_BYTES:
            raise InputError(
                f"blob {self.digest[:19]} declares {self.size} bytes, at most {MAX_BLOB_BYTES} are allowed"
            )


class Manifest(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """An image manifest: the files of one variant, or the evidence of a release."""

    schema_version: int
    media_type: str
    artifact_type: str = ""
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: dict[str, str] = {}

    def __post_init__(self) -> None:
        _check_schema(self.schema_version, self.media_type, MANIFEST_TYPE)
        if len(self.layers) > MAX_RELEASE_BLOBS:
            raise InputError(f"manifest names {len(self.layers)} files, at most {MAX_RELEASE_BLOBS} are allowed")


class Index(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """An image index: the root blob of a release, whose digest is the release digest."""

    schema_version: int
    media_type: str
    artifact_type: str = ""
    manifests: tuple[Descriptor, ...]
    annotations: dict[str, str] = {}

    def __post_init__(self) -> None:
        _check_schema(self.schema_version, self.media_type, INDEX_TYPE)
        if len(self.manifests) > MAX_RELEASE_BLOBS:
            raise InputError(f"index names {len(self.manifests)} manifests, at most {MAX_RELEASE_BLOBS} are allowed")


class ImageLayout(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The file `oci-layout` (image-spec "Image Layout")."""

    image_layout_version: str

    def __post_init__(self) -> None:
        if self.image_layout_version != LAYOUT_VERSION:
            raise InputError(
                f"image layout has version {self.image_layout_version[:40]!r}, this edgeserve reads {LAYOUT_VERSION}"
            )


class LayoutIndex(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """The file `index.json` of a layout: the way in. Some tools leave its media type out, which image-spec allows."""

    schema_version: int
    media_type: str = ""
    manifests: tuple[Descriptor, ...]

    def __post_init__(self) -> None:
        _check_schema(self.schema_version, self.media_type or INDEX_TYPE, INDEX_TYPE)
        if len(self.manifests) > MAX_RELEASE_BLOBS:
            raise InputError(f"index.json names {len(self.manifests)} images, at most {MAX_RELEASE_BLOBS} are allowed")


class ReleaseIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """Who a release says it is: read from the annotations of its image index."""

    name: str
    version: str
    counter: int

    def __post_init__(self) -> None:
        model_name(self.name)
        version_name(self.version)
        if not 0 <= self.counter < 1 << 63:
            raise InputError(f"release counter {self.counter} must be from 0 to 2^63 - 1")

    def annotations(self) -> dict[str, str]:
        """The annotations that carry this identity."""
        return {NAME: self.name, VERSION: self.version, COUNTER: str(self.counter)}


def identity_of(index: Index) -> ReleaseIdentity:
    """Read the identity of a release from its image index.

    Raises:
        InputError: An annotation is missing or wrong, or the index is not a release.
    """
    if index.artifact_type != RELEASE_TYPE:
        raise InputError(
            f"image index has artifactType {index.artifact_type[:80]!r}, a release has {RELEASE_TYPE!r}",
            hint="it is another image, or was copied by a tool older than image-spec 1.1, which drops artifactType",
        )
    try:
        counter = index.annotations[COUNTER]
        if not (counter.isascii() and counter.isdigit()) or len(counter) > 19:
            raise InputError(f"annotation {COUNTER} of the image index is not a number: {counter[:40]!r}")
        return ReleaseIdentity(name=index.annotations[NAME], version=index.annotations[VERSION], counter=int(counter))
    except KeyError as error:
        raise InputError(f"image index lacks the annotation {error.args[0]}") from None


def _check_schema(version: int, media_type: str, expected: str) -> None:
    if version != 2 or media_type != expected:
        raise InputError(f"expected {expected} with schemaVersion 2, found {media_type[:80]!r} with {version}")
