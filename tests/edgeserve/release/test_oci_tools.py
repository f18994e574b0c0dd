"""What other tools make of a release. They are not needed: without skopeo nothing here runs."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from edgeserve.release.layout import open_release

pytestmark = pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")


def skopeo(*arguments: str) -> bytes:
    return subprocess.run(["skopeo", *arguments], capture_output=True, check=True, timeout=60).stdout


def test_skopeo_reads_the_index_under_the_version(layout: Path) -> None:
    raw = skopeo("inspect", "--raw", f"oci:{layout}:1.0")
    assert "sha256:" + hashlib.sha256(raw).hexdigest() == open_release(layout).digest


@pytest.mark.parametrize("form", ["layout", "archive"])
def test_skopeo_copies_every_manifest_config_and_layer(form: str, request, tmp_path: Path) -> None:
    source = request.getfixturevalue(form)
    transport = "oci" if form == "layout" else "oci-archive"
    skopeo("copy", "--all", f"{transport}:{source}:1.0", f"oci:{tmp_path / 'copy'}:1.0")
    copied = {f"sha256:{path.name}" for path in (tmp_path / "copy" / "blobs" / "sha256").iterdir()}
    release = open_release(source)
    # skopeo before 1.14 knows no artifactType and writes another index, which open_release then refuses
    assert {blob.digest for blob in release.blob_descriptors()} - {release.digest} <= copied
