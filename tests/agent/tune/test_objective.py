from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeserve_agent.tune.objective import (
    COVERAGE,
    ROUNDS,
    Goal,
    Objective,
    Point,
    Round,
    Sample,
    choose,
    excess,
    frontier,
    gain,
    is_better,
    median_interval,
    operating,
    worths,
)
from edgeserve_agent.tune.space import Configuration, Space

DEFAULT = Configuration(threads=1, instances=2)
WIDE = Configuration(threads=2, instances=1)
BATCHED = Configuration(threads=1, instances=2, batch=8)
SPACE = Space(default=DEFAULT, cores=2, batches=(0, 8), delays_us=(0,))


def sample(throughput: float, *, tail_ms: float = 10.0, concurrency: int = 4, cpu_ms: float = 1.0, failed: int = 0):
    return Sample(
        concurrency=concurrency, requests=100, throughput=throughput, p50_ms=tail_ms / 2, tail_ms=tail_ms,
        cpu_ms=cpu_ms, failed=failed,
    )  # fmt: skip


def point(one: Configuration, throughputs: list[float], *, tail_ms: float = 10.0, memory_bytes: int = 1) -> Point:
    rounds = tuple(
        Round(number=number, samples=(sample(throughput, tail_ms=tail_ms),))
        for number, throughput in enumerate(throughputs)
    )
    return Point(configuration=one, rounds=rounds, memory_bytes=memory_bytes)


def test_the_operating_load_is_the_best_that_holds_the_bound():
    loads = (sample(100, tail_ms=5, concurrency=1), sample(300, tail_ms=20, concurrency=4), sample(400, tail_ms=90))
    loads = (*loads[:2], replace(loads[2], concurrency=16))
    one = Point(configuration=DEFAULT, rounds=(Round(number=0, samples=loads),))
    for bound, expected in ((None, 16), (50.0, 4), (20.0, 4), (19.0, 1), (4.0, None)):
        found = operating(one, Goal(latency_ms=bound))
        assert (found.concurrency if found else None) == expected


@pytest.mark.parametrize(
    "broken",
    [
        point(DEFAULT, [1e6], tail_ms=51.0),
        point(DEFAULT, [1e6], memory_bytes=101),
        replace(point(DEFAULT, [1e6]), refused="it does not load"),
        Point(configuration=DEFAULT),
        Point(configuration=DEFAULT, rounds=(Round(number=0, samples=(sample(1e6, failed=1),)),)),
    ],
    ids=["latency", "memory", "refused", "not measured", "failed requests"],
)
def test_what_breaks_a_constraint_is_never_chosen(broken):
    goal = Goal(latency_ms=50.0, memory_bytes=100)
    slow = point(WIDE, [1.0])
    assert choose(SPACE, goal, [broken, slow]) is slow
    assert choose(SPACE, goal, [broken]) is None
    assert excess(broken, goal) > 1
    assert excess(slow, goal) <= 1


@pytest.mark.parametrize("objective", list(Objective))
def test_each_objective_prefers_what_it_names(objective):
    goal = Goal(objective=objective)
    better = {
        Objective.THROUGHPUT: sample(200),
        Objective.LATENCY: sample(100, tail_ms=5.0),
        Objective.CPU: sample(100, cpu_ms=0.5),
    }[objective]
    made = {
        one: Point(configuration=one, rounds=tuple(Round(number=number, samples=(found,)) for number in range(ROUNDS)))
        for one, found in ((DEFAULT, sample(100)), (WIDE, better))
    }
    found = gain(made[WIDE], made[DEFAULT], goal)
    assert found is not None
    assert found.ratio == pytest.approx(2.0)
    assert choose(SPACE, goal, made.values()) is made[WIDE]


def test_a_gain_is_certain_only_after_enough_rounds_that_agree():
    for rounds in range(1, ROUNDS):
        assert not is_better(point(WIDE, [200.0] * rounds), point(DEFAULT, [100.0] * rounds), Goal())
    assert is_better(point(WIDE, [200.0] * ROUNDS), point(DEFAULT, [100.0] * ROUNDS), Goal())
    one_bad = [200.0] * (ROUNDS - 1) + [90.0]
    assert not is_better(point(WIDE, one_bad), point(DEFAULT, [100.0] * ROUNDS), Goal())
    assert is_better(point(WIDE, [200.0] * (2 * ROUNDS - 1) + [90.0]), point(DEFAULT, [100.0] * (2 * ROUNDS)), Goal())


def test_less_than_two_per_cent_are_no_gain():
    assert not is_better(point(WIDE, [101.0] * 20), point(DEFAULT, [100.0] * 20), Goal())


def test_only_rounds_that_both_saw_are_compared():
    ours, theirs = point(WIDE, [300.0, 10.0, 10.0]), point(DEFAULT, [100.0])
    found = gain(ours, theirs, Goal())
    assert found is not None
    assert found.ratio == pytest.approx(3.0)
    assert found.rounds == 1
    apart = Point(configuration=WIDE, rounds=(Round(number=9, samples=(sample(5.0),)),))
    assert gain(apart, theirs, Goal()) is None


def test_ties_go_to_what_is_served_anyway_and_to_no_batching():
    noise = random.Random(0)
    made = [point(one, [100 * noise.gauss(1, 0.02) for _ in range(12)]) for one in (BATCHED, WIDE, DEFAULT)]
    assert choose(SPACE, Goal(), made) is made[2]
    assert choose(SPACE, Goal(), made[:2]) is made[1]


def test_batching_is_chosen_only_where_it_was_shown_to_win():
    plain = point(DEFAULT, [100.0] * ROUNDS)
    assert choose(SPACE, Goal(), [plain, point(BATCHED, [150.0] * ROUNDS)]).configuration == BATCHED
    # Better in each of the few rounds there were, or in most of them: not shown.
    assert choose(SPACE, Goal(), [plain, point(BATCHED, [150.0] * (ROUNDS - 1))]) is plain
    assert choose(SPACE, Goal(), [plain, point(BATCHED, [150.0] * (ROUNDS - 1) + [99.0])]) is plain
    # Better than the default but not than the best without batching.
    wide = point(WIDE, [149.0] * ROUNDS)
    assert choose(SPACE, Goal(), [plain, wide, point(BATCHED, [150.0] * ROUNDS)]) is wide


def test_batching_is_chosen_where_only_it_holds_the_bound():
    goal = Goal(latency_ms=50.0)
    slow, batched = point(DEFAULT, [100.0], tail_ms=60.0), point(BATCHED, [90.0], tail_ms=40.0)
    assert choose(SPACE, goal, [slow, batched]) is batched


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=30))
def test_the_interval_holds_the_median_of_its_values(values):
    low, high, coverage = median_interval(values)
    assert low in values
    assert high in values
    assert sum(value <= high for value in values) * 2 >= len(values)
    assert sum(value >= low for value in values) * 2 >= len(values)
    assert (coverage >= COVERAGE) == (len(values) >= ROUNDS)


@pytest.mark.parametrize("rounds", [8, 9, 12, 16])
def test_the_interval_covers_the_true_median_as_often_as_it_says(rounds):
    draw = random.Random(rounds)
    hits, said = 0, 0.0
    for _ in range(4000):
        low, high, said = median_interval([draw.lognormvariate(0, 1) for _ in range(rounds)])
        hits += low <= 1.0 <= high
    assert said >= COVERAGE
    assert hits / 4000 == pytest.approx(said, abs=4 * math.sqrt(said * (1 - said) / 4000))


def test_worth_takes_out_what_a_round_did_to_all_alike():
    slow_round, fast_round = 0.5, 2.0
    one = Point(
        configuration=DEFAULT,
        rounds=(Round(number=0, samples=(sample(100),)), Round(number=1, samples=(sample(100 * slow_round),))),
    )
    other = Point(
        configuration=WIDE,
        rounds=(Round(number=0, samples=(sample(120),)), Round(number=2, samples=(sample(120 * fast_round),))),
    )
    third = Point(
        configuration=BATCHED,
        rounds=tuple(
            Round(number=number, samples=(sample(110 * factor),))
            for number, factor in ((0, 1.0), (1, slow_round), (2, fast_round))
        ),
    )
    found = worths([one, other, third], Goal())
    assert found[WIDE] / found[DEFAULT] == pytest.approx(1.2)
    assert found[BATCHED] / found[DEFAULT] == pytest.approx(1.1)


@given(st.lists(st.tuples(st.floats(1, 100), st.floats(1, 100), st.integers(1, 3)), min_size=1, max_size=20))
def test_nothing_beats_a_point_of_the_frontier_and_all_others_are_beaten(measured):
    made = [
        Point(
            configuration=Configuration(threads=number + 1),
            rounds=(Round(number=0, samples=(sample(throughput, tail_ms=tail),)),),
            memory_bytes=memory,
        )
        for number, (throughput, tail, memory) in enumerate(measured)
    ]
    front = frontier(made, Goal(memory_bytes=2))
    reached = [(tail, throughput) for throughput, tail, memory in measured if memory <= 2]
    shown = [(level.tail_ms, level.throughput) for _, level in front]
    assert shown == sorted(shown)
    for tail, throughput in reached:
        better = [one for one in shown if one[0] <= tail and one[1] >= throughput]
        assert better
        if (tail, throughput) in shown:
            assert better == [(tail, throughput)]
