"""Objects of POSIX shared memory that end with their test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent.serving.shared_memory.objects import SHM, Make


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes objects of shared memory and returns their keys."""
    made: list[Path] = []

    def create(size: int = 64, *, name: str = "", mode: int = 0o600) -> str:
        path = SHM / (name or f"edgeserve-test-{os.getpid()}-{len(made)}")
        path.write_bytes(b"")
        made.append(path)
        os.truncate(path, size)
        path.chmod(mode)
        return f"/{path.name}"

    yield create
    for path in made:
        path.unlink(missing_ok=True)
