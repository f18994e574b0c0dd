from __future__ import annotations

import threading

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from edgeserve.link.base import PublishToken
from edgeserve.link.in_flight import InFlight


def test_an_acknowledgement_that_comes_before_its_packet_is_known_counts() -> None:
    in_flight = InFlight()
    in_flight.settle(7, "")
    token = in_flight.add(7)
    assert token is not None
    assert token.acknowledged
    assert in_flight.drain(0)


@pytest.mark.parametrize("reason", ["", "refused"])
def test_a_token_tells_how_it_ended(reason: str) -> None:
    in_flight = InFlight()
    token = in_flight.add(1)
    assert token is not None
    assert not token.wait(0)
    in_flight.settle(1, reason)
    assert token.wait(0) == (reason == "")
    assert token.reason == reason


def test_draining_waits_for_what_is_just_being_handed_over() -> None:
    in_flight = InFlight()
    with in_flight.handing_over():
        assert not in_flight.drain(0)
    assert in_flight.drain(0)


def test_draining_ends_with_the_last_acknowledgement() -> None:
    in_flight = InFlight()
    for packet in (1, 2):
        in_flight.add(packet)
    drained: list[bool] = []
    waiting = threading.Thread(target=lambda: drained.append(in_flight.drain(30)))
    waiting.start()
    in_flight.settle(1, "")
    in_flight.settle(2, "refused")
    waiting.join(30)
    assert drained == [True]


class Machine(RuleBasedStateMachine):
    """Any order of packets, answers and the end: every token settles exactly as the broker said."""

    def __init__(self) -> None:
        super().__init__()
        self.in_flight = InFlight()
        self.tokens: dict[int, PublishToken] = {}
        self.answers: dict[int, str] = {}
        self.closed = False

    @rule(packet=st.integers(1, 20))
    def add(self, packet: int) -> None:
        if packet in self.tokens:
            return
        token = self.in_flight.add(packet)
        assert (token is None) == (self.closed and packet not in self.answers)
        if token is not None:
            self.tokens[packet] = token

    @rule(packet=st.integers(1, 20), reason=st.sampled_from(["", "refused"]))
    def answer(self, packet: int, reason: str) -> None:
        if packet not in self.answers and not self.closed:
            self.answers[packet] = reason
            self.in_flight.settle(packet, reason)

    @rule()
    def close(self) -> None:
        self.closed = True
        self.in_flight.close("connection lost")

    @invariant()
    def every_token_says_what_the_broker_said(self) -> None:
        for packet, token in self.tokens.items():
            expected = self.answers.get(packet, "connection lost" if self.closed else "")
            assert token.reason == expected
            assert token.acknowledged == (self.answers.get(packet) == "")
        waiting = [packet for packet in self.tokens if packet not in self.answers]
        assert self.in_flight.drain(0) == (self.closed or not waiting)


TestMachine = Machine.TestCase
