from __future__ import annotations

import base64
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from edgeserve.contracts.errors import ConflictError, DeviceError, InputError, NotFoundError
from edgeserve.trust.keys import PublicKey, SigningKey


def test_a_saved_key_is_the_same_key_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    key = SigningKey.generate()
    key.save(tmp_path / "manager.pem")
    assert (tmp_path / "manager.pem").stat().st_mode & 0o777 == 0o600
    assert SigningKey.load(tmp_path / "manager.pem").public == key.public
    assert [path.name for path in tmp_path.iterdir()] == ["manager.pem"]


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "manager.pem"
    SigningKey.generate().save(path)
    before = path.read_bytes()
    with pytest.raises(ConflictError, match="exists already"):
        SigningKey.generate().save(path)
    assert path.read_bytes() == before


def test_a_key_that_cannot_be_saved_is_an_error_of_the_device(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="cannot write"):
        SigningKey.generate().save(tmp_path / "nowhere" / "manager.pem")


def pem(key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey, password: bytes | None = None) -> bytes:
    how = BestAvailableEncryption(password) if password else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how)


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "not an unencrypted private key"),
        (b"garbage", "not an unencrypted private key"),
        (pem(ed25519.Ed25519PrivateKey.generate())[:60], "not an unencrypted private key"),
        (pem(ed25519.Ed25519PrivateKey.generate(), b"secret"), "not an unencrypted private key"),
        (pem(ec.generate_private_key(ec.SECP256R1())), "another kind than Ed25519"),
    ],
    ids=["empty", "garbage", "cut", "encrypted", "ecdsa"],
)
def test_a_file_that_is_no_signing_key_is_refused(tmp_path: Path, data: bytes, word: str) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(data)
    path.chmod(0o600)
    with pytest.raises(InputError, match=word) as caught:
        SigningKey.load(path)
    assert "key.pem" in caught.value.message


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"manager\.pem is missing"):
        SigningKey.load(tmp_path / "manager.pem")
    with pytest.raises(InputError, match="cannot read"):
        SigningKey.load(tmp_path)


@pytest.mark.parametrize("mode", [0o644, 0o602, 0o606, 0o777], ids=oct)
def test_a_key_that_everyone_may_read_or_write_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "manager.pem"
    SigningKey.generate().save(path)
    path.chmod(mode)
    with pytest.raises(InputError, match="open to every user") as caught:
        SigningKey.load(path)
    assert "chmod 600" in caught.value.hint


def test_a_public_key_is_one_line_of_text_and_back() -> None:
    key = SigningKey.generate().public
    prefix, _, encoded = key.text.partition(":")
    assert prefix == "ed25519"
    assert base64.b64decode(encoded) == key.raw
    assert PublicKey.from_text(key.text) == key
    assert len(key.key_id) == 64


def test_key_ids_are_those_of_the_tuf_specification() -> None:
    """sha256 of the key's canonical JSON, computed here by hand."""
    import hashlib

    key = PublicKey(bytes(range(32)))
    canonical = '{"keytype":"ed25519","keyval":{"public":"' + key.raw.hex() + '"},"scheme":"ed25519"}'
    assert key.key_id == hashlib.sha256(canonical.encode()).hexdigest()


@pytest.mark.parametrize(
    "text",
    ["", "ed25519:", "rsa:" + "A" * 44, "ed25519:" + "A" * 42, "ed25519:" + base64.b64encode(bytes(31)).decode(),
     "ed25519:" + base64.b64encode(bytes(33)).decode(), "ed25519:" + "!" * 44, "ed25519:" + "ä" * 44,
     PublicKey(bytes(range(32))).text + "\n", "ed25519:\x1b[31m"],
    ids=ascii,
)  # fmt: skip
def test_text_that_is_no_public_key_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="public key") as caught:
        PublicKey.from_text(text)
    assert "\x1b" not in caught.value.message
