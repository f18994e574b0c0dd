from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeserve.contracts.errors import InputError
from edgeserve_agent.tune.space import Configuration, Space, space_of


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    cores = draw(st.integers(1, 12))
    return space_of(
        default=Configuration(threads=1, instances=min(cores, 8)),
        cores=cores,
        runtimes=draw(st.sampled_from([(), ("other",), ("other", "third")])),
        batchable=draw(st.booleans()),
        concurrency=draw(st.integers(1, 80)),
        latency_ms=draw(st.sampled_from([None, 0.1, 1.0, 50.0])),
    )


@given(spaces())
def test_every_configuration_is_in_the_space_once_and_can_be_written(space):
    found = list(space)
    assert len(found) == len(set(found)) == len(space)
    assert all(one in space for one in found)
    assert space.default in found or space.default in space


@given(spaces())
def test_seeds_and_neighbours_stay_in_the_space(space):
    assert space.seeds()[0] == space.default
    for one in (*space.seeds(), *list(space)[:40]):
        near = space.neighbours(one)
        assert one not in near
        assert len(near) == len(set(near))
        assert all(other in space for other in near)


@given(spaces())
def test_every_configuration_can_be_reached_from_the_seeds(space):
    reached = set(space.seeds())
    waiting = deque(reached)
    while waiting:
        for near in space.neighbours(waiting.popleft()):
            if near not in reached:
                reached.add(near)
                waiting.append(near)
    assert set(space) <= reached


@given(spaces())
def test_simplicity_tells_all_apart_and_puts_batching_last(space):
    ordered = sorted(space, key=space.simplicity)
    assert min([*ordered, space.default], key=space.simplicity) == space.default
    batched = [bool(one.batch) for one in ordered]
    assert batched == sorted(batched)


def test_a_model_that_cannot_be_batched_or_one_client_has_no_batches():
    default = Configuration(threads=1, instances=4)
    for batchable, concurrency in ((False, 16), (True, 1)):
        space = space_of(default=default, cores=4, batchable=batchable, concurrency=concurrency)
        assert {one.batch for one in space} == {0}


def test_no_request_waits_longer_than_half_the_bound():
    default = Configuration(threads=1, instances=4)
    space = space_of(default=default, cores=4, batchable=True, concurrency=16, latency_ms=4.0)
    assert max(one.delay_us for one in space) == 1000


def test_a_batch_is_never_larger_than_there_are_requests():
    space = space_of(default=Configuration(), cores=1, batchable=True, concurrency=6)
    assert space.batches == (0, 2, 4, 6)


def test_a_delay_without_batching_is_refused():
    with pytest.raises(InputError, match="without batching"):
        Configuration(delay_us=100)
