from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import traceback

import pytest
from sqlalchemy import update

from edgeserve.contracts.desired import DESIRED_TYPE, Desired, Generation
from edgeserve.contracts.errors import DeviceError, InputError
from edgeserve.contracts.limits import DESIRED_LIFETIME_S, MAX_DESIRED_BYTES
from edgeserve.trust.envelope import verify
from edgeserve_fleet import schema
from edgeserve_fleet.database import Database
from edgeserve_fleet.views import RolloutView


def story(world, signal_at: int) -> None:
    """Two devices, a rollout in two waves, its rollback. Begins where the database says; SIGKILL at a step."""
    left = signal_at

    def on_step(_step: str) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    world.open(on_step)
    known = {view.device for view in world.fleet.devices()}
    for name in ("test.d1", "test.d2"):
        if name not in known:
            world.fleet.enrol(name, labels={}, actor="tester")
        world.join(name)
    spec = world.spec(world.add_release("v1", 1), "1,2", observe_s=0.0)
    rollout = world.fleet.create_rollout(spec, actor="tester", idempotency_key="one").rollout
    if world.fleet.rollout(rollout).state == "draft":
        world.fleet.start(rollout, actor="tester")
    for _ in range(60):
        world.second(requests=0)
        state = world.fleet.rollout(rollout).state
        if state == "succeeded":
            world.fleet.rollback(rollout, actor="tester")
        if state == "rolled-back":
            return
    raise AssertionError(f"it is {state} at the end")


def killed(world, step: int) -> bool:
    """Run the story in a process of its own that is killed at a step; False when it came to its end before."""
    child = os.fork()
    if not child:
        try:
            story(world, step)
        except BaseException:  # noqa: BLE001 - nothing of this process may go on in the test runner
            traceback.print_exc()
            os._exit(3)
        os._exit(0)
    _child, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) in (0, -signal.SIGKILL)
    return os.WIFSIGNALED(status)


def test_killed_at_any_step_the_outbox_holds_what_the_database_wants(tmp_path, make_world, signing_key):
    """SIGKILL at the begin, before and after each commit; each time from a fresh database; some go on to the end."""
    empty = make_world()
    empty.close()
    step, kills = 1, 0
    while True:
        shutil.copyfile(empty.path, tmp_path / f"crash-{step}.db")
        world = make_world(tmp_path / f"crash-{step}.db")
        world.close()
        if not killed(world, step):
            break
        kills += 1
        _check_outbox(make_world, world.path, signing_key)
        if kills % 4 == 0:
            assert not killed(world, 1_000_000)
            after = _check_outbox(make_world, world.path, signing_key)
            assert [view.state for view in after] == ["rolled-back"]
        step += 1 + step // 3  # every step of the beginning, then fewer: the steps of a rollout repeat
    assert kills >= 12


def _check_outbox(make_world, path, key) -> list[RolloutView]:
    world = make_world(path)
    waiting = {row.topic: row.payload for row in world.fleet.pending_outbox(1000)}
    for view in world.fleet.devices():
        envelope = world.fleet.desired(view.device)[1]
        assert waiting[world.desired_topic(view.device)] == envelope, "nothing published it, so it must wait here"
        document = verify(
            envelope,
            payload_type=DESIRED_TYPE,
            key=key.public,
            kind=Desired,
            what="desired document",
            limit=MAX_DESIRED_BYTES,
        ).document
        assert str(document.gen) == view.gen
        assert [target.release for target in document.models] == [m.desired for m in view.models if m.desired]
    rollouts = world.fleet.rollouts()
    world.close()
    return rollouts


def test_a_restored_copy_raises_the_term_so_that_devices_listen_again(fleet_of_six, make_world, tmp_path):
    world = fleet_of_six
    copy_of_now = tmp_path / "backup.db"
    with sqlite3.connect(world.path) as source, sqlite3.connect(copy_of_now) as target:
        source.backup(target)
    source.close()
    target.close()
    old = world.active().pop()
    new = world.install("v2", 2)
    rollout = world.fleet.rollouts()[0].rollout
    world.fleet.rollback(rollout, actor="tester")
    world.run(rollout, {"rolled-back"}, requests=0)
    assert world.devices["test.d1"].halt_seen == (0, 1)
    gen = world.devices["test.d1"].gen_seen
    world.close()
    # The disk dies; the copy from before v2 is put in its place.
    restored = make_world(copy_of_now)
    restored.clock.now = world.clock.now
    restored.devices = world.devices
    for device in restored.devices.values():
        device.fleet, device.delivered = restored.fleet, 0
        device.report()
    for name, device in restored.devices.items():
        assert restored.desired_of(name).gen == Generation(gen.term + 1, 1)
        device.receive()
        assert device.gen_seen == Generation(gen.term + 1, 1)
        assert device.wanted == old
        assert device.halt_seen == (1, 1), "the halt list is newer, too"
    assert sum(line.action == "database.restored" for line in restored.fleet.audit()) == 6
    assert new not in restored.active()
    again = restored.install("v3", 3)
    assert restored.active() == {again}


def test_an_equal_generation_with_another_digest_raises_the_term(world, make_world, tmp_path):
    world.enrol(1)
    device = world.devices["test.d1"]
    device.desired_seen = "sha256:" + "9" * 64
    device.report()
    assert world.desired_of(device.name).gen == Generation(device.gen_seen.term + 1, 1)
    world.publish()
    device.receive()
    device.report()
    assert world.outbox(world.desired_topic(device.name)) is None, "once is enough"


def test_a_newer_document_replaces_what_waits_for_its_topic(world):
    world.enrol(1)
    first = world.outbox(world.desired_topic("test.d1"))
    release = world.add_release("v1", 1)
    world.begin(release, "1")
    world.fleet.tick()
    assert world.outbox(world.desired_topic("test.d1")) not in (None, first)
    assert world.publish().count(world.desired_topic("test.d1")) == 1
    assert world.publish() == []


def test_resync_queues_every_retained_document_or_only_the_young_ones(fleet_of_six):
    world = fleet_of_six
    world.publish()
    world.fleet.resync()
    assert sorted(world.publish()) == sorted(world.desired_topic(name) for name in world.devices)
    world.clock.now += 1000
    world.fleet.enrol("test.young", labels={}, actor="tester")
    world.publish()
    world.fleet.resync(newest_s=500)
    assert world.publish() == [world.desired_topic("test.young")]


def test_documents_are_signed_again_before_they_expire(world):
    world.enrol(1)
    before = world.desired_of("test.d1")
    world.clock.now += DESIRED_LIFETIME_S / 2 + 1
    world.fleet.tick()
    after = world.desired_of("test.d1")
    assert after.gen == Generation(before.gen.term, before.gen.n + 1)
    assert after.expires_at == world.clock.now + DESIRED_LIFETIME_S
    world.fleet.tick()
    assert world.desired_of("test.d1") == after


def test_a_failed_call_in_a_batch_is_undone_alone(world):
    with world.fleet.batch():
        world.fleet.enrol("test.a", labels={}, actor="tester")
        with pytest.raises(InputError):
            world.fleet.enrol("test.b", labels={"<": ""}, actor="tester")
        world.fleet.enrol("test.c", labels={}, actor="tester")
    assert [view.device for view in world.fleet.devices()] == ["test.a", "test.c"]


def test_a_batch_that_fails_leaves_nothing(world):
    def broken() -> None:
        with world.fleet.batch():
            world.fleet.enrol("test.a", labels={}, actor="tester")
            raise KeyError

    with pytest.raises(KeyError):
        broken()
    assert world.fleet.devices() == []
    assert world.fleet.pending_outbox(10) == []


def test_waiting_for_a_change_ends_with_it_and_reading_is_none(world):
    before = world.fleet.version()
    world.fleet.devices()
    world.fleet.tick()
    assert world.fleet.wait_for_change(before, 0.0) == before
    world.fleet.enrol("test.a", labels={}, actor="tester")
    assert world.fleet.wait_for_change(before, 10.0) > before


def test_the_audit_log_cannot_be_rewritten(world):
    world.enrol(1)
    with pytest.raises(DeviceError, match="append-only"), world.database.transaction() as connection:
        connection.execute(update(schema.audit).values(actor="nobody"))
    assert world.fleet.audit()[-1].actor == "tester"


def test_a_database_of_a_newer_edgeserve_is_refused_unchanged(tmp_path):
    path = tmp_path / "fleet.db"
    Database(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE schema_version SET version = 99")
    connection.close()
    with pytest.raises(InputError, match="schema 99"):
        Database(path)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda path: path.write_bytes(b"not a database" * 1000), InputError),
        (lambda path: path.mkdir(), DeviceError),
        (lambda path: sqlite3.connect(path).execute("CREATE TABLE t (a)").connection.close(), InputError),
    ],
    ids=["another file", "a folder", "another application's"],
)
def test_what_is_no_database_of_ours_is_refused(tmp_path, make, error):
    path = tmp_path / "fleet.db"
    make(path)
    with pytest.raises(error):
        Database(path)


@pytest.mark.parametrize("url", ["postgresql://host/x", "sqlite://", "sqlite:///:memory:", "nonsense://"])
def test_a_database_that_is_not_supported_is_refused(url):
    with pytest.raises(InputError) as caught:
        Database(url)
    assert "sqlite:///" in caught.value.hint


def test_a_database_that_refuses_is_an_error_of_this_machine(world):
    with sqlite3.connect(world.path) as connection:
        connection.execute("DROP TABLE audit")
    connection.close()
    with pytest.raises(DeviceError):
        world.fleet.enrol("test.a", labels={}, actor="tester")
    assert world.fleet.devices() == []


def test_two_processes_write_one_after_the_other(world, make_world):
    other = make_world(world.path)
    world.fleet.enrol("test.a", labels={}, actor="tester")
    other.fleet.enrol("test.b", labels={}, actor="tester")
    assert len(world.fleet.devices()) == 2
