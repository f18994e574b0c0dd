"""Requests that are wrong, that end badly, or whose client has gone."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

pytest.importorskip("google.protobuf")

from edgeserve.client.oip_proto import messages
from edgeserve.contracts.errors import RejectedError
from edgeserve.contracts.limits import MAX_RAW_INPUTS
from edgeserve.contracts.tensors import Datatype
from edgeserve_agent.serving.rpc import StatusCode

UNKNOWN_FIELD = b"\x7a\x00"
"""Makes a message unusual, so that protobuf reads it; means nothing."""


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
