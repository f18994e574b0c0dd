"""Sequences as a pure decision: which request of which sequence runs when (Triton's "Sequence Batcher").

Of a sequence, one request runs at a time, in the order in which they came. A sequence holds a place from its first
request until its last has run or it was idle too long; those that find no place wait for one in the order in which they
began. With the `direct` strategy a place is a row of one instance: what runs together are the rows of an instance, with
gaps where nothing waits. With `oldest`, the requests that came first run together, whatever places they have.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from edgeserve.contracts.errors import EdgeServeError, InputError, RejectedError, RequestCancelledError
from edgeserve.contracts.limits import MAX_SEQUENCE_REQUESTS, MAX_SEQUENCES
from edgeserve.contracts.model_config import SequenceBatching, SequenceDirect
from edgeserve_agent.serving.scheduling.batching import BatchSizes, Waiting

T = TypeVar("T")


@dataclass(slots=True, kw_only=True, eq=False)
class Stream(Generic[T]):
    """One sequence under way."""

    id: int | str
    waiting: deque[Step[T]] = field(default_factory=deque)
    place: int = -1
    """-1 = it waits for one."""
    running: bool = False
    ending: bool = False
    """The last request that came is its end."""
    begins: bool = True
    """The next that runs is its first."""
    state: dict[str, Any] = field(default_factory=dict)
    """For whoever runs it; empty when it begins."""


@dataclass(slots=True, kw_only=True, eq=False)
class Step(Waiting[T], Generic[T]):
    """A request of a sequence."""

    stream: Stream[T]
    start: bool
    end: bool
    first: bool = False
    """It is the sequence's first to run: set when it is taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn(Generic[T]):
    """What runs together, a row each; None = nothing, where the strategy fixes rows."""

    rows: tuple[Step[T] | None, ...]
    instance: int = 0

    @property
    def steps(self) -> list[Step[T]]:
        """Those that are there."""
        return [step for step in self.rows if step is not None]

    @property
    def items(self) -> list[T]:
        """What they stand for."""
        return [step.item for step in self.steps]


class Sequences(Generic[T]):
    """The sequences of one model.

    `now_ns` never goes back. After each call, `dropped` has what left without running.

    Args:
        config: Strategy and idle time.
        model: Its name, for errors.
        instances: Executions side by side.
        most: Rows of one execution.
        is_cancelled: Whether nobody waits for an item any more.
    """

    def __init__(
        self,
        config: SequenceBatching,
        *,
        model: str,
        instances: int,
        most: int,
        is_cancelled: Callable[[T], bool],
    ) -> None:
        self._model = model
        self._is_cancelled = is_cancelled
        self._idle_ns = (config.max_sequence_idle_microseconds or 1_000_000) * 1000
        oldest = config.oldest
        self._direct: SequenceDirect | None = None
        if oldest is None:
            self._direct = config.direct or SequenceDirect()
            self._sizes = BatchSizes(most=most)
            places = instances * most
        else:
            self._sizes = BatchSizes(
                most=most,
                preferred=frozenset(oldest.preferred_batch_size),
                delay_ns=oldest.max_queue_delay_microseconds * 1000,
            )
            places = min((oldest.max_candidate_sequences or MAX_SEQUENCES) * instances, MAX_SEQUENCES)
        self._streams: dict[int | str, Stream[T]] = {}
        self._places = list(range(places))
        """Free ones, a heap: rows of one instance are used before the next instance's."""
        self._backlog: deque[Stream[T]] = deque()
        self._ready: dict[Stream[T], None] = {}
        """Have a place and a request, and do not run."""
        self._idle: dict[Stream[T], int] = {}
        """... and no request, since when: in that order."""
        self._busy: set[int] = set()
        """Instances that run, for `direct`."""
        self._dropped: list[tuple[T, EdgeServeError]] = []

    def __len__(self) -> int:
        return sum(len(stream.waiting) for stream in self._streams.values())

    @property
    def active(self) -> int:
        """Sequences under way or waiting for a place."""
        return len(self._streams)

    def enqueue(self, item: T, now_ns: int, *, id: int | str, start: bool, end: bool, form: object = None) -> None:  # noqa: A002
        """Take a request.

        Args:
            item: What it is.
            now_ns: The time.
            id: Of its sequence.
            start: It is the first; of a sequence under way, the first of the next with the same id.
            end: It is the last.
            form: Requests run together only when theirs are equal.

        Raises:
            InputError: It belongs to no sequence under way and starts none.
            RejectedError: There are too many sequences, or requests of this one that wait.
        """
        self._end_idle(now_ns)
        stream = self._streams.get(id)
        if not start and (stream is None or stream.ending):
            raise InputError(
                f"inference request for sequence {id} to model '{self._model}' must specify the START flag on the "
                "first request of the sequence"
            )
        if stream is None:
            if len(self._streams) >= MAX_SEQUENCES:
                raise RejectedError(
                    f"model '{self._model}' has {MAX_SEQUENCES} sequences already", hint="end sequences that are done"
                )
            stream = self._streams[id] = Stream(id=id)
            self._backlog.append(stream)
        elif len(stream.waiting) >= MAX_SEQUENCE_REQUESTS:
            raise RejectedError("Exceeds maximum queue size", hint="wait for answers before sending more")
        stream.waiting.append(Step(item=item, form=form, arrived_ns=now_ns, stream=stream, start=start, end=end))
        stream.ending = end
        self._idle.pop(stream, None)
        self._give_places()
        self._look_at(stream, now_ns)

    def take(self, now_ns: int) -> Turn[T] | None:
        """What an idle instance is to run; None = nothing is due."""
        found = self._next(now_ns)
        if not isinstance(found, Turn):
            return None
        for step in found.steps:
            stream = step.stream
            stream.waiting.popleft()
            stream.running = True
            step.first, stream.begins = step.start or stream.begins, False
            if step.first:
                stream.state.clear()
            del self._ready[stream]
        if self._direct is not None:
            self._busy.add(found.instance)
        return found

    def done(self, turn: Turn[T], now_ns: int) -> None:
        """An instance has run."""
        self._busy.discard(turn.instance)
        for step in turn.steps:
            step.stream.running = False
            if step.end:
                step.stream.begins = True
                step.stream.state.clear()
            self._look_at(step.stream, now_ns)
        self._give_places()

    def due_ns(self, now_ns: int) -> int | None:
        """When something is to run if an instance is idle and nothing else comes; None = nothing can."""
        found = self._next(now_ns)
        return now_ns if isinstance(found, Turn) else found

    def wake_at_ns(self, now_ns: int, idle_instances: int) -> int | None:
        """When time alone changes something; None = never."""
        due_ns = self.due_ns(now_ns) if idle_instances else None
        ends_ns = next(iter(self._idle.values())) + self._idle_ns if self._idle else None
        return min((at for at in (due_ns, ends_ns) if at is not None), default=None)

    def dropped(self) -> list[tuple[T, EdgeServeError]]:
        """Requests that left without running since this was last asked, and why."""
        dropped, self._dropped = self._dropped, []
        return dropped

    def _next(self, now_ns: int) -> Turn[T] | int | None:
        self._end_idle(now_ns)
        while cancelled := [one for one in self._ready if self._is_cancelled(one.waiting[0].item)]:
            for stream in cancelled:
                self._look_at(stream, now_ns)
            self._give_places()
        heads = [stream.waiting[0] for stream in self._ready]
        if self._direct is not None:
            return self._next_rows(heads, self._direct, now_ns)
        oldest = heapq.nsmallest(self._sizes.most + 1, heads, key=_arrival)
        found = self._sizes.foremost(oldest, now_ns)
        return Turn(rows=tuple(found)) if isinstance(found, list) else found

    def _next_rows(self, heads: Sequence[Step[T]], direct: SequenceDirect, now_ns: int) -> Turn[T] | int | None:
        width = self._sizes.most
        wake_ns: int | None = None
        for first in sorted(heads, key=_arrival):
            instance = first.stream.place // width
            if instance in self._busy:
                continue
            mates = {
                step.stream.place % width: step
                for step in heads
                if step.stream.place // width == instance and step.form == first.form
            }
            due_ns = first.arrived_ns + direct.max_queue_delay_microseconds * 1000
            if len(mates) < direct.minimum_slot_utilization * width and now_ns < due_ns:
                wake_ns = due_ns if wake_ns is None else min(wake_ns, due_ns)
                continue
            return Turn(rows=tuple(mates.get(row) for row in range(max(mates) + 1)), instance=instance)
        return wake_ns

    def _look_at(self, stream: Stream[T], now_ns: int) -> None:
        """Find out what becomes of a sequence after a change."""
        if stream.place < 0 or stream.running:
            return
        while stream.waiting and self._is_cancelled(stream.waiting[0].item):
            step = stream.waiting.popleft()
            self._dropped.append((step.item, RequestCancelledError()))
            # What it said of the sequence holds all the same.
            stream.begins = stream.begins or step.start or step.end
        if stream.waiting:
            self._ready[stream] = None
            return
        self._ready.pop(stream, None)
        if stream.ending:
            self._end(stream)
        else:
            self._idle[stream] = now_ns

    def _end(self, stream: Stream[T]) -> None:
        self._idle.pop(stream, None)
        del self._streams[stream.id]
        heapq.heappush(self._places, stream.place)

    def _end_idle(self, now_ns: int) -> None:
        while self._idle:
            stream, since_ns = next(iter(self._idle.items()))
            if now_ns - since_ns < self._idle_ns:
                break
            self._end(stream)
        self._give_places()

    def _give_places(self) -> None:
        while self._places and self._backlog:
            stream = self._backlog.popleft()
            stream.place = heapq.heappop(self._places)
            self._ready[stream] = None


def _arrival(step: Step[Any]) -> int:
    return step.arrived_ns
