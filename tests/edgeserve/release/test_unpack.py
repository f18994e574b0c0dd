from __future__ import annotations

from pathlib import Path

import pytest

from edgeserve.contracts.documents import decode
from edgeserve.contracts.errors import ConflictError, DeviceError, NotFoundError, TrustError
from edgeserve.contracts.variant import VariantContract
from edgeserve.release.blobs import BlobFolder
from edgeserve.release.layout import open_release
from edgeserve.release.unpack import unpack_variant


@pytest.mark.parametrize("form", ["layout", "archive"])
def test_a_variant_unpacks_to_its_files_and_its_contract(form: str, request, tmp_path: Path, files) -> None:
    release = open_release(request.getfixturevalue(form))
    variant = release.variants[1]
    folder = tmp_path / "state" / "variants" / "arm"
    release.unpack(variant, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["contract.json", "model.onnx", "w.bin"]
    assert (folder / "model.onnx").read_bytes() == files["model.onnx"].read_bytes()
    assert (folder / "w.bin").read_bytes() == files["arm.bin"].read_bytes()
    contract = (folder / "contract.json").read_bytes()
    assert decode(contract, VariantContract, what="contract", limit=len(contract)) == variant.contract
    assert [path.name for path in folder.parent.iterdir()] == ["arm"]


def test_files_are_hard_links_to_the_blobs(layout: Path, tmp_path: Path) -> None:
    release = open_release(layout)
    release.unpack(release.variants[0], tmp_path / "out")
    blobs = BlobFolder(layout / "blobs")
    assert (tmp_path / "out" / "w.bin").samefile(blobs.path(release.variants[0].files["w.bin"].digest))


def test_unpacking_again_changes_nothing(layout: Path, tmp_path: Path) -> None:
    release = open_release(layout)
    folder = tmp_path / "out"
    release.unpack(release.variants[0], folder)
    before = folder.stat().st_ino
    release.unpack(release.variants[0], folder)
    assert folder.stat().st_ino == before


def test_an_empty_folder_is_filled(archive: Path, tmp_path: Path) -> None:
    release = open_release(archive)
    (tmp_path / "out").mkdir()
    release.unpack(release.variants[0], tmp_path / "out")
    assert (tmp_path / "out" / "contract.json").exists()


@pytest.mark.parametrize("change", ["other-variant", "file-missing", "file-cut", "foreign-file", "not-a-folder"])
def test_a_folder_with_something_else_in_it_is_left_alone(layout: Path, tmp_path: Path, change: str) -> None:
    release = open_release(layout)
    folder = tmp_path / "out"
    if change == "not-a-folder":
        folder.write_bytes(b"a file")
    elif change == "foreign-file":
        folder.mkdir()
        (folder / "thesis.txt").write_bytes(b"mine")
    else:
        release.unpack(release.variants[1 if change == "other-variant" else 0], folder)
        if change == "file-missing":
            (folder / "w.bin").unlink()
        if change == "file-cut":
            (folder / "w.bin").unlink()
            (folder / "w.bin").write_bytes(b"w")
    before = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else folder.read_bytes()
    with pytest.raises(ConflictError, match="out"):
        release.unpack(release.variants[0], folder)
    assert before == (sorted(path.name for path in folder.iterdir()) if folder.is_dir() else folder.read_bytes())


@pytest.mark.parametrize(("damage", "error"), [("flip", TrustError), ("cut", TrustError), ("remove", NotFoundError)])
def test_a_damaged_blob_leaves_nothing(layout: Path, tmp_path: Path, damage: str, error: type[Exception]) -> None:
    release = open_release(layout)
    variant = release.variants[0]
    path = BlobFolder(layout / "blobs").path(variant.files["w.bin"].digest)
    data = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(data[:-1] if damage == "cut" else data[:-1] + b"?")
    target = tmp_path / "state"
    target.mkdir()
    with pytest.raises(error):
        unpack_variant(BlobFolder(layout / "blobs"), variant, target / "out")
    assert list(target.iterdir()) == []


def test_a_place_that_cannot_be_written_is_an_error_of_the_device(layout: Path, tmp_path: Path) -> None:
    release = open_release(layout)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises((ConflictError, DeviceError)):
        release.unpack(release.variants[0], tmp_path / "file" / "out")
