"""The uplink over a real broker, which dies and comes back; the manager's HTTP side is there all the time."""

from __future__ import annotations

import queue

import pytest

from edgeserve.contracts import topics
from edgeserve.contracts.desired import ACK_TYPE, HALT_TYPE, Halt
from edgeserve.contracts.device import DeviceFacts
from edgeserve.contracts.documents import decode
from edgeserve.contracts.reported import Ack, DeploymentState, Event, Fence, Presence, Reported
from edgeserve.contracts.telemetry import DeviceStats, decode_stats
from edgeserve.link.base import LinkConfig
from edgeserve.link.mosquitto import Mosquitto
from edgeserve.link.mqtt import MqttLink
from edgeserve_agent.uplink import Arrival, Kind, Uplink

pytestmark = pytest.mark.system
DEVICE = "default.pi-1"
FENCE = Fence(install_id="i", epoch=7, seq=1)
REPORTED = Reported(device=DEVICE, fence=FENCE, agent="0", facts=DeviceFacts(architecture="amd64"))
EVENT = Event(
    device=DEVICE, fence=FENCE, model="digits", release="sha256:" + "a" * 64, rollout="",
    state=DeploymentState.COMMITTED,
)  # fmt: skip


@pytest.fixture
def broker(tmp_path):
    with Mosquitto(tmp_path / "broker") as running:
        running.add_user(DEVICE, "device-token")
        running.add_user("fm", "fleet")
        yield running


class FleetSide:
    """The manager's end of the broker: the newest message of each topic."""

    def __init__(self, url: str) -> None:
        self.latest: dict[str, bytes] = {}
        config = LinkConfig(url=url, client_id="fm", username="fm", password="fleet")
        self.link = MqttLink(config, on_message=self._keep, on_state=lambda state: None)
        for topic in (topics.EVERY_REPORTED, topics.EVERY_PRESENCE, topics.EVERY_EVENT, topics.EVERY_STATS):
            self.link.subscribe(topic)
        self.link.start()

    def _keep(self, message) -> None:
        self.latest[message.topic] = message.payload


@pytest.fixture
def fleet(broker):
    side = FleetSide(broker.url)
    yield side
    side.link.stop()


@pytest.fixture
def uplink(configure, broker):
    arrivals: queue.SimpleQueue[Arrival] = queue.SimpleQueue()
    config = configure(mqtt={"url": broker.url}, manager={"poll_s": 0.5})
    made = Uplink(config, config.manager, epoch=7, deliver=arrivals.put)
    made.arrivals = arrivals
    made.start()
    yield made
    made.stop()


def test_documents_go_both_ways_by_mqtt_and_by_http_when_the_broker_is_gone(uplink, broker, fleet, manager, eventually):
    def arrived(kind: Kind) -> bytes:
        while (arrival := uplink.arrivals.get(timeout=20)).kind is not kind:
            pass
        return arrival.data

    # Birth.
    arrived(Kind.CONNECTED)
    eventually(lambda: fleet.link.connected)
    presence = eventually(lambda: fleet.latest.get(topics.presence(DEVICE)))
    assert decode(presence, Presence, what="presence", limit=100) == Presence(on=True, epoch=7)

    # Down, retained: it is there whenever the device comes.
    signed = manager.sign(manager.document())
    fleet.link.publish(topics.desired(DEVICE), signed, retain=True)
    assert arrived(Kind.DESIRED) == signed
    halt = manager.sign(Halt(id="h", issuer="fm", term=1, version=1), HALT_TYPE)
    fleet.link.publish(topics.HALT, halt, retain=True)
    assert arrived(Kind.HALT) == halt
    ack = manager.sign(Ack(device=DEVICE, install_id="i", epoch=7, seq=1), ACK_TYPE)
    fleet.link.publish(topics.ack(DEVICE), ack)
    assert arrived(Kind.ACK) == ack

    # Up.
    uplink.send_reported(REPORTED)
    uplink.send_events([EVENT])
    uplink.send_stats(DeviceStats(device=DEVICE, started="s"))
    eventually(lambda: fleet.latest.keys() >= {topics.reported(DEVICE), topics.event(DEVICE), topics.stats(DEVICE)})
    assert decode(fleet.latest[topics.reported(DEVICE)], Reported, what="x", limit=1 << 16) == REPORTED
    assert decode(fleet.latest[topics.event(DEVICE)], Event, what="x", limit=1 << 16) == EVENT
    assert decode_stats(fleet.latest[topics.stats(DEVICE)], limit=1 << 16).started == "s"
    assert manager.reported is None, "HTTP is not used while the broker is there"

    # The broker dies: the same documents by HTTP.
    broker.kill()
    polled = manager.want()
    assert arrived(Kind.DESIRED) == polled
    uplink.send_reported(REPORTED)
    uplink.send_events([EVENT])
    uplink.send_stats(DeviceStats(device=DEVICE, started="s"))
    eventually(lambda: manager.reported == REPORTED and manager.events == [EVENT] and manager.stats)
    answered = decode(arrived(Kind.ACK_OVER_HTTP), Ack, what="x", limit=1 << 16)
    assert (answered.epoch, answered.seq) == (FENCE.epoch, FENCE.seq)

    # It comes back: a new birth.
    broker.start()
    arrived(Kind.CONNECTED)
