"""What a user may say about isolation, and where it works."""

from __future__ import annotations

import os
import sys

import msgspec

from edgeserve.contracts.errors import DeviceError, InputError
from edgeserve.contracts.limits import ISOLATION_CALL_S, MAX_ISOLATED_CALLS


class IsolationOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a model is served from a process of its own."""

    calls: int = 1
    """Calls that the worker computes at once; threads inside one call are the runtime's (`RuntimeOptions.threads`)."""
    call_s: float = ISOLATION_CALL_S
    """A worker that does not answer a call for so many seconds is ended, and started again as after a crash."""
    memory_limit_bytes: int = 0
    """RLIMIT_DATA of the worker: its private writable memory, interpreter and runtime (about 60 MB) included;
    0 = no limit. What goes beyond it is an error of that call or load."""
    oom_score_adj: int = 500
    """Added to the kernel's badness of the worker, in thousandths of all memory (proc(5)): when memory runs out, a
    worker goes before the agent does."""

    def __post_init__(self) -> None:
        if not 1 <= self.calls <= MAX_ISOLATED_CALLS:
            raise InputError(f"isolation: calls is {self.calls}, it must be 1 to {MAX_ISOLATED_CALLS}")
        if not 0 < self.call_s <= ISOLATION_CALL_S:
            raise InputError(
                f"isolation: call_s is {self.call_s:g}, it must be above 0 and at most {ISOLATION_CALL_S:g}"
            )
        if self.memory_limit_bytes < 0:
            raise InputError("isolation: memory_limit_bytes must not be negative", hint="0 = no limit")
        if not 0 <= self.oom_score_adj <= 1000:
            raise InputError(f"isolation: oom_score_adj is {self.oom_score_adj}, it must be 0 to 1000")


def require_support() -> None:
    """Make sure that this system and this Python can isolate.

    Raises:
        DeviceError: They cannot.
    """
    missing = [name for name in ("memfd_create", "pidfd_open") if not hasattr(os, name)]
    if sys.platform != "linux" or missing:
        what = f"not {sys.platform}" if sys.platform != "linux" else f"and this Python lacks os.{missing[0]}"
        raise DeviceError(
            f'isolation = "process" needs Linux with memfd and pidfd, {what}',
            hint="serve the model without isolation here",
        )
