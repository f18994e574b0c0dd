"""Sequences carried out: what `Sequences` decides runs on threads, with the inputs that the server adds."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import numpy as np

from edgeserve.contracts.errors import EdgeServeError, InputError, RequestCancelledError
from edgeserve.contracts.model_config import ControlKind
from edgeserve.runtimes.base import LoadedModel, Tensors
from edgeserve.runtimes.checks import check_inputs
from edgeserve_agent.serving.call import Call
from edgeserve_agent.serving.scheduling.base import Finish
from edgeserve_agent.serving.scheduling.instances import MakeInstances, Work
from edgeserve_agent.serving.scheduling.joining import check_batched, form_of, join, rows_of, split
from edgeserve_agent.serving.scheduling.ordering import Answers
from edgeserve_agent.serving.scheduling.sequences import Sequences, Step, Turn
from edgeserve_agent.serving.scheduling.stateful import Stateful, given
from edgeserve_agent.serving.scheduling.timer import Timer
from edgeserve_agent.serving.workers import Outcome

_LOG: Final = logging.getLogger(__name__)
_now = time.perf_counter_ns

_Row = Step[Call] | None


class SequenceScheduler:
    """Runs the requests of sequences in order, those of different sequences together.

    Args:
        model: What runs.
        name: Its name, for errors and the log.
        state: What is carried from request to request.
        instances: Executions side by side.
        loop: Where the scheduler lives.
        make_instances: Makes the threads.
        finish: Takes the outcomes.

    Raises:
        InputError: Requests are to be batched and the model cannot be.
    """

    def __init__(
        self,
        model: LoadedModel,
        *,
        name: str,
        state: Stateful,
        instances: int,
        loop: asyncio.AbstractEventLoop,
        make_instances: MakeInstances,
        finish: Finish,
    ) -> None:
        if state.batched:
            check_batched(state.signature, name)
        self._run = model.run
        self._whole_signature = model.signature
        self._name = name
        self._state = state
        self._sequences: Sequences[Call] = Sequences(
            state.config, model=name, instances=instances, most=state.most, is_cancelled=_is_cancelled
        )
        self._refused = finish
        oldest = state.config.oldest
        self._answers = Answers(finish, in_order=oldest is not None and oldest.preserve_ordering)
        self._outside = 0
        self._warned = False
        self._timer = Timer(loop, self._pump)
        self._instances = make_instances(self._is_due, self._take)

    def submit(self, call: Call) -> None:
        """Let `call` run after those of its sequence that came before."""
        try:
            if call.sequence is None and not self._state.required:
                self._submit_outside(call)
                return
            self._enqueue(call)
        except EdgeServeError as error:
            self._refused(call, error)
        self._pump()

    def submit_job(self, job: Callable[[], Any], done: Callable[[Outcome[Any]], None]) -> None:
        """Let `job` work on a thread of the model, before the calls that wait."""
        self._instances.submit(job, done)

    @property
    def pending(self) -> int:
        """Calls that wait for their turn."""
        return len(self._sequences) + self._outside

    def close(self) -> None:
        """End the threads."""
        self._timer.close()
        self._instances.close()

    def _enqueue(self, call: Call) -> None:
        sequence, state = call.sequence, self._state
        if sequence is None:
            raise InputError(
                f"inference request to model '{self._name}' must specify a non-zero or non-empty correlation ID"
            )
        check_inputs(state.signature, call.inputs)
        if state.batched and rows_of(call.inputs) != 1:
            raise InputError(
                f"inference request to model '{self._name}' must specify batch-size 1 due to requirements of sequence "
                "batcher"
            )
        for control in state.controls:
            control.check_id(sequence.id)
        self._sequences.enqueue(
            call,
            _now(),
            id=sequence.id,
            start=sequence.start,
            end=sequence.end,
            form=form_of(call.inputs) if state.batched else None,
        )

    def _submit_outside(self, call: Call) -> None:
        """Run a request of no sequence: its client carries the state itself."""
        check_inputs(self._whole_signature, call.inputs)
        self._outside += 1
        self._instances.submit(partial(self._alone_outside, call), partial(self._done_outside, call))

    def _done_outside(self, call: Call, outcome: Outcome[Tensors]) -> None:
        self._outside -= 1
        self._refused(call, outcome)

    def _pump(self) -> None:
        self._instances.pump()
        now_ns = _now()
        self._timer.ring_at(self._sequences.wake_at_ns(now_ns, self._instances.idle), now_ns)
        for call, error in self._sequences.dropped():
            call.queue_ns = now_ns - call.arrived_ns
            self._refused(call, error)

    def _is_due(self) -> bool:
        now_ns = _now()
        due_ns = self._sequences.due_ns(now_ns)
        return due_ns is not None and due_ns <= now_ns

    def _take(self) -> Work | None:
        turn = self._sequences.take(_now())
        if turn is None:
            return None
        self._answers.begin(step.item for step in turn.steps)
        return partial(self._execute, turn), partial(self._executed, turn)

    def _executed(self, turn: Turn[Call], outcome: Outcome[list[Outcome[Tensors]]]) -> None:
        self._sequences.done(turn, _now())
        for index, step in enumerate(turn.steps):
            self._answers.finish(step.item, outcome if isinstance(outcome, Exception) else outcome[index])
        self._pump()

    # On a thread of the model ------------------------------------------------------------------------

    def _alone_outside(self, call: Call) -> Tensors:
        began = _now()
        call.queue_ns = began - call.arrived_ns
        if call.cancelled:
            raise RequestCancelledError()
        try:
            return self._run(call.inputs)
        finally:
            call.infer_ns = _now() - began

    def _execute(self, turn: Turn[Call]) -> list[Outcome[Tensors]]:
        if len(turn.rows) > 1:
            try:
                return list(self._together(turn.rows))
            except Exception as error:  # noqa: BLE001 - whose fault it is shows when each runs by itself
                if not self._warned:
                    self._warned = True
                    _LOG.warning("%s: a batch of %d failed, each runs by itself: %s", self._name, len(turn.rows), error)
        return [self._alone(step) for step in turn.steps]

    def _alone(self, step: Step[Call]) -> Outcome[Tensors]:
        try:
            return self._together([step])[0]
        except Exception as error:  # noqa: BLE001 - the data plane tells them apart
            return error

    def _together(self, rows: Sequence[_Row]) -> list[Tensors]:
        """Run one request of each of several sequences; their states change only when all went well."""
        began = _now()
        steps = [step for step in rows if step is not None]
        inputs = self._inputs(rows, steps[0])
        joined = _now()
        outputs = self._run(inputs)
        ran = _now()
        if len(rows) == 1:
            parts = [dict(outputs)]
        else:
            carried = {one.output for one in self._state.states}
            parts = split({name: array for name, array in outputs.items() if name not in carried}, [1] * len(rows))
        left = [(one, one.split(outputs, len(rows))) for one in self._state.states]
        for index, step in enumerate(rows):
            if step is not None:
                for one, states in left:
                    step.stream.state[one.spec.name] = parts[index][one.output] = states[index]
        output_ns = _now() - ran
        for step in steps:
            call = step.item
            call.queue_ns = began - call.arrived_ns
            call.input_ns, call.infer_ns, call.output_ns = joined - began, ran - joined, output_ns
            call.batch = len(rows) if self._state.batched else 0
            call.executes = step is steps[0]
            if call.with_timing:
                call.mates = tuple(mate.item.id for mate in steps if mate is not step)
        return [parts[index] for index, step in enumerate(rows) if step is not None]

    def _inputs(self, rows: Sequence[_Row], pattern: Step[Call]) -> Tensors:
        gap = {name: np.zeros_like(array) for name, array in pattern.item.inputs.items()} if None in rows else {}
        inputs = join([gap if step is None else step.item.inputs for step in rows])
        flags: dict[ControlKind, list[int | str]] = {
            ControlKind.START: [step is not None and step.first for step in rows],
            ControlKind.END: [step is not None and step.end for step in rows],
            ControlKind.READY: [step is not None for step in rows],
            ControlKind.CORRID: [0 if step is None else step.stream.id for step in rows],
        }
        inputs.update(given(self._state, [{} if step is None else step.stream.state for step in rows], flags))
        return inputs


def _is_cancelled(call: Call) -> bool:
    return call.cancelled
