"""Loads, preparations and unloads of one release that cross each other, on a real event loop and a real thread."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeserve.contracts.errors import DeviceError, EdgeServeError, InputError, NotFoundError
from edgeserve_agent.serving.dataplane import DataPlane
from edgeserve_agent.serving.opened import Opened
from edgeserve_agent.serving.served import Identity

WAIT_S = 10.0
MODEL = "m"
RELEASE = "sha256:" + "1" * 64
IDENTITY = Identity(model=MODEL, version="1", release=RELEASE, variant=RELEASE)


class Asked:
    """A load or a preparation whose model is opened when the test says so."""

    def __init__(self, world: World, *, put: bool) -> None:
        self.put = put
        self.model: Any = None
        self.fails = False
        self._gate = threading.Event()
        self._world = world
        before = set(map(id, world.plane._loader._under_way))
        plane = world.plane
        self.task = asyncio.ensure_future((plane.load if put else plane.prepare)(IDENTITY, self._open))
        self._loading: Any = None
        self._before = before

    async def begin(self) -> Asked:
        await asyncio.sleep(0)
        new = [one for one in self._world.plane._loader._under_way if id(one) not in self._before]
        self._loading = new[0] if new else None
        return self

    @property
    def opens(self) -> bool:
        """It brought a model of its own about."""
        return self._loading is not None

    async def open(self, *, fails: bool = False) -> None:
        """Let its model be opened, and see what comes of it."""
        self.fails = fails
        self._gate.set()
        await until(lambda: self._loading not in self._world.plane._loader._under_way)
        await rest()

    def _open(self) -> Opened:
        assert self._gate.wait(WAIT_S)
        if self.fails:
            raise InputError("it is no model")
        self.model = self._world.make()
        return Opened(model=self.model, runtime="simulator")

    def outcome(self) -> str:
        if not self.task.done():
            return "waits"
        if self.task.cancelled():
            return "cancelled"
        error = self.task.exception()
        if error is None:
            return "ends well"
        assert isinstance(error, EdgeServeError)
        return "was unloaded" if "was unloaded while" in error.message else error.message


class World:
    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make
        self.plane = DataPlane(asyncio.get_running_loop(), workers=1)
        self.asked: list[Asked] = []

    async def ask(self, what: str) -> Asked:
        one = await Asked(self, put=what == "load").begin()
        self.asked.append(one)
        return one

    @property
    def loaded(self) -> Any:
        """The model that is loaded, if there is one."""
        found = self.plane.loaded(MODEL)
        assert len(found) <= 1
        return found[0].model if found else None

    @property
    def models(self) -> list[Any]:
        return [one.model for one in self.asked if one.model is not None]

    async def end(self) -> None:
        """Let all come to an end: nothing stays open."""
        for one in self.asked:
            one._gate.set()
        self.plane.close()
        for one in self.asked:
            await asyncio.wait([one.task])
            if one.outcome() == "ends well" and not one.put:
                served = one.task.result()
                if not served.retired and served not in self.plane.loaded(MODEL):
                    self.plane.discard(served)
        await until(lambda: not any(thread.name.startswith("load-") for thread in threading.enumerate()))
        await rest()
        assert all(model.closed.is_set() for model in self.models)
        assert self.plane.states() == []


async def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        await asyncio.sleep(0.0005)


async def rest() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def play(make: Callable[[], Any], scenario: Callable[[World], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        world = World(make)
        try:
            await scenario(world)
        finally:
            await world.end()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("first", "second", "opens", "then"),
    [
        ("load", "load", False, ["ends well", "ends well"]),
        ("load", "prepare", True, ["ends well", "ends well"]),
        ("prepare", "load", True, ["ends well", "ends well"]),
        ("prepare", "prepare", True, ["ends well", "ends well"]),
    ],
)
@pytest.mark.parametrize("unloaded", [False, True])
def test_what_is_asked_for_twice_while_it_is_opened(tools, first: str, second: str, opens, then, unloaded: bool):
    async def scenario(world: World) -> None:
        asked = [await world.ask(first), await world.ask(second)]
        assert [one.opens for one in asked] == [True, opens]
        assert [state.state for state in world.plane.states()] == ["LOADING"]
        if unloaded:
            world.plane.unload(MODEL, RELEASE)
            await rest()
            assert [one.outcome() for one in asked] == ["was unloaded"] * 2
            assert world.plane.states() == []
        for one in asked:
            if one.opens:
                await one.open()
        assert [one.outcome() for one in asked] == (["was unloaded"] * 2 if unloaded else then)
        assert (world.loaded is not None) is ("load" in (first, second) and not unloaded)

    play(tools.model, scenario)


def test_a_load_during_a_preparation_loads_whatever_becomes_of_the_other(tools):
    async def scenario(world: World) -> None:
        preparing, loading = await world.ask("prepare"), await world.ask("load")
        await preparing.open(fails=True)
        assert (preparing.outcome(), loading.outcome()) == ("it is no model", "waits")
        await loading.open()
        assert loading.outcome() == "ends well"
        world.plane.activate(MODEL, RELEASE)
        assert world.plane.find(MODEL).model is loading.model

    play(tools.model, scenario)


def test_a_preparation_that_is_given_up_does_not_take_a_load_along(tools):
    async def scenario(world: World) -> None:
        preparing, loading = await world.ask("prepare"), await world.ask("load")
        preparing.task.cancel()
        await rest()
        assert loading.outcome() == "waits"
        await preparing.open()
        await loading.open()
        assert (preparing.outcome(), loading.outcome()) == ("cancelled", "ends well")
        assert preparing.model is None or preparing.model.closed.wait(WAIT_S)
        assert world.loaded is loading.model

    play(tools.model, scenario)


def test_what_is_put_while_it_is_loaded_stays_and_both_end_well(tools):
    async def scenario(world: World) -> None:
        preparing, loading = await world.ask("prepare"), await world.ask("load")
        await preparing.open()
        world.plane.put(preparing.task.result())
        await loading.open()
        assert loading.outcome() == "ends well"
        assert world.loaded is preparing.model
        assert loading.model.closed.wait(WAIT_S)

    play(tools.model, scenario)


def test_what_becomes_ready_as_its_asker_goes_is_closed(tools):
    async def scenario(world: World) -> None:
        preparing = await world.ask("prepare")
        loader = world.plane._loader
        ready = loader._ready

        def ready_and_gone(*arguments: Any) -> Any:
            asyncio.get_running_loop().call_soon(preparing.task.cancel)  # runs before whoever waits for the result
            return ready(*arguments)

        loader._ready = ready_and_gone
        await preparing.open()
        assert preparing.outcome() == "cancelled"
        assert preparing.model.closed.wait(WAIT_S)

    play(tools.model, scenario)


@pytest.mark.parametrize("what", ["load", "prepare"])
def test_closing_ends_what_is_opened_and_lets_nothing_in_any_more(tools, what: str):
    async def scenario(world: World) -> None:
        ready = await world.ask("prepare")
        await ready.open()
        under_way, later = await world.ask(what), await world.ask("load")
        world.plane.close()
        await rest()
        assert [one.outcome() for one in (under_way, later)] == ["was unloaded"] * 2
        await under_way.open()
        world.plane.put(ready.task.result())
        assert world.loaded is None
        with pytest.raises(DeviceError, match="the server is stopping"):
            await world.plane.load(IDENTITY, under_way._open)
        with pytest.raises(NotFoundError):
            world.plane.find(MODEL)

    play(tools.model, scenario)


STEPS = st.one_of(
    st.sampled_from(["load", "prepare", "unload", "activate"]),
    st.tuples(st.sampled_from(["open", "fail", "put", "discard", "cancel"]), st.integers(0, 3)),
)


@settings(max_examples=150, deadline=None)
@given(steps=st.lists(STEPS, max_size=14), closes=st.booleans())
def test_however_they_cross_what_is_open_is_loaded_or_undecided_and_nothing_else(tools, steps, closes: bool):
    async def scenario(world: World) -> None:
        undecided: list[Any] = []
        since_unload: list[Asked] = []
        for step in steps:
            name, number = step if isinstance(step, tuple) else (step, 0)
            pending = [one for one in world.asked if one.opens and not one._gate.is_set()]
            if name in ("load", "prepare"):
                was_loaded = world.loaded
                one = await world.ask(name)
                since_unload.append(one)
                assert (one.outcome() == "ends well") is (name == "load" and was_loaded is not None)
            elif name == "unload":
                world.plane.unload(MODEL, RELEASE)
                waiting = [one for one in world.asked if one.outcome() == "waits"]
                await rest()
                assert world.loaded is None
                assert all(one.outcome() == "was unloaded" for one in waiting)
                since_unload.clear()
            elif name == "activate" and world.loaded is not None:
                world.plane.activate(MODEL, RELEASE)
                assert world.plane.find(MODEL).model is world.loaded
            elif name == "cancel" and world.asked:
                world.asked[number % len(world.asked)].task.cancel()
                await rest()
            elif name in ("open", "fail") and pending:
                # The thread opens one after the other: those before it, too.
                for one in pending[: number + 1]:
                    before = one.outcome()
                    await one.open(fails=name == "fail")
                    if before == "waits":
                        assert one.outcome() == ("it is no model" if name == "fail" else "ends well")
                    if not one.put and before == "waits" and one.outcome() == "ends well":
                        undecided.append(one.task.result())
            elif name in ("put", "discard") and undecided:
                served = undecided.pop(number % len(undecided))
                (world.plane.put if name == "put" else world.plane.discard)(served)
                assert name == "discard" or world.loaded is served.model
            loads = [one for one in since_unload if one.put]
            if any(one.outcome() == "ends well" for one in loads):
                assert world.loaded is not None
            assert {state.state for state in world.plane.states()} <= {"READY", "LOADING"}
        open_now = [*(served.model for served in undecided), *([world.loaded] if world.loaded else [])]
        for model in world.models:
            if any(model is one for one in open_now):
                assert not model.closed.is_set()
            else:
                assert model.closed.wait(WAIT_S)
        if not closes:
            for served in undecided:
                world.plane.discard(served)

    play(tools.model, scenario)
