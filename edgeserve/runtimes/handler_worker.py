"""The process of a handler: confine, import, load, then answer calls until the connection ends. Linux only.

`handler_process` starts it. It trusts what it is told; nothing here is trusted by the other side.
"""

from __future__ import annotations

import importlib.util
import os
import select
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Final, NoReturn

import numpy as np

from edgeserve.contracts.errors import EdgeServeError
from edgeserve.contracts.limits import MAX_REASON_CHARS
from edgeserve.runtimes.base import Tensors
from edgeserve.runtimes.handler_api import InvalidInputError
from edgeserve.runtimes.handler_frames import Answer, Call, Failed, Ready, Start, Wire, pack
from edgeserve.runtimes.handler_limits import allow_processor, confine

Steps = Mapping[str, Callable[[Tensors], object]]
_TRACEBACK_FRAMES: Final = 8


class _NoHandlerError(Exception):
    """The file is not what `handler.toml` says."""


def main(descriptor: int) -> int:
    """Serve the handler that the first message names.

    Args:
        descriptor: Of a connected stream socket.
    """
    connection = socket.socket(fileno=descriptor)
    wire = Wire(connection)
    start = wire.receive(Start)
    assert isinstance(start, Start)
    closed: tuple[str, ...] = ()
    try:
        os.chdir(start.folder)
        confinement = confine(Path(start.folder), memory_bytes=start.memory_bytes, user=start.user)
        closed = confinement.closed
        threading.Thread(target=_end_with_server, args=(descriptor,), name="server-watch", daemon=True).start()
        steps = _load(start)
    except BaseException as error:  # noqa: BLE001 - a stranger's code raises what it likes
        wire.send(_failure(error, "loading it", closed))
        return 1
    wire.send(Ready(applied=confinement.applied, missing=confinement.missing))
    while True:
        allow_processor()
        try:
            call = wire.receive(Call)
        except EOFError:
            return 0
        assert isinstance(call, Call)
        allow_processor(start.call_s * (os.cpu_count() or 1))
        inputs = wire.receive_raw(call.parts)
        try:
            parts, blobs = pack(_tensors(steps[call.step](inputs), call.step))
        except BaseException as error:  # noqa: BLE001 - as above
            wire.send(_failure(error, call.step, closed))
            continue
        wire.send(Answer(parts=parts), blobs)


def _load(start: Start) -> Steps:
    # The folder itself and not a path to it: as another user, what is above it may be out of reach.
    folder = Path()
    sys.path.insert(0, start.folder)
    module = _import(folder / start.module, start.module)
    found = getattr(module, start.handler, None)
    if not callable(found):
        raise _NoHandlerError(f"{start.module} has no class or function {start.handler!r}")
    if not isinstance(found, type):
        return {"preprocess": found, "postprocess": _same} if start.chained else {"run": found}
    handler: Any = found()
    if load := getattr(handler, "load", None):
        load(folder)
    wanted = ("preprocess", "postprocess") if start.chained else ("run",)
    steps = {name: step for name in wanted if callable(step := getattr(handler, name, None))}
    if not steps:
        raise _NoHandlerError(f"class {start.handler!r} of {start.module} has no method {' or '.join(wanted)}")
    return {name: steps.get(name, _same) for name in wanted}


def _import(path: Path, shown: str) -> ModuleType:
    name = path.stem
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        if error.filename is None or Path(error.filename).name != shown:
            raise
        raise _NoHandlerError(f"{shown} is not Python: {error}") from error
    return module


def _same(tensors: Tensors) -> Tensors:
    return tensors


def _tensors(result: object, step: str) -> Tensors:
    if not isinstance(result, Mapping):
        raise TypeError(f"{step} returned a {type(result).__name__}, not a dict of arrays by name")
    return {str(name): np.asarray(value) for name, value in result.items()}


def _failure(error: BaseException, step: str, closed: tuple[str, ...]) -> Failed:
    if isinstance(error, InvalidInputError):
        return Failed(kind="input", message=_short(str(error)))
    if isinstance(error, _NoHandlerError):
        return Failed(kind="file", message=_short(str(error)))
    if isinstance(error, EdgeServeError):
        return Failed(kind="handler", message=_short(error.message))
    traceback.print_exception(type(error), error, error.__traceback__, limit=_TRACEBACK_FRAMES)
    message = f"{step} failed: {type(error).__name__}: {error}"
    if not isinstance(error, ModuleNotFoundError):
        return Failed(kind="handler", message=_short(message))
    return Failed(kind="library", message=_short(message + (f" (its user cannot read {closed[0]})" if closed else "")))


def _short(text: str) -> str:
    return text[:MAX_REASON_CHARS].encode("utf-8", "replace").decode()


def _end_with_server(descriptor: int) -> NoReturn:
    """End the process when the server closes the connection or is gone, whatever a call is at."""
    watch = select.poll()
    watch.register(descriptor, select.POLLRDHUP)
    watch.poll()
    os._exit(0)
