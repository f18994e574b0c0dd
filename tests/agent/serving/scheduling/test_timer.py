from __future__ import annotations

import asyncio
import time

import pytest
import uvloop

from edgeserve_agent.serving.scheduling import timer as timer_module
from edgeserve_agent.serving.scheduling.timer import Timer


@pytest.fixture(params=["timerfd", "the loop's own"])
def kind(request, monkeypatch):
    if request.param != "timerfd":
        monkeypatch.setattr(timer_module, "_libc", lambda: None)
    return request.param


@pytest.mark.parametrize("make_loop", [uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])
@pytest.mark.parametrize("wait_us", [0, 300, 3000])
def test_the_alarm_comes_once_and_not_before_its_time(kind, make_loop, wait_us):
    loop = make_loop()
    rung: list[int] = []

    async def wait() -> None:
        first = asyncio.Event()

        def ring() -> None:
            rung.append(time.perf_counter_ns())
            first.set()

        timer = Timer(loop, ring)
        now_ns = time.perf_counter_ns()
        timer.ring_at(now_ns + 60_000_000_000, now_ns)
        timer.ring_at(now_ns + wait_us * 1000, now_ns)  # earlier than what is set
        timer.ring_at(now_ns + 50_000_000_000, now_ns)  # later
        timer.ring_at(None, now_ns)
        await first.wait()
        await asyncio.sleep(0.005)
        timer.close()
        assert len(rung) == 1
        # The loop's own timers count milliseconds from a clock that stands still while callbacks run.
        assert rung[0] >= now_ns + wait_us * 1000 - (0 if kind == "timerfd" else 1_000_000)

    loop.run_until_complete(asyncio.wait_for(wait(), 10))
    loop.close()


def test_a_closed_timer_is_silent(kind):
    loop = uvloop.new_event_loop()
    rung: list[None] = []

    async def wait() -> None:
        timer = Timer(loop, lambda: rung.append(None))
        timer.ring_at(2_000_000, 0)
        timer.close()
        timer.ring_at(1_000_000, 0)  # whoever closed it in the midst of a turn asks once more
        await asyncio.sleep(0.01)

    loop.run_until_complete(wait())
    loop.close()
    assert not rung
