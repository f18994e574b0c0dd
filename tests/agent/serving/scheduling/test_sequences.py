from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from edgeserve.contracts.errors import InputError, RejectedError, RequestCancelledError
from edgeserve.contracts.limits import MAX_SEQUENCE_REQUESTS, MAX_SEQUENCES
from edgeserve.contracts.model_config import SequenceBatching, SequenceDirect, SequenceOldest
from edgeserve_agent.serving.scheduling.sequences import Sequences, Turn

US = 1000
IDLE_NS = 100 * US


def sequences_of(*, instances: int = 1, most: int = 4, cancelled=(), **config) -> Sequences[str]:
    return Sequences(
        SequenceBatching(max_sequence_idle_microseconds=100, **config),
        model="m",
        instances=instances,
        most=most,
        is_cancelled=lambda item: item in cancelled,
    )


def send(sequences: Sequences[str], text: str, now_ns: int = 0) -> None:
    """`a1<` begins sequence a, `a2` goes on, `a3>` ends it."""
    for item in text.split():
        name = item.strip("<>")
        sequences.enqueue(name, now_ns, id=name[0], start="<" in item, end=">" in item)


def rows(turn: Turn[str] | None) -> list[str | None]:
    assert turn is not None
    return [None if step is None else step.item for step in turn.rows]


OLDEST = SequenceOldest()
STRATEGIES = [pytest.param({"direct": SequenceDirect()}, id="direct"), pytest.param({"oldest": OLDEST}, id="oldest")]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_sequence_must_be_started(strategy):
    sequences = sequences_of(**strategy)
    words = "inference request for sequence a to model 'm' must specify the START flag on the first request of the"
    with pytest.raises(InputError, match=words):
        send(sequences, "a1")
    send(sequences, "a1<>")
    with pytest.raises(InputError, match=words):
        send(sequences, "a2")
    assert len(sequences) == 1


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_requests_of_one_sequence_run_one_after_the_other(strategy):
    sequences = sequences_of(instances=2, **strategy)
    send(sequences, "a1< a2 a3>")
    order = []
    while (turn := sequences.take(0)) is not None:
        assert sequences.take(0) is None
        order += rows(turn)
        assert [step.first for step in turn.steps] == [len(order) == 1]
        sequences.done(turn, 0)
    assert order == ["a1", "a2", "a3"]
    assert not sequences.active


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_requests_of_different_sequences_run_together(strategy):
    sequences = sequences_of(**strategy)
    send(sequences, "a1< b1< a2 c1<")
    assert rows(sequences.take(0)) == ["a1", "b1", "c1"]


def test_direct_keeps_a_row_for_each_sequence_and_leaves_gaps():
    sequences = sequences_of(direct=SequenceDirect())
    send(sequences, "a1< b1< c1<")
    sequences.done(sequences.take(0), 0)
    send(sequences, "c2 a2>")
    turn = sequences.take(0)
    assert rows(turn) == ["a2", None, "c2"]
    sequences.done(turn, 0)
    send(sequences, "d1< b2")
    assert rows(sequences.take(0)) == ["d1", "b2"]


def test_direct_gives_the_next_instance_to_further_sequences():
    sequences = sequences_of(instances=2, most=2, direct=SequenceDirect())
    send(sequences, "a1< b1< c1< d1< e1<")
    first, second = sequences.take(0), sequences.take(0)
    assert (rows(first), rows(second)) == (["a1", "b1"], ["c1", "d1"])
    send(sequences, "d2>")
    assert sequences.take(0) is None
    sequences.done(second, 0)
    third = sequences.take(0)
    assert rows(third) == [None, "d2"]
    sequences.done(third, 0)
    assert rows(sequences.take(0)) == [None, "e1"]


def test_direct_waits_for_more_of_its_rows_and_no_longer_than_it_may():
    sequences = sequences_of(
        direct=SequenceDirect(max_queue_delay_microseconds=50, minimum_slot_utilization=0.5), most=4
    )
    send(sequences, "a1<")
    assert sequences.take(0) is None
    assert sequences.wake_at_ns(0, 1) == 50 * US
    send(sequences, "b1<", 10 * US)
    turn = sequences.take(10 * US)
    assert rows(turn) == ["a1", "b1"]
    sequences.done(turn, 10 * US)
    send(sequences, "a2", 20 * US)
    assert sequences.take(70 * US - 1) is None
    assert rows(sequences.take(70 * US)) == ["a2"]


def test_oldest_runs_what_came_first():
    sequences = sequences_of(most=2, oldest=OLDEST)
    for now_ns, item in enumerate(["a1<", "b1<", "c1<", "a2"]):
        send(sequences, item, now_ns)
    first = sequences.take(9)
    sequences.done(first, 9)
    assert (rows(first), rows(sequences.take(9))) == (["a1", "b1"], ["c1", "a2"])


def test_oldest_waits_for_a_preferred_size():
    sequences = sequences_of(oldest=SequenceOldest(preferred_batch_size=(2,), max_queue_delay_microseconds=50))
    send(sequences, "a1< a2")
    assert sequences.take(0) is None, "two requests of one sequence are not two rows"
    assert sequences.wake_at_ns(0, 1) == 50 * US
    send(sequences, "b1<")
    assert rows(sequences.take(0)) == ["a1", "b1"]


def test_sequences_without_a_place_wait_for_one_in_turn():
    sequences = sequences_of(oldest=SequenceOldest(max_candidate_sequences=1))
    send(sequences, "a1< b1<> c1<> a2>")
    order = []
    while (turn := sequences.take(0)) is not None:
        order += rows(turn)
        sequences.done(turn, 0)
    assert order == ["a1", "a2", "b1", "c1"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_idle_sequence_ends_and_its_place_is_free(strategy):
    sequences = sequences_of(
        most=1,
        **(
            {"direct": SequenceDirect()}
            if "direct" in strategy
            else {"oldest": SequenceOldest(max_candidate_sequences=1)}
        ),
    )
    send(sequences, "a1< b1<")
    sequences.done(sequences.take(0), 0)
    assert sequences.take(IDLE_NS - 1) is None
    assert sequences.wake_at_ns(IDLE_NS - 1, 1) == IDLE_NS
    assert rows(sequences.take(IDLE_NS)) == ["b1"]
    with pytest.raises(InputError, match="START"):
        send(sequences, "a2", IDLE_NS)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_waits_or_runs_is_not_idle(strategy):
    sequences = sequences_of(**strategy)
    send(sequences, "a1<")
    turn = sequences.take(0)
    send(sequences, "a2", 5 * IDLE_NS)
    sequences.done(turn, 5 * IDLE_NS)
    assert rows(sequences.take(9 * IDLE_NS)) == ["a2"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_start_within_a_sequence_begins_it_anew(strategy):
    sequences = sequences_of(**strategy)
    send(sequences, "a1<")
    turn = sequences.take(0)
    turn.steps[0].stream.state["s"] = 1
    sequences.done(turn, 0)
    send(sequences, "a2 a3< a4>")
    seen = []
    while (turn := sequences.take(0)) is not None:
        (step,) = turn.steps
        seen.append((step.item, step.first, dict(step.stream.state)))
        sequences.done(turn, 0)
    assert seen == [("a2", False, {"s": 1}), ("a3", True, {}), ("a4", False, {})]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("gone", ["a1", "a2", "a3"])
def test_cancelled_requests_are_left_out_and_the_sequence_goes_on(strategy, gone):
    sequences = sequences_of(cancelled={gone}, **strategy)
    send(sequences, "a1< a2 a3>")
    ran = []
    firsts = []
    while (turn := sequences.take(0)) is not None:
        ran += rows(turn)
        firsts += [step.first for step in turn.steps]
        sequences.done(turn, 0)
    assert ran == [item for item in ("a1", "a2", "a3") if item != gone]
    assert firsts == [True, False]
    ((item, error),) = sequences.dropped()
    assert item == gone
    assert isinstance(error, RequestCancelledError)
    assert not sequences.active


def test_sequences_and_their_requests_are_bounded():
    sequences = sequences_of(oldest=OLDEST)
    for number in range(MAX_SEQUENCES):
        sequences.enqueue("x", 0, id=number + 1, start=True, end=False)
    with pytest.raises(RejectedError, match="sequences already"):
        sequences.enqueue("x", 0, id="one more", start=True, end=False)
    for _ in range(MAX_SEQUENCE_REQUESTS - 1):
        sequences.enqueue("x", 0, id=1, start=False, end=False)
    with pytest.raises(RejectedError, match="Exceeds maximum queue size"):
        sequences.enqueue("x", 0, id=1, start=False, end=False)


def test_a_number_and_a_text_are_different_ids():
    sequences = sequences_of(oldest=OLDEST)
    sequences.enqueue("number", 0, id=7, start=True, end=False)
    with pytest.raises(InputError, match="START"):
        sequences.enqueue("text", 0, id="7", start=False, end=False)


@dataclass(eq=False)
class Sent:
    id: int
    number: int
    start: bool
    end: bool
    cancelled: bool = False


class SequencesMachine(RuleBasedStateMachine):
    """Every request once, in its sequence's order, one at a time, never more rows than a batch has."""

    @initialize(
        direct=st.booleans(),
        instances=st.integers(1, 2),
        most=st.integers(1, 3),
        candidates=st.integers(0, 3),
        utilization=st.sampled_from([0.0, 1.0]),
    )
    def begin(self, direct, instances, most, candidates, utilization):
        self.most, self.instances, self.direct = most, instances, direct
        strategy = (
            {"direct": SequenceDirect(max_queue_delay_microseconds=20, minimum_slot_utilization=utilization)}
            if direct
            else {"oldest": SequenceOldest(max_candidate_sequences=candidates, max_queue_delay_microseconds=20)}
        )
        self.sequences: Sequences[Sent] = Sequences(
            SequenceBatching(max_sequence_idle_microseconds=100, **strategy),
            model="m",
            instances=instances,
            most=most,
            is_cancelled=lambda item: item.cancelled,
        )
        self.now = 0
        self.number = 0
        self.waiting: dict[int, list[Sent]] = defaultdict(list)
        self.running: list[Turn[Sent]] = []
        self.rows: dict[int, tuple[int, int]] = {}

    @rule(id=st.integers(1, 5), start=st.booleans(), end=st.booleans())
    def send(self, id, start, end):  # noqa: A002
        self.number += 1
        item = Sent(id, self.number, start, end)
        try:
            self.sequences.enqueue(item, self.now, id=id, start=start, end=end)
        except InputError:
            assert not start
            assert not any(not one.end for one in self.waiting[id][-1:])
            return
        self.waiting[id].append(item)
        self.check_dropped()

    @rule()
    def take(self):
        if len(self.running) == self.instances:
            return
        turn = self.sequences.take(self.now)
        self.check_dropped()
        if turn is None:
            return
        assert 1 <= len(turn.steps) <= len(turn.rows) <= self.most
        busy = {step.item.id for other in self.running for step in other.steps}
        for step in turn.steps:
            assert step.item.id not in busy
            busy.add(step.item.id)
            assert self.waiting[step.item.id].pop(0) is step.item
            assert not step.item.cancelled
        if self.direct:
            assert turn.instance not in {other.instance for other in self.running}
        else:
            assert None not in turn.rows
        self.running.append(turn)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def done(self, data):
        turn = data.draw(st.sampled_from(self.running))
        self.running.remove(turn)
        self.sequences.done(turn, self.now)
        self.check_dropped()

    @rule(us=st.integers(1, 60))
    def advance(self, us):
        self.now += us * US

    @precondition(lambda self: any(self.waiting.values()))
    @rule(data=st.data())
    def cancel(self, data):
        items = [item for waiting in self.waiting.values() for item in waiting]
        data.draw(st.sampled_from(items)).cancelled = True

    def check_dropped(self):
        for item, _ in self.sequences.dropped():
            assert item.cancelled
            self.waiting[item.id].remove(item)

    @invariant()
    def counts_agree(self):
        if hasattr(self, "sequences"):
            assert len(self.sequences) == sum(map(len, self.waiting.values()))

    def teardown(self):
        """All that waits runs, and idle sequences leave nothing behind."""
        if not hasattr(self, "sequences"):
            return
        for _ in range(2 * self.number + 2):
            while self.running:
                self.sequences.done(self.running.pop(), self.now)
            self.take()
            if not self.running:
                self.now += 200 * US
                self.take()
        while self.running:
            self.sequences.done(self.running.pop(), self.now)
        self.now += 200 * US
        assert self.sequences.take(self.now) is None
        self.check_dropped()
        assert not any(self.waiting.values())
        assert not self.sequences.active


SequencesMachine.TestCase.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
TestSequences = SequencesMachine.TestCase
