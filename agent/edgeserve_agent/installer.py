"""Carries out the effects of `deployment`: the one place that changes blobs, variants and `slots.json`.

Every effect may be cut off anywhere and done again. Fetch, stage, prepare and tidy may take long and run on the
worker thread; activate and revert are short and run on the deciding thread, which alone writes `slots.json`.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from edgeserve.contracts.device import DeviceFacts
from edgeserve.contracts.errors import DeviceError, EdgeServeError, InputError, TransientError
from edgeserve.contracts.limits import SERVING_LOAD_S, SERVING_START_S
from edgeserve.contracts.oci import Descriptor
from edgeserve.release.blobs import BlobFolder, digest_file
from edgeserve.release.documents import CONTRACT_FILE
from edgeserve.release.layout import Variant
from edgeserve.release.unpack import unpack_variant
from edgeserve_agent import control, slots
from edgeserve_agent.config import AgentConfig
from edgeserve_agent.deployment import (
    Activate,
    Effect,
    Event,
    EventKind,
    Fetch,
    Prepare,
    Revert,
    Stage,
    StartProbation,
    Tidy,
)
from edgeserve_agent.download import StoppedError
from edgeserve_agent.finalize import cache_folder, expectation, finalize, time_limit_s
from edgeserve_agent.journal import Entry, Journal
from edgeserve_agent.picking import pick
from edgeserve_agent.sandbox import TRIAL_COMMAND, TrialAnswer, TrialError, run_trial
from edgeserve_agent.slots import ModelSlots, Slot
from edgeserve_agent.source import RegistrySource
from edgeserve_agent.sweep import sweep
from edgeserve_agent.verify import Candidate, NoSource, Source, verify

LONG: Final = (Fetch, Stage, Prepare, Tidy)
"""Effects for the worker thread."""
_LOOK_S: Final = 0.1
_REVERT_LOAD_S: Final = 60.0
_log = logging.getLogger("edgeserve.agent")


class Installer:
    """The hands of the agent.

    Args:
        config: Of this device.
        facts: What variants are matched against.
        targets: Preferred targets, best first.
        journal: Gives the current journal; read from any thread.
        serving: Socket of the serving process; None when there is none and `slots.json` alone counts.
        on_effect: Called before and after every step that changes the disk or the serving process, with its name:
            the seam of the crash tests.
        restart_serving: Ends the serving process, which its supervisor then starts from `slots.json`.
        trial_command: Program that tries a candidate.
    """

    def __init__(
        self,
        *,
        config: AgentConfig,
        facts: DeviceFacts,
        targets: tuple[str, ...],
        journal: Callable[[], Journal],
        serving: Path | None,
        on_effect: Callable[[str], None] = lambda _step: None,
        restart_serving: Callable[[], None] = lambda: None,
        trial_command: tuple[str, ...] = TRIAL_COMMAND,
    ) -> None:
        self._config = config
        self._facts = facts
        self._targets = targets
        self._journal = journal
        self._serving = serving
        self._on_effect = on_effect
        self._restart_serving = restart_serving
        self._trial_command = trial_command
        self._state_dir = config.folder
        self.blobs = BlobFolder(self._state_dir / "blobs")
        self._partial = self._state_dir / "downloads"
        self.progress: dict[str, str] = {}
        """By model: how far a long step of its deployment is, for reports; read from any thread."""

    def perform(self, effect: Effect, entry: Entry, stop: threading.Event) -> Event | None:
        """Carry out one effect.

        Args:
            effect: What to do.
            entry: The deployment, as it was saved before.
            stop: Set when the deployment has ended meanwhile.

        Returns:
            What happened; None when there is nothing to decide.
        """
        name = type(effect).__name__.lower()
        self._on_effect(f"{name}:before")
        try:
            event = self._carry_out(effect, entry, stop)
        except StoppedError:
            return None
        except EdgeServeError as error:
            event = _failure(effect, error)
        except OSError as error:
            event = _failure(effect, DeviceError(f"{error.filename or 'the disk'}: {error.strerror or error}"))
        if event is not None and isinstance(effect, Tidy):
            _log.warning("tidying up: %s", event.reason)
            event = None
        self._on_effect(f"{name}:after")
        return event

    def _carry_out(self, effect: Effect, entry: Entry, stop: threading.Event) -> Event | None:
        match effect:
            case Fetch():
                return self._fetch(entry, stop)
            case Stage():
                return self._stage(entry, stop)
            case Prepare():
                return self._prepare(entry, stop)
            case Activate():
                return self._activate(entry)
            case Revert():
                return self._revert(entry)
            case StartProbation():
                return None  # it consists of being looked at
            case Tidy():
                self._tidy()
                return None

    def _fetch(self, entry: Entry, stop: threading.Event) -> Event:
        target = entry.record.target
        previous = slots.read(self._state_dir).of(target.model).previous
        if previous is not None and previous.release == target.release:
            with contextlib.suppress(EdgeServeError):
                kept = self._verified(entry, NoSource(), only=previous.variant)
                if self._is_intact(previous.folder(self._state_dir), kept.variant):
                    return Event(kind=EventKind.KEPT, variant=previous.variant)
        journal = self._journal()
        source = RegistrySource(self._config, entry, journal, blobs=self.blobs, partial=self._partial, stop=stop)
        try:
            candidate = self._verified(entry, source)
        except EdgeServeError as error:
            # What came over the network counts, whatever became of it.
            return replace(_failure(Fetch(), error), downloaded=source.downloaded)
        finally:
            source.close()
        return Event(kind=EventKind.FETCHED, variant=candidate.variant.digest, downloaded=source.downloaded)

    def _verified(self, entry: Entry, source: Source, *, only: str = "") -> Candidate:
        return verify(
            entry.record.target,
            blobs=self.blobs,
            source=source,
            limits=self._config.limits,
            facts=self._facts,
            targets=self._targets,
            only=only,
        )

    def _unpacked(self, entry: Entry, variant: Variant) -> Path:
        """The folder that holds the files of a variant, intact; it was verified just now."""
        folder = _slot(entry, variant.digest).folder(self._state_dir)
        if not self._is_intact(folder, variant):
            self._on_effect("unpack:before")
            if folder.exists():
                shutil.rmtree(folder)
            unpack_variant(self.blobs, variant, folder)
            self._on_effect("unpack:after")
        return folder

    def _is_intact(self, folder: Path, variant: Variant) -> bool:
        """Tell whether an unpacked variant has the bytes that its manifest names; its blobs were verified just now."""
        try:
            if digest_file(folder / CONTRACT_FILE)[0] != variant.manifest.config.digest:
                return False
            return all(self._is_blob(folder / title, blob) for title, blob in variant.files.items())
        except (EdgeServeError, OSError):
            return False

    def _is_blob(self, path: Path, blob: Descriptor) -> bool:
        if path.samefile(self.blobs.path(blob.digest)):
            return True  # a hard link
        return digest_file(path) == (blob.digest, blob.size)

    def _stage(self, entry: Entry, stop: threading.Event) -> Event:
        candidate = self._verified(entry, NoSource())

        def attempt(variant: Variant) -> TrialAnswer:
            with self._telling(entry, variant) as progress:
                return run_trial(
                    self._unpacked(entry, variant),
                    self.blobs.path(candidate.golden.digest),
                    simulate=self._config.device.simulate,
                    threads=self._config.serving.threads,
                    stop=stop,
                    timeout_s=time_limit_s(variant.contract),
                    cache=cache_folder(self._state_dir),
                    progress=progress,
                    command=self._trial_command,
                )

        _log.info(
            "%s %s: trying %d variants", entry.record.model, entry.record.target.version, len(candidate.alternatives)
        )
        picked, answer = pick(candidate.alternatives, attempt)
        return Event(kind=EventKind.TRIED, variant=picked.digest, latency_ms=answer.latency_ms)

    def _prepare(self, entry: Entry, stop: threading.Event) -> Event:
        candidate = self._verified(entry, NoSource(), only=entry.record.variant)
        folder = self._unpacked(entry, candidate.variant)
        with self._telling(entry, candidate.variant) as progress:
            finalize(
                folder,
                cache=cache_folder(self._state_dir),
                simulate=self._config.device.simulate,
                threads=self._config.serving.threads,
                stop=stop,
                progress=progress,
                command=self._trial_command,
            )
        if self._serving is not None:
            self._on_effect("load:before")
            self._load(_slot(entry, entry.record.variant), entry.record.model, folder, stop)
            self._on_effect("load:after")
        return Event(kind=EventKind.READY)

    @contextlib.contextmanager
    def _telling(self, entry: Entry, variant: Variant) -> Iterator[Callable[[str], None]]:
        """What to tell of a long step: it goes to the log, and into reports as long as the step lasts."""
        record = entry.record

        def tell(text: str) -> None:
            text += expectation(variant.contract)
            _log.info("%s %s: %s", record.model, record.target.version, text)
            self.progress[record.model] = text

        try:
            yield tell
        finally:
            self.progress.pop(record.model, None)

    def _load(self, slot: Slot, model: str, folder: Path, stop: threading.Event) -> None:
        """Load a variant beside what answers. A serving process that dies of it twice has said enough."""
        command = _load_command(model, slot, folder)
        for attempt in (1, 2):
            self._wait_for_serving(stop)
            try:
                self._call(command, control.Done, timeout_s=SERVING_LOAD_S)
                return
            except TransientError as error:
                if attempt == 2:
                    raise _LoadError(f"the server died or hung when it loaded the variant: {error.message}") from error
            except DeviceError as error:
                raise _LoadError(f"the server cannot load the variant: {error.message}", hint=error.hint) from error

    def _wait_for_serving(self, stop: threading.Event) -> None:
        deadline = time.monotonic() + SERVING_START_S
        while True:
            try:
                self._call(control.Status(), control.ServingStatus)
                return
            except TransientError:
                if time.monotonic() > deadline:
                    raise
            if stop.wait(_LOOK_S):
                raise StoppedError("the deployment has ended")

    def _activate(self, entry: Entry) -> Event:
        model = entry.record.model
        known = slots.read(self._state_dir)
        if (active := known.of(model).active) is None or active.release != entry.record.release:
            self._on_effect("switch:before")
            slot = _slot(entry, entry.record.variant)
            slots.write(self._state_dir, known.having(ModelSlots(model=model, active=slot, previous=active)))
            self._on_effect("switch:after")
        try:
            self._call(control.Activate(model=model, release=entry.record.release), control.Done)
        except TransientError as error:
            # It starts from slots.json; the probation finds out whether it answers.
            _log.info("activating %s: %s", entry.record.target.version, error.message)
        except DeviceError as error:
            # No fault of the release: the server has loaded it, but is no longer the process that did.
            raise DeviceError(f"the server cannot activate the variant: {error.message}") from error
        return Event(kind=EventKind.ACTIVATED)

    def _revert(self, entry: Entry) -> Event:
        model = entry.record.model
        known = slots.read(self._state_dir)
        before = entry.before or ModelSlots(model=model, active=known.of(model).previous)
        if known.of(model) != before:
            self._on_effect("unswitch:before")
            slots.write(self._state_dir, known.having(before))
            self._on_effect("unswitch:after")
        try:
            if before.active is not None:
                slot = before.active
                command = _load_command(model, slot, slot.folder(self._state_dir))
                self._call(command, control.Done, timeout_s=_REVERT_LOAD_S)
                self._call(control.Activate(model=model, release=slot.release), control.Done)
            else:
                self._call(control.Unload(model=model, release=entry.record.release), control.Done)
        except EdgeServeError as error:
            _log.warning("the server did not go back by itself (%s): it is started anew", error.message)
            self._restart_serving()
        return Event(kind=EventKind.RESTORED)

    def _call(self, command: control.Command, answer: type[control.A], *, timeout_s: float = 10.0) -> control.A | None:
        if self._serving is None:
            return None
        return control.call(self._serving, command, answer, timeout_s=timeout_s)

    def _tidy(self) -> None:
        """Drop what no slot and no deployment refers to."""
        known = slots.read(self._state_dir)
        busy = {entry.record.model for entry in self._journal().in_flight()}
        with contextlib.suppress(TransientError):
            status = self._call(control.Status(), control.ServingStatus)
            for one in status.releases if status else ():
                if one.model not in busy and not one.active:
                    self._call(control.Unload(model=one.model, release=one.release), control.Done)
        if busy:
            return  # the last one to end sweeps the disk
        keep = [slot for model in known.models for slot in (model.active, model.previous) if slot is not None]
        sweep(self._state_dir, self.blobs, self._partial, keep, self._on_effect)


class _LoadError(DeviceError):
    """The serving process cannot load the candidate."""


def _slot(entry: Entry, variant: str) -> Slot:
    target = entry.record.target
    return Slot(release=target.release, version=target.version, variant=variant, counter=target.counter)


def _load_command(model: str, slot: Slot, folder: Path) -> control.Load:
    return control.Load(
        model=model,
        version=slot.version,
        release=slot.release,
        variant=slot.variant,
        folder=str(folder),
        counter=slot.counter,
    )


def _failure(effect: Effect, error: EdgeServeError) -> Event:
    if isinstance(effect, Revert):
        return Event(kind=EventKind.RESUMED, reason=error.message)
    reason = f"{error.message} ({error.hint})" if error.hint else error.message
    # What the device lacks, a network that fails or a registry that lies is no fault of the release.
    blame = isinstance(error, TrialError | _LoadError) or type(error) is InputError
    return Event(kind=EventKind.FAILED, reason=reason, blame=blame)
