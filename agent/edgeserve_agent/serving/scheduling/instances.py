"""The instances of a model: threads, and the resources that each of them must hold while it runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from edgeserve_agent.serving.scheduling.limiter import Limiter, Member
from edgeserve_agent.serving.workers import Outcome, Workers

T = TypeVar("T")

Work = tuple[Callable[[], Any], Callable[[Outcome[Any]], None]]
"""A job for a thread, and who gets its outcome on the event loop."""

MakeInstances = Callable[[Callable[[], bool], Callable[[], "Work | None"]], "Instances"]
"""Given `is_due` and `take`."""


class Admission:
    """Carries out what the limiter grants; one for all models of a server."""

    def __init__(self, limiter: Limiter) -> None:
        self.limiter = limiter
        self._granting = False

    def ask(self, member: Member) -> None:
        """Let `member.granted` be called, now or later."""
        self.limiter.ask(member)
        self._grant()

    def withdraw(self, member: Member) -> None:
        """It need not be called any more: those behind it may go first."""
        self.limiter.withdraw(member)
        self._grant()

    def release(self, member: Member) -> None:
        """What it held is free again."""
        self.limiter.release(member)
        self._grant()

    def leave(self, member: Member) -> None:
        """Forget a member: what others may have of a resource can only become less."""
        self.limiter.leave(member)

    def _grant(self) -> None:
        if self._granting:  # who is granted something may ask for more or give it back at once
            return
        self._granting = True
        try:
            while (member := self.limiter.grant()) is not None:
                member.granted()
        finally:
            self._granting = False


@dataclass(slots=True, kw_only=True, eq=False)
class Group:
    """Instances with the same needs."""

    idle: int
    member: Member | None = None
    """None = they need no resource."""


class Instances:
    """Runs work as instances become free.

    Args:
        workers: As many threads as there are instances in all groups.
        groups: The instances.
        admission: Of the groups that need resources.
        is_due: Whether `take` has work for an instance that is free now.
        take: Hands it over; None = there is none after all.
    """

    def __init__(
        self,
        workers: Workers,
        groups: Sequence[Group],
        admission: Admission,
        *,
        is_due: Callable[[], bool] = lambda: False,
        take: Callable[[], Work | None] = lambda: None,
    ) -> None:
        self._workers = workers
        self._groups = groups
        self._admission = admission
        self._is_due = is_due
        self._take = take
        self._jobs: deque[Work] = deque()
        self._limited: list[Member] = []
        for group in groups:
            if group.member is not None:
                group.member.granted = partial(self._granted, group)
                self._limited.append(group.member)

    @property
    def idle(self) -> int:
        """Instances that do not run."""
        return sum(group.idle for group in self._groups)

    def submit(self, job: Callable[[], T], done: Callable[[Outcome[T]], None]) -> None:
        """Run `job` when an instance is free, before what `take` has; then `done` on the event loop."""
        self._jobs.append((job, done))
        self.pump()

    def pump(self) -> None:
        """Let free instances begin: to be called when there may be something due."""
        for group in self._groups:
            member = group.member
            while member is None and group.idle and self._start(group):
                pass
            while member is not None and group.idle and (self._jobs or self._is_due()):
                self._admission.ask(member)
                if member.asked:
                    break  # it waits for resources
        if self._limited and not self._jobs and not self._is_due():
            for member in self._limited:
                if member.asked:
                    self._admission.withdraw(member)

    def close(self) -> None:
        """End the threads; nothing is in flight any more."""
        for group in self._groups:
            if group.member is not None:
                self._admission.leave(group.member)
        self._workers.close()

    def _granted(self, group: Group) -> None:
        if not group.idle or not self._start(group):
            assert group.member is not None
            self._admission.release(group.member)

    def _start(self, group: Group) -> bool:
        work = self._jobs.popleft() if self._jobs else self._take()
        if work is None:
            return False
        group.idle -= 1
        job, done = work
        self._workers.submit(job, partial(self._finished, group, done))
        return True

    def _finished(self, group: Group, done: Callable[[Outcome[Any]], None], outcome: Outcome[Any]) -> None:
        group.idle += 1
        # What waits begins before what is done is answered, since an instance that idles costs more; and it asks before
        # its resources are free, since else whoever waits for them already would get every second turn.
        self.pump()
        if group.member is not None:
            self._admission.release(group.member)
        done(outcome)
