"""Containers' conventions of two clouds: SageMaker (`/ping`, `/invocations`, `/models`) and Vertex AI (`AIP_*` routes).

`/invocations` takes what the model's other paths take: Open Inference Protocol v2 (JSON, or binary with Triton's
`application/vnd.sagemaker-triton.binary+json;json-header-size=N`), `instances` or `inputs` as TensorFlow Serving, rows
of CSV, or a picture or sound. The model is the only one there is, or the one named in
`X-Amzn-SageMaker-Target-Model`. `/models` is SageMaker's "Multi-Model Endpoints" contract: the repository finds a model
by its name, its `url` is not looked at.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import partial
from typing import Final

import msgspec

from edgeserve.contracts.errors import ConflictError, InputError, NotFoundError
from edgeserve.contracts.tensors import Datatype, Signature
from edgeserve.runtimes.base import Tensors
from edgeserve_agent.serving.codec import columns
from edgeserve_agent.serving.codec.v1 import Predict
from edgeserve_agent.serving.dataplane import DataPlane
from edgeserve_agent.serving.messages import OCTETS, Answer, RenderedResponse, Reply, Request, Response, json_response
from edgeserve_agent.serving.rest.api import Route, get, post
from edgeserve_agent.serving.rest.media import is_file
from edgeserve_agent.serving.rest.repository import RepositoryApi
from edgeserve_agent.serving.rest.v1 import V1
from edgeserve_agent.serving.rest.v2 import HEAD_LENGTH, V2

_TARGET: Final = b"x-amzn-sagemaker-target-model"
_BINARY: Final = re.compile(rb"application/vnd\.sagemaker-triton\.binary\+json;\s*json-header-size=(\d{1,12})\s*\Z")
_BINARY_TYPE: Final = b"application/vnd.sagemaker-triton.binary+json;json-header-size="
_LENGTH_LINE: Final = re.compile(rb"Inference-Header-Content-Length: (\d+)\r\n")


class _Model(msgspec.Struct, frozen=True, kw_only=True):
    """Body of `POST /models`."""

    model_name: str
    url: str = ""


class _Named(msgspec.Struct, frozen=True):
    """An input as Open Inference Protocol v2 has it."""

    name: str
    shape: list[int]


class CloudApi:
    """Both conventions.

    Args:
        plane: What answers.
        v1: Answers `instances` and `inputs`.
        v2: Answers the rest.
        repository: Loads and unloads.
        environment: Of the process: Vertex AI says in `AIP_HEALTH_ROUTE` and `AIP_PREDICT_ROUTE` what it calls.
    """

    def __init__(
        self, plane: DataPlane, v1: V1, v2: V2, repository: RepositoryApi, environment: Mapping[str, str]
    ) -> None:
        self._plane = plane
        self._v1 = v1
        self._v2 = v2
        self._repository = repository
        health, predict = environment.get("AIP_HEALTH_ROUTE", ""), environment.get("AIP_PREDICT_ROUTE", "")
        self.aliases: dict[str, str] = {
            **({health: "/ping"} if health.strip("/") else {}),
            **({predict: "/invocations"} if predict.strip("/") else {}),
        }
        """Paths that the environment gave -> the path of ours with the same meaning."""
        self._aliases = {tuple(path.strip("/").split("/")): [own.strip("/")] for path, own in self.aliases.items()}

    def route(self, parts: list[str]) -> Route | None:
        """SageMaker's paths, and those of the environment."""
        match self._aliases.get(tuple(parts), parts):
            case ["ping"]:
                return get(self._ping)
            case ["invocations"]:
                return post(self._invoke_any)
            case ["models"]:
                return Route({"GET": self._list, "POST": self._load})
            case ["models", model]:
                return Route({"GET": partial(self._describe, model), "DELETE": partial(self._unload, model)})
            case ["models", model, "invoke"]:
                return post(partial(self._invoke, model))
            case _:
                return None

    def _ping(self, _request: Request, reply: Reply) -> None:
        ready = self._plane.ready() and not self._v2.draining
        reply(json_response(200 if ready else 503, {"ready": ready}))

    # Inference -----------------------------------------------------------------------------------

    def _invoke_any(self, request: Request, reply: Reply) -> None:
        named = request.headers.get(_TARGET)
        models = [named.decode("latin-1")] if named is not None else self._plane.models()
        if len(models) != 1:
            known = ", ".join(models[:8])
            raise InputError(
                f"{len(models)} models are served here ({known})", hint="name one in X-Amzn-SageMaker-Target-Model"
            )
        self._invoke(models[0], request, reply)

    def _invoke(self, model: str, request: Request, reply: Reply) -> None:
        content_type = request.headers.get(b"content-type", b"").strip()
        binary = _BINARY.match(content_type)
        if content_type.partition(b";")[0].strip().lower() == b"text/csv":
            self._csv(model, request, reply)
        elif not binary and not is_file(request) and _is_v1(request.body):
            self._v1.predict_request(partial(self._plane.find, model), request, reply)
        else:
            if binary:
                request.headers = {**request.headers, HEAD_LENGTH: binary[1]}
            self._v2.infer(model, "", request, partial(_as_sagemaker, reply))

    def _csv(self, model: str, request: Request, reply: Reply) -> None:
        served = self._plane.find(model)
        try:
            inputs = _csv_inputs(served.signature, request.body)
        except InputError:
            served.counters.rejected += 1
            raise
        self._v1.predict(served, Predict(inputs, by_rows=True), request, reply)

    # Multi-Model Endpoints -----------------------------------------------------------------------

    def _list(self, _request: Request, reply: Reply) -> None:
        models = [_described(model) for model in self._plane.models() if self._plane.is_active(model)]
        reply(json_response(200, {"models": models}))

    def _load(self, request: Request, reply: Reply) -> None:
        try:
            wanted = msgspec.json.decode(request.body, type=_Model)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InputError(f'the body is not {{"model_name": ..., "url": ...}}: {error}') from error
        if self._plane.is_active(wanted.model_name):
            raise ConflictError(f"model {wanted.model_name[:80]!r} is loaded already")
        self._repository.load(wanted.model_name, reply)

    def _describe(self, model: str, _request: Request, reply: Reply) -> None:
        self._loaded(model)
        reply(json_response(200, _described(model)))

    def _unload(self, model: str, _request: Request, reply: Reply) -> None:
        self._loaded(model)
        self._repository.unload(model, reply)

    def _loaded(self, model: str) -> None:
        if not self._plane.is_active(model):
            raise NotFoundError(f"model {model[:80]!r} is not loaded", hint="POST /models loads it")


def _described(model: str) -> dict[str, str]:
    return {"modelName": model, "modelUrl": ""}


def _csv_inputs(signature: Signature, body: bytes | memoryview) -> Tensors:
    """Rows of CSV, without a line of names, as the only input of a model: [rows, columns].

    Raises:
        InputError: The model has several inputs, or a value is not of its datatype, or rows differ in length.
    """
    if len(signature.inputs) != 1:
        names = ", ".join(spec.name for spec in signature.inputs)
        raise InputError(f"CSV is for models with one input, this has {names}")
    spec = signature.inputs[0]
    number = float if spec.datatype.value.startswith("FP") else int
    convert = str if spec.datatype is Datatype.BYTES else number
    try:
        lines = bytes(body).decode().splitlines()
        rows = [[convert(value) for value in line.split(",")] for line in lines if line.strip()]
    except ValueError as error:
        raise InputError(f"the body is not CSV of {spec.datatype.value}: {error}") from error
    return {spec.name: columns.tensor(spec, json.dumps(rows).encode())}


def _is_v1(body: bytes | memoryview) -> bool:
    """Whether a body is TensorFlow Serving's: its inputs are not a list of objects with names."""
    try:
        found = columns.fields(body)
    except InputError:
        return False
    if "instances" in found:
        return True
    try:
        msgspec.json.decode(found.get("inputs", b"null"), type=list[_Named])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return "inputs" in found
    return False


def _as_sagemaker(reply: Reply, answer: Answer) -> None:
    """Say in the content type where the binary tensors of an answer begin."""
    response = answer.opened() if isinstance(answer, RenderedResponse) else answer
    length = _LENGTH_LINE.search(response.headers)
    if response.content_type != OCTETS or length is None:
        reply(response)
        return
    content_type = _BINARY_TYPE + length[1]
    reply(Response(status=response.status, content_type=content_type, chunks=response.chunks, headers=response.headers))
