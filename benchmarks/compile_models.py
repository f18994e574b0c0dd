"""The real models, their data and what must hold. The files are described in docs/testdata.md."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from compile_measure import HERE, Case, Row

from edgeserve.runtimes.base import RuntimeOptions
from edgeserve.runtimes.variant import find_runtime
from edgeserve.task.score import score
from edgeserve_compilers.interval import drop_interval
from edgeserve_compilers.spec import PrecisionChoice
from edgeserve_compilers.verify import Reference


def decoded_yolox(model: Path, folder: Path) -> Path:
    import onnx

    sys.path.insert(0, str(HERE.parent))
    from tests.suites.yolox import decoded

    path = folder / "yolox_nano_decoded.onnx"
    onnx.save(decoded(onnx.load(model)), path)
    return path


def vad_streams(data: Path, folder: Path) -> Path:
    """Two of the eight streams to calibrate, the other six to judge."""
    arrays = dict(np.load(data / "data" / "vad_streams_8x50s.npz"))
    for name, chosen in (("calibration", slice(0, 2)), ("validation", slice(2, None))):
        np.savez(folder / f"{name}.npz", **{key: array[chosen] for key, array in arrays.items() if len(array) == 8})
    return folder


def upstream_kws(data: Path, reference: Reference, rows: list[Row]) -> None:
    """Upstream's own int8 file, fed with quantized inputs, on the same rows."""
    path = data / "models" / "kws_dscnn_int8_reference.tflite"
    model = find_runtime("litert").load(path, RuntimeOptions())
    (inputs,), (outputs,) = model.signature.inputs, model.signature.outputs
    (array,) = reference.data.inputs.values()
    quantized = np.clip(np.round(array / 0.584703) + 83, -128, 127).astype(np.int8)
    answers = np.concatenate(
        [model.run({inputs.name: quantized[row : row + 1]})[outputs.name] for row in range(len(quantized))]
    )
    found = score(reference.task, reference.task.metric, list(answers.astype(np.float64)), reference.truth)
    low, high, _ = drop_interval(found, reference.score)
    float_size = (data / "models" / "kws_dscnn_float32.tflite").stat().st_size
    rows.append(
        Row(
            who="upstream's int8 file", what="as published", value=found.value, float_value=reference.score.value,
            low=low, high=high, size=path.stat().st_size / float_size, seconds=float("nan"), bound=None,
        )
    )  # fmt: skip
    litert = [row for row in rows if row.who.startswith("edgeserve arm-cpu (litert)")]
    for row in litert:
        row.ok &= row.value >= found.value
        row.note = (row.note + " at or above upstream" if row.value >= found.value else "below upstream").strip()


DETECTOR_TARGETS = ("x86-cpu", "arm-cpu", "intel-cpu", "jetson-gpu")
"""`intel-npu` gets the same IR as `intel-cpu`, with a fixed batch."""
CASES = [
    Case(
        name="SqueezeNet 1.1, ImageNet-500", model="squeezenet1_1.onnx", task="squeezenet.toml",
        calibration="data/imagenet500#calib", validation="data/imagenet500#eval", bound=0.010, sizes=True,
    ),
    Case(
        name="KWS DS-CNN, from MFCC", model="kws_dscnn_float32.tflite", task="kws-mfcc.toml",
        calibration="data/kws_mfcc_even.npz#calib", validation="data/kws_mfcc_even.npz#eval", bound=0.005,
        extra=upstream_kws,
    ),
    Case(
        name="KWS DS-CNN, from WAV", model="kws_dscnn_float32.tflite", task="kws-wav.toml",
        calibration="data/kws_mfcc_even.npz#calib", validation="data/kws_wav_240.npz", bound=0.005,
    ),
    Case(
        name="YOLOX-nano, raw head", targets=DETECTOR_TARGETS, model="yolox_nano.onnx", task="yolox.toml",
        calibration="data/coco128/annotations.json#calib", validation="data/coco128/annotations.json#eval", bound=0.015,
    ),
    Case(
        name="YOLOX-nano, decoded in the graph", targets=DETECTOR_TARGETS, make=decoded_yolox,
        model="yolox_nano.onnx", task="yolox-decoded.toml",
        calibration="data/coco128/annotations.json#calib", validation="data/coco128/annotations.json#eval", bound=0.015,
    ),
    Case(
        name="Silero VAD, stateful", model="silero_vad_16k_op15.onnx", task="silero.toml",
        calibration="calibration.npz#float_prob_carried_state", validation="validation.npz#float_prob_carried_state",
        split=vad_streams, bound=0.02, peers=(),
    ),
    Case(
        name="Hand keypoints, MLP", model="hand_keypoint_classifier_float32.tflite", task="hand-keypoints.toml",
        calibration="data/hand_keypoints.npz#calib", validation="data/hand_keypoints.npz#eval", bound=0.005,
        precision=PrecisionChoice.AUTO,  # 6 KB: int8 is hardly ever smaller
    ),
]  # fmt: skip
