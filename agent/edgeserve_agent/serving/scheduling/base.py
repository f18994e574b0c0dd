"""What a scheduler is to the data plane."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from edgeserve.runtimes.base import Tensors
from edgeserve_agent.serving.call import Call
from edgeserve_agent.serving.workers import Outcome

Finish = Callable[[Call, Outcome[Tensors]], None]
"""Takes what came of a call, on the event loop, and never raises. An outcome that is an exception and no
`EdgeServeError` is a bug or the runtime's."""


class Threads(Protocol):
    """Where jobs run: `Workers`, or `Instances` of a model that shares resources with others."""

    def submit(self, job: Callable[[], Any], done: Callable[[Outcome[Any]], None]) -> None:
        """Run `job` on a thread when its turn comes, then `done` on the event loop."""

    def close(self) -> None:
        """End the threads; nothing is in flight any more."""


class Scheduler(Protocol):
    """Decides when the calls of one loaded release run, and lets them. Lives on the event loop.

    Made with the `Finish` that it calls exactly once for each call, at once or later.
    """

    def submit(self, call: Call) -> None:
        """Take a call. One that is not taken, such as because the queue is full, finishes with an error."""

    def submit_job(self, job: Callable[[], Any], done: Callable[[Outcome[Any]], None]) -> None:
        """Let `job`, which runs the model itself, work where the model's calls run; no batching."""

    @property
    def pending(self) -> int:
        """Calls that wait for their turn."""

    def close(self) -> None:
        """Free threads and timers; nothing is in flight any more."""
