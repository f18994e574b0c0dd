"""What was found, as a document: figures, verdicts and how sure they are. Pure."""

from __future__ import annotations

import msgspec

from edgeserve.contracts.device import DeviceFacts
from edgeserve.contracts.model_config import Isolation
from edgeserve_agent.tune.objective import (
    Gain,
    Goal,
    Objective,
    Point,
    Sample,
    best_of,
    excess,
    frontier,
    gain,
    operating,
    worths,
)
from edgeserve_agent.tune.space import Configuration
from edgeserve_agent.tune.tune import Outcome

_UNITS = {
    Objective.THROUGHPUT: "the throughput",
    Objective.LATENCY: "as fast in the tail",
    Objective.CPU: "the answers for the same CPU time",
}


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """Medians over the rounds, at one number of clients."""

    concurrency: int
    requests: int
    """In all rounds together."""
    throughput: float
    """Requests a second."""
    p50_ms: float
    tail_ms: float
    cpu_ms: float
    """A request."""


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """One configuration that was tried."""

    title: str
    runtime: str
    threads: int
    instances: int
    max_batch_size: int
    preferred_batch_size: int
    max_queue_delay_microseconds: int
    rounds: int
    memory_bytes: int
    loads: tuple[Load, ...]
    best_at: int | None
    """Clients at which it does best within the constraints; None = it breaks one at every load."""
    verdict: str
    is_chosen: bool


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """How many times better one is than the other, in rounds that met both."""

    better: str
    worse: str
    ratio: float
    low: float
    high: float
    coverage: float
    """Probability that the interval holds the median."""
    rounds: int
    certain: bool
    """It is better beyond noise."""


class FrontierPoint(msgspec.Struct, frozen=True, kw_only=True):
    """A load of a configuration that nothing beats in both throughput and tail latency."""

    title: str
    concurrency: int
    throughput: float
    tail_ms: float


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for."""

    objective: str
    percentile: float
    latency_ms: float | None
    memory_bytes: int
    """As asked for, or what the machine has left."""
    concurrencies: tuple[int, ...]
    seconds: float


class TuneReport(msgspec.Struct, frozen=True, kw_only=True):
    """All of it."""

    model: str
    version: str
    runtime: str
    """Name and version."""
    device: str
    """What executes the model, as the runtime says."""
    cpu: str
    cores: int
    memory_bytes: int
    """Of the machine."""
    wanted: Wanted
    spent_s: float
    window_s: float
    finished: bool
    possible: int
    """Configurations of the space."""
    trials: tuple[Trial, ...]
    chosen: str | None
    against_default: Comparison | None
    """None = the default was chosen, or met no constraint."""
    batching: str
    """Why it is on or off."""
    frontier: tuple[FrontierPoint, ...]
    nearest: str
    """What misses the constraints least, when all do."""
    passed_over: dict[str, str]
    """Runtimes that do not serve the model, and why."""
    notes: tuple[str, ...]

    @property
    def winner(self) -> Trial | None:
        """The chosen one."""
        return next((trial for trial in self.trials if trial.is_chosen), None)


def report(outcome: Outcome, facts: DeviceFacts) -> TuneReport:
    """Put what was found into words.

    Args:
        outcome: Of the search.
        facts: Of this machine.
    """
    request, ready = outcome.request, outcome.ready
    goal = outcome.goal
    chosen = outcome.chosen
    default = next((point for point in outcome.points if point.configuration == outcome.space.default), None)
    compared = gain(chosen, default, goal) if chosen and default and chosen is not default else None
    return TuneReport(
        model=ready.model,
        version=ready.version,
        runtime=f"{ready.runtime} {ready.runtime_version}",
        device=ready.device,
        cpu=facts.cpu or "unknown CPU",
        cores=outcome.space.cores,
        memory_bytes=facts.memory_bytes,
        wanted=Wanted(
            objective=goal.objective.value,
            percentile=goal.percentile,
            latency_ms=goal.latency_ms,
            memory_bytes=goal.memory_bytes or 0,
            concurrencies=request.concurrencies,
            seconds=request.seconds,
        ),
        spent_s=outcome.spent_s,
        window_s=outcome.window_s,
        finished=outcome.finished,
        possible=len(outcome.space),
        trials=tuple(_trial(point, goal, chosen) for point in _ordered(outcome)),
        chosen=str(chosen.configuration) if chosen else None,
        against_default=_comparison(chosen, default, compared) if chosen and default and compared else None,
        batching=_batching(outcome),
        frontier=tuple(_front(one, level) for one, level in frontier(outcome.points, goal)),
        nearest="" if chosen else _nearest(outcome),
        passed_over=outcome.passed_over,
        notes=tuple(_notes(outcome)),
    )


def in_words(found: Comparison, objective: str) -> str:
    """`1.84x the throughput of 2 x 1 thread (95 % sure: 1.71 to 1.93, 6 rounds)`."""
    what = _UNITS[Objective(objective)]
    of = "as" if objective == Objective.LATENCY else "of"
    sure = f"{100 * found.coverage:.0f} % sure: {found.low:.2f} to {found.high:.2f}, {found.rounds} rounds"
    return f"{found.ratio:.2f}x {what} {of} {found.worse} ({sure})"


def _ordered(outcome: Outcome) -> list[Point]:
    """The chosen one, then what meets the constraints, the best first, then the rest."""
    worth = worths(outcome.points, outcome.goal)
    return sorted(
        outcome.points,
        key=lambda point: (
            point is not outcome.chosen,
            -worth.get(point.configuration, 0.0),
            outcome.space.simplicity(point.configuration),
        ),
    )


def _trial(point: Point, goal: Goal, chosen: Point | None) -> Trial:
    one = point.configuration
    best = operating(point, goal)
    return Trial(
        title=str(one),
        runtime=one.runtime,
        threads=one.threads,
        instances=one.instances,
        max_batch_size=one.batch,
        preferred_batch_size=one.preferred,
        max_queue_delay_microseconds=one.delay_us,
        rounds=len(point.rounds),
        memory_bytes=point.memory_bytes,
        loads=tuple(_load(level) for level in point.levels()),
        best_at=best.concurrency if best else None,
        verdict=_verdict(point, goal, chosen),
        is_chosen=point is chosen,
    )


def _load(level: Sample) -> Load:
    return Load(
        concurrency=level.concurrency,
        requests=level.requests,
        throughput=level.throughput,
        p50_ms=level.p50_ms,
        tail_ms=level.tail_ms,
        cpu_ms=level.cpu_ms,
    )


def _verdict(point: Point, goal: Goal, chosen: Point | None) -> str:
    if point is chosen:
        return "chosen"
    if point.refused:
        return f"cannot be served: {point.refused}"
    if goal.memory_bytes is not None and point.memory_bytes > goal.memory_bytes:
        return "over the memory budget"
    if not operating(point, goal):
        return "over the latency bound at every load"
    found = gain(point, chosen, goal) if chosen else None
    if found is None:
        return "not measured beside the chosen one"
    # Figures of other rounds met other work of the machine: only those of the same rounds are compared.
    return f"{found.ratio:.2f}x the chosen one in {found.rounds} common {'round' if found.rounds == 1 else 'rounds'}"


def _comparison(one: Point, other: Point, found: Gain) -> Comparison:
    return Comparison(
        better=str(one.configuration),
        worse=str(other.configuration),
        ratio=found.ratio,
        low=found.low,
        high=found.high,
        coverage=found.coverage,
        rounds=found.rounds,
        certain=found.certain,
    )


def _front(one: Configuration, level: Sample) -> FrontierPoint:
    return FrontierPoint(
        title=str(one), concurrency=level.concurrency, throughput=level.throughput, tail_ms=level.tail_ms
    )


def _batching(outcome: Outcome) -> str:
    goal, chosen = outcome.goal, outcome.chosen
    if not outcome.ready.batchable:
        return f"cannot be had: {outcome.ready.why_not}"
    if len(outcome.space.batches) == 1:
        return "off: of one client at a time there is nothing to batch"
    if chosen is None:
        return "off: nothing meets the bounds"
    worth = worths(outcome.points, goal)
    allowed = [point for point in outcome.points if point.configuration in worth]
    sides = {
        batched: [point for point in allowed if bool(point.configuration.batch) is batched] for batched in (True, False)
    }
    if not sides[False]:
        return "on: without it nothing meets the bounds"
    if not sides[True]:
        return "off: with it nothing meets the bounds"
    best, plain = (best_of(outcome.space, worth, sides[batched]) for batched in (True, False))
    if chosen.configuration.batch:
        found = gain(chosen, plain, goal)
        return f"on: {in_words(_comparison(chosen, plain, found), goal.objective)}" if found else "on"
    found = gain(best, chosen, goal)
    if found is None:
        return "off: it was not measured beside what was chosen"
    words = in_words(_comparison(best, chosen, found), goal.objective)
    return f"off: the best with it, {best.configuration}, has {words}"


def _nearest(outcome: Outcome) -> str:
    goal = outcome.goal
    tried = [point for point in outcome.points if point.rounds and not point.refused]
    if not tried:
        return "nothing could be served"
    near = min(tried, key=lambda point: (excess(point, goal), outcome.space.simplicity(point.configuration)))
    level = min((one for one in near.levels() if one.requests), key=lambda one: one.tail_ms, default=None)
    latency = f"p{goal.percentile:g} {level.tail_ms:.2f} ms with {clients(level.concurrency)}" if level else "no answer"
    return f"{near.configuration}: {latency}, {near.memory_bytes / 1e6:.0f} MB"


def clients(count: int) -> str:
    """`1 client`, `4 clients`."""
    return "1 client" if count == 1 else f"{count} clients"


def _notes(outcome: Outcome) -> list[str]:
    goal = outcome.goal
    found = [
        "measured in the data plane: a protocol adds its own time to each request, the same for all configurations",
    ]
    if outcome.request.subject.base.isolation is not Isolation.NONE:
        found.append("measured without the process of its own that the settings ask for")
    if not outcome.finished:
        found.append("the time was up before the search had come to its end: --seconds gives it more")
    windows = [sample.requests for point in outcome.points for one in point.rounds for sample in one.samples]
    if min(windows, default=0) * (1 - goal.percentile / 100) < 1:
        found.append(
            f"windows have {min(windows, default=0)} to {max(windows, default=0)} requests; "
            f"where there are too few for a p{goal.percentile:g}, it is the slowest one"
        )
    default = next((point for point in outcome.points if point.configuration == outcome.space.default), None)
    if default is not None and len(default.rounds) > 1:
        spread = [sample.throughput for one in default.rounds for sample in one.samples[-1:]]
        if max(spread) > 1.5 * min(spread):
            found.append(
                f"other work disturbs: the default alone varied from {min(spread):.0f} to {max(spread):.0f} requests/s"
            )
    return found
