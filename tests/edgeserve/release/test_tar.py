from __future__ import annotations

import gzip
import io
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeserve.contracts.errors import InputError
from edgeserve.release import tar as release_tar
from edgeserve.release.layout import open_release, verify_release
from edgeserve.release.tar import read_members, tar_chunks

BLOCK = 512


def member(name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"", **fields: object) -> bytes:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    head = info.tobuf(tarfile.GNU_FORMAT)
    return head + data + bytes(-len(data) % BLOCK)


def with_first(path: Path, extra: bytes) -> Path:
    path.write_bytes(extra + path.read_bytes())
    return path


@pytest.mark.parametrize(
    ("extra", "word"),
    [
        (member("../x", data=b"x"), "outside of the release"),
        (member("blobs/../../x", data=b"x"), "outside of the release"),
        (member("/etc/passwd", data=b"x"), "outside of the release"),
        (member("./../x"), "outside of the release"),
        (member("index.json", tarfile.SYMTYPE, linkname="/etc/passwd"), "a symbolic link"),
        (member("index.json", tarfile.LNKTYPE, linkname="oci-layout"), "a hard link"),
        (member("index.json", tarfile.CHRTYPE), "a device"),
        (member("index.json", tarfile.BLKTYPE), "a device"),
        (member("index.json", tarfile.FIFOTYPE), "a pipe"),
        (member("index.json", tarfile.GNUTYPE_SPARSE), "a sparse file"),
        (member("index.json", b"V"), "unknown type"),
        (member("x" * 300), "an over-long name"),
        (member("index.json", data=b"{}"), "two members index.json"),
        (member("pax", tarfile.XHDTYPE, b"19 path=index.json\n"), "extended header"),
        (member("pax", tarfile.XHDTYPE, b"11 size=10\n"), "extended header"),
        (member("pax", tarfile.XGLTYPE, b"22 GNU.sparse.major=1\n"), "extended header"),
        (member("pax", tarfile.XHDTYPE, b"x" * 70_000), "extended header of 70000 bytes"),
    ],
    ids=["climb", "climb-inside", "absolute", "dot-climb", "symlink", "hard-link", "char", "block", "pipe", "sparse",
         "unknown", "long-name", "twice", "pax-path", "pax-size", "pax-sparse", "pax-large"],
)  # fmt: skip
def test_a_tar_with_such_a_member_is_refused(archive: Path, extra: bytes, word: str) -> None:
    with pytest.raises(InputError, match=word):
        open_release(with_first(archive, extra))


@pytest.mark.parametrize(
    "extra",
    [
        member("README", data=b"read me" * 100),
        member("blobs/sha256", tarfile.DIRTYPE),
        member("pax", tarfile.XHDTYPE, b"27 mtime=1700000000.1234567\n"),
        member("manifest.json", data=b"[]"),
    ],
    ids=["other-file", "folder", "pax-time", "docker"],
)
def test_a_tar_may_hold_what_other_tools_put_there(archive: Path, extra: bytes) -> None:
    assert verify_release(with_first(archive, extra)).identity.version == "1.0"


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_a_tar_that_python_made_of_the_folder_is_the_same_release(layout: Path, tmp_path: Path, kind: int) -> None:
    path = tmp_path / "other.tar"
    with tarfile.open(path, "w", format=kind) as tar:
        tar.add(layout, ".")
    assert verify_release(path).digest == open_release(layout).digest


def test_a_tar_that_the_tar_program_made_is_the_same_release_and_the_other_way_round(
    layout: Path, archive: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.tar"
    subprocess.run(["tar", "-cf", other, "-C", layout, "."], check=True)
    assert verify_release(other).digest == open_release(layout).digest
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    subprocess.run(["tar", "-xf", archive, "-C", unpacked], check=True)
    assert verify_release(unpacked).digest == open_release(layout).digest


def test_a_tar_cut_at_any_place_is_refused(archive: Path, tmp_path: Path) -> None:
    whole = archive.read_bytes()
    end = max(extent.offset + extent.size for extent in read_members(archive).values())
    cut = tmp_path / "cut.tar"
    for length in {*range(0, end, 300), *range(0, end, BLOCK)}:
        cut.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"truncated|not a release's tar"):
            open_release(cut)


@pytest.mark.parametrize("size", [10 << 30, -1, -(1 << 40)])
def test_a_member_that_ends_behind_the_file_is_refused(archive: Path, size: int) -> None:
    head = bytearray(member("index.json"))
    number = size.to_bytes(11, "big", signed=True)
    head[124:136] = (b"\x80" if size >= 0 else b"\xff") + number
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    with pytest.raises(InputError, match="truncated"):
        open_release(with_first(archive, bytes(head)))


def test_the_number_of_members_is_bounded(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release_tar, "MAX_TAR_HEADERS", 10)
    with pytest.raises(InputError, match="more than 10 members"):
        open_release(archive)


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (gzip.compress(b"x" * 600), "compressed"),
        (b"", "not a release's tar"),
        (b"no tar at all" * 100, "not a release's tar"),
        (b"\0" * 1024, "has no oci-layout"),
    ],
    ids=["gzip", "empty-file", "garbage", "empty-tar"],
)
def test_a_file_that_is_no_tar_is_refused(tmp_path: Path, data: bytes, word: str) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(data)
    with pytest.raises(InputError, match=word):
        open_release(path)


def test_what_is_written_reads_back_with_python_and_ends_on_a_record() -> None:
    members = [("a", 3, [b"ab", b"c"]), ("d/e/f", BLOCK, [b"x" * BLOCK]), ("d/empty", 0, [])]
    data = b"".join(tar_chunks(members))
    assert len(data) % tarfile.RECORDSIZE == 0
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert tar.getnames() == ["a", "d", "d/e", "d/e/f", "d/empty"]
        contents: Callable[[str], bytes] = lambda name: tar.extractfile(name).read()  # noqa: E731
        assert [contents(name) for name in ("a", "d/e/f", "d/empty")] == [b"abc", b"x" * BLOCK, b""]


def test_a_size_of_eight_gigabytes_can_be_written() -> None:
    head = next(iter(tar_chunks([("a", 8 << 30, [])])))
    assert tarfile.TarInfo.frombuf(head, "utf-8", "strict").size == 8 << 30
