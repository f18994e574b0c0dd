"""Client of the fleet manager's REST API."""

from __future__ import annotations

import secrets
import urllib.parse
from collections.abc import Mapping
from http.client import responses
from pathlib import Path
from typing import Any, Final

import msgspec
import urllib3

from edgeserve.contracts.documents import encode
from edgeserve.contracts.errors import (
    ConflictError,
    DeviceError,
    EdgeServeError,
    InputError,
    NotFoundError,
    TransientError,
    TrustError,
)
from edgeserve.contracts.limits import MAX_FLEET_ANSWER_BYTES

STATE_DIR: Final = "edgeserve-fleet"
"""Where a manager started in the same folder keeps its state."""
_ERRORS: Final[dict[int, type[EdgeServeError]]] = {
    400: InputError,
    401: TrustError,
    403: TrustError,
    404: NotFoundError,
    409: ConflictError,
    413: InputError,
    429: TransientError,
    500: DeviceError,
    502: TransientError,
    503: TransientError,
    504: TransientError,
}
_TIMEOUT: Final = urllib3.Timeout(connect=5.0, read=120.0)
_UNREACHABLE: Final = "is `edgeserve fleet serve` running? EDGESERVE_FLEET_URL or --url says where"


class FleetClient:
    """Speaks to one fleet manager as its operator. Answers are the documents of the REST API as dictionaries.

    Every method raises `InputError`, `NotFoundError`, `ConflictError`, `TrustError` or `DeviceError` as the manager
    answered, and `TransientError` when it cannot be reached.

    Args:
        url: Where the manager listens, such as `http://127.0.0.1:8080`.
        token: The operator's token.
    """

    def __init__(self, url: str, token: str) -> None:
        if not url.startswith(("http://", "https://")):
            raise InputError(f"{url[:120]!r} is not the URL of a fleet manager", hint="write http://HOST:PORT")
        if not token or not token.isascii() or not token.isprintable():
            raise InputError("the operator token is empty or not a token", hint="see operator.token of the manager")
        self.url = url.rstrip("/")
        self.token = token
        self._pool = urllib3.PoolManager(headers={"Authorization": f"Bearer {token}"}, timeout=_TIMEOUT)

    @classmethod
    def from_environment(
        cls, environment: Mapping[str, str], *, url: str = "", token: str = "", folder: Path | None = None
    ) -> FleetClient:
        """Find the manager: arguments, then EDGESERVE_FLEET_URL and EDGESERVE_FLEET_TOKEN, then its state folder.

        Args:
            environment: Such as `os.environ`.
            url: Wins over all else when given.
            token: Wins over all else when given.
            folder: State folder of a manager on this machine; default `./edgeserve-fleet`.

        Raises:
            InputError: Nothing says where the manager is, or what the token is.
        """
        state = Path(STATE_DIR) if folder is None else folder
        url = url or environment.get("EDGESERVE_FLEET_URL", "") or _address(state / "addresses.json")
        if not url:
            raise InputError(
                "no fleet manager is named",
                hint="give --url, set EDGESERVE_FLEET_URL, or stand where ./edgeserve-fleet is",
            )
        token = token or environment.get("EDGESERVE_FLEET_TOKEN", "") or _first_line(state / "operator.token")
        if not token:
            raise InputError(
                f"no token for the fleet manager at {url}", hint="give --token, or set EDGESERVE_FLEET_TOKEN"
            )
        return cls(url, token)

    def enrol(self, device: str, *, labels: Mapping[str, str] | None = None, profile: str = "") -> dict[str, Any]:
        """Enrol a device; the answer has `device`, `token`, `manager_key`, `mqtt_url` and `manager_url`."""
        body = {"device": device, "labels": dict(labels or {}), "profile": profile}
        return self._object("POST", "/v1/devices", body)

    def revoke(self, device: str) -> dict[str, Any]:
        """Take a device's credentials away."""
        return self._object("DELETE", f"/v1/devices/{_quoted(device)}")

    def devices(self) -> list[dict[str, Any]]:
        """All devices."""
        return self._list("/v1/devices")

    def device(self, device: str) -> dict[str, Any]:
        """One device, by name or id."""
        return self._object("GET", f"/v1/devices/{_quoted(device)}")

    def why(self, device: str) -> list[str]:
        """Why a device has, or has not, the releases that the fleet wants of it; one sentence each."""
        return [str(line) for line in self._list(f"/v1/devices/{_quoted(device)}/why")]

    def releases(self) -> list[dict[str, Any]]:
        """All releases."""
        return self._list("/v1/releases")

    def register_release(self, digest: str) -> dict[str, Any]:
        """Make a release known whose blobs are in the manager's registry (see `edgeserve.client.registry`)."""
        return self._object("POST", "/v1/releases", {"digest": digest})

    def create_rollout(self, spec: Mapping[str, Any], *, idempotency_key: str = "") -> dict[str, Any]:
        """Create a rollout: the fields of `RolloutSpec`; `release` may be `name:version`, `waves` a text like `1,3,6`.

        Args:
            spec: The order.
            idempotency_key: Of the caller, to repeat a call safely; a fresh one is made when empty.
        """
        headers = {"Idempotency-Key": idempotency_key or secrets.token_hex(16)}
        return self._object("POST", "/v1/rollouts", dict(spec), headers=headers)

    def plan(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        """What a rollout would do, without creating it."""
        return self._object("POST", "/v1/rollouts/plan", dict(spec))

    def rollouts(self) -> list[dict[str, Any]]:
        """All rollouts."""
        return self._list("/v1/rollouts")

    def rollout(self, rollout: str) -> dict[str, Any]:
        """One rollout."""
        return self._object("GET", f"/v1/rollouts/{_quoted(rollout)}")

    def act(self, rollout: str, action: str) -> dict[str, Any]:
        """Start, pause, resume, abort or roll back a rollout; `action` is that word (`rollback`)."""
        return self._object("POST", f"/v1/rollouts/{_quoted(rollout)}/{_quoted(action)}")

    def status(self) -> dict[str, Any]:
        """How the manager runs."""
        return self._object("GET", "/v1/status")

    def _object(
        self, method: str, path: str, body: object = None, *, headers: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        answer = self._ask(method, path, body, headers=headers)
        if not isinstance(answer, dict):
            raise TransientError(f"{self.url}{path} did not answer with an object", hint="is it a fleet manager?")
        return answer

    def _list(self, path: str) -> list[Any]:
        answer = self._ask("GET", path)
        if not isinstance(answer, list):
            raise TransientError(f"{self.url}{path} did not answer with a list", hint="is it a fleet manager?")
        return answer

    def _ask(self, method: str, path: str, body: object = None, *, headers: Mapping[str, str] | None = None) -> Any:  # noqa: ANN401 - any JSON
        sent = {**self._pool.headers, **(headers or {})}
        if body is not None:
            sent["Content-Type"] = "application/json"
        try:
            answer = self._pool.request(
                method,
                self.url + path,
                body=None if body is None else encode(body),
                headers=sent,
                retries=urllib3.Retry(2, redirect=0, status=0, backoff_factor=0.2) if method == "GET" else False,
                redirect=False,
                preload_content=False,
            )
            try:
                data = answer.read(MAX_FLEET_ANSWER_BYTES + 1)
            finally:
                answer.release_conn()
        except urllib3.exceptions.HTTPError as error:
            raise TransientError(
                f"cannot reach the fleet manager at {self.url}: {reason(error)}", hint=_UNREACHABLE
            ) from error
        if len(data) > MAX_FLEET_ANSWER_BYTES:
            raise TransientError(f"{self.url}{path} answered with more than {MAX_FLEET_ANSWER_BYTES} bytes")
        if answer.status >= 300:
            raise failure(answer.status, data, what=f"{method} {self.url}{path}")
        try:
            return msgspec.json.decode(data) if data else None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise TransientError(f"{self.url}{path} did not answer with JSON", hint="is it a fleet manager?") from None


def failure(status: int, body: bytes, *, what: str) -> EdgeServeError:
    """The error that a manager or an OCI registry answered with.

    Args:
        status: HTTP status, 300 or above.
        body: `{"error", "hint"}`, or `{"errors": [{"code", "message"}]}` of the distribution specification.
        what: The request, for an answer that says nothing.
    """
    meaning = f"{status} {responses.get(status, '')}".strip()
    message, hint = f"{what} was answered with status {meaning}", "check the token" if status in (401, 403) else ""
    try:
        document = msgspec.json.decode(body, type=_Answer)
        if document.errors:
            message, hint = f"{document.errors[0].code}: {document.errors[0].message}", ""
        elif document.error:
            message, hint = document.error, document.hint
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    kind = _ERRORS.get(status, TransientError if status >= 500 else InputError)
    return kind(_printable(message), hint=_printable(hint))


def reason(error: Exception) -> str:
    """What went wrong, without the names of classes and objects that urllib3 wraps around it."""
    cause: BaseException = error
    while isinstance(cause, urllib3.exceptions.MaxRetryError) and cause.reason is not None:
        cause = cause.reason
    text = str(cause.__cause__ or cause)
    return _printable(text.partition("Failed to establish a new connection: ")[2] or text)


class _OciError(msgspec.Struct, frozen=True):
    code: str = ""
    message: str = ""


class _Answer(msgspec.Struct, frozen=True):
    error: str = ""
    hint: str = ""
    errors: tuple[_OciError, ...] = ()


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text[:2000])


def _quoted(part: str) -> str:
    return urllib.parse.quote(part, safe="")


def _address(path: Path) -> str:
    try:
        document = msgspec.json.decode(path.read_bytes(), type=dict[str, str])
    except OSError:
        return ""
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path} is not valid: {error}", hint="remove it, and start the manager again") from error
    return document.get("http", "")


def _first_line(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").partition("\n")[0].strip()
    except OSError:
        return ""
