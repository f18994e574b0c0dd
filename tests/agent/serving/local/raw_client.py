"""The local protocol from the outside: raw sockets that say what they like."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from edgeserve.client import local_wire as wire
from edgeserve.contracts.tensors import Datatype, TensorSpec
from edgeserve_agent.serving.local_server import LocalLimits, LocalServer

WAIT_S = 10.0
X = TensorSpec(name="x", datatype=Datatype.FP32, shape=(1, 4))


class Raw:
    """A client that only knows bytes."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(WAIT_S)
        self.socket.connect(str(path))

    def send(self, data: bytes, *descriptors: int) -> Raw:
        if descriptors:
            socket.send_fds(self.socket, [data], list(descriptors))
        else:
            self.socket.sendall(data)
        return self

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self.socket.recv(count - len(data))
            if not more:
                raise EOFError
            data += more
        return data

    def read(self) -> wire.Message:
        kind, number, extent, tag = wire.HEAD.unpack(self._exactly(wire.HEAD.size))
        return kind, number, extent, tag, self._exactly(extent) if wire.FROM_SERVER[kind] else b""

    def error(self) -> Any:
        kind, _, _, _, body = self.read()
        assert kind == wire.FAILED, kind
        return wire.error_of(wire.decode_body(body, wire.Failed))

    def ended(self) -> bool:
        try:
            self._exactly(1)
        except (EOFError, ConnectionResetError):
            return True
        return False

    def greet(self) -> Raw:
        assert self.send(wire.head(wire.HELLO, wire.VERSION, wire.MAGIC, 7)).read()[::3] == (wire.WELCOME, 7)
        return self

    def open(self, plan: wire.Plan, memory: int) -> int:
        kind, number, _, _, body = self.send(wire.message(wire.OPEN, plan, tag=1)).read()
        assert kind == wire.READY, body
        kind, again, _, _, body = self.send(wire.head(wire.REGION, number, 0, 2), memory).read()
        assert (kind, again) == (wire.OPENED, number), body
        return number

    def refused_region(self, memory: int, plan: wire.Plan | None = None) -> Any:
        """Why a descriptor is not taken as a region."""
        number = self.send(wire.message(wire.OPEN, plan or plan_of(), tag=1)).read()[1]
        return self.send(wire.head(wire.REGION, number, 0, 2), memory).error()


class Node:
    """A model server with a local socket."""

    def __init__(self, server: Any, path: Path, bounds: LocalLimits | None, users: tuple[int, ...] = ()) -> None:
        self.server = server
        self.path = path
        self.local = LocalServer(server.loop, server.plane, users=users, bounds=bounds)
        server.call(self.local.listen, path)

    @property
    def state(self) -> tuple[int, int]:
        """Connections and mapped bytes."""
        return self.server.call(lambda: (self.local.connections, self.local.mapped_bytes))

    def close(self, drain_s: float = WAIT_S) -> None:
        self.server.run(self.local.close(drain_s))


def plan_of(**more: Any) -> wire.Plan:
    return wire.place([(X, 16)], {"y": 12}, **{"model": "m", **more})


def run(client: Raw, number: int, slot: int = 0, tag: int = 9) -> wire.Message:
    return client.send(wire.head(wire.RUN, number, slot, tag)).read()
