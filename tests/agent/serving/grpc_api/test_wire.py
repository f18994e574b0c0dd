from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

pytest.importorskip("google.protobuf")

from google.protobuf.message import DecodeError

from edgeserve.client.oip_proto import messages
from edgeserve_agent.serving.grpc.wire import (
    Layout,
    raw_output,
    response_flag,
    response_id,
    scan,
    stream_error,
    stream_response,
)

NAMES = st.text(max_size=12)


@st.composite
def requests(draw):
    known = messages()
    message = known.ModelInferRequest(
        model_name=draw(NAMES),
        model_version=draw(st.sampled_from(["", "1", "2.0"])),
        id=draw(st.one_of(st.just(""), st.text(max_size=200))),
        raw_input_contents=draw(st.lists(st.binary(max_size=300), max_size=4)),
    )
    for name in draw(st.lists(NAMES, max_size=3)):
        tensor = message.inputs.add(name=name, datatype="FP32", shape=draw(st.lists(st.integers(-1, 300), max_size=3)))
        if draw(st.booleans()):
            tensor.contents.fp32_contents.extend([1.0, 2.0])
    for name in draw(st.lists(NAMES, max_size=2)):
        message.outputs.add(name=name).parameters["classification"].int64_param = 3
    for name in draw(st.lists(NAMES, max_size=2, unique=True)):
        message.parameters[name].uint64_param = 1 << 63
    return message


def parsed(data):
    try:
        return messages().ModelInferRequest.FromString(bytes(data))
    except DecodeError:
        return None


def reassembled(data, scanned):
    """What the parts of a scan mean, put together again."""
    whole = parsed(scanned.head)
    if whole is None:
        return None
    assert not whole.id
    assert not whole.raw_input_contents
    whole.id = scanned.id
    whole.raw_input_contents.extend(bytes(data[begin:end]) for begin, end in scanned.bounds)
    return whole


@given(requests())
@settings(max_examples=300, deadline=None)
def test_every_request_in_the_usual_order_is_scanned_and_means_what_protobuf_reads(message):
    data = message.SerializeToString()
    for form in (data, memoryview(data)):
        scanned = scan(form)
        assert scanned is not None
        assert reassembled(form, scanned) == message


@given(st.data())
@settings(max_examples=500, deadline=None)
def test_what_is_scanned_of_damaged_bytes_means_what_protobuf_reads(draws):
    data = bytearray(draws.draw(requests()).SerializeToString())
    for _ in range(draws.draw(st.integers(1, 4))):
        at = draws.draw(st.integers(0, len(data)))
        match draws.draw(st.sampled_from(["change", "cut", "insert", "repeat"])):
            case "change" if at < len(data):
                data[at] = draws.draw(st.integers(0, 255))
            case "cut":
                del data[at : at + draws.draw(st.integers(0, 9))]
            case "repeat":
                data[at:at] = data[at : at + draws.draw(st.integers(0, 40))]
            case _:
                data[at:at] = draws.draw(st.binary(max_size=4))
    scanned = scan(bytes(data))
    if scanned is not None:
        assert reassembled(data, scanned) == parsed(data)


@given(st.binary(max_size=60))
@example(b"\x3a")
@example(b"\x3a\x80")
@example(b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")
@example(b"\x1a\x01\xff")
@example(b"\x1a\x01a\x1a\x01b")
@settings(max_examples=500, deadline=None)
def test_what_is_scanned_of_any_bytes_means_what_protobuf_reads(data):
    scanned = scan(data)
    if scanned is not None:
        assert reassembled(data, scanned) == parsed(data)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\x3a\x01a\x0a\x01m", "fields behind the tensors"),
        (b"\x0a\x01m\x7a\x00", "an unknown field"),
        (b"\x08\x01", "a number where a text belongs"),
        (b"\x1a\x01a\x1a\x01b", "two ids"),
        (b"\x1a\x01\xff", "an id that is not UTF-8"),
        (b"\x0a\x05m", "a text that ends early"),
        (b"\x0a\x01m\x3a\x02a", "a tensor that ends early"),
        (b"\x8a\x00\x01m", "a tag of two bytes"),
    ],
)
def test_unusual_requests_are_left_to_protobuf(data, why):
    assert scan(data) is None, why


@given(requests(), st.data())
@settings(max_examples=200, deadline=None)
def test_a_layout_fits_exactly_the_messages_that_differ_in_nothing_but_tensors(message, draws):
    data = message.SerializeToString()
    scanned = scan(data)
    layout = Layout(data, scanned)
    other = bytearray(data)
    inside = set()
    for begin, end in scanned.bounds:
        inside |= set(range(begin, end))
        other[begin:end] = draws.draw(st.binary(min_size=end - begin, max_size=end - begin))
    assert layout.fits(bytes(other))
    assert layout.fits(memoryview(other))
    outside = sorted(set(range(len(data))) - inside)
    if outside:
        other[draws.draw(st.sampled_from(outside))] ^= draws.draw(st.integers(1, 255))
        assert not layout.fits(bytes(other))


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16383, 16384, 70000])
def test_pieces_of_a_response_are_what_protobuf_reads(size):
    known = messages()
    blob = bytes(size)
    data = b"".join([response_id("i" * size), response_flag("triton_final_response"), raw_output(size), blob])
    response = known.ModelInferResponse.FromString(data)
    assert (response.id, list(response.raw_output_contents)) == ("i" * size, [blob])
    assert response.parameters["triton_final_response"].bool_param is True
    wrapped = known.ModelStreamInferResponse.FromString(b"".join(stream_response([data[:3], data[3:]])))
    assert wrapped.infer_response == response
    assert not wrapped.error_message
    failed = known.ModelStreamInferResponse.FromString(b"".join(stream_error("é" * size, "7")))
    assert (failed.error_message, failed.infer_response.id) == ("é" * size, "7")
