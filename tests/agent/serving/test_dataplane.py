from __future__ import annotations

import threading

import numpy as np
import pytest

from edgeserve.contracts.errors import DeviceError, InputError, NotFoundError, TransientError
from edgeserve.contracts.task import Task
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve_agent.serving.call import Call
from edgeserve_agent.serving.opened import Opened, warm_up
from edgeserve_agent.serving.served import Identity

ROW = {"x": np.array([[1, 2, 3, 4]], np.float32)}


def infer(server, inputs=ROW, *, name: str = "m", version: str = "", request_id: str = ""):
    """Run on the loop as an adapter does; the outputs, or the error raised."""
    done = threading.Event()
    answers = []

    def finish(_call: Call, answer) -> None:
        answers.append(answer)
        done.set()

    def begin() -> None:
        plane = server.plane
        plane.infer(Call(served=plane.find(name, version), inputs=dict(inputs), id=request_id, done=finish))

    server.call(begin)
    assert done.wait(10)
    if isinstance(answers[0], Exception):
        raise answers[0]
    return answers[0]


@pytest.fixture
def server(start_server):
    return start_server()


def test_a_quick_model_runs_on_the_loop_and_a_slow_one_on_threads_of_its_own(server, tools):
    quick, slow = tools.model(), tools.model(slow=True)
    server.serve(quick, name="quick", number=1)
    server.serve(slow, name="slow", number=2)
    quick.threads.clear()
    slow.threads.clear()
    infer(server, name="quick")
    infer(server, name="slow")
    assert quick.threads == {server._thread.name}
    assert slow.threads <= {f"run-slow-{n}" for n in range(8)}


def test_a_large_batch_of_a_quick_model_leaves_the_loop(server, tools):
    model = tools.model()
    server.serve(model)
    model.threads.clear()
    infer(server, {"x": np.zeros((100_000, 4), np.float32)})
    assert server._thread.name not in model.threads


def test_a_slow_model_does_not_hold_up_another(server, tools):
    go, warm = threading.Event(), threading.Event()

    def blocking(inputs):
        assert not warm.is_set() or go.wait(10)
        return {"y": np.zeros((1, 3), np.float32)}

    server.serve(tools.model(blocking, slow=True), name="slow", number=1)
    server.serve(tools.model(slow=True), name="other", number=2)
    warm.set()
    held = [threading.Thread(target=infer, args=(server,), kwargs={"name": "slow"}) for _ in range(10)]
    for thread in held:
        thread.start()
    infer(server, name="other")
    go.set()
    for thread in held:
        thread.join()


def test_loading_twice_is_no_error_and_opens_once(server, tools):
    opened = []

    def opener():
        opened.append(1)
        return Opened(model=tools.model(), runtime="simulator")

    identity = Identity(model="m", version="1", release=tools.digest(1), variant=tools.digest(1))

    async def twice() -> None:
        import asyncio

        await asyncio.gather(server.plane.load(identity, opener), server.plane.load(identity, opener))
        await server.plane.load(identity, opener)

    server.run(twice())
    assert opened == [1]


def test_a_loaded_release_does_not_answer_before_it_is_activated(server, tools):
    server.serve(tools.model(tools.one_hot(1)), number=1)
    server.load(tools.model(tools.one_hot(2)), number=2)
    assert infer(server)["y"].argmax() == 1
    assert infer(server, version="2")["y"].argmax() == 2
    server.call(server.plane.activate, "m", tools.digest(2))
    assert infer(server)["y"].argmax() == 2


def test_a_release_is_closed_when_its_last_request_is_done_and_not_before(server, tools):
    entered, go, warm = threading.Event(), threading.Event(), threading.Event()

    def blocking(inputs):
        if warm.is_set():
            entered.set()
            assert go.wait(10)
        return {"y": np.zeros((1, 3), np.float32)}

    old = tools.model(blocking, slow=True)
    server.serve(old, number=1)
    warm.set()
    in_flight = threading.Thread(target=infer, args=(server,))
    in_flight.start()
    assert entered.wait(10)
    server.serve(tools.model(tools.one_hot(2)), number=2)
    server.call(server.plane.unload, "m", tools.digest(1))
    assert infer(server)["y"].argmax() == 2
    assert not old.closed.is_set()
    go.set()
    in_flight.join()
    assert old.closed.wait(10)


def test_unloading_what_is_being_loaded_ends_it_and_loading_again_works(server, tools):
    entered, go = threading.Event(), threading.Event()
    first = tools.model()

    def opener():
        entered.set()
        assert go.wait(10)
        return Opened(model=first, runtime="simulator")

    identity = Identity(model="m", version="1", release=tools.digest(1), variant=tools.digest(1))
    failures = []

    def load() -> None:
        with pytest.raises(DeviceError) as caught:
            server.run(server.plane.load(identity, opener))
        failures.append(caught.value.message)

    loading = threading.Thread(target=load)
    loading.start()
    assert entered.wait(10)
    with pytest.raises(TransientError, match="not ready"):
        infer(server)
    server.call(server.plane.unload, "m", tools.digest(1))
    go.set()
    loading.join()
    assert "unloaded while it was being loaded" in failures[0]
    assert first.closed.wait(10)
    server.serve(tools.model())
    infer(server)


def test_what_is_not_there_cannot_be_activated_and_may_be_unloaded(server, tools):
    with pytest.raises(NotFoundError, match="not loaded"):
        server.call(server.plane.activate, "m", tools.digest(9))
    server.call(server.plane.unload, "m", tools.digest(9))


@pytest.mark.parametrize(
    ("error", "says"),
    [
        pytest.param(InputError("no such file"), "no such file", id="ours"),
        pytest.param(RuntimeError("library says no"), "library says no", id="a library's"),
    ],
)
def test_a_load_that_fails_changes_nothing(server, tools, error: Exception, says: str):
    server.serve(tools.model(tools.one_hot(1)), number=1)

    def opener():
        raise error

    identity = Identity(model="m", version="2", release=tools.digest(2), variant=tools.digest(2))
    with pytest.raises((InputError, DeviceError), match=says):
        server.run(server.plane.load(identity, opener))
    assert infer(server)["y"].argmax() == 1


def test_a_model_that_does_not_run_is_refused_at_load_and_closed(server, tools):
    def broken(inputs):
        raise RuntimeError("no such kernel")

    model = tools.model(broken)
    with pytest.raises(DeviceError, match="does not run on zeros: no such kernel"):
        server.load(model)
    assert model.closed.is_set()


def test_a_task_that_does_not_fit_is_refused_at_load_and_the_model_closed(server, tools):
    model = tools.model()
    with pytest.raises(InputError, match="the task's output"):
        server.load(model, task=Task(output="nope"))
    assert model.closed.wait(10)


def test_a_model_whose_sizes_are_unknown_may_refuse_zeros(tools):
    image = TensorSpec(name="x", datatype=Datatype.FP32, shape=(-1, -1))

    def picky(inputs):
        raise RuntimeError("an image of one pixel")

    warm = warm_up(
        Opened(model=tools.model(picky, signature=Signature(inputs=(image,), outputs=(image,))), runtime="s")
    )
    assert warm.call_us == float("inf")


@pytest.mark.parametrize("slow", [False, True], ids=["on the loop", "on a thread"])
def test_a_client_that_cannot_be_told_anything_harms_nobody(server, tools, slow: bool):
    server.serve(tools.model(slow=slow))
    attempts = threading.Semaphore(0)

    def done(_call: Call, _answer) -> None:
        attempts.release()
        raise ZeroDivisionError("the client cannot be written to")

    served = server.plane.find("m")
    server.call(lambda: server.plane.infer(Call(served=served, inputs=dict(ROW), done=done)))
    for _ in range(2):
        assert attempts.acquire(timeout=10)
    infer(server)
    assert not attempts.acquire(blocking=False)
    assert served.in_flight == 0


class FailingScheduler:
    """Takes calls, and fails before or after it has answered them."""

    pending = 0

    def __init__(self, finish=None) -> None:
        self._finish = finish

    def submit(self, call: Call) -> None:
        if self._finish is not None:
            self._finish(call, {"y": np.zeros((1, 3), np.float32)})
        raise ZeroDivisionError("a bug")

    def close(self) -> None:
        pass


@pytest.mark.parametrize("answers", [False, True])
def test_a_scheduler_that_fails_leaves_one_answer_for_each_call(server, tools, answers: bool):
    server.serve(tools.model())
    served = server.plane.find("m")
    served.scheduler.close()
    served.scheduler = FailingScheduler(server.plane._finish if answers else None)
    if answers:
        assert set(infer(server)) == {"y"}
    else:
        with pytest.raises(DeviceError, match="a bug"):
            infer(server)
    assert served.in_flight == 0


def test_counters_tell_answers_failures_and_the_clients_mistakes_apart(server, tools):
    fail = threading.Event()

    def compute(inputs):
        if fail.is_set():
            raise RuntimeError("broken")
        return {"y": np.zeros((len(inputs["x"]), 3), np.float32)}

    server.serve(tools.model(compute))
    infer(server)
    infer(server, {"x": np.zeros((5, 4), np.float32)})
    with pytest.raises(InputError):
        infer(server, {"x": np.zeros((1, 9), np.float32)})
    fail.set()
    with pytest.raises(DeviceError, match="the model failed: broken"):
        infer(server)
    (counters,) = server.plane.counters()
    assert (counters.successes, counters.failed.count, counters.rejected, counters.rows) == (2, 1, 1, 6)
    stats = counters.stats()
    assert (stats.requests, stats.failures, sum(stats.latency)) == (3, 1, 3)


def test_counters_go_on_when_a_release_comes_back(server, tools):
    for _ in range(2):
        server.serve(tools.model())
        infer(server)
        server.call(server.plane.unload, "m", tools.digest(1))
    assert [one.successes for one in server.plane.counters()] == [2]


def test_feedback_counts_for_the_release_that_answered_though_another_is_active(server, tools):
    server.serve(tools.model(tools.one_hot(1)), number=1, task=Task())
    infer(server, request_id="a")
    server.serve(tools.model(tools.one_hot(2)), number=2, task=Task())
    infer(server, request_id="b")
    server.call(server.plane.feedback, "m", [("a", 1), ("b", 1), ("never", 0)])
    found = {one.version: (one.feedback, one.correct) for one in server.plane.counters()}
    assert found == {"1": (1, 1), "2": (1, 0)}
    assert server.plane.unknown_feedback == {"m": 1}


def test_a_model_without_a_task_takes_no_feedback(server, tools):
    server.serve(tools.model())
    with pytest.raises(InputError, match="no classification task"):
        server.call(server.plane.feedback, "m", [("a", 1)])


def test_readiness_waits_for_every_model_that_should_be_served(server, tools):
    assert server.plane.ready()
    server.call(server.plane.expect, "m")
    server.call(server.plane.expect, "n")
    server.serve(tools.model(), name="m")
    assert not server.plane.ready()
    server.call(server.plane.give_up, "n", "its file is damaged")
    with pytest.raises(TransientError, match="its file is damaged"):
        infer(server, name="n")
    server.serve(tools.model(), name="n")
    assert server.plane.ready()
    server.call(server.plane.unload, "m", tools.digest(1))
    assert server.plane.ready()
    with pytest.raises(NotFoundError, match="unknown model 'm'"):
        infer(server, name="m")
