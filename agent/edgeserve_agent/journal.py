"""What the agent must remember through a power cut: `journal.json`, one document, replaced whole before each effect.

`slots.json` alone says what is served. A journal that is lost costs the device its memory, never its service: it
introduces itself with a new `install_id` and asks for the desired document again.
"""

from __future__ import annotations

import logging
import secrets
from pathlib import Path
from typing import Final

import msgspec

from edgeserve import atomic
from edgeserve.contracts.desired import NEVER, Desired, Generation, Halt
from edgeserve.contracts.documents import decode, encode
from edgeserve.contracts.errors import DeviceError, InputError
from edgeserve.contracts.limits import MAX_JOURNAL_BYTES, MAX_JOURNAL_EVENTS, MAX_QUARANTINED
from edgeserve.contracts.reported import Ack, DeploymentState, Event, Fence
from edgeserve_agent.deployment import Record
from edgeserve_agent.slots import ModelSlots

FILE: Final = "journal.json"
_DAY_S: Final = 24 * 3600.0
_log = logging.getLogger("edgeserve.agent")


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """The latest deployment of one model, with what carrying it out needs."""

    record: Record
    registry: str = ""
    """Base URL to fetch from; empty when all blobs were put here by hand."""
    before: ModelSlots | None = None
    """The slots as they were before the switch; what a revert restores."""


class Journal(msgspec.Struct, frozen=True, kw_only=True):
    """The document. Every method returns a changed copy."""

    install_id: str
    """Random; changes when the state directory was lost."""
    epoch: int
    """Starts of the agent."""
    seq: int = 0
    """Reports and events of this epoch so far."""
    desired: Desired | None = None
    """The newest accepted desired document: kept whole, so that no order is lost between seeing and beginning it."""
    desired_digest: str = ""
    time_floor: float = 0.0
    """Unix seconds: the latest time that a signed document proved; a clock before it is wrong."""
    halt: Halt | None = None
    counters: dict[str, int] = {}
    """Highest release counter that was active, a model."""
    quarantined: tuple[str, ...] = ()
    """Release digests that failed here, oldest first."""
    entries: tuple[Entry, ...] = ()
    events: tuple[Event, ...] = ()
    """Not acknowledged by the manager yet, in order."""
    day_started: float = 0.0
    day_bytes: int = 0
    """Downloaded bytes of models since `day_started` (Unix seconds), for the device's own daily limit."""

    @property
    def gen_seen(self) -> Generation:
        """Generation of the newest accepted desired document."""
        return self.desired.gen if self.desired else NEVER

    @property
    def fence(self) -> Fence:
        """Position of the latest report or event."""
        return Fence(install_id=self.install_id, epoch=self.epoch, seq=self.seq)

    def entry(self, model: str) -> Entry | None:
        """The latest deployment of `model`."""
        return next((entry for entry in self.entries if entry.record.model == model), None)

    def in_flight(self) -> tuple[Entry, ...]:
        """Deployments that have not ended."""
        return tuple(entry for entry in self.entries if entry.record.in_flight)

    def with_entry(self, entry: Entry) -> Journal:
        """Keep `entry` as the latest deployment of its model; a release at fault goes into quarantine with it."""
        record = entry.record
        others = [known for known in self.entries if known.record.model != record.model]
        quarantined = self.quarantined
        if record.blamed and record.release not in quarantined:
            quarantined = (*quarantined, record.release)[-MAX_QUARANTINED:]
        counters = self.counters
        if record.state is DeploymentState.COMMITTED:
            counters = {**counters, record.model: max(counters.get(record.model, 0), record.target.counter)}
        entries = tuple(sorted((*others, entry), key=lambda known: known.record.model))
        return msgspec.structs.replace(self, entries=entries, quarantined=quarantined, counters=counters)

    def without_quarantine(self, release: str) -> Journal:
        """Let `release` be tried again."""
        return msgspec.structs.replace(
            self, quarantined=tuple(digest for digest in self.quarantined if digest != release)
        )

    def with_event(self, device: str, record: Record) -> Journal:
        """Note that a deployment entered a state, to be told to the manager until it acknowledges."""
        journal = self.numbered()
        event = Event(
            device=device,
            fence=journal.fence,
            model=record.model,
            release=record.release,
            rollout=record.target.rollout,
            state=record.state,
            reason=record.reason,
        )
        events = [*self.events, event]
        while len(events) > MAX_JOURNAL_EVENTS:
            events.remove(next((old for old in events if not old.state.is_terminal), events[0]))
        return msgspec.structs.replace(journal, events=tuple(events))

    def numbered(self) -> Journal:
        """Take the next sequence number."""
        return msgspec.structs.replace(self, seq=self.seq + 1)

    def acknowledged(self, ack: Ack) -> Journal:
        """Forget the events that the manager has stored; an acknowledgement for another installation is ignored."""
        if ack.install_id != self.install_id:
            return self
        kept = tuple(event for event in self.events if (event.fence.epoch, event.fence.seq) > (ack.epoch, ack.seq))
        return self if len(kept) == len(self.events) else msgspec.structs.replace(self, events=kept)

    def with_desired(self, desired: Desired, digest: str) -> Journal:
        """Accept a desired document."""
        return msgspec.structs.replace(
            self, desired=desired, desired_digest=digest, time_floor=max(self.time_floor, desired.issued_at)
        )

    def is_halted(self, release: str, rollout: str) -> bool:
        """Tell whether the fleet forbade a release or the rollout that wants it."""
        return self.halt is not None and (
            release in self.halt.releases or (rollout != "" and rollout in self.halt.rollouts)
        )

    def downloaded_today(self, now: float) -> int:
        """Bytes counted in the 24 hours that began with the first download of the day."""
        return self.day_bytes if 0 <= now - self.day_started < _DAY_S else 0

    def with_download(self, count: int, now: float) -> Journal:
        """Count downloaded bytes."""
        today = self.downloaded_today(now)
        started = self.day_started if today else now
        return msgspec.structs.replace(self, day_started=started, day_bytes=today + count)


def read_journal(state_dir: Path) -> Journal | None:
    """Read the journal; None when there is none.

    Raises:
        DeviceError: It is there but cannot be read or is damaged.
    """
    path = state_dir / FILE
    try:
        return decode(path.read_bytes(), Journal, what=str(path), limit=MAX_JOURNAL_BYTES)
    except FileNotFoundError:
        return None
    except (OSError, InputError) as error:
        raise DeviceError(f"cannot read {path}: {error}", hint="the agent sets it aside at its next start") from error


class JournalFile:
    """The journal on disk and its current value.

    Only the deciding thread saves; other threads may read `value`, which never changes in place.

    Args:
        state_dir: Folder of the agent; must exist.
    """

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / FILE
        self.problem = ""
        """What went wrong when it was opened, for the report; empty when nothing did."""
        self.value = self._open()

    def save(self, journal: Journal) -> None:
        """Make `journal` the current value, durably.

        Raises:
            DeviceError: It could not be written; the old value stands, in memory and on disk.
        """
        if journal != self.value:
            atomic.write_bytes(self._path, encode(journal), mode=0o600)
            self.value = journal

    def begin(self) -> None:
        """Begin a new epoch: once at each start of the agent that reports.

        A device whose disk is full begins it all the same, in memory, and says so in `problem`.
        """
        begun = msgspec.structs.replace(self.value, epoch=self.value.epoch + 1, seq=0)
        try:
            self.save(begun)
        except DeviceError as error:
            self.problem = error.message
            self.value = begun

    def _open(self) -> Journal:
        try:
            known = read_journal(self._path.parent)
        except DeviceError as error:
            self.problem = f"the journal was damaged and set aside: {error.message}"
            _log.error("%s", self.problem)
            self._set_aside()
            known = None
        return known or Journal(install_id=secrets.token_hex(8), epoch=0)

    def _set_aside(self) -> None:
        number = 1
        while (aside := self._path.with_name(f"{FILE}.damaged-{number}")).exists():
            number += 1
        try:
            atomic.move(self._path, aside)
        except DeviceError as error:
            _log.error("%s", error.message)
