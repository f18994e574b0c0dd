"""The data plane: lets the releases of its catalog answer. It knows no protocol.

All methods run on the event loop; only slow calls run on threads.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final, Protocol

from edgeserve.contracts.errors import (
    DeviceError,
    EdgeServeError,
    InputError,
    RejectedError,
    RequestCancelledError,
)
from edgeserve.runtimes.base import Tensors
from edgeserve_agent.serving.call import Call
from edgeserve_agent.serving.catalog import Catalog
from edgeserve_agent.serving.counters import Counters, FailureReason
from edgeserve_agent.serving.feedback import FeedbackRing, Judgement, Labels, Verdict
from edgeserve_agent.serving.workers import Outcome

_LOG: Final = logging.getLogger(__name__)
_now = time.perf_counter_ns


class Answered(Protocol):
    """What a job made of one row."""

    @property
    def outputs(self) -> Tensors:
        """Of the model."""


class DataPlane(Catalog):
    """What is loaded, and the answering."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, *, workers: int, resources: Mapping[str, int] | None = None
    ) -> None:
        super().__init__(loop, workers=workers, finish=self._finish, resources=resources)
        self._rings: dict[str, FeedbackRing[Counters]] = {}
        self.unknown_feedback: dict[str, int] = {}

    def infer(self, call: Call) -> None:
        """Run the model; `call.done` gets the outputs or the error, at once or later, on the event loop."""
        served = call.served
        call.arrived_ns = _now()
        served.in_flight += 1
        try:
            served.scheduler.submit(call)
        except Exception as error:  # noqa: BLE001 - such as no thread to be had; told apart in _failure
            self._not_taken(call, error)

    def infer_by(self, call: Call, job: Callable[[], Answered]) -> None:
        """Let `job`, which makes the inputs itself and runs the model on them, work on the threads of the model."""
        call.arrived_ns = _now()
        call.served.in_flight += 1
        try:
            call.served.scheduler.submit_job(job, partial(self._finish_job, call))
        except Exception as error:  # noqa: BLE001 - as above
            self._not_taken(call, error)

    def _not_taken(self, call: Call, error: Exception) -> None:
        call.cancelled = True  # should it wait for its turn all the same
        if call.finished:
            _LOG.error("the scheduler of %s failed", call.served.identity.model, exc_info=error)
        self._finish(call, error)

    def _finish_job(self, call: Call, outcome: Outcome[Answered]) -> None:
        call.infer_ns = _now() - call.arrived_ns
        self._finish(call, outcome if isinstance(outcome, Exception) else outcome.outputs)

    def _finish(self, call: Call, outcome: Outcome[Tensors]) -> None:
        """Count and answer a call, once. Never raises: the other calls of its batch are behind it."""
        if call.finished:
            return
        call.finished = True
        served = call.served
        served.in_flight -= 1
        try:
            if not isinstance(outcome, Exception):
                counters = served.counters
                counters.succeeded(call, served.rows(call.inputs) if call.inputs else 1, _now())
                if call.id and served.classifier is not None:
                    self._ring(served.identity.model).remember(call.id, counters, served.classifier, outcome)
                call.done(call, outcome)
            else:
                call.done(call, self._failure(call, outcome, _now() - call.arrived_ns))
        except Exception as error:  # noqa: BLE001 - it is logged; a client must not wait for an answer that never comes
            _LOG.exception("an answer of %s %s cannot be written", served.identity.model, served.identity.version)
            try:
                call.done(call, DeviceError(f"the answer cannot be written: {error}"))
            except Exception:  # noqa: BLE001 - logged, too
                _LOG.exception("its client cannot be told, either")
        if served.retired:
            self._close_if_done(served)

    def _failure(self, call: Call, error: Exception, duration_ns: int) -> EdgeServeError:
        identity, counters = call.served.identity, call.served.counters
        match error:
            case InputError():
                counters.rejected += 1
                return error
            case RejectedError():
                counters.failed_by(FailureReason.REJECTED, duration_ns)
            case RequestCancelledError():
                counters.failed_by(FailureReason.CANCELED, duration_ns)
            case EdgeServeError():
                counters.failed_by(FailureReason.BACKEND, duration_ns)
            case _:
                counters.failed_by(FailureReason.BACKEND, duration_ns)
                _LOG.error("%s %s failed", identity.model, identity.version, exc_info=error)
                return DeviceError(f"the model failed: {error}")
        return error

    def feedback(self, model: str, given: Sequence[tuple[str, Labels]]) -> list[Judgement[Counters]]:
        """Count true labels for the releases that answered.

        Raises:
            NotFoundError, TransientError: As `find`.
            InputError: The model does not classify, or a label is none of its classes; nothing was counted.
        """
        if self.find(model).classifier is None:
            raise InputError(
                f"model {model!r} has no classification task, so feedback cannot be judged",
                hint="`edgeserve compile` gives classifiers one; a bare model file has none",
            )
        judgements = self._ring(model).judge(given)
        for judgement in judgements:
            if judgement.release is not None:
                judgement.release.feedback += judgement.rows
                judgement.release.correct += judgement.correct
        unknown = sum(judgement.verdict is Verdict.UNKNOWN for judgement in judgements)
        self.unknown_feedback[model] = self.unknown_feedback.get(model, 0) + unknown
        return judgements

    def _ring(self, model: str) -> FeedbackRing[Counters]:
        ring = self._rings.get(model)
        if ring is None:
            ring = self._rings[model] = FeedbackRing()
        return ring
