from __future__ import annotations

import contextlib
import wave
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgeserve.contracts.errors import EdgeServeError, InputError, NotFoundError
from edgeserve.contracts.task import AudioInput, Boxes, ImageInput, Kind, Task
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve.task.prepare import prepare
from edgeserve_compilers.data.dataset import overlap
from edgeserve_compilers.data.folder import read_lines
from edgeserve_compilers.data.read import load


def takes(*inputs: tuple[str, tuple[int, ...]]) -> Signature:
    specs = tuple(TensorSpec(name=name, datatype=Datatype.FP32, shape=shape) for name, shape in inputs)
    return Signature(inputs=specs, outputs=(TensorSpec(name="out", datatype=Datatype.FP32, shape=(-1, 3)),))


PICTURES = takes(("image", (-1, 3, 4, 4)))
ENTRY = ImageInput(name="image", size=(4, 4), scale=1 / 255, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
TASK = Task(inputs=(ENTRY,))


def picture(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((5, 7, 3), value, np.uint8)).save(path)
    return path


def sound(path: Path, samples: list[int]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(np.array(samples, "<i2").tobytes())
    return path


def folder(root: Path, csv: str = "", names: tuple[str, ...] = ("a.png", "b.png", "c.png")) -> Path:
    for value, name in enumerate(names):
        picture(root / name, 40 * value)
    if csv:
        (root / "labels.csv").write_text(csv)
    return root


def test_a_row_is_bit_for_bit_what_serving_would_make_of_the_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.jpg"):
        Image.fromarray(rng.integers(0, 256, (31, 47, 3), dtype=np.uint8)).save(tmp_path / name)
    data = load(tmp_path, PICTURES, TASK)
    assert data.names == ("a.png", "b.jpg")
    for row, name in enumerate(data.names):
        prepared = prepare(TASK, PICTURES, (tmp_path / name).read_bytes(), what=name)
        assert prepared.inputs["image"].tobytes() == data.inputs["image"][row : row + 1].tobytes()


@pytest.mark.parametrize(
    ("csv", "task", "expected"),
    [
        ("file,label\na.png,2\nb.png,0\nc.png,1\n", TASK, [2, 0, 1]),
        ("\ufefffile;label\na.png;2\nb.png;0\nc.png;1\n", TASK, [2, 0, 1]),
        ("name\tFilename\tClass\nx\ta.png\tdog\nx\tb.png\tcat\nx\tc.png\tdog", TASK, [1, 0, 1]),
        ("file,class_index_0_999\r\na.png,7\r\n\r\nc.png,8\r\n", TASK, [7, 8]),
        ('file,label\n"a.png","dog"\nb.png,cat\n', Task(labels=("dog", "emu", "cat"), inputs=(ENTRY,)), [0, 2]),
        ("file,label\na.png,1\nb.png,0\n", Task(labels=("dog", "cat"), inputs=(ENTRY,)), [1, 0]),
        ("file,label\na.png,1\nb.png,0\n", Task(labels=("1", "0"), inputs=(ENTRY,)), [0, 1]),
        ("file,value\na.png,1.5\nb.png,-2\n", Task(kind=Kind.REGRESSION, inputs=(ENTRY,)), [1.5, -2.0]),
        (
            'file,label\na.png,"{""a"": 1}"\nb.png,word\n',
            Task(kind=Kind.CUSTOM, function="mine:f", inputs=(ENTRY,)),
            [{"a": 1}, "word"],
        ),
        ("file\na.png\nb.png\n", TASK, None),
        ("file,label\na.png,cat\n", Task(kind=Kind.TENSORS, inputs=(ENTRY,)), None),
    ],
)  # fmt: skip
def test_labels_csv_says_what_is_true(tmp_path: Path, csv: str, task: Task, expected) -> None:
    data = load(folder(tmp_path, csv), PICTURES, task)
    assert (data.truth if data.truth is None or isinstance(data.truth, list) else data.truth.tolist()) == expected
    assert data.file == tmp_path.name


SPLIT = "file,label,split\na.png,dog,calib\nb.png,cat,eval\nc.png,ape,eval\n"


def test_a_split_keeps_the_numbers_of_the_whole(tmp_path: Path) -> None:
    path = folder(tmp_path, SPLIT)
    calib, rest = (load(Path(f"{path}#{split}"), PICTURES, TASK) for split in ("calib", "eval"))
    assert (calib.names, calib.truth.tolist()) == (("a.png",), [2])
    assert (rest.names, rest.truth.tolist()) == (("b.png", "c.png"), [1, 0])
    assert rest.file == f"{tmp_path.name}#eval"
    whole = load(path, PICTURES, TASK)
    assert (whole.rows, overlap(whole, rest), overlap(calib, rest)) == (3, 2, 0)
    with pytest.raises(InputError, match="no split 'val'") as raised:
        load(Path(f"{path}#val"), PICTURES, TASK)
    assert "#calib, #eval" in raised.value.hint


@pytest.mark.parametrize(
    ("csv", "message"),
    [
        ("", "no column 'file'"),
        ("a.png,3\n", "no column 'file' in the header a.png, 3"),
        ("file,label\n", "names no files"),
        ("file,label\na.png\n", "line 2 has 1 columns, the header 2"),
        ("file,label\na.png,1\nabsent.png,2\n", "line 3: there is no file"),
        ("file,label\n../a.png,1\n", "line 2: file '../a.png' leads out"),
        ("file,label\n/etc/hostname,1\n", "leads out"),
        ("file,label\n..\\a.png,1\n", "leads out"),
        ("file,label\na.png,1\na.png,2\n", "line 3 names 'a.png', as line 2 does"),
        ("file,label\na.png,1\nb.png,\n", "line 3 has no label"),
        ("file,label\na.png,dgo\n", "line 2: class 'dgo' is not among the 2 labels"),
        ('file,label\n"a.png,1\n', "line 2 is not CSV"),
        ("file,class_a,class_b\na.png,1,2\n", "class_a and class_b could be"),
    ],
)
def test_a_wrong_labels_csv_is_refused_by_line(tmp_path: Path, csv: str, message: str) -> None:
    path = folder(tmp_path / "data")
    (path / "labels.csv").write_text(csv)
    with pytest.raises(InputError, match=message) as raised:
        load(path, PICTURES, Task(labels=("dog", "cat"), inputs=(ENTRY,)))
    assert "labels.csv" in raised.value.message


def test_labels_of_the_wrong_kind_are_refused(tmp_path: Path) -> None:
    path = folder(tmp_path, "file,label\na.png,much\n")
    with pytest.raises(InputError, match="line 2: 'much' is not a number"):
        load(path, PICTURES, Task(kind=Kind.REGRESSION, inputs=(ENTRY,)))
    with pytest.raises(InputError, match="detection needs boxes"):
        load(path, PICTURES, Task(kind=Kind.DETECTION, boxes=Boxes(), inputs=(ENTRY,)))
    (path / "labels.csv").write_bytes(b"file,label\n\xff.png,1\n")
    with pytest.raises(InputError, match="not UTF-8"):
        load(path, PICTURES, TASK)


@given(
    st.text(alphabet='file,label\n\r;\t"ab.png\0é1', max_size=80) | st.text(max_size=40).map("file,label\n{}".format)
)
def test_no_labels_csv_raises_anything_else(text: str) -> None:
    with contextlib.suppress(EdgeServeError):
        lines = read_lines(text.encode(errors="replace"), "labels.csv")
        assert len({line.file for line in lines}) == len(lines) > 0


def test_a_sub_folder_is_a_class(tmp_path: Path) -> None:
    path = folder(tmp_path, names=("dog/1.png", "cat/2.png", "cat/1.png"))
    (path / "cat" / "notes.txt").write_text("nothing")
    data = load(path, PICTURES, TASK)
    assert (data.names, data.truth.tolist()) == (("cat/1.png", "cat/2.png", "dog/1.png"), [0, 0, 1])
    labelled = load(path, PICTURES, Task(labels=("dog", "cat"), inputs=(ENTRY,)))
    assert labelled.truth.tolist() == [1, 1, 0]
    with pytest.raises(InputError, match="class 'dog' is not among"):
        load(path, PICTURES, Task(labels=("cat", "dogs"), inputs=(ENTRY,)))
    picture(path / "loose.png")
    with pytest.raises(InputError, match=r"holds 'loose\.png' beside"):
        load(path, PICTURES, TASK)


def test_sub_folders_named_for_splits_are_splits(tmp_path: Path) -> None:
    path = folder(tmp_path, names=("train/cat/1.png", "train/dog/2.png", "val/dog/3.png"))
    assert load(path, PICTURES, TASK).names == ("dog/3.png",)
    assert load(path, PICTURES, TASK).truth.tolist() == [1], "numbered over all splits"
    assert load(Path(f"{path}#train"), PICTURES, TASK).truth.tolist() == [0, 1]
    with pytest.raises(InputError, match="no split 'test'"):
        load(Path(f"{path}#test"), PICTURES, TASK)
    with pytest.raises(InputError, match="no split 'a'"):
        load(Path(f"{path / 'train'}#a"), PICTURES, TASK)


def test_a_flat_folder_says_nothing_of_classes(tmp_path: Path) -> None:
    data = load(folder(tmp_path), PICTURES, TASK)
    assert (data.rows, data.truth) == (3, None)


def test_wav_files_are_read_and_shorter_sequences_end_in_silence(tmp_path: Path) -> None:
    sound(tmp_path / "a.wav", [8_192, 16_384, 0, -16_384])
    sound(tmp_path / "b.wav", [16_384])
    keywords = Task(kind=Kind.KEYWORDS, inputs=(AudioInput(name="x", samples=3),))
    assert load(tmp_path, takes(("x", (-1, 3))), keywords).inputs["x"].tolist() == [[0.25, 0.5, 0], [0.5, 0, 0]]
    steps = Task(kind=Kind.REGRESSION, inputs=(AudioInput(name="x", chunk=2),), state={"h": "out"})
    sequences = load(tmp_path, takes(("x", (-1, 2)), ("h", (-1, 3))), steps).inputs["x"]
    assert sequences.tolist() == [[[0.25, 0.5], [0, -0.5]], [[0.5, 0], [0, 0]]]


def test_the_digest_is_of_names_and_contents(tmp_path: Path) -> None:
    first = load(folder(tmp_path / "a", SPLIT), PICTURES, TASK)
    same = load(folder(tmp_path / "b", SPLIT), PICTURES, TASK)
    assert first.digest == same.digest
    picture(tmp_path / "b" / "c.png", 1)
    changed = load(tmp_path / "b", PICTURES, TASK)
    renamed = load(folder(tmp_path / "c", SPLIT.replace("c.png", "d.png"), ("a.png", "b.png", "d.png")), PICTURES, TASK)
    assert len({first.digest, changed.digest, renamed.digest}) == 3


@pytest.mark.parametrize(
    ("task", "signature", "message"),
    [
        (Task(), PICTURES, "does not say how they become input 'image'"),
        (TASK, takes(("image", (-1, 3, 4, 4)), ("age", (-1, 1))), "how they become input 'age'"),
        (
            Task(kind=Kind.REGRESSION, inputs=(ENTRY,), state={"h": "out"}),
            takes(("image", (-1, 3, 4, 4)), ("h", (-1, 3))),
            "not a sequence of steps",
        ),
        (
            Task(inputs=(ENTRY, AudioInput(name="x", samples=3))),
            takes(("image", (-1, 3, 4, 4)), ("x", (-1, 3))),
            "pictures and sound together",
        ),
        (Task(kind=Kind.KEYWORDS, inputs=(AudioInput(name="x", samples=3),)), takes(("x", (-1, 3))), "is image/png"),
    ],
    ids=["no inputs", "another input", "state", "both", "sound wanted"],
)  # fmt: skip
def test_files_that_the_task_does_not_take_are_refused(tmp_path: Path, task, signature, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(folder(tmp_path), signature, task)


def test_an_empty_folder_and_a_broken_picture_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty holds no pictures"):
        load(tmp_path / "empty", PICTURES, TASK)
    path = folder(tmp_path / "data")
    (path / "b.png").write_bytes((path / "b.png").read_bytes()[:-30])
    with pytest.raises(InputError, match=r"b\.png cannot be read as a picture") as raised:
        load(path, PICTURES, TASK)
    assert "take it out of the data" in raised.value.hint
    with pytest.raises(NotFoundError, match="no data at"):
        load(tmp_path / "absent", PICTURES, TASK)


def test_a_name_with_a_number_sign_is_a_name_when_it_is_there(tmp_path: Path) -> None:
    assert load(folder(tmp_path / "a#b"), PICTURES, TASK).file == "a#b"
