"""Ed25519 keys (RFC 8032): private ones in PEM files, public ones as one line of text."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner, SSlibKey  # type: ignore[attr-defined]  # exported, without __all__

from edgeserve import atomic
from edgeserve.contracts.errors import InputError, NotFoundError
from edgeserve.contracts.limits import KIB

_PREFIX: Final = "ed25519:"
_RAW_BYTES: Final = 32
_MAX_PEM_BYTES: Final = 16 * KIB


@dataclass(frozen=True)
class PublicKey:
    """A public key; make it with `from_text` or take it from a `SigningKey`."""

    raw: bytes
    """32 bytes as in RFC 8032."""

    def __post_init__(self) -> None:
        if len(self.raw) != _RAW_BYTES:
            raise InputError(f"an Ed25519 public key has {_RAW_BYTES} bytes, not {len(self.raw)}")

    @classmethod
    def from_text(cls, text: str) -> PublicKey:
        """Read `ed25519:<base64 of 32 bytes>`.

        Raises:
            InputError: `text` is not that.
        """
        try:
            if not text.startswith(_PREFIX):
                raise InputError("it does not start with ed25519:")
            return cls(base64.b64decode(text.removeprefix(_PREFIX), validate=True))
        except (binascii.Error, ValueError, InputError) as error:
            raise InputError(
                f"public key {text[:60]!a} is not valid: {error}",
                hint="it is one line, ed25519: and 44 characters of base64, as the manager prints it",
            ) from None

    @property
    def text(self) -> str:
        """The key as one line, `ed25519:<base64 of 32 bytes>`."""
        return _PREFIX + base64.b64encode(self.raw).decode()

    @property
    def key_id(self) -> str:
        """Id in signatures: sha256, 64 hexadecimal digits, of the key in canonical JSON (TUF specification, 4.2)."""
        return self.sslib_key.keyid

    @property
    def sslib_key(self) -> SSlibKey:
        """The key as securesystemslib has it."""
        return SSlibKey.from_crypto(Ed25519PublicKey.from_public_bytes(self.raw))


class SigningKey:
    """A private key."""

    def __init__(self, signer: CryptoSigner) -> None:
        self.signer = signer

    @classmethod
    def generate(cls) -> SigningKey:
        """Make a new key."""
        return cls(CryptoSigner.generate_ed25519())

    @classmethod
    def load(cls, path: Path) -> SigningKey:
        """Read an unencrypted PKCS #8 PEM file.

        Raises:
            NotFoundError: Nothing is at `path`.
            InputError: It is not such a file or key, or everyone may read or write it.
        """
        try:
            with path.open("rb") as file:
                open_to_all = path.stat().st_mode & 0o007
                data = file.read(_MAX_PEM_BYTES)
        except FileNotFoundError:
            raise NotFoundError(f"signing key {path} is missing") from None
        except OSError as error:
            raise InputError(f"cannot read signing key {path}: {error.strerror}") from error
        if open_to_all:
            raise InputError(f"signing key {path} is open to every user", hint=f"chmod 600 {path}, or replace the key")
        try:
            key = load_pem_private_key(data, password=None)
        except (ValueError, TypeError) as error:
            raise InputError(f"{path} is not an unencrypted private key in PEM form") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise InputError(f"{path} holds a private key of another kind than Ed25519")
        return cls(CryptoSigner(key))

    def save(self, path: Path) -> None:
        """Write the key as unencrypted PKCS #8 PEM that only the owner may read (mode 0600).

        Raises:
            ConflictError: Something is at `path`: a key is never overwritten.
            DeviceError: It could not be written.
        """
        atomic.write_bytes(path, self.signer.private_bytes, mode=0o600, replace=False)

    @property
    def public(self) -> PublicKey:
        """The public half."""
        return PublicKey(bytes.fromhex(self.signer.public_key.keyval["public"]))
