from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgeserve.link.base import LinkConfig, LinkState, Message, PublishToken
from edgeserve.link.mosquitto import Mosquitto
from edgeserve.link.mqtt import MqttLink

DEADLINE_S = 15.0


class Peer:
    """A link that remembers all that it was told."""

    def __init__(self, config: LinkConfig) -> None:
        self.messages: list[Message] = []
        self.states: list[LinkState] = []
        self.react: Callable[[LinkState], None] = lambda _state: None
        self.link = MqttLink(config, on_message=self.messages.append, on_state=self._state)

    def _state(self, state: LinkState) -> None:
        self.states.append(state)
        self.react(state)

    def publish(self, topic: str, payload: bytes, **options: object) -> PublishToken:
        return self.link.publish(topic, payload, **options)

    def payloads(self) -> list[bytes]:
        return [message.payload for message in list(self.messages)]

    def connects(self) -> int:
        return sum(state.connected for state in list(self.states))


def wait_until(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, f"waited in vain until {what}"
        time.sleep(0.005)


@pytest.fixture
def until() -> Callable[[Callable[[], object], str], None]:
    return wait_until


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    broker = Mosquitto(tmp_path / "broker")
    broker.add_users({"fm": "fm-secret", "default.a": "a-secret", "default.b": "b-secret"})
    broker.start()
    yield broker
    broker.kill()  # a clean stop takes 0.1 s longer; it has tests of its own


@pytest.fixture
def peer(broker: Mosquitto) -> Iterator[Callable[..., Peer]]:
    """Make a connected peer for a user of `broker`."""
    made: list[Peer] = []

    def make(user: str, *, wait: bool = True, subscribe: tuple[str, ...] = (), **options: object) -> Peer:
        settings = {
            "url": broker.url,
            "client_id": user,
            "username": user,
            "password": f"{user.rpartition('.')[2]}-secret",
        }
        peer = Peer(LinkConfig(**{**settings, **options}))
        made.append(peer)
        for topic in subscribe:
            peer.link.subscribe(topic)
        peer.link.start()
        if wait:
            wait_until(lambda: peer.link.connected and peer.connects(), f"{user} is connected")
        return peer

    yield make
    for each in made:
        each.link.stop()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("link-")]


@pytest.fixture
def silent_server() -> Iterator[Callable[[bytes], str]]:
    """Serve on a free port a fixed answer to whatever a client sends first, then say nothing more; the URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    connections: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def serve(answer: bytes) -> None:
        while True:
            try:
                connection, _address = listener.accept()
            except OSError:
                return
            connections.append(connection)
            try:
                connection.recv(4096)
                connection.sendall(answer)
            except OSError:
                continue

    def start(answer: bytes) -> str:
        thread = threading.Thread(target=serve, args=(answer,))
        threads.append(thread)
        thread.start()
        return f"mqtt://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    for connection in connections:
        connection.close()
    for thread in threads:
        thread.join(DEADLINE_S)
