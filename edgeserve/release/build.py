"""Writing a release. The same contracts, files and evidence give the same bytes, whatever the time or the machine."""

from __future__ import annotations

import contextlib
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgeserve import atomic
from edgeserve.contracts.documents import encode
from edgeserve.contracts.errors import ConflictError, DeviceError, InputError
from edgeserve.contracts.limits import MAX_BLOB_BYTES, MAX_GOLDEN_BYTES
from edgeserve.contracts.names import file_name
from edgeserve.contracts.oci import (
    EMPTY_BLOB,
    EMPTY_TYPE,
    EVIDENCE_TYPE,
    INDEX_TYPE,
    LAYOUT_VERSION,
    MANIFEST_TYPE,
    PRECISION,
    REF_NAME,
    RELEASE_TYPE,
    TARGET,
    TITLE,
    Descriptor,
    ImageLayout,
    Index,
    LayoutIndex,
    Manifest,
    Platform,
    ReleaseIdentity,
)
from edgeserve.contracts.variant import VARIANT_CONFIG_TYPE, VARIANT_FILE_TYPE, VariantContract
from edgeserve.release.blobs import BlobFolder, digest_file, digest_of, file_chunks
from edgeserve.release.documents import check_variant, parse_contract, parse_index, parse_manifest
from edgeserve.release.layout import INDEX_FILE, LAYOUT_FILE, Release, open_release, verify_release
from edgeserve.release.tar import tar_chunks

_SCHEMA: Final = 2


@dataclass(frozen=True)
class _Blob:
    """Bytes to write: in memory, or a file that was hashed when it was added."""

    digest: str
    size: int
    content: bytes | Path

    def chunks(self) -> Iterator[bytes]:
        if isinstance(self.content, bytes):
            yield self.content
        else:
            yield from file_chunks(self.content, self.digest)


class ReleaseBuilder:
    """Collects variants and evidence, then writes them. What is added is checked as if it were being read.

    Raises:
        InputError: Name, version or counter are not allowed.
    """

    def __init__(self, *, name: str, version: str, counter: int) -> None:
        self._identity = ReleaseIdentity(name=name, version=version, counter=counter)
        self._blobs: dict[str, _Blob] = {}
        self._variants: list[Descriptor] = []
        self._evidence: dict[str, Descriptor] = {}

    def add_variant(self, contract: VariantContract, files: Mapping[str, Path]) -> None:
        """Add one compiled form of the model.

        Args:
            contract: Its contract; `contract.entry` is one of the files.
            files: Title (a plain file name) -> file. They are hashed now and copied by `write`.

        Raises:
            NotFoundError: A file is missing.
            InputError: A file is too large or not regular, a title is not plain, the entry is missing, the contract
                is of another model, or the same variant was added before.
            DeviceError: A file cannot be read.
        """
        blobs: dict[str, _Blob] = {}
        layers = tuple(_add_file(blobs, title, path) for title, path in sorted(files.items()))
        config = encode(contract)
        manifest = Manifest(
            schema_version=_SCHEMA,
            media_type=MANIFEST_TYPE,
            config=_add(blobs, VARIANT_CONFIG_TYPE, config),
            layers=layers,
        )
        data = encode(manifest)
        annotations = {TARGET: contract.target, PRECISION: contract.precision.value}
        descriptor = _add(blobs, MANIFEST_TYPE, data, annotations, VARIANT_CONFIG_TYPE, _platform(contract))
        check_variant(self._identity, descriptor, parse_contract(parse_manifest(data), config))
        if any(known.digest == descriptor.digest for known in self._variants):
            raise InputError(f"variant {contract.target} {contract.precision.value} was added twice")
        self._blobs.update(blobs)
        self._variants.append(descriptor)

    def add_evidence(self, title: str, media_type: str, data: bytes) -> None:
        """Add one piece of evidence.

        Args:
            title: `report.json`, `golden.npz` or `provenance.json`.
            media_type: REPORT_TYPE, GOLDEN_TYPE or PROVENANCE_TYPE of `edgeserve.contracts.oci`.
            data: Its bytes, at most MAX_GOLDEN_BYTES.

        Raises:
            InputError: The title is not plain or was used before, or `data` is too large.
        """
        if file_name(title).lower() in {known.lower() for known in self._evidence}:
            raise InputError(f"evidence {title!r} was added twice")
        if len(data) > MAX_GOLDEN_BYTES:
            raise InputError(f"evidence {title!r} has {len(data)} bytes, at most {MAX_GOLDEN_BYTES} are allowed")
        self._evidence[title] = _add(self._blobs, media_type, data, {TITLE: title})

    def write(self, destination: Path) -> Release:
        """Write the release: one tar when the name ends in `.tar`, else a folder. It appears whole or not at all.

        A killed process can leave a `.NAME.*.tmp` beside `destination`. Its parents are made.

        Raises:
            InputError: There is no variant, or a file was changed since it was added.
            ConflictError: Something is at `destination`.
            DeviceError: It could not be written.
        """
        blobs = dict(self._blobs)
        return _write(destination, self._finish(blobs), blobs)

    def _finish(self, blobs: dict[str, _Blob]) -> dict[str, bytes]:
        """Add evidence manifest and image index to `blobs`; return the layout's own files."""
        manifests = list(self._variants)
        if self._evidence:
            layers = tuple(descriptor for _title, descriptor in sorted(self._evidence.items()))
            config = _add(blobs, EMPTY_TYPE, EMPTY_BLOB)
            evidence = Manifest(
                schema_version=_SCHEMA,
                media_type=MANIFEST_TYPE,
                artifact_type=EVIDENCE_TYPE,
                config=config,
                layers=layers,
            )
            manifests.append(_add(blobs, MANIFEST_TYPE, encode(evidence), artifact_type=EVIDENCE_TYPE))
        index = encode(
            Index(
                schema_version=_SCHEMA,
                media_type=INDEX_TYPE,
                artifact_type=RELEASE_TYPE,
                manifests=tuple(manifests),
                annotations=self._identity.annotations(),
            )
        )
        parse_index(index)
        return _heads(_add(blobs, INDEX_TYPE, index, {REF_NAME: self._identity.version}, RELEASE_TYPE))


def copy_release(source: Path, destination: Path) -> Release:
    """Write a release folder to another place, as a folder or one `.tar`: same blobs, same digest.

    Raises:
        NotFoundError, InputError, TrustError: `source` is not a whole release; every byte is checked.
        ConflictError, DeviceError: As `ReleaseBuilder.write`.
    """
    release = verify_release(source)
    folder = BlobFolder(source / "blobs")
    blobs = {
        descriptor.digest: _Blob(descriptor.digest, descriptor.size, folder.path(descriptor.digest))
        for descriptor in release.blob_descriptors()
    }
    root = Descriptor(
        media_type=INDEX_TYPE,
        digest=release.digest,
        size=release.index_size,
        annotations={REF_NAME: release.identity.version},
        artifact_type=RELEASE_TYPE,
    )
    return _write(destination, _heads(root), blobs)


def _heads(root: Descriptor) -> dict[str, bytes]:
    """The layout's own files."""
    layout_index = LayoutIndex(schema_version=_SCHEMA, media_type=INDEX_TYPE, manifests=(root,))
    return {
        LAYOUT_FILE: encode(ImageLayout(image_layout_version=LAYOUT_VERSION)),
        INDEX_FILE: encode(layout_index),
    }


def _write(destination: Path, heads: dict[str, bytes], blobs: dict[str, _Blob]) -> Release:
    if destination.exists() or destination.is_symlink():
        raise ConflictError(f"{destination} exists already", hint="remove it or choose another name")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        if destination.name.endswith(".tar"):
            _write_tar(destination, heads, blobs)
        else:
            _write_folder(destination, heads, blobs)
    except OSError as error:
        hint = "check space and permissions of the folder"
        raise DeviceError(f"cannot write {destination}: {error.strerror or error}", hint=hint) from error
    return open_release(destination)


def _add_file(blobs: dict[str, _Blob], title: str, path: Path) -> Descriptor:
    file_name(title)
    digest, size = digest_file(path)
    if size > MAX_BLOB_BYTES:
        raise InputError(f"{path} has {size} bytes, at most {MAX_BLOB_BYTES} are allowed in a release")
    blobs.setdefault(digest, _Blob(digest, size, path))
    return Descriptor(media_type=VARIANT_FILE_TYPE, digest=digest, size=size, annotations={TITLE: title})


def _add(
    blobs: dict[str, _Blob],
    media_type: str,
    data: bytes,
    annotations: dict[str, str] | None = None,
    artifact_type: str = "",
    platform: Platform | None = None,
) -> Descriptor:
    digest = digest_of(data)
    blobs.setdefault(digest, _Blob(digest, len(data), data))
    return Descriptor(
        media_type=media_type,
        digest=digest,
        size=len(data),
        annotations=annotations or {},
        artifact_type=artifact_type,
        platform=platform,
    )


def _platform(contract: VariantContract) -> Platform | None:
    """OCI has room for one architecture: a variant for several, or for any, has no platform."""
    architectures = contract.selector.architectures
    return Platform(architecture=architectures[0], os="linux") if len(architectures) == 1 else None


def _write_folder(destination: Path, heads: dict[str, bytes], blobs: dict[str, _Blob]) -> None:
    temporary = destination.with_name(f".{destination.name}.{secrets.token_hex(4)}.tmp")
    try:
        folder = BlobFolder(temporary / "blobs")
        (temporary / "blobs" / "sha256").mkdir(parents=True)
        for blob in blobs.values():
            atomic.write_chunks(folder.path(blob.digest), blob.chunks())
        for name, data in heads.items():
            atomic.write_bytes(temporary / name, data)
        atomic.sync_tree(temporary)
        atomic.move(temporary, destination)
    except BaseException:
        with contextlib.suppress(OSError):
            shutil.rmtree(temporary)
        raise


def _write_tar(destination: Path, heads: dict[str, bytes], blobs: dict[str, _Blob]) -> None:
    members = [(name, len(data), (data,)) for name, data in heads.items()]
    in_order = sorted(blobs.values(), key=lambda blob: blob.digest)
    stored = [("blobs/" + blob.digest.replace(":", "/"), blob.size, blob.chunks()) for blob in in_order]
    atomic.write_chunks(destination, tar_chunks([*members, *stored]), replace=False)
