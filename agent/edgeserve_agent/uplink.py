"""The device's ear and voice: MQTT while there is a broker, HTTP while there is none. The rest sees only documents."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from edgeserve.contracts import topics
from edgeserve.contracts.documents import encode
from edgeserve.contracts.errors import TransientError
from edgeserve.contracts.reported import Event, Presence, Reported
from edgeserve.contracts.telemetry import DeviceStats, encode_stats
from edgeserve.link.base import LinkConfig, LinkState, Message, Will
from edgeserve.link.mqtt import MqttLink
from edgeserve_agent.config import AgentConfig, ManagerSection
from edgeserve_agent.fallback import Fallback, ManagerHttp

_JSON: Final = "application/json"
_MSGPACK: Final = "application/vnd.msgpack"
_EVENT_EXPIRY_S: Final = 7 * 24 * 3600


class Kind(Enum):
    """What came in."""

    DESIRED = "desired document"
    HALT = "halt list"
    ACK = "acknowledgement"
    ACK_OVER_HTTP = "acknowledgement in an answer"
    """Not signed: the answer of the manager to our own authenticated request."""
    CONNECTED = "connection"
    """The broker is there: say again all that it may have lost."""
    PROBLEM = "problem"


@dataclass(frozen=True)
class Arrival:
    """Something came in."""

    kind: Kind
    data: bytes = b""


class Uplink:
    """Both ways to the fleet.

    Args:
        config: Of the device; must have a manager.
        manager: Its `[manager]`.
        epoch: Of this start, for presence.
        deliver: Called with every arrival, on a thread of the link or of the fallback; must not block.
    """

    def __init__(
        self, config: AgentConfig, manager: ManagerSection, *, epoch: int, deliver: Callable[[Arrival], None]
    ) -> None:
        self._device = config.device.id
        self._epoch = epoch
        self._deliver = deliver
        self._poll_s = manager.poll_s
        self._heard = False
        self._changed = time.monotonic()
        self._link = self._make_link(config, manager) if config.mqtt.url else None
        self._fallback = Fallback(
            ManagerHttp(manager.url, manager.token),
            poll_s=manager.poll_s,
            needed=self._needs_fallback,
            on_halt=lambda data: deliver(Arrival(Kind.HALT, data)),
            on_desired=lambda data: deliver(Arrival(Kind.DESIRED, data)),
            on_ack=lambda data: deliver(Arrival(Kind.ACK_OVER_HTTP, data)),
            on_problem=lambda text: deliver(Arrival(Kind.PROBLEM, text.encode())),
        )

    def start(self) -> None:
        """Begin to connect; returns at once."""
        if self._link is not None:
            for topic in (topics.desired(self._device), topics.HALT, topics.ack(self._device)):
                self._link.subscribe(topic)
            self._link.start()
        self._fallback.start()

    def stop(self) -> None:
        """Say goodbye."""
        if self._link is not None:
            self._publish(topics.presence(self._device), encode(Presence(on=False, epoch=self._epoch)), retain=True)
            self._link.stop()
        self._fallback.stop()

    def send_reported(self, reported: Reported) -> None:
        """Say what is so."""
        data = encode(reported)
        if not self._publish(topics.reported(self._device), data, retain=True):
            self._fallback.put("reported", data, _JSON)

    def send_events(self, events: Sequence[Event]) -> None:
        """Send events that are not acknowledged; sending one twice is harmless."""
        topic = topics.event(self._device)
        if not all(self._publish(topic, encode(event), expiry_s=_EVENT_EXPIRY_S) for event in events):
            self._fallback.put("events", encode(list(events)), _JSON)

    def send_stats(self, stats: DeviceStats) -> None:
        """Send counters; a lost one is made good by the next."""
        data = encode_stats(stats)
        if not self._publish(topics.stats(self._device), data, qos=0):
            self._fallback.put("stats", data, _MSGPACK)

    def _make_link(self, config: AgentConfig, manager: ManagerSection) -> MqttLink:
        will = Will(topic=topics.presence(self._device), payload=encode(Presence(on=False, epoch=self._epoch)))
        return MqttLink(
            LinkConfig(
                url=config.mqtt.url,
                client_id=self._device,
                username=self._device,
                password=manager.token,
                will=will,
                ca_file=config.mqtt.ca_file,
            ),
            on_message=self._on_message,
            on_state=self._on_state,
        )

    def _publish(
        self, topic: str, data: bytes, *, qos: int = 1, retain: bool = False, expiry_s: int | None = None
    ) -> bool:
        if self._link is None:
            return False
        try:
            self._link.publish(topic, data, qos=qos, retain=retain, expiry_s=expiry_s)
        except TransientError:
            return False
        return True

    def _on_message(self, message: Message) -> None:
        kinds = {
            topics.desired(self._device): Kind.DESIRED,
            topics.HALT: Kind.HALT,
            topics.ack(self._device): Kind.ACK,
        }
        kind = kinds.get(message.topic)
        if kind is Kind.DESIRED:
            self._heard = True
        if kind is not None:
            self._deliver(Arrival(kind, message.payload))

    def _on_state(self, state: LinkState) -> None:
        self._changed = time.monotonic()
        self._heard = False
        if state.connected:
            self._fallback.drop()
            self._publish(topics.presence(self._device), encode(Presence(on=True, epoch=self._epoch)), retain=True)
            self._deliver(Arrival(Kind.CONNECTED))

    def _needs_fallback(self) -> bool:
        """No broker for a while, or one that is there but has lost the document that it should have retained."""
        if self._link is None:
            return True
        return not self._heard and time.monotonic() - self._changed >= self._poll_s
