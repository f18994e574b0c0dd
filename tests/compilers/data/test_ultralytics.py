from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgeserve.contracts.errors import EdgeServeError, InputError
from edgeserve.contracts.task import Boxes, ImageInput, Kind, Resize, Task
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve_compilers.data.read import load
from edgeserve_compilers.data.ultralytics import parse_labels

SIGNATURE = Signature(
    inputs=(TensorSpec(name="image", datatype=Datatype.FP32, shape=(-1, 3, 20, 20)),),
    outputs=(TensorSpec(name="out", datatype=Datatype.FP32, shape=(-1, 10, 7)),),
)
ENTRY = ImageInput(name="image", size=(20, 20), resize=Resize.LETTERBOX)
TASK = Task(kind=Kind.DETECTION, boxes=Boxes(output="out"), inputs=(ENTRY,))
NAMES = "names: {0: cat, 1: dog}\n"


def tree(root: Path, yaml: str, labels: dict[str, str] | None = None) -> Path:
    for name in ("images/train/a.png", "images/val/b.png", "images/val/deep/c.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 20)).save(root / name)
    for name, text in (labels or {"val/b": "1 0.5 0.25 0.5 0.5\n"}).items():
        path = root / "labels" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / "data.yaml").write_text(yaml)
    return root / "data.yaml"


STANDARD = NAMES + "train: images/train\nval: images/val\n"


def test_the_split_val_is_read_with_its_boxes(tmp_path: Path) -> None:
    data = load(tree(tmp_path, STANDARD), SIGNATURE, TASK)
    assert (data.file, data.names) == ("data.yaml#val", ("b.png", "deep/c.png"))
    first, second = data.truth
    # (10, 0) to (30, 10) of 40 x 20, halved and 5 below the top
    assert (first.boxes.tolist(), first.classes.tolist(), len(second)) == ([[5, 5, 15, 10]], [1], 0)


def test_another_split_is_chosen_and_without_label_files_nothing_is_true(tmp_path: Path) -> None:
    path = tree(tmp_path, STANDARD)
    data = load(Path(f"{path}#train"), SIGNATURE, TASK)
    assert (data.file, data.names, data.truth) == ("data.yaml#train", ("a.png",), None)
    with pytest.raises(InputError, match="no split 'test'") as raised:
        load(Path(f"{path}#test"), SIGNATURE, TASK)
    assert "#train, #val" in raised.value.hint


@pytest.mark.parametrize(
    "yaml",
    [
        NAMES + "val: [images/val, images/train]\n",
        NAMES + "val: list.txt\n",
        NAMES + "val: ../images\n",
        "names: [cat, dog]\npath: .\nval: images\n",
        "names: [cat, dog]\npath: {root}\nval: images\n",
        "names: [cat, dog]\npath: {root}\nval: {root}/images\n",
        "names: [cat, dog]\nval: ./images/\nnc: 2\ndownload: rm -rf /\n",
    ],
    ids=["list", "text", "roboflow", "relative path", "absolute path", "absolute", "download"],
)
def test_a_split_may_be_a_folder_a_list_or_a_text_file(tmp_path: Path, yaml: str) -> None:
    (tmp_path / "list.txt").write_text("./images/val/b.png\nimages/val/deep/c.png\n\nimages/train/a.png\n")
    data = load(tree(tmp_path, yaml.replace("{root}", str(tmp_path))), SIGNATURE, TASK)
    assert sorted(Path(name).name for name in data.names) == ["a.png", "b.png", "c.png"]
    assert sum(len(found) for found in data.truth) == 1


def test_names_are_matched_with_the_labels_of_the_task(tmp_path: Path) -> None:
    task = Task(kind=Kind.DETECTION, boxes=Boxes(), inputs=(ENTRY,), labels=("dog", "cat"))
    assert load(tree(tmp_path, STANDARD), SIGNATURE, task).truth[0].classes.tolist() == [0]


def test_classification_reads_a_folder_a_class(tmp_path: Path) -> None:
    path = tree(tmp_path, "train: images/train\nval: images/val\n")
    task = Task(inputs=(ENTRY,))
    for name in ("train/dog", "train/cat", "val/dog"):
        (tmp_path / "classes" / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "classes" / name / "1.png")
    path.write_text("path: classes\ntrain: train\nval: val\n")
    data = load(path, SIGNATURE, task)
    assert (data.names, data.truth.tolist()) == (("dog/1.png",), [1])
    path.write_text("val: [images/train, images/val]\n")
    with pytest.raises(InputError, match="val is not one folder"):
        load(path, SIGNATURE, task)


def test_splits_that_are_not_read_need_not_be_there(tmp_path: Path) -> None:
    data = load(tree(tmp_path, NAMES + "train: nowhere\nval: images/val\n"), SIGNATURE, TASK)
    assert data.names == ("b.png", "deep/c.png")


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("val: [", "not YAML"),
        (NAMES + "path: [a]\nval: images\n", "path is not the name of a folder"),
        (
            "".join(f"l{n}: &l{n} [{f'*l{n - 1}, ' * 9}1]\n" for n in range(20)).replace("*l-1, ", "1, ")
            + NAMES
            + "path: *l19\nval: images\n",
            "path is not the name of a folder",
        ),
        (NAMES + "path: {root}\nval: {root}/../x\n", "leads out"),
        ("!!python/object/apply:os.getcwd []", "not YAML"),
        ("[" * 3000, "not YAML"),
        ("- a", "not a table"),
        (NAMES, "names no pictures"),
        (NAMES + "val: 3\n", "not a path"),
        (NAMES + "val: nowhere\n", "nothing is downloaded|there is no"),
        (NAMES + "val: images/../../x\n", "leads out"),
        (NAMES + "val: ../../x\n", "leads out"),
        (NAMES + "val: /etc\n", "leads out"),
        ("val: images/val\n", "names is not a name for each"),
        ("names: {1: cat}\nval: images/val\n", "names is not a name for each"),
        ("names: [[cat]]\nval: images/val\n", "something that is not a name"),
        (NAMES + "val: bad.txt\n", "leads out"),
        (NAMES + "val: absent.txt\n", "there is no"),
    ],
)
def test_a_wrong_yaml_is_refused(tmp_path: Path, yaml: str, message: str) -> None:
    (tmp_path / "bad.txt").write_text("../../secret.png\n")
    with pytest.raises(InputError, match=message):
        load(tree(tmp_path, yaml.replace("{root}", str(tmp_path))), SIGNATURE, TASK)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat 0 0 1 1", "line 1 is not numbers"),
        ("\n1 0.1 0.2 0.3", "line 2 has 3 numbers"),
        ("1 0.1 0.2 0.3 0.4 0.5", "line 1 has 5 numbers"),
        ("1 10 20 30 40", "not in shares"),
        ("1 nan 0 1 1", "not in shares"),
        ("2 0.5 0.5 1 1", "class 2, names has 2"),
        ("0.5 0.5 0.5 1 1", "class 0.5"),
        ("-1 0.5 0.5 1 1", "class -1"),
        ("inf 0.5 0.5 1 1", "class inf"),
    ],
)
def test_a_wrong_label_is_refused_by_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        load(tree(tmp_path, STANDARD, {"val/b": text}), SIGNATURE, TASK)
    assert "b.txt" in raised.value.message


def test_a_polygon_counts_as_the_box_around_it() -> None:
    assert parse_labels("1 0.1 0.2 0.5 0.1 0.3 0.9", 2, "b.txt") == [(1, 0.1, 0.1, 0.5, 0.9)]


@given(
    st.text(max_size=60) | st.lists(st.floats() | st.integers(), max_size=9).map(lambda row: " ".join(map(str, row)))
)
def test_no_label_file_raises_anything_else(text: str) -> None:
    with contextlib.suppress(EdgeServeError):
        for label, *corners in parse_labels(text, 3, "b.txt"):
            assert label in (0, 1, 2)
            assert np.isfinite(corners).all()
