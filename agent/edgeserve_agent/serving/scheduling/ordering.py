"""Answers in the order in which their calls began, for models that want it (`preserve_ordering`)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from edgeserve.runtimes.base import Tensors
from edgeserve_agent.serving.call import Call
from edgeserve_agent.serving.scheduling.base import Finish
from edgeserve_agent.serving.workers import Outcome


class Answers:
    """Hands outcomes on, at once or in order."""

    def __init__(self, finish: Finish, *, in_order: bool) -> None:
        self._finish = finish
        self._in_order = in_order
        self._begun: deque[Call] = deque()
        self._held: dict[Call, Outcome[Tensors]] = {}

    def begin(self, calls: Iterable[Call]) -> None:
        """These begin now: none that begins later is answered before them."""
        if self._in_order:
            self._begun.extend(calls)

    def finish(self, call: Call, outcome: Outcome[Tensors]) -> None:
        """What came of a call that has begun."""
        if not self._in_order:
            self._finish(call, outcome)
            return
        self._held[call] = outcome
        while self._begun and self._begun[0] in self._held:
            first = self._begun.popleft()
            self._finish(first, self._held.pop(first))
