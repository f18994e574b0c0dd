from __future__ import annotations

import msgspec
import pytest

from edgeserve.contracts.device import DeviceFacts
from edgeserve.contracts.errors import DeviceError, InputError, NotFoundError, TrustError
from edgeserve.contracts.variant import Selector
from edgeserve.release.blobs import BlobFolder
from edgeserve_agent.config import LimitsSection
from edgeserve_agent.verify import CHECKS, NoSource, verify

FACTS = DeviceFacts(architecture="amd64", runtimes=("null",), memory_bytes=1 << 30)


class FolderSource:
    """Brings blobs from a release's own folder, and notes what it was asked for."""

    def __init__(self, blobs, into):
        self.blobs, self.into, self.asked, self.planned = blobs, into, [], []

    def fetch(self, blob):
        if not self.into.has(blob.digest, blob.size):
            self.asked.append(blob.digest)
            self.into.add(self.blobs.read(blob.digest, limit=1 << 30))

    def refetch(self, blob):
        self.into.remove(blob.digest)
        self.fetch(blob)
        return True

    def plan(self, missing):
        self.planned.append(missing)


@pytest.fixture
def check(tmp_path, target):
    blobs = BlobFolder(tmp_path / "device")

    def run(release, /, *, source=None, limits=None, facts=FACTS, **changes):
        return verify(
            target(release, **changes),
            blobs=blobs,
            source=source or FolderSource(release.blobs, blobs),
            limits=limits or LimitsSection(),
            facts=facts,
        )

    run.blobs = blobs
    return run


def test_a_sound_release_passes_every_check(check, releases):
    release = releases.make("1")
    candidate = check(release)
    assert candidate.verified.checks == CHECKS
    assert candidate.variant.digest == release.variants[0].digest
    assert candidate.golden.digest == release.evidence["golden.npz"].digest


def test_it_passes_again_from_disk_alone(check, releases):
    release = releases.make("1")
    check(release)
    assert check(release, source=NoSource()).variant.digest == release.variants[0].digest


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"version": "2"}, TrustError, "version"),
        ({"counter": 9}, TrustError, "counter"),
        ({"model": "letters"}, TrustError, "name"),
        ({"index_size": 10}, TrustError, "bytes"),
        ({"release": "sha256:" + "0" * 64}, NotFoundError, "missing"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_release_that_is_not_what_the_document_says_is_refused(check, releases, changes, error, words):
    release = releases.make("1")
    check(release)
    with pytest.raises(error, match=words):
        check(release, source=NoSource(), **changes)


@pytest.mark.parametrize(
    ("made", "facts", "words"),
    [
        ({"selector": Selector(architectures=("arm64",))}, {}, "no variant fits"),
        ({"selector": Selector(accelerator="npu")}, {}, "no variant fits"),
        ({"memory_bytes": 2 << 30}, {}, "no variant fits"),
        ({"runtime": "openvino"}, {}, "no variant fits"),
        ({"minimum_agent": "99.0.0"}, {}, "needs edgeserve 99"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_what_does_not_run_here_is_refused_with_the_reason(check, releases, made, facts, words):
    with pytest.raises(DeviceError, match=words):
        check(releases.make("1", **made), facts=msgspec.structs.replace(FACTS, **facts))


def test_a_model_that_the_device_does_not_allow_is_refused_before_anything_is_fetched(check, releases):
    release = releases.make("1")
    source = FolderSource(release.blobs, check.blobs)
    with pytest.raises(DeviceError, match="does not allow"):
        check(release, source=source, limits=LimitsSection(allowed_models=("camera-*",)))
    assert source.asked == []


def test_files_of_a_variant_that_does_not_fit_are_never_fetched(check, releases):
    release = releases.make("1", selector=Selector(architectures=("arm64",)))
    source = FolderSource(release.blobs, check.blobs)
    with pytest.raises(DeviceError):
        check(release, source=source)
    assert not {blob.digest for blob in release.variants[0].manifest.layers} & set(source.asked)


def test_a_release_without_a_golden_set_cannot_be_tried(check, releases):
    with pytest.raises(InputError, match="golden"):
        check(releases.make("1", golden=False))


def test_a_damaged_blob_is_fetched_once_more(check, releases):
    release = releases.make("1")
    check(release)
    victim = release.variants[0].files["weights.bin"]
    path = check.blobs.path(victim.digest)
    path.write_bytes(b"!" * victim.size)
    with pytest.raises(TrustError):  # there is nowhere to get it from
        check(release, source=NoSource())
    source = FolderSource(release.blobs, check.blobs)
    check(release, source=source)
    assert source.asked == [victim.digest]


def test_the_source_is_told_what_is_missing_before_it_is_fetched(check, releases):
    release = releases.make("1", padding=5000)
    source = FolderSource(release.blobs, check.blobs)
    check(release, source=source)
    files = (*release.variants[0].manifest.layers, release.evidence["golden.npz"])
    assert source.planned == [sum(blob.size for blob in files)]
