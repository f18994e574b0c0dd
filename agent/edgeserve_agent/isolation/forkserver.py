"""The serving process's handle of the fork server: starts it, gives it orders, starts it anew when it is gone."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import msgspec

from edgeserve.contracts.errors import DeviceError, TransientError
from edgeserve.contracts.limits import ISOLATION_MESSAGE_BYTES, SERVING_START_S
from edgeserve_agent.isolation.messages import (
    Answer,
    Failure,
    Fork,
    Forked,
    LoadOrder,
    Order,
    Reap,
    Reaped,
    Warm,
    Warmed,
    encode,
)
from edgeserve_agent.isolation.options import require_support

_MODULE: Final = "edgeserve_agent.isolation.zygote"
_END_S: Final = 5.0
_DECODER: Final = msgspec.msgpack.Decoder(Answer)
_LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Child:
    """A worker that was forked."""

    pid: int
    pidfd: int
    """Refers to this process for ever, whatever its number is given to later; the caller closes it."""
    server: int
    """Process id of the fork server that is its parent."""


class ForkServer:
    """Thread-safe. The process is started by the first order, and again by the first one after it was lost."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._closed = False

    @property
    def pid(self) -> int | None:
        """Process id of the fork server, if there is one."""
        process = self._process
        return process.pid if process is not None else None

    def warm(self, runtime: str) -> str:
        """Import a runtime, so that workers have it from their start.

        Returns:
            Version of the library behind it.

        Raises:
            NotFoundError: No such runtime.
            DeviceError: Its library is not installed, or no process can be started.
        """
        answer, _descriptors = self._ask(Warm(runtime=runtime))
        assert isinstance(answer, Warmed)
        return answer.version

    def fork(self, order: LoadOrder, descriptors: Sequence[int]) -> Child:
        """Start a worker.

        Args:
            order: What it is to load.
            descriptors: What it gets, see `edgeserve_agent.isolation.worker.serve`; the caller still closes its own.

        Raises:
            NotFoundError: No such runtime.
            DeviceError: Its library is not installed, or no process can be started.
        """
        with self._lock:
            answer, passed = self._order(Fork(order=order), descriptors)
            assert isinstance(answer, Forked)
            if not passed:  # the kernel closes a descriptor for which there is no room; the worker ends with its lanes
                raise DeviceError("too many open files for a worker process", hint="raise LimitNOFILE")
            assert self._process is not None
            return Child(pid=answer.pid, pidfd=passed[0], server=self._process.pid)

    def reap(self, child: Child) -> str:
        """How a worker ended, in words such as `was ended by SIGSEGV`. To be asked once, and after it has ended."""
        with self._lock:
            if self._process is None or self._process.pid != child.server:
                return "ended with the fork server"
            try:
                answer, _passed = self._order(Reap(pid=child.pid), ())
            except (DeviceError, TransientError):
                return "ended with the fork server"
        assert isinstance(answer, Reaped)
        return _ended(answer.code)

    def close(self) -> None:
        """End the fork server, and with it all its workers. May be called twice."""
        with self._lock:
            self._closed = True
            self._discard()

    def _ask(self, order: Order) -> tuple[Answer, list[int]]:
        with self._lock:
            return self._order(order, ())

    def _order(self, order: Order, descriptors: Sequence[int]) -> tuple[Answer, list[int]]:
        if self._closed:
            raise DeviceError("the fork server was closed")
        try:
            message, passed = self._exchange(self._connected(), order, descriptors)
        except _LostError:
            if isinstance(order, Reap):
                raise
            message, passed = self._exchange(self._connected(), order, descriptors)
        answer: Answer = _DECODER.decode(message)
        if isinstance(answer, Failure):
            raise answer.error()
        return answer, passed

    def _exchange(self, control: socket.socket, order: Order, descriptors: Sequence[int]) -> tuple[bytes, list[int]]:
        try:
            socket.send_fds(control, [encode(order)], descriptors)
            message, passed, _flags, _address = socket.recv_fds(control, ISOLATION_MESSAGE_BYTES, 1)
        except TimeoutError as error:
            self._discard()
            raise _LostError(f"the fork server did not answer for {SERVING_START_S:g} s") from error
        except (BrokenPipeError, ConnectionResetError):
            message, passed = b"", []
        if not message:
            code = self._discard()
            _LOG.warning("the fork server %s", _ended(code))
            raise _LostError(f"the fork server {_ended(code)}", hint="look at what it wrote to the log")
        return message, passed

    def _connected(self) -> socket.socket:
        if self._control is not None:
            return self._control
        require_support()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", _MODULE, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                # Threads of a library that is imported there would be missing in every worker.
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
            )
        except OSError as error:
            ours.close()
            raise DeviceError(f"cannot start the fork server: {error.strerror}") from error
        finally:
            theirs.close()
        ours.settimeout(SERVING_START_S)
        self._control = ours
        _LOG.info("started the fork server %d", self._process.pid)
        return ours

    def _discard(self) -> int | None:
        """Close the socket, wait for the end that follows, and return the exit code."""
        process, control = self._process, self._control
        self._process = self._control = None
        if control is not None:
            control.close()
        if process is None:
            return None
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(_END_S)
        process.kill()
        return process.wait()


class _LostError(DeviceError):
    """The fork server is gone or hangs."""


@lru_cache(maxsize=1)
def shared_fork_server() -> ForkServer:
    """The one fork server of this process; it ends with it."""
    server = ForkServer()
    atexit.register(server.close)
    return server


def _ended(code: int | None) -> str:
    if code is None:
        return "ended"
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
