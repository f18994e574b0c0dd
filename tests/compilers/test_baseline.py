from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgeserve.contracts.errors import DeviceError, InputError, TrustError
from edgeserve.contracts.task import Boxes, ImageInput, Kind, Task
from edgeserve.contracts.variant import Precision, Selector, Tolerance, VariantContract
from edgeserve.release.build import ReleaseBuilder
from edgeserve.release.layout import Release, open_release
from edgeserve.runtimes.base import RuntimeOptions, Tensors
from edgeserve.runtimes.onnx import OnnxRuntime
from edgeserve.runtimes.rows import run_task
from edgeserve.task.answers import Answers
from edgeserve.task.decode import decode, judging_score
from edgeserve_compilers.baseline import compare
from edgeserve_compilers.data.dataset import Dataset
from edgeserve_compilers.report import BaselineAgreement
from edgeserve_devices.probe import probe
from tests.suites.models import conv_net, images, model, recurrent_net, save

TASK = Task(labels=tuple(f"digit {number}" for number in range(10)))
HERE = Selector(architectures=(probe().architecture,))
ELSEWHERE = Selector(architectures=("mips",))

Releases = Callable[..., Release]


@pytest.fixture
def release(tmp_path: Path) -> Releases:
    """Pack ONNX models, each for a selector, as version 1.4 of a release."""

    def make(
        *models: tuple[onnx.ModelProto, Selector],
        task: Task | None = TASK,
        runtime: str = "onnxruntime",
        name: str = "before",
    ) -> Release:
        builder = ReleaseBuilder(name="digits", version="1.4", counter=14)
        for number, (built, selector) in enumerate(models):
            (tmp_path / f"{name}{number}").mkdir()
            file = save(built, tmp_path / f"{name}{number}" / "model.onnx")
            loaded = OnnxRuntime().load(file, RuntimeOptions())
            signature = loaded.signature
            loaded.close()
            contract = VariantContract(
                model="digits", target=f"target-{number}", precision=Precision.FP32, runtime=runtime,
                entry="model.onnx", signature=signature, task=task, selector=selector, tolerance=Tolerance(),
            )  # fmt: skip
            builder.add_variant(contract, {"model.onnx": file})
        return builder.write(tmp_path / name)

    return make


def dataset(inputs: Tensors) -> Dataset:
    return Dataset(file="rows.npz", digest="sha256:" + "0" * 64, inputs=inputs, truth=None)


def answers_of(built: onnx.ModelProto, inputs: Mapping[str, np.ndarray], task: Task, folder: Path) -> Answers:
    loaded = OnnxRuntime().load(save(built, folder / "new.onnx"), RuntimeOptions())
    try:
        return decode(task, run_task(loaded, inputs, task.state), least_score=judging_score(task))
    finally:
        loaded.close()


ROWS = {"image": images(120, seed=9)}


def test_the_same_model_agrees_with_itself(release: Releases, tmp_path: Path) -> None:
    before = release((conv_net(), HERE))
    answers = answers_of(conv_net(), ROWS, TASK, tmp_path)
    found = compare(before, dataset(ROWS), TASK, answers, tmp_path / "unpacked")
    assert (found.agreement, found.rows, found.version, found.baseline) == (1.0, 120, "1.4", before.digest)
    assert sum(entry.rows for entry in found.classes) == 120
    assert all(entry.agreement == 1 and entry.label in TASK.labels for entry in found.classes)


def test_classes_are_those_that_the_old_release_answers(release: Releases, tmp_path: Path) -> None:
    before = release((conv_net(seed=3), HERE))
    new = answers_of(conv_net(seed=0), ROWS, TASK, tmp_path)
    found = compare(before, dataset(ROWS), TASK, new, tmp_path / "unpacked")
    old_class = np.array(answers_of(conv_net(seed=3), ROWS, TASK, tmp_path)).argmax(axis=1)
    new_class = np.array(new).argmax(axis=1)
    assert found.agreement == np.mean(old_class == new_class)
    assert 0 < found.agreement < 1
    expected = {
        TASK.labels[number]: (
            int((old_class == number).sum()),
            float((new_class[old_class == number] == number).mean()),
        )
        for number in set(old_class.tolist())
    }
    assert {entry.label: (entry.rows, entry.agreement) for entry in found.classes} == expected
    assert len(expected) > 2


def agreement_with(before: Release, tmp_path: Path, seed: int) -> BaselineAgreement:
    answers = answers_of(conv_net(seed=seed), ROWS, TASK, tmp_path)
    return compare(before, dataset(ROWS), TASK, answers, tmp_path / "unpacked")


def test_the_variant_for_this_machine_is_run(release: Releases, tmp_path: Path) -> None:
    before = release((conv_net(seed=1), ELSEWHERE), (conv_net(seed=2), HERE))
    assert agreement_with(before, tmp_path, seed=2).agreement == 1


def test_without_one_for_this_machine_the_first_that_can_be_simulated_is_run(release: Releases, tmp_path: Path) -> None:
    before = release((conv_net(seed=1), ELSEWHERE), (conv_net(seed=2), ELSEWHERE))
    assert agreement_with(before, tmp_path, seed=1).agreement == 1


def test_a_release_that_says_no_task_is_read_by_the_new_one(release: Releases, tmp_path: Path) -> None:
    before = release((conv_net(), HERE), task=None)
    assert agreement_with(before, tmp_path, seed=0).agreement == 1


def test_a_model_with_a_built_in_batch_is_compared(release: Releases, tmp_path: Path) -> None:
    before = release((conv_net(batch=1), HERE))
    assert agreement_with(before, tmp_path, seed=0).agreement == 1


def test_other_runtimes_than_those_here_run_nothing(release: Releases, tmp_path: Path) -> None:
    before = release((conv_net(), HERE), runtime="tensorrt")
    with pytest.raises(DeviceError, match="none of the runtimes tensorrt is installed") as caught:
        agreement_with(before, tmp_path, seed=0)
    assert "without --baseline" in caught.value.hint


def classes(count: int) -> onnx.ModelProto:
    """Scores that are the first numbers of each picture."""
    return model(
        [helper.make_node("Flatten", ["image"], ["f"]), helper.make_node("Gather", ["f", "first"], ["s"], axis=1)],
        inputs={"image": (TensorProto.FLOAT, ["batch", 1, 8, 8])},
        outputs={"s": (TensorProto.FLOAT, ["batch", count])},
        weights={"first": np.arange(count)},
    )


@pytest.mark.parametrize(
    ("built", "old", "rows", "task", "complaint"),
    [
        (conv_net(), TASK, {"picture": ROWS["image"]}, TASK, "takes image, the new model picture"),
        (conv_net(), TASK, ROWS | {"more": ROWS["image"]}, TASK, "takes image, the new model image, more"),
        (
            conv_net(),
            TASK,
            {"image": ROWS["image"][:, :, :4]},
            TASK,
            r"float32\[1, 8, 8\] a row, .* float32\[1, 4, 8\]",
        ),
        (conv_net(), TASK, {"image": ROWS["image"].astype(np.uint8)}, TASK, "that of the new model uint8"),
        (classes(4), Task(), ROWS, TASK, "it answers 4 numbers or classes, the new model 10"),
        (conv_net(), Task(kind=Kind.TENSORS), ROWS, TASK, "is for tensors, the new model for classification"),
        (conv_net(), Task(labels=TASK.labels[::-1]), ROWS, TASK, "in another order"),
        (
            conv_net(),
            Task(inputs=(ImageInput(size=(8, 8), scale=1 / 255),)),
            ROWS,
            Task(inputs=(ImageInput(size=(8, 8)),)),
            "prepares its inputs otherwise",
        ),
    ],
    ids=["name", "one more", "shape", "datatype", "classes", "kind", "labels", "preprocessing"],
)
def test_what_is_no_version_of_the_same_model_cannot_be_compared(
    release: Releases,
    tmp_path: Path,
    built: onnx.ModelProto,
    old: Task,
    rows: Tensors,
    task: Task,
    complaint: str,
) -> None:
    before = release((built, HERE), task=old)
    answers = answers_of(conv_net(), ROWS, task, tmp_path)
    with pytest.raises(InputError, match=complaint) as caught:
        compare(before, dataset(rows), task, answers, tmp_path / "unpacked")
    assert "digits 1.4" in caught.value.message
    assert "--baseline" in caught.value.hint


def test_a_damaged_release_is_not_run(release: Releases, tmp_path: Path) -> None:
    before = release((conv_net(), HERE))
    file = before.variants[0].files["model.onnx"]
    path = tmp_path / "before" / "blobs" / file.digest.replace(":", "/")
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(TrustError, match="blob"):
        agreement_with(open_release(tmp_path / "before"), tmp_path, seed=0)


def boxes_as_given() -> onnx.ModelProto:
    """A detector whose input says what it finds: corners, score, class of each box."""
    return model(
        [helper.make_node("Identity", ["given"], ["found"])],
        inputs={"given": (TensorProto.FLOAT, ["batch", 3, 6])},
        outputs={"found": (TensorProto.FLOAT, ["batch", 3, 6])},
    )


def test_pictures_count_for_every_class_that_the_old_release_finds_in_them(release: Releases, tmp_path: Path) -> None:
    task = Task(kind=Kind.DETECTION, labels=("cat", "dog"), boxes=Boxes(layout="end-to-end", format="xyxy", score=0.3))
    cat, dog, nothing = [10, 10, 50, 50, 0.9, 0], [60, 60, 90, 90, 0.8, 1], [0, 0, 0, 0, 0.0, 0]
    old = {"given": np.array([[cat, dog, nothing], [cat, nothing, nothing], [nothing] * 3], np.float32)}
    new = {"given": np.array([[cat, nothing, nothing], [cat, nothing, nothing], [nothing] * 3], np.float32)}
    before = release((boxes_as_given(), HERE), task=task)
    answers = answers_of(boxes_as_given(), new, task, tmp_path)
    found = compare(before, dataset(old), task, answers, tmp_path / "unpacked")
    one_of_two = 2 / 3  # F1 of one box against two
    assert found.agreement == pytest.approx((one_of_two + 1 + 1) / 3)
    assert {entry.label: (entry.rows, entry.agreement) for entry in found.classes} == {
        "cat": (2, pytest.approx((one_of_two + 1) / 2)),
        "dog": (1, pytest.approx(one_of_two)),
    }


def test_sequences_are_compared_step_by_step(release: Releases, tmp_path: Path) -> None:
    task = Task(kind=Kind.TENSORS, state={"state": "next"})
    rows = {"sound": np.random.default_rng(0).standard_normal((4, 5, 12)).astype(np.float32)}
    before = release((recurrent_net(), HERE), task=task)
    for seed, alike in ((0, True), (1, False)):
        answers = answers_of(recurrent_net(seed=seed), rows, task, tmp_path)
        found = compare(before, dataset(rows), task, answers, tmp_path / f"unpacked{seed}")
        assert (found.agreement == pytest.approx(1)) == alike
        assert (found.rows, found.classes) == (4, ())
