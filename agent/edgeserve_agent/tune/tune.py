"""The whole of it: measure what the search asks for until it knows, or until the time is up."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from edgeserve.contracts.errors import EdgeServeError, InputError
from edgeserve.contracts.limits import TUNE_RESERVE_BYTES
from edgeserve_agent.serving.cores import worker_threads
from edgeserve_agent.tune.measure import Bench, Load, Subject, available_bytes, bench, in_turn
from edgeserve_agent.tune.messages import Ready
from edgeserve_agent.tune.objective import ROUNDS, Goal, Point, Round, choose
from edgeserve_agent.tune.search import next_pass
from edgeserve_agent.tune.space import Configuration, Space, space_of
from edgeserve_devices.probe import installed_runtimes

EXPLORING: Final = 0.5
"""Share of the time that new configurations are tried in at least; the rest tells apart what is good."""
_LAST: Final = 5 * ROUNDS
"""Measurements that this takes: of five finalists."""
_WINDOW_S: Final = (0.05, 1.0)
"""Shortest and longest window of load: less measures the scheduler of the system, more does not tell more."""
_WINDOWS: Final = 300
"""Windows that fit the time `tune` is given: 15 configurations at three loads, eight rounds of some."""
_NULL: Final = "null"
_OF_THEIR_OWN: Final = (_NULL, "python")
"""Runtimes whose models no other runtime has."""
"""Answers nothing of what the model would."""

Progress = Callable[[float, float, str], None]
"""Seconds that are over, seconds in all, what is being done."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user wants to know."""

    subject: Subject
    goal: Goal
    concurrencies: tuple[int, ...]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What was found."""

    request: Request
    ready: Ready
    """Of the default configuration."""
    space: Space
    points: tuple[Point, ...]
    chosen: Point | None
    """None = nothing meets the constraints."""
    passed_over: dict[str, str]
    """Runtimes that cannot serve the model, and why."""
    window_s: float
    spent_s: float
    finished: bool
    """The search ended because there was nothing more to find out, not because the time was up."""
    goal: Goal
    """As requested, within the memory that the machine has."""


def tune(request: Request, progress: Progress) -> Outcome:
    """Search.

    Raises:
        InputError: The model, its settings or the inputs are wrong.
        DeviceError: It cannot be served here at all.
    """
    began = time.monotonic()
    with bench(request.subject) as trials:
        return _Tuning(request, progress, trials, began).run()


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Tuning:
    def __init__(self, request: Request, progress: Progress, trials: Bench, began: float) -> None:
        self._request = request
        self._progress = progress
        self._bench = trials
        self._began = began
        self._points: dict[Configuration, Point] = {}
        self._rounds = 0
        self._measuring_s = 0.0
        shortest, longest = _WINDOW_S
        window_s = min(max(request.seconds / _WINDOWS, shortest), longest)
        self._load = Load(concurrencies=request.concurrencies, window_s=window_s, percentile=request.goal.percentile)
        # What the machine has not got is not to be had, whatever was asked for.
        there = max(available_bytes() - TUNE_RESERVE_BYTES, 1)
        asked = request.goal.memory_bytes
        self._goal = replace(request.goal, memory_bytes=there if asked is None else min(asked, there))

    def run(self) -> Outcome:
        request = self._request
        default = Configuration(threads=1, instances=worker_threads(1))
        self._tell("starting the model")
        ready = self._bench.trial(default).ready
        runtimes, passed_over = self._runtimes(default, ready.runtime)
        space = space_of(
            default=default,
            cores=cores(),
            runtimes=runtimes,
            batchable=ready.batchable,
            concurrency=max(request.concurrencies),
            latency_ms=request.goal.latency_ms,
        )
        finished = self._search(space)
        points = tuple(self._points.values())
        return Outcome(
            request=request,
            ready=ready,
            space=space,
            points=points,
            chosen=choose(space, self._goal, points),
            passed_over=passed_over,
            window_s=self._load.window_s,
            spent_s=self._spent(),
            finished=finished,
            goal=self._goal,
        )

    def _runtimes(self, default: Configuration, own: str) -> tuple[list[str], dict[str, str]]:
        """Installed runtimes that can load the model beside its own, found by trying."""
        if own in _OF_THEIR_OWN or self._request.subject.base.runtime:
            return [], {}
        found, passed_over = [], {}
        for name in installed_runtimes():
            if name in (own, *_OF_THEIR_OWN):
                continue
            self._tell(f"trying {name}")
            try:
                self._bench.trial(replace(default, runtime=name))
                found.append(name)
            except EdgeServeError as error:
                passed_over[name] = error.message
        return found, passed_over

    def _search(self, space: Space) -> bool:
        """Whether it came to its end."""
        seconds = self._request.seconds
        while self._spent() < seconds:
            explore = seconds - self._spent() > min((1 - EXPLORING) * seconds, _LAST * self._mean_s())
            points = tuple(self._points.values())
            step = next_pass(space, self._goal, points, explore=explore)
            if step is None and not explore:  # there is time left for what was not tried
                step = next_pass(space, self._goal, points)
            if step is None:
                return True
            self._rounds += 1
            for configuration in in_turn(step.configurations, self._rounds):
                if self._points and self._spent() >= seconds:
                    return False
                self._tell(f"{step.why}: {configuration}")
                self._measure(configuration)
        return False

    def _measure(self, configuration: Configuration) -> None:
        point = self._points.get(configuration, Point(configuration=configuration))
        try:
            self._bench.trial(configuration)
            began = time.monotonic()
            samples, memory = self._bench.measure(configuration, self._load)
            self._measuring_s += time.monotonic() - began
        except InputError as error:
            if not self._points and not configuration.runtime:
                raise
            point = replace(point, refused=error.message)
        except EdgeServeError as error:
            point = replace(point, refused=error.message)
        else:
            point = replace(
                point,
                rounds=(*point.rounds, Round(number=self._rounds, samples=samples)),
                memory_bytes=max(point.memory_bytes, memory),
            )
        self._points[configuration] = point

    def _mean_s(self) -> float:
        """Duration of a measurement, as far as that is known."""
        return self._measuring_s / max(sum(len(point.rounds) for point in self._points.values()), 1)

    def _spent(self) -> float:
        return time.monotonic() - self._began

    def _tell(self, what: str) -> None:
        self._progress(min(self._spent(), self._request.seconds), self._request.seconds, what)
