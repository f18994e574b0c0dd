"""Brokers that go, come back and refuse."""

from __future__ import annotations

import socket
import threading

import pytest

from edgeserve.contracts import topics
from edgeserve.contracts.errors import TransientError
from edgeserve.link import mqtt
from edgeserve.link.base import LinkConfig, LinkState
from edgeserve.link.mqtt import MqttLink

CONNACK = bytes([0x20, 3, 0, 0, 0])  # session not present, success, no properties


class TestReconnect:
    def test_a_killed_broker_is_found_again_and_subscriptions_are_renewed(self, broker, peer, until) -> None:
        device = peer("default.a", subscribe=(topics.desired("default.a"),))
        device.react = lambda state: (
            state.connected and device.link.publish(topics.reported("default.a"), b"again", retain=True)
        )
        manager = peer("fm", subscribe=(topics.EVERY_REPORTED,))
        broker.kill()
        until(lambda: not device.link.connected and not manager.link.connected, "both have noticed")
        with pytest.raises(TransientError):
            device.link.publish(topics.reported("default.a"), b"lost")
        broker.start()
        until(lambda: device.connects() == 2 and manager.connects() == 2, "both are back")
        assert not device.states[-1].session_present, "a killed broker has forgotten the session"
        until(lambda: b"again" in manager.payloads(), "what on_state publishes arrives")
        manager.publish(topics.desired("default.a"), b"document", retain=True)
        until(device.messages.__len__, "the renewed subscription works")

    def test_a_session_survives_a_clean_restart_of_the_broker(self, broker, peer, until) -> None:
        device = peer("default.a", subscribe=(topics.ack("default.a"),))
        device.link.stop()
        manager = peer("fm")
        assert manager.publish(topics.ack("default.a"), b"while away").wait(5)
        assert manager.publish(topics.HALT, b"retained", retain=True).wait(5)
        broker.stop()
        broker.start()
        device = peer("default.a", subscribe=(topics.HALT,))
        assert device.states[0] == LinkState(connected=True, session_present=True)
        until(lambda: sorted(device.payloads()) == [b"retained", b"while away"], "both arrive")

    def test_a_clean_start_forgets_the_session(self, peer) -> None:
        peer("default.a").link.stop()
        assert peer("default.a").states[0].session_present
        peer("default.a", clean_start=True).link.stop()
        assert not peer("fm", clean_start=True).states[0].session_present

    def test_what_was_not_acknowledged_when_the_connection_broke_fails_and_is_not_sent_again(
        self, silent_server, until, monkeypatch
    ) -> None:
        monkeypatch.setattr(mqtt, "MQTT_FLUSH_S", 0.1)
        url = silent_server(CONNACK)
        link = MqttLink(LinkConfig(url=url, client_id="x"), on_message=print, on_state=lambda _state: None)
        link.start()
        until(lambda: link.connected, "it is connected")
        token = link.publish("t", b"unanswered")
        assert not token.wait(0.05)
        assert not token.reason
        assert not link.drain(0.05)
        stopping = threading.Thread(target=link.stop)
        stopping.start()
        assert not token.wait(10)
        assert token.reason == "connection lost"
        stopping.join()
        with pytest.raises(TransientError):
            link.publish("t", b"after the stop")

    @pytest.mark.parametrize(
        ("answer", "reason", "attempts"),
        [
            pytest.param(CONNACK + b"\xe0\x01\x8e", "Session taken over", [4, 5, 6], id="taken-over"),
            pytest.param(CONNACK + b"\xe0\x01\x8b", "Server shutting down", [0, 1, 2], id="shutting-down"),
            pytest.param(b"\x20\x03\x00\x87\x00", "not authorised: ", [4, 5, 6], id="not-authorised"),
            pytest.param(b"\x20\x03\x00\x89\x00", "refused: ", [0, 1, 2], id="busy"),
        ],
    )
    def test_a_broker_that_throws_out_is_named_and_approached_ever_more_slowly(
        self, silent_server, until, monkeypatch, answer: bytes, reason: str, attempts: list[int]
    ) -> None:
        seen: list[int] = []
        monkeypatch.setattr(mqtt, "next_delay", lambda attempt, _random: seen.append(attempt) or 0.0)
        states: list[LinkState] = []
        link = MqttLink(LinkConfig(url=silent_server(answer), client_id="x"), on_message=print, on_state=states.append)
        link.start()
        until(lambda: len(seen) >= 3, "it tried three times")
        link.stop()
        assert seen[:3] == attempts
        assert reason in next(state.reason for state in states if not state.connected)

    @pytest.mark.parametrize(
        "answer",
        [
            pytest.param(b"HTTP/1.1 400 Bad Request\r\n\r\n", id="http"),
            pytest.param(b"\x20\xff\xff\xff\xff\xff", id="endless-length"),
            pytest.param(CONNACK + b"\x30\x02\xff\xff", id="publish-beyond-its-end"),
            pytest.param(CONNACK + b"\x40\x01\x00", id="short-puback"),
            pytest.param(b"\x20\x02\x00\x87", id="refused-without-properties"),
        ],
    )
    def test_a_server_that_is_no_broker_is_left_and_tried_again(
        self, silent_server, until, monkeypatch, answer: bytes
    ) -> None:
        monkeypatch.setattr(mqtt, "MQTT_CONNECT_TIMEOUT_S", 0.3)
        states: list[LinkState] = []
        config = LinkConfig(url=silent_server(answer), client_id="x")
        link = MqttLink(config, on_message=print, on_state=states.append)
        link.start()
        until(lambda: any(not state.connected for state in states), "it gave up")
        assert states[-1].reason
        assert link._thread.is_alive()
        link.stop()

    def test_a_broker_that_does_not_answer_is_given_up(self, silent_server, until, monkeypatch) -> None:
        monkeypatch.setattr(mqtt, "MQTT_CONNECT_TIMEOUT_S", 0.2)
        states: list[LinkState] = []
        link = MqttLink(LinkConfig(url=silent_server(b""), client_id="x"), on_message=print, on_state=states.append)
        link.start()
        until(states.__len__, "it gave up")
        assert states[0].reason == "the broker does not answer"
        link.stop()

    def test_no_broker_is_told_once_and_stopping_does_not_wait_for_one(self, until) -> None:
        with socket.create_server(("127.0.0.1", 0)) as gone:
            port = gone.getsockname()[1]
        states: list[LinkState] = []
        config = LinkConfig(url=f"mqtt://127.0.0.1:{port}", client_id="x")
        link = MqttLink(config, on_message=print, on_state=states.append)
        link.start()
        until(states.__len__, "it was told")
        assert f"127.0.0.1:{port}" in states[0].reason
        link.stop()
        assert not link._thread.is_alive()
        assert len(set(states)) == len(states)

    def test_a_link_that_was_never_started_can_be_stopped(self) -> None:
        link = MqttLink(LinkConfig(url="mqtt://127.0.0.1:1", client_id="x"), on_message=print, on_state=print)
        link.stop()
        link.stop()
