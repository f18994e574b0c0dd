from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from edgeserve.contracts.errors import DeviceError, InputError, NotFoundError, TrustError
from edgeserve.release.blobs import BlobFolder, digest_of, file_chunks

DATA = b"some bytes" * 1000
DIGEST = "sha256:" + hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def blobs(tmp_path: Path) -> BlobFolder:
    return BlobFolder(tmp_path / "blobs")


def test_nothing_is_created_before_a_blob_is_added(blobs: BlobFolder, tmp_path: Path) -> None:
    assert not blobs.has(DIGEST)
    assert list(blobs.digests()) == []
    blobs.remove(DIGEST)
    with pytest.raises(NotFoundError, match=DIGEST):
        blobs.read(DIGEST, limit=10)
    assert list(tmp_path.iterdir()) == []


def test_a_blob_lies_under_its_digest(blobs: BlobFolder, tmp_path: Path) -> None:
    assert blobs.add(DATA) == DIGEST
    assert (tmp_path / "blobs" / "sha256" / DIGEST[7:]).read_bytes() == DATA
    assert blobs.path(DIGEST).read_bytes() == DATA
    assert blobs.read(DIGEST, limit=len(DATA)) == DATA
    blobs.verify(DIGEST, len(DATA))
    assert (blobs.has(DIGEST), blobs.has(DIGEST, len(DATA)), blobs.has(DIGEST, 1)) == (True, True, False)


def test_a_file_is_stored_by_its_hash_once(blobs: BlobFolder, tmp_path: Path) -> None:
    source = tmp_path / "model"
    source.write_bytes(DATA)
    link = tmp_path / "link"
    link.symlink_to(source)
    assert blobs.add_file(source) == (DIGEST, len(DATA))
    inode = blobs.path(DIGEST).stat().st_ino
    assert blobs.add_file(link) == (DIGEST, len(DATA))
    assert blobs.add(DATA) == DIGEST
    assert blobs.path(DIGEST).stat().st_ino == inode
    assert list(blobs.digests()) == [DIGEST]


def test_adding_mends_a_blob_that_was_cut_short(blobs: BlobFolder) -> None:
    blobs.add(DATA)
    os.truncate(blobs.path(DIGEST), 5)
    blobs.add(DATA)
    blobs.verify(DIGEST, len(DATA))


@pytest.mark.parametrize(
    "text",
    ["", "sha256:", "sha256:" + "A" * 64, "sha256:" + "0" * 63, "sha512:" + "0" * 128, "sha256:../../etc/passwd",
     DIGEST + "\n"],
    ids=ascii,
)  # fmt: skip
def test_what_is_no_digest_names_no_path(blobs: BlobFolder, text: str) -> None:
    for act in (blobs.path, blobs.has, blobs.remove, blobs.open):
        with pytest.raises(InputError, match="digest"):
            act(text)


def test_damage_is_told_by_length_and_by_hash(blobs: BlobFolder) -> None:
    blobs.add(DATA)
    with pytest.raises(TrustError, match="10000 bytes, 10001 are declared"):
        blobs.verify(DIGEST, len(DATA) + 1)
    blobs.path(DIGEST).write_bytes(b"x" * len(DATA))
    with pytest.raises(TrustError, match="does not have the bytes"):
        blobs.verify(DIGEST, len(DATA))
    with pytest.raises(TrustError, match="does not have the bytes"):
        blobs.read(DIGEST, limit=len(DATA))


def test_reading_stops_at_the_limit(blobs: BlobFolder) -> None:
    blobs.add(DATA)
    with pytest.raises(InputError, match="more than the 9999 bytes allowed"):
        blobs.read(DIGEST, limit=len(DATA) - 1)


def test_a_removed_blob_is_gone(blobs: BlobFolder) -> None:
    blobs.add(DATA)
    blobs.remove(DIGEST)
    assert not blobs.has(DIGEST)
    with pytest.raises(NotFoundError):
        blobs.verify(DIGEST, len(DATA))


def test_leftovers_are_no_blobs(blobs: BlobFolder) -> None:
    blobs.add(DATA)
    blobs.path(DIGEST).with_name(f".{DIGEST[7:]}.ab12.tmp").write_bytes(b"half")
    blobs.path(DIGEST).with_name("notes").write_bytes(b"")
    assert list(blobs.digests()) == [DIGEST]


def test_a_placed_blob_takes_no_space_and_is_checked(blobs: BlobFolder, tmp_path: Path) -> None:
    blobs.add(DATA)
    blobs.place(DIGEST, len(DATA), tmp_path / "placed")
    assert (tmp_path / "placed").samefile(blobs.path(DIGEST))
    blobs.path(DIGEST).write_bytes(b"x" * len(DATA))
    with pytest.raises(TrustError):
        blobs.place(DIGEST, len(DATA), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_blob_is_copied_where_it_cannot_be_linked(
    blobs: BlobFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs.add(DATA)

    def refuse(*_arguments: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    blobs.place(DIGEST, len(DATA), tmp_path / "placed")
    assert (tmp_path / "placed").read_bytes() == DATA
    assert not (tmp_path / "placed").samefile(blobs.path(DIGEST))


def test_a_file_that_changes_while_it_is_stored_is_not_stored(tmp_path: Path) -> None:
    source = tmp_path / "model"
    source.write_bytes(DATA)
    with pytest.raises(InputError, match="changed while it was read"):
        list(file_chunks(source, digest_of(b"what it was before")))


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe"])
def test_what_is_no_file_is_not_stored(blobs: BlobFolder, tmp_path: Path, kind: str) -> None:
    source = tmp_path / "source"
    {"missing": lambda: None, "folder": source.mkdir, "pipe": lambda: os.mkfifo(source)}[kind]()
    with pytest.raises(InputError, match="source is"):
        blobs.add_file(source)


def test_a_place_that_cannot_hold_blobs_is_an_error_of_the_device(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    blobs = BlobFolder(tmp_path / "file" / "blobs")
    assert not blobs.has(DIGEST)
    with pytest.raises(DeviceError, match="cannot create"):
        blobs.add(DATA)
