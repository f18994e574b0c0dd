"""The service behind grpcio, asked by grpcio's own client with plain bytes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time

import numpy as np
import pytest

from edgeserve.client.oip_proto import messages
from edgeserve.contracts.errors import DeviceError
from edgeserve_agent.serving.grpc.grpcio_server import GrpcioServer

grpc = pytest.importorskip("grpc")
HEALTH = "/grpc.health.v1.Health"
SERVICE = "/inference.GRPCInferenceService"
MAX_BYTES = 1 << 20
DEADLINE_S = 10.0


@pytest.fixture(scope="module")
def port(host):
    server = GrpcioServer(host.loop, host.service, max_message_bytes=MAX_BYTES)
    yield host.run(server.listen("127.0.0.1", 0))
    host.run(server.close(DEADLINE_S))


@pytest.fixture
def channel(port):
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=options) as opened:
        yield opened


@pytest.fixture
def blocked(host):
    """A model that answers when it is let; how often it ran."""
    let, ran = threading.Event(), []

    def compute(inputs):
        if inputs["x"].any():
            ran.append(1)
            let.wait(DEADLINE_S)
        return {"y": np.zeros((len(inputs["x"]), 3), np.float32)}

    host.serve("blocked", compute, slow=True)
    yield let, ran
    let.set()
    host.call(host.plane.unload, "blocked", "sha256:blocked-1")


def failed(call, *arguments, **more):
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, **more, timeout=DEADLINE_S)
    return caught.value.code(), caught.value.details()


def test_requests_are_answered(channel, host, api):
    infer = channel.unary_unary(api.INFER)
    for index in range(20):
        answer = messages().ModelInferResponse.FromString(infer(api.request(id=str(index)).SerializeToString()))
        assert (answer.id, answer.raw_output_contents[0]) == (str(index), np.float32([10] * 3).tobytes())


def test_an_empty_answer_is_an_answer(channel):
    assert channel.unary_unary(f"{SERVICE}/CudaSharedMemoryUnregister")(b"", timeout=DEADLINE_S) == b""


def test_errors_have_their_status_and_message(channel, api):
    infer = channel.unary_unary(api.INFER)
    code, text = failed(infer, api.request("nobody").SerializeToString())
    assert code is grpc.StatusCode.NOT_FOUND
    assert "unknown model 'nobody'" in text
    assert failed(infer, b"\xff")[0] is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("path", [f"{SERVICE}/ModelDream", "/other.Service/Method", "/x"])
def test_an_unknown_method_is_unimplemented_before_anything_is_sent(channel, path):
    assert failed(channel.unary_unary(path), b"")[0] is grpc.StatusCode.UNIMPLEMENTED
    with pytest.raises(grpc.RpcError) as caught:
        next(channel.stream_stream(path)(iter(()), timeout=DEADLINE_S))
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_stream_answers_while_it_is_open(channel, api):
    sent, end = [api.request(id="1"), api.request("nobody", id="2"), api.request(id="3")], threading.Event()

    def requests():
        for message in sent:
            yield message.SerializeToString()
        end.wait(DEADLINE_S)

    answers = channel.stream_stream(api.STREAM)(requests(), timeout=DEADLINE_S)
    found = [messages().ModelStreamInferResponse.FromString(next(answers)) for _ in sent]
    assert [one.infer_response.id for one in found] == ["1", "2", "3"]
    assert [bool(one.error_message) for one in found] == [False, True, False]
    end.set()
    assert list(answers) == []
    assert answers.code() is grpc.StatusCode.OK


def test_metadata_reaches_the_service(channel, api):
    requests = iter([api.request("nobody").SerializeToString()])
    answers = channel.stream_stream(api.STREAM)(
        requests, metadata=[("triton_grpc_error", "true"), ("trace-bin", b"\xff\x00")], timeout=DEADLINE_S
    )
    with pytest.raises(grpc.RpcError) as caught:
        list(answers)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_messages_up_to_the_limit_pass_and_larger_ones_are_told_the_limit(channel, host, api):
    infer = channel.unary_unary(api.INFER)
    rows = np.ones((MAX_BYTES // 16 - 10, 4), np.float32)
    message = api.request()
    message.inputs[0].shape[0] = len(rows)
    message.raw_input_contents[0] = rows.tobytes()
    assert message.ByteSize() <= MAX_BYTES
    answer = messages().ModelInferResponse.FromString(infer(message.SerializeToString(), timeout=DEADLINE_S))
    assert list(answer.outputs[0].shape) == [len(rows), 3]
    code, text = failed(infer, bytes(MAX_BYTES + 1))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert f"the request has {MAX_BYTES + 1} bytes, at most {MAX_BYTES}" in text
    assert "MAX_REQUEST_BYTES" in text
    assert failed(infer, bytes(3 * MAX_BYTES))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    host.serve("large", lambda inputs: {"y": np.zeros((MAX_BYTES // 4, 3), np.float32)})
    code, text = failed(infer, api.request("large").SerializeToString())
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "the answer has" in text


def test_a_stream_that_is_refused_takes_its_requests_with_it(channel, host, api):
    calls = []
    infer, host.plane.infer = host.plane.infer, lambda call: calls.append(call)
    try:
        requests = iter([api.request().SerializeToString(), bytes(MAX_BYTES + 1)])
        with pytest.raises(grpc.RpcError) as caught:
            list(channel.stream_stream(api.STREAM)(requests, timeout=DEADLINE_S))
    finally:
        host.plane.infer = infer
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert f"the request has {MAX_BYTES + 1} bytes" in caught.value.details()
    assert [call.cancelled for call in calls] == [True]


def test_an_answer_of_a_stream_that_is_too_large_ends_it(channel, host, api):
    host.serve("large", lambda inputs: {"y": np.zeros((MAX_BYTES // 4, 3), np.float32)})
    requests = iter([api.request(name, id=name).SerializeToString() for name in ("m", "large", "m")])
    answers = channel.stream_stream(api.STREAM)(requests, timeout=DEADLINE_S)
    assert messages().ModelStreamInferResponse.FromString(next(answers)).infer_response.id == "m"
    with pytest.raises(grpc.RpcError) as caught:
        next(answers)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_requests_are_taken(channel, api, compression):
    message = api.request("m", *[[1, 2, 3, 4]] * 1000)
    answer = channel.unary_unary(api.INFER)(message.SerializeToString(), compression=compression, timeout=DEADLINE_S)
    assert list(messages().ModelInferResponse.FromString(answer).outputs[0].shape) == [1000, 3]


def test_a_deadline_ends_the_call_and_takes_it_out_of_the_queue(channel, host, api, tools, blocked):
    let, ran = blocked
    infer = channel.unary_unary(api.INFER)
    message = api.request("blocked").SerializeToString()
    began = time.monotonic()
    first = infer.future(message, timeout=DEADLINE_S)
    tools.until(lambda: ran, "the first runs")
    with pytest.raises(grpc.RpcError) as caught:
        infer(message, timeout=0.1)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - began < DEADLINE_S
    let.set()
    assert first.result()
    answer = messages().ModelInferResponse.FromString(infer(message, timeout=DEADLINE_S))
    assert answer.model_name == "blocked"


@pytest.mark.parametrize("kind", ["unary", "stream"])
def test_a_client_that_cancels_is_noticed(channel, host, api, tools, kind):
    calls = []
    infer, host.plane.infer = host.plane.infer, lambda call: calls.append(call)
    try:
        data = api.request().SerializeToString()
        if kind == "unary":
            under_way = channel.unary_unary(api.INFER).future(data)
        else:
            under_way = channel.stream_stream(api.STREAM)(iter([data]))
        tools.until(lambda: calls, "the call arrived")
        assert not calls[0].cancelled
        under_way.cancel()
        tools.until(lambda: calls[0].cancelled, "the cancellation arrived")
    finally:
        host.plane.infer = infer
    assert channel.unary_unary(api.INFER)(data, timeout=DEADLINE_S)


def test_a_handler_that_breaks_is_an_internal_error_and_the_server_goes_on(channel, host, api, caplog):
    infer, host.plane.infer = host.plane.infer, lambda _call: 1 / 0
    try:
        code, text = failed(channel.unary_unary(api.INFER), api.request().SerializeToString())
        assert (code, "log" in text) == (grpc.StatusCode.INTERNAL, True)
        stream = channel.stream_stream(api.STREAM)(iter([api.request().SerializeToString()]), timeout=DEADLINE_S)
        with pytest.raises(grpc.RpcError) as caught:
            next(stream)
        assert caught.value.code() is grpc.StatusCode.INTERNAL
    finally:
        host.plane.infer = infer
    assert "ZeroDivisionError" in caplog.text
    assert channel.unary_unary(api.INFER)(api.request().SerializeToString(), timeout=DEADLINE_S)


def test_a_watch_is_a_stream(channel):
    watched = channel.unary_stream(f"{HEALTH}/Watch")(b"", timeout=DEADLINE_S)
    assert messages().HealthCheckResponse.FromString(next(watched)).status == 1
    watched.cancel()


def test_a_port_in_use_is_said(host, port):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for used in (port, taken.getsockname()[1]):
            server = GrpcioServer(host.loop, host.service)
            with pytest.raises(DeviceError, match=f"cannot listen for gRPC on 127.0.0.1:{used}"):
                host.run(server.listen("127.0.0.1", used))


def test_closing_waits_for_calls_under_way(host, api, tools, blocked):
    let, ran = blocked
    server = GrpcioServer(host.loop, host.service)
    port = host.run(server.listen("127.0.0.1", 0))
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        under_way = channel.unary_unary(api.INFER).future(api.request("blocked").SerializeToString())
        tools.until(lambda: ran, "the call runs")
        closing = asyncio.run_coroutine_threadsafe(server.close(DEADLINE_S), host.loop)
        tools.until(lambda: not _accepts(port), "the port is closed")
        assert not closing.done()
        let.set()
        assert messages().ModelInferResponse.FromString(under_way.result(DEADLINE_S)).model_name == "blocked"
        closing.result(DEADLINE_S)


def _accepts(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def test_a_stream_to_which_nothing_can_be_written_is_cancelled(host):
    class Context:
        """A call of a client that has gone: grpcio fails to write to it."""

        def __init__(self, message):
            self._messages = [message]

        def invocation_metadata(self):
            return ()

        async def read(self):
            if self._messages:
                return self._messages.pop()
            return await asyncio.get_running_loop().create_future()

        async def write(self, _message):
            raise RuntimeError("the transport is broken")

    class Service:
        def begin(self, call):
            call.on_cancel = lambda: cancelled.append(call.path)
            return lambda message: call.send((message,))

    cancelled = []
    server = GrpcioServer(host.loop, Service())
    with pytest.raises(RuntimeError, match="broken"):
        host.run(server._stream("/a/stream", None, Context(b"one")))
    assert cancelled == ["/a/stream"]
