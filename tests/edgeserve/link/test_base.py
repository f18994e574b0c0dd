from __future__ import annotations

import pytest

from edgeserve.contracts.errors import InputError
from edgeserve.link.base import BrokerAddress, LinkConfig, Will


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        pytest.param("mqtt://broker", BrokerAddress("broker", 1883, False), id="default-port"),
        pytest.param("mqtts://broker", BrokerAddress("broker", 8883, True), id="default-tls-port"),
        pytest.param("mqtt://127.0.0.1:4711/", BrokerAddress("127.0.0.1", 4711, False), id="port"),
        pytest.param("mqtt://[::1]:4711", BrokerAddress("::1", 4711, False), id="ipv6"),
    ],
)
def test_a_broker_url_is_read(url: str, expected: BrokerAddress) -> None:
    assert LinkConfig(url=url, client_id="x").address() == expected


@pytest.mark.parametrize(
    "url",
    [
        "",
        "broker",
        "broker:1883",
        "http://broker",
        "mqtt://",
        "mqtt://broker:0",
        "mqtt://broker:70000",
        "mqtt://broker:x",
        "mqtt://user:secret@broker",
        "mqtt://broker/topic",
        "mqtt://broker?clean=1",
        "mqtt://[::1",
    ],
)
def test_what_is_not_a_broker_url_is_refused(url: str) -> None:
    with pytest.raises(InputError) as caught:
        LinkConfig(url=url, client_id="x")
    assert caught.value.hint
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    "wrong",
    [
        {"client_id": ""},
        {"client_id": "x" * 257},
        {"receive_maximum": 0},
        {"receive_maximum": 65536},
        {"session_expiry_s": -1},
        {"session_expiry_s": 1 << 32},
    ],
    ids=lambda wrong: "-".join(wrong),
)
def test_a_setting_out_of_range_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError):
        LinkConfig(**{"url": "mqtt://broker", "client_id": "x", **wrong})


def test_a_password_does_not_show() -> None:
    assert "hidden" not in repr(LinkConfig(url="mqtt://broker", client_id="x", username="u", password="hidden"))


@pytest.mark.parametrize(
    ("topic", "payload"),
    [("", b""), ("es1/#", b""), ("es1/+/x", b""), ("t" * 1025, b""), ("t", bytes(65537))],
    ids=["no-topic", "hash", "plus", "long-topic", "long-payload"],
)
def test_a_will_that_no_broker_takes_is_refused(topic: str, payload: bytes) -> None:
    with pytest.raises(InputError):
        Will(topic=topic, payload=payload)
