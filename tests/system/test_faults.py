"""What kills processes in the field: a device always serves, and the fleet arrives where it was going."""

from __future__ import annotations

import shutil

import pytest

from edgeserve.demo.processes import wait_until

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]


@pytest.mark.parametrize(
    ("step", "state"),
    [
        pytest.param("fetch:before", "fetching", id="in-fetch"),
        pytest.param("switch:before", "activating", id="in-activate-before-the-switch"),
        pytest.param("switch:after", "activating", id="in-activate-after-the-switch"),
        pytest.param("startprobation:before", "probation", id="in-probation"),
    ],
)
def test_an_agent_killed_in_a_deployment_serves_old_or_new_and_arrives(world, step: str, state: str) -> None:
    world.up("one")
    world.kill_agent("one")
    world.start_agent("one", stall_at=step)
    world.wait_for_version("one", "v1")
    world.publish("v2")
    rollout = world.roll_out("v2", "1")
    stalled = world.state_dir("one") / "stalled"
    wait_until(f"agent that stalls at {step}", stalled.exists, child=world.agents["one"])
    assert world.answers_with("one") in ("v1", "v2"), f"served nothing while {state}"

    world.kill_agent("one")
    world.start_agent("one")
    wait_until("an answer", lambda: world.answers_with("one") in ("v1", "v2"), child=world.agents["one"])
    view = world.wait_for_rollout(rollout, "succeeded", "paused", "rolled-back")
    assert view["state"] == "succeeded", view["reason"]
    assert world.answers_with("one") == "v2"


def test_requests_go_on_while_the_control_part_is_killed_and_restarted(world) -> None:
    world.up("one")
    traffic = world.traffic("one")
    traffic.start()
    try:
        for _ in range(3):
            before = traffic.sent
            world.kill_agent("one", whole=False)
            wait_until("answers without the control part", lambda: traffic.sent > before + 20)  # noqa: B023
            world.start_agent("one")
            wait_until("answers with it again", lambda: traffic.sent > before + 60)  # noqa: B023
    finally:
        traffic.stop()
    assert traffic.tallies["one"].failures == []


def test_a_broker_killed_in_a_rollout_comes_back_and_the_rollout_ends_well(world) -> None:
    world.up("one", "two")
    traffic = world.traffic("one", "two")
    traffic.start()
    try:
        world.publish("v2")
        rollout = world.roll_out("v2", "1,2")
        world.wait_for_rollout(rollout, "running")
        world.kill_broker()
        view = world.wait_for_rollout(rollout, "succeeded", "paused", "rolled-back", timeout_s=90)
    finally:
        traffic.stop()
    assert view["state"] == "succeeded", view["reason"]
    assert traffic.failed == 0


def test_a_manager_killed_in_a_rollout_goes_on_with_it_after_its_restart(world) -> None:
    world.up("one", "two")
    traffic = world.traffic("one", "two")
    traffic.start()
    try:
        world.publish("v2")
        rollout = world.roll_out("v2", "1,2")
        world.wait_for_rollout(rollout, "running")
        world.kill_manager()
        world.start_manager()
        view = world.wait_for_rollout(rollout, "succeeded", "paused", "rolled-back", timeout_s=90)
    finally:
        traffic.stop()
    assert view["state"] == "succeeded", view["reason"]
    assert traffic.failed == 0


def test_devices_follow_a_manager_whose_database_was_restored_from_an_older_copy(world) -> None:
    world.up("one")
    world.stop_manager()
    backup = world.folder / "backup"
    shutil.copytree(world.fleet_dir, backup, ignore=shutil.ignore_patterns("*.sock"))
    world.start_manager()
    world.publish("v2")
    world.wait_for_rollout(world.roll_out("v2", "1"), "succeeded")
    world.wait_for_version("one", "v2")
    seen = term(world)
    world.stop_manager()

    for name in ("fleet.db", "fleet.db-wal", "fleet.db-shm"):
        (world.fleet_dir / name).unlink(missing_ok=True)
        if (backup / name).exists():
            shutil.copy2(backup / name, world.fleet_dir / name)
    world.start_manager()
    # The restored manager wants v1, with a generation that the device has long seen: the term must rise.
    world.wait_for_version("one", "v1")
    assert term(world) > seen

    world.publish("v2")
    world.wait_for_rollout(world.roll_out("v2", "1"), "succeeded")
    world.wait_for_version("one", "v2")


def term(world) -> int:
    """Term of the generation that the manager gives the device."""
    return int(world.fleet.device("one")["gen"].partition(".")[0])
