"""Messages that are small on the wire and large for protobuf are refused before it reads them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("google.protobuf")

from edgeserve.client.oip_proto import messages
from edgeserve.contracts.errors import InputError
from edgeserve.contracts.limits import MAX_INFER_FIELDS, MAX_INFER_PARSED_BYTES
from edgeserve_agent.serving.grpc import fields
from edgeserve_agent.serving.grpc.fields import check_infer
from edgeserve_agent.serving.rpc import StatusCode

MANY = MAX_INFER_FIELDS + 1
UNUSUAL = b"\x7a\x00"
"""An unknown field in front: protobuf must read the whole message."""


def _field(tag: bytes, body: bytes) -> bytes:
    size, length = len(body), b""
    while size > 0x7F:
        length += bytes([size & 0x7F | 0x80])
        size >>= 7
    return tag + length + bytes([size]) + body


HOSTILE = {
    "inputs": b"\x2a\x00" * MANY,
    "outputs": b"\x32\x00" * MANY,
    "parameters": b"\x22\x00" * MANY,
    "inputs with long tags": b"\xaa\x00\x00" * MANY,
    "parameters of an input": _field(b"\x2a", b"\x22\x00" * MANY),
    "shape of an input": _field(b"\x2a", b"\x18\x01" * MANY),
    "texts of an input": _field(b"\x2a", _field(b"\x2a", b"\x42\x00" * MANY)),
    "numbers of an input": _field(b"\x2a", _field(b"\x2a", b"\x10\x01" * MANY)),
    "parameters of an output": _field(b"\x32", b"\x12\x00" * MANY),
    "unknown groups": b"\xfb\x01\xfc\x01" * MANY,
}


@pytest.mark.parametrize("front", [b"", UNUSUAL], ids=["usual", "unusual"])
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_message_of_many_small_fields_is_refused(host, api, kind, front, monkeypatch):
    monkeypatch.setattr("edgeserve_agent.serving.grpc.inference.read_message", _never)
    call = host.answer(api.INFER, front + HOSTILE[kind])
    assert call.status[0] is StatusCode.INVALID_ARGUMENT
    assert f"more than {MAX_INFER_FIELDS} fields" in call.status[1]


def _never(*_arguments):
    raise AssertionError("protobuf must not read this")


def test_large_typed_contents_are_refused_and_raw_ones_are_not(host, api):
    typed = messages().ModelInferRequest(model_name="m")
    typed.inputs.add(name="x", datatype="FP32", shape=[1]).contents.fp32_contents.extend(
        np.zeros(MAX_INFER_PARSED_BYTES // 4, np.float32)
    )
    code, said = host.infer(typed)
    assert code is StatusCode.INVALID_ARGUMENT
    assert "raw_input_contents" in said
    check_infer(UNUSUAL + api.request().SerializeToString() + _field(b"\x3a", bytes(MAX_INFER_PARSED_BYTES + 1)))


@pytest.mark.parametrize("end", [b"\x3a\x05r", b"\xba", b"\x08\xff", b"\x3f\x00", b"\x0d\x00"])
def test_a_large_message_that_ends_within_a_field_is_refused(end):
    with pytest.raises(InputError, match="not a message"):
        check_infer(b"\x3a\x01r" * (MAX_INFER_FIELDS - 1) + end)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60), st.integers(0, 60))
def test_every_field_is_counted(inputs, texts, outputs, raws):
    message = messages().ModelInferRequest(model_name="m", raw_input_contents=[b"r"] * raws)
    for _ in range(inputs):
        message.inputs.add(name="x").contents.bytes_contents.extend([b"t"] * texts)
    for _ in range(outputs):
        message.outputs.add(name="y")
    expected = 1 + inputs * (3 + texts if texts else 3) + outputs * 2 + raws
    data = message.SerializeToString()
    walk = fields._Walk(data)
    walk.count(0, len(data), fields._INFER)
    assert (walk._fields, walk.raw_bytes) == (expected, raws)


def test_a_shape_of_many_dimensions_is_refused(host, api):
    message = api.request()
    message.inputs[0].shape.extend([1] * 1_000_000)
    code, said = host.infer(message)
    assert code is StatusCode.INVALID_ARGUMENT
    assert "dimensions" in said
    assert len(said) < 500


@pytest.mark.parametrize("typed", [False, True])
def test_an_id_that_is_too_long_is_refused(host, api, typed):
    message = api.request(id="i" * 257)
    data = (UNUSUAL if typed else b"") + message.SerializeToString()
    call = host.answer(api.INFER, data)
    assert call.status == (
        StatusCode.INVALID_ARGUMENT,
        "the id of the request has 257 characters, at most 256 are allowed",
    )


def test_a_request_of_another_method_may_not_be_large(host, api):
    code, said = host.ask("ModelMetadata", name="m" * 100_000)
    assert code is StatusCode.INVALID_ARGUMENT
    assert "at most 65536" in said


def test_a_load_may_bring_files_but_not_any_number(host, api):
    call = host.answer("/inference.GRPCInferenceService/RepositoryModelLoad", b"\x1a\x00" * MANY)
    assert call.status[0] is StatusCode.INVALID_ARGUMENT
    assert "fields" in call.status[1]
