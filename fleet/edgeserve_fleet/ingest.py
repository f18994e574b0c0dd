"""From the broker into the fleet: messages are stored in batches, and acknowledged when they are on disk."""

from __future__ import annotations

import logging
import queue
import threading
from typing import Final

from sqlalchemy.exc import DataError, DBAPIError, IntegrityError

from edgeserve.contracts import topics
from edgeserve.contracts.errors import DeviceError, EdgeServeError, InputError
from edgeserve.contracts.limits import INGEST_BATCH, INGEST_QUEUE
from edgeserve.link.base import Message
from edgeserve_fleet.service import Fleet

_log = logging.getLogger(__name__)

SUBSCRIPTIONS: Final = (topics.EVERY_REPORTED, topics.EVERY_PRESENCE, topics.EVERY_EVENT, topics.EVERY_STATS)

_IDLE_S: Final = 0.2
_RETRY_S: Final = 1.0
_STOP_S: Final = 5.0


class Ingest:
    """Takes messages from a link (`take` is its `on_message`) and gives them to the fleet on a thread of its own.

    A message that is not valid is logged and acknowledged: it would come back for ever. When the database refuses, the
    batch is kept and tried again, and the broker holds what comes after it.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._queue: queue.Queue[Message] = queue.Queue(INGEST_QUEUE)
        self._stopping = threading.Event()
        self._problem = ""
        self._thread = threading.Thread(target=self._run, name="ingest", daemon=True)

    def start(self) -> None:
        """Begin to store."""
        self._thread.start()

    def stop(self) -> None:
        """Store what waits, then end. What could not be stored is not acknowledged, so the broker has it still."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(_STOP_S)

    def take(self, message: Message) -> None:
        """Called by the link; never waits.

        Only QoS 0 can fill the queue, and that is statistics: they are dropped before it is full, since the next ones
        hold them too. What needs an acknowledgement is bounded by the link's receive maximum.
        """
        if message.topic.endswith("/stats") and self._queue.qsize() > INGEST_QUEUE // 2:
            message.ack()
            return
        self._queue.put_nowait(message)

    def _run(self) -> None:
        while batch := self._next():
            while not self._stored(batch):
                if self._stopping.wait(_RETRY_S):
                    return
            for message in batch:
                message.ack()

    def _next(self) -> list[Message]:
        """The messages that wait, or the next one; empty when it is time to end."""
        while True:
            try:
                batch = [self._queue.get(timeout=_IDLE_S)]
                break
            except queue.Empty:
                if self._stopping.is_set():
                    return []
        while len(batch) < INGEST_BATCH and not self._queue.empty():  # this thread alone takes
            batch.append(self._queue.get_nowait())
        return batch

    def _stored(self, batch: list[Message]) -> bool:
        try:
            with self._fleet.batch():
                for message in batch:
                    self._apply(message)
        except (DeviceError, DBAPIError) as error:
            if self._problem != str(error):
                _log.error("messages wait, %d at least: %s", len(batch), error)
            self._problem = str(error)
            return False
        self._problem = ""
        return True

    def _apply(self, message: Message) -> None:
        try:
            apply(self._fleet, message)
        except InputError as error:
            _log.warning("refused a message on %s: %s", message.topic, error)
        except (IntegrityError, DataError):  # what it says cannot be stored, now or later
            _log.exception("a message on %s could not be used", message.topic)
        except (DeviceError, DBAPIError):
            raise
        except EdgeServeError as error:
            _log.warning("could not use a message on %s: %s", message.topic, error)
        except Exception:  # noqa: BLE001 - one message must not block those behind it for ever
            _log.exception("a message on %s could not be used", message.topic)


def apply(fleet: Fleet, message: Message) -> None:
    """Give one message to the fleet.

    Raises:
        InputError: Its topic is none of ours, the payload is not valid or names another device than the topic, or the
            device is not enrolled.
    """
    device = topics.sender(message.topic)
    kind = message.topic.rpartition("/")[2]
    live = not message.retain
    if kind == "reported":
        fleet.apply_reported(device, message.payload, live=live)
    elif kind == "presence":
        fleet.apply_presence(device, message.payload, live=live)
    elif kind == "event":
        fleet.apply_events(device, [message.payload])
    elif kind == "stats":
        fleet.apply_stats(device, message.payload)
    else:
        raise InputError(f"nothing is expected on the topic {message.topic[:160]!a}")
