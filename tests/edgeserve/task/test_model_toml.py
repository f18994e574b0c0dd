from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from edgeserve.contracts.errors import EdgeServeError, InputError, NotFoundError
from edgeserve.contracts.limits import MAX_TASK_BYTES
from edgeserve.contracts.task import AudioInput, Boxes, Filter, ImageInput, Kind, Resize, Task
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve.task.model_toml import check_task, read_task

EXAMPLES = Path(__file__).parents[3] / "benchmarks" / "tasks"


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "model.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def spec(name: str, *shape: int, datatype: Datatype = Datatype.FP32) -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=shape)


def model(*inputs: TensorSpec, outputs: tuple[TensorSpec, ...] = (spec("scores", -1, 10),)) -> Signature:
    return Signature(inputs=inputs, outputs=outputs)


def test_a_whole_task_is_read(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\n dog \r\n\n")
    text = """
    kind = "detection"
    labels_file = "names.txt"
    [[inputs]]
    type = "image"
    name = "images"
    size = [320, 640]
    resize = "letterbox"
    filter = "bilinear"
    scale = 1
    [[inputs]]
    type = "audio"
    name = "sound"
    samples = 8000
    [boxes]
    layout = "channels-first"
    most = 300
    """
    assert read_task(written(tmp_path, text)) == Task(
        kind=Kind.DETECTION,
        labels=("cat", "dog"),
        inputs=(
            ImageInput(name="images", size=(320, 640), resize=Resize.LETTERBOX, filter=Filter.BILINEAR),
            AudioInput(name="sound", samples=8000),
        ),
        boxes=Boxes(layout="channels-first", most=300),
    )


def test_an_empty_file_is_the_default_task(tmp_path: Path) -> None:
    assert read_task(written(tmp_path, "")) == Task()


def test_state_and_constants_are_tables(tmp_path: Path) -> None:
    task = read_task(written(tmp_path, 'kind = "regression"\n[state]\nh = "hN"\n[constants]\nsr = 16000'))
    assert (task.state, task.constants) == ({"h": "hN"}, {"sr": 16000.0})


IMAGE = '[[inputs]]\ntype = "image"\nsize = [4, 4]\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind = ", "model.toml is not TOML"),
        (b"\xff\xfe", "model.toml is not UTF-8"),
        ("x = " + "[" * 5000, "not TOML: .*|not TOML: nested too deeply"),
        ("x = " + "9" * 5000, "not TOML"),
        ("#" * (MAX_TASK_BYTES + 1), "at most"),
        ('knd = "detection"', "model.toml has no key 'knd'; did you mean 'kind'?"),
        ('kind = "detection"\n[boxes]\nlayuot = "grid"', r"\[boxes\] has no key 'layuot'; did you mean 'layout'\?"),
        ('kind = "detection"\n[boxes]\nclasses = "c"', "layout decoded has no output of classes"),
        (IMAGE + "colour = 1", r"\[\[inputs\]\] number 1 has no key 'colour'; did you mean 'color'\?"),
        (IMAGE + "rate = 1", r"\[\[inputs\]\] number 1 has no key 'rate'"),
        ("[[inputs]]\nsize = [4, 4]", r"number 1 needs a type"),
        ('[[inputs]]\ntype = "video"', r"number 1 needs a type"),
        ('[[inputs]]\ntype = "image"', "inputs\\[0\\].*size"),
        ("inputs = 3", "inputs: Expected `array`"),
        ('kind = "guess"', "kind: Invalid enum value 'guess'"),
        ('softmax = "yes"', "softmax: Expected `bool`, got `str`"),
        (IMAGE + 'scale = "1/255"', r"inputs\[0\].scale: Expected `float`"),
        (IMAGE + "scale = nan", "inputs.scale is not a number"),
        (IMAGE + "scale = 1" + "0" * 40, "inputs.scale is not a number"),
        (IMAGE + "std = [0, 1, 1]", "std must not be 0"),
        (IMAGE + 'color = "cmyk"', "color 'cmyk' is not known"),
        (IMAGE + "size = [4, 4]", "not TOML"),
        ("boxes = 1", "boxes: Expected `object"),
        ('kind = "detection"', "needs a table"),
        ('metric = "mAP"', "metric 'mAP' does not judge classification"),
        ('labels = ["a"]\nlabels_file = "a.txt"', "both there"),
        ('labels_file = "../a.txt"', "not the name of a file beside it"),
        ('labels_file = "/etc/hostname"', "not the name of a file beside it"),
        ("labels_file = 3", "not the name of a file beside it"),
        ('labels_file = "gap.txt"', "gap.txt: line 2 is empty"),
        ('labels_file = "nothing.txt"', "nothing.txt: line 1 is empty"),
        ("labels = [1, 2]", r"labels\[0\]: Expected `str`"),
        ("date = 2026-01-01", "no key 'date'"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_a_wrong_file_is_refused_by_file_and_key(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "gap.txt").write_text("a\n\nb\n")
    (tmp_path / "nothing.txt").write_text("\n")
    with pytest.raises(InputError, match=message) as raised:
        read_task(written(tmp_path, text))
    assert str(tmp_path) in raised.value.message


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"model\.toml"):
        read_task(tmp_path / "model.toml")
    with pytest.raises(NotFoundError, match=r"absent\.txt"):
        read_task(written(tmp_path, 'labels_file = "absent.txt"'))
    with pytest.raises(InputError, match="cannot read"):
        read_task(tmp_path)


VALUES = st.sampled_from(
    [
        '"image"',
        '"grid"',
        '"detection"',
        '""',
        "1",
        "-1",
        "0.5",
        "nan",
        "true",
        "[]",
        "[1, 2]",
        "[4, 4]",
        '["a"]',
        "{}",
        "{a = 1}",
    ]
)
KEYS = st.sampled_from([key for kind in (Task, ImageInput, AudioInput, Boxes) for key in kind.__struct_fields__])
LINES = st.lists(
    st.builds("{} = {}".format, KEYS, VALUES)
    | st.sampled_from(["[[inputs]]", "[boxes]", "[state]"])
    | st.text(max_size=20),
    max_size=8,
)


@given(lines=LINES)
def test_no_text_raises_anything_else(tmp_path_factory, lines: list[str]) -> None:
    path = written(tmp_path_factory.getbasetemp(), "\n".join(lines).encode(errors="surrogatepass"))
    with contextlib.suppress(EdgeServeError):
        assert isinstance(read_task(path), Task)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.stem)
def test_the_examples_are_tasks(path: Path) -> None:
    assert isinstance(read_task(path), Task)


def test_names_that_the_task_leaves_out_are_filled_in() -> None:
    signature = model(
        spec("sr"),
        spec("pixels", -1, 3, 4, 4),
        spec("h", 1, -1, 8),
        outputs=(spec("hN", 1, -1, 8), spec("scores", -1, 10)),
    )
    task = Task(inputs=(ImageInput(size=(4, 4)),), state={"h": "hN"}, constants={"sr": 1})
    checked = check_task(task, signature)
    assert (checked.inputs[0].name, checked.output) == ("pixels", "scores")
    assert checked == replace(task, inputs=(ImageInput(name="pixels", size=(4, 4)),), output="scores")


def test_a_detector_takes_its_boxes_from_the_output_and_tensors_name_none() -> None:
    boxes = check_task(Task(kind=Kind.DETECTION, boxes=Boxes()), model(spec("x", -1, 3))).boxes
    assert boxes is not None
    assert boxes.output == "scores"
    assert check_task(Task(kind=Kind.TENSORS), model(spec("x", -1, 3))).output == ""


STATEFUL = model(spec("x", -1, 5), spec("h", -1, 8), outputs=(spec("y", -1, 1), spec("hN", -1, 8)))
STEPS = AudioInput(name="x", chunk=3, context=2)
PIXELS = spec("x", -1, 3, 4, 4)


@pytest.mark.parametrize(
    ("task", "signature", "message"),
    [
        (Task(output="probs"), model(PIXELS), "the task names an output 'probs'"),
        (Task(kind=Kind.DETECTION, boxes=Boxes(output="b")), model(PIXELS), r"\[boxes\] names an output 'b'"),
        (
            Task(kind=Kind.DETECTION, boxes=Boxes(layout="split", scores="c")),
            model(PIXELS),
            r"scores in \[boxes\] names an output 'c'",
        ),
        (
            Task(kind=Kind.DETECTION, boxes=Boxes(layout="split", scores="scores", classes="c")),
            model(PIXELS),
            r"classes in \[boxes\] names an output 'c'",
        ),
        (Task(state={"z": "hN"}), STATEFUL, r"\[state\] names an input 'z'"),
        (Task(state={"h": "z"}), STATEFUL, r"\[state\] names an output 'z'"),
        (Task(state={"h": "y"}), STATEFUL, r"output 'y' \[-1, 1\] cannot become input 'h'"),
        (Task(state={"h": "hN"}, constants={"h": 0}), STATEFUL, r"'h' is in \[state\] and in \[constants\]"),
        (Task(inputs=(ImageInput(name="y", size=(4, 4)),)), model(PIXELS), "describes an input 'y'"),
        (Task(inputs=(ImageInput(size=(4, 4)),)), model(PIXELS, spec("z", -1, 1)), "has not one input"),
        (Task(inputs=(ImageInput(size=(4, 4)), ImageInput(name="x", size=(4, 4)))), model(PIXELS), "twice"),
        (Task(inputs=(ImageInput(size=(4, 4), layout="nhwc"),)), model(PIXELS), r"rows of shape \[4, 4, 3\]"),
        (Task(inputs=(ImageInput(size=(4, 4), color="gray"),)), model(PIXELS), r"rows of shape \[1, 4, 4\]"),
        (
            Task(inputs=(ImageInput(size=(4, 4), scale=0.5),)),
            model(spec("x", -1, 3, 4, 4, datatype=Datatype.UINT8)),
            "scale and std must be 1",
        ),
        (Task(inputs=(ImageInput(size=(4, 4)),)), model(spec("x", -1, 3, 4, 4, datatype=Datatype.INT8)), "do not fit"),
        (
            Task(inputs=(ImageInput(size=(4, 4)),)),
            model(spec("x", -1, 3, 4, 4, datatype=Datatype.INT64)),
            "takes INT64",
        ),
        (Task(inputs=(AudioInput(),)), model(spec("x", -1, 8000)), r"rows of shape \[16000\]"),
        (Task(inputs=(AudioInput(samples=4),)), model(spec("x", -1, 4, datatype=Datatype.INT16)), "takes INT16"),
        (Task(inputs=(AudioInput(samples=9, features="mfcc"),)), model(spec("x", -1, 4)), "shorter than a frame"),
        (Task(inputs=(STEPS,)), model(spec("x", -1, 5)), r"a chunk without \[state\]"),
        (Task(inputs=(AudioInput(name="x", samples=5),), state={"h": "hN"}), STATEFUL, "needs a chunk"),
    ],
)
def test_a_task_that_does_not_fit_the_model_is_refused(task: Task, signature: Signature, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_task(task, signature)


@pytest.mark.parametrize(
    ("entry", "given"),
    [
        (ImageInput(size=(4, 4)), spec("x", -1, 3, -1, -1)),
        (ImageInput(size=(4, 4)), spec("x", 1, 3, 4, 4, datatype=Datatype.UINT8)),
        (ImageInput(size=(4, 4), mean=(128, 128, 128)), spec("x", 1, 3, 4, 4, datatype=Datatype.INT8)),
        (ImageInput(size=(4, 4), color="gray", layout="nhwc"), spec("x", -1, 1, 4, 4)),
        (AudioInput(features="mfcc"), spec("x", -1, 49, 10, 1)),
        (AudioInput(features="mfcc"), spec("x", 1, 490)),
    ],
)
def test_a_task_that_fits_is_taken(entry, given: TensorSpec) -> None:
    assert check_task(Task(inputs=(entry,)), model(given)).inputs == (replace(entry, name="x"),)


def test_constants_may_be_folded_into_the_graph_already() -> None:
    assert check_task(Task(constants={"sr": 16_000}), model(spec("x", -1, 3))).constants == {"sr": 16_000}
