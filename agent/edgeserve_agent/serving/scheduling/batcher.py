"""Dynamic batching carried out: calls wait in a `Queue`, run together on threads, and get their rows back."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from edgeserve.contracts.errors import EdgeServeError
from edgeserve.contracts.model_config import DynamicBatching
from edgeserve.runtimes.base import LoadedModel, Tensors
from edgeserve.runtimes.checks import check_inputs
from edgeserve_agent.serving.call import Call
from edgeserve_agent.serving.scheduling.base import Finish
from edgeserve_agent.serving.scheduling.batching import Batch, Queue, Waiting
from edgeserve_agent.serving.scheduling.dispatcher import Dispatcher
from edgeserve_agent.serving.scheduling.execution import note_execution, run_alone
from edgeserve_agent.serving.scheduling.instances import MakeInstances
from edgeserve_agent.serving.scheduling.joining import (
    Joiner,
    UnevenOutputsError,
    check_batched,
    fixed_output,
    form_of,
    rows_of,
    split,
)
from edgeserve_agent.serving.workers import Outcome

_LOG: Final = logging.getLogger(__name__)
_now = time.perf_counter_ns


class DynamicBatchScheduler:
    """Runs calls that wait together.

    A call that is wrong is refused before it gets among others. When a batch fails nevertheless, each of its calls runs
    once more by itself, so that one of them cannot fail the others.

    Args:
        model: What runs.
        name: Its name, for errors and the log.
        config: How requests wait.
        max_batch_size: Rows of one execution.
        loop: Where the scheduler lives.
        make_instances: Makes the threads.
        finish: Takes the outcomes.

    Raises:
        InputError: The model cannot be batched.
    """

    def __init__(
        self,
        model: LoadedModel,
        *,
        name: str,
        config: DynamicBatching,
        max_batch_size: int,
        loop: asyncio.AbstractEventLoop,
        make_instances: MakeInstances,
        finish: Finish,
    ) -> None:
        check_batched(model.signature, name)
        self._run = model.run
        self._signature = model.signature
        self._name = name
        self._queue: Queue[Call] = Queue(config, max_batch_size=max_batch_size, is_cancelled=_is_cancelled)
        self._singly = False
        self._thread = threading.local()
        self._refuse = finish
        self._dispatcher = Dispatcher(
            self._queue,
            execute=self._execute,
            executed=self._executed,
            loop=loop,
            make_instances=make_instances,
            finish=finish,
            in_order=config.preserve_ordering,
        )
        uneven = fixed_output(model.signature)
        if uneven is not None:
            self._run_singly(f"output {uneven.name!r} is declared as {list(uneven.shape)}")
            self._queue.run_singly()

    def submit(self, call: Call) -> None:
        """Let `call` wait for others and for its turn."""
        inputs = call.inputs
        try:
            check_inputs(self._signature, inputs)
            waiting = Waiting(
                item=call,
                rows=max(rows_of(inputs), 1),
                form=call if self._singly else form_of(inputs),
                priority=call.priority,
                timeout_us=call.timeout_us,
            )
            self._queue.enqueue(waiting, _now())
        except EdgeServeError as error:
            self._refuse(call, error)
        self._dispatcher.pump()

    def submit_job(self, job: Callable[[], Any], done: Callable[[Outcome[Any]], None]) -> None:
        """Let `job` work on a thread of the model, before the calls that wait."""
        self._dispatcher.submit_job(job, done)

    @property
    def pending(self) -> int:
        """Calls in the queue."""
        return len(self._queue)

    def close(self) -> None:
        """End the threads."""
        self._dispatcher.close()

    def _executed(self, _batch: Batch[Call], _now_ns: int) -> None:
        if self._singly:
            self._queue.run_singly()

    # On a thread of the model ------------------------------------------------------------------------

    def _execute(self, batch: Batch[Call]) -> list[Outcome[Tensors]]:
        calls = batch.items
        if len(calls) > 1 and not self._singly:
            try:
                return list(self._together(calls))
            except UnevenOutputsError as error:
                self._run_singly(str(error))
            except Exception as error:  # noqa: BLE001 - whose fault it is shows when each runs by itself
                _LOG.warning(
                    "%s: a batch of %d requests failed, each runs by itself: %s", self._name, len(calls), error
                )
        return [self._alone(call) for call in calls]

    def _together(self, calls: Sequence[Call]) -> list[Tensors]:
        began = _now()
        rows = [rows_of(call.inputs) for call in calls]
        joiner: Joiner | None = getattr(self._thread, "joiner", None)
        if joiner is None:
            joiner = self._thread.joiner = Joiner()
        inputs = joiner.join([call.inputs for call in calls])
        joined = _now()
        outputs = self._run(inputs)
        ran = _now()
        joiner.spare(outputs)
        parts = split(outputs, rows)
        note_execution(calls, began=began, joined=joined, ran=ran, rows=sum(rows))
        return parts

    def _alone(self, call: Call) -> Outcome[Tensors]:
        try:
            return run_alone(self._run, call)
        except Exception as error:  # noqa: BLE001 - the data plane tells them apart
            return error

    def _run_singly(self, reason: str) -> None:
        if not self._singly:
            self._singly = True
            _LOG.warning("%s is not batched, requests run one by one: %s", self._name, reason)


def _is_cancelled(call: Call) -> bool:
    return call.cancelled
