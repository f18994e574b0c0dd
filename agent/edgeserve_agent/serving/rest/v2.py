"""Open Inference Protocol v2 over HTTP: health, metadata and inference. What they mean is in the data plane.

Model versions in paths are release versions, or their counters. Answers carry `edgeserve-release`, the digest of the
release that gave them. Beyond the protocol: `GET /v2/models`, `POST /v2/models/M/feedback` and, as body of an inference
request, a picture or WAV file (`media`). A request with the header `edgeserve-explain: latency` is told how its time
was spent in `Server-Timing` (W3C), durations in milliseconds.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from edgeserve import __version__
from edgeserve.contracts.errors import EdgeServeError, InputError, TransientError
from edgeserve.contracts.tensors import TensorSpec
from edgeserve.runtimes.base import LoadedModel, Tensors
from edgeserve_agent.serving.call import Call
from edgeserve_agent.serving.codec.answer import encode_answer
from edgeserve_agent.serving.codec.plan import Plan
from edgeserve_agent.serving.dataplane import DataPlane
from edgeserve_agent.serving.messages import (
    JSON,
    OCTETS,
    Reply,
    Request,
    Response,
    failure_response,
    json_response,
)
from edgeserve_agent.serving.regions import Regions
from edgeserve_agent.serving.rest.api import Route, get, post
from edgeserve_agent.serving.rest.rendering import Rendering

HEAD_LENGTH: Final = b"inference-header-content-length"
"""Header that says how many bytes of JSON come before the binary tensors."""
EXPLAIN: Final = b"edgeserve-explain"
"""Header of requests that want to know how their time was spent."""
_MAX_RENDERINGS: Final = 16


class V2:
    """The required part of the protocol, and inference.

    Args:
        plane: What answers.
        insecure: The server listens in the open; its metadata says so.
        extensions: Names of the protocol's extensions that the server has.
        regions: Shared memory; None = switched off.
    """

    def __init__(
        self, plane: DataPlane, *, insecure: bool, extensions: tuple[str, ...] = (), regions: Regions | None = None
    ) -> None:
        self._plane = plane
        self._insecure = insecure
        self._extensions = extensions
        self._regions = regions
        self.draining = False

    def route(self, parts: list[str]) -> Route | None:
        """The routes below `/v2` that are the protocol's own."""
        match parts:
            case ["v2"]:
                return get(self._server_metadata)
            case ["v2", "health", "live"]:
                return get(self._live)
            case ["v2", "health", "ready"]:
                return get(self._ready)
            case ["v2", "models"]:
                return get(self._models)
            case ["v2", "models", "stats"]:
                return None  # of the statistics extension
            case ["v2", "models", model, "versions", version, *rest]:
                return self._model_route(model, version, rest)
            case ["v2", "models", model, *rest]:
                return self._model_route(model, "", rest)
            case _:
                return None

    def _model_route(self, model: str, version: str, rest: list[str]) -> Route | None:
        match rest:
            case []:
                return get(partial(self._model_metadata, model, version))
            case ["ready"]:
                return get(partial(self._model_ready, model, version))
            case ["infer"]:
                return post(partial(self.infer, model, version))
            case _:
                return None

    # Inference -----------------------------------------------------------------------------------

    def infer(self, model: str, version: str, request: Request, reply: Reply) -> None:
        """Answer an inference request; `version` may be empty.

        Raises:
            EdgeServeError: It cannot be begun.
        """
        served = self._plane.find(model, version)
        headers = request.headers
        declared = headers.get(HEAD_LENGTH)
        if declared is None and _may_be_file(request):
            from edgeserve_agent.serving.rest.media import Media, is_file

            if is_file(request):
                Media(self._plane).infer(served, request, reply)
                return
        try:
            length = None if declared is None else _head_length(declared)
            plan, request_id, inputs = served.decoder.decode(request.body, length, self._regions)
        except InputError:
            served.counters.rejected += 1
            raise
        call = Call(served, inputs, partial(self._answer, plan, reply), request_id)
        if plan.special:
            call.priority, call.timeout_us = plan.priority, plan.timeout_us
            call.sequence, call.parameters = plan.sequence, plan.parameters
        if EXPLAIN in headers:
            call.with_timing = True
        request.work = call
        self._plane.infer(call)

    def _answer(self, plan: Plan, reply: Reply, call: Call, outcome: Tensors | EdgeServeError) -> None:
        if plan.form is None or call.with_timing or isinstance(outcome, EdgeServeError):
            self._answer_unusual(plan, reply, call, outcome)
            return
        names = plan.outputs
        shapes: Any
        if len(names) == 1:
            array = outcome[names[0]]
            arrays, shapes = [array], array.shape
        else:
            arrays = [outcome[name] for name in names]
            shapes = tuple([array.shape for array in arrays])
        try:
            rendering = plan.renderings.get(shapes)
            if rendering is None:
                if len(plan.renderings) >= _MAX_RENDERINGS:
                    plan.renderings.clear()
                rendering = Rendering(call.served.identity, plan.wishes, arrays, self._regions)
                plan.renderings[shapes] = rendering
            response = rendering.response(call.id, arrays)
        except InputError:  # its region is gone or too small
            self._answer_unusual(plan, reply, call, outcome)
            return
        reply(response)

    def _answer_unusual(self, plan: Plan, reply: Reply, call: Call, outcome: Tensors | EdgeServeError) -> None:
        identity = call.served.identity
        headers = b"edgeserve-release: %s\r\n" % identity.release.encode()
        try:
            if isinstance(outcome, EdgeServeError):
                raise outcome
            if call.with_timing:
                headers += server_timing(call)
            body = encode_answer(
                model=identity.model,
                version=identity.version,
                request_id=call.id,
                wishes=plan.wishes,
                outputs=outcome,
                labels=call.served.labels,
                regions=self._regions,
            )
        except EdgeServeError as error:
            reply(failure_response(error, headers=headers))
            return
        content_type = JSON
        if body.head_length is not None:
            content_type = OCTETS
            headers += b"Inference-Header-Content-Length: %d\r\n" % body.head_length
        reply(Response(status=200, content_type=content_type, chunks=[body.json, *body.blobs], headers=headers))

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
            "extensions": self._extensions,
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
                **_shortfall(opened.model),
                **opened.details,
            },
        }
        reply(json_response(200, document))


def _shortfall(model: LoadedModel) -> dict[str, str]:
    """What is not as asked for of the device, if anything, and how operations are shared among several."""
    shared = ", ".join(f"{count} on {device}" for device, count in sorted(model.placement.items()))
    told = {"fallback": model.fallback, "placement": f"operations: {shared}" if shared else ""}
    return {name: text for name, text in told.items() if text}


def _may_be_file(request: Request) -> bool:
    """Whether it is worth a look if the body is a picture or sound."""
    return request.body[:1] != b"{" or request.headers.get(b"content-type", b"")[:6].lower() in (b"image/", b"audio/")


def server_timing(call: Call) -> bytes:
    """`Server-Timing` header line of a request that was answered: how its time was spent."""
    parts = [
        f"{name};dur={ns / 1e6:.3f}"
        for name, ns in (
            ("queue", call.queue_ns),
            ("input", call.input_ns),
            ("compute", call.infer_ns),
            ("output", call.output_ns),
        )
    ]
    parts.append(f'batch;desc="{call.batch or call.served.rows(call.inputs)}"')
    if call.mates:
        mates = " ".join(
            "".join(sign for sign in mate if sign.isalnum() or sign in "-_.") or "-" for mate in call.mates
        )
        parts.append(f'mates;desc="{mates}"')
    return f"Server-Timing: {', '.join(parts)}\r\n".encode("ascii", "replace")


def _described(specs: tuple[TensorSpec, ...]) -> list[dict[str, Any]]:
    return [{"name": spec.name, "datatype": spec.datatype.value, "shape": spec.shape} for spec in specs]


def _head_length(declared: bytes) -> int:
    if not declared.isdigit() or len(declared) > 12:
        raise InputError(f"Inference-Header-Content-Length {declared[:40]!r} is not a number of bytes")
    return int(declared)
