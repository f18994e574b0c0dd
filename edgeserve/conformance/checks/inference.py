"""Area `core`: inference requests and answers in JSON."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from typing import BinaryIO

import numpy as np

from edgeserve.conformance.check import Level, Skip, Violation, check
from edgeserve.conformance.http import model_path
from edgeserve.conformance.infer import build, head, outputs_of, same, show
from edgeserve.conformance.target import Model, Spec, Target
from edgeserve.contracts.tensors import Datatype


@check("core.infer", level=Level.MUST, source="OIP REST, Inference")
def infer(target: Target) -> None:
    """A right request is answered with exactly 200 and outputs whose shape, datatype and data fit one another."""
    outputs_of(target.infer(target.model))


@check("core.infer-every-model", level=Level.MUST, source="OIP REST, Model Metadata: inputs required by the model")
def infer_every_model(target: Target) -> None:
    """Each model takes inputs that are as its metadata says."""
    for model in target.models:
        if model.json_able and model.inputs and model.name != "nan_inf":
            outputs_of(target.infer(model))


@check("core.model-name", level=Level.MUST, source="OIP REST, Inference Response; kserve's client reads it")
def model_name(target: Target) -> None:
    """The answer names the model that was asked."""
    answer = target.infer(target.model)
    document, _ = head(answer)
    answer.must(document.get("model_name") == target.model.name, f'"model_name": {target.model.name!r}')


@check("core.model-version", level=Level.MUST, source="OIP REST, Inference Response")
def model_version(target: Target) -> None:
    """The answer's "model_version", where there is one, is a text, and one of those that the metadata lists."""
    answer = target.infer(target.model)
    document, _ = head(answer)
    version = document.get("model_version")
    if version is None:
        raise Skip("the answer has no model_version, which is optional")
    answer.must(isinstance(version, str), 'a text "model_version"')
    versions = target.model.versions
    answer.must(not versions or version in versions, f'"model_version" to be one of {list(versions)}')


@check("core.infer-version", level=Level.MUST, source="OIP REST, Inference")
def infer_version(target: Target) -> None:
    """POST /v2/models/M/versions/V/infer is answered by that version, for each that the metadata lists."""
    if not target.model.versions:
        raise Skip(f"the metadata of {target.model.name!r} lists no versions")
    for version in target.model.versions:
        answer = target.infer(target.model, version=version)
        document, _ = head(answer)
        answer.must(document.get("model_version") in (version, None), f'"model_version": {version!r}')


@check("core.all-outputs", level=Level.MUST, source="OIP REST, Inference Request: outputs")
def all_outputs(target: Target) -> None:
    """All outputs of the metadata come when none is requested, with the datatypes and shapes that it gives."""
    if not target.model.outputs:
        raise Skip(f"the metadata of {target.model.name!r} lists no outputs")
    answer = target.infer(target.model)
    found = outputs_of(answer)
    wanted = {spec.name: spec for spec in target.model.outputs}
    answer.must(found.keys() == wanted.keys(), f"the outputs {sorted(wanted)}", f"{sorted(found)}")
    for name, spec in wanted.items():
        answer.must(found[name].datatype is spec.datatype, f"datatype {spec.datatype.value} for {name!r}")
        answer.must(
            _fits(spec, found[name].shape), f"output {name!r} of shape {list(spec.shape)}", f"{list(found[name].shape)}"
        )


@check("core.requested-output", level=Level.MUST, source="OIP REST, Inference Request: outputs")
def requested_output(target: Target) -> None:
    """Only the outputs that are requested come, each of them alone."""
    model = _with_outputs(target, 2)
    for spec in model.outputs:
        answer = target.infer(model, outputs=[{"name": spec.name}])
        found = outputs_of(answer)
        answer.must(list(found) == [spec.name], f"only the output {spec.name!r}", f"{list(found)}")


@check("core.requested-outputs-all", level=Level.MUST, source="OIP REST, Inference Request: outputs")
def requested_outputs_all(target: Target) -> None:
    """Requesting every output by name gives what requesting none gives."""
    model = _with_outputs(target, 1)
    default = target.outputs(model)
    answer = target.infer(model, outputs=[{"name": spec.name} for spec in model.outputs])
    found = outputs_of(answer)
    for name, output in default.items():
        answer.must(name in found and same(found[name].array, output.array), f"output {name!r}: {show(output.array)}")


@check("core.requested-outputs-reordered", level=Level.MUST, source="OIP REST, Inference Request: outputs")
def requested_outputs_reordered(target: Target) -> None:
    """Outputs keep their names and data when they are requested in another order."""
    model = _with_outputs(target, 2)
    default = target.outputs(model)
    answer = target.infer(model, outputs=[{"name": spec.name} for spec in reversed(model.outputs)])
    found = outputs_of(answer)
    for name, output in default.items():
        answer.must(name in found and same(found[name].array, output.array), f"output {name!r}: {show(output.array)}")


@check("core.nested-data", level=Level.MUST, source="OIP REST, Tensor Data: natural or flattened")
def nested_data(target: Target) -> None:
    """Data in their natural dimensions give the same answer as flat data."""
    givens = [replace(given, nested=True) for given in target.model.givens()]
    if not any(given.array.ndim > 1 for given in givens):
        raise Skip("the model's inputs have one dimension: both forms are the same")
    flat = target.outputs(target.model)
    answer = target.infer(target.model, givens)
    for name, output in outputs_of(answer).items():
        answer.must(same(output.array, flat[name].array), f"as for flat data: {show(flat[name].array)}")


@check("core.nested-order", level=Level.MUST, source="OIP REST, Tensor Data: row-major")
def nested_order(target: Target) -> None:
    """Nested data are read row by row: an identity model returns [[1, 2, 3], [4, 5, 6]] flat as 1 to 6."""
    model = target.identity(Datatype.FP32, dynamic=2)
    if len(model.inputs[0].shape) != 2:
        raise Skip("needs an FP32 identity model of shape [-1, -1]")
    array = np.arange(1, 7, dtype=np.float32).reshape(2, 3)
    answer = target.infer(model, [replace(model.givens()[0], array=array, nested=True)])
    output = outputs_of(answer)[model.outputs[0].name]
    answer.must(same(output.array, array), f"output of {show(array)}", show(output.array))


@check("core.add-sub", level=Level.MUST, source="Triton's L0_http: the model `simple`")
def add_sub(target: Target) -> None:
    """The sum and the difference of two inputs come under their own names."""
    model = target.add_sub()
    left = np.arange(16, dtype=np.int32).reshape(1, 16)
    right = np.full((1, 16), 3, dtype=np.int32)
    arrays = {"INPUT0": left, "INPUT1": right}
    # Inputs are known by name, not by their place: sent in the other order.
    givens = [replace(given, array=arrays[given.name]) for given in reversed(model.givens())]
    answer = target.infer(model, givens)
    found = outputs_of(answer)
    for name, wanted in (("OUTPUT0", left + right), ("OUTPUT1", left - right)):
        answer.must(same(found[name].array, wanted), f"{name}: {show(wanted)}", show(found[name].array))


@check("core.batch", level=Level.MUST, source="OIP REST, Request Input: shape and data of the entire batch")
def batch(target: Target) -> None:
    """A batch of three rows gives three rows, in their order."""
    model = target.add_sub()
    if any(spec.shape[0] != -1 for spec in model.inputs):
        raise Skip("the first dimension of the model 'simple' does not vary")
    rows = np.arange(48, dtype=np.int32).reshape(3, 16)
    answer = target.infer(model, [replace(given, array=rows) for given in model.givens()])
    found = outputs_of(answer)["OUTPUT0"].array
    answer.must(same(found, rows + rows), f"OUTPUT0: {show(rows + rows)}", show(found))


@check("core.no-content-type", level=Level.SHOULD, source="tritonclient.http sends no Content-Type")
def no_content_type(target: Target) -> None:
    """A JSON request without Content-Type is answered."""
    body, _ = build(target.model.givens())
    outputs_of(target.http.post(f"{model_path(target.model.name)}/infer", body=body))


@check("core.other-content-type", level=Level.SHOULD, source="tritonclient (C++) sends application/octet-stream")
def other_content_type(target: Target) -> None:
    """A JSON request with the content type application/octet-stream is answered."""
    outputs_of(target.infer(target.model, headers={"Content-Type": "application/octet-stream"}))


@check("core.chunked-request", level=Level.MUST, source="RFC 9112, 7.1; Triton's L0_http: content_encoding_chunked")
def chunked_request(target: Target) -> None:
    """A request body in chunks is read."""
    body, headers = build(target.model.givens())
    middle = len(body) // 2
    parts: Iterator[bytes] = iter((body[:1], body[1:middle], body[middle:]))
    outputs_of(target.http.post(f"{model_path(target.model.name)}/infer", body=parts, headers=headers))


@check("core.many-chunks", level=Level.SHOULD, source="Triton's L0_http: http_request_many_chunks")
def many_chunks(target: Target) -> None:
    """A request body in chunks of one byte is read."""
    body, headers = build(target.model.givens())
    parts = (body[at : at + 1] for at in range(len(body)))
    outputs_of(target.http.post(f"{model_path(target.model.name)}/infer", body=parts, headers=headers))


@check("core.whitespace", level=Level.MUST, source="RFC 8259, 2")
def whitespace(target: Target) -> None:
    """JSON with line breaks and spaces between its parts is read."""
    body, headers = build(target.model.givens())
    spaced = json.dumps(json.loads(body), indent=4).encode()
    outputs_of(
        target.http.post(f"{model_path(target.model.name)}/infer", body=b"\r\n\t " + spaced + b"\n", headers=headers)
    )


@check("core.key-order", level=Level.MUST, source="RFC 8259, 4: objects are unordered")
def key_order(target: Target) -> None:
    """The order of the keys of a request does not matter."""
    body, headers = build(target.model.givens(), outputs=[{"name": spec.name} for spec in target.model.outputs] or None)
    document = json.loads(body)
    document["inputs"] = [dict(reversed(list(entry.items()))) for entry in document["inputs"]]
    turned = json.dumps(dict(reversed(list(document.items())))).encode()
    outputs_of(target.http.post(f"{model_path(target.model.name)}/infer", body=turned, headers=headers))


@check("core.keep-alive", level=Level.SHOULD, source="RFC 9112, 9.3; every client keeps connections")
def keep_alive(target: Target) -> None:
    """A connection answers a second request, also after an error."""
    request = b"GET %s HTTP/1.1\r\nHost: %s\r\n\r\n"
    host = target.http.host.encode()

    def talk(connection: socket.socket) -> None:
        reader = connection.makefile("rb")
        for path, wanted in ((f"/v2/models/{_ABSENT}", 4), ("/v2/health/live", 2), ("/v2/health/live", 2)):
            connection.sendall(request % (target.http.target(path), host))
            line = reader.readline()
            got = line.decode("latin-1").strip() or "the connection was closed"
            if line[9:10] != str(wanted).encode():
                raise Violation(sent=f"GET {path}, kept alive", expected=f"status {wanted}xx", got=got)
            _read_rest(reader)

    try:
        target.http.on_one_connection(talk)
    except OSError as error:
        raise Violation(sent="three requests on one connection", expected="three answers", got=repr(error)) from error


@check("core.unknown-parameters", level=Level.SHOULD, source="OIP REST, Parameters: servers define their own")
def unknown_parameters(target: Target) -> None:
    """Parameters that the server does not know, as text, number or boolean, do not stop a request."""
    parameters = {"conformance_text": "x", "conformance_number": 7, "conformance_flag": True}
    outputs_of(target.infer(target.model, parameters=parameters))


@check("core.empty-parameters", level=Level.MUST, source="OIP REST, Parameters: zero or more")
def empty_parameters(target: Target) -> None:
    """Empty objects of parameters, at the request, an input and an output, change nothing."""
    givens = [replace(given, changes={"parameters": {}}) for given in target.model.givens()]
    outputs = [{"name": spec.name, "parameters": {}} for spec in target.model.outputs] or None
    outputs_of(target.infer(target.model, givens, outputs=outputs, parameters={}))


@check("core.empty-outputs", level=Level.SHOULD, source="OIP REST, Inference Request; clients send an empty list")
def empty_outputs(target: Target) -> None:
    """An empty list of requested outputs means all outputs."""
    answer = target.infer(target.model, outputs=[])
    found = outputs_of(answer)
    answer.must(len(found) == len(target.outputs(target.model)), "all outputs", f"{list(found)}")


@check("core.same-answer-twice", level=Level.MUST, source="OIP REST, Inference")
def same_answer_twice(target: Target) -> None:
    """A request with other data in between does not change what a request is answered."""
    model = target.identity(Datatype.FP32)
    first = np.full(model.inputs[0].concrete(), 0.5, dtype=np.float32)
    for array in (first, first * 3, first):
        answer = target.infer(model, [replace(model.givens()[0], array=array)])
        found = outputs_of(answer)[model.outputs[0].name].array
        answer.must(same(found, array), f"output of {show(array)}", show(found))


_ABSENT = "conformance-no-such-model"


def _with_outputs(target: Target, least: int) -> Model:
    for model in (target.model, *target.models):
        if len(model.outputs) >= least and model.json_able:
            return model
    raise Skip(f"needs a model with {least} outputs in its metadata")


def _fits(spec: Spec, shape: tuple[int, ...]) -> bool:
    return len(shape) == len(spec.shape) and all(
        want in (-1, have) for want, have in zip(spec.shape, shape, strict=True)
    )


def _read_rest(reader: BinaryIO) -> None:
    """Read one answer's headers and body, by its length or its chunks."""
    length, chunked = 0, False
    while (line := reader.readline()) not in (b"\r\n", b"\n", b""):
        name, _, value = line.decode("latin-1").lower().partition(":")
        if name == "content-length":
            length = int(value)
        chunked = chunked or (name == "transfer-encoding" and "chunked" in value)
    if not chunked:
        reader.read(length)
        return
    while size := int(reader.readline().split(b";")[0] or b"0", 16):
        reader.read(size + 2)
    reader.readline()
