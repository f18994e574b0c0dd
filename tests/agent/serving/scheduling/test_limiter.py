from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from edgeserve.contracts.errors import ConflictError, InputError
from edgeserve.contracts.model_config import RateLimiter, Resource
from edgeserve_agent.serving.scheduling.limiter import Limiter


def needs(priority: int = 1, *, is_global: bool = False, **counts: int) -> RateLimiter:
    resources = tuple(Resource(name=name, count=count, global_=is_global) for name, count in counts.items())
    return RateLimiter(resources=resources, priority=priority)


def test_by_default_there_is_as_much_as_the_neediest_asks_for():
    limiter = Limiter()  # the example of Triton's page
    limiter.join("a", needs(R1=4, R2=4))
    greedy = limiter.join("b", needs(R2=5, R3=10, R4=5))
    limiter.join("c", needs(R1=1, R3=7, R4=2))
    assert [limiter.maximum(name) for name in ("R1", "R2", "R3", "R4")] == [4, 5, 10, 5]
    limiter.leave(greedy)
    assert [limiter.maximum(name) for name in ("R1", "R2", "R3", "R4")] == [4, 4, 7, 2]


def test_what_is_asked_for_beyond_the_maximum_is_refused():
    limiter = Limiter({"R": 2})
    with pytest.raises(InputError, match=r"limited to 2, .* minimum required count is 3"):
        limiter.join("m", needs(R=3))
    limiter.join("m", needs(R=2))


def test_a_resource_is_global_for_all_or_for_none():
    limiter = Limiter()
    member = limiter.join("a", needs(is_global=True, R=1))
    with pytest.raises(ConflictError, match="both global and device-specific"):
        limiter.join("b", needs(R=1))
    limiter.leave(member)
    limiter.join("b", needs(R=1))


def test_what_does_not_fit_waits_until_enough_is_released():
    limiter = Limiter({"R": 3})
    big, small = limiter.join("big", needs(R=3)), limiter.join("small", needs(R=1))
    limiter.ask(small)
    assert limiter.grant() is small
    limiter.ask(big)
    limiter.ask(small)
    assert limiter.grant() is None, "the small one would pass the big one for ever"
    limiter.release(small)
    assert limiter.grant() is big
    limiter.release(big)
    assert limiter.grant() is small


def test_who_shares_nothing_with_those_before_it_need_not_wait():
    limiter = Limiter()
    first, second = limiter.join("a", needs(R=1)), limiter.join("b", needs(R=1))
    other, free = limiter.join("c", needs(S=1)), limiter.join("d", needs())
    limiter.ask(first)
    assert limiter.grant() is first
    for member in (second, other, free):
        limiter.ask(member)
    assert {limiter.grant(), limiter.grant()} == {other, free}
    assert limiter.grant() is None


@given(priorities=st.lists(st.integers(1, 5), min_size=2, max_size=4), turns=st.integers(20, 200))
@settings(deadline=None, max_examples=50)
def test_turns_are_shared_in_inverse_proportion_to_priority(priorities, turns):
    limiter = Limiter({"R": 1})
    members = [limiter.join(str(number), needs(priority, R=1)) for number, priority in enumerate(priorities)]
    counted: Counter[str] = Counter()
    for _ in range(turns):
        for member in members:
            limiter.ask(member)
        granted = limiter.grant()
        counted[granted.model] += 1
        limiter.release(granted)
    shares = [1 / priority for priority in priorities]
    for member, share in zip(members, shares, strict=True):
        assert abs(counted[member.model] - turns * share / sum(shares)) <= len(members)


def test_one_that_was_away_saves_no_turns_up():
    limiter = Limiter({"R": 1})
    busy, away = limiter.join("busy", needs(R=1)), limiter.join("away", needs(R=1))
    for _ in range(100):
        limiter.ask(busy)
        limiter.release(limiter.grant())
    order = []
    for _ in range(10):
        limiter.ask(busy)
        limiter.ask(away)
        order.append(limiter.grant())
        limiter.release(order[-1])
    assert order.count(away) in (5, 6)


class LimiterMachine(RuleBasedStateMachine):
    """Never more than there is, nobody stuck, everybody in the end."""

    @initialize(
        wants=st.lists(st.dictionaries(st.sampled_from("RST"), st.integers(1, 3)), min_size=1, max_size=5),
        priorities=st.lists(st.integers(1, 3), min_size=5, max_size=5),
        maxima=st.dictionaries(st.sampled_from("RST"), st.integers(3, 4)),
    )
    def begin(self, wants, priorities, maxima):
        self.limiter = Limiter(maxima)
        self.members = [
            self.limiter.join(str(number), needs(priorities[number], **want)) for number, want in enumerate(wants)
        ]
        self.running = []
        self.waiting = []

    @rule(data=st.data())
    def ask(self, data):
        member = data.draw(st.sampled_from(self.members))
        self.limiter.ask(member)
        if member not in self.waiting:
            self.waiting.append(member)

    @rule()
    def grant(self):
        granted = self.limiter.grant()
        if granted is None:
            # Nothing that fits alone may be held back when nothing runs: that would be a deadlock.
            assert self.running or not self.waiting
            return
        assert granted in self.waiting
        self.waiting.remove(granted)
        self.running.append(granted)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def release(self, data):
        member = data.draw(st.sampled_from(self.running))
        self.running.remove(member)
        self.limiter.release(member)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def withdraw(self, data):
        member = data.draw(st.sampled_from(self.waiting))
        self.waiting.remove(member)
        self.limiter.withdraw(member)

    @invariant()
    def never_more_than_there_is(self):
        for name in "RST" if hasattr(self, "limiter") else "":
            held = sum(member.needs.get(name, 0) for member in self.running)
            assert held == self.limiter.held(name) <= self.limiter.maximum(name)

    def teardown(self):
        if not hasattr(self, "limiter"):
            return
        for _ in range(len(self.waiting) + len(self.running)):
            self.grant()
            while self.running:
                self.limiter.release(self.running.pop())
        assert not self.waiting


LimiterMachine.TestCase.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
TestLimiter = LimiterMachine.TestCase
