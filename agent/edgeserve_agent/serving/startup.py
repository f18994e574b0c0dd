"""What `edgeserve serve` was told to serve, checked before anything listens, and the start of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from edgeserve.contracts.errors import DeviceError, InputError, NotFoundError
from edgeserve.contracts.limits import MAX_POLL_S
from edgeserve.contracts.names import served_name
from edgeserve_agent.serving import model_labels
from edgeserve_agent.serving.config_file import read_config
from edgeserve_agent.serving.dataplane import DataPlane
from edgeserve_agent.serving.model_folder import ModelFolders, is_repository
from edgeserve_agent.serving.model_labels import ModelLabels
from edgeserve_agent.serving.model_source import ModelSource, OpenOptions
from edgeserve_agent.serving.repository import Repository
from edgeserve_agent.serving.standalone import SingleModel

_LOG: Final = logging.getLogger(__name__)


class ModelControl(str, Enum):
    """Which models are loaded at start."""

    ALL = "all"
    EXPLICIT = "explicit"
    """Those that are named, and later those that requests ask for."""


@dataclass(frozen=True, kw_only=True)
class ServePlan:
    """A source of models and what to load of it."""

    source: ModelSource
    options: OpenOptions
    at_start: Collection[str] | None
    """None = all."""
    poll_s: float
    """0 = changes are taken up when a request asks for it."""
    state_dir: Path | None
    """Keeps labels over restarts."""

    @property
    def is_single(self) -> bool:
        """One model, without which there is nothing to serve."""
        return isinstance(self.source, SingleModel)

    def repository(self, plane: DataPlane) -> Repository:
        """The repository that loads into `plane`, which is not ready before that is done.

        Raises:
            EdgeServeError: The source cannot be read.
        """
        labels = ModelLabels(self.state_dir / model_labels.FILE if self.state_dir else None)
        repository = Repository(plane, self.source, options=self.options, labels=labels)
        repository.expect(self.at_start)
        return repository

    async def start(self, repository: Repository, stop: asyncio.Event) -> None:
        """Load what is to be loaded, and look for changes from then on; ends early when `stop` is set.

        Raises:
            EdgeServeError: The one model cannot be served. Of many, one that cannot be does not keep others from it.
        """
        starting = asyncio.ensure_future(repository.start(self.at_start))
        stopping = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                return
            failed = starting.result()
        finally:
            starting.cancel()
            stopping.cancel()
            await asyncio.wait((starting, stopping))
        if failed and self.is_single:
            raise next(iter(failed.values()))
        if self.poll_s:
            repository.poll(self.poll_s, new_models=self.at_start is None)


def model_control_of(text: str) -> ModelControl:
    """What the command line calls `text`.

    Raises:
        InputError: It is neither.
    """
    try:
        return ModelControl(text)
    except ValueError:
        raise InputError(f"--model-control {text[:40]!r} is neither all nor explicit") from None


def serve_plan(
    path: Path,
    *,
    name: str = "",
    options: OpenOptions,
    config: Path | None = None,
    control: ModelControl = ModelControl.ALL,
    load: Collection[str] = (),
    poll_s: float = 0.0,
    state_dir: Path | None = None,
) -> ServePlan:
    """Check what the command line said.

    Args:
        path: A model file, a release (directory or `.tar`), or a folder of models.
        name: To serve the one model under; empty = the file's stem, or the release's name.
        options: What the server was told of all its models.
        config: Of the one model: `ModelConfig` as TOML, JSON or protobuf text.
        control: Which models are loaded at start.
        load: Models that are loaded at start when `control` is explicit.
        poll_s: Seconds between two looks for changes; 0 = none.
        state_dir: Keeps labels over restarts; made if it is not there.

    Raises:
        NotFoundError: There is nothing at `path`, or no file `config`.
        InputError: Options contradict each other, or a file is wrong.
        TrustError: A release's documents are damaged.
        DeviceError: The state directory cannot be made.
    """
    if not 0 <= poll_s <= MAX_POLL_S:
        raise InputError(f"--poll-seconds {poll_s:g} is not between 0 and {MAX_POLL_S:g}")
    if load and control is not ModelControl.EXPLICIT:
        raise InputError("--load-model names models, but all are loaded", hint="add --model-control explicit")
    for model in load:
        served_name(model)
    if state_dir is not None:
        try:
            state_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DeviceError(f"cannot use the state directory {state_dir}: {error.strerror}") from error
    return ServePlan(
        source=_source(path, name=name, options=options, config=config),
        options=options,
        at_start=None if control is ModelControl.ALL else frozenset(load),
        poll_s=poll_s,
        state_dir=state_dir,
    )


def _source(path: Path, *, name: str, options: OpenOptions, config: Path | None) -> ModelSource:
    if not is_repository(path):
        model_config = read_config(config) if config is not None else None
        folder = config.parent if config is not None else None
        return SingleModel(path, name=name, options=options, config=model_config, folder=folder)
    if name or config is not None:
        option = "--name" if name else "--config"
        raise InputError(
            f"{option} is for one model, {path} is a folder of models",
            hint="the folder's own names and configurations hold; name a release or a model file",
        )
    folders = ModelFolders(path, options)
    for unusable in folders.unusable():
        _LOG.warning("%s in %s is passed over: no model can have this name", unusable, path)
    if not folders.names():
        raise NotFoundError(f"{path} has no models", hint=f"a model lies in {path}/NAME/1/model.onnx")
    return folders
