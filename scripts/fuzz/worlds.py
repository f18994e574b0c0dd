"""A model server without sockets: real parsers, real dialects and real small models on a loop that is stepped."""

from __future__ import annotations

import asyncio
import logging
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeserve.contracts.tensors import Datatype, Signature, TensorSpec
from edgeserve.runtimes.base import ONE_DEVICE
from edgeserve.runtimes.checks import check_inputs
from edgeserve_agent.serving.http_protocol import HttpConnection
from edgeserve_agent.serving.http_server import HttpLimits
from edgeserve_agent.serving.opened import Opened
from edgeserve_agent.serving.served import Identity
from edgeserve_agent.serving.server import ModelServer
from edgeserve_agent.serving.standalone import open_standalone

PATIENCE_S = 20.0
"""An answer that takes longer counts as lost."""
KINDS = tuple(Datatype)
ECHO = Signature(
    inputs=tuple(TensorSpec(name=f"in_{kind.value}", datatype=kind, shape=(-1,)) for kind in KINDS),
    outputs=tuple(TensorSpec(name=f"out_{kind.value}", datatype=kind, shape=(-1,)) for kind in KINDS),
)
SMALL = {"head_bytes": 4096, "body_bytes": 60_000, "read_buffer_bytes": 4096}
"""Bounds that inputs of a few kilobytes can reach."""


class FindingError(AssertionError):
    """What must not happen has happened."""


class Echo:
    """Gives back what it gets; keeps to the contract of a runtime's loaded model."""

    signature = ECHO
    executing_device = "simulator"
    fallback = ""
    placement = ONE_DEVICE

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        check_inputs(self.signature, inputs)
        return {name.replace("in_", "out_"): array.copy() for name, array in inputs.items()}

    def close(self) -> None:
        """Nothing to let go of."""


def small_onnx(path: Path) -> Path:
    """A model of ONNX with the input `x`, FP32 [-1, 4], and the output `y` [-1, 3]."""
    from onnx import TensorProto, checker, helper, numpy_helper, save

    weights = numpy_helper.from_array(np.arange(12, dtype=np.float32).reshape(4, 3), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model)
    save(model, str(path))
    return path


class Complaints(logging.Handler):
    """What was logged as an error: bugs that the server survived."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.said: list[str] = []
        self.setFormatter(logging.Formatter("%(name)s: %(message)s"))
        self._root = logging.getLogger("edgeserve_agent")
        self._root.addHandler(self)
        self._root.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(self.format(record))

    def close(self) -> None:
        """Listen no more."""
        self._root.removeHandler(self)
        self._root.propagate = True
        super().close()

    def check(self) -> None:
        """Raises `FindingError` for what was logged since the last time."""
        if self.said:
            said, self.said = self.said, []
            raise FindingError("logged: " + "\n".join(said))


class Wire(asyncio.Transport):
    """A transport in memory whose client reads all."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.protocol: Any = None
        self.closed = False
        self.eof = False
        self.paused = False

    def write(self, data: Any) -> None:
        if self.eof:
            raise FindingError("written after the end")
        if not self.closed:
            self.written += memoryview(data).cast("B")

    def writelines(self, list_of_data: Any) -> None:
        for data in list_of_data:
            self.write(data)

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.eof = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def close(self) -> None:
        self.closed = True

    abort = close


class World:
    """A server with the models `m` (ONNX, FP32 [-1, 4] to [-1, 3]) and `echo` (every datatype)."""

    def __init__(self) -> None:
        self.complaints = Complaints()
        self.loop = asyncio.new_event_loop()
        self.loop.set_exception_handler(lambda _loop, context: self.complaints.said.append(str(context)))
        self.server = ModelServer(self.loop, threads=1, insecure=False, limits=HttpLimits(**SMALL))  # type: ignore[arg-type]
        self.plane = self.server.plane
        self.http = self.server._http  # noqa: SLF001 - the sockets are what is left out
        with tempfile.TemporaryDirectory() as folder:
            path = small_onnx(Path(folder) / "m.onnx")
            found = open_standalone(path, name="m", threads=1, scratch=Path(folder))
            self._load(replace(found.identity, release="sha256:m"), lambda: found.opened)
        echo = Identity(model="echo", version="1", release="sha256:echo", variant="sha256:echo")
        self._load(echo, lambda: Opened(model=Echo(), runtime="simulator"))

    def _load(self, identity: Identity, opener: Callable[[], Opened]) -> None:
        self.loop.run_until_complete(self.plane.load(identity, opener))
        self.plane.activate(identity.model, identity.release)

    def close(self) -> None:
        """End the server and its loop."""
        self.loop.run_until_complete(self.server.close(drain_s=1.0))
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.close()
        self.complaints.close()

    async def until(self, condition: Callable[[], object], what: str) -> None:
        """Let the loop run until something is so."""
        end = None
        while not condition():
            await asyncio.sleep(0)
            end = end or time.monotonic() + PATIENCE_S
            if time.monotonic() > end:
                raise FindingError(f"waited in vain until {what}")

    def forget(self) -> None:
        """Forget all that is kept of requests."""
        self.http.known_heads.clear()
        self.server._api._routes.clear()  # noqa: SLF001
        for served, _ in self.plane.releases():
            served.decoder._by_bytes.clear()  # noqa: SLF001
            served.decoder._by_content.clear()  # noqa: SLF001

    def talk(self, stream: bytes, cuts: list[int], *, forgetful: bool = False) -> Wire:
        """Send a client's bytes in pieces, then its end, and let the server answer it all."""
        wire = Wire()
        self.loop.run_until_complete(self._talk(wire, stream, cuts, forgetful=forgetful))
        self.complaints.check()
        if self.http._held:  # noqa: SLF001
            raise FindingError(f"{self.http._held} bytes of bodies are still counted")  # noqa: SLF001
        return wire

    async def _talk(self, wire: Wire, stream: bytes, cuts: list[int], *, forgetful: bool) -> None:
        wire.protocol = HttpConnection(self.http)
        wire.protocol.connection_made(wire)
        for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            piece = memoryview(stream)[start:stop]
            while piece and not wire.closed:
                if wire.paused:
                    await self.until(lambda: not wire.paused, "reading went on")
                if forgetful:
                    self.forget()
                room = wire.protocol.get_buffer(-1)
                count = min(len(room), len(piece))
                if not count:
                    raise FindingError("an empty buffer")
                room[:count] = piece[:count]
                wire.protocol.buffer_updated(count)
                piece = piece[count:]
        if not wire.closed and not wire.protocol.eof_received():
            wire.closed = True
        if type(wire.protocol) is HttpConnection:
            await self.until(lambda: wire.closed, "all was answered")
        else:  # who watches health by gRPC is never answered to the end
            for _ in range(20):
                await self.until(lambda: not any(one.in_flight for one, _ in self.plane.releases()), "models were done")
                await asyncio.sleep(0)
        wire.protocol.connection_lost(None)
