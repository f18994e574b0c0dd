from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeserve.cli.main import main
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve.contracts.variant import Precision, Selector, Tolerance, VariantContract
from edgeserve.release.build import ReleaseBuilder


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["devices", *arguments])
    captured = capsys.readouterr()
    return ended.value.code or 0, captured.out, captured.err


def test_profiles_are_listed(capsys) -> None:
    code, shown, _errors = run(capsys, "list")
    assert code == 0
    for name in ("raspberry-pi-4", "raspberry-pi-5", "jetson-orin-nano", "intel-core-ultra", "x86-64"):
        assert name in shown


def test_profiles_are_listed_as_json(capsys) -> None:
    code, shown, _errors = run(capsys, "list", "--json")
    assert code == 0
    profiles = {profile["name"]: profile for profile in json.loads(shown)}
    assert profiles["raspberry-pi-5"]["architecture"] == "arm64"
    assert profiles["raspberry-pi-5"]["verified"] is False


def test_a_profile_is_shown_with_what_nobody_has_run_on(capsys) -> None:
    code, shown, _errors = run(capsys, "show", "jetson-orin-nano")
    assert code == 0
    assert "nvidia gpu" in shown
    assert "nobody ran edgeserve on one" in shown
    assert json.loads(run(capsys, "show", "x86-64", "--json")[1])["targets"][0] == "x86-cpu"


def test_an_unknown_profile_is_answered_with_the_known_ones(capsys) -> None:
    code, shown, errors = run(capsys, "show", "toaster")
    assert (code, shown) == (2, "")
    assert "no device profile is named 'toaster'" in errors
    assert "raspberry-pi-5" in errors


def test_a_folder_of_profiles_can_be_given(tmp_path: Path, capsys) -> None:
    (tmp_path / "toaster.toml").write_text(
        'title = "T"\narchitecture = "arm"\ncpu = "C"\ncpu_features = []\ncores = 1\nmemory_mib = 64\n'
        'targets = ["null"]\nruntimes = []\n'
    )
    assert "toaster" in run(capsys, "list", "--profiles", str(tmp_path))[1]
    assert run(capsys, "show", "toaster", "--profiles", str(tmp_path / "gone"))[0] == 2
    (tmp_path / "toaster.toml").write_text("title = 1")
    code, _shown, errors = run(capsys, "show", "toaster", "--profiles", str(tmp_path))
    assert code == 2
    assert "toaster.toml" in errors


def test_this_machine_is_probed(capsys) -> None:
    code, shown, _errors = run(capsys, "probe")
    assert code == 0
    assert "onnxruntime" in shown
    facts = json.loads(run(capsys, "probe", "--json")[1])
    assert facts["cores"] > 0
    assert facts["simulated"] is False


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A release with a variant for x86, one for Arm and one for Intel's NPU."""
    spec = TensorSpec(name="x", datatype=Datatype.FP32, shape=(1,))
    (tmp_path / "model.onnx").write_bytes(b"model")
    builder = ReleaseBuilder(name="digits", version="1", counter=1)
    for target, runtime, selector in (
        ("x86-cpu", "onnxruntime", Selector(architectures=("amd64",))),
        ("arm-cpu", "onnxruntime", Selector(architectures=("arm64",))),
        ("intel-npu", "openvino", Selector(architectures=("amd64",), accelerator="npu", accelerator_vendor="intel")),
    ):
        contract = VariantContract(
            model="digits",
            target=target,
            precision=Precision.INT8,
            runtime=runtime,
            entry="model.onnx",
            signature=Signature(inputs=(spec,), outputs=(spec,)),
            selector=selector,
            tolerance=Tolerance(),
        )
        builder.add_variant(contract, {"model.onnx": tmp_path / "model.onnx"})
    builder.write(tmp_path / "digits")
    return tmp_path / "digits"


@pytest.mark.parametrize(
    ("profile", "target"), [("raspberry-pi-5", "arm-cpu"), ("x86-64", "x86-cpu"), ("intel-core-ultra", "intel-npu")]
)
def test_the_variant_of_a_profile_is_shown_with_reasons(release: Path, capsys, profile: str, target: str) -> None:
    code, shown, _errors = run(capsys, "match", str(release), "--device", profile)
    assert code == 0
    assert [line.split()[1] for line in shown.splitlines() if "chosen" in line] == [target]
    document = json.loads(run(capsys, "match", str(release), "--device", profile, "--json")[1])
    assert document["device"]["profile"] == profile
    assert len(document["reasons"]) == 3
    assert document["reasons"][document["index"]].endswith(": chosen")


def test_a_release_without_a_variant_for_the_device_ends_with_1_and_says_why(
    release: Path, tmp_path: Path, capsys
) -> None:
    (tmp_path / "toaster.toml").write_text(
        'title = "T"\narchitecture = "arm"\ncpu = "C"\ncpu_features = []\ncores = 1\nmemory_mib = 64\n'
        'targets = ["null"]\nruntimes = []\n'
    )
    code, shown, errors = run(capsys, "match", str(release), "--device", "toaster", "--profiles", str(tmp_path))
    assert code == 1
    assert "it is for amd64, the device is arm" in shown
    assert "no variant" in errors
    assert "edgeserve compile" in errors


def test_what_is_no_release_is_refused(tmp_path: Path, capsys) -> None:
    assert run(capsys, "match", str(tmp_path / "gone"))[0] == 2


def test_tables_fit_a_screen_and_say_what_nobody_has_run_on(release: Path, capsys) -> None:
    listed = run(capsys, "list")[1]
    tables = [listed, run(capsys, "match", str(release), "--device", "raspberry-pi-5")[1]]
    tables += [run(capsys, "show", line.split()[0])[1] for line in listed.splitlines()[2:]]
    assert max(len(line) for table in tables for line in table.splitlines()) <= 100
    rows = {line.split()[0]: line for line in listed.splitlines()[2:]}
    assert "unverified" in rows["raspberry-pi-5"]
    assert "unverified" not in rows["x86-64"]
    assert rows["jetson-nano"].split()[-2:] == ["no", "unverified"]


def test_a_profile_is_shown_with_versions_limits_and_a_first_choice(capsys) -> None:
    shown = run(capsys, "show", "jetson-nano")[1]
    rows = {line[1:14].strip(): line[16:].strip() for line in shown.splitlines()}
    assert rows["python"] == "3.6"
    assert rows["glibc"] == "2.27"
    assert rows["versions"].startswith("onnxruntime >=1.20,<1.24")
    assert rows["thermal"] == "clocks fall from 98.5 C, limit 102.5 C"
    assert rows["first choice"] == "int8, 4 threads"
    assert rows["installs"].startswith("no, not with the system's own Python 3.6")
    document = json.loads(run(capsys, "show", "jetson-nano", "--json")[1])
    assert document["runtimes"]["onnxruntime"] == ">=1.20,<1.24"
    assert document["thermal"] == {"throttle_c": 98.5, "critical_c": 102.5}
    assert document["installable"] is False


def test_what_a_profile_of_ones_own_does_not_say_is_unknown(tmp_path: Path, capsys) -> None:
    (tmp_path / "toaster.toml").write_text(
        'title = "T"\narchitecture = "arm"\ncpu = "C"\ncpu_features = []\ncores = 1\nmemory_mib = 64\n'
        'targets = ["null"]\nruntimes = []\n'
    )
    shown = run(capsys, "show", "toaster", "--profiles", str(tmp_path))[1]
    rows = {line[1:14].strip(): line[16:].strip() for line in shown.splitlines()}
    assert [rows[name] for name in ("python", "glibc", "installs", "thermal")] == ["unknown"] * 4
    assert [rows[name] for name in ("versions", "first choice")] == ["none"] * 2
