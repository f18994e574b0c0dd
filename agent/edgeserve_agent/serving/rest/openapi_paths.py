"""Paths of the REST dialects in the words of OpenAPI 3.1. Pure data."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final

from edgeserve_agent.serving.rest.openapi_schemas import Schema, ref

Operation = dict[str, Any]
PathItem = dict[str, Operation]

_VERSIONS: Final = ("", "/versions/{version}")
_LABELS: Final = (*_VERSIONS, "/labels/{label}")
_BINARY: Final[Schema] = {"type": "string", "contentMediaType": "application/octet-stream"}
_SAGEMAKER: Final = "application/vnd.sagemaker-triton.binary+json"
_MEDIA: Final = ("image/jpeg", "image/png", "image/bmp", "image/webp", "audio/wav")

# Statuses besides 200; every one is `Error`. A path with a model may not find it, or find it not ready.
_BODY: Final = (400, 413, 415)
_MODEL: Final = (404, 503)
_INFER: Final = (*_BODY, *_MODEL, 500)
_REPOSITORY: Final = (*_BODY, 404, 409, 500, 501, 503)


def _content(schema: str, media: str = "application/json") -> dict[str, Any]:
    return {media: {"schema": ref(schema)}}


def _responses(answer: dict[str, Any], errors: tuple[int, ...]) -> dict[str, Any]:
    refused = {
        str(code): {"description": HTTPStatus(code).phrase, "content": _content("Error")}
        for code in sorted(set(errors))
    }
    return {"200": {"description": "OK", **({"content": answer} if answer else {})}, **refused}


def _read(tag: str, summary: str, schema: str, *errors: int) -> Operation:
    return {"tags": [tag], "summary": summary, "responses": _responses(_content(schema), errors)}


def _send(
    tag: str,
    summary: str,
    body: dict[str, Any] | None,
    answer: dict[str, Any],
    *errors: int,
    needed: bool = True,
    **more: Any,  # noqa: ANN401 - parts of an operation
) -> Operation:
    operation: Operation = {"tags": [tag], "summary": summary, **more, "responses": _responses(answer, errors)}
    if body is not None:
        operation["requestBody"] = {"required": needed, "content": body}
    return operation


def _parameter(where: str, name: str, description: str, schema: Schema | None = None) -> dict[str, Any]:
    return {"name": name, "in": where, "description": description, "schema": schema or {"type": "string"}}


def _answers_503(operation: Operation, schema: str) -> Operation:
    """The operation with an answer of its own while something is not ready."""
    responses = {**operation["responses"], "503": {"description": "Not ready", "content": _content(schema)}}
    return {**operation, "responses": responses}


_INFERENCE_HEADERS: Final = [
    _parameter(
        "header",
        "Inference-Header-Content-Length",
        "Bytes of JSON before binary tensors; 0 = the body is the only input.",
        {"type": "integer", "minimum": 0},
    ),
    _parameter("header", "edgeserve-explain", "`latency`: say in Server-Timing how the time was spent."),
    _parameter("header", "X-Request-Id", "Of a picture or sound: the id for feedback."),
    _parameter("query", "id", "As X-Request-Id."),
    _parameter("query", "outputs", "Of a picture or sound: 1 = with the tensors, too.", {"enum": ["0", "1"]}),
]
_INFER_BODY: Final = {
    **_content("InferRequest"),
    "application/octet-stream": {"schema": _BINARY},
    **{media: {"schema": {"type": "string", "contentMediaType": media}} for media in _MEDIA},
}
_INFER_ANSWER: Final = {**_content("InferResponse"), "application/octet-stream": {"schema": _BINARY}}

_V2: Final = "Open Inference Protocol v2"
_V1: Final = "TensorFlow Serving and KServe V1"
_TRITON: Final = "Triton's extensions"
_CLOUD: Final = "SageMaker and Vertex AI"
_OWN: Final = "edgeserve"


def _versioned(base: str, suffix: str, item: PathItem, versions: tuple[str, ...] = _VERSIONS) -> dict[str, PathItem]:
    return {f"{base}{version}{suffix}": item for version in versions}


def _v2() -> dict[str, PathItem]:
    infer = _send(_V2, "Infer", _INFER_BODY, _INFER_ANSWER, *_INFER, 501, parameters=_INFERENCE_HEADERS)
    ready = _answers_503(_read(_V2, "Whether a model is ready", "ModelReady", 404), "ModelReady")
    feedback = {
        "application/json": {"schema": {"anyOf": [ref("Feedback"), ref("FeedbackBatch")]}},
    }
    model = "/v2/models/{model}"
    return {
        "/v2": {"get": _read(_V2, "The server and its extensions", "ServerMetadata")},
        "/v2/health/live": {"get": _read(_V2, "Whether the server runs", "ServerLive")},
        "/v2/health/ready": {
            "get": _answers_503(_read(_V2, "Whether all models are ready", "ServerReady"), "ServerReady")
        },
        "/v2/models": {"get": _read(_V2, "Names of the models", "ModelNames")},
        **_versioned(model, "", {"get": _read(_V2, "Inputs and outputs of a model", "ModelMetadata", *_MODEL)}),
        **_versioned(model, "/ready", {"get": ready}),
        **_versioned(model, "/infer", {"post": infer}),
        f"{model}/feedback": {
            "post": _send(
                _OWN, "True labels of recent requests", feedback, _content("FeedbackCounts"), *_BODY, *_MODEL, 409
            )
        },
    }


def _triton() -> dict[str, PathItem]:
    def post(summary: str, body: str, answer: str | None, *errors: int, needed: bool = True) -> PathItem:
        answered = _content(answer) if answer else {}
        return {"post": _send(_TRITON, summary, _content(body), answered, *errors, needed=needed)}

    def setting(what: str, model: bool) -> PathItem:
        known = _MODEL if model else ()
        change = _send(
            _TRITON, f"Change {what}", _content("TraceChanges"), _content("TraceSettings"), *_BODY, *known, 501,
            needed=False,
        )  # fmt: skip
        return {"get": _read(_TRITON, f"Read {what}", "TraceSettings", *known), "post": change}

    index = post("States of all models", "RepositoryIndexRequest", "RepositoryIndex", *_BODY, needed=False)
    load = post("Load a model, or load it anew", "RepositoryLoadRequest", None, *_REPOSITORY, needed=False)
    unload = post("Unload a model", "RepositoryUnloadRequest", None, *_REPOSITORY, needed=False)
    change_log = _send(
        _TRITON, "Change what is logged", _content("LogChanges"), _content("LogSettings"), *_BODY, 501, needed=False
    )
    statistics = _read(_TRITON, "Counters", "Statistics")
    of_model = {"get": _read(_TRITON, "Counters of a model", "Statistics", *_MODEL)}
    config = {"get": _read(_TRITON, "How a model is served", "ModelConfig", *_MODEL)}
    found = {
        "/v2/models/stats": {"get": statistics},
        **_versioned("/v2/models/{model}", "/stats", of_model),
        **_versioned("/v2/models/{model}", "/config", config),
        "/v2/trace/setting": setting("the trace settings", model=False),
        "/v2/models/{model}/trace/setting": setting("a model's trace settings", model=True),
        "/v2/logging": {"get": _read(_TRITON, "What is logged", "LogSettings"), "post": change_log},
    }
    for repository in ("/v2/repository", "/v2/repository/{repository}"):
        found[f"{repository}/index"] = index
        found[f"{repository}/models/{{model}}/load"] = load
        found[f"{repository}/models/{{model}}/unload"] = unload
    for kind, memory in (("system", "/v2/systemsharedmemory"), ("CUDA", "/v2/cudasharedmemory")):
        status = {"get": _read(_TRITON, f"Registered {kind} memory", "SharedMemoryStatus", 400)}
        unregister = {"post": _send(_TRITON, f"Forget {kind} memory", None, _content("Nothing"))}
        register = post(f"Register {kind} memory", "SharedMemoryRegistration", "Nothing", *_BODY, 404, 409, 500, 501)
        found |= {
            f"{memory}/status": status,
            f"{memory}/region/{{region}}/status": status,
            f"{memory}/unregister": unregister,
            f"{memory}/region/{{region}}/unregister": unregister,
            f"{memory}/region/{{region}}/register": register,
        }
    return found


def _v1() -> dict[str, PathItem]:
    def verb(summary: str, body: str, answer: str) -> PathItem:
        headers = _INFERENCE_HEADERS[1:3]
        return {"post": _send(_V1, summary, _content(body), _content(answer), *_INFER, parameters=headers)}

    explain = {"post": _send(_V1, "Not supported", None, {}, *_BODY, *_MODEL, 501)}
    model = "/v1/models/{model}"
    status = _answers_503(_read(_V1, "States of a model's versions", "V1ModelStatus", 404), "V1ModelStatus")
    metadata = {"get": _read(_V1, "Signature of a model", "V1Metadata", *_MODEL)}
    return {
        "/": {"get": _read(_V1, "Whether the server runs", "Alive")},
        "/v1/models": {"get": _read(_V1, "Names of the models", "V1Models")},
        **_versioned(model, "", {"get": status}, _LABELS),
        **_versioned(model, "/metadata", metadata, _LABELS),
        **_versioned(model, ":predict", verb("Infer", "PredictRequest", "PredictResponse"), _LABELS),
        **_versioned(model, ":classify", verb("Classify", "ExamplesRequest", "ClassifyResponse"), _LABELS),
        **_versioned(model, ":regress", verb("Regress", "ExamplesRequest", "RegressResponse"), _LABELS),
        **_versioned(model, ":explain", explain, _LABELS),
    }


def _cloud() -> dict[str, PathItem]:
    body = {
        "application/json": {"schema": {"anyOf": [ref("InferRequest"), ref("PredictRequest")]}},
        "text/csv": {"schema": {"type": "string"}},
        _SAGEMAKER: {"schema": _BINARY},
        **{media: _INFER_BODY[media] for media in _MEDIA},
    }
    answer = {
        "application/json": {"schema": {"anyOf": [ref("InferResponse"), ref("PredictResponse")]}},
        _SAGEMAKER: {"schema": _BINARY},
    }
    invoke = _send(_CLOUD, "Infer", body, answer, *_INFER, 501)
    target = _parameter("header", "X-Amzn-SageMaker-Target-Model", "The model, where there are several.")
    load = _send(_CLOUD, "Load a model", _content("CloudLoadRequest"), {}, *_REPOSITORY)
    models = {"get": _read(_CLOUD, "Loaded models", "CloudModels"), "post": load}
    unload = _send(_CLOUD, "Unload a model", None, {}, *_REPOSITORY)
    return {
        "/ping": {"get": _answers_503(_read(_CLOUD, "Whether all models are ready", "Ping"), "Ping")},
        "/invocations": {"post": {**invoke, "parameters": [target]}},
        "/models": models,
        "/models/{model}": {"get": _read(_CLOUD, "A loaded model", "CloudModel", 404), "delete": unload},
        "/models/{model}/invoke": {"post": invoke},
    }


def _own() -> dict[str, PathItem]:
    def text(media: str, schema: Schema, summary: str) -> PathItem:
        return {"get": _send(_OWN, summary, None, {media: {"schema": schema}})}

    return {
        "/metrics": text("text/plain", {"type": "string"}, "Metrics for Prometheus"),
        "/openapi.json": text("application/json", {"type": "object"}, "This document"),
    }


PATHS: Final[dict[str, PathItem]] = {**_v2(), **_triton(), **_v1(), **_cloud(), **_own()}
"""By template."""
TAGS: Final = (_V2, _TRITON, _V1, _CLOUD, _OWN)
PATH_PARAMETERS: Final = {
    "model": "Name of a model.",
    "version": "Version of a release, or its counter; 0 in /v1 = the one that answers.",
    "label": "`stable` (the one that answers), `candidate`, or a label of its own.",
    "repository": "Not looked at: there is one repository.",
    "region": "Name of a region of shared memory.",
}
"""What stands in braces."""
