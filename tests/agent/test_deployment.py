from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from edgeserve.contracts.desired import Generation, ModelTarget
from edgeserve.contracts.documents import encode
from edgeserve.contracts.errors import ConflictError
from edgeserve.contracts.limits import MAX_PROBATION_STARTS, MAX_REASON_CHARS, MAX_RECORD_WRITES
from edgeserve.contracts.reported import DeploymentState as State
from edgeserve_agent.deployment import (
    ON_RESTART,
    TRANSITIONS,
    Activate,
    Event,
    EventKind,
    Fetch,
    Prepare,
    Record,
    Revert,
    Stage,
    StartProbation,
    Tidy,
    diagram,
    restart,
    step,
)

OLD, NEW = (f"sha256:{digit * 64}" for digit in "ab")
TARGET = ModelTarget(model="digits", release=NEW, version="2", counter=2, index_size=100)
RECORD = Record(target=TARGET, gen=Generation(1, 1), probation_s=0.0, previous=OLD)


def in_state(state: State, **changes: object) -> Record:
    return msgspec.structs.replace(RECORD, state=state, **changes)


@pytest.mark.parametrize(("state", "kind"), list(itertools.product(State, EventKind)), ids=lambda value: value.value)
def test_every_event_either_has_a_row_or_raises_and_changes_nothing(state, kind):
    record = in_state(state)
    if (state, kind) in TRANSITIONS:
        changed, _effects = step(record, Event(kind=kind))
        assert changed.state is TRANSITIONS[state, kind]
        assert changed.writes == 1
    else:
        with pytest.raises(ConflictError):
            step(record, Event(kind=kind))
        assert record == in_state(state)


def test_every_state_can_be_reached():
    reached = {State.IDLE}
    while more := {target for (source, _), target in TRANSITIONS.items() if source in reached} - reached:
        reached |= more
    assert reached == set(State)


def test_exactly_the_states_in_flight_have_a_restart_rule_and_it_is_legal():
    assert set(ON_RESTART) == {state for state in State if in_state(state).in_flight}
    for state, row in ON_RESTART.items():
        assert {(state, row.before_switch), (state, row.after_switch)} <= set(TRANSITIONS)


def test_terminal_states_lead_nowhere():
    assert not [source for source, _ in TRANSITIONS if source.is_terminal]


def test_a_reason_is_bounded_and_can_be_written_whatever_it_holds():
    changed, _ = step(in_state(State.STAGED), Event(kind=EventKind.FAILED, reason="\udcff" + "x" * 1_000_000))
    assert len(changed.reason) == MAX_REASON_CHARS
    assert len(encode(changed)) < 2 * MAX_REASON_CHARS


@pytest.mark.parametrize(("variant", "blamed"), [("", False), ("sha256:" + "b" * 64, True)], ids=["fetch", "trial"])
def test_a_release_is_blamed_for_endless_restarts_only_when_it_may_have_run(variant, blamed):
    record = msgspec.structs.replace(in_state(State.FETCHING), writes=MAX_RECORD_WRITES, variant=variant)
    changed, _ = step(record, Event(kind=EventKind.RESUMED))
    assert (changed.state, changed.blamed) == (State.REJECTED, blamed)


def test_only_proof_or_presence_commits():
    assert {kind for (_, kind), target in TRANSITIONS.items() if target is State.COMMITTED} == {
        EventKind.PROVEN,
        EventKind.ALREADY,
    }


@pytest.mark.parametrize(
    ("state", "active", "kind"),
    [
        (State.ACTIVATING, OLD, EventKind.RESUMED),
        (State.ACTIVATING, NEW, EventKind.BOOTED),
        (State.PROBATION, NEW, EventKind.BOOTED),
        (State.PROBATION, OLD, EventKind.FAILED),
        (State.REVERTING, NEW, EventKind.RESUMED),
        (State.COMMITTED, NEW, None),
    ],
)
def test_a_restart_asks_the_slots_how_far_it_came(state, active, kind):
    event = restart(in_state(state), active)
    assert (event.kind if event else None) is kind


def test_a_probation_that_does_not_survive_its_starts_is_taken_back():
    record = in_state(State.PROBATION, starts=1)
    for _ in range(MAX_PROBATION_STARTS - 1):
        record, effects = step(record, Event(kind=EventKind.BOOTED))
        assert (record.state, effects) == (State.PROBATION, (StartProbation(),))
    record, effects = step(record, Event(kind=EventKind.BOOTED))
    assert (record.state, record.blamed, effects) == (State.REVERTING, True, (Revert(),))


def test_a_revert_that_never_succeeds_ends():
    record = in_state(State.REVERTING)
    for _ in range(MAX_RECORD_WRITES + 1):
        if record.in_flight:
            record, _effects = step(record, Event(kind=EventKind.RESUMED))
    assert record.state is State.REVERT_FAILED


@given(st.lists(st.sampled_from(EventKind), min_size=200, max_size=400))
@settings(max_examples=50, deadline=None)
def test_no_sequence_of_events_goes_on_for_ever(kinds):
    record = RECORD
    for kind in kinds:
        if (record.state, kind) in TRANSITIONS and not (record.state is State.IDLE and record.writes):
            record, _effects = step(record, Event(kind=kind))
    assert record.writes <= MAX_RECORD_WRITES + 8


def test_the_diagram_shows_every_transition():
    text = diagram()
    for (source, kind), target in TRANSITIONS.items():
        line = f"{source.value.replace('-', '_')} --> {target.value.replace('-', '_')}:"
        assert any(line in row and kind.value in row for row in text.splitlines())


class Device(RuleBasedStateMachine):
    """A device on paper: what is saved, what `slots.json` names, which variants lie whole on disk. Power may fail
    between any two of: save the record, carry out half of the effect, carry out the rest."""

    @initialize()
    def with_the_old_release(self) -> None:
        self.saved = RECORD
        self.pending: tuple[object, ...] = ()
        self.active = OLD
        self.before = OLD
        self.whole = {OLD}

    def happen(self, event: Event) -> None:
        if (self.saved.state, event.kind) not in TRANSITIONS:
            return
        was = self.saved.state
        self.saved, self.pending = step(self.saved, event)
        if was is State.STAGED and self.saved.state is State.ACTIVATING:
            self.before = self.active

    def carry_out(self) -> EventKind | None:
        outcome: EventKind | None = None
        for effect in self.pending:
            match effect:
                case Fetch():
                    outcome = EventKind.FETCHED
                case Stage():
                    self.whole.add(NEW)
                    outcome = EventKind.TRIED
                case Prepare():
                    outcome = EventKind.READY if NEW in self.whole else EventKind.FAILED
                case Activate():
                    self.active = NEW
                    outcome = EventKind.ACTIVATED
                case Revert():
                    self.active = self.before
                    outcome = EventKind.RESTORED
                case Tidy():
                    self.whole &= {self.active, self.before if self.saved.state is State.COMMITTED else OLD}
        self.pending = ()
        return outcome

    @precondition(lambda self: self.saved.state is State.IDLE)
    @rule()
    def order(self) -> None:
        self.saved = RECORD
        self.happen(Event(kind=EventKind.ALREADY if self.active == NEW else EventKind.ORDERED))

    @precondition(lambda self: self.saved.state.is_terminal)
    @rule()
    def order_anew(self) -> None:
        self.carry_out()
        self.saved = RECORD
        self.happen(Event(kind=EventKind.ALREADY if self.active == NEW else EventKind.ORDERED))

    @rule()
    def effect_succeeds(self) -> None:
        outcome = self.carry_out()
        if outcome is not None:
            self.happen(Event(kind=outcome))

    @rule(kind=st.sampled_from([EventKind.FAILED, EventKind.SUPERSEDED, EventKind.HALTED, EventKind.PROVEN]))
    def the_world_intervenes(self, kind: EventKind) -> None:
        if kind is not EventKind.PROVEN or (self.active == NEW and not self.pending):
            self.happen(Event(kind=kind))

    @rule(half=st.booleans())
    def power_fails(self, half: bool) -> None:
        if half:
            self.carry_out()  # done, but the outcome is not saved
        self.pending = ()
        event = restart(self.saved, self.active)
        if event is not None:
            self.happen(event)

    @invariant()
    def what_the_slots_name_is_whole(self) -> None:
        assert self.active in self.whole

    @invariant()
    def before_the_switch_the_old_answers(self) -> None:
        if self.saved.state in (State.FETCHING, State.STAGED, State.REJECTED):
            assert self.active == self.before


Device.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestDevice = Device.TestCase
