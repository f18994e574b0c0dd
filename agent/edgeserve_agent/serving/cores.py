"""How many calls of a model the cores of this machine run side by side."""

from __future__ import annotations

import os
from typing import Final

_MAX_WORKERS: Final = 8


def worker_threads(threads: int) -> int:
    """Calls of one model that run side by side: as many as the cores give, when each takes `threads`; 0 = all."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(_MAX_WORKERS, cores // (threads or cores)))
