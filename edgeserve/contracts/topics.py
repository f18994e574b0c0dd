"""MQTT topics, version 1 of the protocol (`es1`). `{d}` is a device id, `tenant.device`, one topic level."""

from __future__ import annotations

from typing import Final

from edgeserve.contracts.names import device_id

PREFIX: Final = "es1"
HALT: Final = f"{PREFIX}/all/halt"

EVERY_REPORTED: Final = f"{PREFIX}/+/up/reported"
EVERY_PRESENCE: Final = f"{PREFIX}/+/up/presence"
EVERY_EVENT: Final = f"{PREFIX}/+/up/event"
EVERY_STATS: Final = f"{PREFIX}/+/up/stats"


def desired(device: str) -> str:
    """Down, QoS 1, retained: the signed desired document."""
    return f"{PREFIX}/{device_id(device)}/desired"


def ack(device: str) -> str:
    """Down, QoS 1: signed cumulative acknowledgement of events."""
    return f"{PREFIX}/{device_id(device)}/ack"


def reported(device: str) -> str:
    """Up, QoS 1, retained: the reported document."""
    return f"{PREFIX}/{device_id(device)}/up/reported"


def presence(device: str) -> str:
    """Up, QoS 1, retained, also the last will."""
    return f"{PREFIX}/{device_id(device)}/up/presence"


def event(device: str) -> str:
    """Up, QoS 1: one deployment transition."""
    return f"{PREFIX}/{device_id(device)}/up/event"


def stats(device: str) -> str:
    """Up, QoS 0: cumulative counters, MessagePack."""
    return f"{PREFIX}/{device_id(device)}/up/stats"


def sender(topic: str) -> str:
    """The device that a topic under `es1/+/up/` belongs to.

    Raises:
        InputError: The topic is not one.
    """
    parts = topic.split("/")
    return device_id(parts[1] if len(parts) == 4 and parts[0] == PREFIX and parts[2] == "up" else "")
