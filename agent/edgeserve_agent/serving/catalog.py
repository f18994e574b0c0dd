"""Which releases are loaded, by which names they are found, and the changing of it. It knows no protocol.

All methods run on the event loop; only loading and closing run on a thread, one after the other, in the order in which
they were asked for. What becomes of a release when it is asked for twice:

    asked for   absent     being loaded                   being prepared                 loaded
    load        loads      waits for that load            loads, too                     nothing
    prepare     prepares   prepares, too                  prepares, too                  prepares
    put         lets in    lets in, and the load ends     lets in                        takes its place
                           with that, too
    unload      nothing    the load fails at once         the preparing fails at once    drops it

Whatever was opened and is not let in is closed. `close` unloads everything; what is put after it is dropped.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from edgeserve.contracts.errors import DeviceError, NotFoundError, TransientError
from edgeserve.contracts.limits import MAX_KEPT_COUNTERS
from edgeserve.contracts.names import label_name
from edgeserve_agent.serving.counters import Counters
from edgeserve_agent.serving.loader import Loader, Loading
from edgeserve_agent.serving.opened import Opened, Warm
from edgeserve_agent.serving.scheduling.base import Finish
from edgeserve_agent.serving.scheduling.build import SchedulerBuilder
from edgeserve_agent.serving.served import Identity, ServedRelease

_LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Where one version of a model stands, in the words of Triton's repository index."""

    model: str
    version: str
    state: str
    """READY, LOADING, UNLOADING or UNAVAILABLE."""
    reason: str = ""


class Catalog:
    """Loads, activates, labels and unloads releases.

    Args:
        loop: Where it lives.
        workers: Calls of one model that run side by side, unless its configuration says another number.
        finish: Takes what came of each call of a model.
        resources: How much there is of the resources that models' configurations name; what is not named is as much as
            the neediest asks for.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        workers: int,
        finish: Finish,
        resources: Mapping[str, int] | None = None,
    ) -> None:
        self._loop = loop
        self.schedulers = SchedulerBuilder(loop, instances=workers, finish=finish, resources=resources)
        self._loader = Loader(loop, self._release)
        self._loaded: dict[tuple[str, str], ServedRelease] = {}
        self._undecided: set[ServedRelease] = set()
        """Prepared, and neither put nor discarded."""
        self._active: dict[str, ServedRelease] = {}
        self._labels: dict[tuple[str, str], str] = {}
        """(model, label) -> release; one that is not loaded stands for nothing until it is."""
        self._expected: dict[str, str] = {}
        """Models that this server should serve -> why one is not ready."""
        self._retiring: list[ServedRelease] = []
        self._counters: dict[tuple[str, str], Counters] = {}
        self._closing = False

    # What is served ----------------------------------------------------------------------------

    def expect(self, model: str) -> None:
        """Say that `model` is to be served: the server is not ready before it is."""
        self._expected.setdefault(model, "it is being loaded")

    def give_up(self, model: str, reason: str) -> None:
        """Say why an expected model is not served."""
        self._expected[model] = reason

    def models(self) -> list[str]:
        """Names of the models that are served or expected."""
        return sorted({*self._expected, *self._active})

    def releases(self) -> Iterator[tuple[ServedRelease, bool]]:
        """Everything that is loaded, and whether it is active."""
        for served in self._loaded.values():
            yield served, self._active.get(served.identity.model) is served

    def counters(self) -> Sequence[Counters]:
        """Counters of the releases that were loaded in this process; the oldest of very many are forgotten."""
        return list(self._counters.values())

    def is_active(self, model: str) -> bool:
        """Whether a release of `model` answers."""
        return model in self._active

    def ready(self) -> bool:
        """Whether every model that should be served is served."""
        return all(model in self._active for model in self._expected)

    def find(self, model: str, version: str = "", *, label: str = "") -> ServedRelease:
        """The release that answers for `model`: the active one, or any loaded one with the version or label asked for.

        Args:
            model: Its name.
            version: A release's version, or its counter where no version is called that; empty = the active one.
            label: `stable` is the active one, `candidate` the other one, the rest is what `set_label` said.

        Raises:
            NotFoundError: No such model, version or label.
            TransientError: It is being loaded, or could not be.
        """
        active = self._active.get(model)
        if active is not None and not label and version in ("", active.identity.version):
            return active
        loaded = self.loaded(model)
        if label:
            return self._labelled(model, label, loaded)
        if version:
            for served in reversed(loaded):
                if served.identity.version == version:
                    return served
            for served in reversed(loaded):
                if version == str(served.number):
                    return served
        if active is None and (loaded or model in self._expected or self._loader.wanted(model)):
            raise TransientError(f"model {model!r} is not ready: {self._expected.get(model, 'nothing is active')}")
        if active is not None or loaded:
            known = ", ".join(served.identity.version for served in loaded)
            raise NotFoundError(f"model {model!r} has no version {version[:80]!r}; loaded: {known}")
        raise NotFoundError(f"unknown model {model[:80]!r}", hint="GET /v2/models lists what is served")

    def _labelled(self, model: str, label: str, loaded: Sequence[ServedRelease]) -> ServedRelease:
        release = self._labels.get((model, label))
        for served in reversed(loaded):
            is_active = self._active.get(model) is served
            implied = (label == "stable" and is_active) or (label == "candidate" and not is_active)
            if served.identity.release == release or (release is None and implied):
                return served
        if release is not None:
            raise TransientError(f"label {label[:80]!r} of model {model!r} stands for a release that is not loaded")
        if not loaded:
            return self.find(model)  # says why there is none
        known = ", ".join(sorted({"stable", *self.labels(model)}))
        raise NotFoundError(f"model {model!r} has no label {label[:80]!r}; there are: {known}")

    def labels(self, model: str) -> dict[str, str]:
        """Labels that were set -> digest of the release."""
        return {label: release for (name, label), release in self._labels.items() if name == model}

    def set_label(self, model: str, label: str, release: str | None) -> None:
        """Let `label` stand for a release that is loaded, or, given None, for nothing.

        Raises:
            InputError: It cannot be a label.
            NotFoundError: The release is not loaded; the label stays where it was.
        """
        label_name(label)
        if release is None:
            self._labels.pop((model, label), None)
        elif (model, release) in self._loaded:
            self._labels[model, label] = release
        else:
            raise NotFoundError(f"{model} {release} is not loaded", hint="a label moves to ready versions only")

    def states(self) -> list[State]:
        """Every version that is loaded, being loaded or could not be, by model and version."""
        found = [
            State(model=served.identity.model, version=served.identity.version, state="READY")
            for served in self._loaded.values()
        ]
        found += [
            State(model=model, version=version, state="LOADING")
            for model, version in {(one.identity.model, one.identity.version) for one in self._loader.wanted()}
        ]
        shown = {state.model for state in found}
        found += [
            State(model=model, version="", state="UNAVAILABLE", reason=reason)
            for model, reason in self._expected.items()
            if model not in shown
        ]
        found += [
            State(model=served.identity.model, version=served.identity.version, state="UNLOADING")
            for served in self._retiring
        ]
        return sorted(found, key=lambda state: (state.model, state.version))

    def loaded(self, model: str) -> list[ServedRelease]:
        """Loaded releases of `model`, oldest first."""
        return [served for (name, _), served in self._loaded.items() if name == model]

    # Changing it -------------------------------------------------------------------------------

    async def load(self, identity: Identity, opener: Callable[[], Opened]) -> None:
        """Open and warm up a release beside what answers. One that is loaded or loading already is no error.

        It goes on when whoever asked has gone.

        Raises:
            EdgeServeError: It could not be opened or does not run, or was unloaded meanwhile; nothing changed.
        """
        model, release = identity.model, identity.release
        if (model, release) in self._loaded:
            return
        under_way = next((one for one in self._loader.wanted(model, release) if one.put), None)
        await asyncio.shield((under_way or self._begin(identity, opener, put=True)).future)

    async def prepare(self, identity: Identity, opener: Callable[[], Opened]) -> ServedRelease:
        """Open and warm up a release that nobody can ask for yet, beside one of the same name if there is one.

        `put` lets it in, `discard` drops it. When whoever asked has gone, it is dropped.

        Raises:
            EdgeServeError: It could not be opened or does not run, or was unloaded meanwhile; nothing changed.
        """
        preparing = self._begin(identity, opener, put=False).future
        try:
            return await preparing
        except asyncio.CancelledError:
            if not preparing.cancelled() and preparing.exception() is None:  # ready in the same moment
                self.discard(preparing.result())
            raise

    def put(self, served: ServedRelease) -> None:
        """Let a prepared release in; it takes over what one of the same name was. Requests in flight finish on that."""
        self._undecided.discard(served)
        if self._closing:
            self._retire(served)
            return
        model = served.identity.model
        key = (model, served.identity.release)
        before = self._loaded.get(key)
        self._loaded[key] = served
        if before is not None:
            if self._active.get(model) is before:
                self._active[model] = served
            self._retire(before)

    def discard(self, served: ServedRelease) -> None:
        """Drop a prepared release that was not let in."""
        self._undecided.discard(served)
        self._retire(served)

    def _begin(self, identity: Identity, opener: Callable[[], Opened], *, put: bool) -> Loading:
        if self._closing:
            raise DeviceError("the server is stopping")
        return self._loader.begin(identity, opener, put=put)

    def _release(self, loading: Loading, warm: Warm) -> ServedRelease:
        identity, model = loading.identity, warm.opened.model
        loaded = self._loaded.get((identity.model, identity.release))
        if loading.put and loaded is not None:  # it was put meanwhile
            self._loader.close_model(model)
            return loaded
        if warm.opened.variant:
            identity = replace(identity, variant=warm.opened.variant)
        served = ServedRelease(identity, warm, self._counters_of(identity))
        served.scheduler = self.schedulers.build(served)
        self._undecided.add(served)
        if loading.put:
            self.put(served)
        name = f"{identity.model} {identity.version}"
        _LOG.info("loaded %s on %s, %.0f us a call", name, model.executing_device, warm.call_us)
        return served

    def activate(self, model: str, release: str) -> None:
        """Let a loaded release answer from the next request on.

        Raises:
            NotFoundError: It is not loaded.
        """
        served = self._loaded.get((model, release))
        if served is None:
            raise NotFoundError(f"{model} {release} is not loaded", hint="load it first")
        self.expect(model)
        self._active[model] = served
        _LOG.info("%s %s answers", model, served.identity.version)

    def unload(self, model: str, release: str) -> None:
        """Drop a release when its last request is done. What is not there is no error."""
        self._loader.drop(model, release)
        served = self._loaded.pop((model, release), None)
        if served is None:
            return
        if self._active.get(model) is served:
            del self._active[model]
        self.forget(model)
        self._retire(served)

    def forget(self, model: str) -> None:
        """Expect a model no more, unless a release of it is loaded."""
        if not self.loaded(model):
            self._expected.pop(model, None)

    def _retire(self, served: ServedRelease) -> None:
        served.retired = True
        self._retiring.append(served)
        self._close_if_done(served)

    def close(self) -> None:
        """Unload everything, and load nothing any more."""
        self._closing = True
        loading = [(one.identity.model, one.identity.release) for one in self._loader.wanted()]
        for model, release in {*self._loaded, *loading}:
            self.unload(model, release)
        self._end_if_done()

    def _close_if_done(self, served: ServedRelease) -> None:
        if served.retired and not served.in_flight:
            self._retiring.remove(served)
            served.scheduler.close()
            self._loader.close_model(served.model)
            self._end_if_done()

    def _end_if_done(self) -> None:
        """End the thread that closes models when none is left that it will have to close."""
        if self._closing and not self._retiring and not self._undecided:
            self._loader.close()

    def _counters_of(self, identity: Identity) -> Counters:
        key = (identity.model, identity.release)
        if key not in self._counters and len(self._counters) >= MAX_KEPT_COUNTERS:
            oldest = next((known for known in self._counters if known not in self._loaded), None)
            if oldest is not None:
                del self._counters[oldest]
        return self._counters.setdefault(
            key, Counters(model=identity.model, version=identity.version, release=identity.release)
        )
