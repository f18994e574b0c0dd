from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("google.protobuf")

from edgeserve.client.blobs import decode_blob, encode_blob
from edgeserve.client.oip_proto import messages
from edgeserve.contracts.limits import MAX_CACHED_HEAD_BYTES, MAX_CACHED_HEADS
from edgeserve.contracts.task import Task
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve_agent.serving.rpc import StatusCode

UNKNOWN_FIELD = b"\x7a\x00"
"""Makes a message unusual, so that protobuf reads it; means nothing."""
TYPED = {
    Datatype.BOOL: ("bool_contents", [True, False, True]),
    Datatype.INT8: ("int_contents", [-128, 0, 127]),
    Datatype.INT16: ("int_contents", [-32768, 0, 32767]),
    Datatype.INT32: ("int_contents", [-(2**31), 0, 2**31 - 1]),
    Datatype.INT64: ("int64_contents", [-(2**63), 0, 2**63 - 1]),
    Datatype.UINT8: ("uint_contents", [0, 1, 255]),
    Datatype.UINT16: ("uint_contents", [0, 1, 65535]),
    Datatype.UINT32: ("uint_contents", [0, 1, 2**32 - 1]),
    Datatype.UINT64: ("uint64_contents", [0, 1, 2**64 - 1]),
    Datatype.FP32: ("fp32_contents", [-1.5, 0.0, 3.25]),
    Datatype.FP64: ("fp64_contents", [-1.5, 0.0, 1e300]),
    Datatype.BYTES: ("bytes_contents", [b"", b"\xff\x00", b"word"]),
}


def blob(kind, values):
    dtype = np.dtype(kind.numpy_name)
    array = np.empty(len(values), object) if kind is Datatype.BYTES else np.array(values, dtype)
    array[:] = values
    return bytes(encode_blob(kind, array))


def every_kind(**fields):
    """A request for the model `echo`: three elements of every datatype, all raw."""
    message = messages().ModelInferRequest(model_name="echo", **fields)
    for kind in Datatype:
        message.inputs.add(name=f"in_{kind.value}", datatype=kind.value, shape=[3])
        values = TYPED[kind][1] if kind in TYPED else [1, 2, 3]
        message.raw_input_contents.append(blob(kind, values))
    return message


def test_every_datatype_comes_back_raw_in_every_form(host):
    message = every_kind()
    for _ in range(2):  # the second one is known
        response = host.infer(message)
        assert [output.datatype for output in response.outputs] == [kind.value for kind in Datatype]
        assert list(response.raw_output_contents) == list(message.raw_input_contents)
        assert not any(output.HasField("contents") for output in response.outputs)
        assert (response.model_name, response.model_version) == ("echo", "1")
        assert response.parameters["edgeserve-release"].string_param == "sha256:echo-1"


@pytest.mark.parametrize("kind", TYPED, ids=lambda kind: kind.value)
def test_typed_contents_mean_what_raw_ones_do(host, api, kind):
    host.serve("typed", api.same, signature=api.single(kind), version=kind.value)
    field, values = TYPED[kind]
    message = messages().ModelInferRequest(model_name="typed")
    getattr(message.inputs.add(name="x", datatype=kind.value, shape=[3]).contents, field).extend(values)
    for _ in range(2):
        response = host.infer(message)
        assert response.raw_output_contents[0] == blob(kind, values)
    raw = messages().ModelInferRequest(model_name="typed", raw_input_contents=[blob(kind, values)])
    raw.inputs.add(name="x", datatype=kind.value, shape=[3])
    assert host.infer(raw) == response


@pytest.mark.parametrize("raw", [True, False], ids=["raw", "no contents"])
def test_empty_tensors_go_in_and_out(host, raw):
    message = messages().ModelInferRequest(model_name="echo")
    for kind in Datatype:
        message.inputs.add(name=f"in_{kind.value}", datatype=kind.value, shape=[0])
        if raw:
            message.raw_input_contents.append(b"")
    response = host.infer(message)
    assert [list(output.shape) for output in response.outputs] == [[0]] * len(Datatype)
    assert list(response.raw_output_contents) == [b""] * len(Datatype)


@given(
    st.lists(
        st.tuples(
            st.lists(st.lists(st.floats(width=32), min_size=4, max_size=4), min_size=1, max_size=3),
            st.sampled_from(["", "7", "long" * 40]),
            st.sampled_from(["m", "other", "nobody"]),
            st.sampled_from(["right", "short", "long", "missing", "two", "typed too", "no input", "wrong output"]),
        ),
        min_size=1,
        max_size=6,
    )
)
@settings(max_examples=60, deadline=None)
def test_the_short_way_answers_what_protobuf_answers(host, api, asked):
    """The same messages, once as clients write them and once in a form that only protobuf reads."""
    if not host.call(host.plane.is_active, "other"):
        host.serve("other", version="2")
    for rows, identity, model, fault in asked:
        message = api.request(model, *rows, id=identity)
        match fault:
            case "short":
                message.raw_input_contents[0] = message.raw_input_contents[0][:-1]
            case "long":
                message.raw_input_contents[0] += b"\0"
            case "missing":
                message.raw_input_contents.pop()
            case "two":
                message.raw_input_contents.append(b"")
            case "typed too":
                message.inputs[0].contents.fp32_contents.append(1)
            case "no input":
                message.inputs.pop()
            case "wrong output":
                message.outputs.add(name="z")
        data = message.SerializeToString()
        answers = [host.answer(api.INFER, form) for form in (data, memoryview(data), UNKNOWN_FIELD + data)]
        parsed = [
            (call.status, [messages().ModelInferResponse.FromString(sent) for sent in call.sent]) for call in answers
        ]
        assert parsed[0] == parsed[1] == parsed[2]
        assert (parsed[0][0][0] is StatusCode.OK) == (fault == "right" and model != "nobody")


PAIR = Signature(
    inputs=(
        TensorSpec(name="a", datatype=Datatype.UINT8, shape=(-1,)),
        TensorSpec(name="b", datatype=Datatype.FP64, shape=(-1, 2)),
    ),
    outputs=(
        TensorSpec(name="c", datatype=Datatype.UINT8, shape=(-1,)),
        TensorSpec(name="d", datatype=Datatype.FP64, shape=(-1, 2)),
    ),
)


@given(st.lists(st.tuples(st.binary(max_size=9), st.integers(0, 3), st.integers(0, 255)), min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_tensors_that_lie_anywhere_in_a_message_are_cut_right(host, api, asked):
    """Bytes before numbers of eight bytes: the numbers begin at any address."""

    def compute(inputs):
        assert all(array.flags.aligned for array in inputs.values())
        return {"c": inputs["a"].copy(), "d": inputs["b"].copy()}

    if not host.call(host.plane.is_active, "pair"):
        host.serve("pair", compute, signature=PAIR)
    for bytes_, rows, fill in asked:
        blobs = [bytes_, bytes([fill]) * 16 * rows]
        message = messages().ModelInferRequest(model_name="pair", raw_input_contents=blobs)
        message.inputs.add(name="a", datatype="UINT8", shape=[len(bytes_)])
        message.inputs.add(name="b", datatype="FP64", shape=[rows, 2])
        data = message.SerializeToString()
        for form in (data, data, memoryview(data), UNKNOWN_FIELD + data):
            response = host.infer(form)
            assert list(response.raw_output_contents) == blobs
            assert [list(output.shape) for output in response.outputs] == [[len(bytes_)], [rows, 2]]


def test_what_is_kept_of_requests_is_bounded(host, api):
    inference = host.service._inference
    for index in range(3 * MAX_CACHED_HEADS):
        message = api.request("m", *[[1, 2, 3, 4]] * (1 + index % 300))
        message.parameters["seed"].int64_param = index
        assert host.infer(message).model_name == "m"
        assert len(inference._heads) <= MAX_CACHED_HEADS
        assert len(inference._by_size) <= MAX_CACHED_HEADS
        assert all(len(known) <= 4 for known in inference._by_size.values())
    before = set(inference._heads)
    long = api.request(model_version="1", id="x" * 10)
    long.parameters["text"].string_param = "y" * MAX_CACHED_HEAD_BYTES
    assert host.infer(long).id == "x" * 10
    assert set(inference._heads) == before


def test_models_whose_requests_have_the_same_size_are_kept_apart(host, api):
    for name in ("a1", "a2", "a3", "a4", "a5", "a6"):
        host.serve(name, lambda inputs, name=name: {"y": np.full((1, 3), int(name[1]), np.float32)})
    for _ in range(2):
        for name in ("a1", "a2", "a3", "a4", "a5", "a6"):
            response = host.infer(api.request(name))
            assert response.model_name == name
            assert np.frombuffer(response.raw_output_contents[0], np.float32).tolist() == [int(name[1])] * 3


def test_a_new_release_answers_known_requests_as_itself(host, api):
    host.serve("changing", version="1")
    before = [host.infer(api.request("changing", model_version=version)) for version in ("", "1", "", "1")]
    wide = Signature(
        inputs=(TensorSpec(name="x", datatype=Datatype.FP32, shape=(-1, 4)),),
        outputs=(TensorSpec(name="wide", datatype=Datatype.FP64, shape=(-1, 1)),),
    )
    host.serve("changing", lambda inputs: {"wide": inputs["x"][:, :1].astype(np.float64)}, signature=wide, version="2")
    after = host.infer(api.request("changing"))
    assert {response.model_version for response in before} == {"1"}
    assert (after.model_version, after.outputs[0].name, after.outputs[0].datatype) == ("2", "wide", "FP64")
    assert host.infer(api.request("changing", model_version="1")).model_version == "1"
    host.call(host.plane.unload, "changing", "sha256:changing-1")
    assert host.infer(api.request("changing", model_version="1"))[0] is StatusCode.NOT_FOUND


def test_the_id_is_echoed_whatever_it_is(host, api):
    for identity in ("", "7", "ü" * 256, "x" * 256):
        for _ in range(2):
            assert host.infer(api.request(id=identity)).id == identity


def test_outputs_are_those_asked_for_in_that_order(host):
    message = every_kind()
    for name in ("out_INT8", "out_BOOL"):
        message.outputs.add(name=name).parameters["binary_data"].bool_param = False  # of the REST dialect
    response = host.infer(message)
    assert [output.name for output in response.outputs] == ["out_INT8", "out_BOOL"]
    assert [bytes(raw) for raw in response.raw_output_contents] == [b"\x80\x00\x7f", b"\x01\x00\x01"]


def test_classes_come_in_words_as_raw_bytes(host, api):
    task = Task(kind="classification", labels=("cat", "dog", "owl"))
    host.serve("labelled", lambda inputs: {"y": np.array([[0.5, 2.0, 1.0]] * len(inputs["x"]), np.float32)}, task=task)
    message = api.request("labelled", [1, 2, 3, 4], [5, 6, 7, 8])
    message.outputs.add(name="y").parameters["classification"].int64_param = 2
    response = host.infer(message)
    output = response.outputs[0]
    assert (output.datatype, list(output.shape)) == ("BYTES", [2, 2])
    found = decode_blob("y", Datatype.BYTES, (2, 2), memoryview(response.raw_output_contents[0]))
    assert found.tolist() == [[b"2.000000:1:dog", b"1.000000:2:owl"]] * 2


@pytest.mark.parametrize("kind", ["int64_param", "uint64_param", "double_param"])
def test_parameters_that_count_may_come_as_any_number(host, api, kind):
    calls = []
    host.serve("seen", lambda inputs: {"y": np.zeros((1, 3), np.float32)})
    infer = host.plane.infer
    message = api.request("seen")
    for name, value in (("priority", 2), ("timeout", 5000), ("sequence_id", 42)):
        setattr(message.parameters[name], kind, value)
    message.parameters["sequence_start"].bool_param = True
    message.parameters["sequence_end"].bool_param = False
    message.parameters["colour"].string_param = "red"
    message.parameters["triton_enable_empty_final_response"].bool_param = True
    host.plane.infer = lambda call: (calls.append(call), infer(call))
    try:
        assert host.infer(message).model_name == "seen"
    finally:
        host.plane.infer = infer
    (call,) = calls
    assert (call.priority, call.timeout_us) == (2, 5000)
    assert (call.sequence.id, call.sequence.start, call.sequence.end) == (42, True, False)
    assert call.parameters == {"colour": "red"}


def test_a_sequence_may_have_a_text_for_an_id_and_none_is_no_sequence(host, api):
    message = api.request()
    for kind, value in (("string_param", "run-1"), ("string_param", ""), ("int64_param", 0)):
        setattr(message.parameters["sequence_id"], kind, value)
        assert host.infer(message).model_name == "m"
