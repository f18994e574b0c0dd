"""From the outbox to the broker: the only way in which the manager publishes.

A message leaves the outbox when the broker has acknowledged it, so it is published at least once, after a crash again.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from typing import Final

from edgeserve.contracts.errors import EdgeServeError, InputError, TransientError
from edgeserve.contracts.limits import OUTBOX_BATCH
from edgeserve.link.base import Link, LinkState, PublishToken
from edgeserve_fleet.service import Fleet
from edgeserve_fleet.views import OutboxRow

_log = logging.getLogger(__name__)

_IDLE_S: Final = 0.5
_ACKNOWLEDGE_S: Final = 10.0
_STOP_S: Final = 5.0
_BROKER_MEMORY_S: Final = 3600.0
"""A broker that was killed restarts from its last save, with our session, but without the documents since: mosquitto
saves every 30 minutes by default. Documents of this age are published again after every reconnect."""


class Publisher:
    """Publishes on a thread of its own. Give `on_state` the states of the link."""

    def __init__(self, fleet: Fleet, link: Link) -> None:
        self._fleet = fleet
        self._link = link
        self._stopping = threading.Event()
        self._lost: float | None = None  # the broker may lack documents signed in the last so many seconds
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)

    def start(self) -> None:
        """Begin to publish."""
        self._thread.start()

    def stop(self) -> None:
        """End after the batch that is under way."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(_STOP_S)

    def on_state(self, state: LinkState) -> None:
        """Remember that the broker may have lost documents; everything, when it has lost the session too."""
        if not state.connected:
            return
        self._note_lost(_BROKER_MEMORY_S if state.session_present else math.inf)

    def publish_pending(self) -> int:
        """Publish what waits, once; returns how many messages the broker acknowledged."""
        sent: list[tuple[OutboxRow, PublishToken]] = []
        done: list[int] = []
        for row in self._fleet.pending_outbox(OUTBOX_BATCH):
            try:
                sent.append((row, self._send(row)))
            except TransientError:  # noqa: PERF203 - each message can fail
                break
            except InputError as error:  # it can never be sent: keeping it would stop all that wait behind it
                _log.error("dropped a message for %s: %s", row.topic, error)
                done.append(row.id)
        deadline = time.monotonic() + _ACKNOWLEDGE_S
        done += [row.id for row, token in sent if token.wait(max(0.0, deadline - time.monotonic()))]
        if done:
            self._fleet.mark_published(done)
        return len(done)

    def _send(self, row: OutboxRow) -> PublishToken:
        expiry_s = row.expiry_s or None
        return self._link.publish(row.topic, row.payload, qos=1, retain=row.retain, expiry_s=expiry_s)

    def _run(self) -> None:
        while not self._stopping.is_set():
            seen = self._fleet.version()
            try:
                self._resync()
                busy = self._link.connected and self.publish_pending() > 0
            except EdgeServeError as error:
                _log.warning("outbox: %s", error)
                busy = False
                self._stopping.wait(_IDLE_S)
            except Exception:  # noqa: BLE001 - a thread that ended would leave the fleet without orders, and no one would see it
                _log.exception("outbox: a fault of the manager")
                busy = False
                self._stopping.wait(_IDLE_S)
            if not busy:
                self._fleet.wait_for_change(seen, _IDLE_S)
                if not self._link.connected:
                    self._stopping.wait(_IDLE_S)

    def _note_lost(self, seconds: float) -> None:
        with self._lock:
            self._lost = max(self._lost or 0.0, seconds)

    def _resync(self) -> None:
        with self._lock:
            lost, self._lost = self._lost, None
        if lost is None:
            return
        try:
            self._fleet.resync(newest_s=lost)
        except EdgeServeError:
            self._note_lost(lost)
            raise
