from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("google.protobuf")

from edgeserve.client.blobs import decode_blob, encode_blob
from edgeserve.client.oip_proto import messages
from edgeserve.contracts.errors import RejectedError
from edgeserve.contracts.limits import MAX_CACHED_HEAD_BYTES, MAX_CACHED_HEADS, MAX_RAW_INPUTS
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
    for identity in ("", "7", "ü" * 100, "x" * 300):
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


def _input(message, **fields):
    for name, value in fields.items():
        setattr(message.inputs[0], name, value)


@pytest.mark.parametrize(
    ("damage", "code", "says"),
    [
        (lambda m: setattr(m, "model_name", "nobody"), StatusCode.NOT_FOUND, "unknown model 'nobody'"),
        (lambda m: setattr(m, "model_version", "9"), StatusCode.NOT_FOUND, "no version '9'"),
        (lambda m: _input(m, datatype="FP31"), StatusCode.INVALID_ARGUMENT, "unknown datatype 'FP31'"),
        (lambda m: _input(m, datatype="INT32"), StatusCode.INVALID_ARGUMENT, "the model takes FP32"),
        (lambda m: _input(m, name="z"), StatusCode.INVALID_ARGUMENT, "input 'x' is missing"),
        (lambda m: m.inputs[0].shape.__setitem__(0, -1), StatusCode.INVALID_ARGUMENT, "negative dimension"),
        (lambda m: m.inputs[0].shape.__setitem__(0, 2**40), StatusCode.INVALID_ARGUMENT, "at most"),
        (lambda m: m.inputs[0].shape.__setitem__(1, 2), StatusCode.INVALID_ARGUMENT, "has 16 bytes, FP32[1, 2] needs"),
        (lambda m: m.inputs[0].shape.extend([1] * 20), StatusCode.INVALID_ARGUMENT, "22 dimensions"),
        (lambda m: m.inputs.add(name="x"), StatusCode.INVALID_ARGUMENT, "unknown datatype ''"),
        (lambda m: m.inputs.append(m.inputs[0]), StatusCode.INVALID_ARGUMENT, "two inputs have the same name"),
        (lambda m: m.raw_input_contents.append(b""), StatusCode.INVALID_ARGUMENT, "expected 1 raw_input_contents"),
        (lambda m: m.raw_input_contents.pop(), StatusCode.INVALID_ARGUMENT, "neither contents nor raw_input_contents"),
        (
            lambda m: m.inputs[0].contents.fp32_contents.extend([1, 2, 3, 4]),
            StatusCode.INVALID_ARGUMENT,
            "has contents and the request has raw_input_contents",
        ),
        (lambda m: m.outputs.add(name="z"), StatusCode.INVALID_ARGUMENT, "output 'z' is not one of the model's: y"),
        (lambda m: m.outputs.extend([m.outputs.add(name="y")]), StatusCode.INVALID_ARGUMENT, "two outputs"),
        (
            lambda m: setattr(m.parameters["priority"], "string_param", "high"),
            StatusCode.INVALID_ARGUMENT,
            "parameter priority is 'high'",
        ),
        (
            lambda m: setattr(m.parameters["timeout"], "int64_param", -1),
            StatusCode.INVALID_ARGUMENT,
            "parameter timeout is '-1'",
        ),
        (
            lambda m: setattr(m.inputs[0].parameters["shared_memory_region"], "string_param", "r"),
            StatusCode.INVALID_ARGUMENT,
            "has no shared_memory_byte_size",
        ),
    ],
)
def test_wrong_requests_are_refused_with_what_is_wrong(host, api, damage, code, says):
    message = api.request()
    damage(message)
    before = host.plane.find("m").counters.rejected
    found, text = host.infer(message)
    assert found is code, text
    assert says in text
    assert host.plane.find("m").counters.rejected - before == (code is StatusCode.INVALID_ARGUMENT)


@pytest.mark.parametrize(
    ("kind", "field", "values", "says"),
    [
        (Datatype.FP16, "fp32_contents", [1.0], "raw_input_contents only"),
        (Datatype.BF16, "int_contents", [1], "raw_input_contents only"),
        (Datatype.INT8, "int_contents", [128], "does not fit INT8"),
        (Datatype.UINT16, "uint_contents", [65536], "does not fit UINT16"),
        (Datatype.INT64, "int_contents", [1], "belong in int64_contents, not in int_contents"),
        (Datatype.FP32, "fp32_contents", [1.0, 2.0], "has 2 elements, shape [1] needs 1"),
    ],
)
def test_wrong_typed_contents_are_refused_with_what_is_wrong(host, kind, field, values, says):
    message = messages().ModelInferRequest(model_name="m")
    getattr(message.inputs.add(name="x", datatype=kind.value, shape=[1]).contents, field).extend(values)
    code, text = host.infer(message)
    assert code is StatusCode.INVALID_ARGUMENT
    assert says in text


def test_bytes_that_are_no_message_are_refused(host, api):
    call = host.answer(api.INFER, b"\x0a\x7fshort")
    assert call.status[0] is StatusCode.INVALID_ARGUMENT
    assert "not a ModelInferRequest" in call.status[1]


def test_a_failure_of_the_model_is_internal_and_what_is_being_loaded_unavailable(host, api):
    def broken(inputs):
        if inputs["x"].any():
            raise RuntimeError("no more memory")
        return {"y": np.zeros((1, 3), np.float32)}

    host.serve("broken", broken)
    assert host.infer(api.request("broken")) == (StatusCode.INTERNAL, "the model failed: no more memory")
    host.call(host.plane.expect, "coming")
    code, text = host.infer(api.request("coming"))
    assert (code, "is not ready" in text) == (StatusCode.UNAVAILABLE, True)
    host.call(host.plane.forget, "coming")


def test_a_call_whose_client_has_gone_is_told_to_the_scheduler(host, api):
    host.serve("waiting", slow=True)
    calls = []
    infer, host.plane.infer = host.plane.infer, lambda call: calls.append(call)
    try:
        rpc = api.Call(api.INFER)

        def begin():
            receiver = host.service.begin(rpc)
            receiver(api.request("waiting").SerializeToString())
            receiver(None)

        host.call(begin)
        assert not calls[0].cancelled
        host.call(rpc.cancel)
        assert calls[0].cancelled
    finally:
        host.plane.infer = infer


@pytest.mark.parametrize("count", [0, 2, 3])
def test_a_unary_method_takes_one_message(host, api, count):
    call = host.answer(api.INFER, *[api.request()] * count)
    assert call.status[0] is StatusCode.INTERNAL


# Shared memory -------------------------------------------------------------------------------------


@pytest.fixture
def region(host, tmp_path):
    """A registered region of 64 bytes, named `r`; what is in it."""
    from multiprocessing import shared_memory

    block = shared_memory.SharedMemory(create=True, size=4096)
    try:
        answer = host.ask("SystemSharedMemoryRegister", name="r", key=f"/{block.name}", offset=0, byte_size=64)
        assert not hasattr(answer, "__len__"), answer
        yield block.buf
        host.ask("SystemSharedMemoryUnregister", name="")
    finally:
        block.close()
        block.unlink()


def _place(tensor, offset, size):
    tensor.parameters["shared_memory_region"].string_param = "r"
    tensor.parameters["shared_memory_offset"].int64_param = offset
    tensor.parameters["shared_memory_byte_size"].int64_param = size


def test_tensors_in_shared_memory_take_no_slot_in_and_an_empty_one_out(host, api, region):
    two = Signature(
        inputs=(
            TensorSpec(name="a", datatype=Datatype.INT32, shape=(2,)),
            TensorSpec(name="b", datatype=Datatype.INT32, shape=(2,)),
        ),
        outputs=(
            TensorSpec(name="p", datatype=Datatype.INT32, shape=(2,)),
            TensorSpec(name="q", datatype=Datatype.INT32, shape=(2,)),
        ),
    )
    host.serve("two", lambda inputs: {"p": inputs["a"] + 1, "q": inputs["b"] + 1}, signature=two)
    np.frombuffer(region, np.int32, 2)[:] = [10, 20]
    message = messages().ModelInferRequest(model_name="two", raw_input_contents=[np.int32([1, 2]).tobytes()])
    _place(message.inputs.add(name="a", datatype="INT32", shape=[2]), 0, 8)
    message.inputs.add(name="b", datatype="INT32", shape=[2])
    _place(message.outputs.add(name="p"), 16, 8)
    message.outputs.add(name="q")
    for _ in range(2):
        response = host.infer(message)
        assert list(response.raw_output_contents) == [b"", np.int32([2, 3]).tobytes()]
        assert response.outputs[0].parameters["shared_memory_region"].string_param == "r"
        assert response.outputs[0].parameters["shared_memory_offset"].int64_param == 16
        assert response.outputs[0].parameters["shared_memory_byte_size"].int64_param == 8
        assert np.frombuffer(region, np.int32, 2, offset=16).tolist() == [11, 21]


def test_regions_are_listed_and_errors_of_theirs_say_what_is_wrong(host, api, region):
    status = host.ask("SystemSharedMemoryStatus")
    assert [(name, entry.byte_size) for name, entry in status.regions.items()] == [("r", 64)]
    assert host.ask("SystemSharedMemoryStatus", name="none")[0] is StatusCode.NOT_FOUND
    again = host.ask("SystemSharedMemoryRegister", name="r", key="/anything", offset=0, byte_size=64)
    assert again[0] is StatusCode.ALREADY_EXISTS
    message = api.request()
    _place(message.outputs.add(name="y"), 0, 4)
    code, text = host.infer(message)
    assert code is StatusCode.INVALID_ARGUMENT
    assert "shared memory size specified with the request for output 'y' (4 bytes) should be at least 12" in text


@pytest.mark.parametrize("unusual", [b"", UNKNOWN_FIELD])
@pytest.mark.parametrize("path", ["INFER", "STREAM"])
def test_a_request_of_countless_empty_tensors_is_refused(host, api, unusual, path):
    sent = unusual + api.request().SerializeToString() + b"\x3a\x00" * MAX_RAW_INPUTS
    call = host.answer(getattr(api, path), sent)
    if path == "INFER":
        code, said = call.status
    else:
        code, said = (
            StatusCode.INVALID_ARGUMENT,
            messages().ModelStreamInferResponse.FromString(call.sent[0]).error_message,
        )
    assert (code, f"more than {MAX_RAW_INPUTS} raw_input_contents" in said) == (StatusCode.INVALID_ARGUMENT, True)


def test_a_request_that_is_refused_at_once_leaves_nothing_to_collect(host, api, monkeypatch):
    monkeypatch.setattr(host.plane, "infer", lambda call: call.done(call, RejectedError("too many wait")))
    sent, gone = api.request().SerializeToString(), []

    def ask():
        rpc = api.Call(api.INFER)
        receiver = host.service.begin(rpc)
        receiver(sent)
        receiver(None)
        assert rpc.status[0] is StatusCode.UNAVAILABLE
        reference = weakref.ref(rpc)
        gc.disable()
        try:
            del rpc, receiver
            gone.append(reference() is None)
        finally:
            gc.enable()

    host.call(ask)
    assert gone == [True]
