from __future__ import annotations

import copy
import itertools
import shutil

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeserve.contracts import topics
from edgeserve.contracts.desired import ACK_TYPE, Generation
from edgeserve.contracts.documents import encode
from edgeserve.contracts.errors import ConflictError, InputError, NotFoundError
from edgeserve.contracts.limits import MAX_REPORT_BYTES
from edgeserve.contracts.reported import Ack, DeploymentState, Presence
from edgeserve.contracts.telemetry import DeviceStats, ReleaseStats, encode_stats
from edgeserve.trust.envelope import verify


@pytest.fixture
def device(world):
    return world.enrol(1)[0]


def story(world, end: DeploymentState, then_other: bool) -> tuple[str, list[tuple[str, bytes]]]:
    """One device in a rollout; what it said, kept back from the manager."""
    release = world.add_release("v1", 1)
    other = world.add_release("v2", 2)
    device = world.devices["test.d1"]
    rollout = world.begin(release, "1", observe_s=1000.0)
    world.fleet.tick()
    device.fate[release] = end
    device.receive()
    told = len(device.sent)
    device.fleet = _Deaf()
    for _ in range(6):
        device.work()
    if then_other:  # somebody installs another release by hand
        device.active, device.release, device.state = other, other, DeploymentState.COMMITTED
        device.report()
    device.fleet = world.fleet
    return rollout, device.sent[told:]


class _Deaf:
    """Takes what a device says and forgets it."""

    def apply_reported(self, _device: str, _payload: bytes) -> None: ...

    def apply_events(self, _device: str, _payloads: list[bytes]) -> None: ...


def tell(world, said: list[tuple[str, bytes]]) -> None:
    for kind, payload in said:
        if kind == "reported":
            world.fleet.apply_reported("test.d1", payload)
        else:
            world.fleet.apply_events("test.d1", [payload])


STORIES = [
    (DeploymentState.COMMITTED, False, "committed"),
    (DeploymentState.COMMITTED, True, "diverged"),
    (DeploymentState.REJECTED, False, "rejected"),
    (DeploymentState.REVERTED, False, "reverted"),
    (DeploymentState.PROBATION, False, "in-progress"),
]


@pytest.mark.parametrize(("end", "then_other", "state"), STORIES, ids=[row[2] for row in STORIES])
def test_lost_order_and_doubled_messages_end_in_the_same_state(make_world, tmp_path, end, then_other, state):
    template = make_world()
    template.enrol(1)
    rollout, said = story(template, end, then_other)
    template.close()
    count = 0

    @settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.permutations(range(len(said))), st.lists(st.integers(0, len(said) - 1), max_size=6))
    def check(order: list[int], again: list[int]) -> None:
        nonlocal count
        count += 1
        path = tmp_path / f"copy-{count}.db"
        shutil.copyfile(template.path, path)
        world = make_world(path)
        world.clock.now = template.clock.now + 1
        try:
            tell(world, [said[index] for index in (*order, *again)])
            view = world.fleet.rollout(rollout)
            assert view.devices[0].state.value == state
            reported = world.fleet.device("test.d1").models[0]
            last = msgspec.json.decode([payload for kind, payload in said if kind == "reported"][-1])
            assert reported.active == last["models"][0]["active"]
        finally:
            world.close()

    check()


def test_an_older_report_does_not_replace_a_newer_one(world, device):
    device.report()
    old = device.sent[-1][1]
    device.active = world.add_release("v1", 1)
    device.report()
    world.fleet.apply_reported(device.name, old)
    assert world.fleet.device(device.name).models[0].active == device.active


def test_what_a_replaced_installation_still_says_is_ignored_and_the_change_is_on_record(world, device):
    device.active = world.add_release("v1", 1)
    device.report()
    ghost = copy.copy(device)
    device.lose_state()
    device.report()
    ghost.report()
    assert world.fleet.device(device.name).models[0].active == ""
    changes = [line for line in world.fleet.audit() if line.action == "device.reinstalled"]
    assert len(changes) == 1


def test_events_are_stored_once_and_acknowledged_cumulatively(world, device, signing_key):
    world.add_release("v1", 1)
    device.release, device.state = "sha256:" + "1" * 64, DeploymentState.COMMITTED
    device.event()
    device.event()
    first, second = (payload for kind, payload in device.sent if kind == "event")
    world.publish()
    world.fleet.apply_events(device.name, [first])
    ack = verify(
        world.outbox(topics.ack(device.name)),
        payload_type=ACK_TYPE,
        key=signing_key.public,
        kind=Ack,
        what="acknowledgement",
        limit=MAX_REPORT_BYTES,
    ).document
    assert (ack.install_id, ack.epoch, ack.seq) == (device.install, device.epoch, device.seq)
    assert [row.expiry_s for row in world.fleet.pending_outbox(10)] == [3600]
    world.fleet.apply_events(device.name, [second, first, second])


def test_a_last_will_of_an_earlier_start_is_ignored(world, device):
    device.restart()
    device.online()
    world.fleet.apply_presence(device.name, encode(Presence(on=False, epoch=device.epoch - 1)))
    assert world.fleet.device(device.name).online
    world.fleet.apply_presence(device.name, encode(Presence(on=False, epoch=device.epoch)))
    assert not world.fleet.device(device.name).online


def test_what_the_broker_retained_is_no_sign_of_life(world, device):
    seen = world.fleet.device(device.name).last_seen
    world.clock.now += 100
    world.fleet.apply_presence(device.name, encode(Presence(on=True, epoch=1)), live=False)
    device.report()
    world.fleet.apply_reported(device.name, device.sent[-1][1], live=False)
    world.clock.now += 100
    world.fleet.apply_reported(device.name, device.sent[-1][1], live=False)
    assert world.fleet.device(device.name).last_seen == seen + 100
    world.fleet.desired(device.name)
    assert world.fleet.device(device.name).last_seen == seen + 200, "a device that polls is alive"


def stats_of(world, device) -> tuple[int, int]:
    rows = world.fleet.device(device.name).stats
    return (rows[0].feedback, rows[0].correct) if rows else (0, 0)


lives = itertools.count()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_cumulative_counters_add_up_whatever_is_lost_doubled_or_late(world, data):
    device = world.devices.get("test.d1") or world.enrol(1)[0]
    before = stats_of(world, device)
    life = f"life-{next(lives)}"
    growth = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=6))
    totals = [sum(growth[: n + 1]) for n in range(len(growth))]
    sent = data.draw(st.lists(st.sampled_from(totals), max_size=8))
    for total in [*sent, totals[-1], *data.draw(st.lists(st.sampled_from(totals), max_size=4))]:
        one = ReleaseStats(model="digits", release="sha256:" + "1" * 64, requests=total, feedback=total, correct=total)
        stats = DeviceStats(device=device.name, started=life, releases=(one,))
        world.fleet.apply_stats(device.name, encode_stats(stats))
    after = stats_of(world, device)
    assert after[0] - before[0] == totals[-1]


GOOD = {
    "device": "test.d1",
    "fence": {"install_id": "i", "epoch": 1, "seq": 9},
    "agent": "1",
    "facts": {"architecture": "arm64"},
}
BAD_REPORTS = {
    "not json": b"\xff\xfe",
    "empty": b"",
    "a list": b"[]",
    "deep": b"[" * 50_000,
    "too large": b" " * (MAX_REPORT_BYTES + 1),
    "no fence": encode({key: value for key, value in GOOD.items() if key != "fence"}),
    "another device": encode(GOOD | {"device": "test.d2"}),
    "wildcard device": encode(GOOD | {"device": "+.#"}),
    "markup in a model": encode(GOOD | {"models": [{"model": "<script>"}]}),
    "a model twice": encode(GOOD | {"models": [{"model": "m"}, {"model": "m"}]}),
    "active is no digest": encode(GOOD | {"models": [{"model": "m", "active": "latest"}]}),
    "address that runs a script": encode(GOOD | {"http_url": "javascript:alert(1)"}),
    "epoch beyond 64 bits": encode(GOOD | {"fence": {"install_id": "i", "epoch": 1 << 63, "seq": 1}}),
    "negative seq": encode(GOOD | {"fence": {"install_id": "i", "epoch": 1, "seq": -1}}),
    "no install id": encode(GOOD | {"fence": {"install_id": "", "epoch": 1, "seq": 1}}),
    "generation beyond 64 bits": encode(GOOD | {"gen_seen": {"term": 1 << 62, "n": 0}}),
    "unknown state": encode(GOOD | {"models": [{"model": "m", "state": "dancing"}]}),
}


@pytest.mark.parametrize("payload", BAD_REPORTS.values(), ids=BAD_REPORTS.keys())
def test_a_bad_report_is_refused_and_changes_nothing(world, device, payload):
    before = world.fleet.device(device.name), world.fleet.desired(device.name)
    with pytest.raises(InputError):
        world.fleet.apply_reported(device.name, payload)
    assert (world.fleet.device(device.name), world.fleet.desired(device.name)) == before


@pytest.mark.parametrize("payload", [b"", b"{}", b"\x00", b'{"on": true, "epoch": 1e99}', b'{"on":1,"epoch":1}'])
def test_bad_presence_events_and_stats_are_refused(world, device, payload):
    for apply in (
        lambda: world.fleet.apply_presence(device.name, payload),
        lambda: world.fleet.apply_events(device.name, [payload]),
        lambda: world.fleet.apply_stats(device.name, payload),
    ):
        with pytest.raises(InputError):
            apply()


def test_statistics_of_another_device_or_with_impossible_counts_are_refused(world, device):
    with pytest.raises(InputError, match="name the device"):
        world.fleet.apply_stats(device.name, encode_stats(DeviceStats(device="test.d2", started="x")))
    good = ReleaseStats(model="m", release="r")
    raw = msgspec.to_builtins(DeviceStats(device=device.name, started="x", releases=(good,)))
    raw["releases"][0]["requests"] = (1 << 64) - 1
    with pytest.raises(InputError):
        world.fleet.apply_stats(device.name, msgspec.msgpack.encode(raw))


def test_a_device_that_is_not_enrolled_or_was_revoked_is_not_heard(world, device):
    device.report()
    payload = device.sent[-1][1]
    with pytest.raises(NotFoundError):
        world.fleet.apply_reported("test.nobody", payload.replace(b"test.d1", b"test.nobody"))
    world.fleet.revoke(device.name, actor="tester")
    with pytest.raises(NotFoundError):
        world.fleet.apply_reported(device.name, payload)
    with pytest.raises(NotFoundError):
        world.fleet.desired(device.name)


def test_a_token_is_good_until_it_is_revoked_and_is_not_in_the_database(world, tmp_path):
    token = world.fleet.enrol("test.a", labels={}, actor="tester")
    assert world.fleet.authenticate(token) == "test.a"
    for wrong in ("", token[:-1], token + "x", "\ud800"):
        assert world.fleet.authenticate(wrong) is None
    with pytest.raises(ConflictError):
        world.fleet.enrol("test.a", labels={}, actor="tester")
    world.fleet.revoke("test.a", actor="tester")
    assert world.fleet.authenticate(token) is None
    assert world.outbox(world.desired_topic("test.a")) == b"", "its retained document is removed"
    again = world.fleet.enrol("test.a", labels={}, actor="tester")
    assert world.fleet.authenticate(again) == "test.a"
    assert world.desired_of("test.a").gen == Generation(0, 2)
    world.close()
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert token.encode() not in stored
    assert again.encode() not in stored


@pytest.mark.parametrize("device", ["", "d", "a.b.c", "+.d", "a.#", "A.b", "a.b/c", "a.<b>", "a." + "b" * 64])
def test_a_name_that_is_no_device_id_is_not_enrolled(world, device):
    with pytest.raises(InputError):
        world.fleet.enrol(device, labels={}, actor="tester")


@pytest.mark.parametrize(
    "labels", [{"<b>": "x"}, {"a": "<b>"}, {f"k{n}": "" for n in range(33)}], ids=["key", "value", "many"]
)
def test_labels_that_are_not_allowed_are_refused(world, labels):
    with pytest.raises(InputError):
        world.fleet.enrol("test.a", labels=labels, actor="tester")
    assert world.fleet.devices() == []
