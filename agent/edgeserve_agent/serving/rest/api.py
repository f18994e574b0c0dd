"""The one port's front desk: finds the dialect that knows a path, and turns errors into answers."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from http import HTTPStatus
from typing import Final, Protocol
from urllib.parse import unquote

from edgeserve.contracts.errors import EdgeServeError, NotFoundError, TooLargeError
from edgeserve.contracts.limits import CODEC_THREAD_BYTES, MAX_REQUEST_BYTES
from edgeserve_agent.serving.messages import (
    OCTETS,
    Answer,
    RenderedResponse,
    Reply,
    Request,
    Response,
    busy_response,
    error_response,
    failure_response,
)
from edgeserve_agent.serving.rest.compression import UnknownCodingError, accepted, coding_of, deflate, inflate
from edgeserve_agent.serving.workers import Outcome, Workers

_LOG: Final = logging.getLogger(__name__)
_MAX_ROUTES: Final = 1024
_MAX_ROUTE_BYTES: Final = 512
_ABSOLUTE: Final = re.compile(rb"^https?://[^/?]*", re.IGNORECASE)
"""What a client of a proxy puts before the path; a server must take it as well (RFC 9112, section 3.2.2)."""

Answering = Callable[[Request, Reply], None]


@dataclass(frozen=True, slots=True)
class Route:
    """What a path answers to: verb -> how. HEAD is answered as GET is."""

    verbs: Mapping[str, Answering]


def get(answer: Answering) -> Route:
    """A path to read."""
    return Route({"GET": answer})


def post(answer: Answering) -> Route:
    """A path to send something to."""
    return Route({"POST": answer})


class Dialect(Protocol):
    """The paths of one protocol."""

    def route(self, parts: list[str]) -> Route | None:
        """The route of a path, given as its percent-decoded parts without the leading slash; None = not of this."""


def find_route(dialects: Iterable[Dialect], parts: list[str]) -> Route | None:
    """The route of a path by the first dialect that knows it."""
    return next(filter(None, (dialect.route(parts) for dialect in dialects)), None)


class Api:
    """Answers HTTP requests by the first dialect that knows the path.

    Args:
        dialects: The first that knows a path has it.
        workers: Make the thread on which large bodies are compressed, when there is one.
        hold: Sets aside memory for a large body that was decompressed, until its request is answered; False when too
            much is in use.
        body_bytes: Most bytes of a decompressed body.
    """

    def __init__(
        self,
        dialects: Sequence[Dialect],
        *,
        workers: Callable[[], Workers],
        hold: Callable[[int], bool],
        body_bytes: int = MAX_REQUEST_BYTES,
    ) -> None:
        self._dialects = tuple(dialects)
        self._make_workers = workers
        self._workers: Workers | None = None
        self._hold = hold
        self._body_bytes = body_bytes
        self._routes: dict[bytes, Route] = {}

    def handle(self, request: Request, reply: Reply) -> None:
        """Answer one request."""
        headers = request.headers
        if b"accept-encoding" in headers:
            reply = partial(self._compress, headers[b"accept-encoding"], reply)
        if b"content-encoding" in headers and request.body:
            self._decompress(request, reply)
        else:
            self._handle(request, reply)

    def close(self) -> None:
        """End the thread."""
        if self._workers is not None:
            self._workers.close()

    def _decompress(self, request: Request, reply: Reply) -> None:
        body = request.body
        try:
            coding = coding_of(request.headers)
            # A small body may hold a large one: the loop only begins with it.
            request.body = inflate(body, coding, limit=CODEC_THREAD_BYTES) if coding else body
        except UnknownCodingError as error:
            headers = b"Accept-Encoding: gzip, deflate\r\n"
            reply(error_response(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"{error.message} ({error.hint})", headers=headers))
        except TooLargeError:
            self._work(partial(inflate, body, coding, limit=self._body_bytes), partial(self._inflated, request, reply))
        except EdgeServeError as error:
            reply(failure_response(error))
        else:
            self._handle(request, reply)

    def _inflated(self, request: Request, reply: Reply, outcome: Outcome[bytes]) -> None:
        if isinstance(outcome, Exception):
            reply(_failed(outcome))
            return
        if not self._hold(len(outcome)):
            reply(busy_response("too many request bodies are being decompressed"))
            return
        request.held_bytes += len(outcome)
        request.body = outcome
        try:
            self._handle(request, reply)
        except Exception as error:  # noqa: BLE001 - on the loop nobody else hears of it
            reply(_failed(error))

    def _compress(self, header: bytes, reply: Reply, answer: Answer) -> None:
        size = sum(map(len, answer.chunks)) + (len(answer.prefix) if isinstance(answer, RenderedResponse) else 0)
        if not accepted(header, size=size, binary=False):  # before it is taken apart
            reply(answer)
            return
        response = answer.opened() if isinstance(answer, RenderedResponse) else answer
        size = response.length
        coding = accepted(header, size=size, binary=response.content_type == OCTETS)
        if not coding or not size or response.status != HTTPStatus.OK:
            reply(answer)
            return

        def send(outcome: Outcome[bytes]) -> None:
            if isinstance(outcome, Exception):
                reply(_failed(outcome))
                return
            headers = b"%sContent-Encoding: %s\r\nVary: Accept-Encoding\r\n" % (response.headers, coding)
            reply(replace(response, chunks=(outcome,), headers=headers))

        job = partial(deflate, response.chunks, coding)
        if size > CODEC_THREAD_BYTES:
            self._work(job, send)
        else:
            send(job())

    def _work(self, job: Callable[[], bytes], done: Callable[[Outcome[bytes]], None]) -> None:
        if self._workers is None:
            self._workers = self._make_workers()
        self._workers.submit(job, done)

    def _handle(self, request: Request, reply: Reply) -> None:
        try:
            route = self._routes.get(request.target) or self._find(request.target)
            answer = route.verbs.get("GET" if request.method == "HEAD" else request.method)
            if answer is None:
                reply(_not_allowed(request.method, route))
                return
            answer(request, reply)
        except EdgeServeError as error:
            reply(failure_response(error))

    def _find(self, target: bytes) -> Route:
        path = _ABSOLUTE.sub(b"", target).partition(b"?")[0].decode("latin-1")
        parts = [unquote(part) for part in path.rstrip("/").split("/")[1:]]
        route = find_route(self._dialects, parts)
        if route is None:
            raise NotFoundError(f"no such path: {path[:200]}", hint="GET /openapi.json lists what there is")
        if len(target) <= _MAX_ROUTE_BYTES:
            if len(self._routes) >= _MAX_ROUTES:
                self._routes.clear()
            self._routes[target] = route
        return route


def _failed(error: Exception) -> Response:
    if isinstance(error, EdgeServeError):
        return failure_response(error)
    _LOG.error("answering failed", exc_info=error)
    return error_response(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error; the server's log says more")


def _not_allowed(method: str, route: Route) -> Response:
    verbs = ", ".join(route.verbs)
    message = f"{method} is not allowed here, use {verbs}"
    return error_response(HTTPStatus.METHOD_NOT_ALLOWED, message, headers=b"Allow: %s\r\n" % verbs.encode())
