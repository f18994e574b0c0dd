"""Settings and fixtures of every test."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import settings

# Deadlines of single examples measure the machine's load, not the code.
settings.register_profile("edgeserve", deadline=None)
settings.register_profile("thorough", deadline=None, max_examples=5_000)
settings.load_profile("edgeserve")

# What tests compile is kept apart from the cache of whoever runs them, and from one run to the next nothing is kept.
os.environ["EDGESERVE_CACHE"] = tempfile.mkdtemp(prefix="edgeserve-test-cache-")

_WHOLE_MACHINE = "tests/system/"
"""Tests that start a fleet each: never two at once."""
_LONG = "tests/compilers/test_real_models.py"
_BESIDE = Path(__file__).resolve().parents[2] / "shared" / "realdata"


def pytest_unconfigure() -> None:
    """Remove the cache; workers of pytest-xdist end without `atexit`."""
    shutil.rmtree(os.environ["EDGESERVE_CACHE"], ignore_errors=True)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with what takes longest when there are several processes, so that none waits for another at the end."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: not item.nodeid.startswith((_WHOLE_MACHINE, _LONG)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each process whole files, whose fixtures are then made once, and all tests of whole fleets to one."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _WHOLE_MACHINE if nodeid.startswith(_WHOLE_MACHINE) else str(super()._split_scope(nodeid))

    return Scheduling(config, log)


@pytest.fixture(scope="session")
def realdata() -> Path:
    """Folder with real models and labelled data (docs/testdata.md), which are not part of the project."""
    folder = Path(os.environ.get("EDGESERVE_TESTDATA") or _BESIDE)
    if folder.is_dir():
        return folder
    reason = f"there are no test data at {folder}: name their folder in EDGESERVE_TESTDATA"
    if os.environ.get("EDGESERVE_REQUIRE_TESTDATA"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def small_heap() -> Iterator[None]:
    """As if this process held no more than a server does, which collects garbage after every load of a model.

    The tests' process holds every library: each of these collections takes it 70 ms and more, which was most of the
    time of tests with servers. That servers do collect is tested in tests/agent/serving/test_heap.py.
    """
    from edgeserve_agent.serving import heap

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heap, "gc", SimpleNamespace(unfreeze=_nothing, collect=_nothing, freeze=_nothing))
        yield


def _nothing() -> None:
    return
