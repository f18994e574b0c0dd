"""Each call by itself: short ones at once on the event loop, the others on threads of the model."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from edgeserve.runtimes.base import LoadedModel, Tensors
from edgeserve_agent.serving.call import Call
from edgeserve_agent.serving.scheduling.base import Finish, Threads
from edgeserve_agent.serving.scheduling.execution import run_alone
from edgeserve_agent.serving.workers import Outcome

_now = time.perf_counter_ns


class DirectScheduler:
    """Runs calls in the order in which they came.

    Args:
        model: What runs.
        loop_elements: Elements of inputs up to which a call is so short that handing it to a thread would cost more;
            -1 = none is.
        workers: Makes the threads, when the first call needs one.
        finish: Takes the outcomes.
    """

    def __init__(
        self, model: LoadedModel, *, loop_elements: int, workers: Callable[[], Threads], finish: Finish
    ) -> None:
        self._run = model.run
        self._loop_elements = loop_elements
        self._make_workers = workers
        self._workers: Threads | None = None
        self._finish = finish
        self._pending = 0

    def start(self) -> None:
        """Make the threads now, for those that hold a place among other models'."""
        self._threads()

    def submit(self, call: Call) -> None:
        """Run `call` now, or when a thread is free."""
        if self._loop_elements >= 0:
            elements = 0
            for array in call.inputs.values():
                elements += array.size
            if elements <= self._loop_elements:
                outcome: Outcome[Tensors]
                try:
                    outcome = self._run(call.inputs)
                except Exception as error:  # noqa: BLE001 - the data plane tells them apart
                    outcome = error
                call.infer_ns = _now() - call.arrived_ns
                self._finish(call, outcome)
                return
        threads = self._threads()
        self._pending += 1
        threads.submit(partial(run_alone, self._run, call), partial(self._done, call))

    def submit_job(self, job: Callable[[], Any], done: Callable[[Outcome[Any]], None]) -> None:
        """Let `job` work on a thread of the model."""
        self._threads().submit(job, done)

    @property
    def pending(self) -> int:
        """Calls that were handed to threads and are not back."""
        return self._pending

    def close(self) -> None:
        """End the threads."""
        if self._workers is not None:
            self._workers.close()

    def _done(self, call: Call, outcome: Outcome[Tensors]) -> None:
        self._pending -= 1
        self._finish(call, outcome)

    def _threads(self) -> Threads:
        if self._workers is None:
            self._workers = self._make_workers()
        return self._workers
