from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

pytest.importorskip("google.protobuf")

from edgeserve.client.oip_proto import messages
from edgeserve_agent.serving.rpc import StatusCode


def responses(call):
    return [messages().ModelStreamInferResponse.FromString(sent) for sent in call.sent]


def test_each_request_of_a_stream_is_answered_once_and_in_order_whatever_it_takes(host, api):
    host.serve("slow", slow=True)
    names = ["slow", "m", "slow", "m", "m"]
    call = host.answer(api.STREAM, *[api.request(name, id=str(index)) for index, name in enumerate(names)])
    assert call.status == (StatusCode.OK, "")
    found = [response.infer_response for response in responses(call)]
    assert [(one.id, one.model_name) for one in found] == [(str(index), name) for index, name in enumerate(names)]
    for one in found:
        assert one.parameters["triton_final_response"].bool_param is True
        assert np.frombuffer(one.raw_output_contents[0], np.float32).tolist() == [10, 10, 10]


def test_an_error_is_an_answer_and_the_stream_goes_on(host, api):
    damaged = api.request(id="2")
    damaged.raw_input_contents[0] = b""
    call = host.answer(api.STREAM, api.request("nobody", id="1"), damaged, b"\xff", api.request(id="3"))
    assert call.status == (StatusCode.OK, "")
    first, second, third, fourth = responses(call)
    assert ("unknown model" in first.error_message, first.infer_response.id) == (True, "1")
    assert ("has 0 bytes" in second.error_message, second.infer_response.id) == (True, "2")
    assert "not a ModelInferRequest" in third.error_message
    assert (fourth.error_message, fourth.infer_response.id) == ("", "3")


def test_a_client_may_ask_for_a_status_instead(host, api):
    call = host.answer(
        api.STREAM, api.request(id="1"), api.request("nobody"), api.request(id="3"), triton_grpc_error="true"
    )
    assert [response.infer_response.id for response in responses(call)] == ["1"]
    assert call.status[0] is StatusCode.NOT_FOUND
    assert "unknown model 'nobody'" in call.status[1]


def test_an_empty_stream_ends_well(host, api):
    call = host.answer(api.STREAM)
    assert (call.status, call.sent) == ((StatusCode.OK, ""), [])


def test_a_client_that_goes_away_takes_its_requests_with_it(host, api):
    calls = []
    infer, host.plane.infer = host.plane.infer, lambda call: calls.append(call)
    try:
        rpc = api.Call(api.STREAM)

        def begin():
            receiver = host.service.begin(rpc)
            for _ in range(3):
                receiver(api.request().SerializeToString())
            rpc.cancel()
            receiver(api.request().SerializeToString())

        host.call(begin)
    finally:
        host.plane.infer = infer
    assert [call.cancelled for call in calls] == [True] * 3
    assert (rpc.sent, rpc.status) == ([], None)


@pytest.mark.parametrize(("bound", "most"), [("MAX_STREAM_REQUESTS", 4), ("STREAM_BYTES", 4 * 39)])
def test_a_client_that_asks_faster_than_it_is_answered_must_wait(host, api, monkeypatch, bound, most):
    monkeypatch.setattr(f"edgeserve_agent.serving.grpc.inference.{bound}", most)
    calls = []
    monkeypatch.setattr(host.plane, "infer", calls.append)
    rpc = api.Call(api.STREAM)
    requests = [api.request(id=str(index)).SerializeToString() for index in range(9)]
    assert {len(request) for request in requests} == {39}
    outputs = {"y": np.zeros(3, np.float32)}

    def begin():
        rpc.deliver(host.service.begin(rpc), *requests, None)

    def answer():
        call = calls[answered[0]]
        answered[0] += 1
        call.done(call, outputs)

    answered = [0]
    host.call(begin)
    seen = [len(calls)]
    while answered[0] < 9:
        host.call(answer)
        host.call(lambda: None)  # one more turn of the loop
        seen.append(len(calls))
    assert seen == [4, 4, 6, 6, 8, 8, 9, 9, 9, 9]
    assert rpc.status == (StatusCode.OK, "")
    assert [response.infer_response.id for response in responses(rpc)] == [str(index) for index in range(9)]


def test_a_refused_request_is_not_kept_until_its_turn(host, api, monkeypatch):
    monkeypatch.setattr(host.plane, "infer", lambda call: None)
    gone = []

    def begin():
        receiver = host.service.begin(api.Call(api.STREAM))
        receiver(api.request().SerializeToString())
        body = np.frombuffer(api.request("nobody").SerializeToString(), np.uint8)
        reference = weakref.ref(body)
        gc.disable()
        try:
            receiver(body.data)
            del body
            gone.append(reference() is None)
        finally:
            gc.enable()

    host.call(begin)
    assert gone == [True]


def test_an_id_that_is_too_long_is_refused_and_not_given_back(host, api):
    call = host.answer(api.STREAM, api.request(id="i" * 257), api.request(id="i" * 256))
    first, second = responses(call)
    assert ("has 257 characters" in first.error_message, first.infer_response.id) == (True, "")
    assert second.infer_response.id == "i" * 256
