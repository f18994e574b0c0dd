from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from edgeserve.cli.main import main
from edgeserve.contracts.limits import GIB
from edgeserve.contracts.variant import Precision, Selector
from edgeserve.release.build import ReleaseBuilder
from edgeserve.release.layout import open_release


@dataclass
class Ended:
    code: int
    out: str
    err: str


@pytest.fixture
def edgeserve(capsys: pytest.CaptureFixture[str]):
    def run(*arguments: object) -> Ended:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return Ended(int(ended.value.code or 0), printed.out, printed.err)

    return run


@pytest.mark.parametrize("form", ["layout", "archive"])
def test_inspect_shows_identity_variants_and_evidence(form: str, request, edgeserve) -> None:
    path = request.getfixturevalue(form)
    done = edgeserve("inspect", path)
    assert done.code == 0
    assert "digits 1.0 (counter 7)" in done.out
    assert open_release(path).digest in done.out
    x86, arm = (next(line for line in done.out.splitlines() if target in line) for target in ("x86-cpu", "arm-cpu"))
    for line in (x86, arm):
        for cell in ("int8", "onnxruntime CPU", "5.5 KiB", "top1 0.9796", "0.9815", "+0.0019 [-0.0037, +0.0074]"):
            assert cell in line
    assert ("amd64" in x86, "host proxy" in x86) == (True, False)
    assert ("arm64" in arm, "0.042 ms host proxy" in arm) == (True, True)
    assert "report.json (13 B)" in done.out
    assert "golden.npz (25 B)" in done.out


@pytest.mark.parametrize(
    ("changes", "measured", "is_proxy"),
    [
        ({}, {}, False),
        ({}, {"host_architecture": "arm64"}, True),
        ({}, {"host_architecture": ""}, True),
        ({"selector": Selector()}, {"host_architecture": ""}, False),
        ({"selector": Selector(accelerator="npu")}, {"executing_device": "CPU"}, True),
        ({"selector": Selector(accelerator="npu")}, {"executing_device": "NPU"}, False),
        ({"selector": Selector(accelerator="npu")}, {"executing_device": "NPU (simulated)"}, True),
    ],
    ids=["native", "foreign", "unknown", "anywhere", "npu-on-cpu", "npu", "npu-simulated"],
)
def test_latency_from_other_hardware_is_a_proxy(changes, measured, is_proxy: bool, contract) -> None:
    native = contract()
    changed = msgspec.structs.replace(native, **changes, measured=msgspec.structs.replace(native.measured, **measured))
    assert changed.latency_is_proxy is is_proxy
    assert not contract(measured=None).latency_is_proxy


def test_inspect_prints_json_for_scripts(layout: Path, edgeserve) -> None:
    done = edgeserve("inspect", layout, "--json")
    document = json.loads(done.out)
    release = open_release(layout)
    assert (document["digest"], document["name"], document["version"]) == (release.digest, "digits", "1.0")
    assert [variant["contract"]["target"] for variant in document["variants"]] == ["x86-cpu", "arm-cpu"]
    assert [variant["latency_is_proxy"] for variant in document["variants"]] == [False, True]
    assert set(document["evidence"]) == {"report.json", "golden.npz"}


def test_inspect_says_when_nothing_was_measured_and_prints_no_control_characters(
    files, contract, tmp_path: Path, edgeserve
) -> None:
    made = ReleaseBuilder(name="digits", version="1", counter=1)
    plain = contract(measured=None, precision=Precision.FP32, runtime_device="CPU\x1b[31m\n")
    made.add_variant(plain, {"model.onnx": files["model.onnx"]})
    made.write(tmp_path / "bare")
    done = edgeserve("inspect", tmp_path / "bare")
    assert "not measured" in done.out
    assert "CPU?[31m?" in done.out
    assert "\x1b" not in done.out
    assert "evidence: none" in done.out


@pytest.mark.parametrize("form", ["layout", "archive"])
def test_verify_says_what_was_checked_and_what_was_not(form: str, request, edgeserve) -> None:
    path = request.getfixturevalue(form)
    release = open_release(path)
    done = edgeserve("verify", path)
    assert done.code == 0
    assert f"intact: {release.digest}" in done.out
    assert f"all {len(release.blob_descriptors())} blobs" in done.out
    assert "not checked: who made the release" in done.out
    document = json.loads(edgeserve("verify", path, "--json").out)
    assert document["digest"] == release.digest
    assert document["bytes"] == sum(blob.size for blob in release.blob_descriptors())
    assert len(document["not_checked"]) == 1


def test_verify_of_a_changed_model_file_exits_3(layout: Path, edgeserve) -> None:
    model = open_release(layout).variants[0].files["model.onnx"]
    path = layout / "blobs" / "sha256" / model.digest.removeprefix("sha256:")
    path.write_bytes(b"x" * model.size)
    assert edgeserve("inspect", layout).code == 0
    done = edgeserve("verify", layout)
    assert (done.code, done.out) == (3, "")
    assert model.digest in done.err
    assert "hint: " in done.err


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_what_is_no_release_exits_2(command: str, tmp_path: Path, edgeserve) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff" * 400)
    for path in ("folder", "photo.jpg", "nothing"):
        done = edgeserve(command, tmp_path / path)
        assert done.code == 2
        assert path in done.err
        assert "Traceback" not in done.err


def biggest(layout: Path) -> Path:
    model = open_release(layout).variants[0].files["model.onnx"]
    return layout / "blobs" / "sha256" / model.digest.removeprefix("sha256:")


def flip(forge) -> None:
    path = biggest(forge.layout)
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def lengthen(forge) -> None:
    path = biggest(forge.layout)
    path.write_bytes(path.read_bytes() + b"x")


def climb(manifest: dict) -> None:
    manifest["layers"][0]["annotations"]["org.opencontainers.image.title"] = "../../evil"


@pytest.mark.parametrize(
    ("harm", "code", "words"),
    [
        pytest.param(flip, 3, "does not have the bytes that its digest names", id="flipped byte"),
        pytest.param(lambda forge: biggest(forge.layout).unlink(), 2, "is missing from", id="missing blob"),
        pytest.param(lengthen, 3, "are declared", id="longer than declared"),
        pytest.param(lambda forge: forge(manifest=climb), 2, "file name '../../evil' is not allowed", id="climbing"),
        pytest.param(
            lambda forge: forge(manifest=lambda manifest: manifest["layers"][0].update(size=10 * GIB)),
            2,
            "declares 10737418240 bytes",
            id="10 GB",
        ),
        pytest.param(
            lambda forge: (forge.layout / "index.json").write_text('{"schema'), 2, "index.json is not valid", id="cut"
        ),
    ],
)
def test_verify_tells_a_hostile_release_with_its_file_and_a_way_out(
    forge, edgeserve, tmp_path: Path, harm, code: int, words: str
) -> None:
    harm(forge)
    before = set(tmp_path.rglob("*"))
    done = edgeserve("verify", forge.layout)
    assert (done.code, done.out) == (code, "")
    assert words in done.err
    assert str(forge.layout) in done.err
    assert "\nhint: " in done.err
    assert "Traceback" not in done.err
    assert set(tmp_path.rglob("*")) == before
