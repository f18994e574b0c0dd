"""Carries out what a policy decides: what is due runs on instances, alarms ring, calls are refused and answered.

What `DynamicBatchScheduler` and `SequenceScheduler` have in common; they differ in policy and in how a batch runs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from edgeserve.contracts.errors import EdgeServeError
from edgeserve.runtimes.base import Tensors
from edgeserve_agent.serving.call import Call
from edgeserve_agent.serving.scheduling.base import Finish
from edgeserve_agent.serving.scheduling.instances import MakeInstances, Work
from edgeserve_agent.serving.scheduling.ordering import Answers
from edgeserve_agent.serving.scheduling.timer import Timer
from edgeserve_agent.serving.workers import Outcome

_now = time.perf_counter_ns


class Together(Protocol):
    """Calls that run in one execution."""

    @property
    def items(self) -> Sequence[Call]:
        """In the order of their rows."""


B = TypeVar("B", bound=Together)
B_co = TypeVar("B_co", bound=Together, covariant=True)


class Policy(Protocol[B_co]):
    """Decides what runs together and when, such as `Queue` and `Sequences`. Pure; times are nanoseconds."""

    def due_ns(self, now_ns: int) -> int | None:
        """When something is to run if an instance is idle and nothing else comes; None = nothing can."""

    def take(self, now_ns: int) -> B_co | None:
        """What an idle instance is to run; None = nothing is due."""

    def wake_at_ns(self, now_ns: int, idle_instances: int) -> int | None:
        """When time alone changes something; None = never."""

    def dropped(self) -> list[tuple[Call, EdgeServeError]]:
        """Calls that left without running since this was last asked, and why."""


class Dispatcher(Generic[B]):
    """Lives on the event loop; `pump` it after every change of the policy.

    Args:
        policy: Decides.
        execute: Runs a batch, on a thread; an outcome for each of its calls, in order.
        executed: Is told on the event loop, with the time, that a batch has run, before its calls are answered.
        loop: Where it lives.
        make_instances: Makes the threads.
        finish: Takes the outcomes.
        in_order: Calls are answered in the order in which they began.
    """

    def __init__(
        self,
        policy: Policy[B],
        *,
        execute: Callable[[B], list[Outcome[Tensors]]],
        executed: Callable[[B, int], None],
        loop: asyncio.AbstractEventLoop,
        make_instances: MakeInstances,
        finish: Finish,
        in_order: bool,
    ) -> None:
        self._policy = policy
        self._execute = execute
        self._executed = executed
        self._refuse = finish
        self._answers = Answers(finish, in_order=in_order)
        self._timer = Timer(loop, self.pump)
        self._instances = make_instances(self._is_due, self._take)

    def pump(self) -> None:
        """Let begin what is due, see that what is due later wakes us, and refuse what was dropped."""
        self._instances.pump()
        now_ns = _now()
        self._timer.ring_at(self._policy.wake_at_ns(now_ns, self._instances.idle), now_ns)
        for call, error in self._policy.dropped():
            call.queue_ns = now_ns - call.arrived_ns
            self._refuse(call, error)

    def submit_job(self, job: Callable[[], Any], done: Callable[[Outcome[Any]], None]) -> None:
        """Let `job` work on a thread of the model, before the calls that wait."""
        self._instances.submit(job, done)

    def close(self) -> None:
        """End the threads."""
        self._timer.close()
        self._instances.close()

    def _is_due(self) -> bool:
        now_ns = _now()
        due_ns = self._policy.due_ns(now_ns)
        return due_ns is not None and due_ns <= now_ns

    def _take(self) -> Work | None:
        batch = self._policy.take(_now())
        if batch is None:
            return None
        self._answers.begin(batch.items)
        return partial(self._execute, batch), partial(self._done, batch)

    def _done(self, batch: B, outcome: Outcome[list[Outcome[Tensors]]]) -> None:
        self._executed(batch, _now())
        for index, call in enumerate(batch.items):
            self._answers.finish(call, outcome if isinstance(outcome, Exception) else outcome[index])
        self.pump()
