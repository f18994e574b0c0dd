"""Isolated runtimes owe what the runtimes inside owe, under the same suite."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from edgeserve_agent.isolation.forkserver import ForkServer
from edgeserve_agent.isolation.options import IsolationOptions
from edgeserve_agent.isolation.runtime import IsolatedRuntime
from tests.edgeserve.runtimes import test_contract as in_process
from tests.suites.runtime import RuntimeCase, RuntimeContract


@pytest.fixture(scope="module")
def forks() -> Iterator[ForkServer]:
    server = ForkServer()
    yield server
    server.close()


@pytest.fixture(
    scope="module",
    params=[(name, batch, calls) for name in in_process.CASES for batch, calls in ((-1, 3), (1, 1))],
    ids=lambda p: f"{p[0]} batch {p[1]} calls {p[2]}",
)
def inner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[RuntimeCase, int]:
    name, batch, calls = request.param
    return in_process.CASES[name](tmp_path_factory.mktemp(name), batch), calls


@pytest.fixture(scope="module")
def case(inner: tuple[RuntimeCase, int], forks: ForkServer) -> RuntimeCase:
    plain, calls = inner
    isolated = IsolatedRuntime(plain.runtime.name, isolation=IsolationOptions(calls=calls), server=forks)
    return replace(plain, runtime=isolated)


class TestIsolatedRuntimes(RuntimeContract):
    @pytest.fixture
    def registered(self, inner: tuple[RuntimeCase, int]) -> type[object]:
        return type(inner[0].runtime)
