"""Executions on a thread of a model, and how they went, said in their calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from edgeserve.contracts.errors import RequestCancelledError
from edgeserve.runtimes.base import Tensor, Tensors
from edgeserve_agent.serving.call import Call

_now = time.perf_counter_ns


def run_alone(run: Callable[[Mapping[str, Tensor]], Tensors], call: Call) -> Tensors:
    """Run one call by itself.

    Args:
        run: Of the model.
        call: Its `queue_ns` and `infer_ns` are set.

    Raises:
        RequestCancelledError: Nobody waits for it any more.
        Exception: What the model raised.
    """
    began = _now()
    call.queue_ns = began - call.arrived_ns
    if call.cancelled:
        raise RequestCancelledError()
    try:
        return run(call.inputs)
    finally:
        call.infer_ns = _now() - began


def note_execution(calls: Sequence[Call], *, began: int, joined: int, ran: int, rows: int) -> None:
    """Say in calls that ran together and were told apart just now how that went.

    Args:
        calls: In the order of their rows.
        began: When their turn came, as `time.perf_counter_ns`.
        joined: When their inputs were one.
        ran: When the model had run.
        rows: Of the execution; 0 = the calls' own.
    """
    output_ns = _now() - ran
    for call in calls:
        call.queue_ns = began - call.arrived_ns
        call.input_ns, call.infer_ns, call.output_ns = joined - began, ran - joined, output_ns
        call.batch = rows
        call.executes = call is calls[0]
        if call.with_timing:
            call.mates = tuple(mate.id for mate in calls if mate is not call)
