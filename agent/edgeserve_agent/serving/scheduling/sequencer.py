"""Sequences carried out: what `Sequences` decides runs on threads, with the inputs that the server adds."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import numpy as np

from edgeserve.contracts.errors import EdgeServeError, InputError
from edgeserve.contracts.model_config import ControlKind
from edgeserve.runtimes.base import LoadedModel, Tensors
from edgeserve.runtimes.checks import check_inputs
from edgeserve_agent.serving.call import Call
from edgeserve_agent.serving.scheduling.base import Finish
from edgeserve_agent.serving.scheduling.dispatcher import Dispatcher
from edgeserve_agent.serving.scheduling.execution import note_execution, run_alone
from edgeserve_agent.serving.scheduling.instances import MakeInstances
from edgeserve_agent.serving.scheduling.joining import check_batched, form_of, join, rows_of, split
from edgeserve_agent.serving.scheduling.sequences import Sequences, Step, Turn
from edgeserve_agent.serving.scheduling.stateful import Stateful, given
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
        self._finish = finish
        self._outside = 0
        self._warned = False
        oldest = state.config.oldest
        self._dispatcher = Dispatcher(
            self._sequences,
            execute=self._execute,
            executed=self._sequences.done,
            loop=loop,
            make_instances=make_instances,
            finish=finish,
            in_order=oldest is not None and oldest.preserve_ordering,
        )

    def submit(self, call: Call) -> None:
        """Let `call` run after those of its sequence that came before."""
        try:
            if call.sequence is None and not self._state.required:
                self._submit_outside(call)
                return
            self._enqueue(call)
        except EdgeServeError as error:
            self._finish(call, error)
        self._dispatcher.pump()

    def submit_job(self, job: Callable[[], Any], done: Callable[[Outcome[Any]], None]) -> None:
        """Let `job` work on a thread of the model, before the calls that wait."""
        self._dispatcher.submit_job(job, done)

    @property
    def pending(self) -> int:
        """Calls that wait for their turn."""
        return len(self._sequences) + self._outside

    def close(self) -> None:
        """End the threads."""
        self._dispatcher.close()

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
        self._dispatcher.submit_job(partial(run_alone, self._run, call), partial(self._done_outside, call))

    def _done_outside(self, call: Call, outcome: Outcome[Tensors]) -> None:
        self._outside -= 1
        self._finish(call, outcome)

    # On a thread of the model ------------------------------------------------------------------------

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
        calls = [step.item for step in steps]
        note_execution(calls, began=began, joined=joined, ran=ran, rows=len(rows) if self._state.batched else 0)
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
