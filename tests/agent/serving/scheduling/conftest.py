from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import numpy as np
import pytest

from edgeserve.contracts.model_config import ModelConfig
from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve.runtimes.base import ONE_DEVICE, Tensor, Tensors
from edgeserve.runtimes.checks import check_inputs
from edgeserve_agent.serving.call import Call
from edgeserve_agent.serving.opened import Opened
from edgeserve_agent.serving.served import Identity

WAIT_S = 10.0
ROWS = Signature(
    inputs=(TensorSpec(name="x", datatype=Datatype.FP32, shape=(-1, -1)),),
    outputs=(TensorSpec(name="y", datatype=Datatype.FP32, shape=(-1, -1)),),
)


class GatedModel:
    """Gives back `x` as `y`, but only while its gate is open; or computes what the test says."""

    def __init__(
        self, compute: Callable[[Mapping[str, Tensor]], Tensors] | None = None, *, signature: Signature = ROWS
    ) -> None:
        self.signature = signature
        self.executing_device = "simulator"
        self.fallback = ""
        self.placement = ONE_DEVICE
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.ran: list[Tensors] = []
        """Inputs of every execution since it was loaded, in the order in which they began."""
        self._compute = compute or (lambda inputs: {"y": inputs["x"]})

    def run(self, inputs: Mapping[str, Tensor]) -> Tensors:
        check_inputs(self.signature, inputs)
        self.ran.append(dict(inputs))
        self.entered.release()
        assert self.gate.wait(WAIT_S)
        return self._compute(inputs)

    def close(self) -> None:
        self.gate.set()


class Sent:
    """A call under way, and what came of it."""

    def __init__(self, call: Call, unwritable: int) -> None:
        self.call = call
        self.attempts = 0
        """To answer it."""
        self._unwritable = unwritable
        self._outcome: Any = None
        self._done = threading.Event()

    def answered(self, outcome: Any) -> None:
        self.attempts += 1
        if self.attempts <= self._unwritable:
            raise ZeroDivisionError("the client cannot be written to")
        self._outcome = outcome
        self._done.set()

    @property
    def is_done(self) -> bool:
        return self._done.is_set()

    def result(self) -> Tensors:
        assert self._done.wait(WAIT_S), "the call was never finished"
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome

    def error(self) -> Exception:
        assert self._done.wait(WAIT_S), "the call was never finished"
        assert isinstance(self._outcome, Exception), self._outcome
        return self._outcome


class Bench:
    """A real server and gated models in it."""

    model = GatedModel
    signature = ROWS

    def __init__(self, server: Any, digest: Callable[[int], str]) -> None:
        self.server = server
        self.plane = server.plane
        self.digest = digest
        self.order: list[Sent] = []
        """Calls as they were answered."""

    def serve(self, model: Any, config: Any = None, *, name: str = "m", task: Any = None) -> Any:
        """Load it with a configuration (as JSON would have it), and let it answer; returns the release."""
        given = msgspec.convert(config or {}, ModelConfig)
        identity = Identity(model=name, version="1", release=self.digest(1), variant=self.digest(1))
        opened = Opened(model=model, runtime="simulator", config=given, task=task)
        self.server.run(self.plane.load(identity, lambda: opened))
        self.server.call(self.plane.activate, name, self.digest(1))
        if isinstance(model, GatedModel):
            model.ran.clear()
            while model.entered.acquire(blocking=False):
                pass
        return self.plane.find(name)

    def send(
        self, x: Any = 0.0, *, name: str = "m", inputs: Tensors | None = None, unwritable: int = 0, **more: Any
    ) -> Sent:
        """Begin a call; `x` alone is one row with one number. So many attempts to answer it fail."""
        array = np.asarray(x, np.float32)
        given = {"x": array.reshape(1, 1) if array.ndim == 0 else array} if inputs is None else inputs
        return self.server.call(self._begin, name, given, unwritable, more)

    def _begin(self, name: str, inputs: Tensors, unwritable: int, more: Mapping[str, Any]) -> Sent:
        def done(_call: Call, outcome: Any) -> None:
            sent.answered(outcome)
            self.order.append(sent)

        sent = Sent(Call(served=self.plane.find(name), inputs=inputs, done=done, **more), unwritable)
        self.plane.infer(sent.call)
        return sent

    def cancel(self, sent: Sent) -> None:
        self.server.call(setattr, sent.call, "cancelled", True)

    def occupy(self, model: GatedModel, **more: Any) -> Sent:
        """Let the only instance run until the gate opens."""
        model.gate.clear()
        sent = self.send(-1.0, **more)
        assert model.entered.acquire(timeout=WAIT_S)
        return sent

    def executions(self, name: str = "m") -> dict[int, int]:
        """Rows of an execution -> how many there were, as the statistics say."""
        counters = self.plane.find(name).counters
        found = {rows: stats.count for rows, stats in sorted(counters.batches.items())}
        assert sum(found.values()) == counters.executions
        return found


@pytest.fixture
def bench(start_server, tools) -> Bench:
    return Bench(start_server(), tools.digest)
