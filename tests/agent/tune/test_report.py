from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeserve.contracts.device import DeviceFacts
from edgeserve.contracts.model_config import ModelConfig
from edgeserve_agent.tune.measure import Subject
from edgeserve_agent.tune.messages import Ready
from edgeserve_agent.tune.objective import Goal, Objective, choose
from edgeserve_agent.tune.page import method, render
from edgeserve_agent.tune.plot import Mark, draw, marks, plot
from edgeserve_agent.tune.report import report
from edgeserve_agent.tune.space import Configuration, space_of
from edgeserve_agent.tune.tune import Outcome, Request
from tests.suites.tuning import LOADS, SimulatedMachine

FACTS = DeviceFacts(architecture="arm64", cpu="Cortex-A76", cores=4, memory_bytes=4_000_000_000)


def outcome(tmp_path, machine: SimulatedMachine, goal: Goal, *, name: str = "m", batchable: bool = True) -> Outcome:
    default = Configuration(threads=1, instances=4)
    space = space_of(default=default, cores=4, batchable=batchable, concurrency=16)
    points = machine.search(space, goal)
    ready = Ready(
        model=name, version="1", runtime="onnxruntime", runtime_version="1", device="CPU", call_us=100.0,
        batchable=batchable, why_not="" if batchable else "it has one row", requests=1,
    )  # fmt: skip
    subject = Subject(path=tmp_path / "m.onnx", base=ModelConfig())
    return Outcome(
        request=Request(subject=subject, goal=goal, concurrencies=LOADS, seconds=60.0), ready=ready, space=space,
        points=tuple(points.values()), chosen=choose(space, goal, points.values()), passed_over={"litert": "no TFLite"},
        window_s=0.2, spent_s=50.0, finished=True, goal=goal,
    )  # fmt: skip


def batched_wins(one: Configuration) -> float:
    return 100.0 * {0: 1, 2: 1.5, 4: 2, 8: 3, 16: 2.5}[one.batch]


def loses(one: Configuration) -> float:
    return 100.0 / (1 + one.batch)


def test_a_win_of_batching_says_by_how_much_and_how_sure(tmp_path):
    found = report(outcome(tmp_path, SimulatedMachine(throughput=batched_wins), Goal()), FACTS)
    assert found.winner.max_batch_size == 8
    assert found.trials[0] is found.winner
    assert found.against_default.certain
    assert found.batching.startswith("on: 3.00x the throughput of 4 x 1 thread (99 % sure: 3.00 to 3.00, 8 rounds)")
    assert found.cpu == "Cortex-A76"


def test_batching_that_loses_says_by_how_much(tmp_path):
    found = report(outcome(tmp_path, SimulatedMachine(throughput=loses), Goal()), FACTS)
    assert found.winner.title == "4 x 1 thread"
    assert found.against_default is None
    assert re.match(r"off: the best with it, .*, has 0\.\d+x the throughput of 4 x 1 thread", found.batching)


def test_a_model_that_cannot_be_batched_says_why(tmp_path):
    found = report(outcome(tmp_path, SimulatedMachine(throughput=loses), Goal(), batchable=False), FACTS)
    assert found.batching == "cannot be had: it has one row"


def test_where_nothing_holds_the_bounds_the_nearest_is_named(tmp_path):
    machine = SimulatedMachine(
        throughput=loses, latency_ms=lambda one: 80.0 + one.threads, memory_bytes=lambda _one: 7_000_000
    )
    found = report(outcome(tmp_path, machine, Goal(latency_ms=50.0)), FACTS)
    assert found.winner is None
    assert found.chosen is None
    assert found.nearest.startswith("4 x 1 thread: p99 81.00 ms with 1 client, 7 MB")
    assert {trial.verdict for trial in found.trials} == {"over the latency bound at every load"}


def test_the_verdict_names_the_bound_that_is_broken(tmp_path):
    machine = SimulatedMachine(
        throughput=batched_wins,
        memory_bytes=lambda one: 200 if one.batch else 1,
        refuses=lambda one: one.threads == 4,
    )
    found = report(outcome(tmp_path, machine, Goal(memory_bytes=100)), FACTS)
    verdicts = {trial.title: trial.verdict for trial in found.trials}
    assert verdicts["4 x 1 thread"] == "chosen"
    assert verdicts["1 x 4 threads"] == "cannot be served: it does not load"
    assert verdicts["4 x 1 thread, batch 16, delay 0 us"] == "over the memory budget"
    assert found.batching == "off: with it nothing meets the bounds"


def test_the_plot_shows_chosen_frontier_and_what_breaks_a_bound(tmp_path):
    machine = SimulatedMachine(throughput=batched_wins, latency_ms=lambda one: 5.0 + one.threads)
    found = report(outcome(tmp_path, machine, Goal(latency_ms=50.0)), FACTS)
    shown = marks(found)
    assert len(shown) == sum(len(trial.loads) for trial in found.trials)
    assert {mark.sign for mark in shown} == {"@", "*", "o", "."} or {mark.sign for mark in shown} == {"@", "o", "."}
    text = plot(found)
    assert "@" in text.partition("@ chosen")[0]
    assert "| latency bound" in text
    assert all(len(line) <= 80 for line in text.splitlines())


@given(
    st.lists(
        st.builds(Mark, tail_ms=st.floats(0, 1e6), throughput=st.floats(0, 1e9), sign=st.sampled_from(".o*@")),
        max_size=30,
    ),
    st.sampled_from([None, 0.001, 50.0]),
)
def test_any_marks_can_be_drawn_and_the_top_one_is_seen(shown, bound_ms):
    text = draw(shown, percentile=99, bound_ms=bound_ms)
    drawn = [mark for mark in shown if mark.tail_ms > 0 and mark.throughput > 0]
    assert bool(text) == bool(drawn)
    if any(mark.sign == "@" for mark in drawn):
        assert "@" in text.partition("@ chosen")[0]


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attributes if name in ("src", "href", "style", "onload")]


def test_the_page_loads_nothing_and_shows_every_load(tmp_path):
    found = report(outcome(tmp_path, SimulatedMachine(throughput=batched_wins), Goal(latency_ms=400.0)), FACTS)
    text = render(found, "threads = 1\n")
    assert text == render(found, "threads = 1\n")
    page = _Page()
    page.feed(text)
    assert page.loads == []
    assert "script" not in page.tags
    assert "default-src 'none'" in text.replace("&#x27;", "'")
    assert page.tags.count("circle") == sum(len(trial.loads) for trial in found.trials)
    assert "threads = 1" in text
    for line in method(found):
        assert line[:20] in text.replace("&#x27;", "'").replace("&quot;", '"')


def test_names_from_elsewhere_are_text_in_the_page(tmp_path):
    machine = SimulatedMachine(throughput=loses)
    found = report(outcome(tmp_path, machine, Goal(), name="<script>alert(1)</script>"), FACTS)
    assert "<script" not in render(found, "")


@pytest.mark.parametrize("objective", list(Objective))
def test_a_page_without_a_winner_says_what_is_nearest(tmp_path, objective):
    machine = SimulatedMachine(throughput=loses, latency_ms=lambda _one: 80.0)
    found = report(outcome(tmp_path, machine, Goal(objective=objective, latency_ms=50.0)), FACTS)
    assert "Nothing meets the bounds." in render(found, "")
