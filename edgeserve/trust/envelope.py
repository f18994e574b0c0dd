"""Signed documents: DSSE v1 envelopes (secure-systems-lab/dsse, `envelope.md` and `protocol.md`)."""

from __future__ import annotations

import binascii
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, Generic, TypeVar

import msgspec
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import Error as SecureSystemsError

from edgeserve.contracts.documents import decode, encode
from edgeserve.contracts.errors import InputError, TrustError
from edgeserve.trust.keys import PublicKey, SigningKey

T = TypeVar("T", bound=msgspec.Struct)

_MAX_SIGNATURES: Final = 8
"""Each costs a verification; we write one, and a key that is being replaced makes two."""


class _Signature(msgspec.Struct, frozen=True):
    keyid: str
    sig: str


class _Envelope(msgspec.Struct, frozen=True, rename="camel"):
    """The JSON form, checked before securesystemslib sees it."""

    payload: str
    payload_type: str
    signatures: tuple[_Signature, ...]


@dataclass(frozen=True, kw_only=True)
class Verified(Generic[T]):
    """A document that the holder of the key signed."""

    document: T
    payload_digest: str
    """sha256 digest of the signed bytes: tells two documents apart."""


def sign(document: msgspec.Struct, *, payload_type: str, key: SigningKey) -> bytes:
    """Sign a document: its deterministic JSON in a DSSE envelope, as JSON.

    Args:
        document: What to say.
        payload_type: What kind of document it is, such as `DESIRED_TYPE`; it is signed too.
        key: Who says it.
    """
    envelope = Envelope(encode(document), payload_type, {})
    envelope.sign(key.signer)
    return encode(envelope.to_dict())


def verify(envelope: bytes, *, payload_type: str, key: PublicKey, kind: type[T], what: str, limit: int) -> Verified[T]:
    """Check the signature of an envelope and decode its document, in this order.

    Args:
        envelope: DSSE envelope as JSON.
        payload_type: The one that is expected.
        key: The one that must have signed; signatures by others are passed over.
        kind: Struct of the document.
        what: Name of the document for errors.
        limit: Most bytes of the envelope.

    Raises:
        InputError: Too large, not a DSSE envelope, or signed but not valid as `kind`.
        TrustError: Another payload type, or no valid signature by `key`.
    """
    outer = decode(envelope, _Envelope, what=f"envelope of the {what}", limit=limit)
    if outer.payload_type != payload_type:
        raise TrustError(f"the {what} is signed as {outer.payload_type[:80]!a}, expected {payload_type}")
    if len(outer.signatures) > _MAX_SIGNATURES:
        raise InputError(f"the {what} has {len(outer.signatures)} signatures, at most {_MAX_SIGNATURES} are allowed")
    try:
        parsed = Envelope.from_dict(msgspec.to_builtins(outer))
    except (binascii.Error, ValueError, SecureSystemsError) as error:
        raise InputError(f"envelope of the {what} is not valid: {error}") from error
    try:
        parsed.verify([key.sslib_key], threshold=1)
    except SecureSystemsError:
        raise TrustError(
            f"the {what} has no valid signature by the pinned key {key.key_id[:16]}",
            hint="if the manager's key was replaced, enrol the device again",
        ) from None
    document = decode(parsed.payload, kind, what=what, limit=limit)
    return Verified(document=document, payload_digest="sha256:" + sha256(parsed.payload).hexdigest())
