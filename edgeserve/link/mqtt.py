"""The link over MQTT 5 (OASIS standard, 2019), on paho-mqtt. The only file that imports paho.

Why not paho's own thread (`loop_start`): its reconnect delay has no jitter, so a fleet returns in step; it keeps
unacknowledged messages and sends them after a reconnect behind newer ones, which would leave an old document retained;
and it waits with `select`, which ends at 1024 descriptors. Here one thread drives paho through its interface for
external loops, and every connection gets a client of its own, so nothing old survives one.
"""

from __future__ import annotations

import logging
import random
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from edgeserve.contracts.errors import InputError, TransientError
from edgeserve.contracts.limits import (
    BACKOFF_MAX_S,
    MAX_MQTT_PACKET_BYTES,
    MQTT_CONNECT_TIMEOUT_S,
    MQTT_FLUSH_S,
    MQTT_KEEPALIVE_S,
    MQTT_MAX_IN_FLIGHT,
    MQTT_MAX_UNACKNOWLEDGED,
    MQTT_WILL_DELAY_S,
)
from edgeserve.link.backoff import next_delay
from edgeserve.link.base import LinkConfig, LinkState, Message, PublishToken
from edgeserve.link.in_flight import InFlight
from edgeserve.link.sockets import Waker, tls_context

_log = logging.getLogger("edgeserve.link")

_TICK_S = 5.0  # paho looks at its keep-alive clock this often; everything else wakes the thread
_HEADER_BYTES = 64  # fixed header, packet id and properties of a PUBLISH, generously
_REFUSED_ATTEMPT = 4  # a refusal is not cured by hurry: its first delay is already up to 16 s
_AUTHENTICATION = {0x86, 0x87, 0x8A, 0x8C}  # bad user name or password, not authorised, banned, bad method
_BUSY = {0x88, 0x89}  # server unavailable, server busy
_TAKEN_OVER = 0x8E
_LOST = "connection lost"


class MqttLink:
    """A `Link` to one broker.

    Args:
        config: Where and who.
        on_message: Called with every message; an exception is logged and the message counts as handled.
        on_state: Called on every connect, and when a reason for not being connected is new. Publish here.

    Raises:
        InputError: The file of certificate authorities cannot be used.
    """

    def __init__(
        self, config: LinkConfig, *, on_message: Callable[[Message], None], on_state: Callable[[LinkState], None]
    ) -> None:
        self._config = config
        self._on_message = on_message
        self._on_state = on_state
        self._tls = tls_context(config)
        self._subscriptions: dict[str, int] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._connection: _Connection | None = None
        self._told = LinkState(connected=False)
        self._waker = Waker()
        self._thread = threading.Thread(target=self._run, name=f"link-{config.client_id}", daemon=True)

    def start(self) -> None:
        """See `Link.start`. A link is started once."""
        self._thread.start()

    @property
    def connected(self) -> bool:
        """See `Link.connected`."""
        connection = self._connection
        return connection is not None and connection.open

    def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, expiry_s: int | None = None
    ) -> PublishToken:
        """See `Link.publish`."""
        if not topic or any(sign in topic for sign in "+#\0"):
            raise InputError(f"topic {topic[:80]!r} is empty or has a wildcard")
        if len(payload) + len(topic.encode()) + _HEADER_BYTES > MAX_MQTT_PACKET_BYTES:
            raise InputError(f"message of {len(payload)} bytes for {topic} is too large for MQTT")
        connection = self._connection
        if connection is None or self._stopping.is_set():
            raise TransientError(f"not connected to the broker at {self._config.url}")
        return connection.publish(topic, payload, qos, retain, expiry_s)

    def subscribe(self, topic: str, qos: int = 1) -> None:
        """See `Link.subscribe`."""
        with self._lock:
            self._subscriptions[topic] = qos
            connection = self._connection
        if connection is not None and connection.open:
            connection.subscribe(topic, qos)

    def drain(self, timeout_s: float) -> bool:
        """See `Link.drain`."""
        connection = self._connection
        return connection is None or connection.drain(timeout_s)

    def stop(self) -> None:
        """See `Link.stop`. Stopping twice, or before the start, is no error."""
        inside = threading.current_thread() is self._thread
        if not inside and not self._stopping.is_set():
            self.drain(MQTT_FLUSH_S)
        self._stopping.set()
        self._waker.wake()
        if self._thread.is_alive() and not inside:
            # A thread that is stuck in name resolution or a TCP connect is left behind; it ends by itself.
            self._thread.join(MQTT_FLUSH_S + 0.5)
        if self._thread.ident is None:
            self._waker.close()

    def _run(self) -> None:
        attempt = 0
        while not self._stopping.is_set():
            connection = _Connection(self._config, self._tls, self._waker, self._stopping, self._handle)
            connection.on_open = self._opened
            with self._lock:
                self._connection = connection
            connection.run()
            with self._lock:
                self._connection = None
            connection.close()
            self._tell(LinkState(connected=False, reason=connection.reason))
            if connection.lasted_s > BACKOFF_MAX_S:
                attempt = 0  # a broker that accepts and soon throws out again earns no fresh start
            if connection.refused:
                attempt = max(attempt, _REFUSED_ATTEMPT)
            delay = next_delay(attempt, random.random)
            attempt += 1
            if not self._stopping.is_set():
                _log.info("broker %s: %s; next attempt in %.1f s", self._config.url, connection.reason, delay)
                self._stopping.wait(delay)
        self._waker.close()

    def _opened(self, connection: _Connection, session_present: bool) -> None:
        with self._lock:
            wanted = dict(self._subscriptions)
        for topic, qos in wanted.items():
            connection.subscribe(topic, qos)
        _log.info("connected to %s, session %s", self._config.url, "resumed" if session_present else "new")
        self._tell(LinkState(connected=True, session_present=session_present))

    def _handle(self, message: Message) -> None:
        try:
            self._on_message(message)
        except Exception:  # noqa: BLE001 - a handler's bug must not deafen the device
            _log.exception("handling a message on %s failed", message.topic)

    def _tell(self, state: LinkState) -> None:
        if not state.connected and state == self._told:
            return
        self._told = state
        try:
            self._on_state(state)
        except Exception:  # noqa: BLE001 - as above
            _log.exception("handling the link state %s failed", state)


class _Connection:
    """One TCP connection and its paho client. Everything in flight ends with it."""

    def __init__(
        self,
        config: LinkConfig,
        tls: ssl.SSLContext | None,
        waker: Waker,
        stopping: threading.Event,
        handle: Callable[[Message], None],
    ) -> None:
        self.open = False
        self.refused = False
        self.reason = ""
        self.on_open: Callable[[_Connection, bool], None] = lambda _connection, _session: None
        self._config = config
        self._waker = waker
        self._stopping = stopping
        self._handle = handle
        self._opened_at: float | None = None
        self._in_flight = InFlight()
        self._acknowledging = threading.Lock()
        self._client = self._new_client(tls)

    @property
    def lasted_s(self) -> float:
        """Seconds since the broker accepted it; 0 when it never did."""
        return 0.0 if self._opened_at is None else time.monotonic() - self._opened_at

    def run(self) -> None:
        """Connect and serve the connection until it ends; `reason` then says why."""
        address = self._config.address()
        try:
            self._client.connect(
                address.host,
                address.port,
                keepalive=MQTT_KEEPALIVE_S,
                clean_start=self._config.clean_start,
                properties=self._connect_properties(),
            )
            sock = self._client.socket()
            if sock is not None:
                # Small packets both ways: Nagle's algorithm against delayed acknowledgements cost 40 ms a window.
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # type: ignore[attr-defined]
            self._serve()
        except OSError as error:
            self.reason = self.reason or f"cannot reach the broker at {address.host}:{address.port}: {error}"
        except Exception as error:  # noqa: BLE001 - whatever a broker's bytes do to paho, the link must come back
            _log.exception("the connection to %s failed", self._config.url)
            self.reason = f"the connection failed: {error}"
        finally:
            self.open = False

    def close(self) -> None:
        """Close the socket and fail what was not acknowledged."""
        remaining = self._client.socket()
        if remaining is not None:
            remaining.close()
        self._in_flight.close(_LOST)

    def publish(self, topic: str, payload: bytes, qos: int, retain: bool, expiry_s: int | None) -> PublishToken:
        if not self.open:
            raise TransientError(f"not connected to the broker at {self._config.url}")
        properties = None
        if expiry_s is not None:
            properties = _properties(PacketTypes.PUBLISH, MessageExpiryInterval=expiry_s)
        with self._in_flight.handing_over():
            info = self._client.publish(topic, payload, qos=qos, retain=retain, properties=properties)
            if info.rc == paho.MQTT_ERR_QUEUE_SIZE:
                raise TransientError(f"{MQTT_MAX_UNACKNOWLEDGED} messages wait for the broker's acknowledgement")
            token = self._in_flight.add(info.mid) if info.rc == paho.MQTT_ERR_SUCCESS else None
        if token is None:
            raise TransientError(f"the connection to the broker at {self._config.url} is gone")
        self._waker.wake()
        return token

    def subscribe(self, topic: str, qos: int) -> None:
        self._client.subscribe(topic, qos)
        self._waker.wake()

    def drain(self, timeout_s: float) -> bool:
        return self._in_flight.drain(timeout_s)

    def _serve(self) -> None:
        """Move bytes between socket and paho until the socket is closed by either side."""
        answer_by = time.monotonic() + MQTT_CONNECT_TIMEOUT_S
        goodbye_by: float | None = None
        poller = select.poll()
        poller.register(self._waker.fileno(), select.POLLIN)
        while (sock := self._client.socket()) is not None:
            wants = select.POLLIN | (select.POLLOUT if self._client.want_write() else 0)
            poller.register(sock.fileno(), wants)
            poller.poll(1000.0 * (_TICK_S if self.open and goodbye_by is None else 0.1))
            self._waker.clear()
            self._read(sock)
            if self._client.want_write():
                self._client.loop_write()
            self._client.loop_misc()
            now = time.monotonic()
            if goodbye_by is not None or self._stopping.is_set():
                if goodbye_by is None and self.open:
                    goodbye_by = now + MQTT_FLUSH_S
                    self._client.disconnect()
                elif goodbye_by is None or now > goodbye_by:
                    return
            elif not self.open and now > answer_by:
                self.reason = "the broker does not answer"
                return

    def _read(self, sock: Any) -> None:  # noqa: ANN401 - a socket or a TLS socket
        """Read until the socket is empty. TLS may hold decrypted bytes that `poll` does not see."""
        self._client.loop_read()
        while self._client.socket() is sock and isinstance(sock, ssl.SSLSocket) and sock.pending():
            self._client.loop_read()

    def _new_client(self, tls: ssl.SSLContext | None) -> paho.Client:
        config = self._config
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=config.client_id,
            protocol=paho.MQTTv5,
            reconnect_on_failure=False,
            manual_ack=config.manual_ack,
        )
        client.connect_timeout = MQTT_CONNECT_TIMEOUT_S
        client.max_inflight_messages = MQTT_MAX_IN_FLIGHT
        client.max_queued_messages = MQTT_MAX_UNACKNOWLEDGED
        if tls is not None:
            client.tls_set_context(tls)
        if config.username:
            client.username_pw_set(config.username, config.password)
        if config.will is not None:
            delay = _properties(PacketTypes.WILLMESSAGE, WillDelayInterval=MQTT_WILL_DELAY_S)
            client.will_set(config.will.topic, config.will.payload, qos=1, retain=True, properties=delay)
        client.on_connect = self._connected
        client.on_disconnect = self._disconnected
        client.on_message = self._received
        client.on_publish = self._acknowledged
        client.on_subscribe = self._subscribed
        # With this callback set, paho leaves all writing to the thread that calls loop_write; `Waker` wakes it.
        client.on_socket_register_write = _nothing
        return client

    def _connect_properties(self) -> Properties:
        return _properties(
            PacketTypes.CONNECT,
            SessionExpiryInterval=self._config.session_expiry_s,
            ReceiveMaximum=self._config.receive_maximum,
            MaximumPacketSize=MAX_MQTT_PACKET_BYTES,
        )

    def _connected(
        self, _client: paho.Client, _data: object, flags: paho.ConnectFlags, code: ReasonCode, _p: object
    ) -> None:
        if code.is_failure:
            self.refused = code.value not in _BUSY
            kind = "not authorised" if code.value in _AUTHENTICATION else "refused"
            who = f"user {self._config.username!r}" if self._config.username else "no user name"
            self.reason = f"{kind}: the broker answered {code} to {who}"
            return
        self._opened_at = time.monotonic()
        self.open = True
        self.on_open(self, flags.session_present)

    def _disconnected(
        self, _client: paho.Client, _data: object, flags: paho.DisconnectFlags, code: ReasonCode, _p: object
    ) -> None:
        self.open = False
        if self._stopping.is_set():
            self.reason = "stopped"
        elif flags.is_disconnect_packet_from_server:
            self.refused = code.value in _AUTHENTICATION or code.value == _TAKEN_OVER
            kind = "not authorised: " if code.value in _AUTHENTICATION else ""
            self.reason = f"{kind}the broker ended the connection: {code}"
        else:
            self.reason = self.reason or _LOST

    def _received(self, client: paho.Client, _data: object, message: paho.MQTTMessage) -> None:
        pending = self._config.manual_ack and message.qos > 0

        def ack() -> None:
            nonlocal pending
            with self._acknowledging:
                if not pending or not self.open:
                    return
                pending = False
                client.ack(message.mid, message.qos)
            self._waker.wake()

        self._handle(Message(topic=message.topic, payload=bytes(message.payload), retain=message.retain, ack=ack))

    def _acknowledged(self, _client: paho.Client, _data: object, mid: int, code: ReasonCode, _p: object) -> None:
        self._in_flight.settle(mid, f"the broker refused it: {code}" if code.is_failure else "")

    def _subscribed(self, _c: paho.Client, _data: object, _mid: int, codes: list[ReasonCode], _p: object) -> None:
        for code in codes:
            if code.is_failure:
                _log.error("broker %s refused a subscription: %s", self._config.url, code)


def _nothing(*_arguments: object) -> None:
    """See where it is used."""


def _properties(packet_type: int, **values: int) -> Properties:
    properties = Properties(packet_type)  # type: ignore[no-untyped-call]
    for name, value in values.items():
        setattr(properties, name, value)
    return properties
