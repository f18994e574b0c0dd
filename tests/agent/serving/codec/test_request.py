from __future__ import annotations

import contextlib
import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.limits import MAX_CACHED_HEAD_BYTES
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec, datatype_of
from edgeserve_agent.serving.codec.request import RequestDecoder
from edgeserve_agent.serving.codec.wishes import Form
from edgeserve_agent.serving.rest.rendering import Rendering
from edgeserve_agent.serving.served import Identity
from tests.agent.serving.codec.decoding import NUMBERS, NUMERIC, SIGNATURE, TEXTS, X, decoder


def kind_of(array) -> Datatype:
    return datatype_of(array.dtype.name)


def blob_of(array) -> bytes:
    if array.dtype != object:
        return array.tobytes()
    return b"".join(struct.pack("<I", len(item)) + item for item in array.ravel().tolist())


def described(name: str, array, **more) -> dict:
    return {"name": name, "datatype": kind_of(array).value, "shape": list(array.shape), **more}


def decode(inputs: list, blobs: bytes = b"", **more):
    head = json.dumps({"inputs": inputs, **more}).encode()
    return decoder().decode(head + blobs, len(head))


def decode_json(inputs: list, **more):
    return decoder().decode(json.dumps({"inputs": inputs, **more}).encode(), None)


@given(st.lists(st.one_of(NUMBERS, TEXTS), min_size=1, max_size=4), st.integers(0, 63))
def test_binary_tensors_arrive_as_they_were_sent_wherever_they_lie(arrays, padding: int):
    inputs = [
        described(f"i{n}", array, parameters={"binary_data_size": len(blob_of(array))})
        for n, array in enumerate(arrays)
    ]
    found = decode(inputs, b"".join(map(blob_of, arrays)), pad=" " * padding).inputs
    assert list(found) == [f"i{n}" for n in range(len(arrays))]
    for array, got in zip(arrays, found.values(), strict=True):
        assert got.dtype == array.dtype
        assert got.flags.aligned
        assert got.flags.c_contiguous
        np.testing.assert_array_equal(got, array, strict=True)


@given(st.sampled_from([kind for kind in NUMERIC if kind is not Datatype.FP16]), st.data(), st.booleans())
def test_numbers_in_json_arrive_as_they_were_sent(kind: Datatype, data, flat: bool):
    dtype = np.dtype(kind.numpy_name)
    finite = {"allow_nan": False, "allow_infinity": False} if dtype.kind == "f" else None
    elements = hnp.from_dtype(dtype, **finite) if finite else None
    array = data.draw(hnp.arrays(dtype, hnp.array_shapes(max_dims=3, max_side=4), elements=elements))
    values = array.ravel().tolist() if flat else array.tolist()
    found = decode_json([described("x", array, data=values)]).inputs["x"]
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, array, strict=True)


def test_text_in_json_becomes_bytes():
    found = decode_json([{"name": "t", "datatype": "BYTES", "shape": [1, 2], "data": [["a", "é"]]}]).inputs["t"]
    assert found.tolist() == [[b"a", "é".encode()]]


def test_json_and_binary_inputs_mix_and_keep_their_order():
    x, z = np.arange(3, dtype=np.int32), np.ones((2, 1), np.float16)
    found = decode(
        [
            described("x", x, parameters={"binary_data_size": 12}),
            {"name": "y", "datatype": "BOOL", "shape": [2], "data": [True, False]},
            described("z", z, parameters={"binary_data_size": 4}),
        ],
        x.tobytes() + z.tobytes(),
    ).inputs
    assert list(found) == ["x", "y", "z"]
    assert found["y"].tolist() == [True, False]
    np.testing.assert_array_equal(found["z"], z)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        pytest.param(b"", "not an inference request", id="empty"),
        pytest.param(b"[1]", "not an inference request", id="not an object"),
        pytest.param(b'{"inputs":', "not an inference request", id="truncated"),
        pytest.param(b"\xff\xfe{}", "not an inference request", id="not UTF-8"),
        pytest.param(b"[" * 100_000, "not an inference request", id="deep nesting"),
        pytest.param({}, "inputs", id="no inputs"),
        pytest.param({"inputs": [{**X, "data": [1, 2]}], "id": 7}, "$.id", id="id is a number"),
        pytest.param({"inputs": [{**X, "data": [1, 2]}], "id": "a" * 257}, "at most 256", id="long id"),
        pytest.param(b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[NaN]}]}', "NaN", id="NaN"),
        pytest.param(
            b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[-Infinity]}]}', "NaN", id="infinity"
        ),
        pytest.param({"inputs": [{**X, "datatype": "FP99", "data": [1, 2]}]}, "FP99", id="unknown datatype"),
        pytest.param({"inputs": [{**X, "datatype": "FP16", "data": [1, 2]}]}, "no JSON form", id="FP16 in JSON"),
        pytest.param({"inputs": [X]}, "neither data nor", id="no data"),
        pytest.param({"inputs": [{**X, "data": None}]}, "nested 0 deep", id="null"),
        pytest.param({"inputs": [{**X, "data": [1, None]}]}, "null", id="null within"),
        pytest.param({"inputs": [{**X, "data": [1, "2"]}]}, "str", id="text for a number"),
        pytest.param({"inputs": [{**X, "data": [1, True]}]}, "bool", id="boolean for a number"),
        pytest.param({"inputs": [{**X, "data": [1, 2, 3]}]}, "2 elements", id="too many"),
        pytest.param({"inputs": [{**X, "data": [1]}]}, "2 elements", id="too few"),
        pytest.param({"inputs": [{**X, "data": [1, 1e39]}]}, "does not fit FP32", id="beyond float32"),
        pytest.param({"inputs": [{**X, "shape": [2, 2], "data": [[1, 2], [3]]}]}, "unequal", id="ragged"),
        pytest.param(
            {"inputs": [{**X, "datatype": "BYTES", "shape": [2, 2], "data": [["a"], ["b", "c"]]}]},
            "unequal",
            id="ragged text",
        ),
        pytest.param({"inputs": [{**X, "shape": [2, 3], "data": [[1, 2], [3, 4], [5, 6]]}]}, "[3, 2]", id="transposed"),
        pytest.param({"inputs": [{**X, "shape": [1, 1, 2], "data": [[1, 2]]}]}, "nested 2 deep", id="odd depth"),
        pytest.param({"inputs": [{**X, "shape": [-2], "data": [1, 2]}]}, "negative dimension", id="negative"),
        pytest.param({"inputs": [{**X, "shape": [1 << 40], "data": [1]}]}, "at most", id="too large"),
        pytest.param({"inputs": [{**X, "shape": [0, 1 << 70], "data": []}]}, "at most", id="huge beside zero"),
        pytest.param({"inputs": [{**X, "shape": [1] * 17, "data": [1]}]}, "dimensions", id="rank"),
        pytest.param({"inputs": [{**X, "datatype": "UINT8", "data": [1, 256]}]}, "255", id="beyond uint8"),
        pytest.param({"inputs": [{**X, "datatype": "INT64", "data": [1, 1 << 63]}]}, "INT64", id="beyond int64"),
        pytest.param({"inputs": [{**X, "datatype": "INT32", "data": [1, 1.5]}]}, "float", id="fraction"),
        pytest.param({"inputs": [{**X, "data": [1, 2]}] * 2}, "same name", id="twice"),
        pytest.param({"inputs": [{**X, "parameters": {"binary_data_size": 8}}]}, "add up to 8", id="no blob"),
        pytest.param(
            {"inputs": [{**X, "parameters": {"shared_memory_region": "r"}}]}, "no shared_memory_byte_size", id="shm"
        ),
        pytest.param(
            {"inputs": [{**X, "data": [1, 2]}], "outputs": [{"name": "y", "parameters": {"classification": -2}}]},
            "classification",
            id="classification",
        ),
        pytest.param(
            {"inputs": [{**X, "data": [1, 2]}], "parameters": {"binary_data_output": "yes"}}, "true or false", id="flag"
        ),
    ],
)
def test_a_wrong_json_request_is_refused_with_the_reason(body, says: str):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(InputError) as caught:
        decoder().decode(data, None)
    assert says in caught.value.message


@pytest.mark.parametrize(
    ("tensor", "blob", "says"),
    [
        pytest.param({**X, "parameters": {"binary_data_size": 4}}, b"1234", "needs 8", id="shape needs more"),
        pytest.param({**X, "parameters": {"binary_data_size": 8}}, b"1234", "add up to 8", id="truncated"),
        pytest.param({**X, "parameters": {"binary_data_size": 8}}, b"1" * 9, "9 bytes follow", id="too long"),
        pytest.param({**X, "parameters": {"binary_data_size": -8}}, b"", "binary_data_size", id="negative"),
        pytest.param({**X, "parameters": {"binary_data_size": True}}, b"1", "binary_data_size", id="boolean"),
        pytest.param(
            {**X, "parameters": {"binary_data_size": 8}, "data": [1, 2]}, b"1" * 8, "more than one", id="both"
        ),
        pytest.param(
            {**X, "datatype": "BOOL", "parameters": {"binary_data_size": 2}}, b"\x01\x02", "neither 0 nor 1", id="bool"
        ),
        pytest.param(
            {**X, "datatype": "BYTES", "parameters": {"binary_data_size": 6}},
            b"\1\0\0\0ab",
            "need more",
            id="text short",
        ),
        pytest.param(
            {**X, "datatype": "BYTES", "parameters": {"binary_data_size": 8}},
            b"\xff\xff\xff\xff\1\0\0\0",
            "ends within element 0",
            id="text length lies",
        ),
        pytest.param(
            {**X, "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 6}},
            b"\1\0\0\0ab",
            "1 bytes behind",
            id="text too long",
        ),
    ],
)
def test_a_wrong_binary_tensor_is_refused_with_the_reason(tensor, blob: bytes, says: str):
    with pytest.raises(InputError) as caught:
        decode([tensor], blob)
    assert says in caught.value.message


@pytest.mark.parametrize("length", [-1, 3, 1000])
def test_a_json_length_outside_the_body_is_refused(length: int):
    with pytest.raises(InputError, match="Inference-Header-Content-Length"):
        decoder().decode(b"{}", length)


@given(st.binary(max_size=60), st.one_of(st.none(), st.integers(-1, 70)))
def test_any_bytes_are_decoded_or_refused(body: bytes, length: int | None):
    with contextlib.suppress(InputError):
        decoder().decode(body, length)


def test_a_head_that_comes_again_gives_the_data_of_its_own_body():
    one = decoder()
    head = json.dumps({"inputs": [{**X, "parameters": {"binary_data_size": 8}}]}).encode()
    for values in ([1.0, 2.0], [3.0, 4.0]):
        body = head + np.array(values, np.float32).tobytes()
        assert one.decode(body, len(head)).inputs["x"].tolist() == values


def test_a_head_that_differs_only_in_id_and_numbers_gives_its_own():
    one = decoder()
    for number in range(3):
        head = {"inputs": [{**X, "data": [number, 2.5]}], "id": f"r{number}"}
        found = one.decode(json.dumps(head).encode(), None)
        assert (found.id, found.inputs["x"].tolist()) == (f"r{number}", [number, 2.5])


@pytest.mark.parametrize("where", ["parameters", "name"])
def test_a_long_head_is_not_kept_whatever_makes_it_long(where: str):
    one = RequestDecoder(SIGNATURE)
    long = "x" * MAX_CACHED_HEAD_BYTES
    for number in range(2):
        given = {**X, "data": [1, 2]}
        body = (
            {"inputs": [given], "parameters": {"own": long}}
            if where == "parameters"
            else {"inputs": [{**given, "name": long}]}
        )
        _plan, _id, inputs = one.decode(json.dumps({**body, "id": str(number)}).encode(), None)
        assert [array.tolist() for array in inputs.values()] == [[1.0, 2.0]]
    assert not one._by_content


@pytest.mark.parametrize("first", [True, 1])
def test_true_is_not_one_though_the_same_head_was_seen_with_the_other(first):
    one = decoder()
    for value in (first, 1 if first is True else True):
        head = {"inputs": [{**X, "data": [1, 2]}], "parameters": {"binary_data_output": value}}
        if value is True:
            assert one.decode(json.dumps(head).encode(), None).plan.form is Form.BINARY
        else:
            with pytest.raises(InputError, match="true or false"):
                one.decode(json.dumps(head).encode(), None)


def test_a_request_without_json_is_one_row_of_the_only_input():
    rows = Signature(
        inputs=(TensorSpec(name="x", datatype=Datatype.INT16, shape=(-1, 2, -1)),), outputs=SIGNATURE.outputs
    )
    found = decoder(rows).decode(np.arange(6, dtype=np.int16).tobytes(), 0)
    assert found.inputs["x"].tolist() == [[[0, 1, 2], [3, 4, 5]]]
    assert found.plan.form is Form.BINARY


def test_a_request_without_json_brings_one_text_without_its_length():
    texts = Signature(inputs=(TensorSpec(name="t", datatype=Datatype.BYTES, shape=(-1, 1)),), outputs=SIGNATURE.outputs)
    assert decoder(texts).decode(b"hello", 0).inputs["t"].tolist() == [[b"hello"]]


@pytest.mark.parametrize(
    ("shape", "size", "says"),
    [
        pytest.param((-1, -1, -1), 8, "open", id="two sizes open"),
        pytest.param((-1, 3), 8, "do not fill", id="not whole"),
        pytest.param((2,), 4, "needs 8", id="fixed"),
    ],
)
def test_a_request_without_json_that_leaves_doubt_is_refused(shape, size: int, says: str):
    signature = Signature(
        inputs=(TensorSpec(name="x", datatype=Datatype.FP32, shape=shape),), outputs=SIGNATURE.outputs
    )
    with pytest.raises(InputError, match=says):
        decoder(signature).decode(b"1" * size, 0)


class OneRegion:
    """Shared memory with one region, `r`."""

    generation = 0

    def __init__(self, memory: bytearray | None) -> None:
        self.memory = memory

    def view(self, ref) -> memoryview:
        if self.memory is None:
            raise InputError(f"Unable to find shared memory region: '{ref.region}'")
        return memoryview(self.memory)[ref.offset : ref.offset + ref.byte_size]


def test_a_request_for_shared_memory_that_comes_again_reads_and_writes_what_is_there_then():
    region = {"shared_memory_region": "r", "shared_memory_byte_size": 8}
    head = json.dumps(
        {
            "inputs": [{**X, "parameters": region}],
            "outputs": [{"name": "y", "parameters": {**region, "shared_memory_offset": 8}}],
        }
    ).encode()
    regions = OneRegion(bytearray(16))
    identity = Identity(model="m", version="1", release="sha256:r", variant="")
    one = RequestDecoder(SIGNATURE)
    for values in ([1.0, 2.0], [3.0, 4.0]):
        regions.memory[:8] = np.array(values, np.float32).tobytes()
        plan, _id, inputs = one.decode(head, None, regions)
        assert inputs["x"].tolist() == values
        assert plan.form is Form.REGION
        answer = [np.array(values, np.float32) * 2]
        response = Rendering(identity, plan.wishes, answer, regions).response("", answer).opened()
        assert np.frombuffer(regions.memory[8:], np.float32).tolist() == [2 * value for value in values]
        (output,) = json.loads(b"".join(response.chunks))["outputs"]
        # Triton's C++ client takes any parameters of an output for those of a binary tensor.
        assert output == {"name": "y", "datatype": "FP32", "shape": [2]}
    regions.memory = None
    with pytest.raises(InputError, match="Unable to find"):
        one.decode(head, None, regions)
