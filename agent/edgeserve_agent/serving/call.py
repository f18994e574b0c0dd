"""One request for inference on its way through the data plane."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from edgeserve.contracts.errors import EdgeServeError
from edgeserve.runtimes.base import Tensors

if TYPE_CHECKING:
    from edgeserve_agent.serving.served import ServedRelease

_NONE: Final[Mapping[str, Any]] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequence:
    """Which sequence a request belongs to (Triton's "Sequence" extension)."""

    id: int | str
    """Neither 0 nor empty."""
    start: bool = False
    end: bool = False


class Call:
    """A request in the terms of the model; the schedulers fill in how it went.

    What most requests leave at its default stands in the class: setting twenty attributes each time would take as long
    as a small model.

    Args:
        served: What is to answer.
        inputs: By name.
        done: Gets the outputs, or the error (an `InputError` is the client's mistake, any other the server's
            failure), once, at once or later, on the event loop. When it raises, it has answered nothing: it gets an
            error then, in place of what it could not write.
        id: Of the request; empty = none.
    """

    priority: int = 0
    """1 is the highest; 0 = the model's default."""
    timeout_us: int = 0
    """How long it may wait for its turn; 0 = as the model's queue says."""
    sequence: Sequence | None = None
    parameters: Mapping[str, Any] = _NONE
    """Further parameters of the request, as they came."""
    cancelled: bool = False
    """Nobody waits any more: it need not run if it has not begun."""
    finished: bool = False
    """It has its outcome."""
    with_timing: bool = False
    """The client wants to know how it went: `mates` is filled in."""

    arrived_ns: int = 0
    """`time.perf_counter_ns` when the data plane took it."""
    queue_ns: int = 0
    """Waiting for its turn."""
    input_ns: int = 0
    """Bringing inputs into the form in which they run, such as joining a batch."""
    infer_ns: int = 0
    """In the runtime; of a batch, the whole of it."""
    output_ns: int = 0
    """Splitting a batch."""
    batch: int = 0
    """Rows of the execution that it was part of; 0 = its own."""
    executes: bool = True
    """It stands for an execution: of a batch only the first request does."""
    mates: tuple[str, ...] = ()
    """Ids of the other requests of its batch."""

    def __init__(
        self,
        served: ServedRelease,
        inputs: Tensors,
        done: Done,
        id: str = "",  # noqa: A002 - the protocol's word
        *,
        priority: int = 0,
        timeout_us: int = 0,
        sequence: Sequence | None = None,
        parameters: Mapping[str, Any] = _NONE,
        with_timing: bool = False,
    ) -> None:
        self.served = served
        self.inputs = inputs
        self.done = done
        self.id = id
        if priority:
            self.priority = priority
        if timeout_us:
            self.timeout_us = timeout_us
        if sequence:
            self.sequence = sequence
        if parameters:
            self.parameters = parameters
        if with_timing:
            self.with_timing = True

    def cancel(self) -> None:
        """Nobody waits any more."""
        self.cancelled = True


Done = Callable[[Call, Tensors | EdgeServeError], None]
