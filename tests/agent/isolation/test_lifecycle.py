from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeserve.contracts.errors import ConflictError
from edgeserve_agent.isolation.lifecycle import TRANSITIONS, EventKind, Lifecycle, RestartPolicy, State, step

POLICY = RestartPolicy(first_s=0.1, longest_s=1.0, crashes=5, window_s=60.0)


def after(*events: tuple[EventKind, float], policy: RestartPolicy = POLICY) -> Lifecycle:
    life = Lifecycle()
    for event, now in events:
        life = step(life, event, now=now, policy=policy)
    return life


def crash_and_restart(life: Lifecycle, now: float, policy: RestartPolicy = POLICY) -> Lifecycle:
    life = step(life, EventKind.ENDED, now=now, policy=policy)
    if life.state is State.WAITING:
        for event in (EventKind.DUE, EventKind.STARTED):
            life = step(life, event, now=now, policy=policy)
    return life


def test_a_crash_is_followed_by_a_restart_after_the_back_off() -> None:
    waiting = after((EventKind.STARTED, 0.0), (EventKind.ENDED, 7.0))
    assert (waiting.state, waiting.due) == (State.WAITING, 7.1)
    starting = step(waiting, EventKind.DUE, now=7.1, policy=POLICY)
    assert (starting.state, starting.due) == (State.STARTING, 0.0)
    assert step(starting, EventKind.STARTED, now=7.2, policy=POLICY).state is State.SERVING


@pytest.mark.parametrize(
    ("crash", "delay_s"), [(1, 0.1), (2, 0.2), (3, 0.4), (4, 0.8), (5, 1.0), (50, 1.0), (10**6, 1.0)]
)
def test_the_back_off_doubles_up_to_its_longest(crash: int, delay_s: float) -> None:
    assert POLICY.delay_s(crash) == pytest.approx(delay_s)


@pytest.mark.parametrize("failing", [EventKind.STARTED, None], ids=["while it serves", "while it loads"])
def test_one_crash_more_than_the_budget_is_the_end(failing: EventKind | None) -> None:
    life = Lifecycle()
    for crash in range(5):
        if failing:
            life = step(life, failing, now=crash, policy=POLICY)
        life = step(life, EventKind.ENDED, now=crash, policy=POLICY)
        assert life.state is State.WAITING
        life = step(life, EventKind.DUE, now=crash, policy=POLICY)
    assert step(life, EventKind.ENDED, now=5, policy=POLICY).state is State.FAILED


def test_crashes_that_are_long_past_are_forgotten() -> None:
    life = after((EventKind.STARTED, 0.0))
    for crash in range(100):
        life = crash_and_restart(life, now=crash * 15.0)
    assert life.state is State.SERVING
    assert len(life.crashes) == 4
    assert step(life, EventKind.ENDED, now=10_000.0, policy=POLICY).due == pytest.approx(10_000.1)


@pytest.mark.parametrize("state", State)
def test_every_state_can_be_closed_and_what_comes_later_changes_nothing(state: State) -> None:
    closed = step(Lifecycle(state=state), EventKind.CLOSED, now=0.0, policy=POLICY)
    assert closed.state is State.CLOSED
    for event in EventKind:
        assert step(closed, event, now=1.0, policy=POLICY).state is State.CLOSED


@pytest.mark.parametrize(
    ("state", "event"),
    [(state, event) for state in State for event in EventKind if (state, event) not in TRANSITIONS]
    + [(State.FAILED, EventKind.DUE), (State.SERVING, EventKind.STARTED)],
)
def test_what_the_table_does_not_say_is_refused(state: State, event: EventKind) -> None:
    with pytest.raises(ConflictError, match=state.value):
        step(Lifecycle(state=state), event, now=0.0, policy=POLICY)


@given(
    gaps=st.lists(st.floats(0, 100, allow_nan=False), min_size=1, max_size=60),
    budget=st.integers(0, 6),
    window_s=st.floats(1, 500),
)
def test_no_window_ever_sees_more_restarts_than_the_budget(gaps: list[float], budget: int, window_s: float) -> None:
    policy = RestartPolicy(first_s=0.1, longest_s=5.0, crashes=budget, window_s=window_s)
    life = after((EventKind.STARTED, 0.0), policy=policy)
    now, restarts = 0.0, list[float]()
    for gap in gaps:
        now += gap
        before = len(life.crashes)
        life = crash_and_restart(life, now, policy)
        assert len(life.crashes) <= before + 1
        if life.state is State.FAILED:
            break
        restarts.append(now)
    for last in restarts:
        assert sum(one <= last and last - one < window_s for one in restarts) <= budget
    if life.state is State.FAILED:
        assert sum(now - one < window_s for one in restarts) == budget
