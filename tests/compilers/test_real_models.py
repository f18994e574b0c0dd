"""Whole compilations of published models; they need the real test data (docs/testdata.md)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgeserve.contracts.oci import ReleaseIdentity
from edgeserve.contracts.task import Task
from edgeserve.task.model_toml import read_task
from edgeserve_compilers.compilation import Outcome
from edgeserve_compilers.run import Request, compile_model
from edgeserve_compilers.spec import PrecisionChoice
from edgeserve_compilers.subject import Wish
from tests.suites.yolox import decoded

TASKS = Path(__file__).resolve().parents[2] / "benchmarks" / "tasks"


def compile_for(target: str, wish: Wish, folder: Path, *, max_drop: float) -> Outcome:
    return compile_model(
        Request(
            wish=wish, targets=(target,), precision=PrecisionChoice.INT8, max_accuracy_drop=max_drop,
            identity=ReleaseIdentity(name="real", version="v1", counter=1), destination=folder / "release",
        ),
        lambda *_: None,
    )  # fmt: skip


def task(name: str) -> Task:
    return read_task(TASKS / name)


@pytest.fixture
def few_pictures(realdata: Path, tmp_path: Path) -> Path:
    """Six pictures to calibrate and eight to judge, in the same form as all of them."""
    source = realdata / "data" / "coco128"
    document = json.loads((source / "annotations.json").read_text())
    chosen: dict[str, list[object]] = {"calib": [], "eval": []}
    for image in document["images"]:
        if len(chosen[image["split"]]) < {"calib": 6, "eval": 8}[image["split"]]:
            chosen[image["split"]].append(image)
    folder = tmp_path / "coco"
    (folder / "images").mkdir(parents=True)
    document["images"] = [image for images in chosen.values() for image in images]
    for image in document["images"]:
        name = Path(image["file"]).name
        shutil.copyfile(source / "images" / name, folder / "images" / name)
    (folder / "annotations.json").write_text(json.dumps(document))
    return folder / "annotations.json"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("target", ["x86-cpu", "intel-cpu"])  # the others take minutes: benchmarks/compile.py
def test_a_detector_with_its_decoding_in_the_graph_keeps_its_boxes(
    target: str, realdata: Path, few_pictures: Path, tmp_path: Path
) -> None:
    """Boxes in pixels beside scores in 0..1: plain int8 erases every detection while the noise looks well."""
    model = tmp_path / "decoded.onnx"
    onnx.save(decoded(onnx.load(realdata / "models" / "yolox_nano.onnx")), model)
    wish = Wish(
        model=str(model), calibration=f"{few_pictures}#calib", validation=f"{few_pictures}#eval", metric="agreement",
        task=task("yolox-decoded.toml"),
    )  # fmt: skip
    outcome = compile_for(target, wish, tmp_path, max_drop=0.05)
    kept = [report.kept for report in outcome.report.targets if report.kept is not None]
    assert kept
    for trial in kept:
        assert trial.measurement.agreement >= 0.95, trial.candidate.title
        assert trial.measurement.positives >= 0.9 * trial.measurement.float_positives > 0
        assert trial.size_bytes < 0.6 * trial.float_size_bytes


def test_a_keyword_spotter_saved_as_tflite_is_compiled_from_sound(realdata: Path, tmp_path: Path) -> None:
    wish = Wish(
        model=str(realdata / "models" / "kws_dscnn_float32.tflite"), task=task("kws-wav.toml"),
        calibration=f"{realdata / 'data' / 'kws_mfcc_even.npz'}#calib",
        validation=str(realdata / "data" / "kws_wav_240.npz"),
    )  # fmt: skip
    outcome = compile_for("arm-cpu", wish, tmp_path, max_drop=0.005)
    assert outcome.release is not None
    assert {variant.contract.runtime for variant in outcome.release.variants} == {"onnxruntime", "litert"}
    for variant in outcome.release.variants:
        assert variant.contract.measured.float_value == pytest.approx(224 / 240, abs=0.005)
        assert variant.contract.measured.drop <= 0.005
        assert variant.contract.task.inputs[0].features == "mfcc", "the device gets sound, too"


@pytest.mark.parametrize("target", ["arm-cpu", "intel-cpu"])
def test_a_speech_detector_is_judged_with_its_state_carried(target: str, realdata: Path, tmp_path: Path) -> None:
    arrays = dict(np.load(realdata / "data" / "vad_streams_8x50s.npz"))
    for name, rows in (("calibration", slice(0, 1)), ("validation", slice(4, 6))):
        steps = 300
        np.savez(
            tmp_path / f"{name}.npz",
            streams_int16_16khz=arrays["streams_int16_16khz"][rows, : steps * 512],
            float_prob_carried_state=arrays["float_prob_carried_state"][rows, :steps],
        )
    wish = Wish(
        model=str(realdata / "models" / "silero_vad_16k_op15.onnx"), task=task("silero.toml"),
        calibration=f"{tmp_path / 'calibration.npz'}#float_prob_carried_state",
        validation=f"{tmp_path / 'validation.npz'}#float_prob_carried_state",
    )  # fmt: skip
    outcome = compile_for(target, wish, tmp_path, max_drop=0.02)
    assert outcome.release is not None
    for variant in outcome.release.variants:
        measured = variant.contract.measured
        assert measured.float_value == pytest.approx(1.0, abs=1e-5), "state is carried as upstream carries it"
        assert measured.drop <= 0.02
        assert dict(variant.contract.task.state) == {"state": "stateN"}
