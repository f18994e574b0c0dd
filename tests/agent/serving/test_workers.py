from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from pathlib import Path

import pytest
import uvloop

from edgeserve_agent.serving.workers import Workers

JOBS = 500


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture(params=[uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])
def loop(request):
    loop = request.param()
    yield loop
    loop.close()


def run(loop, coroutine):
    return loop.run_until_complete(asyncio.wait_for(coroutine, 10))


@pytest.mark.parametrize("threads", [1, 3])
def test_every_outcome_arrives_once_and_one_thread_keeps_the_order(loop, threads):
    arrived: list[int] = []
    homes: set[int] = set()

    async def main() -> None:
        workers = Workers(loop, threads=threads, name="w")
        all_done = loop.create_future()

        def done(outcome: int) -> None:
            homes.add(threading.get_ident())
            arrived.append(outcome)
            if len(arrived) == JOBS:
                all_done.set_result(None)

        for number in range(JOBS):
            workers.submit(lambda number=number: number, done)
        await all_done
        workers.close()

    run(loop, main())
    assert sorted(arrived) == list(range(JOBS))
    assert homes == {threading.get_ident()}
    if threads == 1:
        assert arrived == list(range(JOBS))


def test_errors_are_outcomes_and_a_failing_callback_does_not_hold_up_others(loop):
    seen: list[object] = []
    complaints: list[object] = []
    loop.set_exception_handler(lambda _loop, context: complaints.append(context["exception"]))

    async def main() -> None:
        workers = Workers(loop, threads=1, name="w")
        finished = loop.create_future()

        def fail(_outcome: object) -> None:
            raise LookupError

        hold = threading.Event()
        workers.submit(lambda: hold.wait(10), seen.append)
        workers.submit(lambda: 1 / 0, seen.append)
        workers.submit(lambda: 2, fail)
        workers.submit(lambda: 3, finished.set_result)
        hold.set()
        assert await finished == 3
        workers.close()

    run(loop, main())
    assert seen[0] is True
    assert isinstance(seen[1], ZeroDivisionError)
    assert [type(error) for error in complaints] == [LookupError]


def test_closed_workers_finish_what_they_were_given_and_leave_no_descriptor(loop):
    seen: list[int] = []

    async def main() -> None:
        before = descriptors()
        workers = Workers(loop, threads=2, name="w")
        workers.submit(lambda: 1, seen.append)
        workers.close()
        while descriptors() > before:  # noqa: ASYNC110 - there is nothing to wait on
            await asyncio.sleep(0.001)

    run(loop, main())
    assert seen == [1]


def test_a_loop_that_was_closed_leaves_no_descriptor_either():
    loop = uvloop.new_event_loop()
    before = descriptors()
    workers = Workers(loop, threads=1, name="w")
    gate = threading.Event()
    workers.submit(lambda: gate.wait(10), print)
    workers.close()
    loop.close()
    gate.set()
    (thread,) = [one for one in threading.enumerate() if one.name == "w-0"]
    thread.join(10)
    del workers, loop
    gc.collect()
    assert descriptors() <= before


def test_idle_threads_keep_nothing_alive(loop):
    class Large:
        pass

    async def main() -> weakref.ref[Large]:
        workers = Workers(loop, threads=1, name="w")
        arrived = loop.create_future()
        large = Large()
        reference = weakref.ref(large)
        workers.submit(lambda large=large: large, lambda _outcome: arrived.set_result(None))
        del large
        await arrived
        await asyncio.sleep(0.01)
        workers.close()
        return reference

    assert run(loop, main())() is None
