"""Open Inference Protocol v2 over HTTP: paths, statuses and documents. What they mean is in the data plane.

Model versions in paths are release versions. Answers carry `edgeserve-release`, the digest of the release that gave
them. Beyond the protocol: `GET /v2/models`, `POST /v2/models/M/feedback`, `GET /metrics` and, as body of an inference
request, a picture or WAV file (`media`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import unquote

import msgspec

from edgeserve import __version__
from edgeserve.contracts.errors import ConflictError, EdgeServeError, InputError, NotFoundError, TransientError
from edgeserve.contracts.limits import FEEDBACK_RING
from edgeserve.contracts.tensors import TensorSpec
from edgeserve.runtimes.base import Tensors
from edgeserve_agent.serving.dataplane import DataPlane, ServedRelease
from edgeserve_agent.serving.feedback import Labels, Verdict
from edgeserve_agent.serving.media import Media, is_file
from edgeserve_agent.serving.messages import (
    JSON,
    OCTETS,
    Reply,
    Request,
    Response,
    error_response,
    failure_response,
    json_response,
)
from edgeserve_agent.serving.metrics import CONTENT_TYPE, prometheus
from edgeserve_agent.serving.tensors import RequestDecoder, encode_response

_HEAD_LENGTH: Final = b"inference-header-content-length"
_MAX_ROUTES: Final = 1024
_MAX_ROUTE_BYTES: Final = 512


class Feedback(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The true label of one request, or one label for each of its rows."""

    id: str
    label: int | str | list[int | str]


class FeedbackBatch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Several at once."""

    feedback: list[Feedback]


@dataclass(frozen=True, slots=True)
class _Route:
    verb: str
    answer: Callable[[Request, Reply], None]


class V2:
    """Answers HTTP requests from a data plane."""

    def __init__(self, plane: DataPlane, *, insecure: bool) -> None:
        self._plane = plane
        self._insecure = insecure
        self._decoder = RequestDecoder()
        self._media = Media(plane)
        self._routes: dict[bytes, _Route] = {}
        self.draining = False

    def handle(self, request: Request, reply: Reply) -> None:
        """Answer one request."""
        try:
            route = self._routes.get(request.target) or self._find_route(request.target)
            verb = "GET" if request.method == "HEAD" else request.method
            if verb != route.verb:
                allowed = b"Allow: %s\r\n" % route.verb.encode()
                message = f"{request.method} is not allowed here, use {route.verb}"
                reply(error_response(HTTPStatus.METHOD_NOT_ALLOWED, message, headers=allowed))
                return
            if request.body and request.headers.get(b"content-encoding", b"identity") != b"identity":
                message = "compressed request bodies are not supported: send it without Content-Encoding"
                reply(error_response(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, message))
                return
            route.answer(request, reply)
        except EdgeServeError as error:
            reply(failure_response(error))

    def _find_route(self, target: bytes) -> _Route:
        path = target.partition(b"?")[0].decode("latin-1")
        parts = [unquote(part) for part in path.rstrip("/").split("/")[1:]]
        route = self._parse_route(parts)
        if route is None:
            raise NotFoundError(f"no such path: {path[:200]}", hint="see GET /v2")
        if len(target) <= _MAX_ROUTE_BYTES:
            if len(self._routes) >= _MAX_ROUTES:
                self._routes.clear()
            self._routes[target] = route
        return route

    def _parse_route(self, parts: list[str]) -> _Route | None:
        match parts:
            case ["metrics"]:
                return _Route("GET", self._metrics)
            case ["v2"]:
                return _Route("GET", self._server_metadata)
            case ["v2", "health", "live"]:
                return _Route("GET", self._live)
            case ["v2", "health", "ready"]:
                return _Route("GET", self._ready)
            case ["v2", "models"]:
                return _Route("GET", self._models)
            case ["v2", "models", model, "feedback"]:
                return _Route("POST", partial(self._feedback, model))
            case ["v2", "models", model, "versions", version, *rest]:
                return self._model_route(model, version, rest)
            case ["v2", "models", model, *rest]:
                return self._model_route(model, "", rest)
            case _:
                return None

    def _model_route(self, model: str, version: str, rest: list[str]) -> _Route | None:
        match rest:
            case []:
                return _Route("GET", partial(self._model_metadata, model, version))
            case ["ready"]:
                return _Route("GET", partial(self._model_ready, model, version))
            case ["infer"]:
                return _Route("POST", partial(self._infer, model, version))
            case _:
                return None

    # Inference -----------------------------------------------------------------------------------

    def _infer(self, model: str, version: str, request: Request, reply: Reply) -> None:
        served = self._plane.find(model, version)
        declared = request.headers.get(_HEAD_LENGTH)
        if declared is None and is_file(request):
            self._media.infer(served, request, reply)
            return
        try:
            decoded = self._decoder.decode(request.body, None if declared is None else _head_length(declared))
            form = decoded.form.of(served.signature)
        except InputError:
            served.counters.rejected += 1
            raise
        done = partial(self._answer, served, decoded.id, form, reply)
        self._plane.infer(served, decoded.inputs, request_id=decoded.id, done=done)

    def _answer(
        self,
        served: ServedRelease,
        request_id: str,
        form: list[tuple[TensorSpec, bool]],
        reply: Reply,
        outcome: Tensors | EdgeServeError,
    ) -> None:
        identity = served.identity
        release = b"edgeserve-release: %s\r\n" % identity.release.encode()
        try:
            if isinstance(outcome, EdgeServeError):
                raise outcome
            chunks, head_length = encode_response(
                model=identity.model, version=identity.version, request_id=request_id, outputs=outcome, form=form
            )
        except EdgeServeError as error:
            reply(failure_response(error, headers=release))
            return
        if head_length is None:
            reply(Response(status=200, content_type=JSON, chunks=chunks, headers=release))
        else:
            headers = b"%sInference-Header-Content-Length: %d\r\n" % (release, head_length)
            reply(Response(status=200, content_type=OCTETS, chunks=chunks, headers=headers))

    def _feedback(self, model: str, request: Request, reply: Reply) -> None:
        try:
            fields = msgspec.json.decode(request.body, type=dict[str, msgspec.Raw])
            kind: type[Feedback | FeedbackBatch] = FeedbackBatch if "feedback" in fields else Feedback
            given = msgspec.json.decode(request.body, type=kind)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            shown = '{"id": ..., "label": ...} or {"feedback": [...]}'
            raise InputError(f"not feedback, {shown}: {error}") from error
        items = [given] if isinstance(given, Feedback) else given.feedback
        if len(items) > FEEDBACK_RING:
            raise InputError(f"{len(items)} pieces of feedback at once, at most {FEEDBACK_RING} are allowed")
        pairs: list[tuple[str, Labels]] = [(item.id, item.label) for item in items]
        verdicts = [judgement.verdict for judgement in self._plane.feedback(model, pairs)]
        if isinstance(given, Feedback):
            if verdicts[0] is Verdict.UNKNOWN:
                raise NotFoundError(f"no recent request has the id {given.id[:80]!r}")
            if verdicts[0] is Verdict.DUPLICATE:
                raise ConflictError(f"the request {given.id[:80]!r} has its feedback already")
        reply(json_response(200, {verdict.value: verdicts.count(verdict) for verdict in Verdict}))

    # Health and metadata -------------------------------------------------------------------------

    def _live(self, _request: Request, reply: Reply) -> None:
        reply(json_response(200, {"live": True}))

    def _ready(self, _request: Request, reply: Reply) -> None:
        ready = self._plane.ready() and not self.draining
        reply(json_response(200 if ready else 503, {"ready": ready, "live": True}))

    def _model_ready(self, model: str, version: str, _request: Request, reply: Reply) -> None:
        try:
            served = self._plane.find(model, version)
        except TransientError:
            reply(json_response(503, {"name": model, "ready": False}))
            return
        reply(json_response(200, {"name": model, "version": served.identity.version, "ready": True}))

    def _server_metadata(self, _request: Request, reply: Reply) -> None:
        document = {
            "name": "edgeserve",
            "version": __version__,
            "extensions": ["binary_tensor_data"],
            "insecure": self._insecure,
        }
        reply(json_response(200, document))

    def _models(self, _request: Request, reply: Reply) -> None:
        reply(json_response(200, {"models": self._plane.models()}))

    def _model_metadata(self, model: str, version: str, _request: Request, reply: Reply) -> None:
        served = self._plane.find(model, version)
        identity, opened = served.identity, served.opened
        document = {
            "name": identity.model,
            "versions": sorted({other.identity.version for other in self._plane.loaded(model)}),
            "platform": opened.runtime,
            "inputs": _described(served.signature.inputs),
            "outputs": _described(served.signature.outputs),
            "properties": {
                "version": identity.version,
                "release": identity.release,
                "variant": identity.variant,
                "executing_device": opened.model.executing_device,
                **opened.details,
            },
        }
        reply(json_response(200, document))

    def _metrics(self, _request: Request, reply: Reply) -> None:
        text = prometheus(self._plane, insecure=self._insecure)
        reply(Response(status=200, content_type=CONTENT_TYPE, chunks=(text.encode(),)))


def _described(specs: tuple[TensorSpec, ...]) -> list[dict[str, Any]]:
    return [{"name": spec.name, "datatype": spec.datatype.value, "shape": spec.shape} for spec in specs]


def _head_length(declared: bytes) -> int:
    if not declared.isdigit() or len(declared) > 12:
        raise InputError(f"Inference-Header-Content-Length {declared[:40]!r} is not a number of bytes")
    return int(declared)
