"""The control part: one deciding thread around a queue. Everything that happens is an item in it.

    link and fallback threads ── Arrival ──┐
    worker thread ────────────── Outcome ──┼──> queue ──> this thread ──> journal, slots, serving process, uplink
    signals ──────────────────── StopAsked ┘

Only this thread decides, writes `journal.json` and `slots.json`, and owns the serving process. The worker carries out
what may take long: downloads, trials, loading, tidying up.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

import msgspec

from edgeserve import atomic
from edgeserve.contracts.documents import decode
from edgeserve.contracts.errors import ConflictError, DeviceError, EdgeServeError
from edgeserve.contracts.limits import MAX_REPORT_BYTES, MIB
from edgeserve.contracts.reported import Ack, Event, Reported
from edgeserve.contracts.telemetry import DeviceStats
from edgeserve.trust.keys import PublicKey
from edgeserve_agent import slots
from edgeserve_agent.config import AgentConfig
from edgeserve_agent.control import ServingStatus
from edgeserve_agent.deployer import RETRY_S, Deployer, Job
from edgeserve_agent.deployment import Event as DeploymentEvent
from edgeserve_agent.deployment import EventKind
from edgeserve_agent.hardware import device_facts
from edgeserve_agent.installer import Installer
from edgeserve_agent.journal import JournalFile
from edgeserve_agent.notify import Announcer, Notifier, condition
from edgeserve_agent.orders import accept_ack, accept_desired, accept_halt
from edgeserve_agent.probation import Observation, Watch, observe
from edgeserve_agent.report import Reporter
from edgeserve_agent.supervisor import SettingsRefusedError, Supervisor
from edgeserve_agent.sweep import clear_leftovers
from edgeserve_agent.uplink import Arrival, Kind, Uplink

LOCK: Final = "agent.lock"
_TICK_S: Final = 0.2
_STATUS_S: Final = 1.0
_SILENT_S: Final = 10.0
"""A serving process that is only slow to answer is reported as before for this long."""
_STOP_S: Final = 20.0
_WORKER_STOP_S: Final = 2.0
"""A worker that waits for the serving process to load a model is left behind."""
_RESEND_S: Final = (30.0, 120.0, 600.0, 3600.0)
"""Delays before unacknowledged events are sent again."""
_log = logging.getLogger("edgeserve.agent")


@dataclass(frozen=True)
class Outcome:
    """What the worker thread's job came to."""

    job: Job
    event: DeploymentEvent | None


@dataclass(frozen=True)
class StopAsked:
    """SIGTERM or SIGINT."""


Item = Arrival | Outcome | StopAsked


class Daemon:
    """The agent of one device.

    Args:
        config: Of the device.
        announcer: To the service manager; without one nobody is told.
        on_effect: Called around every effect of the installer; see there.

    Raises:
        InputError: The configuration names what does not exist, such as a profile.
    """

    _journal: JournalFile
    _deployer: Deployer
    """Both are made under the lock: what another agent is about to write must not be read before."""

    def __init__(
        self,
        config: AgentConfig,
        *,
        announcer: Announcer | None = None,
        on_effect: Callable[[str], None] = lambda _step: None,
    ) -> None:
        self._config = config
        self._announcer = announcer or Announcer(Notifier())
        self._facts, targets = device_facts(config.device)
        self._key = PublicKey.from_text(config.manager.key) if config.manager else None
        self._inbox: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._supervisor = Supervisor(config)
        self._installer = Installer(
            config=config,
            facts=self._facts,
            targets=targets,
            journal=lambda: self._journal.value,
            serving=config.socket_path,
            on_effect=on_effect,
            restart_serving=self._supervisor.restart,
        )
        self._reporter = Reporter(config, self._facts)
        self._uplink: Uplink | None = None
        self._held: dict[Kind, Arrival] = {}
        self._held_until = 0.0
        self._worker = threading.Thread(target=self._work, name="worker", daemon=True)
        self._watches: dict[str, Watch] = {}
        self._status: ServingStatus | None = None
        self._status_at = self._answered_at = self._stats_at = 0.0
        self._reported: Reported | None = None
        self._sent: Event | None = None
        self._resends = 0
        self._resend_at = 0.0
        self._error = self._serving_problem = self._manager_problem = ""
        self._stopping = False

    def run(self) -> int:
        """Run until SIGTERM or SIGINT; returns the exit code. Call it from the main thread, once.

        Raises:
            ConflictError: Another agent runs on the state directory.
            EdgeServeError: It cannot start.
        """
        with locked(self._config.folder), self._signals():
            clear_leftovers(self._config.folder)
            self._journal = JournalFile(self._config.folder)
            self._deployer = Deployer(
                config=self._config, journal=self._journal, installer=self._installer, submit=self._jobs.put
            )
            self._journal.begin()
            self._error = self._journal.problem
            self._worker.start()
            try:
                self._supervisor.adopt()
                # Before a serving process is started: it must not begin with a release that is to be taken back.
                self._deployer.restart()
                self._start_uplink()
                self._loop()
            finally:
                self._stop()
        return 0

    def _start_uplink(self) -> None:
        if self._config.manager is not None:
            epoch = self._journal.value.epoch
            self._uplink = Uplink(self._config, self._config.manager, epoch=epoch, deliver=self._inbox.put)
            self._uplink.start()

    def _loop(self) -> None:
        while True:
            try:
                item: Item | None = self._inbox.get(timeout=_TICK_S)
            except queue.Empty:
                item = None
            if isinstance(item, StopAsked):
                return
            try:
                if item is not None:
                    self._handle(item)
                now = time.monotonic()
                self._tick(now)
                if item is not None or self._status_at == now:
                    self._report(now)
            except SettingsRefusedError:
                raise
            except EdgeServeError as error:  # a disk that is full or gone: serving goes on, so do we
                self._complain(error)
            except OSError as error:
                self._complain(DeviceError(f"{error.filename or 'the disk'}: {error.strerror or error}"))
            self._announce(time.monotonic())

    def _handle(self, item: Arrival | Outcome) -> None:
        if isinstance(item, Outcome):
            self._deployer.finished(item.job, item.event)
            self._status_at = 0.0
            return
        self._held.pop(item.kind, None)  # it is this one, or older
        try:
            self._arrived(item)
        except DeviceError as error:
            # It could not be saved, and nobody will send it again as long as the connection lasts.
            self._held[item.kind] = item
            self._held_until = time.monotonic() + RETRY_S
            self._complain(error)
        except EdgeServeError as error:
            self._complain(error)

    def _arrived(self, arrival: Arrival) -> None:
        assert self._key is not None
        journal = self._journal.value
        match arrival.kind:
            case Kind.DESIRED:
                now = time.time()
                accepted = accept_desired(
                    arrival.data, key=self._key, device=self._config.device.id, journal=journal, now=now
                )
                if accepted is not None:
                    _log.info("accepted generation %s", accepted.desired.gen)
                    self._journal.save(journal.with_desired(accepted.desired, accepted.digest))
                    self._deployer.reconcile()
                self._error = ""
            case Kind.HALT:
                halt = accept_halt(arrival.data, key=self._key, journal=journal)
                if halt is not None:
                    self._deployer.halt(halt)
            case Kind.ACK:
                self._acknowledged(accept_ack(arrival.data, key=self._key, device=self._config.device.id))
            case Kind.ACK_OVER_HTTP:
                self._acknowledged(decode(arrival.data, Ack, what="acknowledgement", limit=MAX_REPORT_BYTES))
            case Kind.CONNECTED:
                self._reported = self._sent = None
                self._resends = 0
            case Kind.PROBLEM:
                self._manager_problem = arrival.data.decode()
                _log.warning("%s", self._manager_problem or "the manager answers as it should again")
        self._status_at = 0.0

    def _acknowledged(self, ack: Ack) -> None:
        self._journal.save(self._journal.value.acknowledged(ack))
        self._resends = 0

    def _tick(self, now: float) -> None:
        if self._held and now >= self._held_until:
            held, self._held = self._held, {}
            for arrival in held.values():
                self._handle(arrival)
        death = self._supervisor.poll(now)
        if death is not None and not self._stopping:
            self._status = None
            self._serving_problem = f"the serving process {death.how}; its log says why"
            self._deployer.serving_died(death.how)
        self._deployer.tick(now)
        watched = self._deployer.on_probation()
        waits = self._status is None or self._status.starting
        if watched or waits or now - self._status_at >= _STATUS_S:
            self._look(now)
        self._watches = {
            entry.record.model: self._watches.get(entry.record.model, Watch(answered=now)) for entry in watched
        }
        for entry in watched:
            model = entry.record.model
            seen = Observation(status=self._status, stats=self._supervisor.stats())
            judged = observe(entry.record, self._watches[model], seen, now, self._config.limits.max_failure_share)
            if isinstance(judged, Watch):
                self._watches[model] = judged
            else:
                del self._watches[model]
                self._deployer.happened(model, judged)
                self._look(now)
        if self._uplink is not None and now - self._stats_at >= self._config.telemetry.stats_s:
            self._stats_at = now
            self._send_stats()

    def _look(self, now: float) -> None:
        self._status_at = now
        status = self._supervisor.status()
        if status is not None:
            self._answered_at = now
            self._status = status
            self._serving_problem = ""
        elif now - self._answered_at > _SILENT_S:
            self._status = None

    def _send_stats(self) -> None:
        stats = self._supervisor.stats()
        if stats is not None and self._uplink is not None:
            document = DeviceStats(device=self._config.device.id, started=stats.started, releases=stats.releases)
            self._uplink.send_stats(document)

    def _announce(self, now: float) -> None:
        live = self._supervisor.is_live(now, self._announcer.silence_s)
        records = [entry.record for entry in self._journal.value.entries]
        self._announcer.tell(now, condition(self._status, live=live, records=records, problem=self._problem))

    @property
    def _problem(self) -> str:
        return self._deployer.problem or self._serving_problem or self._error or self._manager_problem

    def _report(self, now: float) -> None:
        """Send what changed; a fence is taken only for a report that goes out."""
        if self._uplink is None:
            return
        known = slots.read(self._config.folder)
        free = atomic.free_bytes(self._config.folder) // MIB * MIB
        report = self._reporter.build(
            self._journal.value,
            known,
            self._status,
            free_bytes=free,
            error=self._problem,
            progress=dict(self._installer.progress),
        )
        if self._reported is None or _differs(report, self._reported):
            self._journal.value = self._journal.value.numbered()
            report = msgspec.structs.replace(report, fence=self._journal.value.fence)
            self._uplink.send_reported(report)
            self._reported = report
        self._send_events(now)

    def _send_events(self, now: float) -> None:
        assert self._uplink is not None
        events = self._journal.value.events
        if not events:
            self._sent = None
            return
        if self._sent != events[-1] or now >= self._resend_at:
            fresh = self._sent != events[-1]
            self._uplink.send_events(events)
            self._sent = events[-1]
            self._resends = 0 if fresh else self._resends + 1
            self._resend_at = now + _RESEND_S[min(self._resends, len(_RESEND_S) - 1)]

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            event: DeploymentEvent | None = None
            try:
                if not job.stop.is_set():
                    event = self._installer.perform(job.effect, job.entry, job.stop)
            except Exception as error:  # noqa: BLE001 - our bug must not leave the device deaf to the next release
                _log.exception("%s failed", type(job.effect).__name__)
                reason = f"internal error: {type(error).__name__}: {error}"
                event = DeploymentEvent(kind=EventKind.FAILED, reason=reason)
            self._inbox.put(Outcome(job, event))

    def _stop(self) -> None:
        _log.info("stopping")
        self._announcer.stopping()
        self._deployer.stop()
        self._jobs.put(None)
        if self._uplink is not None:
            self._uplink.stop()
        if self._stopping:  # else the next life finds it at work
            self._supervisor.stop(_STOP_S)
        self._worker.join(_WORKER_STOP_S)

    def _complain(self, error: EdgeServeError) -> None:
        if error.message != self._error:
            _log.warning("%s%s", error.message, f" ({error.hint})" if error.hint else "")
        self._error = error.message

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        def ask(_number: int, _frame: FrameType | None) -> None:
            self._stopping = True
            self._inbox.put(StopAsked())  # SimpleQueue.put may interrupt itself

        before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _differs(report: Reported, sent: Reported) -> bool:
    return msgspec.structs.replace(report, fence=sent.fence, free_bytes=sent.free_bytes) != sent


@contextlib.contextmanager
def locked(state_dir: Path) -> Iterator[None]:
    """Make the state directory and hold it; the kernel lets go of it with the process, however that ends.

    Raises:
        ConflictError: Another agent holds it.
        DeviceError: It cannot be used.
    """
    try:
        state_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        descriptor = os.open(state_dir / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        hint = "name another with --state-dir, or give this user the right to write there"
        raise DeviceError(f"cannot use the state directory {state_dir}: {error.strerror}", hint=hint) from error
    with os.fdopen(descriptor):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            hint = "stop it first, or give each agent its own --state-dir"
            raise ConflictError(f"another agent runs on {state_dir}", hint=hint) from error
        yield
