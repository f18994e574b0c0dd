"""The models of a server whose users say what it serves: load, unload, reload, labels.

A model changes in one step of the event loop, after all that is new of it has been loaded and has run; until then, and
when any of it fails, what answered before goes on. Each request is answered by the version that it began with.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Collection, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import msgspec

from edgeserve.contracts.errors import ConflictError, DeviceError, EdgeServeError, NotFoundError
from edgeserve.contracts.model_config import ModelConfig, VersionPolicy
from edgeserve.contracts.names import served_name
from edgeserve_agent.serving import uploads
from edgeserve_agent.serving.catalog import State
from edgeserve_agent.serving.dataplane import DataPlane
from edgeserve_agent.serving.model_folder import ModelFolders
from edgeserve_agent.serving.model_labels import Label, ModelLabels, placed
from edgeserve_agent.serving.model_source import FoundModel, ModelSource, OpenOptions
from edgeserve_agent.serving.polling import Change, due
from edgeserve_agent.serving.served import ServedRelease

_LOG: Final = logging.getLogger(__name__)
_ORDER: Final = {"READY": 0, "LOADING": 1, "UNLOADING": 2, "UNAVAILABLE": 3}
_UNLOADED: Final = "unloaded"
"""Triton's word."""


@dataclass(slots=True)
class _Entry:
    """What the repository knows of one model."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while the model changes."""
    served: FoundModel | None = None
    """What answers."""
    unavailable: dict[str, str] = field(default_factory=dict)
    """Version, or empty for the whole model -> why it does not answer."""
    fingerprint: str = ""
    """Of the files that were tried last."""
    by_hand: bool = False
    """A request brought its configuration or files, or unloaded it: changes on disk do not count."""
    upload: Path | None = None


class Repository:
    """`RepositoryControl` of a server without a fleet. Lives on the event loop.

    Args:
        plane: Where the models answer.
        source: Where they come from.
        options: What the server was told; uploaded files lie in its scratch folder.
        labels: Where labels stand; without it they are forgotten with the process.
    """

    def __init__(
        self, plane: DataPlane, source: ModelSource, *, options: OpenOptions, labels: ModelLabels | None = None
    ) -> None:
        self._plane = plane
        self._source = source
        self._options = options
        self._labels = labels or ModelLabels(None)
        self._entries: dict[str, _Entry] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    def expect(self, models: Collection[str] | None = None) -> list[str]:
        """Say that models are to be loaded: the server is not ready before each answers. Reads the disk.

        Args:
            models: Their names; None = all that there are.

        Returns:
            Their names.

        Raises:
            EdgeServeError: The source cannot be read.
        """
        names = self._source.names() if models is None else sorted(set(models))
        for name in names:
            self._plane.expect(served_name(name))
        return names

    async def start(self, models: Collection[str] | None = None) -> dict[str, EdgeServeError]:
        """Load models; `expect` them before the server listens, or it looks ready for a moment.

        Args:
            models: Their names; None = all that there are.

        Returns:
            Those that do not answer, or not with every version, and why.

        Raises:
            EdgeServeError: The source cannot be read.
        """
        names = self.expect(models)
        outcomes = await asyncio.gather(*(self.load(name) for name in names), return_exceptions=True)
        failed: dict[str, EdgeServeError] = {}
        for name, outcome in zip(names, outcomes, strict=True):
            if isinstance(outcome, Exception):
                failed[name] = error = _reported(name, outcome)
                if not self._plane.is_active(name):
                    self._plane.give_up(name, error.message)
            elif outcome is not None:
                raise outcome
        return failed

    async def close(self) -> None:
        """Look at the folder no more. The data plane unloads the models."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def index(self, *, ready_only: bool = False) -> list[State]:
        """Every version of every model; see `RepositoryControl.index`."""
        states = [state for state in self._plane.states() if state.version or state.model not in self._entries]
        found: dict[tuple[str, str], State] = {}
        for state in sorted(states, key=lambda state: _ORDER[state.state]):
            found.setdefault((state.model, state.version), state)
        for name, entry in self._entries.items():
            for version, reason in entry.unavailable.items():
                # One that answers says what is wrong with the one that was to take its place.
                state = found.get((name, version)) or State(model=name, version=version, state="UNAVAILABLE")
                found[name, version] = replace(state, reason=reason)
        shown = {model for model, _ in found}
        for name in {*self._source.names(), *self._entries} - shown:
            is_loading = name in self._entries and self._entries[name].lock.locked()
            word, reason = ("LOADING", "") if is_loading else ("UNAVAILABLE", "not loaded")
            found[name, ""] = State(model=name, version="", state=word, reason=reason)
        kept = [state for state in found.values() if not ready_only or state.state == "READY"]
        return sorted(kept, key=lambda state: (state.model, len(state.version), state.version))

    # Loading -------------------------------------------------------------------------------------

    async def load(
        self, model: str, *, config: ModelConfig | None = None, files: Mapping[str, bytes] | None = None
    ) -> None:
        """Load a model, or take up what has changed of it; see `RepositoryControl.load`."""
        served_name(model)
        if files:
            uploads.check(files, has_config=config is not None)
        async with self._locked(model) as entry:
            await self._load(model, entry, config, files)

    async def _load(
        self, model: str, entry: _Entry, config: ModelConfig | None, files: Mapping[str, bytes] | None
    ) -> None:
        upload = await asyncio.to_thread(uploads.write, self._options.scratch, model, files) if files else None
        before = entry.upload
        try:
            await self._take_up(model, entry, config, upload)
        finally:
            await asyncio.to_thread(uploads.remove, before if entry.upload is upload else upload)

    async def _take_up(self, model: str, entry: _Entry, config: ModelConfig | None, upload: Path | None) -> None:
        source = self._source if upload is None else ModelFolders(upload, self._options)
        try:
            found = await asyncio.to_thread(source.find, model, config=config)
        except EdgeServeError as error:
            if config is None:
                entry.fingerprint = await asyncio.to_thread(source.fingerprint, model)
            entry.unavailable = {**entry.unavailable, "": error.message}
            raise
        if config is None:
            entry.fingerprint = found.fingerprint
        # Files of an upload go with it, so nothing is kept that was opened from one.
        on_disk = upload is None and entry.upload is None
        prepared, failures = await self._prepare(found, entry.served if on_disk else None)
        answering = tuple(version for version in found.versions if version.identity.version not in failures)
        try:
            if failures and (entry.served is not None or not answering):
                what = "what answered before still does" if entry.served is not None else ""
                raise _load_error(model, failures, what)
            labels = placed(
                {label: str(number) for label, number in found.config.version_labels.items()},
                self._labels.of(model),
                {str(version.number) for version in answering},
            )
            self._labels.update(model, labels)
        except EdgeServeError as error:
            for release in prepared:
                self._plane.discard(release)
            reasons = {version: failure.message for version, failure in failures.items()}
            entry.unavailable = {**entry.unavailable, **(reasons or {"": error.message})}
            raise
        before = {version.identity.version for version in entry.served.versions} if entry.served else set()
        entry.served = replace(found, versions=answering)
        entry.upload = upload
        entry.by_hand = config is not None
        entry.unavailable = {
            **dict.fromkeys(before - {version.identity.version for version in answering}, _UNLOADED),
            **{version: failure.message for version, failure in failures.items()},
        }
        self._switch(entry.served, prepared, labels)
        if failures:
            raise _load_error(
                model, failures, f"{', '.join(version.identity.version for version in answering)} answers"
            )

    async def _prepare(
        self, found: FoundModel, served: FoundModel | None
    ) -> tuple[list[ServedRelease], dict[str, EdgeServeError]]:
        """Load what is not loaded as it is to be: the releases, and why versions could not be."""
        loaded = {release.identity.release for release in self._plane.loaded(found.name)}
        same = (
            served is not None and served.beside == found.beside and _opening(served.config) == _opening(found.config)
        )
        prepared: list[ServedRelease] = []
        failures: dict[str, EdgeServeError] = {}
        try:
            for version in found.versions:
                if same and version.identity.release in loaded:
                    continue
                try:
                    prepared.append(await self._plane.prepare(version.identity, version.open))
                except EdgeServeError as error:
                    failures[version.identity.version] = error
        except BaseException:
            for release in prepared:
                self._plane.discard(release)
            raise
        return prepared, failures

    def _switch(self, served: FoundModel, prepared: list[ServedRelease], labels: Mapping[str, Label]) -> None:
        """Let what was prepared answer, and drop what is not served any more: one step for all requests."""
        plane, name = self._plane, served.name
        for release in prepared:
            plane.put(release)
        newest = served.versions[-1].identity.release
        if not plane.is_active(name) or plane.find(name).identity.release != newest:
            plane.activate(name, newest)
        releases = {str(version.number): version.identity.release for version in served.versions}
        for label in plane.labels(name).keys() | labels.keys():
            plane.set_label(name, label, releases.get(labels[label].stands_for) if label in labels else None)
        for release in plane.loaded(name):
            if release.identity.release in releases.values():
                release.config = served.config
            else:
                plane.unload(name, release.identity.release)

    async def unload(self, model: str, *, unload_dependents: bool = False) -> None:
        """Let a model answer no more; see `RepositoryControl.unload`."""
        del unload_dependents  # no model uses another
        served_name(model)
        async with self._locked(model) as entry:
            if entry.served is None and not entry.unavailable and not await self._is_there(model):
                raise NotFoundError(f"there is no model {model!r}", hint="the repository index lists what there is")
            entry.by_hand = True
            await self._unload(model, entry)

    async def _unload(self, model: str, entry: _Entry) -> None:
        answered = [version.identity.version for version in entry.served.versions] if entry.served else []
        versions = answered or list(entry.unavailable) or [""]
        entry.served = None
        entry.unavailable = dict.fromkeys(versions, _UNLOADED)
        for label in self._plane.labels(model):
            self._plane.set_label(model, label, None)
        for release in self._plane.loaded(model):
            self._plane.unload(model, release.identity.release)
        self._plane.forget(model)
        upload, entry.upload = entry.upload, None
        await asyncio.to_thread(uploads.remove, upload)

    @contextlib.asynccontextmanager
    async def _locked(self, model: str) -> AsyncIterator[_Entry]:
        """The entry of a model while nobody else changes it; one of a model that is nowhere is gone afterwards."""
        while True:
            entry = self._entries.setdefault(model, _Entry())
            await entry.lock.acquire()
            if self._entries.get(model) is entry:
                break
            entry.lock.release()
        try:
            yield entry
        finally:
            try:
                if entry.served is None and not await self._is_there(model):
                    del self._entries[model]
            finally:
                entry.lock.release()

    async def _is_there(self, model: str) -> bool:
        return bool(await asyncio.to_thread(self._source.fingerprint, model))

    # Labels --------------------------------------------------------------------------------------

    def set_label(self, model: str, label: str, version: int | None) -> None:
        """Let a label stand for a version that answers, or, given None, for nothing; kept over restarts.

        Raises:
            InputError: It cannot be a label, or there are too many.
            NotFoundError: No such model or version answers; the label stays where it was.
            ConflictError: The model's configuration places it.
            DeviceError: It could not be written; the label stays where it was.
        """
        entry = self._entries.get(model)
        if entry is None or entry.served is None:
            raise NotFoundError(f"model {model[:80]!r} is not loaded", hint="load it first")
        if label in entry.served.config.version_labels:
            raise ConflictError(
                f"label {label!r} of model {model!r} is placed by the model's configuration",
                hint="change version_labels there, and load the model again",
            )
        labels = dict(self._labels.of(model))
        labels.pop(label, None)
        release = None
        if version is not None:
            release = next((one.identity.release for one in entry.served.versions if one.number == version), None)
            if release is None:
                raise NotFoundError(
                    f"version {version} of model {model!r} does not answer", hint="a label moves to ready versions only"
                )
            labels[label] = Label(stands_for=str(version))
        self._labels.update(model, labels)
        self._plane.set_label(model, label, release)

    # Polling -------------------------------------------------------------------------------------

    def poll(self, seconds: float, *, new_models: bool) -> None:
        """Look at the folder from now on, and take up what has changed and is at rest.

        Args:
            seconds: Between two looks.
            new_models: Also load models that were never asked for.
        """
        self._spawn(self._poll(seconds, new_models=new_models))

    async def _poll(self, seconds: float, *, new_models: bool) -> None:
        before: dict[str, str] = {}
        while True:
            await asyncio.sleep(seconds)
            try:
                now = await asyncio.to_thread(self._fingerprints)
            except (EdgeServeError, OSError) as error:
                _LOG.warning("looking for changes: %s", error)
                continue
            own = {name: entry for name, entry in self._entries.items() if not entry.by_hand}
            seen = {name: now[name] for name in now if name in own or (new_models and name not in self._entries)}
            for name, change in due({name: entry.fingerprint for name, entry in own.items()}, before, seen).items():
                if name not in own or not own[name].lock.locked():
                    self._spawn(self._change(name, change, now.get(name, "")))
            before = now

    async def _change(self, name: str, change: Change, fingerprint: str) -> None:
        """Take up what a look at the folder has found, unless a request came before it: what it said holds."""
        async with self._locked(name) as entry:
            if entry.by_hand or (change is Change.LOAD and entry.fingerprint == fingerprint):
                return
            _LOG.info("model %s has changed: %s", name, change.value)
            try:
                if change is Change.LOAD:
                    await self._load(name, entry, None, None)
                else:
                    await self._unload(name, entry)
            except Exception as error:  # noqa: BLE001 - it is logged; the other models are looked after all the same
                _reported(name, error)

    def _fingerprints(self) -> dict[str, str]:
        found = {name: self._source.fingerprint(name) for name in self._source.names()}
        return {name: fingerprint for name, fingerprint in found.items() if fingerprint}

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _LOG.error("looking after the models failed", exc_info=task.exception())


def _reported(model: str, error: Exception) -> EdgeServeError:
    """Log why a model is not served as it is to be."""
    if isinstance(error, EdgeServeError):
        _LOG.error("%s", error.message)
        return error
    _LOG.error("loading %s failed", model, exc_info=error)
    return DeviceError(f"loading {model} failed: {error}")


def _opening(config: ModelConfig) -> ModelConfig:
    """The part of a configuration that a loaded model cannot take over."""
    return msgspec.structs.replace(config, version_policy=VersionPolicy(), version_labels={})


def _load_error(model: str, failures: Mapping[str, EdgeServeError], what: str) -> EdgeServeError:
    first = next(iter(failures.values()))
    reasons = "; ".join(f"version {version}: {error.message}" for version, error in failures.items())
    return type(first)(f"model {model!r}: {reasons}" + (f"; {what}" if what else ""), hint=first.hint)
