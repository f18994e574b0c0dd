"""The gRPC checks pass against a bridge to a real server, and find what is wrong with a bridge that is wrong."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
import urllib3

from edgeserve.client.oip_proto import messages, service_methods
from edgeserve.conformance.grpc_client import Grpc
from edgeserve.conformance.http import Http
from edgeserve.conformance.run import Verdict, chosen, run
from edgeserve.conformance.target import Target
from edgeserve.contracts.errors import InputError, TransientError
from edgeserve.contracts.tensors import Datatype

grpc = pytest.importorskip("grpc")
pytestmark = pytest.mark.system
HEAD_LENGTH = "Inference-Header-Content-Length"
FIELDS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip


class RefusedError(Exception):
    def __init__(self, code, words):
        super().__init__(words)
        self.code = code


class Bridge:
    """Answers gRPC by asking an HTTP server; `spoil` may change a response, `careless` ones do not check contents."""

    def __init__(self, url, *, spoil=None, careless=False):
        self.url = url
        self.spoil = spoil or (lambda method, response: response)
        self.careless = careless
        self.http = urllib3.PoolManager(maxsize=16, retries=False, timeout=10)

    def ask(self, verb, path, **options):
        answer = self.http.request(verb, self.url + path, **options)
        if answer.status != 200:
            code = grpc.StatusCode.NOT_FOUND if answer.status == 404 else grpc.StatusCode.INVALID_ARGUMENT
            raise RefusedError(code, json.loads(answer.data)["error"])
        return answer

    def server_live(self, request):
        return messages().ServerLiveResponse(live=self.ask("GET", "/v2/health/live").json()["live"])

    def server_ready(self, request):
        return messages().ServerReadyResponse(ready=self.ask("GET", "/v2/health/ready").json()["ready"])

    def model_ready(self, request):
        version = f"/versions/{request.version}" if request.version else ""
        return messages().ModelReadyResponse(
            ready=self.ask("GET", f"/v2/models/{request.name}{version}/ready").json()["ready"]
        )

    def server_metadata(self, request):
        found = self.ask("GET", "/v2").json()
        return messages().ServerMetadataResponse(**{name: found[name] for name in ("name", "version", "extensions")})

    def model_metadata(self, request):
        found = self.ask("GET", f"/v2/models/{request.name}").json()
        return messages().ModelMetadataResponse(
            **{name: found[name] for name in ("name", "versions", "platform", "inputs", "outputs")}
        )

    def model_infer(self, request):
        tensors, blobs = [], []
        raw = list(request.raw_input_contents)
        if not self.careless and raw and len(raw) != len(request.inputs):
            raise RefusedError(grpc.StatusCode.INVALID_ARGUMENT, "as many raw contents as inputs are needed")
        for index, tensor in enumerate(request.inputs):
            blob = self.blob(tensor, raw[index] if raw else None)
            entry = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
            tensors.append(entry | {"parameters": {"binary_data_size": len(blob)}})
            blobs.append(blob)
        document = {"id": request.id, "inputs": tensors, "parameters": {"binary_data_output": True}}
        if request.outputs:
            document["outputs"] = [{"name": o.name, "parameters": {"binary_data": True}} for o in request.outputs]
        head = json.dumps(document).encode()
        version = f"/versions/{request.model_version}" if request.model_version else ""
        path = f"/v2/models/{request.model_name}{version}/infer"
        answer = self.ask("POST", path, body=head + b"".join(blobs), headers={HEAD_LENGTH: str(len(head))})
        return self.response(answer)

    def blob(self, tensor, raw):
        contents = tensor.contents.ListFields()
        if raw is not None:
            if contents and not self.careless:
                raise RefusedError(grpc.StatusCode.INVALID_ARGUMENT, "raw and typed contents for one input")
            return raw
        if not contents and 0 not in tensor.shape and not self.careless:
            raise RefusedError(grpc.StatusCode.INVALID_ARGUMENT, "an input without contents")
        if contents and contents[0][0].name != FIELDS.get(tensor.datatype) and not self.careless:
            raise RefusedError(grpc.StatusCode.INVALID_ARGUMENT, "contents of another datatype")
        values = list(contents[0][1]) if contents else []
        if tensor.datatype == "BYTES":
            return b"".join(len(value).to_bytes(4, "little") + value for value in values)
        return np.array(values, dtype=Datatype(tensor.datatype).numpy_name).tobytes()

    def response(self, answer):
        cut = int(answer.headers[HEAD_LENGTH])
        found, blob = json.loads(answer.data[:cut]), answer.data[cut:]
        made = messages().ModelInferResponse(
            model_name=found["model_name"], model_version=found["model_version"], id=found.get("id", "")
        )
        for output in found["outputs"]:
            size = output["parameters"]["binary_data_size"]
            made.outputs.add(name=output["name"], datatype=output["datatype"], shape=output["shape"])
            made.raw_output_contents.append(blob[:size])
            blob = blob[size:]
        return made

    def health(self, request):
        return messages().HealthCheckResponse(status="SERVING")

    def stream(self, requests, context):
        yield from map(self.streamed, requests)

    def streamed(self, request):
        try:
            response = self.spoil("ModelInfer", self.model_infer(request))
            return messages().ModelStreamInferResponse(infer_response=response)
        except RefusedError as refused:
            return messages().ModelStreamInferResponse(error_message=str(refused))

    def unary(self, method, answer):
        def handle(request, context):
            try:
                return self.spoil(method, answer(request))
            except RefusedError as refused:
                context.abort(refused.code, str(refused))

        return handle


@contextmanager
def bridged(url, **options):
    bridge = Bridge(url, **options)
    answers = {
        "ServerLive": bridge.server_live,
        "ServerReady": bridge.server_ready,
        "ModelReady": bridge.model_ready,
        "ServerMetadata": bridge.server_metadata,
        "ModelMetadata": bridge.model_metadata,
        "ModelInfer": bridge.model_infer,
        "Check": bridge.health,
    }

    class Handlers(grpc.GenericRpcHandler):
        def service(self, details):
            name = details.method.rpartition("/")[2]
            known = service_methods().get(details.method)
            if name == "ModelStreamInfer":
                return grpc.stream_stream_rpc_method_handler(
                    bridge.stream, known.request.FromString, known.response.SerializeToString
                )
            if known is None or name not in answers:
                return None
            return grpc.unary_unary_rpc_method_handler(
                bridge.unary(name, answers[name]), known.request.FromString, known.response.SerializeToString
            )

    limits = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    server = grpc.server(ThreadPoolExecutor(8), handlers=[Handlers()], options=limits)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    client = Grpc(f"127.0.0.1:{port}", timeout_s=10)
    try:
        yield client
    finally:
        client.close()
        server.stop(None).wait()
        bridge.http.clear()


def failed(url, client, *only):
    report = run(Target(Http(url, timeout_s=10), grpc=client), chosen(only))
    assert [outcome for outcome in report.outcomes if outcome.verdict is not Verdict.SKIP], report.outcomes
    return {outcome.id for outcome in report.outcomes if outcome.verdict is Verdict.FAIL}


def test_a_right_server_passes_every_grpc_check(server):
    with bridged(server) as client:
        assert failed(server, client, "grpc-core", "grpc-infer", "grpc-errors", "grpc-overflow") == set()


def on(method, change):
    def spoil(name, response):
        if name == method:
            change(response)
        return response

    return {"spoil": spoil}


def typed_outputs(response):
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        if output.datatype == "INT32":
            output.contents.int_contents.extend(np.frombuffer(raw, dtype=np.int32).tolist())
    del response.raw_output_contents[:]


def swapped(response):
    first, second = list(response.raw_output_contents)
    response.raw_output_contents[:] = [second, first]


FAULTS = {
    "not live": (on("ServerLive", lambda response: response.Clear()), {"grpc-core.live"}),
    "not ready": (on("ModelReady", lambda response: response.Clear()), {"grpc-core.model-ready"}),
    "another extension": (
        on("ServerMetadata", lambda response: response.extensions.append("x")),
        {"grpc-core.server-metadata"},
    ),
    "another shape in the metadata": (
        on("ModelMetadata", lambda response: response.inputs[0].shape.append(7)),
        {"grpc-core.model-metadata"},
    ),
    "not serving": (on("Check", lambda response: response.Clear()), {"grpc-core.health"}),
    "no model name": (on("ModelInfer", lambda response: response.ClearField("model_name")), {"grpc-infer.names"}),
    "id lost": (
        on("ModelInfer", lambda response: response.ClearField("id")),
        {"grpc-infer.id", "grpc-infer.concurrent", "grpc-infer.stream", "grpc-infer.stream-error"},
    ),
    "typed outputs": (on("ModelInfer", typed_outputs), {"grpc-infer.raw-output"}),
    "outputs changed places": (on("ModelInfer", swapped), {"grpc-infer.add-sub"}),
    "an output without its raw contents": (
        on("ModelInfer", lambda response: response.raw_output_contents.pop()),
        {"grpc-infer.raw", "grpc-infer.typed", "grpc-infer.add-sub"},
    ),
    "no check of contents": (
        {"careless": True},
        {"grpc-errors.raw-too-many", "grpc-errors.raw-and-typed"},
    ),
}


@pytest.mark.parametrize(("options", "expected"), FAULTS.values(), ids=FAULTS)
def test_a_wrong_server_fails_the_checks_of_the_rule(server, options, expected):
    with bridged(server, **options) as client:
        assert failed(server, client, *expected) == expected


def test_without_an_address_grpc_checks_are_skipped(server):
    report = run(Target(Http(server, timeout_s=10)), chosen(["grpc-core"]))
    assert {outcome.reason for outcome in report.outcomes} == {"no --grpc HOST:PORT was given"}


@pytest.mark.parametrize("address", ["", "host", "http://host:1", "host:port"])
def test_what_is_no_address_is_the_users_mistake(address):
    with pytest.raises(InputError, match="is not the address of a gRPC server"):
        Grpc(address, timeout_s=1)


def test_nothing_that_listens_is_said():
    with pytest.raises(TransientError, match="no gRPC server answers"):
        Grpc("127.0.0.1:9", timeout_s=0.3)
