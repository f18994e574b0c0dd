"""The fork server, a process of its own: `python -m edgeserve_agent.isolation.zygote DESCRIPTOR`.

It imports runtimes and loads no model. It has one thread, so that a fork of it is whole; it does one order at a time
and ends when the serving process closes its end of the socket.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from functools import cache
from typing import Final, NoReturn

import msgspec

from edgeserve.contracts.limits import ISOLATION_MESSAGE_BYTES, MAX_ISOLATED_CALLS
from edgeserve.runtimes.base import Runtime
from edgeserve.runtimes.variant import find_runtime
from edgeserve_agent.isolation import worker
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
    from_text,
)

_CRASHED: Final = 70
"""Exit code of a worker that ended with an exception: EX_SOFTWARE of sysexits.h."""
_MAX_DESCRIPTORS: Final = 1 + 2 * MAX_ISOLATED_CALLS
_DECODER: Final = msgspec.msgpack.Decoder(Order, dec_hook=from_text)


def main(control: socket.socket) -> None:
    """Carry out orders until the other end is closed."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # A terminal and systemd signal the whole group. The serving process drains first, and then closes the socket.
        signal.signal(number, signal.SIG_IGN)
    while True:
        message, descriptors, _flags, _address = socket.recv_fds(control, ISOLATION_MESSAGE_BYTES, _MAX_DESCRIPTORS)
        if not message:
            return
        try:
            answer, passed = _obey(_DECODER.decode(message), descriptors, control)
        except Exception as error:  # noqa: BLE001 - a library that cannot be imported must not take all workers along
            answer, passed = Failure.of(error), []
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        socket.send_fds(control, [encode(answer)], passed)
        for descriptor in passed:
            os.close(descriptor)


def _obey(order: Order, descriptors: Sequence[int], control: socket.socket) -> tuple[Answer, list[int]]:
    match order:
        case Warm(runtime=name):
            return Warmed(version=_runtime(name).version()), []
        case Fork(order=load):
            return _fork(load, _runtime(load.runtime), descriptors, control)
        case Reap(pid=pid):
            try:
                return Reaped(code=os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])), []
            except ChildProcessError:
                return Reaped(code=None), []


@cache
def _runtime(name: str) -> Runtime:
    """The runtime, imported once for all workers."""
    runtime = find_runtime(name)
    gc.collect()
    gc.freeze()  # the collector of a worker would write to every page that it shares with this process
    return runtime


def _fork(
    load: LoadOrder, runtime: Runtime, descriptors: Sequence[int], control: socket.socket
) -> tuple[Forked, list[int]]:
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _become_worker(load, runtime, descriptors, control, parent)
    try:
        return Forked(pid=pid), [os.pidfd_open(pid)]
    except OSError:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise


def _become_worker(
    order: LoadOrder, runtime: Runtime, descriptors: Sequence[int], control: socket.socket, parent: int
) -> NoReturn:
    try:
        control.close()
        worker.serve(order, runtime, descriptors, parent=parent)
    except BaseException:  # noqa: BLE001 - no exception may leave this fork of the loop above
        traceback.print_exc()
        os._exit(_CRASHED)
    os._exit(0)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
