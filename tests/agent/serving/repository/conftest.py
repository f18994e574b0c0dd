"""Model servers over a folder that tests fill."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.agent.serving.repository.model_server import Server


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


@pytest.fixture
def serve(start_server: Callable[..., Any], root: Path) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(*, state: Path | None = None, source: Any = None) -> Server:
        servers.append(Server(start_server(), root, state, source))
        return servers[-1]

    yield start
    for server in servers:
        server.client.close()
        server.thread.run(server.repository.close())


@pytest.fixture
def server(serve: Callable[..., Server]) -> Server:
    return serve()
