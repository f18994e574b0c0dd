"""Floods, slow clients, and clients that do not read."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from edgeserve.client import local_wire as wire
from edgeserve.contracts.errors import InputError
from tests.agent.serving.local.raw_client import WAIT_S, plan_of, run

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memfd and SO_PEERCRED are Linux")


# Bounds -----------------------------------------------------------------------------------------------


def test_a_flood_of_descriptors_leaves_none_open(node, connect, memory):
    client, descriptor, count = connect(node).greet(), memory(), len(list(Path("/proc/self/fd").iterdir()))
    client.send(wire.head(wire.DESCRIBE, 0, 0, 1), *[descriptor] * 200).error()  # nobody waits for any
    number = client.send(wire.message(wire.OPEN, plan_of(), tag=1)).read()[1]
    for _ in range(5):
        client.send(wire.head(wire.DESCRIBE, 0, 0, 1), *[descriptor] * 200).error()
    assert len(list(Path("/proc/self/fd").iterdir())) <= count + 1
    assert client.send(wire.head(wire.REGION, number, 0, 2), *[descriptor] * 200).read()[0] == wire.OPENED
    assert len(list(Path("/proc/self/fd").iterdir())) <= count + 1  # the mapping has one
    assert run(client, number)[0] == wire.LAYOUT


def test_there_are_limits_to_connections_plans_and_bytes(start, connect, memory, tools):
    node = start(tools.model(), connections=2, plans=2, total_bytes=300)
    first, second, third = connect(node).greet(), connect(node).greet(), connect(node)
    assert "2 local connections are open" in third.error().message
    assert third.ended()
    numbers = [first.open(plan_of(), memory()), first.open(plan_of(), memory())]
    assert "the connection has 2 plans" in first.send(wire.message(wire.OPEN, plan_of(), tag=1)).error().message
    assert "at most 300 are allowed" in second.send(wire.message(wire.OPEN, plan_of(), tag=1)).error().message
    first.send(wire.head(wire.CLOSE, numbers[0], 0, 5))
    assert run(first, numbers[1])[0] == wire.LAYOUT
    assert second.open(plan_of(), memory())


def test_one_plan_at_a_time_waits_for_its_region(node, connect):
    client = connect(node).greet()
    client.send(wire.message(wire.OPEN, plan_of(), tag=1)).read()
    assert "another plan waits for its region" in client.send(wire.message(wire.OPEN, plan_of(), tag=2)).error().message


@pytest.mark.parametrize("begun", [b"", b"\1\0\0", wire.HEAD.pack(wire.OPEN, 0, 100, 1) + b"half"])
def test_half_a_message_is_not_waited_for_for_ever(start, connect, tools, begun):
    node = start(tools.model(), message_s=0.1)
    client = connect(node)
    if len(begun) > 3:
        client.greet()
    client.send(begun) if begun else None
    assert isinstance(client.error(), InputError)
    assert client.ended()


def test_a_client_with_nothing_to_say_is_left_alone(start, connect, memory, tools):
    node = start(tools.model(), message_s=0.05)
    client = connect(node).greet()
    number = client.open(plan_of(), memory())
    node.server.run(asyncio.sleep(0.2))
    assert run(client, number)[0] == wire.LAYOUT


def test_a_client_that_does_not_read_is_not_read_from(node, connect, memory):
    client = connect(node).greet()
    number = client.open(plan_of(), memory())
    client.socket.setblocking(False)
    sent = 0
    block = wire.head(wire.RUN, number, 0, 1) * 64
    refused = 0
    while refused < 3:  # the server had its chance in between
        try:
            sent += client.socket.send(block)
        except BlockingIOError:
            refused += 1
            node.server.call(lambda: None)
        assert sent < 1 << 26, "the server takes everything"
    client.socket.settimeout(WAIT_S)
    answered = 0
    while answered < sent // 16:
        answered += client.read()[0] == wire.DONE
    assert answered == sent // 16
