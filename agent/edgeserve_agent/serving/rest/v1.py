"""TensorFlow Serving's REST API and KServe's V1, which share their paths (`/v1/models`).

Where the two and OpenAI's `/v1/models` differ, the answer is the union of what each expects; metadata has TensorFlow
Serving's snake_case names and the camelCase ones that its OVMS client reads. In paths, a version is a release's counter
(or its version), 0 means the active one. `X-Request-Id` is the request's id for feedback, and `edgeserve-explain` works
as in `v2`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

from edgeserve.contracts.errors import EdgeServeError, InputError, TransientError, UnsupportedError
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve.runtimes.base import Tensors
from edgeserve_agent.serving.call import Call
from edgeserve_agent.serving.codec import columns
from edgeserve_agent.serving.codec.head import checked_id
from edgeserve_agent.serving.codec.v1 import (
    SIGNATURE,
    Predict,
    classify_answer,
    read_examples,
    read_predict,
    regress_answer,
)
from edgeserve_agent.serving.dataplane import DataPlane
from edgeserve_agent.serving.messages import JSON, Reply, Request, Response, failure_response, json_response
from edgeserve_agent.serving.rest.api import Route, get, post
from edgeserve_agent.serving.rest.v2 import EXPLAIN, server_timing
from edgeserve_agent.serving.served import ServedRelease

T = TypeVar("T")
Find = Callable[[], ServedRelease]
"""The release that a path names; raises as `DataPlane.find`."""
_TYPES: Final = {
    Datatype.BOOL: "DT_BOOL", Datatype.UINT8: "DT_UINT8", Datatype.UINT16: "DT_UINT16", Datatype.UINT32: "DT_UINT32",
    Datatype.UINT64: "DT_UINT64", Datatype.INT8: "DT_INT8", Datatype.INT16: "DT_INT16", Datatype.INT32: "DT_INT32",
    Datatype.INT64: "DT_INT64", Datatype.FP16: "DT_HALF", Datatype.FP32: "DT_FLOAT", Datatype.FP64: "DT_DOUBLE",
    Datatype.BF16: "DT_BFLOAT16", Datatype.BYTES: "DT_STRING",
}  # fmt: skip


class V1:
    """Both protocols."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane
        self._verbs = {
            "predict": self.predict_request,
            "classify": self._classify,
            "regress": self._regress,
            "explain": self._explain,
        }

    def route(self, parts: list[str]) -> Route | None:
        """The routes below `/v1`, and KServe's `/`."""
        match parts:
            case [] | [""]:
                return get(self._alive)
            case ["v1", "models"]:
                return get(self._models)
            case ["v1", "models", *rest] if rest:
                return self._model_route(rest)
            case _:
                return None

    def _model_route(self, rest: list[str]) -> Route | None:
        last, colon, verb = rest[-1].rpartition(":")
        if colon and verb in self._verbs:
            rest = [*rest[:-1], last]
        else:
            verb = ""
        metadata = not verb and rest[-1] == "metadata" and len(rest) in (2, 4)
        match rest[:-1] if metadata else rest:
            case [model]:
                version, label = "", ""
            case [model, "versions", version]:
                label, version = "", "" if version == "0" else version
            case [model, "labels", label]:
                version = ""
            case _:
                return None
        find = partial(self._plane.find, model, version, label=label)
        if metadata:
            return get(partial(self._metadata, find))
        if not verb:
            return get(partial(self._status, model, version, label))
        return post(partial(self._verbs[verb], find))

    # Inference -----------------------------------------------------------------------------------

    def predict_request(self, find: Find, request: Request, reply: Reply) -> None:
        """Answer a predict request to the release that `find` finds.

        Raises:
            EdgeServeError: It cannot be begun.
        """
        served = find()
        self.predict(served, _read(served, read_predict, request), request, reply)

    def predict(self, served: ServedRelease, predict: Predict, request: Request, reply: Reply) -> None:
        """Answer a predict request that was read."""

        def answer(outputs: Tensors) -> object:
            specs = served.signature.outputs
            if predict.by_rows:
                return {"predictions": columns.to_rows(specs, outputs)}
            return {"outputs": columns.to_columns(specs, outputs)}

        _run(self._plane, served, predict.inputs, answer, request, reply)

    def _classify(self, find: Find, request: Request, reply: Reply) -> None:
        served = find()
        answer = partial(classify_answer, served.signature, served.labels)
        _run(self._plane, served, _read(served, read_examples, request), answer, request, reply)

    def _regress(self, find: Find, request: Request, reply: Reply) -> None:
        served = find()
        answer = partial(regress_answer, served.signature)
        _run(self._plane, served, _read(served, read_examples, request), answer, request, reply)

    def _explain(self, find: Find, _request: Request, _reply: Reply) -> None:
        find()
        raise UnsupportedError("models are not explained here", hint="KServe's explainer is a server of its own")

    # Health and metadata -------------------------------------------------------------------------

    def _alive(self, _request: Request, reply: Reply) -> None:
        reply(json_response(200, {"status": "alive"}))

    def _models(self, _request: Request, reply: Reply) -> None:
        names = self._plane.models()
        reply(json_response(200, {"object": "list", "data": [_listed(name) for name in names], "models": names}))

    def _status(self, model: str, version: str, label: str, _request: Request, reply: Reply) -> None:
        try:
            served = self._plane.find(model, version, label=label)
        except TransientError as error:
            state = _version_status("0", "LOADING", "UNAVAILABLE", error.message)
            reply(json_response(503, {**_listed(model), "ready": False, **_both("model_version_status", [state])}))
            return
        found = [served] if version or label else self._plane.loaded(model)
        states = [_version_status(str(one.number), "AVAILABLE", "OK", "") for one in found]
        reply(json_response(200, {**_listed(model), "ready": True, **_both("model_version_status", states)}))

    def _metadata(self, find: Find, _request: Request, reply: Reply) -> None:
        served = find()
        identity, signature = served.identity, served.signature
        spec = {"name": identity.model, **_both("signature_name", ""), "version": str(served.number)}
        described = {
            "inputs": {one.name: _tensor_info(one) for one in signature.inputs},
            "outputs": {one.name: _tensor_info(one) for one in signature.outputs},
            **_both("method_name", "tensorflow/serving/predict"),
        }
        definition = _both("signature_def", {SIGNATURE: described})
        document = {**_both("model_spec", spec), "metadata": _both("signature_def", definition)}
        reply(json_response(200, document))


def _read(served: ServedRelease, read: Callable[[Signature, bytes | memoryview], T], request: Request) -> T:
    try:
        return read(served.signature, request.body)
    except InputError:
        served.counters.rejected += 1
        raise


def _run(
    plane: DataPlane,
    served: ServedRelease,
    inputs: Tensors,
    answer: Callable[[Tensors], object],
    request: Request,
    reply: Reply,
) -> None:
    def done(call: Call, outcome: Tensors | EdgeServeError) -> None:
        headers = b"edgeserve-release: %s\r\n" % served.identity.release.encode()
        try:
            if isinstance(outcome, EdgeServeError):
                raise outcome
            if call.with_timing:
                headers += server_timing(call)
            body = columns.encode(answer(outcome))
        except EdgeServeError as error:
            reply(failure_response(error, headers=headers))
            return
        reply(Response(status=200, content_type=JSON, chunks=(body,), headers=headers))

    request_id = checked_id(request.headers.get(b"x-request-id", b"").decode("latin-1"))
    plane.infer(Call(served, inputs, done, request_id, with_timing=EXPLAIN in request.headers))


def _listed(name: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "edgeserve", "name": name}


def _version_status(version: str, state: str, code: str, message: str) -> dict[str, object]:
    return {
        "version": version,
        "state": state,
        "status": {**_both("error_code", code), **_both("error_message", message)},
    }


def _tensor_info(spec: TensorSpec) -> dict[str, object]:
    shape = {"dim": [{"size": str(size), "name": ""} for size in spec.shape], **_both("unknown_rank", False)}
    return {"dtype": _TYPES[spec.datatype], **_both("tensor_shape", shape), "name": f"{spec.name}:0"}


def _both(name: str, value: object) -> dict[str, object]:
    """A field under its snake_case and its camelCase name."""
    first, *rest = name.split("_")
    return {name: value, first + "".join(word.capitalize() for word in rest): value}
