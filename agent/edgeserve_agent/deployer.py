"""Decides, saves, then acts: the shell around `deployment.step`. Lives on one thread.

A step is saved before its effect begins. A step that cannot be saved (a full disk) is not made; it is held and tried
again, so that what is on disk is never behind what was done.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import msgspec

from edgeserve.contracts.desired import Generation, Halt, ModelTarget
from edgeserve.contracts.errors import ConflictError, DeviceError
from edgeserve.contracts.reported import DeploymentState
from edgeserve_agent import slots
from edgeserve_agent.config import AgentConfig
from edgeserve_agent.deployment import Effect, Event, EventKind, Record, restart, step
from edgeserve_agent.installer import LONG, Installer
from edgeserve_agent.journal import Entry, Journal, JournalFile

RETRY_S: Final = 5.0
_log = logging.getLogger("edgeserve.agent")


@dataclass(frozen=True, kw_only=True)
class Job:
    """A long effect for the worker thread."""

    effect: Effect
    entry: Entry
    stop: threading.Event = field(default_factory=threading.Event)
    """Set when its deployment ends meanwhile; its outcome is then ignored."""


@dataclass(frozen=True, kw_only=True)
class _Later:
    at: float
    model: str
    release: str
    event: Event


class Deployer:
    """All deployments of a device.

    Args:
        config: Of the device.
        journal: What is remembered.
        installer: Carries out the effects.
        submit: Takes the long ones; their outcome comes back through `finished`.
    """

    def __init__(
        self, *, config: AgentConfig, journal: JournalFile, installer: Installer, submit: Callable[[Job], None]
    ) -> None:
        self._config = config
        self._journal = journal
        self._installer = installer
        self._submit = submit
        self._jobs: dict[str, Job] = {}
        self._later: dict[tuple[str, EventKind], _Later] = {}
        self._reconcile_at = 0.0
        self.problem = ""
        """Why the latest step could not be saved; empty when it was."""

    def restart(self) -> None:
        """Take up what an earlier life of the agent left. Before the serving process is started."""
        known = slots.read(self._config.folder)
        for entry in self._journal.value.in_flight():
            active = known.of(entry.record.model).active
            event = restart(entry.record, active.release if active else "")
            if event is not None:
                _log.info("%s: found %s, %s", entry.record.model, entry.record.state.value, event.kind.value)
                self.happened(entry.record.model, event)
        if self._journal.value.halt is not None:
            self._drop_halted()
        self.reconcile()

    def reconcile(self) -> None:
        """Begin what the desired document wants and no deployment of its generation has taken up. Idempotent."""
        desired = self._journal.value.desired
        for target in desired.models if desired else ():
            assert desired is not None
            entry = self._journal.value.entry(target.model)
            if entry is None or entry.record.gen != desired.gen:
                self.order(target, desired.gen, desired.registry, force=target.release in desired.force)

    def order(self, target: ModelTarget, gen: Generation, registry: str, *, force: bool = False) -> None:
        """Want a release. One that is under way for another release is taken back first."""
        entry = self._journal.value.entry(target.model)
        if entry is not None and entry.record.in_flight:
            if entry.record.state is DeploymentState.REVERTING:
                return  # it is not back yet; `reconcile` comes here again
            if entry.record.release == target.release:
                self._renew(entry, target, gen)
                return
            self.happened(target.model, Event(kind=EventKind.SUPERSEDED, reason=f"superseded by generation {gen}"))
            entry = self._journal.value.entry(target.model)
            if entry is not None and entry.record.in_flight:
                return  # as above
        active = slots.read(self._config.folder).of(target.model).active
        event = self._first_event(target, active.release if active else "", force=force)
        if entry is not None and entry.record.release == target.release and not force:
            repeated = event.kind is EventKind.REFUSED and entry.record.state is not DeploymentState.COMMITTED
            done = event.kind is EventKind.ALREADY and entry.record.state is DeploymentState.COMMITTED
            if (repeated or done) and entry.record.target.rollout == target.rollout:
                self._renew(entry, target, gen)
                return
        record = Record(
            target=target,
            gen=gen,
            probation_s=max(target.probation_s, self._config.limits.minimum_probation_s),
            previous=active.release if active else "",
        )
        self._advance(Entry(record=record, registry=registry), event, forgive=force)

    def happened(self, model: str, event: Event) -> None:
        """Move the deployment of `model` on; an event that its state does not allow any more is dropped."""
        entry = self._journal.value.entry(model)
        if entry is not None:
            self._advance(entry, event)

    def finished(self, job: Job, event: Event | None) -> None:
        """The outcome of a long effect."""
        model = job.entry.record.model
        if self._jobs.get(model) is job:
            del self._jobs[model]
            if event is not None:
                self.happened(model, event)
        elif event is not None and event.downloaded:
            self._save(self._journal.value.with_download(event.downloaded, time.time()))

    def halt(self, halt: Halt) -> None:
        """Obey a new halt list.

        Raises:
            DeviceError: It could not be saved.
        """
        self._journal.save(msgspec.structs.replace(self._journal.value, halt=halt))
        self._drop_halted()

    def serving_died(self, how: str) -> None:
        """The serving process ended by itself: releases on probation are the first suspects."""
        for entry in self.on_probation():
            reason = f"in probation: the server {how}"
            self.happened(entry.record.model, Event(kind=EventKind.FAILED, reason=reason, blame=True))

    def on_probation(self) -> tuple[Entry, ...]:
        """Deployments to be watched."""
        entries = self._journal.value.in_flight()
        return tuple(entry for entry in entries if entry.record.state is DeploymentState.PROBATION)

    def tick(self, now: float) -> None:
        """Try again what had to wait.

        Args:
            now: Monotonic seconds.
        """
        for key, later in tuple(self._later.items()):
            if later.at <= now:
                del self._later[key]
                entry = self._journal.value.entry(later.model)
                if entry is not None and entry.record.release == later.release:
                    self._advance(entry, later.event)
        if now >= self._reconcile_at:
            self.reconcile()

    def stop(self) -> None:
        """End what is under way; the next start resumes it."""
        for job in self._jobs.values():
            job.stop.set()
        self._jobs.clear()

    def _first_event(self, target: ModelTarget, active: str, *, force: bool) -> Event:
        journal = self._journal.value
        if active == target.release:
            return Event(kind=EventKind.ALREADY)
        if journal.is_halted(target.release, target.rollout):
            return Event(kind=EventKind.REFUSED, reason="halted by the fleet")
        if target.release in journal.quarantined and not force:
            return Event(kind=EventKind.REFUSED, reason="quarantined: it failed on this device before")
        return Event(kind=EventKind.ORDERED)

    def _drop_halted(self) -> None:
        journal = self._journal.value
        for entry in journal.in_flight():
            stays = entry.record.state is DeploymentState.REVERTING
            if not stays and journal.is_halted(entry.record.release, entry.record.target.rollout):
                self.happened(entry.record.model, Event(kind=EventKind.HALTED, reason="halted by the fleet"))

    def _renew(self, entry: Entry, target: ModelTarget, gen: Generation) -> None:
        """The same release is wanted again: note by whom."""
        record = msgspec.structs.replace(entry.record, target=target, gen=gen)
        self._save(self._journal.value.with_entry(msgspec.structs.replace(entry, record=record)))

    def _advance(self, entry: Entry, event: Event, *, forgive: bool = False) -> None:
        model = entry.record.model
        try:
            record, effects = step(entry.record, event)
        except ConflictError as error:
            _log.info("%s: %s", model, error.message)
            return
        before = entry.before
        if record.state is DeploymentState.ACTIVATING and entry.record.state is DeploymentState.STAGED:
            before = slots.read(self._config.folder).of(model)
        changed = Entry(record=record, registry=entry.registry, before=before)
        journal = self._journal.value
        if forgive:
            journal = journal.without_quarantine(record.release)
        journal = journal.with_entry(changed)
        if event.downloaded:
            journal = journal.with_download(event.downloaded, time.time())
        if record.state is not entry.record.state:
            journal = journal.with_event(self._config.device.id, record)
        if not self._save(journal):
            if self._journal.value.entry(model) is not None:  # a first order is found again by `reconcile`
                self._try_later(entry, event)
            return
        _log.info("%s %s: %s %s", model, record.target.version, record.state.value, record.reason)
        if (job := self._jobs.pop(model, None)) is not None:
            job.stop.set()
        for effect in effects:
            self._begin(effect, changed)

    def _begin(self, effect: Effect, entry: Entry) -> None:
        job = Job(effect=effect, entry=entry)
        if isinstance(effect, LONG):
            if entry.record.in_flight:
                self._jobs[entry.record.model] = job
            self._submit(job)
            return
        event = self._installer.perform(effect, entry, job.stop)
        if event is None:
            return
        if event.kind is EventKind.RESUMED:  # going back failed: once more, but not at once
            self.problem = event.reason
            self._try_later(entry, event)
        else:
            self.happened(entry.record.model, event)

    def _try_later(self, entry: Entry, event: Event) -> None:
        at = time.monotonic() + RETRY_S
        model = entry.record.model
        self._later[model, event.kind] = _Later(at=at, model=model, release=entry.record.release, event=event)

    def _save(self, journal: Journal) -> bool:
        """Save, or say why not and let the desired document wait as well."""
        try:
            self._journal.save(journal)
        except DeviceError as error:
            if error.message != self.problem:
                _log.error("the journal cannot be written: %s", error.message)
            self.problem = error.message
            self._reconcile_at = time.monotonic() + RETRY_S
            return False
        self.problem = ""
        return True
