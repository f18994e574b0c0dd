"""Objects of POSIX shared memory as tests see them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

SHM = Path("/dev/shm")
Make = Callable[..., str]


def object_of(key: str) -> Path:
    return SHM / key[1:]
