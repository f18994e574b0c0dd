"""The search for a product that keeps the bound, over models whose noise is known because the tests make it up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from edgeserve.contracts.variant import Precision
from edgeserve_compilers.search import rank, search
from edgeserve_compilers.spec import Candidate, Measurement, Trial

LAYERS = tuple(f"layer{number}" for number in range(16))


def measurement(drop: float) -> Measurement:
    return Measurement(
        value=1 - drop, float_value=1.0, drop=drop, drop_low=drop, drop_high=drop, agreement=1.0, has_nan=False,
        latency_ms=1.0, float_latency_ms=1.0, executing_device="CPU",
    )  # fmt: skip


class Net:
    """Loses the sum of what its quantized layers cost, and a factor of the recipe."""

    def __init__(self, costs: dict[str, float], recipes: dict[str, float], *, bound: float) -> None:
        self.costs, self.recipes, self.bound = costs, recipes, bound
        self.judged: list[Candidate] = []

    def candidates(self) -> list[Candidate]:
        return [Candidate(precision=Precision.INT8, recipe=name) for name in self.recipes]

    def drop(self, candidate: Candidate) -> float:
        quantized = [cost for name, cost in self.costs.items() if name not in candidate.float_layers]
        return self.recipes[candidate.recipe] * sum(quantized)

    def judge(self, candidate: Candidate) -> Trial:
        self.judged.append(candidate)
        drop = self.drop(candidate)
        refused = ("it loses too much",) if drop > self.bound else ()
        return Trial(candidate=candidate, measurement=measurement(drop), refused=refused)

    def search(self, **changes):
        arguments = {
            "judge": self.judge,
            "noise": self.drop,
            "mendable": lambda trial: trial.measurement is not None,
        } | changes
        return search(self.candidates(), tuple(self.costs), **arguments)


@pytest.mark.parametrize(("cost", "judged"), [(0.0, 3), (0.001, 5)], ids=["nothing is lost", "something is lost"])
def test_the_least_noisy_are_judged_first_until_nothing_is_lost(cost: float, judged: int) -> None:
    noisy = Net({"a": 1.0}, {"bad": 5.0, "good": 1.0, "worse": 9.0, "fair": 2.0, "worst": 99.0}, bound=0.5)
    net = Net({"a": cost}, noisy.recipes, bound=0.5)
    trials, ranking = net.search(noise=noisy.drop)
    assert [trial.candidate.recipe for trial in trials] == ["good", "fair", "bad", "worse", "worst"][:judged]
    assert ranking == ()


def test_all_base_candidates_are_judged_while_none_holds() -> None:
    net = Net({"a": 1.0}, {"one": 1.0, "two": 2.0, "three": 3.0, "four": 4.0, "five": 5.0}, bound=0.1)
    trials, _ = net.search(mixed=False)
    assert len(trials) == 5
    assert all(trial.refused for trial in trials)


def test_only_the_layers_that_cost_stay_float() -> None:
    costs = dict.fromkeys(LAYERS, 0.0001) | {"layer3": 0.5, "layer9": 0.2, "layer12": 0.05}
    net = Net(costs, {"minmax": 1.0}, bound=0.01)
    trials, ranking = net.search()
    best = min((trial for trial in trials if not trial.refused), key=lambda trial: len(trial.candidate.float_layers))
    assert set(best.candidate.float_layers) == {"layer3", "layer9", "layer12"}
    assert [entry.layer for entry in ranking[:3]] == ["layer3", "layer9", "layer12"]


def test_what_bisection_took_too_much_of_is_given_back() -> None:
    """The ranking is wrong about one layer: it looks noisy and costs nothing."""
    costs = dict.fromkeys(LAYERS, 0.0) | {"layer5": 0.5}
    noisy = costs | {"layer1": 9.0, "layer2": 8.0}
    net = Net(costs, {"minmax": 1.0}, bound=0.01)
    seen = Net(noisy, {"minmax": 1.0}, bound=0.01)
    trials, _ = net.search(noise=seen.drop)
    kept = [trial.candidate.float_layers for trial in trials if not trial.refused]
    assert kept[-1] == ("layer5",)


WEIGHTS = Candidate(precision=Precision.INT8, recipe="weights", weights_only=True)


@pytest.mark.parametrize(
    ("bound", "mendable", "tried"), [(9.0, True, False), (0.01, True, True), (0.01, False, False)],
    ids=["int8 holds", "int8 loses too much", "int8 is refused for something else"],
)  # fmt: skip
def test_weights_only_is_the_last_resort(bound: float, mendable: bool, tried: bool) -> None:
    net = Net({"a": 1.0}, {"minmax": 1.0, "weights": 0.001}, bound=bound)
    arguments = {"judge": net.judge, "noise": net.drop, "mendable": lambda _: mendable}
    trials, _ = search([net.candidates()[0], WEIGHTS], ("a",), **arguments)
    assert (WEIGHTS in [trial.candidate for trial in trials]) is tried
    assert trials[0].candidate.recipe == "minmax"


def test_a_form_of_weights_alone_is_judged() -> None:
    net = Net({"a": 1.0}, {"weights": 0.001}, bound=0.01)
    trials, _ = search([WEIGHTS], ("a",), judge=net.judge, noise=net.drop, mendable=lambda _: True)
    assert [trial.candidate for trial in trials] == [WEIGHTS]


def test_a_refusal_that_float_layers_cannot_mend_is_left_alone() -> None:
    net = Net(dict.fromkeys(LAYERS, 1.0), {"minmax": 1.0}, bound=0.01)
    trials, ranking = net.search(mendable=lambda _: False)
    assert len(trials) == 1
    assert ranking == ()


def test_the_number_of_judgements_is_bounded() -> None:
    net = Net(dict.fromkeys(LAYERS, 1.0), {f"r{number}": 1.0 for number in range(9)}, bound=0.01)
    trials, _ = net.search(most=7)
    assert len(trials) == len(net.judged) == 7


def test_ranking_quantizes_one_layer_at_a_time() -> None:
    asked: list[Candidate] = []
    base = Candidate(precision=Precision.INT8, recipe="minmax")
    rank(base, LAYERS, lambda candidate: asked.append(candidate) or 0.0)
    assert [set(LAYERS) - set(candidate.float_layers) for candidate in asked] == [{layer} for layer in LAYERS]


@given(
    st.lists(st.floats(0, 1), min_size=2, max_size=20),
    st.floats(0.0, 2.0),
    st.integers(1, 12),
)
def test_whatever_holds_was_judged_and_holds(costs: list[float], bound: float, most: int) -> None:
    net = Net({f"layer{number}": cost for number, cost in enumerate(costs)}, {"a": 1.0, "b": 1.5}, bound=bound)
    trials, _ = net.search(most=most)
    assert len(trials) <= most
    assert [trial.candidate for trial in trials] == net.judged
    for trial in trials:
        assert bool(trial.refused) == (net.drop(trial.candidate) > bound)
        assert len(trial.candidate.float_layers) < len(costs), "something is still quantized"
        assert tuple(sorted(trial.candidate.float_layers)) == trial.candidate.float_layers


@pytest.mark.parametrize("count", [0, 1])
def test_few_candidates_need_no_order(count: int) -> None:
    net = Net({"a": 0.0}, {f"r{number}": 1.0 for number in range(count)}, bound=1.0)
    trials, _ = net.search(noise=lambda _: pytest.fail("nothing had to be ordered"))
    assert len(trials) == count


def test_a_candidate_that_cannot_be_made_is_judged_last() -> None:
    net = Net({"a": 0.1}, {"broken": 1.0, "fine": 2.0}, bound=0.01)
    trials, _ = net.search(
        noise=lambda candidate: float("inf") if candidate.recipe == "broken" else 1.0,
        judge=lambda candidate: (
            replace(net.judge(candidate), measurement=None, refused=("cannot be made",))
            if candidate.recipe == "broken"
            else net.judge(candidate)
        ),
        mixed=False,
    )
    assert [trial.candidate.recipe for trial in trials] == ["fine", "broken"]
