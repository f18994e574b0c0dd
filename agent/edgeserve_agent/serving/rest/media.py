"""A picture or sound as body of an inference request: to tensors, through the model, to an answer in words.

    POST /v2/models/M[/versions/V]/infer[?id=ID][&outputs=1]      Content-Type: image/jpeg, image/png, audio/wav, ...

The body is the file itself. A body of another type than JSON that begins like such a file is taken for one, too. The
request id for feedback comes from `id` or the header `X-Request-Id`. The answer is JSON:

    {"model_name": M, "model_version": V, "id": ID, "predictions": [...], "outputs": [...]}

with one prediction, or one for each step of a stateful model, as `edgeserve.task.present` makes them. The tensors of
the outputs come only when they are asked for: they are often a thousand times larger than what they say.

Decoding a picture takes milliseconds, so everything is done on the threads of the model, the JSON included.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import parse_qs

import msgspec

from edgeserve.contracts.errors import DeviceError, EdgeServeError, InputError
from edgeserve.contracts.limits import MAX_SERVED_PIXELS, MAX_SERVED_SAMPLES
from edgeserve.contracts.task import ImageInput, Task
from edgeserve.runtimes.base import Tensors
from edgeserve.runtimes.rows import run_task
from edgeserve.task.decode import decode
from edgeserve.task.prepare import media_type, prepare
from edgeserve.task.present import present
from edgeserve_agent.serving.call import Call
from edgeserve_agent.serving.codec.answer import json_outputs
from edgeserve_agent.serving.codec.head import checked_id
from edgeserve_agent.serving.dataplane import DataPlane
from edgeserve_agent.serving.messages import JSON, Reply, Request, Response, error_response, failure_response
from edgeserve_agent.serving.served import ServedRelease

_TYPES: Final = {
    b"image/jpeg", b"image/jpg", b"image/png", b"image/bmp", b"image/webp",
    b"audio/wav", b"audio/x-wav", b"audio/wave", b"audio/vnd.wave",
}  # fmt: skip
"""Content types of files that can be taken, whatever the model takes."""
_FIRST_BYTES: Final = 16
_WHAT: Final = "the request body"


@dataclass(frozen=True)
class FileAnswer:
    """What the model made of a file."""

    outputs: Tensors


def is_file(request: Request) -> bool:
    """Whether an inference request brings a picture or sound in the place of tensors."""
    declared = request.headers.get(b"content-type", b"")
    if declared == JSON:
        return False
    return _is_media(declared) or _media_type(request) != ""


class Media:
    """Answers inference requests whose body is a file."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane

    def infer(self, served: ServedRelease, request: Request, reply: Reply) -> None:
        """Answer one request.

        Raises:
            InputError: The query is wrong.
        """
        refusal = _refusal(served, request)
        if refusal:
            served.counters.rejected += 1
            reply(error_response(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, refusal))
            return
        query = parse_qs(request.target.partition(b"?")[2].decode("latin-1"), keep_blank_values=True)
        request_id = checked_id(query.get("id", [request.headers.get(b"x-request-id", b"").decode("latin-1")])[-1])
        job = _Job(served, request.body, request_id, with_outputs=_flag(query, "outputs"))
        call = Call(served=served, inputs={}, done=partial(_reply, job, reply), id=request_id)
        self._plane.infer_by(call, job)


class _Job:
    """Runs the model on a file; on a thread of the model."""

    def __init__(self, served: ServedRelease, body: bytes | memoryview, request_id: str, *, with_outputs: bool) -> None:
        self._served = served
        self._body = body
        self._id = request_id
        self._with_outputs = with_outputs
        self.json = b""
        """For the client."""

    def __call__(self) -> FileAnswer:
        served = self._served
        task = served.opened.task
        assert task is not None  # else it was refused
        prepared = prepare(
            task,
            served.signature,
            bytes(self._body),
            what=_WHAT,
            most_pixels=MAX_SERVED_PIXELS,
            most_samples=MAX_SERVED_SAMPLES,
        )
        outputs = run_task(served.model, prepared.inputs, task.state)
        try:
            predictions = [present(task, answer, prepared.geometry) for answer in decode(task, outputs)]
        except InputError as error:  # no fault of this client
            raise DeviceError(
                f"the task does not fit what the model answers: {error.message}", hint=error.hint
            ) from error
        document: dict[str, Any] = {"model_name": served.identity.model, "model_version": served.identity.version}
        if self._id:
            document["id"] = self._id
        document["predictions"] = predictions
        if self._with_outputs:
            document["outputs"] = json_outputs(served.signature, outputs)
        self.json = msgspec.json.encode(document)
        return FileAnswer(outputs)


def _reply(job: _Job, reply: Reply, call: Call, outcome: Tensors | EdgeServeError) -> None:
    release = b"edgeserve-release: %s\r\n" % call.served.identity.release.encode()
    if isinstance(outcome, EdgeServeError):
        reply(failure_response(outcome, headers=release))
    else:
        reply(Response(status=200, content_type=JSON, chunks=(job.json,), headers=release))


def _refusal(served: ServedRelease, request: Request) -> str:
    """Why a file of this kind cannot be an input of the model; empty when it can."""
    model, declared, found = served.identity.model, _essence(request), _media_type(request)
    if not found and declared not in _TYPES:
        return f"{declared.decode('latin-1')[:80]} is not taken (pictures are JPEG, PNG, BMP or WebP, sound is WAV)"
    takes = _takes(served.opened.task)
    kind = found.partition("/")[0] or declared.decode("latin-1").partition("/")[0]
    if kind in takes:
        return ""
    way_out = f"send tensors, GET /v2/models/{model} says which"
    if takes:
        return f"model {model!r} takes {' and '.join(sorted(takes))} files, not {kind} (or {way_out})"
    return f"model {model!r} does not say how a file becomes its input ({way_out}; or compile it with [[inputs]])"


def _takes(task: Task | None) -> set[str]:
    inputs = task.inputs if task is not None else ()
    return {"image" if isinstance(entry, ImageInput) else "audio" for entry in inputs}


def _media_type(request: Request) -> str:
    return media_type(bytes(request.body[:_FIRST_BYTES]))


def _essence(request: Request) -> bytes:
    return request.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()


def _is_media(declared: bytes) -> bool:
    return declared[:6].lower() in (b"image/", b"audio/")


def _flag(query: dict[str, list[str]], name: str) -> bool:
    given = query.get(name, ["0"])[-1]
    if given not in ("0", "1"):
        raise InputError(f"?{name}={given[:40]} is neither 0 nor 1")
    return given == "1"
