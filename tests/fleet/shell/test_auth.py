"""Who may do what: every route of the application against every kind of caller."""

from __future__ import annotations

import re
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Route

from edgeserve.contracts.errors import DeviceError
from edgeserve_fleet.app import HostCheck
from edgeserve_fleet.auth import SESSION_COOKIE, load_operator_token

DIGEST = "sha256:" + "0" * 64
FILLED = {
    "device": "nobody", "rollout": "r0", "name": "digits", "digest": DIGEST, "reference": "v0",
    "session": "0" * 32, "file": "style.css",
}  # fmt: skip

PUBLIC = {"/healthz", "/login", "/logout", "/static/{file}"}
VIEW = {
    "GET /", "GET /fragment", "GET /v1/devices", "GET /v1/devices/{device}", "GET /v1/devices/{device}/why",
    "GET /v1/releases", "GET /v1/rollouts", "GET /v1/rollouts/{rollout}", "GET /v1/status", "GET /v1/changes",
}  # fmt: skip
DEVICE = {
    "GET /v1/me/desired", "GET /v1/me/halt", "POST /v1/me/reported", "POST /v1/me/events", "POST /v1/me/stats",
}  # fmt: skip
PULL = {"GET /v2/", "GET /v2/{name}/blobs/{digest}", "GET /v2/{name}/manifests/{reference}"}
STREAM = "GET /v1/changes"


@pytest.fixture(scope="module")
def device_token(manager):
    return manager.fleet.enrol("default.auth-1", labels={}, actor="test")


def routes(manager: Any) -> list[tuple[str, str]]:
    app = manager._server.config.app
    while not isinstance(app, Starlette):
        app = app._app
    return [
        (method, route.path)
        for route in app.routes
        if isinstance(route, Route)
        for method in sorted((route.methods or set()) - {"HEAD"})
    ]


def expected(method: str, path: str) -> set[str]:
    """Callers that may pass, written down again here: the policy is not asked what the policy is."""
    line = f"{method} {path}"
    if path in PUBLIC:
        return {"nobody", "browser", "device", "operator"}
    if line in VIEW:
        return {"browser", "operator"}
    if line in DEVICE:
        return {"device"}
    if line in PULL:
        return {"device", "operator"}
    return {"operator"}


def test_every_route_lets_exactly_its_callers_pass(http, manager, device_token):
    cookie = f"{SESSION_COOKIE}={session(http)}"
    found = routes(manager)
    assert len(found) >= 35
    for method, path in found:
        asked = re.sub(r"{(\w+)}", lambda match: FILLED[match[1]], path)
        for caller in ("nobody", "garbage", "browser", "device", "operator"):
            if f"{method} {path}" == STREAM and caller in ("browser", "operator"):
                continue  # never ends; test_changes.py opens it
            token = {"nobody": None, "browser": None, "garbage": "not-a-token", "device": device_token, "operator": ""}
            headers = {"Cookie": cookie} if caller == "browser" else {}
            answer = http(method, asked, token=token[caller], headers=headers, body=b"" if method != "GET" else None)
            refused = answer.status in (401, 403) or answer.headers.get("Location") == "/login"
            allowed = caller in expected(method, path) or (caller == "garbage" and path in PUBLIC)
            if path in ("/login", "/logout"):
                continue  # they answer everyone, the first with 403 when the token is wrong; test_page.py
            assert refused is not allowed, f"{caller}: {method} {path} -> {answer.status}"


def session(http: Any) -> str:
    answer = http("POST", "/login", token=None, body=f"token={http.manager.operator_token}".encode())
    return str(answer.headers["Set-Cookie"].partition("=")[2].partition(";")[0])


def test_a_revoked_device_is_shut_out_at_once(http, manager):
    token = manager.fleet.enrol("default.auth-2", labels={}, actor="test")
    assert http("GET", "/v1/me/desired", token=token).status == 200
    assert http("DELETE", "/v1/devices/auth-2").status == 200
    assert http("GET", "/v1/me/desired", token=token).status == 401
    assert http("GET", "/v2/", token=token).status == 401


def test_a_device_speaks_for_itself_alone(http, device_token):
    answer = http("POST", "/v1/me/stats", token=device_token, body=b"\x83")
    assert answer.status == 400
    assert http("GET", "/v1/devices/auth-1", token=device_token).status == 403


@pytest.mark.parametrize(
    ("host", "status"),
    [
        pytest.param("localhost:1", 200, id="name"),
        pytest.param("127.0.0.1", 200, id="address without port"),
        pytest.param("[::1]:8080", 200, id="IPv6"),
        pytest.param("LOCALHOST", 200, id="upper case"),
        pytest.param("evil.example", 403, id="rebound name"),
        pytest.param("127.0.0.1.evil.example", 403, id="prefix of a name"),
        pytest.param("localhost.", 403, id="trailing dot"),
        pytest.param("", 403, id="empty"),
        pytest.param("<script>", 403, id="markup"),
    ],
)
def test_another_name_than_the_managers_own_is_refused_on_loopback(http, host, status):
    answer = http("GET", "/healthz", token=None, headers={"Host": host})
    assert answer.status == status
    assert status == 200 or answer.headers["Content-Type"] == "application/json"


def test_the_host_check_is_in_place(manager):
    assert isinstance(manager._server.config.app, HostCheck)


def test_an_operator_token_is_made_once_and_kept_secret(tmp_path):
    path = tmp_path / "operator.token"
    token = load_operator_token(path)
    assert len(token) > 40
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_operator_token(path) == token


@pytest.mark.parametrize("text", ["", "short\n", "\n" * 50], ids=["empty", "short", "blank lines"])
def test_an_operator_token_that_is_no_secret_is_refused(tmp_path, text):
    path = tmp_path / "operator.token"
    path.write_text(text)
    with pytest.raises(DeviceError, match="too short"):
        load_operator_token(path)
