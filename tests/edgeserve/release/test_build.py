from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edgeserve.contracts.errors import ConflictError, DeviceError, InputError, NotFoundError
from edgeserve.contracts.limits import MAX_BLOB_BYTES, MAX_GOLDEN_BYTES
from edgeserve.contracts.oci import REPORT_TYPE
from edgeserve.contracts.variant import Selector
from edgeserve.release.build import ReleaseBuilder
from edgeserve.release.layout import open_release, verify_release


def content(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def test_the_same_parts_give_the_same_bytes(builder: ReleaseBuilder, tmp_path: Path) -> None:
    for name in ("a", "b", "a.tar", "b.tar"):
        builder.write(tmp_path / name)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_the_order_of_files_and_evidence_does_not_matter(files, contract, tmp_path: Path) -> None:
    digests = []
    for reverse in (False, True):
        made = ReleaseBuilder(name="digits", version="1.0", counter=1)
        parts = sorted({"model.onnx": files["model.onnx"], "w.bin": files["x86.bin"]}.items(), reverse=reverse)
        made.add_variant(contract(), dict(parts))
        for title in sorted(["report.json", "provenance.json"], reverse=reverse):
            made.add_evidence(title, REPORT_TYPE, title.encode())
        digests.append(made.write(tmp_path / str(reverse)).digest)
    assert digests[0] == digests[1]


def test_the_format_does_not_drift(tmp_path: Path, contract) -> None:
    """A changed digest here means that every release of every user gets another name: say so in the changelog."""
    (tmp_path / "model.onnx").write_bytes(b"graph")
    made = ReleaseBuilder(name="digits", version="1.0", counter=1)
    made.add_variant(contract(measured=None), {"model.onnx": tmp_path / "model.onnx"})
    release = made.write(tmp_path / "release")
    index = json.loads((tmp_path / "release/blobs/sha256" / release.digest[7:]).read_bytes())
    assert list(index) == ["schemaVersion", "mediaType", "artifactType", "manifests", "annotations"]
    assert list(index["manifests"][0]) == ["mediaType", "digest", "size", "annotations", "platform", "artifactType"]
    assert index["manifests"][0]["platform"] == {"architecture": "amd64", "os": "linux"}
    assert index["annotations"] == {
        "io.edgeserve.counter": "1",
        "io.edgeserve.name": "digits",
        "org.opencontainers.image.version": "1.0",
    }


def test_the_evidence_is_an_artifact_with_the_empty_config(layout: Path) -> None:
    """image-spec 1.1, "Guidelines for Artifact Usage": an empty config requires an artifactType."""
    manifest = open_release(layout).evidence_manifest
    assert manifest is not None
    assert manifest.artifact_type == "application/vnd.edgeserve.evidence.v1"
    assert manifest.config.media_type == "application/vnd.oci.empty.v1+json"
    assert manifest.config.digest == "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    assert manifest.config.size == 2


def test_index_json_names_the_release_by_its_version(layout: Path) -> None:
    entry = json.loads((layout / "index.json").read_bytes())["manifests"][0]
    assert entry["annotations"] == {"org.opencontainers.image.ref.name": "1.0"}
    assert entry["digest"] == open_release(layout).digest
    assert json.loads((layout / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}


@pytest.mark.parametrize(
    ("architectures", "platforms"),
    [((), None), (("arm64",), "arm64"), (("arm64", "amd64"), None)],
    ids=["any", "one", "several"],
)
def test_a_platform_is_named_where_there_is_one(architectures, platforms, files, contract, tmp_path: Path) -> None:
    made = ReleaseBuilder(name="digits", version="1", counter=1)
    made.add_variant(contract(selector=Selector(architectures=architectures)), {"model.onnx": files["model.onnx"]})
    platform = made.write(tmp_path / "release").index.manifests[0].platform
    assert (platform.architecture if platform else None) == platforms


def test_a_release_without_evidence_has_no_evidence_manifest(files, contract, tmp_path: Path) -> None:
    made = ReleaseBuilder(name="digits", version="1", counter=1)
    made.add_variant(contract(), {"model.onnx": files["model.onnx"]})
    release = made.write(tmp_path / "release.tar")
    assert len(release.index.manifests) == 1
    assert dict(release.evidence) == {}


@pytest.mark.parametrize("name", ["release", "release.tar"])
@pytest.mark.parametrize("there", ["file", "folder", "broken link"])
def test_what_is_there_is_never_replaced(builder: ReleaseBuilder, tmp_path: Path, name: str, there: str) -> None:
    path = tmp_path / name
    {"file": path.touch, "folder": path.mkdir, "broken link": lambda: path.symlink_to("nowhere")}[there]()
    before = path.lstat().st_ino
    with pytest.raises(ConflictError, match=f"{name} exists already"):
        builder.write(path)
    assert path.lstat().st_ino == before


def test_the_parents_of_the_destination_are_made(builder: ReleaseBuilder, tmp_path: Path) -> None:
    assert builder.write(tmp_path / "a" / "b" / "release").identity.counter == 7


@pytest.mark.parametrize("name", ["release", "release.tar"])
def test_a_model_file_that_changed_since_it_was_added_leaves_nothing(
    builder: ReleaseBuilder, files, tmp_path: Path, name: str
) -> None:
    files["arm.bin"].write_bytes(b"other weights!!")
    target = tmp_path / "out"
    with pytest.raises(InputError, match=r"arm\.bin changed"):
        builder.write(target / name)
    assert list(target.iterdir()) == []


def test_a_destination_that_cannot_be_written_is_an_error_of_the_device(
    builder: ReleaseBuilder, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DeviceError, match="cannot write"):
        builder.write(tmp_path / "file" / "release")


@pytest.mark.parametrize(
    ("changes", "titles", "error", "word"),
    [
        ({}, {"../model.onnx": "model.onnx"}, InputError, "file name"),
        ({}, {"w.bin": "x86.bin"}, InputError, "lacks its entry"),
        ({}, {}, InputError, "lacks its entry"),
        ({}, {"model.onnx": "model.onnx", "contract.json": "x86.bin"}, InputError, "kept for the contract"),
        ({}, {"model.onnx": "model.onnx", "MODEL.onnx": "x86.bin"}, InputError, "two files"),
        ({}, {"model.onnx": "nothing"}, NotFoundError, "missing"),
        ({"model": "faces"}, {"model.onnx": "model.onnx"}, InputError, "another model"),
    ],
    ids=["climbs", "no-entry", "no-files", "contract", "same-title", "missing", "other-model"],
)
def test_a_wrong_variant_is_refused_and_leaves_no_trace(
    changes, titles, error: type[Exception], word: str, files, contract, tmp_path: Path
) -> None:
    made = ReleaseBuilder(name="digits", version="1", counter=1)
    paths = {title: files.get(name, tmp_path / name) for title, name in titles.items()}
    with pytest.raises(error, match=word):
        made.add_variant(contract(**changes), paths)
    made.add_variant(contract(), {"model.onnx": files["model.onnx"]})
    release = made.write(tmp_path / "release")
    assert len(list((tmp_path / "release/blobs/sha256").iterdir())) == len(release.blob_descriptors())


def test_a_model_file_that_no_device_would_fetch_is_refused(contract, tmp_path: Path, monkeypatch) -> None:
    from edgeserve.release import build

    monkeypatch.setattr(build, "MAX_BLOB_BYTES", 3)
    assert MAX_BLOB_BYTES > 3
    (tmp_path / "m").write_bytes(b"four")
    with pytest.raises(InputError, match="has 4 bytes, at most 3"):
        ReleaseBuilder(name="digits", version="1", counter=1).add_variant(contract(), {"model.onnx": tmp_path / "m"})


def test_one_variant_twice_and_one_evidence_twice_are_refused(builder: ReleaseBuilder, files, contract) -> None:
    with pytest.raises(InputError, match="x86-cpu int8 was added twice"):
        builder.add_variant(contract(), {"model.onnx": files["model.onnx"], "w.bin": files["x86.bin"]})
    with pytest.raises(InputError, match=r"'Report\.json' was added twice"):
        builder.add_evidence("Report.json", REPORT_TYPE, b"")
    with pytest.raises(InputError, match="file name"):
        builder.add_evidence("../report.json", REPORT_TYPE, b"")
    with pytest.raises(InputError, match="at most"):
        builder.add_evidence("large", REPORT_TYPE, bytes(MAX_GOLDEN_BYTES + 1))


def test_a_release_needs_a_variant(tmp_path: Path) -> None:
    made = ReleaseBuilder(name="digits", version="1", counter=1)
    made.add_evidence("report.json", REPORT_TYPE, b"{}")
    with pytest.raises(InputError, match="no variant"):
        made.write(tmp_path / "release")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "fields", [{"name": "No"}, {"version": "../1"}, {"counter": -1}, {"counter": 1 << 63}], ids=str
)
def test_an_identity_that_is_not_allowed_is_refused(fields) -> None:
    with pytest.raises(InputError):
        ReleaseBuilder(**{"name": "digits", "version": "1", "counter": 1, **fields})


CRASH = """
import os, shutil, signal, sys
from pathlib import Path
from edgeserve.contracts.errors import EdgeServeError
from edgeserve.release.blobs import BlobFolder
from edgeserve.release.layout import open_release, verify_release
from edgeserve.release.build import ReleaseBuilder

work, kind = Path(sys.argv[1]), sys.argv[2]
source = open_release(work / "release")
steps = ("open", "fsync", "replace", "link", "unlink", "mkdir")

def act(target):
    if kind == "unpack":
        source.unpack(source.variants[0], target)
    elif kind == "blob":
        BlobFolder(target).add_file(work / "compiled" / "model.onnx")
    else:
        made = ReleaseBuilder(name="digits", version="1.0", counter=7)
        for variant, weights in zip(source.variants, ("x86.bin", "arm.bin")):
            folder = work / "compiled"
            made.add_variant(variant.contract, {"model.onnx": folder / "model.onnx", "w.bin": folder / weights})
        made.write(target)

def whole(target):
    if kind == "unpack":
        titles = source.variants[0].files
        return sorted(os.listdir(target)) == sorted([*titles, "contract.json"]) and all(
            (target / title).stat().st_size == file.size for title, file in titles.items())
    if kind == "blob":
        folder = BlobFolder(target)
        for digest in folder.digests():
            folder.verify(digest, folder.size(digest))
        return True
    return verify_release(target).identity.version == "1.0"

def killed_at(last, target):
    pid = os.fork()
    if pid == 0:
        count = 0
        def counted(function):
            def call(*arguments, **options):
                nonlocal count
                count += 1
                if count == last:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments, **options)
            return call
        for name in steps:
            setattr(os, name, counted(getattr(os, name)))
        act(target)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL

last = 1
seen = set()
while True:
    folder = work / f"crash{last}"
    folder.mkdir()
    target = folder / ("it.tar" if kind == "tar" else "it")
    alive = not killed_at(last, target)
    seen.add(target.exists())
    assert not target.exists() or whole(target), last
    if not target.exists() or kind == "blob":
        act(target)
        assert whole(target), last
    shutil.rmtree(folder)
    if alive:
        break
    last += 1
print(last, sorted(seen))
"""


@pytest.mark.parametrize("kind", ["folder", "tar", "unpack", "blob"])
def test_killed_at_any_step_there_is_nothing_or_the_whole(kind: str, layout: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CRASH, str(tmp_path), kind], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    steps, seen = done.stdout.split(maxsplit=1)
    assert int(steps) > 5
    assert seen.strip() == "[False, True]"


def test_what_was_written_is_intact(layout: Path, archive: Path) -> None:
    assert verify_release(layout).digest == verify_release(archive).digest
