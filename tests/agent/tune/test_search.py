from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeserve_agent.tune.objective import ROUNDS, Goal, Objective, Point, choose
from edgeserve_agent.tune.search import next_pass
from edgeserve_agent.tune.space import Configuration, Space, space_of
from tests.suites.tuning import SimulatedMachine

CORES = 4


def space(*, cores: int = CORES, runtimes: tuple[str, ...] = (), batchable: bool = True) -> Space:
    default = Configuration(threads=1, instances=cores)
    return space_of(default=default, cores=cores, runtimes=runtimes, batchable=batchable, concurrency=16)


def amdahl(one: Configuration) -> float:
    """Instances scale, threads by Amdahl's law with a fifth that is serial, and together they share the cores."""
    speed = 1 / (0.2 + 0.8 / one.threads)
    return 100 * speed * one.instances / max(1.0, one.threads * one.instances / CORES)


def threads_win(one: Configuration) -> float:
    """A cache that holds one instance."""
    return 100 * min(one.threads, CORES) / (1 + 0.5 * (one.instances - 1))


def batching(factor: float, peak: int, delay_us: int = 0):
    """`factor` times as much at a batch of `peak`; away from it, and from `delay_us`, less."""

    def throughput(one: Configuration) -> float:
        found = amdahl(one)
        if one.batch:
            found *= 1 + (factor - 1) * (1 - abs(one.batch.bit_length() - peak.bit_length()) / 5)
            found *= 1 - abs(one.delay_us - delay_us) / 20_000
        return found

    return throughput


def faster_runtime(one: Configuration) -> float:
    return batching(0.6, 8)(one) * (1.5 if one.runtime == "fast" else 1)


SURFACES = {
    "instances": (amdahl, space()),
    "threads": (threads_win, space()),
    "batching loses": (batching(0.6, 8), space()),
    "a small batch wins": (batching(2.5, 4), space()),
    "a middle batch wins": (batching(3, 8), space()),
    "the largest batch wins": (batching(3, 16), space()),
    "a batch with a delay wins": (batching(3, 8, 1000), space()),
    "another runtime wins": (faster_runtime, space(runtimes=("fast",))),
    "one core": (lambda one: 100 / (one.threads * one.instances), space(cores=1)),
    "no batching possible": (threads_win, space(batchable=False)),
}


@pytest.mark.parametrize("surface", SURFACES)
def test_the_search_finds_the_optimum_in_far_fewer_measurements_than_brute_force(surface):
    throughput, where = SURFACES[surface]
    machine = SimulatedMachine(throughput=throughput)
    points = machine.search(where, Goal())
    chosen = choose(where, Goal(), points.values())
    assert throughput(chosen.configuration) >= 0.98 * max(map(throughput, where))
    assert len(machine.measured) < ROUNDS * len(where)
    if len(where) > 50:
        assert len(set(machine.measured)) <= len(where) / 4
        assert len(machine.measured) <= ROUNDS * len(where) / 8


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("surface", SURFACES)
def test_the_search_finds_nearly_the_optimum_on_a_machine_that_does_other_work(surface, seed):
    throughput, where = SURFACES[surface]
    machine = SimulatedMachine(throughput=throughput, noise=0.05, drift=0.2, seed=seed)
    points = machine.search(where, Goal())
    chosen = choose(where, Goal(), points.values())
    assert throughput(chosen.configuration) >= 0.75 * max(map(throughput, where))
    assert len(machine.measured) < ROUNDS * len(where)


@pytest.mark.parametrize("seed", range(6))
def test_where_nothing_matters_nothing_is_changed(seed):
    where = space()
    machine = SimulatedMachine(throughput=lambda _one: 100.0, noise=0.05, drift=0.2, seed=seed)
    points = machine.search(where, Goal())
    assert choose(where, Goal(), points.values()).configuration == where.default
    assert len(machine.measured) < ROUNDS * len(where) * 0.75


@pytest.mark.parametrize("seed", range(6))
def test_batching_that_wins_less_than_the_noise_is_left_off(seed):
    where = space()
    machine = SimulatedMachine(throughput=batching(1.01, 8), noise=0.05, drift=0.1, seed=seed)
    points = machine.search(where, Goal())
    assert not choose(where, Goal(), points.values()).configuration.batch


def test_a_point_over_a_bound_never_wins_and_the_best_below_it_does():
    where = space()
    # Batching is fastest, and over the latency bound; instances take memory.
    machine = SimulatedMachine(
        throughput=batching(3, 16),
        latency_ms=lambda one: 200.0 if one.batch > 4 else 10.0,
        memory_bytes=lambda one: 100 * one.instances,
    )
    goal = Goal(latency_ms=50.0, memory_bytes=250)
    points = machine.search(where, goal)
    chosen = choose(where, goal, points.values())
    assert 0 < chosen.configuration.batch <= 4
    assert chosen.memory_bytes <= 250
    allowed = [one for one in where if one.batch <= 4 and one.instances <= 2]
    assert machine.throughput(chosen.configuration) >= 0.98 * max(map(machine.throughput, allowed))


def test_the_search_leaves_what_breaks_the_bounds_for_the_nearest_that_does_not():
    where = space()
    machine = SimulatedMachine(throughput=amdahl, memory_bytes=lambda one: 100 * one.instances + one.threads)
    goal = Goal(memory_bytes=102)
    points = machine.search(where, goal)
    chosen = choose(where, goal, points.values())
    assert (chosen.configuration.instances, chosen.configuration.threads) == (1, 2)


def test_nothing_is_chosen_where_nothing_holds_the_bounds_and_the_search_ends():
    where = space()
    machine = SimulatedMachine(throughput=amdahl, latency_ms=lambda _one: 80.0)
    goal = Goal(latency_ms=50.0)
    points = machine.search(where, goal)
    assert choose(where, goal, points.values()) is None
    assert len(machine.measured) < ROUNDS * len(where)


def test_what_cannot_be_served_is_tried_once_and_passed_over():
    where = space(runtimes=("broken",))
    machine = SimulatedMachine(throughput=amdahl, refuses=lambda one: one.runtime == "broken" or one.threads == 2)
    points = machine.search(where, Goal())
    refused = [one for one in machine.measured if machine.refuses(one)]
    assert len(refused) == len(set(refused)) > 0
    assert choose(where, Goal(), points.values()).configuration == where.default


@pytest.mark.parametrize(("objective", "expected"), [(Objective.LATENCY, (4, 1)), (Objective.CPU, (1, 1))])
def test_other_objectives_find_their_own_optimum(objective, expected):
    # A call gets faster with threads, and costs more of them; instances only share the machine.
    where = space(batchable=False)
    machine = SimulatedMachine(
        throughput=lambda one: 100 * one.threads**0.5,
        latency_ms=lambda one: 10 * one.instances**0.3 / one.threads**0.5,
    )
    goal = Goal(objective=objective)
    points = machine.search(where, goal)
    chosen = choose(where, goal, points.values()).configuration
    assert (chosen.threads, chosen.instances) == expected


def test_without_exploring_only_what_was_measured_is_told_apart():
    where = space()
    machine = SimulatedMachine(throughput=batching(3, 8))
    points = {}
    number = 0
    while (step := next_pass(where, Goal(), list(points.values()), explore=number == 0)) is not None:
        number += 1
        for one in step.configurations:
            points[one] = machine.measure(points.get(one, Point(configuration=one)), number)
    assert set(points) == set(where.seeds())
    assert choose(where, Goal(), points.values()).configuration.batch


@settings(max_examples=40)
@given(
    st.integers(0, 1_000_000),
    st.sampled_from([1, 2, 3, 4, 8]),
    st.booleans(),
    st.sampled_from([None, 30.0]),
    st.sampled_from(list(Objective)),
)
def test_on_any_surface_the_search_ends_and_repeats_itself(seed, cores, batchable, latency_ms, objective):
    where = space(cores=cores, batchable=batchable)
    goal = Goal(latency_ms=latency_ms, objective=objective)

    def throughput(one: Configuration) -> float:
        return random.Random(f"{seed} {one}").uniform(10, 1000)

    first, second = (
        SimulatedMachine(throughput=throughput, noise=0.1, seed=seed, latency_ms=lambda one: 1e4 / throughput(one))
        for _ in range(2)
    )
    points = first.search(where, goal)
    second.search(where, goal)
    assert first.measured == second.measured
    assert len(first.measured) < 10_000
    chosen = choose(where, goal, points.values())
    assert chosen is None or chosen.rounds
    assert next_pass(where, goal, list(points.values())) is None
