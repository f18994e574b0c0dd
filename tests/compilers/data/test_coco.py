from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgeserve.contracts.errors import EdgeServeError, InputError
from edgeserve.contracts.task import Boxes, ImageInput, Kind, Resize, Task
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve_compilers.data.coco import parse
from edgeserve_compilers.data.read import load

SIGNATURE = Signature(
    inputs=(TensorSpec(name="image", datatype=Datatype.FP32, shape=(-1, 3, 20, 20)),),
    outputs=(TensorSpec(name="out", datatype=Datatype.FP32, shape=(-1, 10, 7)),),
)
ENTRY = ImageInput(name="image", size=(20, 20), resize=Resize.LETTERBOX)
TASK = Task(kind=Kind.DETECTION, boxes=Boxes(output="out"), inputs=(ENTRY,))
BOX = {"image_id": 7, "category_id": 90, "bbox": [10, 0, 20, 10]}
COCO = {
    "info": {"year": 2026},
    "images": [{"id": 7, "file_name": "a.png", "width": 40}, {"id": 8, "file_name": "b.png", "split": "val"}],
    "annotations": [BOX, BOX | {"category_id": 3, "iscrowd": 1}, BOX | {"bbox": [-50, 0, 10, 10]}],
    "categories": [{"id": 90, "name": "dog"}, {"id": 3, "name": "cat"}],
}
SHORT = {
    "classes": ["cat", "dog"],
    "images": [{"file": "a.png", "split": "eval", "boxes": [[1, 10, 0, 30, 10]]}, {"file": "b.png", "boxes": []}],
}


def written(folder: Path, document: object, name: str = "boxes.json", pictures: str = "images") -> Path:
    (folder / pictures).mkdir(parents=True, exist_ok=True)
    for picture in ("a.png", "b.png"):
        Image.new("RGB", (40, 20), (9, 9, 9)).save(folder / pictures / picture)
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(document if isinstance(document, bytes) else json.dumps(document).encode())
    return path


@pytest.mark.parametrize("document", [COCO, SHORT], ids=["coco", "short"])
@pytest.mark.parametrize(("labels", "dog"), [((), 1), (("dog", "emu", "cat"), 0)], ids=["sorted ids", "labels"])
def test_boxes_are_in_pixels_of_the_model(tmp_path: Path, document, labels: tuple[str, ...], dog: int) -> None:
    data = load(
        written(tmp_path, document),
        SIGNATURE,
        Task(**{f: getattr(TASK, f) for f in TASK.__struct_fields__} | {"labels": labels}),
    )
    first, second = data.truth
    # 40 x 20 is halved and lies 5 below the top
    assert (first.boxes.tolist(), first.classes.tolist(), first.scores.tolist()) == ([[5, 5, 15, 10]], [dog], [1])
    assert first.boxes.dtype == np.float32
    assert (len(second), data.names, data.rows) == (0, ("a.png", "b.png"), 2)


def test_what_lies_outside_of_the_input_is_cut_or_dropped(tmp_path: Path) -> None:
    document = SHORT | {
        "images": [{"file": "a.png", "boxes": [[0, -9, -9, 15, 10], [1, 30, 0, 39, 9], [0, 5, 5, 5, 9]]}]
    }
    cut = Task(
        kind=Kind.DETECTION, boxes=Boxes(), inputs=(ImageInput(name="image", size=(20, 20), resize=Resize.CROP),)
    )
    (found,) = load(written(tmp_path, document), SIGNATURE, cut).truth
    assert (found.boxes.tolist(), found.classes.tolist()) == ([[0, 0, 5, 10]], [0])


def test_splits_and_places_of_pictures(tmp_path: Path) -> None:
    path = written(tmp_path, COCO, pictures=".")
    assert load(Path(f"{path}#val"), SIGNATURE, TASK).names == ("b.png",)
    with pytest.raises(InputError, match="no split 'train'") as raised:
        load(Path(f"{path}#train"), SIGNATURE, TASK)
    assert "#val" in raised.value.hint
    official = written(tmp_path / "coco", COCO, "annotations/instances_val2017.json", "val2017")
    assert load(official, SIGNATURE, TASK).rows == 2


def test_other_kinds_get_objects_or_nothing(tmp_path: Path) -> None:
    path = written(tmp_path, SHORT)
    custom = load(path, SIGNATURE, Task(kind=Kind.CUSTOM, function="mine:f", inputs=(ENTRY,)))
    assert custom.truth == [[{"box": [5, 5, 15, 10], "class": 1}], []]
    assert load(path, SIGNATURE, Task(kind=Kind.TENSORS, inputs=(ENTRY,))).truth is None
    with pytest.raises(InputError, match="describes no input that takes them"):
        load(path, SIGNATURE, Task())


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (b"{", "not COCO JSON"),
        (b"[]", "not COCO JSON"),
        (b'{"a":' * 3000, "not COCO JSON"),
        ({}, "missing required field `images`"),
        (COCO | {"annotations": [{"image_id": 7}]}, r"`\$\.annotations\[0\]`"),
        (COCO | {"annotations": [BOX | {"bbox": [1, 2, 3]}]}, r"annotations\[0\]\.bbox"),
        (COCO | {"annotations": [BOX | {"bbox": [1, 2, 3, 1e200]}]}, "a.png holds a box beyond"),
        (COCO | {"annotations": [BOX | {"image_id": 1}]}, r"annotations\[0\] names an image id"),
        (COCO | {"annotations": [BOX | {"category_id": 1}]}, r"annotations\[0\] names a category id"),
        (COCO | {"images": [{"id": 7, "file_name": "../a.png"}]}, "leads out"),
        (COCO | {"images": [{"id": 7, "file_name": "/etc/hostname"}]}, "leads out"),
        (COCO | {"images": [{"id": 7, "file_name": "c.png"}]}, "no picture 'c.png'"),
        (COCO | {"images": []}, "names an image id"),
        (COCO | {"images": [], "annotations": []}, "holds no pictures"),
        (COCO | {"images": [{"id": 7, "file_name": "a.png"}] * 2}, "two images have one id"),
        (COCO | {"categories": [{"id": 90, "name": "a"}] * 2}, "two categories have one id"),
        (SHORT | {"box_format": "x, y, w, h"}, "box_format"),
        (SHORT | {"images": [{"file": "a.png", "boxes": [[2, 0, 0, 1, 1]]}]}, "box of class 2, there are 2"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, document, message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        load(written(tmp_path, document), SIGNATURE, TASK)
    assert "boxes.json" in raised.value.message


def test_a_category_that_the_labels_lack_is_refused(tmp_path: Path) -> None:
    task = Task(kind=Kind.DETECTION, boxes=Boxes(), inputs=(ENTRY,), labels=("cat", "dogs"))
    with pytest.raises(InputError, match="class 'dog' is not among the 2 labels") as raised:
        load(written(tmp_path, COCO), SIGNATURE, task)
    assert "'dogs'" in raised.value.hint


VALUES = st.recursive(
    st.none() | st.integers() | st.floats() | st.sampled_from(["a.png", "dog", ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([*COCO, *SHORT, *BOX, "id", "file_name", "name", "file", "boxes"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@given(
    st.dictionaries(st.sampled_from([*COCO, *SHORT]), VALUES, max_size=4).map(lambda value: json.dumps(value).encode())
    | st.binary(max_size=30)
)
def test_no_json_raises_anything_else(data: bytes) -> None:
    try:
        names, pictures = parse(data, "boxes.json")
    except EdgeServeError:
        return
    assert all(0 <= box[0] < len(names) for picture in pictures for box in picture.boxes)
