"""Strangers' clients, unchanged, in processes and environments of their own (`scripts/foreign.sh`)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

CACHE = Path(__file__).parents[4] / ".cache"
DEADLINE_S = 120


def environment(path: str) -> Path:
    """The environment at `path` below the cache; skips, or fails where it is required, when there is none."""
    found = CACHE / path
    if not any(found.glob(".ready-*")):
        reason = f"{found.name} is not installed: scripts/foreign.sh does that"
        if os.environ.get("EDGESERVE_REQUIRE_FOREIGN") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


@pytest.fixture(scope="session")
def kserve_python() -> Path:
    return environment("bench-peers/kserve") / "bin/python"


@pytest.fixture(scope="session")
def ovmsclient_python() -> Path:
    return environment("foreign/ovmsclient") / "bin/python"


@pytest.fixture(scope="session")
def perf_analyzer() -> Path:
    return environment("foreign/perf_analyzer")


@pytest.fixture(scope="session")
def run_foreign() -> Callable[..., str]:
    """Runs a command to its good end; what it printed."""

    def run(
        command: Sequence[str | Path], environment: Mapping[str, str] | None = None, *, cwd: Path | None = None
    ) -> str:
        ended = subprocess.run(
            command, capture_output=True, text=True, timeout=DEADLINE_S, check=False, cwd=cwd,
            env={**os.environ, **(environment or {})},
        )  # fmt: skip
        assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}"
        return ended.stdout

    return run
