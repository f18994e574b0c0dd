"""`--check`: the same inputs give the same files, and whatever is not the same is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgeserve.contracts.errors import InputError, NotFoundError, TrustError
from edgeserve.contracts.oci import ReleaseIdentity
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve.contracts.variant import Precision, Selector, Tolerance, VariantContract
from edgeserve.release.blobs import digest_of
from edgeserve.release.build import ReleaseBuilder
from edgeserve.release.layout import Release
from edgeserve_compilers.check import Checked, check
from edgeserve_compilers.run import Request, compile_model
from edgeserve_compilers.spec import PrecisionChoice
from edgeserve_compilers.subject import Wish
from tests.suites.models import conv_net, images, save


def silent(*_: object) -> None:
    return


@pytest.fixture
def wish(inputs) -> Wish:
    return Wish(model=str(inputs.model), calibration=str(inputs.calibration), validation=str(inputs.validation))


@pytest.fixture
def release(wish: Wish, tmp_path: Path) -> Release:
    request = Request(
        wish=wish, targets=("x86-cpu", "intel-npu"), precision=PrecisionChoice.INT8, max_accuracy_drop=0.05,
        identity=ReleaseIdentity(name="tiny", version="v1", counter=1), destination=tmp_path / "release",
    )  # fmt: skip
    built = compile_model(request, silent).release
    assert built is not None
    return built


def test_every_file_is_made_again_byte_for_byte(wish: Wish, release: Release) -> None:
    checked = check(wish, release, silent)
    assert checked.same
    files = {(file.packed.target, file.packed.title) for file in checked.files}
    assert {("x86-cpu", "model.onnx"), ("intel-npu", "model.xml"), ("intel-npu", "model.bin")} <= files
    assert checked.other_versions == {}


@pytest.mark.parametrize("provenance_says_so", [True, False], ids=["and says so", "and hides it"])
def test_a_file_that_its_inputs_do_not_give_is_found(
    wish: Wish, release: Release, tmp_path: Path, provenance_says_so: bool
) -> None:
    builder = ReleaseBuilder(name="tiny", version="v1", counter=1)
    forged = tmp_path / "forged.bin"
    forged.write_bytes(b"not what the compiler made")
    signature = Signature(
        inputs=(TensorSpec(name="x", datatype=Datatype.FP32, shape=(-1,)),),
        outputs=(TensorSpec(name="y", datatype=Datatype.FP32, shape=(-1,)),),
    )
    contract = VariantContract(
        model="tiny", target="x86-cpu", precision=Precision.INT8, runtime="onnxruntime", entry="model.onnx",
        signature=signature, selector=Selector(), tolerance=Tolerance(),
    )  # fmt: skip
    builder.add_variant(contract, {"model.onnx": forged})
    for title, descriptor in release.evidence.items():
        data = release.read_evidence(title, limit=1 << 24)
        if title == "provenance.json" and provenance_says_so:
            document = json.loads(data)
            own = next(file for file in document["files"] if file["title"] == "model.onnx")
            document["files"] = [own | {"digest": digest_of(forged.read_bytes())}]
            document["versions"]["onnxruntime"] = "0.1"
            data = json.dumps(document).encode()
        builder.add_evidence(title, descriptor.media_type, data)
    written = builder.write(tmp_path / "forged")
    if not provenance_says_so:
        with pytest.raises(TrustError, match="other files than the release holds"):
            check(wish, written, silent)
        return
    checked: Checked = check(wish, written, silent)
    assert not checked.same
    assert {file.packed.title for file in checked.files if not file.same} == {"model.onnx"}
    assert set(checked.other_versions) == {"onnxruntime"}


@pytest.mark.parametrize("what", ["model", "calibration", "validation"])
def test_other_inputs_than_those_of_the_release_are_refused(
    wish: Wish, release: Release, tmp_path: Path, what: str
) -> None:
    if what == "model":
        other = save(conv_net(seed=9), tmp_path / "other.onnx")
    else:
        other = tmp_path / "other.npz"
        np.savez(other, image=images(64, seed=77), labels=np.arange(64) % 10)
    changed = Wish(
        **{**{name: getattr(wish, name) for name in ("model", "calibration", "validation")}, what: str(other)}
    )
    with pytest.raises(InputError, match="is not"):
        check(changed, release, silent)


def test_a_release_without_provenance_cannot_be_checked(wish: Wish, release: Release, tmp_path: Path) -> None:
    builder = ReleaseBuilder(name="tiny", version="v1", counter=1)
    folder = tmp_path / "unpacked"
    release.unpack(release.variants[0], folder)
    contract = release.variants[0].contract
    builder.add_variant(contract, {path.name: path for path in folder.iterdir() if path.name != "contract.json"})
    with pytest.raises(NotFoundError, match=r"no evidence 'provenance.json'"):
        check(wish, builder.write(tmp_path / "bare"), silent)


def test_code_that_a_release_names_is_not_executed_unless_the_user_names_it_too(
    wish: Wish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, called = f"own_{tmp_path.name}", tmp_path / "called"
    (tmp_path / f"{name}.py").write_text(
        "from pathlib import Path\n\ndef share(answers, truth):\n"
        f"    Path({str(called)!r}).touch()\n"
        "    return sum(a.argmax() == t for a, t in zip(answers, truth)) / len(truth)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    judged = replace(wish, metric=f"{name}:share")
    request = Request(
        wish=judged, targets=("x86-cpu",), precision=PrecisionChoice.FP32, destination=tmp_path / "release",
        identity=ReleaseIdentity(name="tiny", version="v1", counter=1),
    )  # fmt: skip
    built = compile_model(request, silent).release
    assert built is not None
    called.unlink()
    with pytest.raises(InputError, match=f"judged by {name}:share") as raised:
        check(wish, built, silent)
    assert "--metric" in raised.value.hint
    assert not called.exists()
    assert check(judged, built, silent).same
    assert called.exists()
