"""What is counted for one release of a model, from the start of the serving process."""

from __future__ import annotations

from dataclasses import dataclass, field

from edgeserve.contracts.telemetry import LATENCY_BUCKETS, ReleaseStats, latency_bucket


@dataclass(slots=True, kw_only=True)
class Counters:
    """Counters of one release; they stay when it is unloaded, and go on when it is loaded again."""

    model: str
    version: str
    release: str
    successes: int = 0
    failures: int = 0
    rejected: int = 0
    """Requests that were the client's mistake: not in `requests` of the statistics."""
    rows: int = 0
    duration_us: float = 0.0
    """Sum over answered requests, queueing included."""
    feedback: int = 0
    correct: int = 0
    latency: list[int] = field(default_factory=lambda: [0] * LATENCY_BUCKETS)

    def succeeded(self, microseconds: float, rows: int) -> None:
        """Count one answered request."""
        self.successes += 1
        self.rows += rows
        self.duration_us += microseconds
        self.latency[latency_bucket(microseconds)] += 1

    def failed(self, microseconds: float) -> None:
        """Count one request that the server failed to answer."""
        self.failures += 1
        self.duration_us += microseconds
        self.latency[latency_bucket(microseconds)] += 1

    def stats(self) -> ReleaseStats:
        """As the device reports it."""
        return ReleaseStats(
            model=self.model,
            release=self.release,
            requests=self.successes + self.failures,
            failures=self.failures,
            feedback=self.feedback,
            correct=self.correct,
            latency=tuple(self.latency),
        )
