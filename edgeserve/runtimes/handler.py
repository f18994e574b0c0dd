"""The runtime `python`: a handler of the user's own, alone or around a model, in a process of its own. Linux only.

A handler is code, so nothing of it runs unless its folder is trusted on this machine (`trust_handlers`). For its author
there is docs/handler.md.
"""

from __future__ import annotations

import logging
import platform
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from edgeserve.contracts.errors import DeviceError, InputError, TrustError, UnsupportedError
from edgeserve.contracts.limits import HANDLER_CRASH_WINDOW_S, HANDLER_CRASHES, MIB
from edgeserve.runtimes.base import ONE_DEVICE, LoadedModel, Runtime, RuntimeOptions, Tensor, Tensors
from edgeserve.runtimes.checks import check_inputs
from edgeserve.runtimes.handler_file import HandlerFile, read_handler_file
from edgeserve.runtimes.handler_frames import Start
from edgeserve.runtimes.handler_process import HandlerGoneError, HandlerProcess
from edgeserve.runtimes.handler_trust import trusted_folders
from edgeserve.runtimes.model_files import model_files

_DEVICE: Final = "CPU"
_LOG: Final = logging.getLogger(__name__)


class PythonHandlerRuntime:
    """Loads `handler.toml`.

    Args:
        trusted: Folders whose handlers may run; None = those of the environment, which is none by default.
        find: Gives the runtime of the model that a handler is chained to.
    """

    name = "python"

    def __init__(self, trusted: Sequence[Path] | None = None, *, find: Callable[[str], Runtime] | None = None) -> None:
        self._trusted = trusted
        self._find = find

    def version(self) -> str:
        """Of Python."""
        return platform.python_version()

    def load(self, path: Path, options: RuntimeOptions) -> LoadedModel:
        """Start the handler; see `edgeserve.runtimes.base.Runtime.load`.

        Raises:
            TrustError: No one on this machine has allowed it to run.
            UnsupportedError: The system is not Linux.
        """
        handler = read_handler_file(path)
        if sys.platform != "linux":
            raise UnsupportedError(
                "handlers need Linux, which can confine them", hint="serve the model without its handler here"
            )
        self._check_trust(path)
        model = self._load_model(path, handler, options)
        try:
            return HandlerModel(path, handler, options, model)
        except BaseException:
            if model is not None:
                model.close()
            raise

    def _check_trust(self, path: Path) -> None:
        trusted = trusted_folders() if self._trusted is None else self._trusted
        if not any(path.resolve().is_relative_to(folder.resolve()) for folder in trusted):
            raise TrustError(
                f"{path} is a handler: Python that this machine would run, which no one here has allowed",
                hint="if you trust it: allow_handlers = true in [limits] of agent.toml, or serve --trust-handlers",
            )

    def _load_model(self, path: Path, handler: HandlerFile, options: RuntimeOptions) -> LoadedModel | None:
        if not handler.then:
            if options.device != _DEVICE and not (options.simulate or options.fallback):
                raise DeviceError(f"a handler has no device {options.device!r}", hint=f"it runs on {_DEVICE}")
            return None
        if self._find is None:
            from edgeserve.runtimes.variant import find_runtime

            return find_runtime(handler.runtime_of_model).load(path.parent / handler.then, options)
        return self._find(handler.runtime_of_model).load(path.parent / handler.then, options)


class HandlerModel:
    """A handler that answers. Calls wait for each other: what it keeps between its steps is of one call."""

    def __init__(self, path: Path, handler: HandlerFile, options: RuntimeOptions, model: LoadedModel | None) -> None:
        self.signature = handler.signature
        self.executing_device = _DEVICE if model is None else model.executing_device
        if options.simulate and model is None:
            self.executing_device += " (simulated)"
        self.fallback = "" if model is None else model.fallback
        self.placement: Mapping[str, int] = ONE_DEVICE if model is None else model.placement
        self._path = path
        self._threads = options.threads
        self._leave_out = frozenset(
            file.name
            for file in (model_files(path.parent / handler.then) if handler.then else ())
            if file.name.startswith((handler.then, f"{Path(handler.then).stem}.")) and file.name != handler.module
        )
        self._start = Start(
            folder="",
            module=handler.module,
            handler=handler.handler,
            chained=model is not None,
            memory_bytes=handler.limits.memory_mib * MIB,
            call_s=handler.limits.call_s,
            user=None,
        )
        self._model = model
        self._lock = threading.Lock()
        self._closed = False
        self._crashes: deque[float] = deque(maxlen=HANDLER_CRASHES + 1)
        self._process: HandlerProcess | None = self._started()
        self.confined_by = self._process.applied
        """What confines the handler's process, in words."""
        self.not_confined_by = self._process.missing
        """What this system does not offer, each with its reason."""
        _LOG.info("%s runs in process %d with %s", path, self._process.pid, ", ".join(self.confined_by))
        if self.not_confined_by:
            _LOG.warning("%s runs without %s", path, ", ".join(self.not_confined_by))

    def run(self, inputs: Mapping[str, Tensor]) -> Tensors:
        """Compute the outputs; see `edgeserve.runtimes.base.LoadedModel.run`."""
        if self._closed:
            raise DeviceError("the model was closed")
        check_inputs(self.signature, inputs)
        with self._lock:
            process = self._running()
            try:
                if self._model is None:
                    return process.call("run", inputs, self.signature.outputs)
                wanted = self._model.signature.inputs
                between = self._model_run(self._model, process.call("preprocess", inputs, wanted))
                return process.call("postprocess", between, self.signature.outputs)
            except HandlerGoneError as error:
                self._process = None
                process.close()
                if self._closed:
                    raise DeviceError("the model was closed") from error
                self._crashes.append(time.monotonic())
                raise

    def close(self) -> None:
        """End the process, and a call with it."""
        self._closed = True
        process = self._process
        if process is not None:
            process.close()
        with self._lock:
            if self._process is not None:
                self._process.close()
            self._process = None
            if self._model is not None:
                self._model.close()

    def _running(self) -> HandlerProcess:
        if self._closed:
            raise DeviceError("the model was closed")
        if self._process is None:
            full = len(self._crashes) > HANDLER_CRASHES
            if full and time.monotonic() - self._crashes[0] < HANDLER_CRASH_WINDOW_S:
                raise DeviceError(
                    f"the process of {self._path.name} ended {len(self._crashes)} times "
                    f"within {HANDLER_CRASH_WINDOW_S:g} s and stays down",
                    hint="the log says how; load the model again when it is mended",
                )
            try:
                self._process = self._started()
            except (DeviceError, InputError):
                self._crashes.append(time.monotonic())
                raise
        return self._process

    def _started(self) -> HandlerProcess:
        return HandlerProcess(
            self._path.name, self._path.parent, self._start, leave_out=self._leave_out, threads=self._threads
        )

    @staticmethod
    def _model_run(model: LoadedModel, inputs: Tensors) -> Tensors:
        try:
            return model.run(inputs)
        except InputError as error:  # what the client sent is right; what the handler made of it is not
            raise DeviceError(f"the model cannot take what preprocess returned: {error.message}") from error
