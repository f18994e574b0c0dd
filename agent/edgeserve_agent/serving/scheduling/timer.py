"""One alarm on the event loop, exact to some ten microseconds where the system can."""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
from collections.abc import Callable
from functools import cache
from typing import Final

_CLOCK_MONOTONIC: Final = 1
_TFD_NONBLOCK_CLOEXEC: Final = 0o2004000
_COARSE_NS: Final = 1_000_000


class _Spec(ctypes.Structure):
    """`struct itimerspec`."""

    _fields_ = [(name, ctypes.c_long) for name in ("interval_s", "interval_ns", "value_s", "value_ns")]


class Timer:
    """Calls `alarm` at, or soon after, the earliest time that was asked for. It may call in vain.

    uvloop's own timers count whole milliseconds, many times a usual queue delay, and take less than half of one for
    "at once"; hence `timerfd_create(2)` where there is one.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, alarm: Callable[[], None]) -> None:
        self._loop = loop
        self._alarm = alarm
        self._armed_ns: int | None = None
        self._fd = -1
        self._handle: asyncio.TimerHandle | None = None
        self._closed = False

    def ring_at(self, when_ns: int | None, now_ns: int) -> None:
        """See that the alarm comes at `when_ns` or before; None = need not come. Times are of `perf_counter_ns`."""
        if self._closed or when_ns is None or (self._armed_ns is not None and self._armed_ns <= when_ns):
            return
        self._armed_ns = when_ns
        wait_ns = max(when_ns - now_ns, 1)
        libc = _libc()
        if libc is not None and self._fd < 0:
            self._fd = libc.timerfd_create(_CLOCK_MONOTONIC, _TFD_NONBLOCK_CLOEXEC)
            if self._fd >= 0:
                self._loop.add_reader(self._fd, self._read)
        if libc is not None and self._fd >= 0:
            spec = _Spec(0, 0, *divmod(wait_ns, 1_000_000_000))
            libc.timerfd_settime(self._fd, 0, ctypes.byref(spec), None)
            return
        if self._handle is not None:
            self._handle.cancel()
        # Rounded up: an alarm too early would be set again and again.
        self._handle = self._loop.call_later((wait_ns // _COARSE_NS + 1) / 1000, self._ring)

    def close(self) -> None:
        """Never call again, whatever is asked for: the last answer of a release closes it in the midst of a turn."""
        self._closed = True
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
        if self._handle is not None:
            self._handle.cancel()

    def _read(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:  # it was set anew in between
            return
        self._ring()

    def _ring(self) -> None:
        self._armed_ns = None
        self._alarm()


@cache
def _libc() -> ctypes.PyDLL | None:
    """The C library, when it has timers that are files."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.PyDLL(None)  # keeps the interpreter lock: the calls take a microsecond
    return libc if hasattr(libc, "timerfd_create") else None
