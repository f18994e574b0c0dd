"""A stranger's runtime that does what its input says. It is installed beside the product, as a plugin, by a fixture."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import threading
import time
from pathlib import Path

import numpy as np

from edgeserve.contracts.errors import DeviceError, InputError
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve.runtimes.base import ONE_DEVICE
from edgeserve.runtimes.checks import check_inputs

SIGNATURE = Signature(
    inputs=(TensorSpec(name="order", datatype=Datatype.BYTES, shape=(-1,)),),
    outputs=(TensorSpec(name="answer", datatype=Datatype.BYTES, shape=(-1,)),),
)


class TroubleRuntime:
    name = "trouble"

    def version(self):
        return "1"

    def load(self, path, options):
        return TroubleModel(path.read_text().split())


class TroubleModel:
    executing_device = "trouble"
    fallback = ""
    placement = ONE_DEVICE
    signature = SIGNATURE

    def __init__(self, words):
        if words:
            obey(*words)

    def run(self, inputs):
        check_inputs(self.signature, inputs)
        return {"answer": np.array([obey(*order.decode().split()) for order in inputs["order"]], object)}

    def close(self):
        pass


def obey(verb, *words):
    match verb:
        case "echo":
            return " ".join(words).encode()
        case "crash":
            ctypes.string_at(0)
        case "exit":
            os._exit(int(words[0]))
        case "hang":
            time.sleep(3600)
        case "refuse":
            raise InputError("this input is refused", hint="send another")
        case "fail":
            raise DeviceError("this device fails", hint="mend it")
        case "raise":
            raise ZeroDivisionError("no edgeserve error")
        case "grab":
            return str(np.ones(int(words[0]), np.uint8).size).encode()
        case "limit":
            return str(resource.getrlimit(resource.RLIMIT_DATA)[0]).encode()
        case "badness":
            return Path("/proc/self/oom_score_adj").read_bytes().strip()
        case "many":
            return b"x" * int(words[0])
        case "meet":  # ends only when as many calls as it says are under way at once
            MEETING.setdefault(int(words[0]), threading.Barrier(int(words[0]))).wait(10)
            return b"met"
        case "fail-if":  # a path that is there
            if Path(words[0]).exists():
                raise DeviceError("this device fails", hint="mend it")
            return b"well"
        case "wait":
            touched, wanted = map(Path, words)
            touched.touch()
            while not wanted.exists():
                time.sleep(0.005)
            return b"waited"
        case "kill":
            os.kill(int(words[0]), signal.SIGKILL)
            time.sleep(3600)
        case "parent":
            return str(os.getppid()).encode()
    raise ValueError(verb)


MEETING: dict[int, threading.Barrier] = {}
