"""The main story: waves with gates, and a bad release that is taken back without a human."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.system
DEVICES = ("one", "two", "three")


@pytest.mark.timeout(180)
def test_a_better_release_reaches_all_and_a_bad_one_is_taken_back_while_nothing_fails(world) -> None:
    world.up(*DEVICES)
    traffic = world.traffic(*DEVICES)
    traffic.start()
    try:
        world.publish("v2")
        better = world.wait_for_rollout(world.roll_out("v2", "1,2,3"), "succeeded", "rolled-back", "paused")
        assert better["state"] == "succeeded", better["reason"]
        outcomes = [judged["verdict"]["outcome"].upper() for judged in better["verdicts"]]
        assert outcomes.count("PASS") == 3

        world.publish("v3")
        worse = world.wait_for_rollout(world.roll_out("v3", "1,2,3"), "succeeded", "rolled-back", "paused")
        for name in DEVICES:
            world.wait_for_version(name, "v2")
    finally:
        traffic.stop()

    assert worse["state"] == "rolled-back", worse["reason"]
    assert [device["device"] for device in worse["devices"] if device["state"] != "planned"] != []
    touched = traffic.releases()[world.releases["v3"].digest]
    assert len(touched) == 1, "the canary alone was touched"
    assert {name: tally.failures for name, tally in traffic.tallies.items() if tally.failures} == {}
    v1, v2, v3 = (traffic.accuracy(release=world.releases[version].digest) for version in ("v1", "v2", "v3"))
    assert v1.value < v2.value
    assert v3.value < 0.5


@pytest.mark.timeout(120)
def test_without_feedback_a_wave_with_untouched_devices_never_passes(world) -> None:
    world.up(*DEVICES)
    world.publish("v2")
    rollout = world.roll_out("v2", "1,3", wave_deadline_s=4.0)
    view = world.wait_for_rollout(rollout, "succeeded", "paused", "rolled-back")
    assert view["state"] == "paused"
    assert sorted(world.answers_with(name) for name in DEVICES) == ["v1", "v1", "v2"]


@pytest.mark.timeout(120)
def test_a_fleet_without_a_broker_polls_and_still_rolls_out(world) -> None:
    world.start_manager()
    world.enrol(*DEVICES, mqtt=False)
    for name in DEVICES:
        world.start_agent(name)
    world.publish("v1")
    world.wait_for_rollout(world.roll_out("v1", "3"), "succeeded")
    assert [world.answers_with(name) for name in DEVICES] == ["v1"] * 3
