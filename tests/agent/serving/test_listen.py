from __future__ import annotations

import pytest

from edgeserve.contracts.errors import InputError
from edgeserve_agent.serving.listen import Address, listen_address


@pytest.mark.parametrize(
    ("text", "address", "url"),
    [
        ("127.0.0.1:8000", Address("127.0.0.1", 8000), "http://127.0.0.1:8000"),
        ("127.1.2.3:0", Address("127.1.2.3", 0), "http://127.1.2.3:8000"),
        ("localhost:8000", Address("127.0.0.1", 8000), "http://127.0.0.1:8000"),
        ("[::1]:8000", Address("::1", 8000), "http://[::1]:8000"),
    ],
)
def test_loopback_is_allowed(text: str, address: Address, url: str):
    found = listen_address(text, insecure_dev=False)
    assert found == address
    assert found.url(8000) == url


@pytest.mark.parametrize("text", ["0.0.0.0:8000", "[::]:8000", "192.168.1.2:80", "[2001:db8::1]:80"])
def test_a_public_address_needs_to_be_asked_for(text: str):
    with pytest.raises(InputError) as caught:
        listen_address(text, insecure_dev=False)
    assert "neither TLS nor tokens" in caught.value.message
    assert "--insecure-dev" in caught.value.hint
    assert listen_address(text, insecure_dev=True).port in (80, 8000)


@pytest.mark.parametrize(
    "text",
    [
        "", "8000", ":8000", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:-1", "127.0.0.1:8٢", "a b:1",
        "127.0.0.1:00655350",
    ],
)  # fmt: skip
def test_what_is_not_an_address_is_refused(text: str):
    with pytest.raises(InputError):
        listen_address(text, insecure_dev=True)
