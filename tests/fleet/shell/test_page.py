"""The web page: login, escaping, headers, and what it shows."""

from __future__ import annotations

import re
import time
from html.parser import HTMLParser
from typing import Any

import pytest

from edgeserve.contracts.device import DeviceFacts
from edgeserve.contracts.documents import encode
from edgeserve.contracts.limits import SEEN_LATELY_S
from edgeserve.contracts.reported import Fence, ModelReport, Reported
from edgeserve.contracts.rollout import RolloutSpec, parse_waves
from edgeserve.contracts.telemetry import DeviceStats, ReleaseStats, encode_stats
from edgeserve_fleet.auth import SESSION_COOKIE
from edgeserve_fleet.content import device_row, rollout_row
from edgeserve_fleet.page import ago

RELEASE = "sha256:" + "a" * 64
XSS = "<script>alert('x')</script><img src=x onerror=alert(1)>"


class Reader(HTMLParser):
    """Collects tags with attributes, and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def log_in(http: Any, token: str = "") -> Any:
    return http("POST", "/login", token=None, body=f"token={token or http.manager.operator_token}".encode())


@pytest.fixture
def cookie(http):
    return {"Cookie": log_in(http).headers["Set-Cookie"].partition(";")[0]}


def fragment(http: Any, cookie: dict[str, str]) -> Reader:
    answer = http("GET", "/fragment", token=None, headers=cookie)
    assert answer.status == 200
    return Reader(answer.data.decode())


def test_the_page_asks_for_the_token_first(http):
    answer = http("GET", "/", token=None)
    assert (answer.status, answer.headers["Location"]) == (303, "/login")
    assert 'name="token"' in http("GET", "/login", token=None).data.decode()


def test_the_right_token_opens_the_page(http):
    answer = log_in(http)
    assert (answer.status, answer.headers["Location"]) == (303, "/")
    made = answer.headers["Set-Cookie"].lower()
    assert "httponly" in made
    assert "samesite=strict" in made
    assert http.manager.operator_token.lower() not in made
    page = http("GET", "/", token=None, headers={"Cookie": answer.headers["Set-Cookie"].partition(";")[0]})
    assert (page.status, page.headers["Content-Type"]) == (200, "text/html; charset=utf-8")


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"token=wrong", id="wrong"),
        pytest.param(b"", id="empty"),
        pytest.param(b"token=", id="no token"),
        pytest.param(b"other=1", id="other field"),
        pytest.param(b"token=%C3%A4", id="not ASCII"),
        pytest.param("token=ä".encode(), id="raw bytes"),
        pytest.param(b"a=1&" * 100, id="many fields"),
        pytest.param(b"token=" + b"x" * 10_000, id="too long"),
    ],
)
def test_another_token_does_not(http, body):
    answer = http("POST", "/login", token=None, body=body)
    assert answer.status in (400, 403, 413)
    assert "Set-Cookie" not in answer.headers


@pytest.mark.parametrize("value", ["", "x", "0" * 64, "\u00e4"])
def test_a_cookie_that_was_not_given_out_opens_nothing(http, value):
    cookie = {"Cookie": f"{SESSION_COOKIE}={value}".encode("latin-1")}
    assert http("GET", "/", token=None, headers=cookie).status == 303


def test_the_cookie_reads_and_never_changes_anything(http, cookie):
    assert http("GET", "/v1/devices", token=None, headers=cookie).status == 200
    assert http("POST", "/v1/devices", token=None, headers=cookie, body={"device": "page-cookie"}).status == 403
    assert http("GET", "/v2/", token=None, headers=cookie).status == 403


def test_logging_out_takes_the_cookie_away(http, cookie):
    answer = http("POST", "/logout", token=None, headers=cookie, body=b"")
    assert (answer.status, answer.headers["Location"]) == (303, "/login")
    assert "max-age=0" in answer.headers["Set-Cookie"].lower()


@pytest.mark.parametrize(
    "path", ["/", "/login", "/fragment", "/static/page.js", "/static/style.css", "/static/icon.svg"]
)
def test_every_part_of_the_page_forbids_foreign_and_inline_code(http, cookie, path):
    answer = http("GET", path, token=None, headers=cookie)
    assert answer.status == 200
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    if "html" in answer.headers["Content-Type"]:
        page = Reader(answer.data.decode())
        assert not [
            tag for tag, values in page.tags if any(name.startswith("on") or name == "style" for name in values)
        ]
        assert all(values.get("src", "").startswith("/static/") for tag, values in page.tags if tag == "script")
        assert not re.search(r"(?:src|href)=\"(?:https?:)?//", answer.data.decode())


@pytest.mark.parametrize("file", ["nothing.js", "..%2ftemplates%2fpage.html", "page.html"])
def test_only_the_pages_own_files_are_served(http, file):
    assert http("GET", f"/static/{file}", token=None).status == 404


def test_the_page_shows_a_device_with_its_release_accuracy_and_simulated_hardware(http, cookie, manager):
    manager.fleet.enrol("default.page-1", labels={"site": "hall-3"}, profile="raspberry-pi-5", actor="test")
    report = Reported(
        device="default.page-1",
        fence=Fence(install_id="i", epoch=1, seq=1),
        agent="0.1.0",
        facts=DeviceFacts(architecture="arm64", simulated=True),
        models=(ModelReport(model="digits", active=RELEASE, version="v7", executing_device="CPU (simulated)"),),
    )
    manager.fleet.apply_reported("default.page-1", encode(report))
    counted = ReleaseStats(model="digits", release=RELEASE, requests=50, feedback=40, correct=30)
    stats = DeviceStats(device="default.page-1", started="life", releases=(counted,))
    manager.fleet.apply_stats("default.page-1", encode_stats(stats))
    text = fragment(http, cookie).text
    for shown in ("default.page-1", "site=hall-3", "raspberry-pi-5", "simulated", "v7", "CPU (simulated)", "75.0 %"):
        assert shown in text


def test_what_a_device_says_is_never_markup(http, cookie, manager):
    manager.fleet.enrol("default.page-2", labels={}, actor="test")
    model = ModelReport(
        model="digits", active=RELEASE, version="v1", target=XSS, precision=XSS, executing_device=XSS, reason=XSS
    )
    report = Reported(
        device="default.page-2",
        fence=Fence(install_id="i", epoch=1, seq=1),
        agent=XSS,
        facts=DeviceFacts(architecture=XSS, profile=XSS),
        models=(model,),
        error=XSS,
    )
    manager.fleet.apply_reported("default.page-2", encode(report))
    page = fragment(http, cookie)
    assert "<script>alert('x')</script>" in page.text, "it is shown, as text"
    assert not [tag for tag, _values in page.tags if tag in ("script", "img")]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "never"), (0, "now"), (42, "42 s ago"), (90, "1 min ago"), (7300, "2 h ago"), (200_000, "2 d ago")],
)
def test_ages_are_told_as_people_do(seconds, text):
    assert ago(seconds) == text


def test_a_rollout_shows_each_wave_as_it_is_and_says_nothing_twice(http, cookie, manager, make_release):
    release = make_release("page-model")
    fleet = manager.fleet
    fleet.add_release(
        digest=release.digest, identity=release.identity, index_size=release.index_size, variants=[], actor="test"
    )
    for number in (1, 2):
        fleet.enrol(f"default.page-r{number}", labels={"page": "waves"}, actor="test")
    spec = RolloutSpec(
        model="page-model", release=release.digest, waves=parse_waves("1,2,5"), selector={"page": "waves"}
    )
    rollout = fleet.create_rollout(spec, actor="test").rollout
    now = time.time()
    drafted = rollout_row(fleet.rollout(rollout), now)
    assert [wave["size"] for wave in drafted["waves"]] == ["1 device", "2 devices in all", "5 devices in all"]
    fleet.start(rollout, actor="test")
    deadline = time.monotonic() + 20
    while fleet.rollout(rollout).phase != "observing":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    running = rollout_row(fleet.rollout(rollout), now)
    assert [(wave["size"], wave["text"]) for wave in running["waves"]] == [
        ("1 device", "observing"),
        ("2 devices in all", "not begun"),
    ]
    fleet.abort(rollout, actor="test")
    aborted = rollout_row(fleet.rollout(rollout), now)
    assert [wave["text"] for wave in aborted["waves"]] == ["aborted", "not begun"]
    assert (aborted["reason"], aborted["verdicts"]) == ("abort by test", [])


def test_a_device_that_polls_is_not_shown_as_offline(manager):
    manager.fleet.enrol("default.page-3", labels={}, actor="test")
    now = time.time()
    assert device_row(manager.fleet.device("default.page-3"), now)["presence"] == "never seen"
    manager.fleet.desired("default.page-3")
    view = manager.fleet.device("default.page-3")
    assert device_row(view, now)["presence"] == "seen lately"
    assert device_row(view, now + SEEN_LATELY_S + 60)["presence"] == "offline"
    assert not any("offline" in line for line in manager.fleet.why("default.page-3"))
