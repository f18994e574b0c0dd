"""The web page: rendered on the server, escaped, read-only, redrawn in part when the fleet changes."""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Final

import jinja2
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from edgeserve.contracts.errors import InputError, NotFoundError
from edgeserve_fleet.answers import read_body
from edgeserve_fleet.auth import SESSION_COOKIE, Access, Authenticator, Endpoint

CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS: Final = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_STATIC: Final = {"style.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}
_MAX_FORM_BYTES: Final = 4096
_SESSION_S: Final = 12 * 3600


class Page:
    """Routes of the web page.

    Args:
        authenticator: Checks the token of the login form and makes the cookie.
        content: Gives the variables of the template `fleet.html`; called in a worker thread.
        secure: The page is served over HTTPS: the cookie is for HTTPS alone.
    """

    def __init__(
        self, *, authenticator: Authenticator, content: Callable[[], Mapping[str, object]], secure: bool
    ) -> None:
        self._authenticator = authenticator
        self._content = content
        self._secure = secure
        folder = resources.files("edgeserve_fleet") / "web"
        templates = {name: (folder / "templates" / name).read_text("utf-8") for name in ("page.html", "fleet.html")}
        templates["login.html"] = (folder / "templates" / "login.html").read_text("utf-8")
        self._static = {name: (folder / "static" / name).read_bytes() for name in _STATIC}
        self._templates = jinja2.Environment(
            loader=jinja2.DictLoader(templates),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters |= {"ago": ago, "short": short, "percent": percent}

    def endpoints(self) -> list[Endpoint]:
        """All routes."""
        return [
            Endpoint("GET", "/", Access.VIEW, self._page),
            Endpoint("GET", "/fragment", Access.VIEW, self._fragment),
            Endpoint("GET", "/login", Access.PUBLIC, self._login_form),
            Endpoint("POST", "/login", Access.PUBLIC, self._login),
            Endpoint("POST", "/logout", Access.PUBLIC, self._logout),
            Endpoint("GET", "/static/{file}", Access.PUBLIC, self._file),
        ]

    async def _page(self, _request: Request) -> Response:
        return await self._rendered("page.html")

    async def _fragment(self, _request: Request) -> Response:
        return await self._rendered("fleet.html")

    async def _rendered(self, name: str) -> Response:
        content = await run_in_threadpool(self._content)
        return HTMLResponse(self._templates.get_template(name).render(content), headers=_HEADERS)

    async def _login_form(self, _request: Request) -> Response:
        return self._form(wrong=False)

    async def _login(self, request: Request) -> Response:
        body = await read_body(request, _MAX_FORM_BYTES)
        try:
            fields = urllib.parse.parse_qs(body.decode("ascii"), max_num_fields=8)
        except ValueError as error:
            raise InputError("the login form is not valid") from error
        if not self._authenticator.is_operator(fields.get("token", [""])[0].strip()):
            return self._form(wrong=True)
        answer = RedirectResponse("/", status_code=303)
        answer.set_cookie(
            SESSION_COOKIE,
            self._authenticator.session,
            max_age=_SESSION_S,
            httponly=True,
            samesite="strict",
            secure=self._secure,
        )
        return answer

    async def _logout(self, _request: Request) -> Response:
        answer = RedirectResponse("/login", status_code=303)
        answer.delete_cookie(SESSION_COOKIE, httponly=True, samesite="strict", secure=self._secure)
        return answer

    async def _file(self, request: Request) -> Response:
        name = str(request.path_params["file"])
        if name not in self._static:
            raise NotFoundError("there is no such file")
        return Response(self._static[name], media_type=_STATIC[name], headers=_HEADERS | {"Cache-Control": "no-cache"})

    def _form(self, *, wrong: bool) -> Response:
        text = self._templates.get_template("login.html").render(wrong=wrong)
        return HTMLResponse(text, 403 if wrong else 200, headers=_HEADERS)


def ago(seconds: float | None) -> str:
    """A duration since something, for people."""
    if seconds is None:
        return "never"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit} ago"
    return "now" if seconds < 5 else f"{int(seconds)} s ago"


def short(digest: str) -> str:
    """The first digits of a digest."""
    return digest.removeprefix("sha256:")[:12]


def percent(share: float | None) -> str:
    """A share as a percentage; nothing is known = a dash."""
    return "-" if share is None else f"{100 * share:.1f} %"
