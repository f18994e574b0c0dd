"""The models of a device's serving process: which variants are loaded, how each is served, where labels stand.

What is loaded is the control part's decision; how it is served is the device's own: `models/NAME.toml` in the state
directory has the fields of `ModelConfig`, and `edgeserve tune` writes it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from edgeserve.contracts.errors import ConflictError, DeviceError, EdgeServeError, NotFoundError
from edgeserve.contracts.model_config import Isolation, ModelConfig
from edgeserve.contracts.names import model_name
from edgeserve_agent.serving import model_labels
from edgeserve_agent.serving.config_file import read_config
from edgeserve_agent.serving.dataplane import DataPlane
from edgeserve_agent.serving.model_labels import Label, ModelLabels, placed
from edgeserve_agent.serving.opened import Opened, open_variant
from edgeserve_agent.serving.served import Identity, ServedRelease
from edgeserve_agent.serving.standalone import check_name

_LOG: Final = logging.getLogger(__name__)
FOLDER: Final = "models"
ENGINES: Final = "engines"
"""Folder of the state directory for what is built of models here; `edgeserve_agent.finalize` describes it."""


def settings_path(state_dir: Path, model: str) -> Path:
    """Where the settings of a model lie."""
    return state_dir / FOLDER / f"{model_name(model)}.toml"


def read_settings(state_dir: Path, model: str) -> ModelConfig:
    """How a model is served; as the server was told where nothing is said.

    Raises:
        InputError: The file is not valid; names file and field.
    """
    path = settings_path(state_dir, model)
    try:
        config = read_config(path)
    except NotFoundError:
        return ModelConfig()
    check_name(config, model, str(path))
    return config


@dataclass(frozen=True, kw_only=True)
class _Variant:
    identity: Identity
    folder: Path


class FleetModels:
    """Loads variants with their settings into a data plane. Lives on the event loop.

    Args:
        plane: Where they answer.
        state_dir: Of the device.
        simulate: Run variants for other hardware on what is here.
        threads: Inside one call of a model, unless its settings say another number.
    """

    def __init__(self, plane: DataPlane, state_dir: Path, *, simulate: bool, threads: int) -> None:
        self._plane = plane
        self._state_dir = state_dir
        self._simulate = simulate
        self._threads = threads
        self._labels = ModelLabels(state_dir / model_labels.FILE)
        self._variants: dict[tuple[str, str], _Variant] = {}
        self._configs: dict[str, ModelConfig] = {}
        self._changing = asyncio.Lock()
        self._wanted: set[tuple[str, str]] = set()
        """What was to be loaded and not been unloaded since."""

    async def load(self, identity: Identity, folder: Path) -> None:
        """Load a variant beside what answers. Settings that are wrong, or do not fit it, are reported and passed over.

        They are the device's own: a release that was tried and found good is not to fail because of them. Isolation
        stays, since it protects the other models.

        Raises:
            EdgeServeError: It could not be opened or does not run.
        """
        model = identity.model
        key = (model, identity.release)
        self._wanted.add(key)
        try:
            config = await asyncio.to_thread(read_settings, self._state_dir, model)
        except EdgeServeError as error:
            _LOG.error("%s is served without its settings: %s", model, error.message)
            config = ModelConfig()
        try:
            await self._load(identity, folder, config)
        except EdgeServeError as error:
            plain = ModelConfig(isolation=config.isolation)
            if config == plain or key not in self._wanted:  # unloaded meanwhile: it is not the settings' fault
                raise
            _LOG.error("%s %s does not load with its settings: %s", model, identity.version, error.message)
            config = plain
            await self._load(identity, folder, config)
        self._variants[model, identity.release] = _Variant(identity=identity, folder=folder)
        self._configs[model] = config
        self._place_labels(model)

    async def _load(self, identity: Identity, folder: Path, config: ModelConfig) -> None:
        await self._build(identity, folder, config)
        if (identity.model, identity.release) not in self._wanted:
            raise DeviceError(f"{identity.model} {identity.version} was unloaded while its engine was being built")
        await self._plane.load(identity, self._opener(folder, config))

    async def _build(self, identity: Identity, folder: Path, config: ModelConfig) -> None:
        """Build an engine that is not in the cache any more, beside everything that answers, in a child process.

        Raises:
            EdgeServeError: It cannot be built.
        """
        stop = threading.Event()
        name = f"{identity.model} {identity.version}"
        try:
            await asyncio.to_thread(self._build_now, name, folder, config, stop)
        finally:
            stop.set()  # the thread goes on when this is cancelled

    def _build_now(self, name: str, folder: Path, config: ModelConfig, stop: threading.Event) -> None:
        from edgeserve.runtimes.variant import find_runtime, read_contract, unbuilt

        if self._simulate or read_contract(folder).finalize is None:
            return
        from edgeserve_agent.finalize import finalize

        cache = self._state_dir / ENGINES
        if config.isolation is Isolation.NONE:  # else no runtime is imported here, and the child process finds out
            why = unbuilt(
                folder, simulate=False, find=lambda runtime: find_runtime(config.runtime or runtime), cache=cache
            )
            if not why:
                return
            _LOG.warning("%s is not ready before its engine is built: %s", name, why)

        def progress(text: str) -> None:
            _LOG.info("%s: %s", name, text)

        finalize(folder, cache=cache, simulate=False, threads=self._threads, stop=stop, progress=progress)
        _LOG.info("%s: its engine is built", name)

    def unload(self, model: str, release: str) -> None:
        """Drop a variant when its last request is done. What is not there is no error."""
        self._wanted.discard((model, release))
        self._plane.unload(model, release)
        self._variants.pop((model, release), None)
        self._place_labels(model)

    async def configure(self, model: str) -> None:
        """Take up what the settings of a model say now, for everything that is loaded of it, in one step.

        Raises:
            NotFoundError: Nothing of it is loaded.
            InputError: The settings are wrong.
            EdgeServeError: It does not run with them. All goes on as it was.
        """
        async with self._changing:
            variants = [
                self._variants[model, served.identity.release]
                for served in self._plane.loaded(model)
                if (model, served.identity.release) in self._variants
            ]
            if not variants:
                raise NotFoundError(f"nothing of model {model[:80]!r} is loaded", hint="`edgeserve agent status` lists")
            config = await asyncio.to_thread(read_settings, self._state_dir, model)
            prepared: list[ServedRelease] = []
            try:
                for variant in variants:
                    opener = self._opener(variant.folder, config)
                    prepared.append(await self._plane.prepare(variant.identity, opener))
            except BaseException:
                for served in prepared:
                    self._plane.discard(served)
                raise
            loaded = {served.identity.release for served in self._plane.loaded(model)}
            for served in prepared:
                if served.identity.release in loaded:
                    self._plane.put(served)
                else:  # unloaded meanwhile
                    self._plane.discard(served)
            self._configs[model] = config
            self._place_labels(model)
            _LOG.info("%s is served with new settings", model)

    def set_label(self, model: str, label: str, release: str) -> None:
        """Let a label stand for a loaded release, or, with an empty one, for nothing; kept over restarts.

        Raises:
            InputError: It cannot be a label, or there are too many.
            NotFoundError: The release is not loaded; the label stays where it was.
            ConflictError: The model's settings place it.
            DeviceError: It could not be written; the label stays where it was.
        """
        if label in self._configs.get(model, ModelConfig()).version_labels:
            raise ConflictError(
                f"label {label!r} of model {model!r} is placed by {settings_path(self._state_dir, model)}",
                hint="change version_labels there",
            )
        if release and release not in {served.identity.release for served in self._plane.loaded(model)}:
            raise NotFoundError(f"{model} {release} is not loaded", hint="a label moves to ready versions only")
        labels = dict(self._labels.of(model))
        labels.pop(label, None)
        if release:
            labels[label] = Label(stands_for=release)
        self._labels.update(model, labels)
        self._place_labels(model)

    def _place_labels(self, model: str) -> None:
        """Let labels stand where the settings say, or where they stood, as far as it is loaded."""
        ready = {served.identity.release: served.number for served in self._plane.loaded(model)}
        releases = {number: release for release, number in ready.items()}
        configured = {
            label: releases.get(number, "")
            for label, number in self._configs.get(model, ModelConfig()).version_labels.items()
        }
        labels = placed(configured, self._labels.of(model), set(ready))
        try:
            self._labels.update(model, labels)
        except EdgeServeError as error:
            _LOG.error("labels of %s cannot be kept: %s", model, error.message)
        for label in self._plane.labels(model).keys() | labels.keys():
            place = labels.get(label)
            self._plane.set_label(model, label, place.stands_for if place and place.stands_for in ready else None)

    def _opener(self, folder: Path, config: ModelConfig) -> partial[Opened]:
        return partial(
            open_variant,
            folder,
            simulate=self._simulate,
            threads=self._threads,
            config=config,
            cache=self._state_dir / ENGINES,
        )
