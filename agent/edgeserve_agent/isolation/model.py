"""A model that is served from a worker process: forwards calls, and starts the worker again when it has crashed."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from edgeserve.contracts.errors import DeviceError, EdgeServeError, TransientError
from edgeserve.contracts.limits import ISOLATION_CLOSE_S, ISOLATION_LAST_WORD_S, SERVING_LOAD_S
from edgeserve.runtimes.base import Tensor, Tensors
from edgeserve.runtimes.checks import check_inputs
from edgeserve_agent.isolation.channel import WorkerGoneError, WorkerHangsError
from edgeserve_agent.isolation.forkserver import ForkServer
from edgeserve_agent.isolation.lifecycle import EventKind, Lifecycle, RestartPolicy, State, step
from edgeserve_agent.isolation.memory import ProcessMemory, process_memory
from edgeserve_agent.isolation.messages import Loaded, LoadOrder
from edgeserve_agent.isolation.process import WorkerProcess
from edgeserve_agent.isolation.source import ModelFiles

_LOG: Final = logging.getLogger(__name__)
_MEMORY_HINT: Final = "SIGKILL is also how the kernel ends what takes too much memory: look at its log"


class IsolatedModel:
    """Implements `edgeserve.runtimes.base.LoadedModel`.

    A call waits for a free lane and for the answer: it never belongs on an event loop.

    Args:
        server: Forks the workers.
        order: What they load.
        files: What it is loaded from; one that is started again loads the same, or nothing.
        policy: When one that crashed is followed by another.

    Raises:
        EdgeServeError: What the runtime raised while loading.
        DeviceError: The worker crashed or hung while loading.
    """

    def __init__(
        self, server: ForkServer, order: LoadOrder, files: ModelFiles, policy: RestartPolicy | None = None
    ) -> None:
        self._server = server
        self._order = order
        self._files = files
        self._policy = policy or RestartPolicy()
        self._name = Path(order.path).name
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._life = Lifecycle()
        self._crashes = 0
        self._last_end = ""
        self._worker: WorkerProcess | None = None
        """Serves; None while there is none that does."""
        self._starting: WorkerProcess | None = None
        worker, loaded = self._start()
        self.signature = loaded.signature
        self.executing_device = loaded.executing_device
        self.fallback = loaded.fallback
        self.placement: Mapping[str, int] = loaded.placement
        self._serve_from(worker)
        self._watcher = threading.Thread(target=self._watch, args=(worker,), name=f"watch-{self._name}", daemon=True)
        self._watcher.start()

    @property
    def state(self) -> State:
        """What it is doing."""
        return self._life.state

    @property
    def crashes(self) -> int:
        """Workers that ended unasked since it was loaded."""
        return self._crashes

    @property
    def last_end(self) -> str:
        """How the last of them ended, such as `was ended by SIGSEGV`; empty when none has."""
        return self._last_end

    @property
    def pid(self) -> int | None:
        """Process id of the worker that serves, if there is one."""
        worker = self._worker
        return worker.pid if worker is not None else None

    def memory(self) -> ProcessMemory:
        """Private memory of the worker; zeros while there is none."""
        pid = self.pid
        return process_memory(pid) if pid is not None else ProcessMemory(anonymous=0, swapped=0)

    def run(self, inputs: Mapping[str, Tensor]) -> Tensors:
        """Compute the outputs; see `edgeserve.runtimes.base.LoadedModel.run`.

        Raises:
            InputError: As there.
            TransientError: The worker is being started again.
            DeviceError: The model raised it, the worker ended or hung during this call, it crashed too often, or was
                closed.
        """
        worker = self._worker
        if worker is None:
            raise self._unavailable()
        check_inputs(self.signature, inputs)
        lane = worker.acquire()
        if lane is None:
            raise self._unavailable()
        try:
            return lane.call(inputs)
        except WorkerGoneError as gone:
            worker.kill()  # one that lost its lane alone is of no use; how one ended that is gone stays as it was
            raise self._gone(worker, begun=gone.begun) from gone
        except WorkerHangsError as hangs:
            worker.kill(f"did not answer within {self._order.isolation.call_s:g} s and was ended")
            raise self._gone(worker, begun=True) from hangs
        finally:
            worker.release(lane)

    def close(self) -> None:
        """End the worker, whether it answers or hangs; when this returns, its memory is free. May be called twice.

        Calls under way have ISOLATION_CLOSE_S to end, those that come meanwhile are refused.
        """
        with self._lock:
            first = not self._closing.is_set()
            self._closing.set()
            self._move(EventKind.CLOSED)
            worker, starting = self._worker, self._starting
            self._worker = None
        if worker is not None and first:
            deadline = time.monotonic() + ISOLATION_CLOSE_S
            lanes = [worker.acquire(max(0.0, deadline - time.monotonic())) for _ in range(self._order.isolation.calls)]
            worker.kill()
            for lane in lanes:
                if lane is not None:
                    worker.release(lane)
        if starting is not None:
            starting.kill()
        self._watcher.join()

    def _watch(self, worker: WorkerProcess | None) -> None:
        """See every worker to its end, and start the next."""
        while worker is not None:
            worker.wait()
            with self._lock:
                self._worker = None
            worker.finish(told=self._ended)
            worker = self._next()

    def _next(self) -> WorkerProcess | None:
        """Start workers until one serves; None when there is to be none any more."""
        while self._life.state is State.WAITING:
            self._closing.wait(max(0.0, self._life.due - time.monotonic()))
            with self._lock:
                self._move(EventKind.DUE)
            if self._closing.is_set():
                return None
            try:
                worker, loaded = self._start()
            except EdgeServeError as error:
                self._ended(f"could not be started again: {self._files.change() or error.message}")
                continue
            # Once it is loaded: before, a file could still change.
            change = self._files.change()
            if not change and loaded.signature != self.signature:
                change = f"{self._name} is another model for the runtime by now"
            if not change and self._serve_from(worker):
                _LOG.warning("%s is served again, by process %d", self._name, worker.pid)
                return worker
            worker.finish()
            self._ended(f"could not be started again: {change}")
        return None

    def _start(self) -> tuple[WorkerProcess, Loaded]:
        worker = WorkerProcess.start(self._server, self._order)
        with self._lock:
            self._starting = worker
            if self._closing.is_set():
                worker.kill()
        try:
            loaded = worker.loaded(SERVING_LOAD_S)
        except BaseException as error:
            with self._lock:
                self._starting = None
            how = worker.finish()
            if isinstance(error, WorkerGoneError):
                hint = _MEMORY_HINT if how.endswith("SIGKILL") else ""
                raise DeviceError(f"the worker process {how} while it loaded {self._name}", hint=hint) from error
            raise
        with self._lock:
            self._starting = None
        return worker, loaded

    def _serve_from(self, worker: WorkerProcess) -> bool:
        with self._lock:
            self._move(EventKind.STARTED)
            if self._life.state is State.SERVING:
                self._worker = worker
        return self._life.state is State.SERVING

    def _ended(self, how: str) -> None:
        with self._lock:
            self._move(EventKind.ENDED)
            if self._closing.is_set():
                return
            self._crashes += 1
            self._last_end = how
        _LOG.error("the worker process of %s %s (%s)", self._name, how, self._life.state.value)

    def _move(self, event: EventKind) -> None:
        self._life = step(self._life, event, now=time.monotonic(), policy=self._policy)

    def _gone(self, worker: WorkerProcess, *, begun: bool) -> EdgeServeError:
        """What a call is told whose worker ended."""
        worker.ended.wait(ISOLATION_LAST_WORD_S)
        if not begun:
            return self._unavailable()
        if self._closing.is_set():
            return DeviceError("the model was closed while it computed")
        hint = "the input of this call, or of one beside it, may be what the runtime cannot take"
        if worker.how.endswith("SIGKILL"):
            hint = _MEMORY_HINT
        return DeviceError(f"the worker process of {self._name} {worker.how or 'ended'} during this call", hint=hint)

    def _unavailable(self) -> EdgeServeError:
        """What a call is told that no worker can take."""
        if self._closing.is_set():
            return DeviceError("the model was closed")
        last = self._last_end or "ended"
        if self._life.state is State.FAILED:
            return DeviceError(
                f"{self._name} is not served any more: its worker process crashed {len(self._life.crashes)} times "
                f"within {self._policy.window_s:g} s; the last one {last}",
                hint="find out why (the log says when), then load the model again",
            )
        return TransientError(
            f"{self._name} is being started again: its worker process {last}", hint="try again in a moment"
        )
