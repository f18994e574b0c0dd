"""The client of the demo: sends real digits to every agent, sends the true labels back, and counts everything."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edgeserve.client.inference import InferenceClient
from edgeserve.contracts.errors import EdgeServeError

MODEL = "digits"
FEEDBACK_EVERY = 10


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answered request: when, by which release, and whether it was right."""

    at: float
    release: str
    correct: bool


@dataclass(kw_only=True)
class Tally:
    """What the client saw of one device."""

    answers: list[Answer] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def sent(self) -> int:
        """Requests sent, answered or not."""
        return len(self.answers) + len(self.failures)


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Share of right answers."""

    correct: int
    total: int

    def __str__(self) -> str:
        return f"{100 * self.correct / self.total:.1f} %" if self.total else "-"

    @property
    def value(self) -> float:
        """As a number from 0 to 1; 0 when nothing was answered."""
        return self.correct / self.total if self.total else 0.0


class Traffic:
    """One thread a device, a steady number of requests a second, until stopped."""

    def __init__(self, stream: Path, addresses: Mapping[str, str], *, rate_hz: float) -> None:
        with np.load(stream) as arrays:
            self._images, self._labels = arrays["image"], arrays["labels"]
        self._interval = 1.0 / rate_hz
        self._stopping = threading.Event()
        self.tallies: dict[str, Tally] = {name: Tally() for name in addresses}
        self._threads = [
            threading.Thread(target=self._send, args=(name, url, seed), name=f"traffic-{name}", daemon=True)
            for seed, (name, url) in enumerate(addresses.items())
        ]

    def start(self) -> None:
        """Begin to send."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Finish the requests in flight and end."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    @property
    def sent(self) -> int:
        """Requests so far, all devices."""
        return sum(tally.sent for tally in self.tallies.values())

    @property
    def failed(self) -> int:
        """Failed requests so far, all devices."""
        return sum(len(tally.failures) for tally in self.tallies.values())

    def accuracy(
        self, *, since: float = 0.0, until: float = float("inf"), device: str = "", release: str = ""
    ) -> Accuracy:
        """Share of right answers in a span of `time.monotonic`, of one device or release or of all."""
        counts: Counter[bool] = Counter()
        for name, tally in self.tallies.items():
            if device in ("", name):
                counts.update(
                    answer.correct
                    for answer in tally.answers
                    if since <= answer.at < until and release in ("", answer.release)
                )
        return Accuracy(correct=counts[True], total=counts.total())

    def releases(self) -> dict[str, list[str]]:
        """For every release that answered, the devices that it answered on."""
        seen: dict[str, list[str]] = defaultdict(list)
        for name, tally in self.tallies.items():
            for release in {answer.release for answer in tally.answers}:
                seen[release].append(name)
        return seen

    def _send(self, name: str, url: str, seed: int) -> None:
        client, tally = InferenceClient(url), self.tallies[name]
        order = np.random.default_rng(seed).permutation(len(self._labels))
        feedback: list[tuple[str, int]] = []
        due = time.monotonic()
        sent = 0
        while not self._stopping.is_set():
            row = int(order[sent % len(order)])
            sent += 1
            label = int(self._labels[row])
            try:
                result = client.infer(MODEL, {"image": self._images[row : row + 1]}, request_id=f"{name}-{sent}")
                predicted = int(np.argmax(next(iter(result.outputs.values()))))
                tally.answers.append(Answer(at=time.monotonic(), release=result.release, correct=predicted == label))
                feedback.append((f"{name}-{sent}", label))
                if len(feedback) == FEEDBACK_EVERY:
                    client.feedback(MODEL, feedback)
                    feedback.clear()
            except EdgeServeError as error:
                tally.failures.append(error.message)
                feedback.clear()
            due = max(due + self._interval, time.monotonic() - 1.0)
            self._stopping.wait(max(0.0, due - time.monotonic()))
