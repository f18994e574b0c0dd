from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeserve_agent.serving.model_folder import ModelFolders
from edgeserve_agent.serving.model_source import OpenOptions
from edgeserve_agent.serving.repository import Repository
from tests.suites.repository import put_version


@pytest.fixture
def repository_server(start_server: Callable[..., Any], tmp_path: Path) -> Any:
    """A server that loads from a folder with the model `m` (adds its version's number) and `bad`; none is loaded."""
    root = tmp_path / "models"
    for number in (1, 2):
        put_version(root, "m", number, adds=number)
    put_version(root, "bad", 1, adds=0).write_bytes(b"junk")
    thread = start_server()
    options = OpenOptions(threads=1, scratch=tmp_path / "scratch")
    thread.server.repository = thread.call(
        lambda: Repository(thread.plane, ModelFolders(root, options), options=options)
    )
    assert thread.run(thread.server.repository.start([])) == {}
    return thread
