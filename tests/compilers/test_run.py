"""Whole compilations: model and data in, release out."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import msgspec
import numpy as np
import pytest
from onnx import TensorProto, helper

from edgeserve.contracts.documents import encode
from edgeserve.contracts.errors import ConflictError, InputError, NotFoundError
from edgeserve.contracts.limits import MAX_GOLDEN_BYTES
from edgeserve.contracts.oci import ReleaseIdentity
from edgeserve.contracts.task import Kind, Task
from edgeserve.contracts.variant import Precision
from edgeserve.golden import Golden, GoldenMismatch, reproduce
from edgeserve.release.layout import Release, open_release
from edgeserve.runtimes.variant import load_variant
from edgeserve_compilers.cache import Cache
from edgeserve_compilers.compilation import Outcome
from edgeserve_compilers.converters import onnx2tf
from edgeserve_compilers.report import BaselineAgreement, Provenance, Report
from edgeserve_compilers.run import Request, compile_model
from edgeserve_compilers.spec import FLOAT, PrecisionChoice
from edgeserve_compilers.subject import Wish
from tests.suites.models import conv_net, images, model, save

ALL = ("x86-cpu", "arm-cpu", "intel-npu")


@pytest.fixture
def compile_for(inputs, tmp_path: Path):
    """Compile the tiny net; keywords change the request or its options."""

    def run(*targets: str, progress=lambda *_: None, **changes) -> Outcome:
        wish = {"model": inputs.model, "calibration": inputs.calibration, "validation": inputs.validation}
        for key in ("model", "calibration", "validation", "task", "metric", "trust_pickle"):
            if key in changes:
                wish[key] = changes.pop(key)
        files = {key: str(wish[key]) for key in ("model", "calibration", "validation") if wish[key] is not None}
        request = {
            "wish": Wish(**({**wish, "calibration": None, "validation": None} | files)),
            "targets": targets or ("x86-cpu",),
            "max_accuracy_drop": 0.05,
            "identity": ReleaseIdentity(name="tiny", version="v1", counter=1),
            "destination": tmp_path / "release",
        }
        return compile_model(Request(**(request | changes)), progress)

    return run


def evidence(release: Release, title: str) -> bytes:
    return release.read_evidence(title, limit=MAX_GOLDEN_BYTES)


def test_every_target_gets_a_variant_that_a_device_can_load_and_prove(compile_for, tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    outcome = compile_for(*ALL, precision=PrecisionChoice.INT8, progress=lambda *step: seen.append(step))
    release = open_release(tmp_path / "release")
    assert release.digest == outcome.release.digest
    assert {variant.contract.target for variant in release.variants} == set(ALL)
    assert set(release.evidence) == {"golden.npz", "provenance.json", "report.html", "report.json", "sketch.json"}
    golden = Golden.load(evidence(release, "golden.npz"))
    assert golden.rows == 32
    for variant in release.variants:
        folder = tmp_path / f"{variant.contract.target}-{variant.contract.runtime}-{variant.contract.precision.value}"
        release.unpack(variant, folder)
        contract, loaded = load_variant(folder, simulate=variant.contract.target != "x86-cpu")
        assert contract.task == Task(output="logits", metric="top1")
        assert reproduce(loaded, golden, contract.tolerance, contract.task).agreement >= contract.tolerance.agreement
        loaded.close()
        found = contract.measured
        assert found.rows == 200
        assert found.float_value == pytest.approx(0.9)
        assert found.drop == pytest.approx(found.float_value - found.value)
        assert found.drop_low <= found.drop <= min(found.drop_high, 0.05)
        assert found.size_bytes < found.float_size_bytes or contract.precision is Precision.FP32
        assert found.latency_ms > 0
        assert found.host_architecture
    npu = next(variant.contract for variant in release.variants if variant.contract.target == "intel-npu")
    assert npu.signature.inputs[0].shape == (1, 1, 8, 8)
    assert not npu.tolerance.element_wise
    assert npu.measured.executing_device == "CPU (simulated)"
    shares = [done / total for done, total, _ in seen]
    assert shares == sorted(shares), "progress never goes back"
    assert seen[-1][2] == "packing"
    assert {target for target in ALL if any(what.startswith(target) for *_, what in seen)} == set(ALL)


def test_the_evidence_says_from_what_and_how_it_was_made(compile_for, inputs) -> None:
    release = compile_for(precision=PrecisionChoice.INT8).release
    report = msgspec.json.decode(evidence(release, "report.json"), type=Report)
    assert (report.metric, report.judged_on.rows, report.judged_on.labelled) == ("top1", 200, True)
    target = report.targets[0]
    assert target.trials[0].candidate == FLOAT
    assert target.kept in target.trials[1:]
    assert sum(bucket.count for bucket in target.differences) == 200 * 10
    assert [example.row for example in target.examples]
    assert target.golden.agreement >= target.golden.tolerance.agreement
    provenance = msgspec.json.decode(evidence(release, "provenance.json"), type=Provenance)
    assert {"python", "edgeserve", "onnx", "onnxruntime"} <= set(provenance.versions)
    assert provenance.calibration.rows == 64
    assert provenance.model.digest.startswith("sha256:")
    for title in ("report.json", "provenance.json"):
        assert str(inputs.model.parent).encode() not in evidence(release, title), "paths stay private"


def test_a_model_whose_classes_are_permuted_fails_the_golden_set_of_the_right_one(compile_for, tmp_path: Path) -> None:
    right = compile_for().release
    wrong_model = conv_net()
    for tensor in wrong_model.graph.initializer:
        if tensor.name in ("w3", "b3"):
            array = np.frombuffer(tensor.raw_data, np.float32).reshape(tuple(tensor.dims))
            tensor.raw_data = np.roll(array, 1, axis=0).tobytes()
    wrong = compile_for(model=save(wrong_model, tmp_path / "wrong.onnx"), destination=tmp_path / "wrong").release
    wrong.unpack(wrong.variants[0], tmp_path / "unpacked")
    contract, loaded = load_variant(tmp_path / "unpacked", simulate=False)
    golden, own = (Golden.load(evidence(release, "golden.npz")) for release in (right, wrong))
    reproduce(loaded, own, contract.tolerance, contract.task)
    with pytest.raises(GoldenMismatch):
        reproduce(loaded, golden, right.variants[0].contract.tolerance, contract.task)
    loaded.close()


def test_fp32_is_packed_as_the_author_saved_it(compile_for, inputs, tmp_path: Path) -> None:
    outcome = compile_for(precision=PrecisionChoice.FP32)
    variant = outcome.release.variants[0]
    assert variant.contract.precision is Precision.FP32
    outcome.release.unpack(variant, tmp_path / "unpacked")
    assert (tmp_path / "unpacked" / variant.contract.entry).read_bytes() == inputs.model.read_bytes()
    assert len(outcome.report.targets[0].trials) == 1


def test_auto_keeps_float_when_no_quantized_form_meets_the_bound_and_says_why(compile_for) -> None:
    outcome = compile_for("arm-cpu", max_accuracy_drop=0.0, validation=None)
    target = outcome.report.targets[0]
    assert outcome.release.variants[0].contract.precision is Precision.FP32
    assert len(target.trials) > 5, "calibrators, operators and layers in float were tried"
    assert "smaller forms were refused" in target.verdict.why
    assert "at most 0.0000 are allowed" in target.verdict.why


def test_int8_that_misses_the_bound_writes_nothing_and_tells_the_best(compile_for, tmp_path: Path) -> None:
    outcome = compile_for(max_accuracy_drop=0.0, validation=None, precision=PrecisionChoice.INT8)
    assert outcome.release is None
    assert outcome.report.targets[0].verdict.kept is None
    assert "best found: " in outcome.report.targets[0].verdict.why
    assert "<html" in outcome.page
    assert not (tmp_path / "release").exists()


def test_on_this_machine_int8_must_be_faster_than_float_unless_it_was_asked_for(compile_for) -> None:
    target = compile_for().report.targets[0]
    assert target.native
    for trial in target.trials[1:]:
        slower = trial.measurement.latency_ms >= trial.measurement.float_latency_ms
        assert trial.refused or not slower
        assert slower or not any("not faster here" in reason for reason in trial.refused)


def test_a_model_with_nothing_to_quantize_stays_float(compile_for, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Flatten", ["image"], ["f"]),
        helper.make_node("Slice", ["f", "zero", "ten", "one"], ["s"]),
        helper.make_node("Softmax", ["s"], ["logits"]),
    ]
    built = model(
        nodes,
        inputs={"image": (TensorProto.FLOAT, ["n", 1, 8, 8])},
        outputs={"logits": (TensorProto.FLOAT, ["n", 10])},
        weights={key: np.array([value], np.int64) for key, value in {"zero": 0, "ten": 10, "one": 1}.items()},
    )
    outcome = compile_for("arm-cpu", model=save(built, tmp_path / "softmax.onnx"))
    assert outcome.release.variants[0].contract.precision is Precision.FP32
    assert "no convolution or matrix product was quantized" in outcome.report.targets[0].verdict.why


def test_a_batch_of_one_two_inputs_and_two_outputs_work_for_every_target(compile_for, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("Concat", ["left", "right"], ["both"], axis=1),
        helper.make_node("Gemm", ["both", "w1", "b1"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["embedding"]),
        helper.make_node("MatMul", ["embedding", "w2"], ["logits"]),
    ]
    built = model(
        nodes,
        inputs={"left": (TensorProto.FLOAT, [1, 24]), "right": (TensorProto.FLOAT, [1, 40])},
        outputs={"embedding": (TensorProto.FLOAT, [1, 256]), "logits": (TensorProto.FLOAT, [1, 4])},
        weights={
            "w1": random.standard_normal((64, 256)).astype(np.float32),
            "b1": random.standard_normal(256).astype(np.float32),
            "w2": random.standard_normal((256, 4)).astype(np.float32),
        },
    )
    rows = random.standard_normal((150, 64)).astype(np.float32)
    np.savez(tmp_path / "rows.npz", left=rows[:, :24], right=rows[:, 24:])
    outcome = compile_for(
        *ALL,
        model=save(built, tmp_path / "two.onnx"),
        calibration=tmp_path / "rows.npz",
        validation=None,
        max_accuracy_drop=0.1,
        task=Task(output="logits"),
    )
    for variant in outcome.release.variants:
        assert variant.contract.task.output == "logits"
        assert {spec.name for spec in variant.contract.signature.inputs} == {"left", "right"}
        assert {spec.name for spec in variant.contract.signature.outputs} == {"embedding", "logits"}
        assert variant.contract.measured.metric == "agreement"


def test_null_compiles_alone_for_any_model(compile_for, tmp_path: Path) -> None:
    release = compile_for("null").release
    release.unpack(release.variants[0], tmp_path / "unpacked")
    contract, loaded = load_variant(tmp_path / "unpacked", simulate=False)
    assert contract.entry == "model.null.json"
    reproduce(loaded, Golden.load(evidence(release, "golden.npz")), contract.tolerance, contract.task)
    with pytest.raises(InputError, match="null"):
        compile_for("null", "x86-cpu", destination=tmp_path / "other")


@pytest.mark.parametrize(
    ("calibration_rows", "validation_rows", "expected"),
    [
        (slice(0, 150), None, "no --validation"),
        (slice(0, 150), slice(100, 250), "50 of 150 validation rows are calibration rows"),
        (slice(0, 150), slice(150, 250), "v.npz has no labels"),
        (slice(0, 150), slice(150, 180), "30 rows are few"),
    ],
    ids=["no validation", "overlap", "no labels", "few"],
)
def test_doubts_are_told(compile_for, tmp_path: Path, calibration_rows, validation_rows, expected: str) -> None:
    rows = images(250, seed=9)
    np.savez(tmp_path / "c.npz", image=rows[calibration_rows])
    if validation_rows:
        np.savez(tmp_path / "v.npz", image=rows[validation_rows])
    outcome = compile_for(
        calibration=tmp_path / "c.npz",
        validation=tmp_path / "v.npz" if validation_rows else None,
        precision=PrecisionChoice.FP32,
    )
    doubts = (*outcome.report.warnings, *outcome.report.unjudged)
    assert any(expected in doubt for doubt in doubts), doubts


def test_nothing_is_packed_without_data(compile_for) -> None:
    with pytest.raises(InputError, match="not measured"):
        compile_for(calibration=None, validation=None)


def test_calibration_is_never_taken_from_the_validation_rows(compile_for) -> None:
    outcome = compile_for(calibration=None)
    assert outcome.release.variants[0].contract.precision is Precision.FP32
    with pytest.raises(InputError, match="calibration data"):
        compile_for(calibration=None, precision=PrecisionChoice.INT8, destination=Path("unused"))


def test_what_is_at_the_destination_stays(compile_for, tmp_path: Path) -> None:
    (tmp_path / "release").write_text("precious")
    with pytest.raises(ConflictError, match="exists already"):
        compile_for()
    assert (tmp_path / "release").read_text() == "precious"


def test_an_unknown_target_is_named_with_those_that_are_known(compile_for) -> None:
    with pytest.raises(NotFoundError, match="toaster") as raised:
        compile_for("toaster")
    assert "x86-cpu" in raised.value.hint


def test_an_unknown_output_is_refused(compile_for) -> None:
    with pytest.raises(InputError, match="output 'boxes' that the model does not have") as raised:
        compile_for(task=Task(output="boxes"))
    assert "logits" in raised.value.hint


def test_rows_of_two_shapes_are_refused(compile_for, tmp_path: Path) -> None:
    built = conv_net()
    for value in (*built.graph.input, *built.graph.output):
        value.type.tensor_type.shape.dim[-1].ClearField("dim_value")
    np.savez(tmp_path / "wide.npz", image=np.zeros((4, 1, 8, 9), np.float32))
    with pytest.raises(InputError, match="different shapes"):
        compile_for(model=save(built, tmp_path / "open.onnx"), calibration=tmp_path / "wide.npz")


def test_the_same_wish_gives_the_same_model_files(compile_for, tmp_path: Path) -> None:
    files = []
    for name in ("one", "two"):
        release = compile_for("x86-cpu", "arm-cpu", destination=tmp_path / name).release
        files.append([sorted(f.digest for f in variant.files.values()) for variant in release.variants])
    assert files[0] == files[1]


def test_a_release_can_be_one_tar(compile_for, tmp_path: Path) -> None:
    outcome = compile_for(destination=tmp_path / "release.tar")
    assert open_release(tmp_path / "release.tar").digest == outcome.release.digest


def test_without_task_and_labels_tensors_are_compared_and_the_report_says_what_is_not_known(
    compile_for, tmp_path: Path
) -> None:
    np.savez(tmp_path / "v.npz", image=images(150, seed=8))
    outcome = compile_for("arm-cpu", validation=tmp_path / "v.npz", precision=PrecisionChoice.INT8)
    assert outcome.report.metric == "sqnr"
    assert outcome.release.variants[0].contract.task.kind is Kind.TENSORS
    assert len(outcome.report.unjudged) == 2
    assert "whether the right answers win is not known" in outcome.report.unjudged[0]


def test_a_metric_that_labels_are_missing_for_is_replaced_and_the_report_says_so(compile_for, tmp_path: Path) -> None:
    np.savez(tmp_path / "v.npz", image=images(150, seed=8))
    wish = {"validation": tmp_path / "v.npz", "precision": PrecisionChoice.FP32}
    outcome = compile_for("arm-cpu", task=Task(output="logits"), metric="top5", **wish)
    assert outcome.report.metric == "agreement"
    assert "agreement stands in for top5" in outcome.report.unjudged[0]
    numbers = compile_for("arm-cpu", metric="agreement", destination=tmp_path / "numbers", **wish)
    assert numbers.report.metric == "agreement"
    assert numbers.release.variants[0].contract.task.kind is Kind.TENSORS


def test_layers_stay_float_until_the_bound_holds(compile_for) -> None:
    outcome = compile_for(
        "arm-cpu", task=Task(kind=Kind.TENSORS), validation=None, max_accuracy_drop=0.00002,
        precision=PrecisionChoice.INT8,
    )  # fmt: skip
    target = outcome.report.targets[0]
    assert target.sensitivity, "layers were ranked"
    assert any(trial.candidate.float_layers for trial in target.trials)
    noises = [entry.noise for entry in target.sensitivity]
    assert noises == sorted(noises, reverse=True)


def test_the_release_before_is_compared_class_by_class(compile_for, tmp_path: Path) -> None:
    compile_for("x86-cpu", precision=PrecisionChoice.FP32)
    outcome = compile_for(
        "x86-cpu", model=save(conv_net(seed=3), tmp_path / "new.onnx"), baseline=tmp_path / "release",
        destination=tmp_path / "new", precision=PrecisionChoice.FP32, max_accuracy_drop=0.99,
    )  # fmt: skip
    agreement = msgspec.json.decode(evidence(outcome.release, "agreement.json"), type=BaselineAgreement)
    assert agreement.rows == 200
    assert sum(entry.rows for entry in agreement.classes) == 200
    mean = sum(entry.rows * entry.agreement for entry in agreement.classes) / 200
    assert agreement.agreement == pytest.approx(mean)
    assert agreement.agreement < 0.9, "two random nets do not agree"


def test_the_second_compilation_of_the_same_comes_from_the_cache(compile_for, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 1 << 30)
    first = compile_for(cache=cache)
    second = compile_for(cache=cache, destination=tmp_path / "second.tar")
    assert (first.cached, second.cached) == (False, True)
    assert second.release.digest == first.release.digest
    assert second.page == first.page
    assert not compile_for(cache=cache, destination=tmp_path / "third", max_accuracy_drop=0.06).cached


def test_a_model_whose_weights_lie_beside_it_is_another_when_they_change(compile_for, inputs, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    graph = tmp_path / "net.xml"
    openvino.save_model(openvino.convert_model(inputs.model), graph, compress_to_fp16=False)
    cache = Cache(tmp_path / "cache", 1 << 30)
    wish = {"model": graph, "precision": PrecisionChoice.FP32, "cache": cache}
    compile_for("intel-cpu", **wish)
    assert compile_for("intel-cpu", destination=tmp_path / "same", **wish).cached
    weights = np.fromfile(graph.with_suffix(".bin"), np.uint8)
    weights[:4] = np.frombuffer(np.float32(0.5).tobytes(), np.uint8)
    weights.tofile(graph.with_suffix(".bin"))
    assert not compile_for("intel-cpu", destination=tmp_path / "other", **wish).cached


def test_what_a_new_converter_may_add_is_not_hidden_by_the_cache(compile_for, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv(onnx2tf.PYTHON_VARIABLE, raising=False)
    monkeypatch.setenv("EDGESERVE_CACHE", str(tmp_path / "empty"))
    cache = Cache(tmp_path / "cache", 1 << 30)
    compile_for("null", cache=cache)
    assert compile_for("null", cache=cache, destination=tmp_path / "again").cached
    monkeypatch.setenv(onnx2tf.PYTHON_VARIABLE, sys.executable)
    assert not compile_for("null", cache=cache, destination=tmp_path / "with").cached


def test_no_folder_of_this_machine_is_in_the_evidence(compile_for, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv(onnx2tf.PYTHON_VARIABLE, str(tmp_path / "alice/python"))
    monkeypatch.setenv("HOME", str(tmp_path))
    outcome = compile_for("arm-cpu", "x86-cpu")
    litert = next(target for target in outcome.report.targets if target.form == "litert")
    assert litert.verdict.why.startswith("not made:")
    for title in ("report.json", "report.html", "provenance.json"):
        said = evidence(outcome.release, title).decode()
        assert not {name for name in (str(tmp_path), str(Path.home()), "alice/", tempfile.gettempdir()) if name in said}
    for variant in outcome.release.variants:
        assert str(tmp_path) not in encode(variant.contract).decode()
