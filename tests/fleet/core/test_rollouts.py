"""How rollouts go: waves, gates, devices that fail, are silent or come back."""

from __future__ import annotations

import pytest

from edgeserve.contracts.errors import ConflictError
from edgeserve.contracts.limits import (
    MAX_COUNT,
)
from edgeserve.contracts.reported import DeploymentState
from edgeserve.contracts.rollout import GateSpec, OnFail
from edgeserve.contracts.telemetry import DeviceStats, ReleaseStats, encode_stats
from edgeserve_fleet.gate import Outcome


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
