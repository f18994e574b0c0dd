"""Dialects that are imported when the first client speaks one of them: most devices hear one, and all start quicker."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgeserve_agent.serving.rest.api import Dialect, Route, find_route


class Deferred:
    """Dialects that are not made before a path is asked for that none before them knows.

    Args:
        make: Imports and makes them.
    """

    def __init__(self, make: Callable[[], Sequence[Dialect]]) -> None:
        self._make = make
        self._made: Sequence[Dialect] | None = None

    def route(self, parts: list[str]) -> Route | None:
        """The route of a path by the first of them that knows it."""
        if self._made is None:
            self._made = self._make()
        return find_route(self._made, parts)
