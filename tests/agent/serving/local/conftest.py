"""Servers with a local socket, raw clients and memory to share."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from edgeserve_agent.serving.local_server import LocalLimits
from tests.agent.serving.local.raw_client import Node, Raw


@pytest.fixture
def start(start_server, tmp_path) -> Iterator[Callable[..., Node]]:
    """Starts servers."""
    running: list[Node] = []

    def make(model: Any = None, *, users: tuple[int, ...] = (), **bounds: Any) -> Node:
        node = Node(
            start_server(), tmp_path / f"local{len(running)}.sock", LocalLimits(**bounds) if bounds else None, users
        )
        if model is not None:
            node.server.serve(model)
        running.append(node)
        return node

    yield make
    for node in running:
        node.close()


@pytest.fixture
def node(start, tools) -> Node:
    return start(tools.model())


@pytest.fixture
def connect() -> Iterator[Callable[[Node], Raw]]:
    clients: list[Raw] = []

    def make(node: Node) -> Raw:
        clients.append(Raw(node.path))
        return clients[-1]

    yield make
    for client in clients:
        client.socket.close()


@pytest.fixture
def memory() -> Iterator[Callable[..., int]]:
    """Makes memfds, sealed unless told otherwise."""
    made: list[int] = []

    def make(size: int = 4096, *, seals: int | None = None, flags: int = 0) -> int:
        descriptor = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | flags)
        made.append(descriptor)
        os.ftruncate(descriptor, size)
        wanted = fcntl.F_SEAL_SHRINK if seals is None else seals
        if wanted:
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, wanted)
        return descriptor

    yield make
    for descriptor in made:
        os.close(descriptor)
