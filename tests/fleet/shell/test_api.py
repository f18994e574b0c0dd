"""The operator's and the device's REST API, over the wire."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from edgeserve.client.registry import RegistryClient
from edgeserve.contracts.desired import HALT_TYPE, Halt
from edgeserve.contracts.device import DeviceFacts
from edgeserve.contracts.documents import encode
from edgeserve.contracts.limits import MAX_API_BODY_BYTES, MAX_HALT_BYTES, MAX_REPORT_BYTES
from edgeserve.contracts.reported import DeploymentState, Event, Fence, Reported
from edgeserve.contracts.telemetry import DeviceStats, encode_stats
from edgeserve.trust.envelope import verify
from edgeserve.trust.keys import PublicKey
from edgeserve_fleet.config import FleetConfig

ZERO = "sha256:" + "0" * 64


def enrol(http: Any, device: str, **fields: Any) -> dict[str, Any]:
    answer = http("POST", "/v1/devices", body={"device": device, **fields})
    assert answer.status == 201, answer.data
    found: dict[str, Any] = answer.json()
    return found


def publish(http: Any, release: Any) -> dict[str, Any]:
    name = release.identity.name
    RegistryClient(http.url, name, token=http.manager.operator_token).push(release)
    answer = http("POST", "/v1/releases", body={"digest": release.digest})
    assert answer.status == 201, answer.data
    found: dict[str, Any] = answer.json()
    return found


def reported(device: str, **fields: Any) -> bytes:
    values: dict[str, Any] = {
        "device": device, "fence": Fence(install_id="i1", epoch=1, seq=1), "agent": "0.1.0",
        "facts": DeviceFacts(architecture="amd64", profile="x86-64", simulated=True),
    }  # fmt: skip
    return encode(Reported(**{**values, **fields}))


def poll(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in 20 s"
        time.sleep(0.02)


# Devices -------------------------------------------------------------------------------------------


def test_an_enrolled_device_gets_all_that_it_needs(http, manager):
    answer = enrol(http, "api-1", labels={"site": "hall-3"}, profile="raspberry-pi-5")
    assert answer["device"] == "default.api-1"
    assert answer["manager_key"].startswith("ed25519:")
    assert answer["mqtt_url"] == manager.mqtt_url
    assert answer["manager_url"] == manager.url
    view = http("GET", "/v1/devices/api-1").json()
    assert view == http("GET", "/v1/devices/default.api-1").json()
    assert (view["labels"], view["profile"], view["revoked"]) == ({"site": "hall-3"}, "raspberry-pi-5", False)
    assert view["device"] in [row["device"] for row in http("GET", "/v1/devices").json()]
    assert answer["token"] not in http("GET", "/v1/devices").data.decode()


def test_a_device_is_enrolled_once(http):
    enrol(http, "api-2")
    again = http("POST", "/v1/devices", body={"device": "api-2"})
    assert again.status == 409
    assert again.json()["hint"]


def test_a_revoked_device_can_be_enrolled_again_with_another_token(http):
    first = enrol(http, "api-3")["token"]
    assert http("DELETE", "/v1/devices/api-3").json() == {"revoked": "default.api-3"}
    assert enrol(http, "api-3")["token"] != first


def test_why_answers_in_sentences(http):
    enrol(http, "api-4")
    lines = http("GET", "/v1/devices/api-4/why").json()
    assert lines
    assert all(isinstance(line, str) for line in lines)


@pytest.mark.parametrize(
    "device",
    ["a+b", "a#", "a/b", "es1/x", "<b>x</b>", "A", "-a", "a" * 64, "", "a.b.c", "..", "default.", "a b", "ä", "a\n"],
)
def test_a_device_name_with_wildcards_or_markup_is_refused(http, device):
    answer = http("POST", "/v1/devices", body={"device": device})
    assert answer.status == 400
    assert "device" in answer.json()["error"]
    assert "<b>" not in [row["device"] for row in http("GET", "/v1/devices").json()]


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"labels": {"site": "<script>alert(1)</script>"}}, id="markup in a label"),
        pytest.param({"labels": {"Site!": "x"}}, id="label key"),
        pytest.param({"labels": {"site": "x" * 64}}, id="long label"),
        pytest.param({"labels": {f"l{n}": "x" for n in range(33)}}, id="too many labels"),
        pytest.param({"labels": ["site"]}, id="labels that are a list"),
        pytest.param({"profile": "<b>"}, id="markup in the profile"),
        pytest.param({"profile": "../../etc"}, id="climbing profile"),
        pytest.param({"lables": {}}, id="unknown field"),
    ],
)
def test_a_device_with_bad_fields_is_refused_whole(http, fields):
    answer = http("POST", "/v1/devices", body={"device": "api-bad", **fields})
    assert answer.status == 400
    assert http("GET", "/v1/devices/api-bad").status == 404


# Bodies --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/devices", "/v1/releases", "/v1/rollouts", "/v1/rollouts/plan"])
@pytest.mark.parametrize(
    ("body", "status"),
    [
        pytest.param(b"", 400, id="empty"),
        pytest.param(b"{", 400, id="half"),
        pytest.param(b"\xff\xfe", 400, id="not UTF-8"),
        pytest.param(b'{"device": "\xff"}', 400, id="text that is not UTF-8"),
        pytest.param(b"[]", 400, id="list"),
        pytest.param(b"null", 400, id="null"),
        pytest.param(b'{"a":' * 100_000, 400, id="deep"),
        pytest.param(b'{"device": NaN}', 400, id="NaN"),
        pytest.param(b" " * (MAX_API_BODY_BYTES + 1), 413, id="too large"),
    ],
)
def test_a_body_that_is_no_document_is_refused(http, path, body, status):
    answer = http("POST", path, body=body)
    assert answer.status == status
    assert set(answer.json()) == {"error", "hint"}


def test_a_body_of_unknown_length_is_cut_off_at_the_limit(http):
    def endless():
        for _ in range(10 * MAX_API_BODY_BYTES // 65536):
            yield b" " * 65536

    answer = http._pool.request(
        "POST",
        http.url + "/v1/devices",
        body=endless(),
        headers={"Authorization": f"Bearer {http.manager.operator_token}"},
    )
    assert answer.status == 413


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        pytest.param("GET", "/v1/nothing", 404, id="no such route"),
        pytest.param("PUT", "/v1/devices", 400, id="method"),
        pytest.param("GET", "/v1/devices/unknown", 404, id="no such device"),
        pytest.param("GET", "/v1/devices/%3Cb%3E", 400, id="markup as device"),
        pytest.param("GET", "/v1/devices/unknown/why", 404, id="why of none"),
        pytest.param("DELETE", "/v1/devices/unknown", 404, id="revoke none"),
        pytest.param("GET", "/v1/rollouts/unknown", 404, id="no such rollout"),
        pytest.param("GET", "/v1/rollouts/%3Cb%3E", 400, id="markup as rollout"),
        pytest.param("POST", "/v1/rollouts/unknown/start", 404, id="start none"),
        pytest.param("POST", "/v1/rollouts/unknown/explode", 404, id="no such action"),
    ],
)
def test_what_is_not_there_is_an_error_in_json(http, method, path, status):
    answer = http(method, path)
    assert answer.status == status
    assert set(answer.json()) == {"error", "hint"}
    assert answer.headers["Content-Type"] == "application/json"  # what it quotes is never taken for a page
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


# Releases and rollouts -----------------------------------------------------------------------------


def test_a_pushed_release_is_read_and_registered(http, make_release):
    release = make_release("api-model", "v1")
    view = publish(http, release)
    assert (view["name"], view["version"], view["digest"]) == ("api-model", "v1", release.digest)
    assert [variant["target"] for variant in view["variants"]] == ["x86-cpu"]
    assert publish(http, release) == view


def test_a_release_that_was_not_pushed_is_refused(http, make_release):
    release = make_release("api-unpushed")
    answer = http("POST", "/v1/releases", body={"digest": release.digest})
    assert answer.status == 404
    assert "publish" in answer.json()["hint"]


def test_a_release_with_a_missing_blob_is_refused(http, manager, make_release):
    release = make_release("api-missing", weights=b"only here")
    RegistryClient(http.url, "api-missing", token=manager.operator_token).push(release)
    weights = next(iter(release.variants[0].files.values()))
    (manager.state.path / "blobs" / "sha256" / weights.digest.partition(":")[2]).unlink()
    assert http("POST", "/v1/releases", body={"digest": release.digest}).status == 404


def test_a_release_with_a_flipped_byte_is_refused(http, manager, make_release):
    release = make_release("api-flipped", weights=b"good bytes")
    RegistryClient(http.url, "api-flipped", token=manager.operator_token).push(release)
    weights = next(iter(release.variants[0].files.values()))
    (manager.state.path / "blobs" / "sha256" / weights.digest.partition(":")[2]).write_bytes(b"evil bytes")
    assert http("POST", "/v1/releases", body={"digest": release.digest}).status == 403


def test_another_release_cannot_take_a_version(http, make_release):
    publish(http, make_release("api-taken", "v1", weights=b"first"))
    other = make_release("api-taken", "v1b", counter=1, weights=b"second")
    RegistryClient(http.url, "api-taken", token=http.manager.operator_token).push(other)
    assert http("POST", "/v1/releases", body={"digest": other.digest}).status == 409


@pytest.mark.parametrize("text", ["", "sha256:12", "latest", "md5:abc", 7, None])
def test_a_digest_that_is_none_is_refused(http, text):
    assert http("POST", "/v1/releases", body={"digest": text}).status == 400


def spec(release: str, **fields: Any) -> dict[str, Any]:
    return {"release": release, "waves": "1", "selector": {"rollout": "api"}, **fields}


def test_a_rollout_is_created_planned_and_repeated_by_its_key(http, make_release):
    release = publish(http, make_release("api-rollout"))
    enrol(http, "api-r1", labels={"rollout": "api"})
    plan = http("POST", "/v1/rollouts/plan", body=spec("api-rollout:v1"))
    assert plan.status == 200
    assert plan.json()["release"] == release["digest"]
    headers = {"Idempotency-Key": "key-1"}
    first = http("POST", "/v1/rollouts", body=spec("api-rollout:v1"), headers=headers)
    assert (first.status, first.json()["state"], first.json()["model"]) == (201, "draft", "api-rollout")
    again = http("POST", "/v1/rollouts", body=spec("api-rollout:v1"), headers=headers)
    assert again.json()["rollout"] == first.json()["rollout"]
    other = http("POST", "/v1/rollouts", body=spec("api-rollout:v1", waves="2"), headers=headers)
    assert other.status == 409
    assert first.json()["rollout"] in [row["rollout"] for row in http("GET", "/v1/rollouts").json()]
    aborted = http("POST", f"/v1/rollouts/{first.json()['rollout']}/abort")
    assert (aborted.status, aborted.json()["state"]) == (200, "aborted")
    assert http("POST", f"/v1/rollouts/{first.json()['rollout']}/resume").status == 409


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"waves": "1,none"}, id="wave is a word"),
        pytest.param({"waves": "3,1"}, id="waves shrink"),
        pytest.param({"waves": ""}, id="no waves"),
        pytest.param({"waves": "200%"}, id="more than all"),
        pytest.param({"waves": "9" * 400}, id="huge wave"),
        pytest.param({"waves": "nan%"}, id="wave is not a number"),
        pytest.param({"waves": [{"count": 1, "percent": 5}]}, id="count and percentage"),
        pytest.param({"waves": [{"count": n + 1} for n in range(65)]}, id="too many waves"),
        pytest.param({"gate": {"margin": 2}}, id="margin"),
        pytest.param({"gate": {"confidence": 1}}, id="confidence"),
        pytest.param({"on_fail": "shrug"}, id="on_fail"),
        pytest.param({"probation_s": -1}, id="negative probation"),
        pytest.param({"wave_deadline_s": 0}, id="no deadline"),
        pytest.param({"observe_s": "soon"}, id="time is a word"),
        pytest.param({"wawes": "1"}, id="unknown field"),
        pytest.param({"selector": ["site"]}, id="selector is a list"),
        pytest.param({"release": 7}, id="release is a number"),
    ],
)
def test_a_rollout_that_makes_no_sense_is_refused(http, make_release, fields):
    publish(http, make_release("api-nonsense"))
    answer = http("POST", "/v1/rollouts", body=spec("api-nonsense:v1") | fields)
    assert answer.status == 400, answer.data
    assert "api-nonsense" not in [row["model"] for row in http("GET", "/v1/rollouts").json()]


@pytest.mark.parametrize("release", ["none:v1", "none", ZERO, "none@" + ZERO])
def test_a_rollout_of_an_unknown_release_is_refused(http, release):
    assert http("POST", "/v1/rollouts", body=spec(release)).status == 404


# The device's side ---------------------------------------------------------------------------------


def test_desired_is_not_sent_again_while_it_is_the_same(http):
    token = enrol(http, "api-5")["token"]
    first = http("GET", "/v1/me/desired", token=token)
    assert first.status == 200
    envelope = first.json()
    assert envelope["payloadType"] == "application/vnd.edgeserve.desired.v1+json"
    again = http("GET", "/v1/me/desired", token=token, headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status, again.data, again.headers["ETag"]) == (304, b"", first.headers["ETag"])
    other = http("GET", "/v1/me/desired", token=token, headers={"If-None-Match": '"something else"'})
    assert other.status == 200


def test_a_device_that_polls_gets_the_list_of_halted_releases(serve, make_http, make_release, tmp_path):
    with serve(FleetConfig(state_dir=str(tmp_path / "halt"), listen="127.0.0.1:0")) as manager:
        http = make_http(manager)
        token = enrol(http, "halt-1")["token"]
        empty = http("GET", "/v1/me/halt", token=token)
        assert (empty.status, empty.data) == (204, b""), "nothing was ever halted"
        release = publish(http, make_release("halt-model"))
        rollout = http("POST", "/v1/rollouts", body={"release": release["digest"], "waves": "1"}).json()["rollout"]
        assert http("POST", f"/v1/rollouts/{rollout}/start").status == 200
        poll(lambda: http("GET", f"/v1/rollouts/{rollout}").json()["state"] == "running")
        assert http("POST", f"/v1/rollouts/{rollout}/rollback").status == 200
        first = http("GET", "/v1/me/halt", token=token)
        assert first.status == 200
        key = PublicKey.from_text(enrol(http, "halt-2")["manager_key"])
        verified = verify(
            first.data, payload_type=HALT_TYPE, key=key, kind=Halt, what="halt list", limit=MAX_HALT_BYTES
        )
        assert verified.document.releases == (release["digest"],)
        again = http("GET", "/v1/me/halt", token=token, headers={"If-None-Match": first.headers["ETag"]})
        assert (again.status, again.data, again.headers["ETag"]) == (304, b"", first.headers["ETag"])


def test_what_a_device_reports_is_seen_by_the_operator(http):
    token = enrol(http, "api-6")["token"]
    assert http("POST", "/v1/me/reported", token=token, body=reported("default.api-6")).status == 204
    stats = encode_stats(DeviceStats(device="default.api-6", started="life"))
    assert http("POST", "/v1/me/stats", token=token, body=stats).status == 204
    view = http("GET", "/v1/devices/api-6").json()
    assert view["facts"]["simulated"] is True
    assert view["last_seen"] > 0


def test_events_are_stored_and_acknowledged_in_the_answer(http):
    token = enrol(http, "api-7")["token"]
    device = "default.api-7"
    events = [
        Event(
            device=device, fence=Fence(install_id="i1", epoch=2, seq=seq), model="digits", release=ZERO, rollout="",
            state=DeploymentState.FETCHING,
        )
        for seq in (4, 5)
    ]  # fmt: skip
    answer = http("POST", "/v1/me/events", token=token, body=b"[" + b",".join(map(encode, events)) + b"]")
    assert (answer.status, answer.json()) == (200, {"device": device, "install_id": "i1", "epoch": 2, "seq": 5})


@pytest.fixture(scope="module")
def token_of_one(manager):
    return manager.fleet.enrol("default.api-8", labels={}, actor="test")


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        pytest.param("reported", b"{}", 400, id="report without fields"),
        pytest.param("reported", reported("default.other"), 400, id="report of another device"),
        pytest.param("reported", b"x" * (MAX_REPORT_BYTES + 1), 413, id="report too large"),
        pytest.param("stats", b"\xc1", 400, id="not MessagePack"),
        pytest.param("stats", encode_stats(DeviceStats(device="default.other", started="x")), 400, id="other's stats"),
        pytest.param("reported", b'{"device": "\xff"}', 400, id="report that is not UTF-8"),
        pytest.param("events", b'["\xff"]', 400, id="events that are not UTF-8"),
        pytest.param("events", b'[{"device": "\xff"}]', 400, id="event that is not UTF-8"),
        pytest.param("stats", b"\x81\xa6device\xa1\xff", 400, id="statistics that are not UTF-8"),
        pytest.param("events", b"{}", 400, id="events that are no array"),
        pytest.param("events", b"[]", 400, id="no events"),
        pytest.param("events", b"[{}]", 400, id="event without fields"),
        pytest.param("events", json.dumps([{}] * 300).encode(), 400, id="too many events"),
    ],
)
def test_a_report_that_is_none_is_refused(http, token_of_one, path, body, status):
    answer = http("POST", f"/v1/me/{path}", token=token_of_one, body=body)
    assert answer.status == status
    assert msgspec.json.decode(answer.data)["error"]


def test_status_says_how_the_manager_runs(http, manager):
    status = http("GET", "/v1/status").json()
    assert (status["url"], status["mqtt_url"], status["insecure"]) == (manager.url, manager.mqtt_url, False)
    assert status["devices"] == len(manager.fleet.devices())
