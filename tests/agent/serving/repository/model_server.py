"""A real server over a folder of models, and words for what tests ask of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgeserve.client.inference import InferenceClient
from edgeserve.contracts.errors import EdgeServeError
from edgeserve.contracts.model_config import ModelConfig
from edgeserve_agent.serving.config_file import parse_config
from edgeserve_agent.serving.model_folder import ModelFolders
from edgeserve_agent.serving.model_labels import ModelLabels
from edgeserve_agent.serving.model_source import OpenOptions
from edgeserve_agent.serving.repository import Repository
from tests.suites.repository import ROW

ALL_VERSIONS = "version_policy: { all { } }"


def config(text: str) -> ModelConfig:
    return parse_config(text.encode(), what="config.pbtxt")


class Server:
    """A real server over a folder of models."""

    def __init__(self, thread: Any, root: Path, state: Path | None, source: Any = None) -> None:
        self.thread = thread
        self.root = root
        self.client = InferenceClient(thread.url)
        options = OpenOptions(threads=1, scratch=root.parent / "scratch")
        self.scratch = options.scratch
        self.repository: Repository = thread.call(
            lambda: Repository(
                thread.plane,
                source or ModelFolders(root, options),
                options=options,
                labels=ModelLabels(state / "labels.json" if state else None),
            )
        )

    def start(self, *models: str, explicit: bool = False) -> dict[str, EdgeServeError]:
        failed: dict[str, EdgeServeError] = self.thread.run(
            self.repository.start(models if models or explicit else None)
        )
        return failed

    def load(self, model: str = "m", **more: Any) -> None:
        self.thread.run(self.repository.load(model, **more))

    def unload(self, model: str = "m") -> None:
        self.thread.run(self.repository.unload(model))

    def index(self, **more: Any) -> list[tuple[str, str, str]]:
        found = self.thread.call(lambda: self.repository.index(**more))
        return [(state.model, state.version, state.state) for state in found]

    def reason(self, model: str, version: str) -> str:
        found = self.thread.call(self.repository.index)
        return next(state.reason for state in found if (state.model, state.version) == (model, version))

    def label(self, label: str, version: int | None, model: str = "m") -> None:
        self.thread.call(self.repository.set_label, model, label, version)

    def at(self, label: str, model: str = "m") -> str:
        """The version that a label leads to."""
        return str(self.thread.call(lambda: self.thread.plane.find(model, label=label)).identity.version)

    def adds(self, model: str = "m", version: str = "") -> float:
        """What the model that answers adds."""
        result = self.client.infer(model, {"x": ROW}, version=version)
        added = np.unique(result.outputs["y"] - ROW)
        assert added.size == 1
        return float(added[0])
