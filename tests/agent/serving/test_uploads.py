from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgeserve.contracts.errors import InputError
from edgeserve_agent.serving import uploads
from edgeserve_agent.serving.model_folder import ModelFolders
from edgeserve_agent.serving.model_source import OpenOptions
from edgeserve_agent.serving.uploads import upload_path
from tests.suites.repository import put_version


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../x", "1/../../x", "1//x", "1/", "", "1/.hidden", "x/model.onnx", "0/m", "1/a/b/c/d", "1\\m",
     "config.pbtxt", "file:config.pbtxt", "file:../x", "1/m\0", "~/x"],
)  # fmt: skip
def test_an_uploaded_file_that_would_lie_elsewhere_is_refused(name: str):
    with pytest.raises(InputError):
        upload_path(name)


@given(st.text(alphabet="ab1./\\~:\0é ", max_size=20))
@example("file:1/model.onnx")
@example("..")
def test_an_uploaded_file_never_leaves_its_folder(name: str):
    try:
        path = upload_path(name)
    except InputError:
        return
    parts = PurePosixPath(path).parts
    assert not path.is_absolute()
    assert parts
    assert not any(part.startswith(".") for part in parts)


def test_an_upload_is_a_repository_of_its_own(tmp_path: Path):
    data = put_version(tmp_path / "elsewhere", "m", 1, adds=5).read_bytes()
    scratch = tmp_path / "scratch"
    root = uploads.write(scratch, "m", {"file:2/model.onnx": data, "labels.txt": b"cat\n"})
    folders = ModelFolders(root, OpenOptions(threads=1, scratch=scratch))
    assert [version.identity.version for version in folders.find("m").versions] == ["2"]
    uploads.remove(root)
    assert list(scratch.iterdir()) == []


def test_files_that_lie_within_each_other_are_refused_and_nothing_is_left(tmp_path: Path):
    with pytest.raises(InputError, match="within another"):
        uploads.write(tmp_path, "m", {"file:3": b"x", "file:3/model.onnx": b"x"})
    assert list(tmp_path.iterdir()) == []
