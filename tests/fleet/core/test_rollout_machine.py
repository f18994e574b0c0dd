from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeserve.contracts.errors import ConflictError
from edgeserve.contracts.rollout import OnFail
from edgeserve_fleet.rollout import (
    ACTIVE,
    DEVICE_TRANSITIONS,
    ENDED,
    FAILURES,
    FOLLOWED,
    ON_FAIL,
    RUNNING,
    TOUCHED,
    TRANSITIONS,
    UNTOUCHED,
    DeviceEvent,
    DeviceState,
    RolloutEvent,
    RolloutRecord,
    RolloutState,
    diagram,
    step,
    step_device,
)


@pytest.mark.parametrize("state", RolloutState, ids=lambda state: state.value)
def test_every_event_is_a_row_of_the_table_or_refused(state):
    record = RolloutRecord(state=state, wave=1, waves=2)
    for event in RolloutEvent:
        allowed = TRANSITIONS[state].get(event)
        if allowed is None or event is RolloutEvent.COMPLETE:
            with pytest.raises(ConflictError):
                step(record, event)
        else:
            assert step(record, event, "why").state is allowed, event
            assert step(record, event, "why").reason == "why"


@pytest.mark.parametrize("state", DeviceState, ids=lambda state: state.value)
def test_every_event_of_a_device_is_a_row_of_the_table_or_refused(state):
    for event in DeviceEvent:
        allowed = DEVICE_TRANSITIONS[state].get(event)
        if allowed is None:
            with pytest.raises(ConflictError):
                step_device(state, event)
        else:
            assert step_device(state, event) is allowed, event


@pytest.mark.parametrize(
    ("table", "first"),
    [
        (TRANSITIONS, {RolloutState.DRAFT}),
        (DEVICE_TRANSITIONS, {DeviceState.PLANNED, DeviceState.HELD_OUT, DeviceState.ALREADY}),
    ],
    ids=["rollout", "device"],
)
def test_every_state_has_a_row_and_is_reached(table, first):
    assert set(table) == set(type(next(iter(first))))
    reached, before = set(first), set()
    while reached != before:
        before = set(reached)
        reached |= {after for state in before for after in table[state].values()}
    assert reached == set(table)


def test_the_last_wave_completes_and_the_others_advance():
    last, first = (RolloutRecord(state=RolloutState.JUDGING, wave=wave, waves=2) for wave in (2, 1))
    assert step(last, RolloutEvent.COMPLETE).state is RolloutState.SUCCEEDED
    assert step(first, RolloutEvent.ADVANCE) == RolloutRecord(state=RolloutState.DISPATCHING, wave=2, waves=2)
    for record, event in ((last, RolloutEvent.ADVANCE), (first, RolloutEvent.COMPLETE)):
        with pytest.raises(ConflictError):
            step(record, event)


@given(st.integers(1, 4), st.lists(st.sampled_from(RolloutEvent), max_size=60))
def test_no_sequence_of_events_breaks_a_rollout(waves, sequence):
    record = RolloutRecord(waves=waves)
    for event in sequence:
        before = record
        try:
            record = step(record, event)
        except ConflictError:
            assert record == before
            continue
        assert record.wave in (before.wave, before.wave + 1)
        if record.state is RolloutState.SUCCEEDED:
            assert (before.state, before.wave) == (RolloutState.JUDGING, waves), "only a judgement succeeds"
        if before.state is RolloutState.PAUSED and record.state.is_running:
            assert event is RolloutEvent.RESUME
        if before.state is RolloutState.ROLLED_BACK:
            raise AssertionError("nothing follows a finished rollback")


@given(st.lists(st.sampled_from(DeviceEvent), max_size=40))
def test_a_device_that_was_never_offered_the_release_is_never_counted_or_recalled(sequence):
    state = DeviceState.PLANNED
    offered = False
    for event in sequence:
        try:
            state = step_device(state, event)
        except ConflictError:
            continue
        offered |= event is DeviceEvent.OFFER
        assert offered or state in UNTOUCHED | {DeviceState.SUPERSEDED}


def test_every_touched_device_can_be_recalled_and_no_failure_is_forgotten_but_by_the_device():
    for state in TOUCHED:
        assert step_device(state, DeviceEvent.RECALL) is DeviceState.RETURNING
    for state in FAILURES:
        leaving = set(DEVICE_TRANSITIONS[state]) - {DeviceEvent.SUPERSEDE, DeviceEvent.RECALL}
        assert DeviceEvent.OFFER not in leaving
        assert DeviceEvent.COMMIT in leaving
        assert state not in DEVICE_TRANSITIONS[state].values(), "what is said again is no new failure"


def test_the_sets_of_states_fit_together():
    assert not ACTIVE & ENDED
    assert set(RolloutState) == ACTIVE | ENDED | {RolloutState.DRAFT}
    assert {state.shown for state in RUNNING} == {"running"}
    assert TOUCHED <= FOLLOWED
    assert not UNTOUCHED & FOLLOWED


def test_every_way_to_fail_is_allowed_where_a_gate_fails():
    for choice in OnFail:
        assert ON_FAIL[choice] in TRANSITIONS[RolloutState.JUDGING]


def test_the_diagram_shows_every_state_and_transition():
    drawn = diagram()
    assert drawn.startswith("stateDiagram-v2\n")
    assert drawn == diagram()
    for state, row in TRANSITIONS.items():
        assert f" as {state.value.replace('-', '_')}" in drawn
        for event in row:
            assert event.value in drawn
    assert drawn.count("{") == drawn.count("}") == 2
