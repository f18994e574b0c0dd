"""The collector runs when models come and go, and leaves alone what stays."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from edgeserve_agent.serving import heap


class Cycle:
    """Garbage that only the collector finds."""

    def __init__(self) -> None:
        self.itself = self


def drop_a_cycle() -> weakref.ref[Cycle]:
    return weakref.ref(Cycle())


@pytest.fixture(autouse=True)
def only_the_server_collects(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(heap, "gc", gc)  # elsewhere in these tests servers do not
    gc.disable()
    yield
    gc.enable()


def test_garbage_goes_and_what_is_left_is_not_looked_at_again():
    gone = drop_a_cycle()
    heap.settle()
    assert gone() is None
    assert gc.get_freeze_count() > 0


def test_garbage_that_was_left_alone_before_goes_too():
    kept = Cycle()
    heap.settle()
    gone = weakref.ref(kept)
    del kept
    heap.settle()
    assert gone() is None


def test_a_server_collects_after_every_load_and_unload(start_server, tools):
    server = start_server()
    gone = drop_a_cycle()
    server.serve(tools.model())
    assert gone() is None
    gone = drop_a_cycle()
    server.call(server.plane.unload, "m", tools.digest(1))
    tools.until(lambda: gone() is None, "the garbage is collected")
