from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from edgeserve.contracts.errors import InputError, RejectedError, RequestCancelledError
from edgeserve.contracts.model_config import DynamicBatching, QueuePolicy, TimeoutAction
from edgeserve_agent.serving.scheduling.batching import Batch, Queue, Waiting

US = 1000


def queue_of(most: int = 8, **config) -> Queue[str]:
    cancelled = config.pop("cancelled", set())
    return Queue(DynamicBatching(**config), max_batch_size=most, is_cancelled=cancelled.__contains__)


def fill(queue: Queue[str], *rows: int, now_ns: int = 0, form: object = None) -> None:
    start = len(queue)
    for number, count in enumerate(rows, start):
        queue.enqueue(Waiting(item=f"r{number}", rows=count, form=form), now_ns)


def next_of(queue: Queue[str], now_ns: int, idle_instances: int) -> Batch[str] | int | None:
    """The next batch; or when to ask again if nothing comes; or None = not before something comes."""
    batch = queue.take(now_ns) if idle_instances else None
    return batch or queue.wake_at_ns(now_ns, idle_instances)


def drained(queue: Queue[str], now_ns: int = 0) -> list[int]:
    sizes = []
    while isinstance(batch := next_of(queue, now_ns, 1), Batch):
        sizes.append(batch.rows)
    return sizes


@pytest.mark.parametrize(
    ("preferred", "delay_us", "rows", "batches"),
    [
        pytest.param((), 0, [1, 1, 1], [3], id="all that wait"),
        pytest.param((), 0, [4, 4, 4], [8, 4], id="up to the largest batch"),
        pytest.param((), 0, [5, 5], [5, 5], id="a request is never split"),
        pytest.param((2, 6), 0, [4, 2, 1], [6, 1], id="the largest preferred size"),
        pytest.param((2, 6), 0, [2, 2, 2, 2], [6, 2], id="a larger preferred size beyond a smaller one"),
        pytest.param((2, 6), 0, [1, 1, 1, 1, 1], [2, 2, 1], id="what is preferred, then the rest"),
        pytest.param((2, 6), 0, [5, 4], [5, 4], id="the next exceeds what is preferred"),
        pytest.param((4,), 0, [8], [8], id="one request larger than what is preferred"),
        pytest.param((4,), 0, [3, 3], [3, 3], id="the mark before the preferred size is passed"),
        pytest.param((), 100, [4, 4, 1], [8], id="a full batch does not wait"),
        pytest.param((4,), 100, [2, 2, 1], [4], id="a preferred batch does not wait"),
        pytest.param((4,), 100, [3], [], id="less waits"),
        pytest.param((2, 6), 100, [4, 3], [4], id="what cannot become preferred does not wait"),
    ],
)
def test_batches_are_of_the_sizes_of_the_rule(preferred, delay_us, rows, batches):
    queue = queue_of(preferred_batch_size=preferred, max_queue_delay_microseconds=delay_us)
    fill(queue, *rows)
    assert drained(queue) == batches


def test_a_batch_waits_for_the_oldest_and_no_longer():
    queue = queue_of(max_queue_delay_microseconds=100)
    fill(queue, 1, now_ns=0)
    fill(queue, 1, now_ns=60 * US)
    assert next_of(queue, 60 * US, 1) == 100 * US
    assert next_of(queue, 100 * US - 1, 1) == 100 * US
    assert next_of(queue, 100 * US, 1) == Batch(items=("r0", "r1"), rows=2)
    assert next_of(queue, 100 * US, 1) is None


def test_an_overdue_batch_takes_all_that_fit():
    queue = queue_of(preferred_batch_size=(4,), max_queue_delay_microseconds=100)
    fill(queue, *[1] * 7)
    assert drained(queue, 100 * US) == [7]


def test_requests_of_other_forms_form_their_own_batches_in_turn():
    queue = queue_of(max_queue_delay_microseconds=100)
    for number, form in enumerate("aabba"):
        queue.enqueue(Waiting(item=str(number), form=form), 0)
    assert next_of(queue, 0, 1) == Batch(items=("0", "1"), rows=2)
    assert next_of(queue, 0, 1) == Batch(items=("2", "3"), rows=2)
    assert next_of(queue, 0, 1) == 100 * US


def test_a_request_of_too_many_rows_is_the_clients_mistake():
    queue = queue_of(most=4)
    with pytest.raises(InputError, match="batch-size must be <= 4"):
        queue.enqueue(Waiting(item="x", rows=5), 0)
    assert not len(queue)


def test_higher_priorities_come_first_and_the_default_is_the_lowest():
    queue = queue_of(most=2, priority_levels=3)
    for item, priority in [("low", 3), ("none", 0), ("beyond", 9), ("middle", 2), ("high", 1), ("high2", 1)]:
        queue.enqueue(Waiting(item=item, priority=priority), 0)
    batches = [next_of(queue, 0, 1) for _ in range(3)]
    assert [batch.items for batch in batches] == [("high", "high2"), ("middle", "low"), ("none", "beyond")]


def test_a_named_default_level_holds_what_names_none():
    queue = queue_of(most=1, priority_levels=2, default_priority_level=1)
    queue.enqueue(Waiting(item="two", priority=2), 0)
    queue.enqueue(Waiting(item="none"), 0)
    assert next_of(queue, 0, 1).items == ("none",)


def test_a_full_level_rejects_and_others_do_not():
    queue = queue_of(priority_levels=2, priority_queue_policy={1: QueuePolicy(max_queue_size=1)})
    queue.enqueue(Waiting(item="a", priority=1), 0)
    with pytest.raises(RejectedError, match="Exceeds maximum queue size"):
        queue.enqueue(Waiting(item="b", priority=1), 0)
    queue.enqueue(Waiting(item="c", priority=2), 0)
    assert next_of(queue, 0, 1).items == ("a", "c")
    queue.enqueue(Waiting(item="d", priority=1), 0)


def test_cancelled_requests_make_room_in_a_full_queue():
    cancelled: set[str] = set()
    queue = queue_of(cancelled=cancelled, default_queue_policy=QueuePolicy(max_queue_size=1))
    queue.enqueue(Waiting(item="a"), 0)
    cancelled.add("a")
    queue.enqueue(Waiting(item="b"), 0)
    ((item, error),) = queue.dropped()
    assert item == "a"
    assert isinstance(error, RequestCancelledError)


@pytest.mark.parametrize(
    ("default_us", "override", "asked_us", "expires_us"),
    [
        (0, False, 50, None),
        (0, True, 50, 50),
        (100, False, 50, 100),
        (100, True, 50, 50),
        (100, True, 200, 100),
        (100, True, 0, 100),
    ],
)
def test_a_request_may_only_shorten_its_timeout(default_us, override, asked_us, expires_us):
    policy = QueuePolicy(default_timeout_microseconds=default_us, allow_timeout_override=override)
    queue = queue_of(default_queue_policy=policy)
    queue.enqueue(Waiting(item="a", timeout_us=asked_us), 0)
    assert queue.wake_at_ns(0, 0) == (None if expires_us is None else expires_us * US)
    if expires_us is not None:
        queue.wake_at_ns(expires_us * US - 1, 0)
        assert not queue.dropped()
        queue.wake_at_ns(expires_us * US, 0)
        ((_, error),) = queue.dropped()
        assert isinstance(error, RejectedError)
        assert error.message == "Request timeout expired"


def test_delayed_requests_run_behind_those_in_time_and_before_lower_levels():
    policy = QueuePolicy(timeout_action=TimeoutAction.DELAY, default_timeout_microseconds=100)
    queue = queue_of(most=1, priority_levels=2, priority_queue_policy={1: policy})
    queue.enqueue(Waiting(item="late", priority=1), 0)
    queue.enqueue(Waiting(item="low", priority=2), 0)
    queue.enqueue(Waiting(item="in time", priority=1), 50 * US)
    assert [next_of(queue, 100 * US, 1).items[0] for _ in range(3)] == ["in time", "late", "low"]
    assert not queue.dropped()


def test_a_queue_that_runs_singly_lets_nothing_wait():
    queue = queue_of(max_queue_delay_microseconds=100, preferred_batch_size=(4,))
    queue.run_singly()
    for number in range(2):
        queue.enqueue(Waiting(item=str(number), form=number), 0)
    assert drained(queue) == [1, 1]


@dataclass(eq=False)
class Naive:
    """A request in a model of the queue that is a plain list."""

    level: int
    rows: int
    form: str
    arrived: int
    deadline: int | None
    delayed: bool = False
    cancelled: bool = False


class QueueMachine(RuleBasedStateMachine):
    """The queue beside a list that is searched for every prefix."""

    @initialize(
        preferred=st.frozensets(st.integers(1, 6), max_size=2),
        delay_us=st.sampled_from([0, 30]),
        levels=st.integers(0, 2),
        action=st.sampled_from(TimeoutAction),
        timeout_us=st.sampled_from([0, 40]),
        most_waiting=st.sampled_from([0, 5]),
    )
    def begin(self, preferred, delay_us, levels, action, timeout_us, most_waiting):
        self.most = 6
        self.preferred, self.delay, self.levels = preferred, delay_us * US, levels
        self.policy = QueuePolicy(
            timeout_action=action,
            default_timeout_microseconds=timeout_us,
            allow_timeout_override=True,
            max_queue_size=most_waiting,
        )
        self.queue: Queue[Naive] = Queue(
            DynamicBatching(
                preferred_batch_size=tuple(preferred),
                max_queue_delay_microseconds=delay_us,
                priority_levels=levels,
                default_queue_policy=self.policy,
            ),
            max_batch_size=self.most,
            is_cancelled=lambda item: item.cancelled,
        )
        self.now = 0
        self.waiting: list[Naive] = []
        self.sent: list[Naive] = []
        self.gone: list[Naive] = []

    def expire(self):
        for one in sorted(self.waiting, key=lambda one: one.deadline or 0):
            if one.deadline is None or one.deadline > self.now or one.delayed:
                continue
            if self.policy.timeout_action is TimeoutAction.DELAY and not one.cancelled:
                one.delayed = True
                self.waiting.remove(one)
                self.waiting.append(one)
            else:
                self.expect_dropped(one)

    def expect_dropped(self, one):
        self.waiting.remove(one)
        self.due_drops.append(one)

    def in_order(self):
        return sorted(self.waiting, key=lambda one: (one.level, one.delayed))

    def expected(self):
        """The batch, or the time at which one is due, by trying all prefixes."""
        order = [one for one in self.in_order() if not one.cancelled]
        fitting = [
            size
            for size in range(1, len(order) + 1)
            if sum(one.rows for one in order[:size]) <= self.most and len({one.form for one in order[:size]}) == 1
        ]
        if not fitting:
            return None
        longest = fitting[-1]
        rows = {size: sum(one.rows for one in order[:size]) for size in range(len(order) + 1)}
        enough = max(self.preferred, default=self.most)
        due = min(one.arrived for one in order[:longest]) + self.delay
        good = [size for size in fitting if rows[size] in self.preferred]
        stuck = [size for size in fitting if size < len(order) and rows[size + 1] > enough]
        best = good[-1] if good else next(iter(stuck), 0)
        if best and not (self.delay and self.now >= due):
            return order[:best]
        if longest < len(order) or rows[longest] >= enough or self.now >= due:
            return order[:longest]
        return due

    @rule(
        level=st.integers(0, 3),
        rows=st.integers(1, 7),
        form=st.sampled_from("aab"),
        timeout_us=st.sampled_from([0, 0, 10, 100]),
    )
    def enqueue(self, level, rows, form, timeout_us):
        default = self.policy.default_timeout_microseconds
        wait_us = min(timeout_us, default) if timeout_us and default else timeout_us or default
        kept = level if 1 <= level <= self.levels else self.levels
        item = Naive(kept, rows, form, self.now, self.now + wait_us * US if wait_us else None)
        waiting = Waiting(item=item, rows=rows, form=form, priority=level, timeout_us=timeout_us)
        self.due_drops = []
        if rows <= self.most:
            self.expire()
        peers = [one for one in self.waiting if one.level == kept]
        full = self.policy.max_queue_size and len(peers) >= self.policy.max_queue_size
        try:
            self.queue.enqueue(waiting, self.now)
        except InputError:
            assert rows > self.most
            return
        except RejectedError:
            assert full
            assert not any(one.cancelled for one in peers)
            self.check_drops()
            return
        assert rows <= self.most
        if full:
            for one in [one for one in peers if one.cancelled]:
                self.expect_dropped(one)
            assert self.due_drops
        self.waiting.append(item)
        self.check_drops()

    @rule(idle=st.integers(0, 1))
    def ask(self, idle):
        self.due_drops = []
        self.expire()
        expected = self.expected() if idle else None
        found = next_of(self.queue, self.now, idle)
        if isinstance(expected, list):
            assert isinstance(found, Batch)
            assert list(found.items) == expected
            assert found.rows == sum(one.rows for one in expected) <= self.most
            for one in expected:
                self.waiting.remove(one)
            self.sent += expected
        else:
            deadlines = [one.deadline for one in self.waiting if one.deadline is not None and not one.delayed]
            times = [*deadlines, *([] if expected is None else [expected])]
            assert not isinstance(found, Batch)
            # A cancelled request's deadline may still wake.
            assert found in {min(times, default=None), expected, *deadlines}
            assert expected is None or found <= expected
        self.check_drops()

    @rule(us=st.integers(1, 60))
    def advance(self, us):
        self.now += us * US

    @rule()
    def advance_to_wake(self):
        at = self.queue.wake_at_ns(self.now, 1)
        self.due_drops = []
        self.expire()
        self.check_drops()
        if at is not None:
            assert at >= self.now
            self.now = at

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel(self, data):
        data.draw(st.sampled_from(self.waiting)).cancelled = True

    def check_drops(self):
        for item, error in self.queue.dropped():
            if item in self.due_drops:
                self.due_drops.remove(item)
                timed_out = item.deadline is not None and item.deadline <= self.now
                assert item.cancelled or timed_out
            else:  # cancelled ones are noticed when the queue comes across them
                assert item.cancelled
                self.waiting.remove(item)
            assert isinstance(error, RequestCancelledError if item.cancelled else RejectedError)
            self.gone.append(item)
        assert not self.due_drops

    @invariant()
    def nothing_is_lost_or_twice(self):
        if hasattr(self, "queue"):
            assert len(self.queue) == len(self.waiting)
            everything = [*self.waiting, *self.sent, *self.gone]
            assert len(everything) == len(set(map(id, everything)))

    def teardown(self):
        if not hasattr(self, "queue"):
            return
        self.now += self.delay
        while self.waiting:
            before = len(self.waiting)
            self.ask(1)
            assert len(self.waiting) < before


QueueMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestQueue = QueueMachine.TestCase
