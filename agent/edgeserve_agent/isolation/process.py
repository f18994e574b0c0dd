"""One worker process as the serving process sees it: its lanes, its end, and how that came."""

from __future__ import annotations

import contextlib
import os
import queue
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from edgeserve.contracts.errors import DeviceError
from edgeserve_agent.isolation.channel import Lane, WorkerGoneError
from edgeserve_agent.isolation.forkserver import Child, ForkServer
from edgeserve_agent.isolation.messages import Failure, Loaded, LoadOrder
from edgeserve_agent.isolation.region import Region

_DECODER: Final = msgspec.msgpack.Decoder(Loaded | Failure)
_CHUNK_BYTES: Final = 65536


class WorkerProcess:
    """Made by `start`. A worker has nothing to save, so its end is always SIGKILL, and `finish` must follow."""

    def __init__(self, server: ForkServer, child: Child, lanes: Sequence[Lane], answer: int) -> None:
        self.pid = child.pid
        self.ended = threading.Event()
        """Set when it is gone and `how` is known."""
        self.how = ""
        """How it ended, in words."""
        self._why = ""
        """... as whoever killed it says."""
        self._server = server
        self._child = child
        self._idle = list(lanes)
        """Lanes until the model is loaded."""
        self._answer = answer
        self._kill_lock = threading.Lock()
        self._gone = False
        self._condemned = False
        """It is about to be killed and takes no further call."""
        self._free: queue.SimpleQueue[Lane | None] = queue.SimpleQueue()
        """Lanes that nobody uses; `None` once it has ended, for all who wait."""

    @classmethod
    def start(cls, server: ForkServer, order: LoadOrder) -> WorkerProcess:
        """Fork a worker, which begins to load.

        Raises:
            EdgeServeError: There is no such runtime, or no process can be made.
        """
        lanes: list[Lane] = []
        given: list[int] = []
        reading = -1
        try:
            reading, writing = os.pipe()
            given.append(writing)
            for _ in range(order.isolation.calls):
                ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                given.append(theirs.detach())
                region = Region.create()
                given.append(os.dup(region.descriptor))
                lanes.append(Lane(ours, region, call_s=order.isolation.call_s))
            return cls(server, server.fork(order, given), lanes, reading)
        except BaseException as error:
            for lane in lanes:
                lane.close()
            if reading >= 0:
                os.close(reading)
            if isinstance(error, OSError):
                raise DeviceError(f"cannot make a worker process: {error.strerror}") from error
            raise
        finally:
            for descriptor in given:
                os.close(descriptor)

    def loaded(self, timeout_s: float) -> Loaded:
        """Wait for the model.

        Raises:
            EdgeServeError: What the runtime raised.
            WorkerGoneError: The worker ended; `finish` says how.
            DeviceError: It took longer than `timeout_s`.
        """
        answer = self._read_answer(timeout_s)
        if not answer:
            raise WorkerGoneError(begun=True)
        try:
            loaded: Loaded | Failure = _DECODER.decode(answer)
        except msgspec.DecodeError as error:
            raise DeviceError(f"the worker process answered nonsense: {error}") from error
        if isinstance(loaded, Failure):
            raise loaded.error()
        for lane in self._idle:
            lane.prepare(loaded.signature.inputs, loaded.signature.outputs)
            self._free.put(lane)
        self._idle = []
        return loaded

    def acquire(self, timeout_s: float | None = None) -> Lane | None:
        """Wait for a lane; None when the worker has ended, or none was free for `timeout_s`."""
        try:
            lane = self._free.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if lane is None or self._condemned:
            self._put_back(lane)
            return None
        return lane

    def release(self, lane: Lane) -> None:
        """Give a lane back."""
        if not lane.in_step:
            # The answer of a call that was given up may still come, and must not be taken for another's.
            self._condemned = True
            self.kill()
        self._put_back(lane)

    def kill(self, why: str = "") -> None:
        """End the process at once; nothing happens when it is gone.

        Args:
            why: Said of its end, instead of the signal.
        """
        with self._kill_lock, contextlib.suppress(ProcessLookupError):
            if not self._gone:
                self._why = self._why or why
                signal.pidfd_send_signal(self._child.pidfd, signal.SIGKILL)

    def wait(self) -> None:
        """Wait until the process is gone, and its memory with it."""
        poll = select.poll()
        poll.register(self._child.pidfd, select.POLLIN)
        poll.poll()

    def finish(self, told: Callable[[str], None] | None = None) -> str:
        """See to it that the process is gone and let go of all that belonged to it; its owner does so, once.

        Args:
            told: Is told how it ended, before those who wait for `ended`.

        Returns:
            How it ended.
        """
        self.kill()
        self.wait()
        reaped = self._server.reap(self._child)
        self.how = self._why or reaped
        with self._kill_lock:
            self._gone = True
            os.close(self._child.pidfd)
        if self._answer >= 0:
            os.close(self._answer)
        for lane in self._idle:
            lane.close()
        if told is not None:
            told(self.how)
        self.ended.set()
        self._drain()
        return self.how

    def _put_back(self, lane: Lane | None) -> None:
        self._free.put(lane)
        if self.ended.is_set():  # `finish` may have drained already, while the lane was out
            self._drain()

    def _drain(self) -> None:
        """Close the lanes that nobody uses and tell those who wait for one."""
        with contextlib.suppress(queue.Empty):
            while True:
                lane = self._free.get_nowait()
                if lane is not None:
                    lane.close()
        self._free.put(None)

    def _read_answer(self, timeout_s: float) -> bytes:
        deadline = time.monotonic() + timeout_s
        poll = select.poll()
        poll.register(self._answer, select.POLLIN)
        parts: list[bytes] = []
        while True:
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise DeviceError(f"the worker process took longer than {timeout_s:g} s to load the model")
            part = os.read(self._answer, _CHUNK_BYTES)
            if not part:
                return b"".join(parts)
            parts.append(part)
