from __future__ import annotations

import msgspec
import pytest

from edgeserve.contracts.desired import ACK_TYPE, DESIRED_TYPE, HALT_TYPE, Generation, Halt
from edgeserve.contracts.errors import InputError, TrustError
from edgeserve.contracts.reported import Ack
from edgeserve.trust.keys import SigningKey
from edgeserve_agent.journal import Journal
from edgeserve_agent.orders import accept_ack, accept_desired, accept_halt

DEVICE = "default.pi-1"
RELEASE = "sha256:" + "a" * 64
NOW = 1_800_000_000.0


@pytest.fixture
def fleet(manager):
    manager.n = 5
    return manager


@pytest.fixture
def journal(fleet):
    seen = fleet.document(gen=Generation(2, 5), issued_at=NOW - 10, expires_at=NOW + 10)
    return Journal(install_id="i", epoch=1).with_desired(seen, "sha256:" + "b" * 64)


def document(fleet, **changes):
    fields = {"gen": Generation(2, 6), "issued_at": NOW - 1, "expires_at": NOW + 100, **changes}
    return fleet.document(**fields)


def accept(fleet, journal, data, *, now=NOW):
    return accept_desired(data, key=fleet.key.public, device=DEVICE, journal=journal, now=now)


@pytest.mark.parametrize("gen", [Generation(2, 6), Generation(3, 0)], ids=str)
def test_a_newer_generation_is_accepted(fleet, journal, gen):
    accepted = accept(fleet, journal, fleet.sign(document(fleet, gen=gen)))
    assert accepted is not None
    assert accepted.desired.gen == gen
    assert accepted.digest.startswith("sha256:")


def test_the_generation_that_is_known_changes_nothing(fleet, journal):
    assert accept(fleet, journal, fleet.sign(document(fleet, gen=Generation(2, 5)))) is None


def test_the_first_document_of_a_device_may_be_generation_zero(fleet):
    fresh = Journal(install_id="i", epoch=1)
    assert accept(fleet, fresh, fleet.sign(document(fleet, gen=Generation(0, 0)))) is not None


def padded(fleet):
    return fleet.sign(document(fleet, issuer="x" * 8000))


def forged(fleet):
    genuine, fleet.key = fleet.key, SigningKey.generate()
    data = fleet.sign(document(fleet))
    fleet.key = genuine
    return data


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda fleet: b"not json", InputError, "not valid"),
        (lambda fleet: b"", InputError, "not valid"),
        (lambda fleet: b"{}", InputError, "not valid"),
        (lambda fleet: b"[" * 8000, InputError, "not valid"),
        (padded, InputError, "at most"),
        (forged, TrustError, "signature"),
        (lambda fleet: fleet.sign(document(fleet)).replace(b'"sig":"', b'"sig":"AAAA'), TrustError, "signature"),
        (lambda fleet: fleet.sign(document(fleet), HALT_TYPE), TrustError, "signed as"),
        (lambda fleet: fleet.sign(Halt(id="h", issuer="fm", term=1, version=1)), InputError, "not valid"),
        (lambda fleet: fleet.sign(document(fleet, device="default.pi-2")), TrustError, "is for default.pi-2"),
        (lambda fleet: fleet.sign(document(fleet, gen=Generation(2, 4))), TrustError, "older"),
        (lambda fleet: fleet.sign(document(fleet, gen=Generation(1, 99))), TrustError, "older"),
        (lambda fleet: fleet.sign(document(fleet, expires_at=NOW)), TrustError, "expired"),
    ],
    ids=[
        "not JSON", "empty", "no envelope", "deep", "too large", "another key", "broken signature", "another type",
        "another document", "another device", "older n", "older term", "expired",
    ],
)  # fmt: skip
def test_a_document_that_is_not_right_is_refused(fleet, journal, make, error, words):
    with pytest.raises(error, match=words):
        accept(fleet, journal, make(fleet))


def test_a_clock_that_was_set_back_does_not_bring_an_expired_document_back(fleet, journal):
    old = fleet.sign(document(fleet, issued_at=NOW - 1000, expires_at=NOW - 100))
    with pytest.raises(TrustError, match="expired"):
        accept(fleet, journal, old, now=0.0)


@pytest.mark.parametrize(("term", "version", "new"), [(1, 3, True), (2, 0, True), (1, 2, False), (1, 1, False)])
def test_only_a_newer_halt_list_counts(fleet, journal, term, version, new):
    def halt(term, version):
        return Halt(id="h", issuer="fm", term=term, version=version, releases=(RELEASE,))

    journal = msgspec.structs.replace(journal, halt=halt(1, 2))
    data = fleet.sign(halt(term, version), HALT_TYPE)
    assert (accept_halt(data, key=fleet.key.public, journal=journal) is not None) is new


def test_an_acknowledgement_is_for_this_device_and_signed(fleet):
    ack = Ack(device=DEVICE, install_id="i", epoch=1, seq=1)
    key = fleet.key.public
    assert accept_ack(fleet.sign(ack, ACK_TYPE), key=key, device=DEVICE) == ack
    with pytest.raises(TrustError, match="this is"):
        accept_ack(fleet.sign(ack, ACK_TYPE), key=key, device="default.pi-2")
    with pytest.raises(TrustError):
        accept_ack(fleet.sign(ack, DESIRED_TYPE), key=key, device=DEVICE)
