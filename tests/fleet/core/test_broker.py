from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable

import pytest

from edgeserve.contracts import topics
from edgeserve.contracts.desired import DESIRED_TYPE, Desired
from edgeserve.contracts.documents import encode
from edgeserve.contracts.limits import MAX_DESIRED_BYTES
from edgeserve.contracts.reported import DeploymentState, Event, Presence
from edgeserve.contracts.telemetry import DeviceStats, ReleaseStats, encode_stats
from edgeserve.link.base import LinkConfig, Message, PublishToken
from edgeserve.link.mosquitto import Mosquitto
from edgeserve.link.mqtt import MqttLink
from edgeserve.trust.envelope import verify
from edgeserve_fleet.broker import BrokerConnection
from edgeserve_fleet.ingest import Ingest
from edgeserve_fleet.outbox import Publisher


def wait_until(condition: Callable[[], object], what: str, limit_s: float = 20.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.02)


@pytest.fixture
def device(world):
    """An enrolled device whose reports stay with it."""
    world.fleet.enrol("test.d1", labels={}, actor="tester")
    device = world.join("test.d1")
    device.fleet = _Kept()
    device.report()
    return device


class _Kept:
    def apply_reported(self, _device: str, _payload: bytes) -> None: ...


class Sent:
    """Messages as a link hands them over, and which of them were acknowledged."""

    def __init__(self) -> None:
        self.acknowledged: list[int] = []
        self.made = 0

    def __call__(self, topic: str, payload: bytes, *, retain: bool = False) -> Message:
        number, self.made = self.made, self.made + 1
        return Message(topic=topic, payload=payload, retain=retain, ack=lambda: self.acknowledged.append(number))


@pytest.fixture
def ingest(world):
    ingest = Ingest(world.fleet)
    yield ingest
    ingest.stop()


def test_messages_are_stored_and_then_acknowledged_in_order(world, device, ingest):
    sent = Sent()
    ingest.take(sent(topics.presence(device.name), encode(Presence(on=True, epoch=1))))
    ingest.take(sent(topics.reported(device.name), device.sent[0][1]))
    assert sent.acknowledged == []
    ingest.start()
    wait_until(lambda: sent.acknowledged == [0, 1], "the acknowledgement")
    view = world.fleet.device(device.name)
    assert view.online
    assert view.agent == "0.1.0"


BAD = {
    "no topic of ours": ("other/topic", b"{}"),
    "a topic that nobody uses": ("es1/test.d1/up/other", b"{}"),
    "a device that is no name": ("es1/Test.<b>/up/reported", b"{}"),
    "not valid": ("es1/test.d1/up/reported", b"\xff"),
    "not enrolled": ("es1/test.nobody/up/presence", b'{"on":true,"epoch":1}'),
}


@pytest.mark.parametrize(("topic", "payload"), BAD.values(), ids=BAD.keys())
def test_a_message_that_is_not_valid_is_acknowledged_and_does_not_stop_the_others(
    world, device, ingest, topic, payload
):
    sent = Sent()
    ingest.take(sent(topic, payload))
    ingest.take(sent(topics.reported("test.d1"), device.sent[0][1]))
    ingest.start()
    wait_until(lambda: sent.acknowledged == [0, 1], "the acknowledgement")
    assert world.fleet.device(device.name).agent == "0.1.0"


def test_counters_that_name_a_release_twice_do_not_stop_the_others(world, device, ingest):
    row = ReleaseStats(model="digits", release="sha256:" + "a" * 64, requests=1)
    twice = encode_stats(DeviceStats(device=device.name, started="life", releases=(row, row)))
    sent = Sent()
    ingest.take(sent(topics.stats(device.name), twice))
    ingest.take(sent(topics.reported(device.name), device.sent[0][1]))
    ingest.start()
    wait_until(lambda: sent.acknowledged == [0, 1], "the acknowledgement")
    view = world.fleet.device(device.name)
    assert (view.agent, view.stats) == ("0.1.0", ())


def test_a_row_that_the_database_will_never_take_is_dropped_with_its_message_alone(world, device, ingest, caplog):
    with sqlite3.connect(world.path) as other:
        other.execute("CREATE TRIGGER never BEFORE INSERT ON events BEGIN SELECT RAISE(ABORT, 'never'); END")
    other.close()
    device.fleet, device.release, device.state = world.fleet, "sha256:" + "a" * 64, DeploymentState.REJECTED
    event = Event(
        device=device.name, fence=device.fence(), model="digits", release=device.release, rollout="",
        state=DeploymentState.REJECTED,
    )  # fmt: skip
    sent = Sent()
    ingest.take(sent(topics.event(device.name), encode(event)))
    ingest.take(sent(topics.reported(device.name), device.sent[0][1]))
    ingest.start()
    wait_until(lambda: sent.acknowledged == [0, 1], "the acknowledgement")
    assert world.fleet.device(device.name).agent == "0.1.0"
    assert "could not be used" in caplog.text


def test_a_database_that_refuses_for_a_while_does_not_end_the_publisher(world, caplog):
    world.fleet.enrol("test.d1", labels={}, actor="tester")
    link = _Recorder()
    publisher = Publisher(world.fleet, link)
    with sqlite3.connect(world.path) as other:
        other.execute("ALTER TABLE outbox RENAME TO elsewhere")
    other.close()
    publisher.start()
    wait_until(lambda: "outbox: the database" in caplog.text, "the refusal")
    with sqlite3.connect(world.path) as other:
        other.execute("ALTER TABLE elsewhere RENAME TO outbox")
    other.close()
    wait_until(lambda: link.topics == [topics.desired("test.d1")], "the publication")
    publisher.stop()


class _Recorder:
    """A link that is always there and acknowledges at once."""

    connected = True

    def __init__(self) -> None:
        self.topics: list[str] = []

    def publish(self, topic: str, payload: bytes, **_options: object) -> PublishToken:
        self.topics.append(topic)
        return _Acknowledged()


class _Acknowledged:
    def wait(self, _timeout_s: float) -> bool:
        return True


def test_a_device_cannot_speak_for_another(world, device, ingest):
    world.fleet.enrol("test.d2", labels={}, actor="tester")
    sent = Sent()
    ingest.take(sent(topics.reported("test.d2"), device.sent[0][1]))
    ingest.start()
    wait_until(lambda: sent.acknowledged == [0], "the acknowledgement")
    assert {view.agent for view in world.fleet.devices()} == {""}


def test_while_the_database_refuses_nothing_is_acknowledged_and_nothing_is_lost(world, device, ingest, caplog):
    with sqlite3.connect(world.path) as other:
        other.execute("ALTER TABLE devices RENAME TO elsewhere")
    other.close()
    sent = Sent()
    ingest.take(sent(topics.reported(device.name), device.sent[0][1]))
    ingest.start()
    wait_until(lambda: "messages wait, 1 at least" in caplog.text, "the refusal")
    assert sent.acknowledged == []
    with sqlite3.connect(world.path) as other:
        other.execute("ALTER TABLE elsewhere RENAME TO devices")
    other.close()
    wait_until(lambda: sent.acknowledged == [0], "the acknowledgement")
    assert world.fleet.device(device.name).agent == "0.1.0"


class Peer:
    """The device's side of a real broker."""

    def __init__(self, broker: Mosquitto) -> None:
        self.documents: list[Desired] = []
        self.key = None
        config = LinkConfig(url=broker.url, client_id="test.d1", username="test.d1", password="device-secret")
        self.link = MqttLink(config, on_message=self._on_message, on_state=lambda _state: None)
        self.link.subscribe(topics.desired("test.d1"))

    def _on_message(self, message: Message) -> None:
        self.documents.append(
            verify(
                message.payload,
                payload_type=DESIRED_TYPE,
                key=self.key,
                kind=Desired,
                what="desired document",
                limit=MAX_DESIRED_BYTES,
            ).document
        )


@pytest.fixture
def broker(tmp_path):
    broker = Mosquitto(tmp_path / "broker")
    broker.add_users({"fm": "manager-secret", "test.d1": "device-secret"})
    broker.start()
    yield broker
    broker.kill()


def test_documents_go_down_reports_come_up_and_a_broker_that_lost_its_disk_gets_all_again(
    world, device, broker, tmp_path, signing_key
):
    connection = BrokerConnection(world.fleet, url=broker.url, username="fm", password="manager-secret")
    peer = Peer(broker)
    peer.key = signing_key.public
    connection.start()
    peer.link.start()
    try:
        wait_until(lambda: connection.connected and peer.link.connected, "both connect")
        wait_until(lambda: peer.documents, "the desired document")
        assert peer.documents[-1] == world.desired_of("test.d1")
        peer.link.publish(topics.reported("test.d1"), device.sent[0][1], retain=True)
        wait_until(lambda: world.fleet.device("test.d1").agent, "the report")
        wait_until(lambda: not world.fleet.pending_outbox(1), "the outbox is empty")
        release = world.add_release("v1", 1)
        world.begin(release, "1")
        world.fleet.tick()
        wait_until(lambda: peer.documents[-1].models, "the offer")
        broker.kill()
        for path in (tmp_path / "broker").glob("*.db"):
            path.unlink()
        peer.documents.clear()
        broker.start()
        wait_until(lambda: peer.documents, "the document again")
        assert peer.documents[-1].models[0].release == release
    finally:
        peer.link.stop()
        connection.stop()
