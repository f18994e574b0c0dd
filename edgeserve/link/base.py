"""The contract of a link to a message broker: documents go in and out, the link stays up by itself."""

from __future__ import annotations

import threading
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from edgeserve.contracts.errors import InputError
from edgeserve.contracts.limits import MAX_REPORT_BYTES, MQTT_RECEIVE_MAXIMUM, MQTT_SESSION_EXPIRY_S

_DEFAULT_PORTS = {"mqtt": 1883, "mqtts": 8883}


@dataclass(frozen=True, kw_only=True)
class Will:
    """What the broker publishes (QoS 1, retained) when the client is gone without a goodbye."""

    topic: str
    payload: bytes

    def __post_init__(self) -> None:
        if not self.topic or any(sign in self.topic for sign in "+#\0") or len(self.topic) > 1024:
            raise InputError(f"topic {self.topic[:80]!r} of the last will is empty, too long or has a wildcard")
        if len(self.payload) > MAX_REPORT_BYTES:
            raise InputError(f"last will has {len(self.payload)} bytes, at most {MAX_REPORT_BYTES} are allowed")


@dataclass(frozen=True)
class BrokerAddress:
    """Where a broker listens."""

    host: str
    port: int
    tls: bool


@dataclass(frozen=True, kw_only=True)
class LinkConfig:
    """How to reach the broker and who says so."""

    url: str
    """`mqtt://host[:port]` or `mqtts://host[:port]`; credentials are fields of their own, never part of it."""
    client_id: str
    """Names the session that the broker keeps; two clients with one id push each other out."""
    username: str = ""
    password: str = field(default="", repr=False)
    will: Will | None = None
    clean_start: bool = False
    """Forget the session on every connect. Sessions opened so do not survive a restart of mosquitto."""
    session_expiry_s: int = MQTT_SESSION_EXPIRY_S
    receive_maximum: int = MQTT_RECEIVE_MAXIMUM
    """QoS 1 messages that the broker may send before the oldest is acknowledged: back-pressure with `manual_ack`.
    A hint to mosquitto 2.0.11, which sends more once the first were acknowledged."""
    ca_file: str = ""
    """PEM file of the authorities that may sign the broker's certificate; empty = those of the system."""
    manual_ack: bool = False
    """The broker counts a message as delivered only when `Message.ack` was called."""

    def __post_init__(self) -> None:
        self.address()
        if not self.client_id or len(self.client_id.encode()) > 256:
            raise InputError(f"MQTT client id {self.client_id[:40]!r} must have 1 to 256 bytes")
        if not 1 <= self.receive_maximum <= 65535:
            raise InputError(f"receive maximum {self.receive_maximum} is not between 1 and 65535")
        if not 0 <= self.session_expiry_s < 1 << 32:
            raise InputError(f"session expiry of {self.session_expiry_s} s is not between 0 and 2^32 - 1")

    def address(self) -> BrokerAddress:
        """Host, port and TLS from `url`.

        Raises:
            InputError: It is not the URL of a broker.
        """
        hint = "write mqtt://HOST:PORT or mqtts://HOST:PORT"
        try:
            parts = urllib.parse.urlsplit(self.url)
            port = parts.port
        except ValueError:
            raise InputError(f"broker URL {self.url[:120]!r} is not a URL", hint=hint) from None
        if parts.scheme not in _DEFAULT_PORTS or not parts.hostname or port == 0:
            raise InputError(f"broker URL {self.url[:120]!r} does not name a broker", hint=hint)
        if parts.username is not None or parts.password is not None:
            raise InputError(f"the broker URL for {parts.hostname} carries credentials", hint="give them separately")
        if parts.path.strip("/") or parts.query or parts.fragment:
            raise InputError(f"broker URL {self.url[:120]!r} has something behind the port", hint=hint)
        return BrokerAddress(parts.hostname, port or _DEFAULT_PORTS[parts.scheme], parts.scheme == "mqtts")


@dataclass(frozen=True, kw_only=True)
class Message:
    """One message that came in."""

    topic: str
    payload: bytes
    retain: bool
    """It was retained by the broker and is delivered because of a subscription, not because it is new."""
    ack: Callable[[], None]
    """Tell the broker that the message is safe: from any thread, once, in the order of arrival (MQTT 5, 4.6). Does
    nothing without `manual_ack`, the second time, and when the connection it came by is gone: it then comes again."""


@dataclass(frozen=True, kw_only=True)
class LinkState:
    """What became of the connection."""

    connected: bool
    session_present: bool = False
    """The broker still had the session; when not, messages sent meanwhile may be lost: publish all documents again."""
    reason: str = ""
    """Why it is not connected, for operators."""


class PublishToken:
    """Follows one publication until the broker has acknowledged it (QoS 1) or it was written out (QoS 0)."""

    def __init__(self) -> None:
        self._settled = threading.Event()
        self._reason = ""

    @property
    def acknowledged(self) -> bool:
        """Whether the broker has it."""
        return self._settled.is_set() and not self._reason

    @property
    def reason(self) -> str:
        """Why it will never be acknowledged; empty while it may be or when it was."""
        return self._reason

    def wait(self, timeout_s: float) -> bool:
        """Wait until the broker has it.

        Never call it from `on_message` or `on_state`: they run on the thread that reads the acknowledgement.

        Returns:
            False when it was refused, the connection broke first, or `timeout_s` passed.
        """
        self._settled.wait(timeout_s)
        return self.acknowledged

    def settle(self, reason: str = "") -> None:
        """Called by the link: acknowledged, or with a reason, failed for good."""
        self._reason = reason
        self._settled.set()


class Link(Protocol):
    """A connection that finds its way back. `on_message` and `on_state` are called on one thread of the link.

    Callbacks may call any method, but must not wait for anything that comes by the link.
    """

    def start(self) -> None:
        """Begin to connect, and to reconnect for ever; returns at once."""

    def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, expiry_s: int | None = None
    ) -> PublishToken:
        """Hand a message to the connection, from any thread; never blocks on the network.

        Nothing is queued across connections: documents are level-triggered, so a caller publishes its latest ones
        when `on_state` says connected. What was not acknowledged when the connection broke is not sent again either,
        because it would overwrite what is newer.

        Args:
            topic: Without wildcards.
            payload: At most `MAX_MQTT_PACKET_BYTES` with topic and header.
            qos: 0 or 1.
            retain: The broker keeps it for later subscribers; an empty payload removes it.
            expiry_s: Seconds after which the broker drops it undelivered.

        Raises:
            TransientError: Not connected, or too many messages wait for an acknowledgement.
            InputError: The topic has a wildcard or the payload is too large.
        """

    def subscribe(self, topic: str, qos: int = 1) -> None:
        """Subscribe now if connected, and anew on every connect (a broker may have lost the session)."""

    def drain(self, timeout_s: float) -> bool:
        """Wait until nothing waits for an acknowledgement; False when `timeout_s` passed first."""

    def stop(self) -> None:
        """Let messages in flight be acknowledged for about two seconds, then say goodbye: the will does not fire."""

    @property
    def connected(self) -> bool:
        """Whether `publish` can work now."""
