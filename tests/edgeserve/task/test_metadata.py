from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeserve.contracts.task import Boxes, Filter, ImageInput, Kind, Resize, Task
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve.task.metadata import task_from_metadata


def exported(*shape: int, output: tuple[int, ...] = (1, 6, 8400)) -> Signature:
    return Signature(
        inputs=(TensorSpec(name="images", datatype=Datatype.FP32, shape=shape),),
        outputs=(TensorSpec(name="output0", datatype=Datatype.FP32, shape=output),),
    )


# As the exporter writes them: str() of Python values.
DETECT = {
    "author": "Ultralytics",
    "stride": "32",
    "task": "detect",
    "batch": "1",
    "imgsz": "[640, 640]",
    "names": "{0: 'person', 1: \"dog's\"}",
    "args": "{'batch': 1, 'half': False, 'nms': False}",
    "channels": "3",
}
SQUARE = exported(1, 3, 640, 640)
LETTERBOX = ImageInput(name="images", size=(640, 640), resize=Resize.LETTERBOX, filter=Filter.BILINEAR, scale=1 / 255)


def test_a_detector_is_a_whole_task() -> None:
    assert task_from_metadata(DETECT, SQUARE) == Task(
        kind=Kind.DETECTION,
        output="output0",
        labels=("person", "dog's"),
        inputs=(LETTERBOX,),
        boxes=Boxes(layout="channels-first", output="output0", nms_iou=0.7, most=300),
    )


@pytest.mark.parametrize(
    "more", [{"args": "{'nms': True}"}, {"end2end": "True"}], ids=["suppression in the graph", "end to end"]
)
def test_boxes_that_do_not_overlap_any_more_are_end_to_end(more: dict[str, str]) -> None:
    task = task_from_metadata(DETECT | more, exported(1, 3, 640, 640, output=(1, 300, 6)))
    assert task is not None
    assert task.boxes == Boxes(layout="end-to-end", output="output0", format="xyxy", most=300)


def test_a_classifier_is_evaluated_as_by_torchvision() -> None:
    task = task_from_metadata(
        DETECT | {"task": "classify", "imgsz": "[224, 224]"}, exported(1, 3, 224, 224, output=(1, 2))
    )
    assert task is not None
    entry = ImageInput(name="images", size=(224, 224), resize=Resize.CROP, shorter_side=224, scale=1 / 255)
    assert (task.kind, task.inputs, task.softmax) == (Kind.CLASSIFICATION, (entry,), False)


@pytest.mark.parametrize("what", ["segment", "pose", "obb"])
def test_of_other_tasks_the_preprocessing_is_known(what: str) -> None:
    task = task_from_metadata(DETECT | {"task": what}, SQUARE)
    assert task is not None
    assert (task.kind, task.inputs, task.boxes) == (Kind.TENSORS, (LETTERBOX,), None)


@pytest.mark.parametrize(
    ("metadata", "signature"),
    [
        ({}, SQUARE),
        ({"task": "detect"}, SQUARE),
        (DETECT | {"task": "translate"}, SQUARE),
        (DETECT | {"imgsz": "__import__('os').getcwd()"}, SQUARE),
        (DETECT | {"imgsz": "[0, 640]"}, SQUARE),
        (DETECT | {"imgsz": "[" * 10_000}, SQUARE),
        (DETECT, exported(1, 3, 320, 320)),
        (DETECT, exported(1, 640, 640, 3)),
    ],
    ids=["nothing", "half", "unknown", "code", "no size", "deep", "changed size", "changed layout"],
)
def test_nothing_is_made_of_what_is_unknown_or_does_not_fit(metadata: dict[str, str], signature: Signature) -> None:
    assert task_from_metadata(metadata, signature) is None


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("['a', 'b']", ("a", "b")),
        ("{1: 'b', 0: 'a'}", ("a", "b")),
        ("{0: 'a', 2: 'b'}", ()),
        ("{'x': 'a'}", ()),
        ("{" * 100, ()),
        ("a" * (1 << 21), ()),
        ("", ()),
    ],
    ids=["list", "order", "gap", "keys", "broken", "long", "empty"],
)
def test_names_are_taken_when_they_number_from_zero(names: str, expected: tuple[str, ...]) -> None:
    task = task_from_metadata(DETECT | {"names": names}, SQUARE)
    assert task is not None
    assert task.labels == expected


LITERALS = st.recursive(
    st.none() | st.integers(-5, 1000) | st.text(max_size=5) | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.integers(0, 3), inner, max_size=3),
    max_leaves=6,
).map(str)


@given(
    st.fixed_dictionaries(
        {"task": st.sampled_from(["detect", "pose"]), **dict.fromkeys(("names", "imgsz", "args"), LITERALS | st.text())}
    )
)
def test_no_metadata_raise(metadata: dict[str, str]) -> None:
    task = task_from_metadata(metadata, SQUARE)
    assert task is None or task.inputs == (LETTERBOX,)
