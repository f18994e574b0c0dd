"""A model in a worker process through crashes, hangs and limits. The runtime `trouble` does what its input says."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from edgeserve.contracts.errors import DeviceError, EdgeServeError, InputError, TransientError
from edgeserve_agent.isolation import model as isolated_model
from edgeserve_agent.isolation.lifecycle import RestartPolicy, State
from edgeserve_agent.isolation.options import IsolationOptions
from tests.agent.isolation.processes import DEADLINE_S, is_alive, until

SOON = RestartPolicy(first_s=0.01, longest_s=0.01)
NEVER = RestartPolicy(first_s=3600, longest_s=3600)


def answered(ask, model) -> bool:
    try:
        return ask(model, "echo hello") == b"hello"
    except TransientError:
        return False


@pytest.mark.parametrize(
    ("order", "kind", "message", "hint"),
    [
        ("refuse", InputError, "this input is refused", "send another"),
        ("fail", DeviceError, "this device fails", "mend it"),
        ("raise", DeviceError, "ZeroDivisionError in the worker process: no edgeserve error", ""),
    ],
)
def test_an_error_in_the_worker_is_the_same_error_here(
    load_trouble, ask, tmp_path, order: str, kind: type[EdgeServeError], message: str, hint: str
) -> None:
    model = load_trouble()
    pid = model.pid
    with pytest.raises(kind) as raised:
        ask(model, order)
    assert (type(raised.value), raised.value.message, raised.value.hint) == (kind, message, hint)
    with pytest.raises(kind) as raised:
        load_trouble(order)
    assert (type(raised.value), raised.value.message, raised.value.hint) == (kind, message, hint)
    assert ask(model, "echo still here") == b"still here"
    assert (model.pid, model.crashes) == (pid, 0)


@pytest.mark.parametrize(("order", "how"), [("crash", "was ended by SIGSEGV"), ("exit 3", "ended with exit code 3")])
def test_a_crash_in_mid_call_is_a_device_error_and_the_model_comes_back(
    load_trouble, ask, order: str, how: str
) -> None:
    model = load_trouble(policy=SOON)
    first = model.pid
    with pytest.raises(DeviceError, match=f"the worker process of model.trouble {how} during this call"):
        ask(model, order)
    until(lambda: answered(ask, model))
    assert model.pid not in (None, first)
    assert (model.state, model.crashes, model.last_end) == (State.SERVING, 1, how)
    assert not is_alive(first)


def test_a_worker_that_is_killed_in_mid_call_fails_every_call_under_way(load_trouble, ask, tmp_path: Path) -> None:
    model = load_trouble(policy=SOON, calls=3)
    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(ask, model, f"wait {tmp_path / str(n)} {tmp_path / 'never'}") for n in range(3)]
        until(lambda: all((tmp_path / str(n)).exists() for n in range(3)))
        os.kill(model.pid, signal.SIGKILL)
        for call in calls:
            with pytest.raises(DeviceError, match="was ended by SIGKILL during this call") as raised:
                call.result(DEADLINE_S)
            assert "memory" in raised.value.hint
    until(lambda: answered(ask, model))


def test_calls_are_told_to_come_again_while_the_worker_is_down(load_trouble, ask) -> None:
    model = load_trouble(policy=NEVER)
    with pytest.raises(DeviceError):
        ask(model, "crash")
    until(lambda: model.state is State.WAITING)
    with pytest.raises(TransientError, match="being started again: its worker process was ended by SIGSEGV"):
        ask(model, "echo hello")
    assert (model.pid, model.memory().total) == (None, 0)


def test_calls_that_wait_for_a_lane_are_told_when_the_worker_is_gone(load_trouble, ask, tmp_path: Path) -> None:
    model = load_trouble(policy=NEVER)
    with ThreadPoolExecutor(4) as pool:
        under_way = pool.submit(ask, model, f"wait {tmp_path / 'begun'} {tmp_path / 'never'}")
        until((tmp_path / "begun").exists)
        waiting = [pool.submit(ask, model, "echo hello") for _ in range(3)]
        os.kill(model.pid, signal.SIGKILL)
        with pytest.raises(DeviceError, match="SIGKILL"):
            under_way.result(DEADLINE_S)
        for call in waiting:
            with pytest.raises(TransientError):
                call.result(DEADLINE_S)


def test_a_worker_that_dies_idle_is_replaced_without_a_call(load_trouble, ask) -> None:
    model = load_trouble(policy=SOON)
    first = model.pid
    os.kill(first, signal.SIGKILL)
    until(lambda: model.state is State.SERVING and model.pid not in (None, first))
    assert ask(model, "echo hello") == b"hello"


def test_a_model_that_crashes_too_often_stays_down_and_says_so(load_trouble, ask) -> None:
    model = load_trouble(policy=RestartPolicy(first_s=0.01, crashes=2, window_s=600))
    for _ in range(3):
        until(lambda: answered(ask, model))
        with pytest.raises(DeviceError, match="SIGSEGV"):
            ask(model, "crash")
    until(lambda: model.state is State.FAILED)
    with pytest.raises(DeviceError, match="crashed 3 times within 600 s; the last one was ended by SIGSEGV") as raised:
        ask(model, "echo hello")
    assert "load the model again" in raised.value.hint
    assert model.crashes == 3


def test_a_model_that_cannot_be_loaded_again_spends_its_budget(load_trouble, ask, tmp_path: Path) -> None:
    model = load_trouble(f"fail-if {tmp_path / 'broken'}", policy=RestartPolicy(first_s=0.01, crashes=2, window_s=600))
    (tmp_path / "broken").touch()
    with pytest.raises(DeviceError):
        ask(model, "crash")
    until(lambda: model.state is State.FAILED)
    with pytest.raises(DeviceError, match="could not be started again: this device fails"):
        ask(model, "echo hello")


def test_a_worker_that_hangs_is_ended_and_replaced_and_every_call_is_told(load_trouble, ask, tmp_path: Path) -> None:
    model = load_trouble(policy=SOON, calls=2, call_s=0.3)
    first = model.pid
    with ThreadPoolExecutor(4) as pool:
        hanging = pool.submit(ask, model, "hang")
        under_way = pool.submit(ask, model, f"wait {tmp_path / 'begun'} {tmp_path / 'never'}")
        until((tmp_path / "begun").exists)
        waiting = [pool.submit(ask, model, "echo hello") for _ in range(2)]
        for call in (hanging, under_way):
            with pytest.raises(
                DeviceError, match=r"did not answer within 0\.3 s and was ended during this call"
            ) as raised:
                call.result(DEADLINE_S)
            assert "input of this call" in raised.value.hint
        for call in waiting:
            with pytest.raises(TransientError, match=r"being started again: its worker process did not answer within"):
                call.result(DEADLINE_S)
    until(lambda: answered(ask, model))
    assert (model.state, model.crashes) == (State.SERVING, 1)
    assert model.last_end == "did not answer within 0.3 s and was ended"
    assert not is_alive(first)


def test_a_model_that_hangs_again_and_again_stays_down(load_trouble, ask) -> None:
    model = load_trouble(policy=RestartPolicy(first_s=0.01, crashes=1, window_s=600), call_s=0.2)
    for _ in range(2):
        until(lambda: answered(ask, model))
        with pytest.raises(DeviceError, match="did not answer"):
            ask(model, "hang")
    until(lambda: model.state is State.FAILED)
    with pytest.raises(DeviceError, match=r"crashed 2 times within 600 s; the last one did not answer within 0\.2 s"):
        ask(model, "echo hello")


def test_a_call_is_told_of_a_crash_that_is_counted(load_trouble, ask) -> None:
    """Whoever warms a model up asks after a call that failed whether its worker lives."""
    for _ in range(5):
        model = load_trouble(policy=NEVER)
        with pytest.raises(DeviceError):
            ask(model, "crash")
        assert model.crashes == 1
        model.close()


@pytest.mark.parametrize("call_s", [0, -1, float("nan"), float("inf")])
def test_a_time_limit_that_is_none_is_refused(call_s: float) -> None:
    with pytest.raises(InputError, match="call_s"):
        IsolationOptions(call_s=call_s)


@pytest.mark.parametrize("order", ["crash", "exit 0"])
def test_a_crash_while_loading_is_a_device_error(load_trouble, order: str) -> None:
    with pytest.raises(DeviceError, match=r"the worker process .* while it loaded model\.trouble"):
        load_trouble(order)


def test_a_model_that_hangs_while_loading_is_given_up(load_trouble, server, monkeypatch) -> None:
    monkeypatch.setattr(isolated_model, "SERVING_LOAD_S", 0.1)
    with pytest.raises(DeviceError, match=r"took longer than 0\.1 s to load"):
        load_trouble("hang")


def test_calls_run_at_once_as_many_as_were_asked_for(load_trouble, ask) -> None:
    model = load_trouble(calls=3)
    with ThreadPoolExecutor(3) as pool:
        assert [*pool.map(lambda _: ask(model, "meet 3"), range(3))] == [b"met"] * 3


def test_many_threads_and_sizes_get_their_own_answers(load_trouble, ask) -> None:
    model = load_trouble(calls=2)
    words = [f"{n}-{'x' * (n * 997 % 70_000)}" for n in range(120)]
    with ThreadPoolExecutor(6) as pool:
        assert [*pool.map(lambda word: ask(model, f"echo {word}"), words)] == [word.encode() for word in words]


def test_close_waits_for_calls_under_way(load_trouble, ask, tmp_path: Path) -> None:
    model = load_trouble()
    with ThreadPoolExecutor(2) as pool:
        call = pool.submit(ask, model, f"wait {tmp_path / 'begun'} {tmp_path / 'go'}")
        until((tmp_path / "begun").exists)
        closing = pool.submit(model.close)
        until(lambda: model.state is State.CLOSED)
        with pytest.raises(DeviceError, match="closed"):
            ask(model, "echo hello")
        assert not closing.done()
        (tmp_path / "go").touch()
        assert call.result(DEADLINE_S) == b"waited"
        closing.result(DEADLINE_S)


def test_a_worker_that_hangs_is_ended_by_close(load_trouble, ask, monkeypatch) -> None:
    monkeypatch.setattr(isolated_model, "ISOLATION_CLOSE_S", 0.1)
    model = load_trouble(calls=2)
    pid = model.pid
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(ask, model, "hang")
        until(call.running)
        assert ask(model, "echo hello") == b"hello"
        model.close()
        assert not is_alive(pid)
        with pytest.raises(DeviceError, match="the model was closed while it computed"):
            call.result(DEADLINE_S)
    assert model.crashes == 0


@pytest.mark.parametrize("when", ["back-off", "loading again"])
def test_a_model_that_is_down_can_be_closed(load_trouble, ask, server, tmp_path: Path, when: str) -> None:
    begun, go = tmp_path / "begun", tmp_path / "go"
    go.touch()
    model = load_trouble(f"wait {begun} {go}", policy=NEVER if when == "back-off" else SOON)
    begun.unlink()
    go.unlink()
    os.kill(model.pid, signal.SIGKILL)
    until(lambda: model.state is State.WAITING if when == "back-off" else begun.exists())
    model.close()
    model.close()
    assert model.state is State.CLOSED
    with pytest.raises(DeviceError, match="closed"):
        ask(model, "echo hello")


def test_many_callers_may_close_at_once(load_trouble) -> None:
    model = load_trouble()
    pid = model.pid
    threads = [threading.Thread(target=model.close) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
    assert not is_alive(pid)


def test_a_call_that_is_given_up_never_answers_the_next(load_trouble, ask, tmp_path: Path) -> None:
    model = load_trouble(policy=SOON)
    worker = model._worker
    lane = worker.acquire()
    lane.in_step = False  # as an exception between question and answer leaves it
    worker.release(lane)
    until(lambda: answered(ask, model))
    assert model.crashes == 1


def test_memory_beyond_the_limit_is_an_error_of_that_call(load_trouble, ask) -> None:
    limit = 400 << 20
    model = load_trouble(memory_limit_bytes=limit)
    assert ask(model, "limit") == str(limit).encode()
    with pytest.raises(DeviceError, match="not enough memory"):
        ask(model, f"grab {limit}")
    assert ask(model, "grab 1000000") == b"1000000"
    assert model.crashes == 0


def test_a_worker_goes_before_the_rest_when_memory_runs_out(load_trouble, ask) -> None:
    own = int(Path("/proc/self/oom_score_adj").read_text())
    assert int(ask(load_trouble(oom_score_adj=300), "badness")) == min(1000, own + 300)


def test_the_worker_is_no_child_of_the_serving_process(load_trouble, ask, server) -> None:
    assert int(ask(load_trouble(), "parent")) == server.pid != os.getpid()


def test_memory_is_that_of_the_worker(load_trouble) -> None:
    memory = load_trouble().memory()
    assert 1 << 20 < memory.anonymous < 1 << 30
    assert memory.total == memory.anonymous + memory.swapped


def test_an_answer_beyond_the_bound_says_what_to_do(load_trouble) -> None:
    model = load_trouble()
    with pytest.raises(InputError, match="256 MiB") as raised:
        model.run({"order": np.array([b"many 90000000"] * 3, object)})
    assert "fewer rows" in raised.value.hint
