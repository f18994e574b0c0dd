"""Dynamic batching as a pure decision: what waits, what runs together, and when. Time is an argument.

The meanings are Triton's ("Model Configuration", "Dynamic Batcher"), and where its page is silent those of its code:

* Requests leave in order of priority level, inside a level in order of arrival; a batch is always the foremost ones.
* The largest preferred size that they can form runs at once; so does what cannot grow any more, because the next
  request would exceed `max_batch_size` or has another form.
* Else they wait until the oldest has waited `max_queue_delay_microseconds`; then all that fit run, preferred or not.
* Only requests of one form (datatypes, set of inputs, dimensions but the first) run together.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from edgeserve.contracts.errors import EdgeServeError, InputError, RejectedError, RequestCancelledError
from edgeserve.contracts.model_config import DynamicBatching, QueuePolicy, TimeoutAction

T = TypeVar("T")
W = TypeVar("W", bound="Waiting[Any]")

_SPARE: Final = 64
"""Entries of requests that have left and that the heap of deadlines may keep beside twice those that wait."""


@dataclass(slots=True, kw_only=True, eq=False)
class Waiting(Generic[T]):
    """A request in the queue."""

    item: T
    rows: int = 1
    form: Hashable = None
    """Requests run together only when theirs are equal."""
    priority: int = 0
    """1 is the highest; 0, or one that there is not, stands for the default."""
    timeout_us: int = 0
    """How long it may wait, where the policy lets it say so; 0 = as the policy says."""
    arrived_ns: int = 0
    """Set by the queue."""
    left: bool = False
    """It is not in the queue any more: set by the queue."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch(Generic[T]):
    """What runs together, in the order of its rows."""

    items: tuple[T, ...]
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSizes:
    """When requests are enough."""

    most: int
    """Rows of one execution."""
    preferred: frozenset[int] = frozenset()
    delay_ns: int = 0

    def foremost(self, waiting: Iterable[W], now_ns: int) -> list[W] | int | None:
        """What is to run now, or when that is due if nothing else comes, or None when nothing waits.

        Args:
            waiting: In the order in which they are to run; none is looked at beyond the first that does not fit.
            now_ns: The time.
        """
        enough = max(self.preferred, default=self.most)
        batch: list[W] = []
        rows = best = oldest_ns = 0
        full = False
        for one in waiting:
            if batch:
                if not best and rows + one.rows > enough:
                    best = len(batch)
                if rows + one.rows > self.most or one.form != batch[0].form:
                    full = True
                    break
            oldest_ns = min(oldest_ns, one.arrived_ns) if batch else one.arrived_ns
            batch.append(one)
            rows += one.rows
            if rows in self.preferred:
                best = len(batch)
        if not batch:
            return None
        due_ns = oldest_ns + self.delay_ns
        overdue = self.delay_ns > 0 and now_ns >= due_ns
        if best and not overdue:
            return batch[:best]
        return batch if full or rows >= enough or now_ns >= due_ns else due_ns


class _Level(Generic[T]):
    """The requests of one priority: those in time, then those that were delayed because they were not."""

    def __init__(self, policy: QueuePolicy) -> None:
        self.policy = policy
        self.in_time: deque[Waiting[T]] = deque()
        self.delayed: deque[Waiting[T]] = deque()
        self.size = 0

    def __iter__(self) -> Iterator[Waiting[T]]:
        for part in (self.in_time, self.delayed):
            for one in part:
                if not one.left:
                    yield one

    def prune(self) -> None:
        """Forget those at the front that have left."""
        for part in (self.in_time, self.delayed):
            while part and part[0].left:
                part.popleft()


class Queue(Generic[T]):
    """Requests that wait for an instance of a model.

    `now_ns` never goes back. After each call, `dropped` has what left without running.

    Args:
        config: `max_queue_delay_microseconds`, `preferred_batch_size`, levels and policies.
        max_batch_size: Rows of one batch.
        is_cancelled: Whether nobody waits for an item any more.
    """

    def __init__(self, config: DynamicBatching, *, max_batch_size: int, is_cancelled: Callable[[T], bool]) -> None:
        self._is_cancelled = is_cancelled
        self._sizes = BatchSizes(
            most=max_batch_size,
            preferred=frozenset(config.preferred_batch_size),
            delay_ns=config.max_queue_delay_microseconds * 1000,
        )
        levels = range(1, config.priority_levels + 1) if config.priority_levels else range(1)
        self._levels: dict[int, _Level[T]] = {level: _Level(config.policy(level)) for level in levels}
        self._default = self._levels[config.default_priority_level or config.priority_levels]
        self._deadlines: list[tuple[int, int, Waiting[T]]] = []
        self._size = 0
        self._number = 0
        """Of requests: makes entries of the heap comparable."""
        self._dropped: list[tuple[T, EdgeServeError]] = []

    def __len__(self) -> int:
        return self._size

    def enqueue(self, one: Waiting[T], now_ns: int) -> None:
        """Let a request wait.

        Raises:
            InputError: It has more rows than a batch may have.
            RejectedError: Its level's queue is full.
        """
        if one.rows > self._sizes.most:
            raise InputError(f"inference request batch-size must be <= {self._sizes.most}, it is {one.rows}")
        self._expire(now_ns)
        level = self._level(one)
        policy = level.policy
        if policy.max_queue_size and level.size >= policy.max_queue_size:
            self._drop_cancelled(level)
            if level.size >= policy.max_queue_size:
                raise RejectedError("Exceeds maximum queue size", hint="send less at once, or try again later")
        one.arrived_ns = now_ns
        level.in_time.append(one)
        level.size += 1
        self._size += 1
        timeout_us = _timeout_us(policy, one.timeout_us)
        if timeout_us:
            self._number += 1
            heapq.heappush(self._deadlines, (now_ns + timeout_us * 1000, self._number, one))
            if len(self._deadlines) > 2 * self._size + _SPARE:
                self._deadlines = [entry for entry in self._deadlines if not entry[2].left]
                heapq.heapify(self._deadlines)

    def due_ns(self, now_ns: int) -> int | None:
        """When a batch is to run if an instance is idle and nothing else comes; None = nothing waits."""
        self._expire(now_ns)
        if not self._size:
            return None
        found = self._sizes.foremost(self._waiting(), now_ns)
        return now_ns if isinstance(found, list) else found

    def take(self, now_ns: int) -> Batch[T] | None:
        """The next batch, for an idle instance; None = none is due."""
        self._expire(now_ns)
        if not self._size:
            return None
        found = self._sizes.foremost(self._waiting(), now_ns)
        if not isinstance(found, list):
            return None
        batch = Batch(items=tuple([one.item for one in found]), rows=sum([one.rows for one in found]))
        for one in found:
            self._leave(one)
        for level in self._levels.values():
            if level.in_time or level.delayed:
                level.prune()
        return batch

    def wake_at_ns(self, now_ns: int, idle_instances: int) -> int | None:
        """When time alone changes something; None = never."""
        due_ns = self.due_ns(now_ns) if idle_instances else None
        self._expire(now_ns)
        deadline_ns = self._deadlines[0][0] if self._deadlines else None
        if due_ns is None or deadline_ns is None:
            return deadline_ns if due_ns is None else due_ns
        return min(due_ns, deadline_ns)

    def dropped(self) -> list[tuple[T, EdgeServeError]]:
        """Requests that left without running since this was last asked, and why."""
        if not self._dropped:
            return []
        dropped, self._dropped = self._dropped, []
        return dropped

    def run_singly(self) -> None:
        """From now on no request waits for others: for a model whose rows turn out not to be told apart.

        Those that are enqueued must have forms of their own.
        """
        self._sizes = BatchSizes(most=self._sizes.most)

    def _level(self, one: Waiting[T]) -> _Level[T]:
        return self._levels.get(one.priority, self._default)

    def _waiting(self) -> Iterator[Waiting[T]]:
        for level in self._levels.values():
            for one in level:
                if self._is_cancelled(one.item):
                    self._drop(one, RequestCancelledError())
                else:
                    yield one

    def _expire(self, now_ns: int) -> None:
        """Reject or delay what has waited as long as it may."""
        while self._deadlines and (self._deadlines[0][2].left or self._deadlines[0][0] <= now_ns):
            one = heapq.heappop(self._deadlines)[2]
            if one.left:
                continue
            level = self._level(one)
            level.in_time.remove(one)
            if self._is_cancelled(one.item):
                self._drop(one, RequestCancelledError())
            elif level.policy.timeout_action is TimeoutAction.DELAY:
                level.delayed.append(one)
            else:
                self._drop(one, RejectedError("Request timeout expired", hint="send less at once, or allow more time"))

    def _drop_cancelled(self, level: _Level[T]) -> None:
        for one in level:
            if self._is_cancelled(one.item):
                self._drop(one, RequestCancelledError())
        level.prune()

    def _drop(self, one: Waiting[T], error: EdgeServeError) -> None:
        self._dropped.append((one.item, error))
        self._leave(one)

    def _leave(self, one: Waiting[T]) -> None:
        self._level(one).size -= 1
        self._size -= 1
        one.left = True
        del one.item  # the heap may keep the rest for a while


def _timeout_us(policy: QueuePolicy, asked_us: int) -> int:
    """0 = it may wait for ever. What a request asks for counts where it shortens."""
    default_us = policy.default_timeout_microseconds
    if not policy.allow_timeout_override or not asked_us:
        return default_us
    return min(asked_us, default_us) if default_us else asked_us
