"""Published models on published data, through the tasks in benchmarks/tasks: the accuracies that the data came with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve.runtimes.base import RuntimeOptions
from edgeserve.runtimes.onnx import OnnxRuntime
from edgeserve.task.model_toml import check_task, read_task
from edgeserve_compilers.data.dataset import Dataset, overlap
from edgeserve_compilers.data.read import load

TASKS = Path(__file__).parents[3] / "benchmarks" / "tasks"


def takes(
    name: str, shape: tuple[int, ...], *more: tuple[str, tuple[int, ...]], outputs=(("out", (-1, 12)),)
) -> Signature:
    def spec(entry: tuple[str, tuple[int, ...]]) -> TensorSpec:
        return TensorSpec(name=entry[0], datatype=Datatype.FP32, shape=entry[1])

    return Signature(inputs=tuple(map(spec, ((name, shape), *more))), outputs=tuple(map(spec, outputs)))


def read(path: str, signature: Signature, task: str) -> Dataset:
    return load(Path(path), signature, check_task(read_task(TASKS / f"{task}.toml"), signature))


def test_squeezenet_is_as_accurate_as_published(realdata: Path) -> None:
    model = OnnxRuntime().load(realdata / "models" / "squeezenet1_1.onnx", RuntimeOptions(threads=2))
    data = read(f"{realdata}/data/imagenet500#eval", model.signature, "squeezenet")
    right = 0
    for start in range(0, data.rows, 50):
        logits = model.run(data.take(slice(start, start + 50)))["logits"]
        right += int((logits.argmax(axis=1) == data.truth[start : start + 50]).sum())
    model.close()
    assert (data.rows, right) == (400, 238)


def test_splits_of_the_same_folder_share_nothing(realdata: Path) -> None:
    signature = takes("input", (-1, 3, 224, 224))
    calib, rest = (read(f"{realdata}/data/imagenet500#{split}", signature, "squeezenet") for split in ("calib", "eval"))
    assert (calib.rows, rest.rows, overlap(calib, rest)) == (100, 400, 0)
    assert calib.names[0] == "images/0000.jpg"


@pytest.mark.parametrize(("split", "boxes"), [("eval", 461), ("calib", 423)])
def test_coco_pictures_come_with_their_boxes(realdata: Path, split: str, boxes: int) -> None:
    signature = takes("images", (1, 3, 416, 416), outputs=(("output", (1, 3549, 85)),))
    data = read(f"{realdata}/data/coco128/annotations.json#{split}", signature, "yolox")
    assert (data.rows, sum(len(found) for found in data.truth)) == (64, boxes)
    assert data.inputs["images"].shape == (64, 3, 416, 416)
    assert all((found.boxes >= 0).all() and (found.boxes <= 416).all() for found in data.truth)


def test_keyword_features_come_from_waveforms_or_as_they_are(realdata: Path) -> None:
    signature = takes("input_1", (-1, 49, 10, 1))
    raw = read(f"{realdata}/data/kws_wav_240.npz", signature, "kws-wav")
    made = read(f"{realdata}/data/kws_mfcc_even.npz", signature, "kws-mfcc")
    assert (raw.rows, made.rows) == (240, 2445)
    place = {clip: row for row, clip in enumerate(made.names)}
    rows = [place[clip] for clip in raw.names]
    np.testing.assert_allclose(raw.inputs["input_1"], made.inputs["input_1"][rows], atol=1e-4)
    np.testing.assert_array_equal(raw.truth, made.truth[rows])
    halves = [
        read(f"{realdata}/data/kws_mfcc_even.npz#{split}", signature, "kws-mfcc").rows for split in ("calib", "eval")
    ]
    assert halves == [130, 2315]


def test_streams_become_steps_with_the_samples_before_them(realdata: Path) -> None:
    signature = takes(
        "input", (-1, 576), ("state", (2, -1, 128)), outputs=(("output", (-1, 1)), ("stateN", (2, -1, 128)))
    )
    data = read(f"{realdata}/data/vad_streams_8x50s.npz#float_prob_carried_state", signature, "silero")
    assert (list(data.inputs), data.inputs["input"].shape, data.truth.shape) == (["input"], (8, 1562, 576), (8 * 1562,))
    stream = np.load(realdata / "data" / "vad_streams_8x50s.npz")["streams_int16_16khz"][3]
    np.testing.assert_array_equal(
        data.inputs["input"][3, 7], stream[7 * 512 - 64 : 8 * 512].astype(np.float32) / 32_768
    )


def test_keypoints_need_no_preprocessing(realdata: Path) -> None:
    signature = takes("input_1", (-1, 42), outputs=(("out", (-1, 3)),))
    assert read(f"{realdata}/data/hand_keypoints.npz#eval", signature, "hand-keypoints").rows == 4150
