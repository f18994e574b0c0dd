"""What is counted for one release of a model, from the start of the serving process.

The meanings are those of Triton's "Statistics" extension: a request with 8 rows is 1 success and 8 inferences; two
requests that ran together are 2 successes and 1 execution.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from edgeserve.contracts.telemetry import LATENCY_BOUNDS_US, LATENCY_BUCKETS, ReleaseStats
from edgeserve_agent.serving.call import Call

_BOUNDS_NS: Final = tuple(bound * 1000 for bound in LATENCY_BOUNDS_US)


class FailureReason(str, Enum):
    """Why a request was not answered, in the words of `nv_inference_request_failure`."""

    REJECTED = "REJECTED"
    """By a queue: full, or waited too long."""
    CANCELED = "CANCELED"
    BACKEND = "BACKEND"
    """The runtime failed."""
    OTHER = "OTHER"


@dataclass(slots=True)
class Duration:
    """How often and how long in all."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int) -> None:
        """Count one."""
        self.count += 1
        self.ns += ns


@dataclass(slots=True)
class BatchStats:
    """Executions with one number of rows."""

    count: int = 0
    input_ns: int = 0
    infer_ns: int = 0
    output_ns: int = 0


@dataclass(slots=True, kw_only=True)
class Counters:
    """Counters of one release; they stay when it is unloaded, and go on when it is loaded again."""

    model: str
    version: str
    release: str
    rejected: int = 0
    """Requests that were the client's mistake: not in `requests` of the statistics."""
    successes: int = 0
    success_ns: int = 0
    """Sum over answered requests, queueing included."""
    failed: Duration = field(default_factory=Duration)
    failures: dict[FailureReason, int] = field(default_factory=lambda: dict.fromkeys(FailureReason, 0))
    queue_ns: int = 0
    input_ns: int = 0
    infer_ns: int = 0
    output_ns: int = 0
    rows: int = 0
    """Triton's inference count."""
    executions: int = 0
    batches: dict[int, BatchStats] = field(default_factory=dict)
    """By rows of the execution."""
    last_ns: int = 0
    """Time of the last answer by `time.perf_counter_ns`."""
    feedback: int = 0
    correct: int = 0
    latency: list[int] = field(default_factory=lambda: [0] * LATENCY_BUCKETS)

    def succeeded(self, call: Call, rows: int, now_ns: int) -> None:
        """Count one answered request; `now_ns` is of the clock of `call.arrived_ns`."""
        duration_ns = now_ns - call.arrived_ns
        self.successes += 1
        self.success_ns += duration_ns
        self.rows += rows
        self.last_ns = now_ns
        self.latency[bisect_left(_BOUNDS_NS, duration_ns)] += 1
        infer_ns = call.infer_ns
        self.infer_ns += infer_ns
        if call.queue_ns or call.input_ns:
            self.queue_ns += call.queue_ns
            self.input_ns += call.input_ns
            self.output_ns += call.output_ns
        if call.executes:
            self.executions += 1
            size = call.batch or rows
            batch = self.batches.get(size)
            if batch is None:
                batch = self.batches[size] = BatchStats()
            batch.count += 1
            batch.infer_ns += infer_ns
            if call.input_ns:
                batch.input_ns += call.input_ns
                batch.output_ns += call.output_ns

    @property
    def last_ms(self) -> int:
        """Milliseconds since 1970 of the last answer; 0 = there was none."""
        if not self.last_ns:
            return 0
        return (time.time_ns() - time.perf_counter_ns() + self.last_ns) // 1_000_000

    def failed_by(self, reason: FailureReason, duration_ns: int) -> None:
        """Count one request that the server failed to answer."""
        self.failures[reason] += 1
        self.failed.add(duration_ns)
        self.latency[bisect_left(_BOUNDS_NS, duration_ns)] += 1

    def stats(self) -> ReleaseStats:
        """As the device reports it."""
        return ReleaseStats(
            model=self.model,
            release=self.release,
            requests=self.successes + self.failed.count,
            failures=self.failed.count - self.failures[FailureReason.CANCELED],
            feedback=self.feedback,
            correct=self.correct,
            latency=tuple(self.latency),
        )
