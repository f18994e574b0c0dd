"""What operators order, and what is refused."""

from __future__ import annotations

import hashlib

import pytest
from sqlalchemy import func, insert, select, update

from edgeserve.contracts.desired import HALT_TYPE, Halt
from edgeserve.contracts.errors import ConflictError, InputError, NotFoundError
from edgeserve.contracts.limits import (
    DESIRED_LIFETIME_S,
    MAX_HALT_BYTES,
    MAX_HALTED_RELEASES,
    MAX_MODELS_PER_DEVICE,
)
from edgeserve.contracts.names import is_digest
from edgeserve.contracts.oci import ReleaseIdentity
from edgeserve.contracts.reported import DeploymentState
from edgeserve.contracts.rollout import OnFail
from edgeserve.trust.envelope import verify
from edgeserve_fleet.desired import assign
from edgeserve_fleet.schema import devices, halts, rollouts


def digest_of(text: str) -> str:
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def test_rollback_of_a_first_release_leaves_devices_without_a_way_back(world):
    world.enrol(2)
    release = world.add_release("v1", 1)
    rollout = world.begin(release, "1,2")
    world.run(rollout, {"succeeded"}, requests=0)
    world.fleet.rollback(rollout, actor="tester")
    view = world.run(rollout, {"rolled-back"}, limit_s=10)
    assert {member.state.value for member in view.devices} == {"left"}
    assert world.desired_of("test.d1").models == ()


def test_a_succeeded_rollout_can_be_rolled_back_by_an_operator(fleet_of_six):
    world = fleet_of_six
    before, release = world.active().pop(), world.add_release("v2", 2)
    rollout = world.begin(release, "100%")
    world.run(rollout, {"succeeded"})
    world.fleet.rollback(rollout, actor="tester")
    world.run(rollout, {"rolled-back"})
    assert world.active() == {before}


def test_an_older_rollout_whose_devices_moved_on_cannot_be_rolled_back(fleet_of_six):
    world = fleet_of_six
    old = world.fleet.rollouts()[0].rollout
    world.install("v2", 2)
    with pytest.raises(ConflictError, match="later ones took over"):
        world.fleet.rollback(old, actor="tester")
    assert not world.fleet.resolve_release("digits:v1").halted


def test_only_one_rollout_of_a_model_moves_at_a_time(fleet_of_six):
    world = fleet_of_six
    release = world.add_release("v2", 2)
    world.begin(release)
    second = world.fleet.create_rollout(world.spec(release), actor="tester")
    with pytest.raises(ConflictError, match="has not ended"):
        world.fleet.start(second.rollout, actor="tester")
    view = world.fleet.rollout(second.rollout)
    assert view.state == "draft"
    assert "has not ended" in view.reason


def test_abort_ends_it_where_it_is(fleet_of_six):
    world = fleet_of_six
    release = world.add_release("v2", 2)
    rollout = world.begin(release)
    for _ in range(6):
        world.second()
    view = world.fleet.abort(rollout, actor="tester")
    assert view.state == "aborted"
    for _ in range(20):
        world.second()
    assert sum(device.active == release for device in world.devices.values()) == 1
    assert view.counts["superseded"] == 5


def test_devices_that_have_the_release_are_not_offered_it_again(fleet_of_six):
    world = fleet_of_six
    release = world.add_release("v2", 2)
    first = world.begin(release, "2")
    world.run(first, {"succeeded"})
    assert world.fleet.rollout(first).counts == {"committed": 2, "held-out": 4}
    second = world.begin(release, "100%")
    view = world.run(second, {"succeeded"})
    assert view.counts == {"already": 2, "committed": 4}


def test_a_selector_limits_the_rollout_and_why_says_so(world):
    world.enrol(2, site="north")
    world.enrol(1, site="south")
    release = world.add_release("v1", 1)
    rollout = world.begin(release, "100%", selector={"site": "north"})
    world.run(rollout, {"succeeded"})
    assert {device.active for device in world.devices.values()} == {release, ""}
    said = " ".join(world.fleet.why("test.d3"))
    assert "site=north" in said
    assert "site=south" in said


def test_a_device_that_no_variant_fits_is_left_out_with_the_reason(world):
    world.enrol(2)
    release = world.add_release("v1", 1, architectures=("amd64",))
    view = world.fleet.plan(world.spec(release, "100%"))
    assert view.waves == ()
    assert "it is for amd64, the device is arm64" in view.devices[0].reason
    rollout = world.fleet.create_rollout(world.spec(release), actor="tester").rollout
    with pytest.raises(ConflictError, match="no device would get the release"):
        world.fleet.start(rollout, actor="tester")
    assert world.fleet.rollout(rollout).state == "draft"


def test_why_explains_a_device_that_waits_for_its_wave_and_one_that_refused(fleet_of_six):
    world = fleet_of_six
    release = world.add_release("v2", 2)
    rollout = world.begin(release, on_fail=OnFail.PAUSE)
    canary = world.devices[world.fleet.rollout(rollout).devices[0].device]
    canary.fate[release] = DeploymentState.REJECTED
    world.run(rollout, {"paused"})
    assert "golden set differs" in " ".join(world.fleet.why(canary.name))
    later = next(member for member in world.fleet.rollout(rollout).devices if member.wave == 3)
    assert "it joins in wave 3, the rollout is in wave 1" in " ".join(world.fleet.why(later.device))
    with pytest.raises(NotFoundError):
        world.fleet.why("test.nobody")


def test_a_plan_names_every_device_and_starts_nothing(fleet_of_six):
    world = fleet_of_six
    release = world.add_release("v2", 2)
    view = world.fleet.plan(world.spec(release, "1,3"))
    assert [len(wave) for wave in view.waves] == [1, 2]
    assert len(view.control) == 3
    assert {said.device for said in view.devices} == set(world.devices)
    assert view.problems == ()
    assert all(rollout.release != release for rollout in world.fleet.rollouts())


def test_the_same_idempotency_key_gives_the_same_rollout_and_another_order_a_conflict(world):
    release = world.add_release("v1", 1)
    first = world.fleet.create_rollout(world.spec(release), actor="tester", idempotency_key="k")
    again = world.fleet.create_rollout(world.spec(release), actor="tester", idempotency_key="k")
    assert first.rollout == again.rollout
    with pytest.raises(ConflictError, match="idempotency key"):
        world.fleet.create_rollout(world.spec(release, "2"), actor="tester", idempotency_key="k")
    assert len(world.fleet.rollouts()) == 1


@pytest.mark.parametrize(
    ("version", "counter", "match"),
    [("v1", 9, "another release"), ("v2", 1, "counter"), ("v0", 0, "counter")],
    ids=["same version", "same counter", "lower counter"],
)
def test_a_release_that_clashes_is_refused(world, version, counter, match):
    world.add_release("v1", 1)
    assert is_digest(world.add_release("v1", 1)), "the same digest again is no clash"
    with pytest.raises(ConflictError, match=match):
        world.fleet.add_release(
            digest="sha256:" + "a" * 64,
            identity=ReleaseIdentity(name="digits", version=version, counter=counter),
            index_size=10,
            variants=[],
            actor="tester",
        )


def test_a_release_whose_variants_do_not_say_what_they_need_is_refused(world):
    with pytest.raises(InputError, match="variants of digits:v1"):
        world.fleet.add_release(
            digest="sha256:" + "a" * 64,
            identity=ReleaseIdentity(name="digits", version="v1", counter=1),
            index_size=10,
            variants=[{"target": "arm-cpu"}],
            actor="tester",
        )
    assert world.fleet.releases() == []


def test_releases_are_found_by_every_name_they_have(world):
    world.add_release("v1", 1)
    newest = world.add_release("v2", 2)
    for text in ("digits:v2", "digits:latest", f"digits@{newest}", newest):
        assert world.fleet.resolve_release(text).digest == newest
    for text in ("digits:v3", "other:latest", "digits", f"other@{newest}", ""):
        with pytest.raises(NotFoundError):
            world.fleet.resolve_release(text)


def test_an_order_for_a_release_that_is_not_there_or_of_another_model_is_refused(world):
    release = world.add_release("v1", 1)
    with pytest.raises(NotFoundError):
        world.fleet.create_rollout(world.spec("sha256:" + "b" * 64), actor="tester")
    with pytest.raises(InputError, match="one of digits"):
        world.fleet.create_rollout(world.spec(release, model="other"), actor="tester")


def test_a_device_that_cannot_be_offered_the_release_leaves_the_rollout_and_stops_nobody(world):
    full, other = world.enrol(2)
    for number in range(MAX_MODELS_PER_DEVICE):
        give(world, full.name, f"model-{number}")
    rollout = world.begin(world.add_release("v1", 1), "100%")
    world.run(rollout, {"succeeded"}, requests=0)
    assert world.states(rollout) == {full.name: "superseded", other.name: "committed"}
    reason = next(member.reason for member in world.fleet.rollout(rollout).devices if member.device == full.name)
    assert f"at most {MAX_MODELS_PER_DEVICE}" in reason


def test_a_rollout_that_cannot_go_on_does_not_stop_the_engine(fleet_of_six, caplog):
    world = fleet_of_six
    stuck = world.begin(world.add_release("v2", 2), "1,6")
    with world.database.transaction() as connection:
        connection.execute(update(rollouts).where(rollouts.c.rollout == stuck).values(spec="damaged"))
    world.clock.now += DESIRED_LIFETIME_S
    before = world.clock.now
    for _ in range(3):
        world.fleet.tick()
    with world.database.reading() as connection:
        assert connection.scalar(select(func.min(devices.c.signed_at))) == before, "documents are renewed all the same"
    assert caplog.text.count(stuck) == 1, "said once, not with every tick"


def test_a_full_halt_list_forgets_its_oldest_release_instead_of_refusing_a_rollback(fleet_of_six, signing_key):
    world = fleet_of_six
    with world.database.transaction() as connection:
        old = [{"release": digest_of(f"old {n}"), "rollout": "r", "at": float(n)} for n in range(MAX_HALTED_RELEASES)]
        connection.execute(insert(halts), old)
    bad = world.add_release("v2", 2)
    rollout = world.begin(bad, "1,6")
    world.second()
    world.fleet.rollback(rollout, actor="tester")
    document = verify(
        world.fleet.halt()[1], payload_type=HALT_TYPE, key=signing_key.public, kind=Halt, what="halt list",
        limit=MAX_HALT_BYTES,
    ).document  # fmt: skip
    assert len(document.releases) == MAX_HALTED_RELEASES
    assert bad in document.releases
    assert old[0]["release"] not in document.releases
    assert next(view for view in world.fleet.releases() if view.digest == bad).halted


def give(world, device, model):
    """A release of another model, wanted of one device."""
    digest = digest_of(model)
    world.fleet.add_release(
        digest=digest, identity=ReleaseIdentity(name=model, version="v1", counter=1), index_size=1000, variants=[],
        actor="tester",
    )  # fmt: skip
    with world.database.transaction() as connection:
        assign(connection, device, model, release=digest, rollout="")
