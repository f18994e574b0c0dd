from __future__ import annotations

import json
import os
import shutil
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeserve.contracts.errors import EdgeServeError, InputError, NotFoundError, TrustError
from edgeserve.contracts.limits import GIB, MAX_INDEX_BYTES
from edgeserve.release.blobs import BlobFolder, digest_of
from edgeserve.release.layout import Release, open_blobs, open_release, verify_release


def as_tar(layout: Path, path: Path) -> Path:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        tar.add(layout, ".")
    return path


@pytest.fixture(params=["folder", "tar"])
def release_path(request: pytest.FixtureRequest, builder, tmp_path: Path) -> Path:
    path = tmp_path / ("release" if request.param == "folder" else "release.tar")
    builder.write(path)
    return path


def test_a_release_reads_back_as_it_was_written(release_path: Path, contract) -> None:
    release = verify_release(release_path)
    assert (release.identity.name, release.identity.version, release.identity.counter) == ("digits", "1.0", 7)
    assert [variant.contract for variant in release.variants] == [contract(), contract("arm-cpu", "arm64")]
    assert [sorted(variant.files) for variant in release.variants] == [["model.onnx", "w.bin"]] * 2
    assert release.variants[0].files["model.onnx"].digest == release.variants[1].files["model.onnx"].digest
    assert set(release.evidence) == {"report.json", "golden.npz"}
    assert release.read_evidence("report.json", limit=100) == b'{"rows": 540}'


def test_the_digest_of_the_release_is_that_of_its_image_index(layout: Path) -> None:
    release = open_release(layout)
    with release.open_blob(release.digest) as file:
        data = file.read()
    assert digest_of(data) == release.digest
    assert len(data) == release.index_size


def test_folder_and_tar_are_the_same_release(layout: Path, archive: Path) -> None:
    assert open_release(layout).digest == open_release(archive).digest


def test_every_blob_is_listed_once_and_before_what_names_it(release_path: Path) -> None:
    release = open_release(release_path)
    blobs = [descriptor.digest for descriptor in release.blob_descriptors()]
    assert len(blobs) == len(set(blobs))
    assert set(blobs) == stored(release_path)
    assert blobs[-1] == release.digest
    for variant in release.variants:
        for part in (variant.manifest.config, *variant.manifest.layers):
            assert blobs.index(part.digest) < blobs.index(variant.digest)


def stored(path: Path) -> set[str]:
    if path.is_dir():
        return set(BlobFolder(path / "blobs").digests())
    with tarfile.open(path) as tar:
        names = [member.name for member in tar if member.isfile()]
    return {f"sha256:{name.rpartition('/')[2]}" for name in names if name.startswith("blobs/")}


def test_a_release_opens_from_blobs_that_lie_in_no_layout(layout: Path) -> None:
    digest = open_release(layout).digest
    assert open_blobs(BlobFolder(layout / "blobs"), digest).variants == open_release(layout).variants


def test_an_opened_blob_can_be_read_from_any_place(release_path: Path, files) -> None:
    release = open_release(release_path)
    data = files["model.onnx"].read_bytes()
    with release.open_blob(release.variants[0].files["model.onnx"].digest) as file:
        assert file.read() == data
        assert file.read() == b""
        file.seek(10)
        assert file.read(5) == data[10:15]
        assert file.seek(-3, os.SEEK_END) == len(data) - 3
        assert file.read(100) == data[-3:]


def test_evidence_that_is_not_there_or_too_large_is_refused(release_path: Path) -> None:
    release = open_release(release_path)
    with pytest.raises(NotFoundError, match=r"provenance\.json"):
        release.read_evidence("provenance.json", limit=100)
    with pytest.raises(InputError, match="at most 5 are allowed"):
        release.read_evidence("report.json", limit=5)


# Damage: what is on disk is not what was written --------------------------------------------------------


def blob_names(layout: Path) -> list[str]:
    return sorted(path.name for path in (layout / "blobs" / "sha256").iterdir())


def test_a_flipped_byte_in_any_blob_is_refused(layout: Path, tmp_path: Path) -> None:
    for name in blob_names(layout):
        path = layout / "blobs" / "sha256" / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        for damaged in (layout, as_tar(layout, tmp_path / f"{name}.tar")):
            with pytest.raises(TrustError, match=name):
                verify_release(damaged)
        path.write_bytes(whole)
    assert verify_release(layout).identity.version == "1.0"


@pytest.mark.parametrize("change", [b"", b"more"], ids=["shorter", "longer"])
def test_a_blob_of_another_length_than_declared_is_refused(layout: Path, tmp_path: Path, change: bytes) -> None:
    for name in blob_names(layout):
        broken = tmp_path / f"broken-{name}"
        shutil.copytree(layout, broken)
        path = broken / "blobs" / "sha256" / name
        path.write_bytes(path.read_bytes() + change if change else path.read_bytes()[:-1])
        for damaged in (broken, as_tar(broken, tmp_path / f"{name}.tar")):
            with pytest.raises(TrustError, match="are declared"):
                verify_release(damaged)


def test_a_missing_blob_is_named(layout: Path, tmp_path: Path) -> None:
    for name in blob_names(layout):
        broken = tmp_path / f"broken-{name}"
        shutil.copytree(layout, broken)
        (broken / "blobs" / "sha256" / name).unlink()
        for damaged in (broken, as_tar(broken, tmp_path / f"{name}.tar")):
            with pytest.raises(NotFoundError, match=name):
                verify_release(damaged)


def test_opening_reads_no_model_file(layout: Path) -> None:
    release = open_release(layout)
    model = release.variants[0].files["model.onnx"]
    (layout / "blobs" / "sha256" / model.digest.removeprefix("sha256:")).unlink()
    assert open_release(layout).digest == release.digest


@pytest.mark.parametrize("kind", ["symlink", "pipe", "folder"])
def test_a_blob_that_is_no_regular_file_is_refused(layout: Path, tmp_path: Path, kind: str) -> None:
    release = open_release(layout)
    path = layout / "blobs" / "sha256" / release.digest.removeprefix("sha256:")
    moved = tmp_path / "elsewhere"
    path.rename(moved)
    {"symlink": lambda: path.symlink_to(moved), "pipe": lambda: os.mkfifo(path), "folder": path.mkdir}[kind]()
    with pytest.raises((InputError, TrustError)):
        open_release(layout)


@pytest.mark.parametrize("name", ["oci-layout", "index.json"])
def test_a_layout_without_its_own_files_is_no_layout(layout: Path, tmp_path: Path, name: str) -> None:
    (layout / name).unlink()
    for damaged in (layout, as_tar(layout, tmp_path / "damaged.tar")):
        with pytest.raises(NotFoundError, match=name) as caught:
            open_release(damaged)
        assert "OCI image layout" in caught.value.hint


@pytest.mark.parametrize("name", ["oci-layout", "index.json"])
def test_an_oversized_file_of_the_layout_is_not_read(layout: Path, tmp_path: Path, name: str) -> None:
    with (layout / name).open("r+b") as file:
        file.truncate(MAX_INDEX_BYTES + 1)
    for damaged in (layout, as_tar(layout, tmp_path / "damaged.tar")):
        with pytest.raises(InputError, match=f"{name} .*allowed"):
            open_release(damaged)


def test_what_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nothing-here does not exist"):
        open_release(tmp_path / "nothing-here")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_to_a_tar_makes_another_release_of_it(archive: Path, tmp_path: Path, data: st.DataObject) -> None:
    whole = archive.read_bytes()
    original = open_release(archive)
    changed = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    damaged = tmp_path / "damaged.tar"
    damaged.write_bytes(changed[: data.draw(st.integers(0, len(whole)))] if data.draw(st.booleans()) else changed)
    try:
        release = verify_release(damaged)
    except EdgeServeError:
        return
    assert same(release, original)


def same(one: Release, other: Release) -> bool:
    return (one.digest, one.variants, one.evidence) == (other.digest, other.variants, other.evidence)


# Lies: the documents are whole, but say what they must not ----------------------------------------------


def test_ten_gigabytes_declared_are_refused_before_anything_is_read(forge) -> None:
    def huge(descriptor: dict) -> None:
        descriptor["size"] = 10 * GIB

    for edits in (
        {"root": huge},
        {"index": lambda index: huge(index["manifests"][0])},
        {"manifest": lambda manifest: huge(manifest["config"])},
        {"manifest": lambda manifest: huge(manifest["layers"][0])},
    ):
        with pytest.raises(InputError, match="declares 10737418240 bytes"):
            open_release(forge(**edits))


@pytest.mark.parametrize(
    "edits",
    [
        {"root": lambda root: root.update(size=MAX_INDEX_BYTES + 1)},
        {"index": lambda index: index["manifests"][0].update(size=MAX_INDEX_BYTES + 1)},
        {"manifest": lambda manifest: manifest["config"].update(size=MAX_INDEX_BYTES + 1)},
    ],
    ids=["index", "manifest", "config"],
)
def test_an_oversized_document_is_refused(forge, edits) -> None:
    with pytest.raises(InputError, match=f"at most {MAX_INDEX_BYTES}"):
        open_release(forge(**edits))


def test_two_lengths_for_one_blob_are_refused(forge) -> None:
    def edit(manifest: dict) -> None:
        manifest["layers"][0]["size"] += 1

    with pytest.raises(InputError, match="two lengths"):
        open_release(forge(manifest=edit))


def test_another_image_is_no_release(forge, layout: Path) -> None:
    def edit(root: dict) -> None:
        root["mediaType"] = "application/vnd.oci.image.manifest.v1+json"

    with pytest.raises(InputError, match="no release in it"):
        open_release(forge(root=edit))


def test_a_layout_with_two_releases_is_refused_and_one_among_other_images_is_found(layout: Path) -> None:
    whole = json.loads((layout / "index.json").read_bytes())
    entry = whole["manifests"][0]
    digest = open_release(layout).digest
    image = {**entry, "mediaType": "application/vnd.oci.image.manifest.v1+json"}
    other_index = {key: value for key, value in entry.items() if key != "artifactType"}
    (layout / "index.json").write_text(json.dumps({**whole, "manifests": [image, other_index, entry]}))
    assert open_release(layout).digest == digest
    (layout / "index.json").write_text(json.dumps({**whole, "manifests": [entry, entry]}))
    with pytest.raises(InputError, match="2 releases"):
        open_release(layout)


def test_an_index_json_without_media_type_and_artifact_type_is_read(layout: Path) -> None:
    """What `skopeo copy` writes."""
    whole = json.loads((layout / "index.json").read_bytes())
    del whole["mediaType"], whole["manifests"][0]["artifactType"]
    (layout / "index.json").write_text(json.dumps(whole))
    assert verify_release(layout).identity.version == "1.0"


def test_a_layout_of_another_version_is_refused(layout: Path) -> None:
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "2.0.0"}')
    with pytest.raises(InputError, match=r"version '2\.0\.0'"):
        open_release(layout)
