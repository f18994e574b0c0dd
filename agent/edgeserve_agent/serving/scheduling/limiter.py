"""Which models may run side by side: named resources that executions hold (Triton's "Rate Limiter"). Pure.

All that an execution needs is taken in one step or not at all, so there is no deadlock. Who comes first is decided by
stride scheduling (Waldspurger and Weihl 1995): a member of priority 1 gets twice the turns of one of priority 2 while
both wait, and one that was away does not save turns up. Nobody is passed over by another that wants the same resource;
one that shares none with those before it need not wait for them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from edgeserve.contracts.errors import ConflictError, InputError
from edgeserve.contracts.model_config import RateLimiter


@dataclass(slots=True, kw_only=True, eq=False)
class Member:
    """A group of a model's instances with the same needs."""

    model: str
    needs: Mapping[str, int]
    stride: int
    granted: Callable[[], None] = field(default=lambda: None)
    """For whoever carries grants out; the limiter itself calls nothing."""
    position: int = 0
    """Virtual time of its next turn."""
    asked: int = 0
    """When it asked, as a number; 0 = it does not wait."""


class Limiter:
    """Counts resources and says who may run.

    Args:
        maxima: How much there is of a resource; of one that is not named here, as much as the neediest member asks for.
    """

    def __init__(self, maxima: Mapping[str, int] | None = None) -> None:
        self._maxima = dict(maxima or {})
        self._members: list[Member] = []
        self._scopes: dict[str, bool] = {}
        self._held: dict[str, int] = {}
        self._now = 0
        """Virtual time: the position of the last that was granted."""
        self._asks = 0

    def join(self, model: str, config: RateLimiter) -> Member:
        """Make a group of instances known.

        Raises:
            InputError: It needs more of a resource than there is.
            ConflictError: A resource is global for one model and not for another.
        """
        needs: dict[str, int] = {}
        for resource in config.resources:
            needs[resource.name] = needs.get(resource.name, 0) + resource.count
            most = self._maxima.get(resource.name)
            if most is not None and needs[resource.name] > most:
                raise InputError(
                    f"Resource count for {resource.name!r} is limited to {most}, which will prevent scheduling of "
                    f"model {model!r}: the minimum required count is {needs[resource.name]}",
                    hint="raise --rate-limit-resource, or lower the count in the model's instance_group",
                )
            in_use = any(resource.name in member.needs for member in self._members)
            if in_use and self._scopes[resource.name] != resource.global_:
                raise ConflictError(
                    f"Resource {resource.name!r} is present as both global and device-specific resource, "
                    f"last in model {model!r}",
                    hint="let all models say the same",
                )
        self._scopes.update({resource.name: resource.global_ for resource in config.resources})
        member = Member(model=model, needs=needs, stride=max(config.priority, 1), position=self._now)
        self._members.append(member)
        return member

    def leave(self, member: Member) -> None:
        """Forget a group none of whose instances runs."""
        self._members.remove(member)
        member.asked = 0

    def ask(self, member: Member) -> None:
        """One instance of `member` wants to run; asking again before the grant changes nothing."""
        if not member.asked:
            self._asks += 1
            member.asked = self._asks
            member.position = max(member.position, self._now)

    def withdraw(self, member: Member) -> None:
        """It does not want to any more."""
        member.asked = 0

    def grant(self) -> Member | None:
        """The next that may run, and holds its resources from now on; None = nobody can."""
        claimed: set[str] = set()
        for member in sorted((one for one in self._members if one.asked), key=lambda one: (one.position, one.asked)):
            fits = all(self._held.get(name, 0) + count <= self.maximum(name) for name, count in member.needs.items())
            if fits and claimed.isdisjoint(member.needs):
                for name, count in member.needs.items():
                    self._held[name] = self._held.get(name, 0) + count
                member.asked = 0
                self._now = max(self._now, member.position)
                member.position += member.stride
                return member
            claimed.update(member.needs)
        return None

    def release(self, member: Member) -> None:
        """An instance has run."""
        for name, count in member.needs.items():
            self._held[name] -= count

    def maximum(self, name: str) -> int:
        """How much there is of a resource."""
        most = self._maxima.get(name)
        return max((one.needs.get(name, 0) for one in self._members), default=0) if most is None else most

    def held(self, name: str) -> int:
        """How much of it is in use."""
        return self._held.get(name, 0)
