"""Starts that fail or are broken off leave nothing behind: no task, no silence."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeserve.contracts.errors import NotFoundError, TransientError
from edgeserve_agent import slots
from edgeserve_agent.serving.dataplane import DataPlane
from edgeserve_agent.serving.listen import Address, Listening
from edgeserve_agent.serving.model_source import OpenOptions
from edgeserve_agent.serving.process import ServingConfig, ServingProcess
from edgeserve_agent.serving.startup import serve_plan
from tests.suites.repository import put_version

DEADLINE_S = 20.0


class Loads:
    """What a model's load does, in place of the real one."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.ended: list[str] = []

    async def hang(self, *_arguments: Any) -> None:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)  # as one that gives something back first
            self.ended.append("cancelled")

    async def fail(self, *_arguments: Any) -> None:
        self.begun.set()
        raise ZeroDivisionError("a bug")


def a_device(folder: Path) -> Path:
    slot = slots.Slot(release="sha256:" + "1" * 64, version="1", variant="sha256:" + "1" * 64)
    slots.write(folder, slots.Slots(models=tuple(slots.ModelSlots(model=name, active=slot) for name in ("m", "n"))))
    return folder


async def others() -> list[asyncio.Task[Any]]:
    return [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]


def process(folder: Path, stop: asyncio.Event) -> ServingProcess:
    config = ServingConfig(state_dir=folder, listening=Listening(http=Address("127.0.0.1", 0)))
    return ServingProcess(asyncio.get_running_loop(), stop, config)


@pytest.mark.parametrize("how", ["stopped", "cancelled"])
def test_a_serving_process_that_ends_while_it_loads_waits_for_what_it_began(tmp_path: Path, how: str):
    async def main() -> None:
        stop, loads = asyncio.Event(), Loads()
        serving = process(a_device(tmp_path), stop)
        serving._models.load = loads.hang
        running = asyncio.ensure_future(serving.run())
        await asyncio.wait_for(loads.begun.wait(), DEADLINE_S)
        if how == "stopped":
            stop.set()
        else:
            running.cancel()
        await asyncio.wait([running], timeout=DEADLINE_S)
        assert running.cancelled() is (how == "cancelled")
        assert loads.ended == ["cancelled"] * 2
        assert await others() == []

    asyncio.run(main())


def test_a_model_whose_load_fails_as_nobody_expected_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    async def main() -> None:
        stop, loads = asyncio.Event(), Loads()
        serving = process(a_device(tmp_path), stop)
        serving._models.load = loads.fail
        running = asyncio.ensure_future(serving.run())
        await asyncio.wait_for(loads.begun.wait(), DEADLINE_S)
        for _ in range(100):
            await asyncio.sleep(0)
        assert not serving._starting
        for name in ("m", "n"):
            with pytest.raises(TransientError, match="1: a bug"):
                serving._plane.find(name)
        stop.set()
        await asyncio.wait_for(running, DEADLINE_S)

    asyncio.run(main())
    assert caplog.text.count("ZeroDivisionError: a bug") == 2


def with_plan(tmp_path: Path, scenario: Callable[[Any, Any], Any]) -> None:
    put_version(tmp_path, "m", 1, adds=1)

    async def main() -> None:
        plane = DataPlane(asyncio.get_running_loop(), workers=1)
        plan = serve_plan(tmp_path, options=OpenOptions(threads=1, scratch=tmp_path / "scratch"), poll_s=60.0)
        repository = plan.repository(plane)
        try:
            await scenario(plan, repository)
        finally:
            await repository.close()
            plane.close()

    asyncio.run(main())


@pytest.mark.parametrize("how", ["stopped", "cancelled"])
def test_a_start_that_is_broken_off_waits_for_what_it_began(tmp_path: Path, how: str):
    async def scenario(plan: Any, repository: Any) -> None:
        stop, loads = asyncio.Event(), Loads()
        repository.load = loads.hang
        starting = asyncio.ensure_future(plan.start(repository, stop))
        await asyncio.wait_for(loads.begun.wait(), DEADLINE_S)
        if how == "stopped":
            stop.set()
        else:
            starting.cancel()
        await asyncio.wait([starting], timeout=DEADLINE_S)
        assert starting.cancelled() is (how == "cancelled")
        assert loads.ended == ["cancelled"]
        assert await others() == []

    with_plan(tmp_path, scenario)


def test_a_look_for_changes_that_fails_as_nobody_expected_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    async def scenario(_plan: Any, repository: Any) -> None:
        def fail() -> None:
            raise ZeroDivisionError("a bug")

        repository._fingerprints = fail
        repository.poll(0.0, new_models=True)
        (polling,) = await others()
        await asyncio.wait([polling], timeout=DEADLINE_S)
        await asyncio.sleep(0)

    with_plan(tmp_path, scenario)
    assert "looking after the models failed" in caplog.text
    assert "ZeroDivisionError: a bug" in caplog.text


def test_a_path_with_nothing_there_is_not_found(tmp_path: Path):
    with pytest.raises(NotFoundError, match="there is nothing at"):
        serve_plan(tmp_path / "x", options=OpenOptions(threads=1, scratch=tmp_path))
