"""Releases that people bring to the device themselves."""

from __future__ import annotations

import json
import shutil

from edgeserve.release.blobs import BlobFolder
from edgeserve.release.layout import open_release
from edgeserve_agent.local import install


def test_what_was_installed_stays_as_it_was_when_the_given_files_change(configure, releases):
    config = configure(manager=None)
    given = config.folder / "given"  # on the file system of the blobs, where hard links could be made
    shutil.copytree(releases.make("1").blobs.location.parent, given)
    release = open_release(given)
    assert install(config, given).state.value == "probation"
    kept = BlobFolder(config.folder / "blobs")
    for digest in kept.digests():
        with release.blobs.path(digest).open("r+b") as file:  # in place, as `cp` does
            file.write(json.dumps("changed").encode())
    for blob in release.blob_descriptors():
        if kept.has(blob.digest):
            kept.verify(blob.digest, blob.size)
    assert kept.has(release.digest)
