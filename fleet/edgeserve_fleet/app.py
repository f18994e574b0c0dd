"""The manager's web application: every endpoint with its guard, errors in the caller's form, the check of the Host."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from edgeserve.contracts.errors import EdgeServeError, TrustError
from edgeserve_fleet.answers import UnauthorizedError, as_error, problem_answer
from edgeserve_fleet.auth import Access, Authenticator, Endpoint
from edgeserve_fleet.changes import ChangeFeed
from edgeserve_fleet.registry import registry_problem

LOOPBACK_NAMES: Final = ("localhost", "127.0.0.1", "::1")
_PAGES: Final = ("/", "/fragment")


def create_app(
    endpoints: Sequence[Endpoint],
    *,
    authenticator: Authenticator,
    feed: ChangeFeed,
    allowed_hosts: Iterable[str] | None,
) -> ASGIApp:
    """Put the application together.

    Args:
        endpoints: All routes; each is guarded by what it says it needs.
        authenticator: Finds out who calls.
        feed: Started and ended with the application.
        allowed_hosts: Names that the Host header may have; None = any. On loopback it is checked, since a web page
            may let its own name point to 127.0.0.1 (DNS rebinding).
    """

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        feed.start()
        yield
        feed.close()
        feed.join()

    async def healthz(_request: Request) -> Response:
        return PlainTextResponse("ok\n")

    routes = [Endpoint("GET", "/healthz", Access.PUBLIC, healthz), *endpoints]
    app = Starlette(
        routes=[_guarded(endpoint, authenticator) for endpoint in routes],
        lifespan=lifespan,
        exception_handlers=dict.fromkeys((EdgeServeError, HTTPException, ClientDisconnect, Exception), _problem),
    )
    app.router.redirect_slashes = False
    return app if allowed_hosts is None else HostCheck(app, allowed_hosts)


class HostCheck:
    """Refuses requests whose Host header names something else than this manager."""

    def __init__(self, app: ASGIApp, names: Iterable[str]) -> None:
        self._app = app
        self._names = frozenset(name.lower() for name in names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102 - ASGI
        if scope["type"] == "http":
            host = Request(scope).headers.get("host", "")
            if host_name(host) not in self._names:
                error = TrustError(
                    f"this manager is not {host[:80]!a}", hint="use its own address, or name it in public_url"
                )
                await problem_answer(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def host_name(header: str) -> str:
    """The name in a Host header, without port and brackets, in lower case."""
    name = header.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0]


def _guarded(endpoint: Endpoint, authenticator: Authenticator) -> Route:
    async def guarded(request: Request) -> Response:
        request.state.caller = await authenticator.check(request, endpoint.access)
        return await endpoint.handler(request)

    return Route(endpoint.path, guarded, methods=[endpoint.method])


async def _problem(request: Request, raised: Exception) -> Response:
    error = as_error(request, raised)
    path = request.url.path
    if path == "/v2" or path.startswith("/v2/"):
        return registry_problem(error)
    if path in _PAGES and isinstance(error, UnauthorizedError):
        return RedirectResponse("/login", status_code=303)
    return problem_answer(error)
