from __future__ import annotations

import logging
import signal
import subprocess
import sys
import threading
import time

import pytest

from edgeserve.contracts import topics
from edgeserve.contracts.errors import InputError, TransientError
from edgeserve.contracts.limits import MAX_MQTT_PACKET_BYTES
from edgeserve.link import mqtt
from edgeserve.link.base import LinkConfig, Will
from edgeserve.link.mosquitto import Mosquitto
from edgeserve.link.mqtt import MqttLink

CONNACK = bytes([0x20, 3, 0, 0, 0])  # session not present, success, no properties
WILL_SCRIPT = """
import sys, time
from edgeserve.link.base import LinkConfig, Will
from edgeserve.link.mqtt import MqttLink
url, topic = sys.argv[1:]
config = LinkConfig(
    url=url, client_id="default.a", username="default.a", password="a-secret", will=Will(topic=topic, payload=b"off")
)
def connected(state):
    link.publish(topic, b"on", retain=True)
link = MqttLink(config, on_message=print, on_state=connected)
link.start()
time.sleep(60)
"""


class TestDelivery:
    def test_a_retained_document_reaches_a_later_subscriber(self, peer, until) -> None:
        manager = peer("fm")
        assert manager.publish(topics.desired("default.a"), b"document", retain=True).wait(5)
        device = peer("default.a", subscribe=(topics.desired("default.a"),))
        until(device.messages.__len__, "the document arrives")
        message = device.messages[0]
        assert (message.topic, message.payload, message.retain) == (topics.desired("default.a"), b"document", True)

    def test_a_new_message_is_not_marked_as_retained(self, peer, until) -> None:
        manager = peer("fm", subscribe=(topics.EVERY_REPORTED,))
        device = peer("default.a")
        device.publish(topics.reported("default.a"), b"report", retain=True)
        until(manager.messages.__len__, "the report arrives")
        assert not manager.messages[0].retain

    def test_a_subscription_of_a_connected_link_takes_effect_at_once(self, peer, until) -> None:
        device = peer("default.a")
        device.link.subscribe(topics.desired("default.a"))
        manager = peer("fm")
        manager.publish(topics.desired("default.a"), b"document", retain=True)
        until(device.messages.__len__, "the document arrives")

    def test_qos_0_is_delivered_and_its_token_settles_when_written(self, peer, until) -> None:
        manager = peer("fm", subscribe=(topics.EVERY_STATS,))
        device = peer("default.a")
        assert device.publish(topics.stats("default.a"), b"counters", qos=0).wait(5)
        until(manager.messages.__len__, "the counters arrive")

    def test_a_payload_close_to_the_limit_passes_whole(self, peer, until) -> None:
        manager = peer("fm", subscribe=(topics.EVERY_REPORTED,))
        device = peer("default.a")
        payload = bytes(range(256)) * ((MAX_MQTT_PACKET_BYTES - 256) // 256)
        assert device.publish(topics.reported("default.a"), payload, retain=True).wait(10)
        until(manager.messages.__len__, "the large report arrives")
        assert manager.payloads() == [payload]

    def test_messages_of_many_threads_arrive_whole_and_once(self, peer, until) -> None:
        manager = peer("fm", subscribe=(topics.EVERY_EVENT,))
        device = peer("default.a")
        sent = {f"{sender}-{number}".encode() * 20 for sender in range(8) for number in range(100)}

        def send(sender: int) -> None:
            for number in range(100):
                device.link.publish(topics.event("default.a"), f"{sender}-{number}".encode() * 20)

        senders = [threading.Thread(target=send, args=(sender,)) for sender in range(8)]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join()
        assert device.link.drain(10)
        until(lambda: len(manager.messages) >= len(sent), "all messages arrive")
        assert sorted(manager.payloads()) == sorted(sent)

    def test_an_expired_message_is_not_delivered(self, peer, until) -> None:
        device = peer("default.a", subscribe=(topics.ack("default.a"),))
        device.link.stop()
        manager = peer("fm")
        assert manager.publish(topics.ack("default.a"), b"stale", expiry_s=1).wait(5)
        assert manager.publish(topics.ack("default.a"), b"fresh", expiry_s=60).wait(5)
        published = time.monotonic()
        until(lambda: time.monotonic() - published > 2, "a second has passed")  # the broker counts whole seconds
        device = peer("default.a", subscribe=(topics.ack("default.a"),))
        until(device.messages.__len__, "the other message arrives")
        assert device.payloads() == [b"fresh"]

    def test_a_failing_handler_does_not_deafen_the_link(self, broker, until, caplog) -> None:
        seen: list[bytes] = []

        def handle(message) -> None:
            seen.append(message.payload)
            raise RuntimeError("a bug in the handler")

        config = LinkConfig(url=broker.url, client_id="fm", username="fm", password="fm-secret")
        link = MqttLink(config, on_message=handle, on_state=lambda _state: None)
        link.subscribe("es1/#")
        link.start()
        until(lambda: link.connected, "it is connected")
        with caplog.at_level(logging.ERROR, "edgeserve.link"):
            for payload in (b"1", b"2"):
                assert link.publish(topics.HALT, payload).wait(5)
            until(lambda: seen == [b"1", b"2"], "both messages were handled")
        link.stop()
        assert "a bug in the handler" in caplog.text


class TestAccess:
    def test_a_device_cannot_write_outside_its_own_up(self, peer) -> None:
        device = peer("default.a")
        for topic in (topics.reported("default.b"), topics.desired("default.a"), topics.HALT, "es1/default.a/up2"):
            token = device.publish(topic, b"forged", retain=True)
            assert not token.wait(5)
            assert "Not authorized" in token.reason

    def test_a_device_receives_its_own_documents_and_no_others(self, peer, until) -> None:
        device = peer("default.a", subscribe=("#", "es1/#", topics.desired("default.b"), topics.EVERY_REPORTED))
        other = peer("default.b")
        manager = peer("fm")
        assert other.publish(topics.reported("default.b"), b"private").wait(5)
        assert manager.publish(topics.desired("default.b"), b"private", retain=True).wait(5)
        for topic in (topics.desired("default.a"), topics.ack("default.a"), topics.HALT, "es1/default.a/cmd"):
            assert manager.publish(topic, b"mine").wait(5)
        until(lambda: len(device.messages) >= 4, "its own documents arrive")
        assert set(device.payloads()) == {b"mine"}

    def test_a_wrong_password_is_told_and_tried_again(self, broker, peer, until, monkeypatch) -> None:
        monkeypatch.setattr(mqtt, "_REFUSED_ATTEMPT", 0)
        device = peer("default.a", wait=False, password="wrong")
        until(device.states.__len__, "it is refused")
        assert device.states[0].reason.startswith("not authorised: ")
        assert "default.a" in device.states[0].reason
        assert not device.link.connected
        broker.add_user("default.a", "wrong")
        until(lambda: device.link.connected, "the link tried again")

    def test_without_a_user_name_nobody_gets_in(self, peer, until) -> None:
        stranger = peer("fm", wait=False, username="", password="")
        until(stranger.states.__len__, "it is refused")
        assert "no user name" in stranger.states[0].reason


class TestStop:
    def test_stopping_lets_messages_in_flight_arrive(self, peer, until) -> None:
        manager = peer("fm", subscribe=(topics.EVERY_EVENT,))
        device = peer("default.a")
        tokens = [device.link.publish(topics.event("default.a"), b"%d" % number) for number in range(200)]
        device.link.stop()
        assert all(token.acknowledged for token in tokens)
        until(lambda: len(manager.messages) == 200, "all of them arrive")

    def test_the_will_fires_when_the_process_is_killed(self, broker, peer, until) -> None:
        topic = topics.presence("default.a")
        manager = peer("fm", subscribe=(topic,))
        command = [sys.executable, "-c", WILL_SCRIPT, broker.url, topic]
        with subprocess.Popen(command) as child:
            until(lambda: manager.payloads() == [b"on"], "the child is connected")
            child.send_signal(signal.SIGKILL)
        until(lambda: manager.payloads() == [b"on", b"off"], "the will arrives")
        late = peer("fm", client_id="late", subscribe=(topic,))
        until(late.messages.__len__, "the will is retained")
        assert late.payloads() == [b"off"]

    def test_the_will_does_not_fire_when_the_link_is_stopped(self, broker, peer, until, monkeypatch) -> None:
        monkeypatch.setattr(mqtt, "MQTT_WILL_DELAY_S", 0)
        topic = topics.presence("default.a")
        manager = peer("fm", subscribe=(topic, "es1/mark"))
        device = peer("default.a", will=Will(topic=topic, payload=b"off"))
        assert device.publish(topic, b"goodbye", retain=True).wait(5)
        device.link.stop()
        until(lambda: "Client default.a disconnected." in broker.log_path.read_text(), "the broker has noticed")
        assert manager.publish("es1/mark", b"mark").wait(5)
        until(lambda: b"mark" in manager.payloads(), "all that came before has arrived")
        assert manager.payloads() == [b"goodbye", b"mark"]

    def test_stopping_twice_and_from_a_callback_is_no_error(self, broker, until) -> None:
        config = LinkConfig(url=broker.url, client_id="fm", username="fm", password="fm-secret")
        link = MqttLink(config, on_message=print, on_state=lambda _state: link.stop())
        link.start()
        until(lambda: not link._thread.is_alive(), "it has stopped itself")
        link.stop()


class TestManualAcknowledgement:
    def test_the_broker_holds_back_until_messages_are_acknowledged(self, peer, until) -> None:
        manager = peer("fm", subscribe=(topics.EVERY_EVENT,), manual_ack=True, receive_maximum=3)
        device = peer("default.a")
        for number in range(30):
            device.link.publish(topics.event("default.a"), b"%d" % number)
        assert device.link.drain(10)
        until(lambda: len(manager.messages) == 3, "as many as allowed arrive")
        for message in manager.messages[:3]:
            message.ack()
            message.ack()  # the second time says nothing
        until(lambda: len(manager.messages) >= 6, "the next ones arrive")
        assert manager.payloads()[:6] == [b"%d" % number for number in range(6)]

    def test_what_was_not_acknowledged_comes_again_after_a_reconnect(self, peer, until) -> None:
        manager = peer("fm", subscribe=(topics.EVERY_EVENT,), manual_ack=True)
        device = peer("default.a")
        for payload in (b"stored", b"not stored"):
            assert device.publish(topics.event("default.a"), payload).wait(5)
        until(lambda: len(manager.messages) == 2, "both arrive")
        manager.messages[0].ack()
        manager.link.stop()
        manager.messages[1].ack()  # of a connection that is gone: says nothing
        again = peer("fm", subscribe=(topics.EVERY_EVENT,), manual_ack=True)
        until(again.messages.__len__, "the other comes again")
        assert again.payloads() == [b"not stored"]


class TestBounds:
    @pytest.mark.parametrize("topic", ["", "es1/+/x", "es1/#", "es1/\0"])
    def test_a_topic_that_cannot_be_published_to_is_refused(self, topic: str) -> None:
        link = MqttLink(LinkConfig(url="mqtt://127.0.0.1", client_id="x"), on_message=print, on_state=print)
        with pytest.raises(InputError):
            link.publish(topic, b"")
        link.stop()

    def test_a_payload_beyond_the_limit_is_refused_and_the_connection_stays(self, peer) -> None:
        device = peer("default.a")
        with pytest.raises(InputError, match="too large"):
            device.link.publish(topics.reported("default.a"), bytes(MAX_MQTT_PACKET_BYTES))
        assert device.publish(topics.reported("default.a"), b"small").wait(5)
        assert device.connects() == 1

    def test_a_broker_that_acknowledges_nothing_does_not_fill_the_memory(
        self, silent_server, until, monkeypatch
    ) -> None:
        monkeypatch.setattr(mqtt, "MQTT_FLUSH_S", 0.1)
        monkeypatch.setattr(mqtt, "MQTT_MAX_UNACKNOWLEDGED", 50)
        url = silent_server(CONNACK)
        link = MqttLink(LinkConfig(url=url, client_id="x"), on_message=print, on_state=lambda _state: None)
        link.start()
        until(lambda: link.connected, "it is connected")
        for _ in range(50):
            link.publish("t", b"")
        with pytest.raises(TransientError, match="acknowledge"):
            link.publish("t", b"")
        link.stop()


def test_the_tests_have_a_broker(broker: Mosquitto) -> None:
    assert broker.running, "these tests fail without mosquitto, they are never skipped"
