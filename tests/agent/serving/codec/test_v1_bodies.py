"""Bodies of predict, classify and regress."""

from __future__ import annotations

import numpy as np
import pytest

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve_agent.serving.codec.v1 import classify_answer, read_examples, read_predict, regress_answer


def signature(datatype: Datatype = Datatype.FP32, *shape: int) -> Signature:
    return Signature(
        inputs=(TensorSpec(name="x", datatype=Datatype.FP32, shape=(-1, 2)),),
        outputs=(TensorSpec(name="y", datatype=datatype, shape=shape or (-1, 3)),),
    )


@pytest.mark.parametrize(
    ("body", "by_rows"),
    [
        (b'{"instances": [[1, 2]]}', True),
        (b'{"instances": [{"x": [1, 2]}], "signature_name": "serving_default"}', True),
        (b'{"signature_name": "", "inputs": [[1, 2]]}', False),
        (b'{"inputs": {"x": [[1, 2]]}, "parameters": {"unknown": 1}}', False),
    ],
)
def test_a_predict_request_is_rows_or_columns(body: bytes, by_rows: bool):
    found = read_predict(signature(), body)
    assert found.by_rows is by_rows
    assert found.inputs["x"].tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "not a JSON object"),
        (b"[]", "not a JSON object"),
        (b"{}", 'either "instances" (rows) or "inputs" (columns)'),
        (b'{"instances": [[1, 2]], "inputs": [[1, 2]]}', "either"),
        (b'{"instances": []}', "empty"),
        (b'{"instances": [[1, 2]], "signature_name": "other"}', "signature_name"),
        (b'{"instances": [[1, 2]], "signature_name": 7}', "signature_name"),
        (b'{"x": NaN, "inputs": ', "not a JSON object"),
        (b'{"inputs": null}', "input 'x'"),
    ],
)
def test_a_predict_request_that_cannot_be_is_refused(body: bytes, says: str):
    with pytest.raises(InputError) as refused:
        read_predict(signature(), body)
    assert says in refused.value.message


def test_examples_take_what_they_lack_from_the_context():
    found = read_examples(signature(), b'{"examples": [{}, {"x": [3, 4]}], "context": {"x": [1, 2]}}')
    assert found["x"].tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b'{"instances": [[1, 2]]}', '"examples"'),
        (b'{"examples": []}', "empty"),
        (b'{"examples": [{"x": [1, 2]}], "context": 5}', "context is not a JSON object"),
        (b'{"examples": [5], "context": {"x": [1, 2]}}', "an instance is not a JSON object"),
    ],
)
def test_examples_that_cannot_be_are_refused(body: bytes, says: str):
    with pytest.raises(InputError) as refused:
        read_examples(signature(), body)
    assert says in refused.value.message


def test_classes_come_the_best_first_by_name_or_number_and_equals_in_order():
    outputs = {"y": np.float32([[0.25, 0.5, 0.25], [1, 0, 2]])}
    assert classify_answer(signature(), ["a", "b"], outputs) == {
        "result": [[["b", 0.5], ["a", 0.25], ["2", 0.25]], [["2", 2.0], ["a", 1.0], ["b", 0.0]]]
    }


@pytest.mark.parametrize("outputs", [np.int64([[1]]), np.float32([1]), np.zeros((1, 2, 2), np.float32)])
def test_what_has_no_scores_cannot_classify(outputs: np.ndarray):
    with pytest.raises(InputError, match="score for each class"):
        classify_answer(signature(), [], {"y": outputs})


@pytest.mark.parametrize("shape", [(2,), (2, 1), (2, 1, 1)])
def test_one_number_for_each_example_is_a_regression(shape: tuple[int, ...]):
    assert regress_answer(signature(), {"y": np.float32([1, 2.5]).reshape(shape)}) == {"result": [1.0, 2.5]}


@pytest.mark.parametrize("output", [np.float32([[1, 2]]), np.float32(1), np.array([b"a"], object)])
def test_what_is_not_one_number_for_each_example_is_no_regression(output: np.ndarray):
    with pytest.raises(InputError, match="one number for each example"):
        regress_answer(signature(), {"y": output})
