"""When connections send what they have."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from edgeserve.contracts.limits import OUTBOX_CONNECTIONS, OUTBOX_NS
from edgeserve_agent.serving.outbox import Outbox


class Turns:
    """Senders on a loop and a clock that the test moves."""

    def __init__(self) -> None:
        self.now = 0
        self.ready: list[Callable[[], None]] = []
        self.sent: list[int] = []
        self.outbox = Outbox(SimpleNamespace(call_soon=self.ready.append), clock=lambda: self.now)  # type: ignore[arg-type]

    def add(self, number: int) -> None:
        self.outbox.add(SimpleNamespace(send=lambda: self.sent.append(number)))

    def end(self) -> None:
        ready, self.ready[:] = list(self.ready), []
        for function in ready:
            function()


@pytest.fixture
def turns() -> Turns:
    return Turns()


def test_what_is_added_in_a_turn_is_sent_at_its_end_in_order(turns: Turns):
    turns.add(1)
    turns.add(2)
    assert turns.sent == []
    turns.end()
    assert turns.sent == [1, 2]


def test_every_turn_sends_its_own(turns: Turns):
    turns.add(1)
    turns.end()
    turns.add(2)
    assert turns.sent == [1]
    turns.end()
    assert turns.sent == [1, 2]


def test_many_are_sent_before_the_turn_ends(turns: Turns):
    for number in range(OUTBOX_CONNECTIONS):
        turns.add(number)
    assert turns.sent == list(range(OUTBOX_CONNECTIONS))
    turns.add(99)
    turns.end()
    assert turns.sent[-1] == 99
    assert not turns.ready


def test_none_waits_long_for_the_others(turns: Turns):
    turns.add(1)
    turns.now += OUTBOX_NS
    turns.add(2)
    assert turns.sent == []
    turns.now += 1
    turns.add(3)
    assert turns.sent == [1, 2, 3]


def test_one_that_adds_itself_while_it_sends_is_sent_in_the_next_turn(turns: Turns):
    class Again:
        count = 0

        def send(self) -> None:
            self.count += 1
            if self.count == 1:
                turns.outbox.add(self)

    again = Again()
    turns.outbox.add(again)
    turns.end()
    assert again.count == 1
    turns.end()
    assert again.count == 2
