"""Who is calling: the operator, a device, a browser that has logged in, or nobody."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Awaitable, Callable
from enum import Enum
from pathlib import Path
from typing import Final, NamedTuple

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from edgeserve.atomic import write_bytes
from edgeserve.contracts.errors import DeviceError, TrustError
from edgeserve_fleet.answers import UnauthorizedError

SESSION_COOKIE: Final = "edgeserve_session"
_TOKEN_PREFIX: Final = "eso_"  # noqa: S105 - what a leaked token is recognised by, not a secret


class Access(Enum):
    """What a route asks of its caller."""

    PUBLIC = "public"
    VIEW = "view"
    """Operator token, or the cookie of a logged-in browser: reading only."""
    OPERATE = "operate"
    """Operator token."""
    DEVICE = "device"
    """Token of a device: the route answers for that device alone."""
    PULL = "pull"
    """Token of the operator or of any device; OCI clients may send it as a Basic password."""
    PUSH = "push"
    """Operator token; OCI clients may send it as a Basic password."""


class Role(Enum):
    """Who a caller turned out to be."""

    NOBODY = "nobody"
    VIEWER = "viewer"
    OPERATOR = "operator"
    DEVICE = "device"


ALLOWED: Final[dict[Access, frozenset[Role]]] = {
    Access.PUBLIC: frozenset(Role),
    Access.VIEW: frozenset({Role.VIEWER, Role.OPERATOR}),
    Access.OPERATE: frozenset({Role.OPERATOR}),
    Access.DEVICE: frozenset({Role.DEVICE}),
    Access.PULL: frozenset({Role.DEVICE, Role.OPERATOR}),
    Access.PUSH: frozenset({Role.OPERATOR}),
}
"""The whole policy."""

_BASIC: Final = frozenset({Access.PULL, Access.PUSH})
"""Basic is for OCI clients alone: a browser would send it by itself, to any route, from any page."""


Handler = Callable[[Request], Awaitable[Response]]


class Endpoint(NamedTuple):
    """One route: nothing is reachable without saying what it asks of its caller."""

    method: str
    path: str
    access: Access
    handler: Handler


class Caller(NamedTuple):
    """A role, and for a device which one."""

    role: Role
    device: str = ""


class Authenticator:
    """Checks callers.

    Args:
        operator_token: The secret of the operator.
        device_of: Gives the device that a token belongs to, or None; called in a worker thread.
    """

    def __init__(self, operator_token: str, device_of: Callable[[str], str | None]) -> None:
        self._operator = operator_token.encode()
        self._device_of = device_of
        self._session = hmac.new(self._operator, b"edgeserve web session v1", hashlib.sha256).hexdigest()

    @property
    def session(self) -> str:
        """Value of the cookie of a logged-in browser: follows from the token, so it dies with the token."""
        return self._session

    def is_operator(self, token: str) -> bool:
        """Compare with the operator's token in constant time."""
        return hmac.compare_digest(token.encode(), self._operator)

    async def check(self, request: Request, access: Access) -> Caller:
        """Find out who calls and whether that is enough.

        Raises:
            UnauthorizedError: No token, or one that is not valid.
            TrustError: A valid caller that may not do this.
        """
        if access is Access.PUBLIC:
            return Caller(Role.NOBODY)
        token = _token(request, basic=access in _BASIC)
        caller = await self._caller(token) if token else self._browser(request)
        if caller.role is Role.NOBODY:
            raise UnauthorizedError(
                "the token is not valid" if token else "this needs a token",
                hint="send it as `Authorization: Bearer TOKEN`; the manager's state folder has operator.token",
            )
        if caller.role not in ALLOWED[access]:
            raise TrustError(f"a {caller.role.value} may not do this", hint=_hint(access))
        return caller

    async def _caller(self, token: str) -> Caller:
        if self.is_operator(token):
            return Caller(Role.OPERATOR)
        device = await run_in_threadpool(self._device_of, token)
        return Caller(Role.DEVICE, device) if device else Caller(Role.NOBODY)

    def _browser(self, request: Request) -> Caller:
        cookie = request.cookies.get(SESSION_COOKIE, "")
        return Caller(Role.VIEWER if hmac.compare_digest(cookie.encode(), self._session.encode()) else Role.NOBODY)


def load_operator_token(path: Path) -> str:
    """Read the operator's token, making one on the first start (mode 0600).

    Raises:
        DeviceError: It cannot be read, or is too short to be a secret.
    """
    try:
        token = path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        token = _TOKEN_PREFIX + secrets.token_urlsafe(32)
        write_bytes(path, token.encode() + b"\n", mode=0o600)
    except (OSError, UnicodeDecodeError) as error:
        raise DeviceError(f"cannot read the operator token {path}: {error}") from error
    if len(token) < 32:
        raise DeviceError(f"operator token in {path} is too short", hint="remove the file: the next start makes a new")
    return token


def _token(request: Request, *, basic: bool) -> str:
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if basic and scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return ""
    return ""


def _hint(access: Access) -> str:
    if access is Access.DEVICE:
        return "this route answers devices: use the token that `edgeserve fleet enroll` wrote"
    return "use the operator token"
