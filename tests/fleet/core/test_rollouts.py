from __future__ import annotations

import hashlib

import pytest
from sqlalchemy import func, insert, select, update

from edgeserve.contracts.desired import HALT_TYPE, Halt
from edgeserve.contracts.errors import ConflictError, InputError, NotFoundError
from edgeserve.contracts.limits import (
    DESIRED_LIFETIME_S,
    MAX_COUNT,
    MAX_HALT_BYTES,
    MAX_HALTED_RELEASES,
    MAX_MODELS_PER_DEVICE,
)
from edgeserve.contracts.names import is_digest
from edgeserve.contracts.oci import ReleaseIdentity
from edgeserve.contracts.reported import DeploymentState
from edgeserve.contracts.rollout import GateSpec, OnFail
from edgeserve.contracts.telemetry import DeviceStats, ReleaseStats, encode_stats
from edgeserve.trust.envelope import verify
from edgeserve_fleet.desired import assign
from edgeserve_fleet.gate import Outcome
from edgeserve_fleet.schema import devices, halts, rollouts


def digest_of(text: str) -> str:
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def test_the_first_release_advances_on_commits_because_there_is_no_control_group(world):
    world.enrol(3)
    release = world.add_release("v1", 1)
    view = world.run(world.begin(release, "1,3"), {"succeeded", "paused", "rolled-back"})
    assert view.state == "succeeded"
    assert world.active() == {release}
    assert [verdict.verdict.outcome for verdict in view.verdicts] == [Outcome.PASS, Outcome.PASS]
    assert "commits decide" in " ".join(view.verdicts[0].verdict.reasons)


def test_a_good_release_passes_every_wave_on_evidence(fleet_of_six):
    world = fleet_of_six
    release = world.add_release("v2", 2)
    rollout = world.begin(release)
    sizes = []
    for _ in range(300):
        world.second()
        touched = sum(device.active == release for device in world.devices.values())
        sizes.append(touched)
        if world.fleet.rollout(rollout).state != "running":
            break
    view = world.fleet.rollout(rollout)
    assert view.state == "succeeded"
    assert set(sizes) == {0, 1, 3, 6}, "waves are cumulative"
    first, second, last = view.verdicts
    assert first.verdict.interval is not None
    assert second.verdict.interval is not None
    assert min(first.evidence.wave.touched.total, first.evidence.wave.control.total) >= 200
    assert last.evidence.wave.control.total == 0
    assert all(wave.passed_at > wave.started_at for wave in view.waves)


def test_a_bad_release_is_taken_back_from_every_touched_device_and_halted(fleet_of_six):
    world = fleet_of_six
    good, bad = world.active().pop(), world.add_release("v2", 2)
    rollout = world.begin(bad)
    view = world.run(
        rollout, {"rolled-back", "succeeded", "paused"}, accuracy=lambda d: 0.1 if d.active == bad else 0.95
    )
    assert view.state == "rolled-back"
    assert view.wave == 1
    assert world.active() == {good}
    assert sorted(world.states(rollout).values()) == ["returned"] + ["superseded"] * 5
    assert view.verdicts[-1].verdict.outcome is Outcome.FAIL
    assert view.verdicts[-1].evidence.wave.touched.correct < view.verdicts[-1].evidence.wave.touched.total / 2
    assert world.fleet.resolve_release("digits:v2").halted
    canary = next(member for member in view.devices if member.state.value == "returned")
    target = world.desired_of(canary.device).models[0]
    assert (target.release, target.previous) == (good, bad)
    assert bad in world.devices[canary.device].halted
    with pytest.raises(ConflictError, match="halted"):
        world.begin(bad)


def test_a_release_that_gets_worse_later_fails_although_its_waves_had_passed(fleet_of_six):
    world = fleet_of_six
    bad = world.add_release("v2", 2)
    rollout = world.begin(bad, "1,3,5")
    world_view = world.run(rollout, {"running"})
    while world_view.wave < 3:
        world.second()
        world_view = world.fleet.rollout(rollout)
    world.run(rollout, {"rolled-back"}, accuracy=lambda d: 0.1 if d.active == bad else 0.95)
    assert bad not in world.active()


@pytest.mark.parametrize("end", [DeploymentState.REJECTED, DeploymentState.REVERTED], ids=lambda end: end.value)
def test_a_device_that_refuses_the_release_fails_the_wave_at_once(fleet_of_six, end):
    world = fleet_of_six
    bad = world.add_release("v2", 2)
    for device in world.devices.values():
        device.fate[bad] = end
    view = world.run(world.begin(bad), {"rolled-back"}, limit_s=30)
    assert bad not in world.active()
    assert "failed" in view.verdicts[-1].verdict.reasons[0]


def test_a_device_that_was_seen_but_has_no_result_at_the_deadline_has_failed(fleet_of_six):
    world = fleet_of_six
    bad = world.add_release("v2", 2)
    for device in world.devices.values():
        device.fate[bad] = DeploymentState.PROBATION  # it hangs there
    rollout = world.begin(bad, on_fail=OnFail.PAUSE, wave_deadline_s=20.0)
    view = world.run(rollout, {"paused"}, requests=0)
    assert "silent" in world.states(rollout).values()
    assert view.verdicts[-1].verdict.outcome is Outcome.FAIL


def test_without_feedback_from_a_fleet_that_serves_the_gate_never_passes(fleet_of_six):
    world = fleet_of_six
    release = world.add_release("v2", 2)
    rollout = world.begin(release, wave_deadline_s=20.0)
    view = world.run(rollout, {"paused", "succeeded", "rolled-back"}, requests=1)
    assert view.state == "paused"
    outcomes = [verdict.verdict.outcome for verdict in view.verdicts]
    assert outcomes == [Outcome.INCONCLUSIVE, Outcome.INCONCLUSIVE], "extended once, then paused"
    assert "inconclusive" in view.reason
    assert sum(device.active == release for device in world.devices.values()) == 1


def test_an_operator_can_ask_for_no_feedback(fleet_of_six):
    world = fleet_of_six
    release = world.add_release("v2", 2)
    rollout = world.begin(release, gate=GateSpec(min_samples=0))
    assert world.run(rollout, {"paused", "succeeded"}, requests=1).state == "succeeded"


def test_an_offline_device_neither_stalls_a_wave_nor_counts_as_good(fleet_of_six):
    world = fleet_of_six
    gone = world.devices["test.d4"]
    gone.online(on=False)
    gone.deaf = True
    world.clock.now += 3600
    for device in world.devices.values():
        if not device.deaf:
            device.stats()
    release = world.add_release("v2", 2)
    assert world.fleet.plan(world.spec(release, "3,6")).waves[1][-1] == gone.name, "unreachable devices come last"
    rollout = world.begin(release, "3,6")
    view = world.run(rollout, {"succeeded"})
    assert world.states(rollout)[gone.name] == "offered"
    assert view.verdicts[-1].evidence.counted == 5
    gone.deaf = False
    for _ in range(5):
        world.second()
    assert world.states(rollout)[gone.name] == "committed"


def test_a_wave_in_which_no_device_answers_pauses_instead_of_passing(world):
    world.enrol(2)
    for device in world.devices.values():
        device.online(on=False)
        device.deaf = True
    rollout = world.begin(world.add_release("v1", 1), "1,2", wave_deadline_s=30.0)
    view = world.run(rollout, {"paused", "succeeded", "rolled-back"})
    assert view.state == "paused"
    assert "no device of this wave" in view.reason


def test_resume_accepts_the_failures_so_far_and_only_new_ones_count(fleet_of_six):
    world = fleet_of_six
    release = world.add_release("v2", 2)
    rollout = world.begin(release, "3,6", on_fail=OnFail.PAUSE)
    planned = {member.device: member.wave for member in world.fleet.rollout(rollout).devices}
    first = [device for device in world.devices.values() if planned[device.name] == 1]
    second = [device for device in world.devices.values() if planned[device.name] == 2]
    first[0].fate[release] = DeploymentState.REJECTED
    world.run(rollout, {"paused"})
    for _ in range(5):
        world.second()
    assert world.fleet.rollout(rollout).state == "paused"
    world.fleet.resume(rollout, actor="tester")
    for _ in range(60):
        world.second()
    view = world.fleet.rollout(rollout)
    assert view.state == "succeeded"
    failed = next(member for member in view.devices if member.device == first[0].name)
    assert failed.acknowledged
    assert failed.state.value == "rejected"
    assert all(device.active == release for device in (*first[1:], *second))


def test_a_new_failure_after_resume_trips_the_gate_again(fleet_of_six):
    world = fleet_of_six
    release = world.add_release("v2", 2)
    rollout = world.begin(release, "3,6", on_fail=OnFail.PAUSE)
    planned = {member.device: member.wave for member in world.fleet.rollout(rollout).devices}
    for wave in (1, 2):
        device = next(d for d in world.devices.values() if planned[d.name] == wave)
        device.fate[release] = DeploymentState.REJECTED
    world.run(rollout, {"paused"})
    world.fleet.resume(rollout, actor="tester")
    view = world.run(rollout, {"paused", "succeeded"})
    assert (view.state, view.wave) == ("paused", 2)


def test_a_committed_device_that_reports_another_release_diverges_and_fails_the_rollout(fleet_of_six):
    world = fleet_of_six
    release = world.add_release("v2", 2)
    rollout = world.begin(release, "1,6", on_fail=OnFail.PAUSE, observe_s=60.0)
    canary = next(d for d in world.devices.values() if world.fleet.rollout(rollout).devices[0].device == d.name)
    while world.states(rollout)[canary.name] != "committed":
        world.second()
    canary.active, canary.release, canary.state = canary.previous, canary.previous, DeploymentState.COMMITTED
    canary.wanted = ""
    canary.report()
    world.run(rollout, {"paused"}, limit_s=3)
    assert world.states(rollout)[canary.name] == "diverged"


def test_a_reflashed_device_is_offered_the_release_anew_instead_of_counting_as_diverged(fleet_of_six):
    world = fleet_of_six
    release = world.add_release("v2", 2)
    rollout = world.begin(release, "1,6", observe_s=12.0)
    canary = world.devices[world.fleet.rollout(rollout).devices[0].device]
    while world.states(rollout)[canary.name] != "committed":
        world.second()
    canary.lose_state()
    canary.report()
    assert world.states(rollout)[canary.name] == "offered"
    assert world.run(rollout, {"succeeded", "rolled-back", "paused"}).state == "succeeded"
    assert any(line.action == "device.reinstalled" for line in world.fleet.audit())


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


def test_counters_without_bounds_break_neither_views_nor_gates(fleet_of_six):
    world = fleet_of_six
    release = world.add_release("v2", 2)
    rollout = world.begin(release, "1,6")
    world.second()
    liar = world.devices["test.d1"]
    for life in range(1025):
        counted = ReleaseStats(
            model="digits", release=liar.active, requests=MAX_COUNT, feedback=MAX_COUNT, correct=MAX_COUNT
        )
        stats = DeviceStats(device=liar.name, started=f"life {life}", releases=(counted,))
        world.clock.now += 0.001
        world.fleet.apply_stats(liar.name, encode_stats(stats))
    world.second(requests=0)
    assert world.fleet.device(liar.name).stats[0].requests > MAX_COUNT
    assert world.fleet.rollout(rollout).state == "running"


def give(world, device, model):
    """A release of another model, wanted of one device."""
    digest = digest_of(model)
    world.fleet.add_release(
        digest=digest, identity=ReleaseIdentity(name=model, version="v1", counter=1), index_size=1000, variants=[],
        actor="tester",
    )  # fmt: skip
    with world.database.transaction() as connection:
        assign(connection, device, model, release=digest, rollout="")
