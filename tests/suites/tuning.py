"""A machine on which configurations take what a formula says: measurements without a clock."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from edgeserve_agent.tune.objective import Goal, Point, Round, Sample
from edgeserve_agent.tune.search import next_pass
from edgeserve_agent.tune.space import Configuration, Space

LOADS = (1, 4, 16)


@dataclass(kw_only=True)
class SimulatedMachine:
    """Answers what a `Bench` would.

    Args:
        throughput: Of a configuration at its best load, requests a second.
        latency_ms: Tail of a configuration with one client; None = as the throughput says.
        memory_bytes: Of its process.
        noise: Standard deviation of a measurement, as a share.
        drift: ... and of all measurements of one round together: what else the machine does.
        refuses: Configurations that cannot be served.
    """

    throughput: Callable[[Configuration], float]
    latency_ms: Callable[[Configuration], float] | None = None
    memory_bytes: Callable[[Configuration], int] = lambda _one: 1
    noise: float = 0.0
    drift: float = 0.0
    refuses: Callable[[Configuration], bool] = lambda _one: False
    seed: int = 0
    measured: list[Configuration] = field(default_factory=list)
    """Once for each measurement."""

    def search(self, space: Space, goal: Goal, *, most: int = 10_000) -> dict[Configuration, Point]:
        """Let the search measure until it knows, or `most` times."""
        points: dict[Configuration, Point] = {}
        number = 0
        while len(self.measured) < most and (step := next_pass(space, goal, list(points.values()))) is not None:
            number += 1
            for one in step.configurations:
                points[one] = self.measure(points.get(one, Point(configuration=one)), number)
        return points

    def measure(self, point: Point, number: int) -> Point:
        """A further round of `point`."""
        one = point.configuration
        self.measured.append(one)
        if self.refuses(one):
            return replace(point, refused="it does not load")
        # The same round meets all configurations alike; the rest is this measurement's own.
        shared = random.Random(f"{self.seed} {number}").gauss(1, self.drift)
        own = random.Random(f"{self.seed} {number} {one}")
        samples = []
        for load in LOADS:
            factor = max(0.05, shared * own.gauss(1, self.noise))
            best = self.throughput(one)
            reached = best * (1 if load >= self.busy(one) else load / self.busy(one)) * factor
            tail = (self.latency_ms(one) * load / factor) if self.latency_ms else 1e3 * load / reached
            samples.append(
                Sample(
                    concurrency=load,
                    requests=100,
                    throughput=reached,
                    p50_ms=tail / 2,
                    tail_ms=tail,
                    cpu_ms=1e3 * one.threads * one.instances / reached,
                )
            )
        return replace(
            point,
            rounds=(*point.rounds, Round(number=number, samples=tuple(samples))),
            memory_bytes=max(point.memory_bytes, self.memory_bytes(one)),
        )

    def busy(self, one: Configuration) -> int:
        """Clients that keep it busy."""
        return min(16, max(1, one.instances * max(1, one.batch // 4)))
