from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.task import Boxes, ImageInput, Kind, Task
from edgeserve.task.decode import decode, fields, judging_score

ROWS = np.arange(12, dtype=np.float32).reshape(3, 4)
DETECTOR = Task(kind=Kind.DETECTION, boxes=Boxes(layout="decoded"))
BOX = np.array([[[16, 12, 16, 16, 0.5, 0.4, 0.8]]], np.float32)


@pytest.fixture
def own_module(tmp_path, monkeypatch) -> str:
    """A module of the user's, as it would lie beside a `model.toml`."""
    name = "edgeserve_test_decoder"
    (tmp_path / f"{name}.py").write_text(
        "def largest(row):\n    return {'place': int(row['y'].argmax()), 'rank': row['y'].ndim}\n"
        "def broken(row):\n    raise KeyError('boxes')\n"
        "constant = 3\n",
        encoding="ascii",
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    sys.modules.pop(name, None)


@pytest.mark.parametrize("kind", [Kind.CLASSIFICATION, Kind.KEYWORDS, Kind.EMBEDDING, Kind.REGRESSION])
def test_one_array_of_numbers_a_row(kind: Kind) -> None:
    answers = decode(Task(kind=kind), {"y": ROWS, "z": ROWS[:, :2]})
    assert [one.dtype for one in answers] == [np.float64] * 3
    np.testing.assert_array_equal(np.stack(answers), ROWS)


def test_a_number_a_row_needs_no_axis_of_its_own() -> None:
    assert decode(Task(kind=Kind.REGRESSION), {"y": ROWS[:, 0]}) == [0.0, 4.0, 8.0]


def test_tensors_are_all_outputs_that_hold_numbers_by_name() -> None:
    answers = decode(Task(kind=Kind.TENSORS), {"y": ROWS, "names": np.array([b"a"] * 3, object), "n": ROWS[:, 0] > 1})
    assert [sorted(answer) for answer in answers] == [["n", "y"]] * 3
    np.testing.assert_array_equal(answers[2]["y"], ROWS[2])


def test_detection_keeps_boxes_from_the_tasks_score_on_or_from_the_one_asked_for() -> None:
    assert [len(one) for one in decode(DETECTOR, {"y": BOX})] == [1]
    assert [len(one) for one in decode(DETECTOR, {"y": BOX}, least_score=0.1)] == [2]


@pytest.mark.parametrize(("score", "expected"), [(0.25, 0.01), (0.01, 0.005)])
def test_answers_to_be_judged_reach_below_every_threshold(score: float, expected: float) -> None:
    assert judging_score(Task(kind=Kind.DETECTION, boxes=Boxes(score=score))) == expected
    assert judging_score(Task()) is None


def test_the_users_function_gets_one_row_of_every_output(own_module: str) -> None:
    task = Task(kind=Kind.CUSTOM, function=f"{own_module}:largest")
    assert decode(task, {"y": ROWS}) == [{"place": 3, "rank": 1}] * 3


@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("{}:broken", "raised KeyError"),
        ("{}:missing", "no function 'missing'"),
        ("{}:constant", "no function 'constant'"),
        ("edgeserve_no_such_module:decode", "edgeserve_no_such_module:decode cannot be imported on this machine"),
    ],
)
def test_a_function_that_does_not_work_is_named(own_module: str, function: str, says: str) -> None:
    task = Task(kind=Kind.CUSTOM, function=function.format(own_module))
    with pytest.raises(InputError) as caught:
        decode(task, {"y": ROWS})
    assert says in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("kind", [Kind.CLASSIFICATION, Kind.REGRESSION, Kind.TENSORS])
def test_steps_of_sequences_are_answered_in_order(kind: Kind) -> None:
    task = Task(kind=kind, state={"s": "t"})
    sequences = np.arange(24).reshape(2, 3, 4)
    answers = decode(task, {"y": sequences})
    flat = [one["y"] if kind is Kind.TENSORS else one for one in answers]
    np.testing.assert_array_equal(np.stack(flat), sequences.reshape(6, 4))
    with pytest.raises(InputError, match="sequence, step"):
        decode(task, {"y": np.zeros(3)})


@pytest.mark.parametrize(
    ("kind", "outputs"),
    [
        (Kind.EMBEDDING, {"y": np.array([["a"]])}),
        (Kind.REGRESSION, {"y": np.zeros(())}),
        (Kind.REGRESSION, {}),
        (Kind.TENSORS, {"y": np.array([b"a"], object)}),
    ],
    ids=["texts", "scalar", "nothing", "no numbers"],
)
def test_outputs_of_another_kind_are_refused(kind: Kind, outputs) -> None:
    with pytest.raises(InputError):
        decode(Task(kind=kind), outputs)


def test_fields_of_a_detector_are_what_it_decodes_before_anything_is_left_out() -> None:
    found = fields(DETECTOR, {"y": BOX})
    np.testing.assert_array_equal(found["boxes"], [[[8, 4, 24, 20]]])
    np.testing.assert_allclose(found["objectness"], [[0.5]])
    np.testing.assert_allclose(found["scores"], [[[0.4, 0.8]]], rtol=1e-6)
    assert {array.dtype for array in found.values()} == {np.dtype(np.float64)}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (Kind.CLASSIFICATION, {"scores": (3, 4)}),
        (Kind.EMBEDDING, {"vector": (3, 4)}),
        (Kind.REGRESSION, {"vector": (3, 4)}),
        (Kind.TENSORS, {"y": (3, 2, 2)}),
    ],
)
def test_fields_of_other_kinds(kind: Kind, expected) -> None:
    outputs = {"y": ROWS if kind is Kind.CLASSIFICATION else ROWS.reshape(3, 2, 2)}
    assert {name: array.shape for name, array in fields(Task(kind=kind), outputs).items()} == expected


def test_fields_without_objectness_have_none() -> None:
    task = Task(kind=Kind.DETECTION, boxes=Boxes(layout="channels-first"), inputs=(ImageInput(size=(8, 8)),))
    assert sorted(fields(task, {"y": np.zeros((1, 6, 3))})) == ["boxes", "scores"]


def test_decoding_needs_numpy_and_nothing_heavier() -> None:
    heavy = "onnx onnxruntime openvino PIL scipy torch"
    code = (
        "import sys, edgeserve.golden, edgeserve.task.decode, edgeserve.task.present, edgeserve.task.score; "
        f"print([name for name in {heavy!r}.split() if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
