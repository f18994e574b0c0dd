"""A worker process: loads one model, answers calls on its lanes, and ends when a lane closes."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from edgeserve.contracts.errors import DeviceError
from edgeserve.contracts.limits import ISOLATION_MESSAGE_BYTES
from edgeserve.runtimes.base import LoadedModel, Runtime
from edgeserve_agent.isolation.channel import TensorReader, TensorWriter
from edgeserve_agent.isolation.messages import Failure, Loaded, LoadOrder, encode
from edgeserve_agent.isolation.options import IsolationOptions
from edgeserve_agent.isolation.region import Region

_PR_SET_PDEATHSIG: Final = 1
"""prctl(2)."""
_COMM_CHARS: Final = 15


def serve(order: LoadOrder, runtime: Runtime, descriptors: Sequence[int], *, parent: int) -> None:
    """Be the worker until a lane closes; never returns to the caller's work.

    Args:
        order: What to load.
        runtime: That loads it.
        descriptors: A pipe for `Loaded | Failure`, then for each lane its socket and its memfd.
        parent: Process id of the fork server.
    """
    _restrict(order, parent)
    pipe, *rest = descriptors
    lanes = [(socket.socket(fileno=wire), Region(memory)) for wire, memory in zip(rest[::2], rest[1::2], strict=True)]
    try:
        model = runtime.load(Path(order.path), order.options)
        answer: Loaded | Failure = Loaded(
            signature=model.signature,
            executing_device=model.executing_device,
            fallback=model.fallback,
            placement=dict(model.placement),
        )
    except Exception as error:  # noqa: BLE001 - whatever it is, the serving process is to hear of it
        answer = Failure.of(error)
    with open(pipe, "wb") as file:  # noqa: PTH123 - a descriptor has no path
        file.write(encode(answer))
    if isinstance(answer, Failure):
        return
    for wire, region in lanes[1:]:
        threading.Thread(target=_answer_and_end, args=(model, wire, region), daemon=True).start()
    answer_calls(model, *lanes[0])


def _answer_and_end(model: LoadedModel, wire: socket.socket, region: Region) -> None:
    try:
        answer_calls(model, wire, region)
    finally:
        os._exit(0)


def answer_calls(model: LoadedModel, wire: socket.socket, region: Region) -> None:
    """Answer call after call on one lane, until its other end is closed."""
    reader = TensorReader(region, model.signature.inputs)
    writer = TensorWriter(region, model.signature.outputs)
    while message := wire.recv(ISOLATION_MESSAGE_BYTES):
        try:
            answer = writer.write(model.run(reader.read(message, 0)), reader.end)
        except Exception as error:  # noqa: BLE001 - one call has failed, not the worker
            answer = encode(Failure.of(error))
        reader.forget()
        try:
            wire.send(answer)
        except BrokenPipeError:  # nobody waits for it any more
            return


def _restrict(order: LoadOrder, parent: int) -> None:
    """Bind the process to its parent and to its limits.

    Raises:
        DeviceError: The parent is gone already, or the kernel refuses.
    """
    bound = ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL)) == 0
    if not bound or os.getppid() != parent:  # or the parent ended before the line above
        raise DeviceError("the worker process cannot be bound to the fork server")
    with contextlib.suppress(OSError):  # /proc may be read-only in a hardened container
        Path("/proc/self/comm").write_text(f"es:{Path(order.path).name}"[:_COMM_CHARS])
    with contextlib.suppress(OSError):
        _raise_badness(order.isolation)
    if order.isolation.memory_limit_bytes and sys.platform == "linux":
        import resource

        limit = order.isolation.memory_limit_bytes
        _soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _raise_badness(isolation: IsolationOptions) -> None:
    file = Path("/proc/self/oom_score_adj")
    file.write_text(str(min(1000, int(file.read_text()) + isolation.oom_score_adj)))
