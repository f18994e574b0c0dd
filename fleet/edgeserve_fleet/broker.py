"""The manager's side of the broker: one link, what comes in, what goes out."""

from __future__ import annotations

from edgeserve.contracts.limits import INGEST_BATCH
from edgeserve.link.base import LinkConfig, LinkState
from edgeserve.link.mqtt import MqttLink
from edgeserve_fleet.ingest import SUBSCRIPTIONS, Ingest
from edgeserve_fleet.outbox import Publisher
from edgeserve_fleet.service import Fleet


class BrokerConnection:
    """Connects a fleet with its devices; reconnects for ever.

    Args:
        fleet: Gets what devices say, and has what they shall hear.
        url: `mqtt://host:port` or `mqtts://host:port`.
        username: The user who may read and write everything below `es1/`; also the client id.
        password: Of that user.
        ca_file: PEM file of the authorities that may sign the broker's certificate; empty = those of the system.
    """

    def __init__(self, fleet: Fleet, *, url: str, username: str = "fm", password: str = "", ca_file: str = "") -> None:
        self._ingest = Ingest(fleet)
        config = LinkConfig(
            url=url,
            client_id=username or "fm",
            username=username,
            password=password,
            receive_maximum=INGEST_BATCH,
            manual_ack=True,
            ca_file=ca_file,
        )
        self._link = MqttLink(config, on_message=self._ingest.take, on_state=self._on_state)
        self._publisher = Publisher(fleet, self._link)
        for topic in SUBSCRIPTIONS:
            self._link.subscribe(topic)

    @property
    def connected(self) -> bool:
        """Whether the broker is reached now."""
        return self._link.connected

    def start(self) -> None:
        """Begin to connect; returns at once."""
        self._ingest.start()
        self._publisher.start()
        self._link.start()

    def stop(self) -> None:
        """Publish and store what is under way, then disconnect. Before a start it does nothing."""
        self._publisher.stop()
        self._ingest.stop()
        self._link.stop()

    def _on_state(self, state: LinkState) -> None:
        self._publisher.on_state(state)
