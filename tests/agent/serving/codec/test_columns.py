"""Rows and columns: JSON without shapes and datatypes, as TensorFlow Serving and KServe V1 write it."""

from __future__ import annotations

import base64
import contextlib
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.limits import MAX_TENSOR_RANK
from edgeserve.contracts.tensors import Datatype, TensorSpec
from edgeserve_agent.serving.codec import columns

NUMBERS = [datatype for datatype in Datatype if datatype not in (Datatype.BYTES, Datatype.BF16)]


def spec(datatype: Datatype = Datatype.FP32, name: str = "x", shape: tuple[int, ...] = (-1, -1)) -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=shape)


X, N, B = spec(), spec(Datatype.INT32, "n", (-1,)), spec(Datatype.BYTES, "b", (-1,))


def same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and bool(np.array_equal(one, other, equal_nan=True))


def texts(values: list[Any]) -> np.ndarray:
    array = np.empty(len(values), object)
    array[:] = values
    return array


@st.composite
def tensors(draw: st.DrawFn) -> tuple[TensorSpec, np.ndarray]:
    """Any numbers, NaN and infinities among them; no side but the last may be 0: lists cannot say what follows."""
    datatype = draw(st.sampled_from(NUMBERS))
    shape = draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    shape[-1] = draw(st.integers(0, 3)) if len(shape) > 1 else shape[-1]
    array = draw(arrays.arrays(np.dtype(datatype.numpy_name), tuple(shape)))
    return spec(datatype, shape=(-1,) * len(shape)), array


@given(tensors())
def test_numbers_of_every_datatype_come_back_from_rows_and_from_columns(given_tensor: tuple[TensorSpec, np.ndarray]):
    one, array = given_tensor
    outputs = {"x": array}
    rows = columns.encode(columns.to_rows([one], outputs))
    assert same(columns.from_rows([one], rows)["x"], array)
    assert same(columns.from_columns([one], columns.encode(columns.to_columns([one], outputs)))["x"], array)
    # ... and by name.
    by_name = columns.encode([{"x": row} for row in columns.to_rows([one], outputs)])
    assert same(columns.from_rows([one], by_name)["x"], array)


@given(st.lists(st.binary(max_size=9), min_size=1, max_size=5), st.sampled_from(["b", "b_bytes"]))
def test_bytes_come_back_whatever_they_are(values: list[bytes], name: str):
    one = spec(Datatype.BYTES, name, (-1,))
    outputs = {name: texts(values)}
    rows = columns.to_rows([one], outputs)
    assert columns.from_rows([one], columns.encode(rows))[name].tolist() == values
    assert columns.from_columns([one], columns.encode(columns.to_columns([one], outputs)))[name].tolist() == values
    as_base64 = [{"b64": base64.b64encode(value).decode()} for value in values]
    if name.endswith("_bytes"):
        assert rows == as_base64
    else:
        assert [row for row in rows if isinstance(row, str)] == [value.decode() for value in values if is_utf8(value)]


def is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


@given(st.binary(max_size=60) | st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=4),
       lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=3), below, max_size=3)).map(
       lambda value: json.dumps(value).encode()))  # fmt: skip
def test_whatever_comes_is_read_or_refused_in_words(data: bytes):
    for specs in ([X], [N], [B], [X, B]):
        for read in (columns.from_rows, columns.from_columns):
            with contextlib.suppress(InputError):
                assert set(read(specs, data)) <= {one.name for one in specs}


@pytest.mark.parametrize(
    ("json_text", "expected"),
    [
        pytest.param(b"[[1, 2], [3, 4]]", [[1, 2], [3, 4]], id="rows of a matrix"),
        pytest.param(b"[[NaN, Infinity], [-Infinity, 1]]", [[math.nan, math.inf], [-math.inf, 1]], id="tokens"),
        pytest.param(b" [ [1.5e0 ,2]\n,\t[3,4] ] ", [[1.5, 2], [3, 4]], id="white space"),
        pytest.param(b'[{"x": [1, 2]}, {"x": [3, NaN]}]', [[1, 2], [3, math.nan]], id="by name with a token"),
        pytest.param(b"[[], []]", [[], []], id="rows without elements"),
    ],
)  # fmt: skip
def test_rows_are_read(json_text: bytes, expected: list[Any]):
    assert same(columns.from_rows([X], json_text)["x"], np.array(expected, np.float32))


def test_rows_of_several_inputs_are_objects_and_columns_one_object():
    rows = columns.from_rows([X, N, B], b'[{"x": [1], "n": 1, "b": "a"}, {"b": {"b64": "Yg=="}, "n": 2, "x": [2]}]')
    whole = columns.from_columns([X, N, B], b'{"x": [[1], [2]], "n": [1, 2], "b": ["a", {"b64": "Yg=="}]}')
    for found in (rows, whole):
        assert found["x"].tolist() == [[1], [2]]
        assert found["n"].tolist() == [1, 2]
        assert found["b"].tolist() == [b"a", b"b"]


def test_objects_of_bytes_are_values_of_the_only_input():
    assert columns.from_rows([B], b'[{"b64": "YQ=="}, {"b64": "Yg=="}]')["b"].tolist() == [b"a", b"b"]
    assert columns.from_columns([spec(Datatype.BYTES, "b", ())], b'{"b64": "YQ=="}')["b"].tolist() == b"a"


def test_the_context_fills_in_what_examples_lack():
    found = columns.from_rows([X, N], b'[{"x": [1]}, {"x": [NaN], "n": 5}]', {"n": b"3"})
    assert found["n"].tolist() == [3, 5]


@pytest.mark.parametrize(
    ("specs", "instances", "says"),
    [
        pytest.param([X], b"[]", "empty", id="no instances"),
        pytest.param([X], b"7", "not a list", id="a number"),
        pytest.param([X], b'{"x": [[1]]}', "not a list", id="an object"),
        pytest.param([X], b"[[1], [1, 2]]", "unequal lengths", id="ragged"),
        pytest.param([X], b"[[NaN], [1, 2]]", "unequal lengths", id="ragged with a token"),
        pytest.param([B], b'["a", ["b"]]', "Expected", id="ragged texts"),
        pytest.param([spec(Datatype.BYTES)], b'[["a"], ["b", "c"]]', "unequal lengths", id="ragged lists of texts"),
        pytest.param([X], b"[[1], 2]", "Expected `array`", id="lists and numbers"),
        pytest.param([X], b'[["a"]]', "Expected `float`, got `str`", id="text for a number"),
        pytest.param([X], b'[["NaN"]]', "Expected `float`, got `str`", id="text of a token"),
        pytest.param([X], b"[[true]]", "Expected `float`, got `bool`", id="bool for a number"),
        pytest.param([X], b"[[true, NaN]]", "Expected `float`, got `bool`", id="bool beside a token"),
        pytest.param([X], b"[[null]]", "Expected `float`, got `null`", id="null"),
        pytest.param([X], b"[[1e39]]", "does not fit FP32", id="too large for FP32"),
        pytest.param([spec(Datatype.FP16)], b"[[70000]]", "does not fit FP16", id="too large for FP16"),
        pytest.param([X], b"[[1e400]]", "out of range", id="too large for any float"),
        pytest.param([N], b"[1.5]", "Expected `int`, got `float`", id="fraction for an integer"),
        pytest.param([N], b"[NaN]", "malformed", id="token for an integer"),
        pytest.param([N], b"[2147483648]", "Expected `int` <= 2147483647", id="too large for INT32"),
        pytest.param([spec(Datatype.INT64, "n", (-1,))], b"[9223372036854775808]", "INT64", id="too large for INT64"),
        pytest.param([spec(Datatype.UINT64, "n", (-1,))], b"[18446744073709551616]", "", id="too large for UINT64"),
        pytest.param([spec(Datatype.UINT8, "n", (-1,))], b"[-1]", "Expected `int` >= 0", id="negative"),
        pytest.param([spec(Datatype.BOOL, "n", (-1,))], b"[1]", "Expected `bool`, got `int`", id="number for a bool"),
        pytest.param([spec(Datatype.BF16)], b"[[1]]", "no JSON form", id="BF16"),
        pytest.param([B], b'[{"b64": "*"}]', "not base64", id="wrong base64"),
        pytest.param([B], b'[{"b64": 7}]', "Expected `str`, got `int`", id="base64 of a number"),
        pytest.param([B], b'["\\ud800NaN"]', "input 'b'", id="half a surrogate"),
        pytest.param([X], b"[" * (MAX_TENSOR_RANK + 1) + b"]" * (MAX_TENSOR_RANK + 1), "nested 17 deep", id="deep"),
        pytest.param([X], b"[1," + b"[" * 100_000, "not a list", id="deep and cut off"),
        pytest.param([X], b"[NaN," + b"[" * 100_000 + b"]" * 100_000 + b"]", "not a list", id="deep with a token"),
        pytest.param([X], b'[{"y": [1]}]', "'y' is not one of the model's: x", id="unknown input"),
        pytest.param([X, N], b"[[1]]", "inputs x, n: give an object", id="values for several inputs"),
        pytest.param([X, N], b'[{"x": [1], "n": 1}, {"x": [1]}]', "do not all name the same", id="a name is missing"),
        pytest.param([X, N], b'[{"x": [1], "n": 1}, 5]', "give an object", id="objects and values"),
        pytest.param([X], b'[{"\xff": [1]}]', "an instance is not a JSON object", id="a name that is not UTF-8"),
    ],
)
def test_rows_that_cannot_be_are_refused(specs: list[TensorSpec], instances: bytes, says: str):
    with pytest.raises(InputError) as refused:
        columns.from_rows(specs, instances)
    assert says in refused.value.message


@pytest.mark.parametrize("context", [b"5", b"[1]", b"null", b"[NaN]", b"{"])
def test_a_context_that_is_no_object_is_refused(context: bytes):
    with pytest.raises(InputError, match="context is not a JSON object"):
        columns.fields(context, "context")


@pytest.mark.parametrize("example", [b"[5]", b"[[1]]", b'["NaN"]', b"[NaN]"])
def test_examples_that_are_no_objects_have_no_use_for_a_context(example: bytes):
    with pytest.raises(InputError, match="an instance is not a JSON object"):
        columns.from_rows([X], example, {"n": b"1"})


def test_outputs_of_several_names_are_objects_in_rows_and_one_object_in_columns():
    outputs = {"x": np.array([[1.0], [2.0]], np.float32), "n": np.array([3, 4], np.int32)}
    assert columns.to_rows([X, N], outputs) == [{"x": [1.0], "n": 3}, {"x": [2.0], "n": 4}]
    assert columns.to_columns([X, N], outputs) == {"x": [[1.0], [2.0]], "n": [3, 4]}


@pytest.mark.parametrize("other", [np.int32([1, 2, 3]), np.array(7, np.int32)])
def test_outputs_without_common_rows_can_only_be_had_in_columns(other: np.ndarray):
    outputs = {"x": np.zeros((2, 1), np.float32), "n": other}
    with pytest.raises(InputError, match="same number of rows"):
        columns.to_rows([X, N], outputs)
    assert columns.to_columns([X, N], outputs)["n"] == other.tolist()


def test_a_bf16_output_is_refused_and_not_shown_as_its_bits():
    with pytest.raises(InputError, match="no JSON form"):
        columns.to_columns([spec(Datatype.BF16)], {"x": np.zeros((1, 1), np.uint16)})


def test_texts_that_say_null_are_encoded_as_they_are():
    assert json.loads(columns.encode({"predictions": ["null", "NaN"], "n": math.inf})) == {
        "predictions": ["null", "NaN"],
        "n": math.inf,
    }
