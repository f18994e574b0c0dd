from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st
from securesystemslib.dsse import Envelope

from edgeserve.contracts.desired import DESIRED_TYPE, HALT_TYPE, Desired, Generation, Halt, ModelTarget
from edgeserve.contracts.errors import EdgeServeError, InputError, TrustError
from edgeserve.contracts.limits import MAX_DESIRED_BYTES
from edgeserve.trust.envelope import Verified, sign, verify
from edgeserve.trust.keys import PublicKey, SigningKey

KEY = SigningKey.generate()
DESIRED = Desired(
    id="d-1", issuer="manager", device="default.pi-1", gen=Generation(1, 4), issued_at=1.7e9, expires_at=1.8e9,
    registry="http://127.0.0.1:8080",
    models=(ModelTarget(model="digits", release="sha256:" + "a" * 64, version="2", counter=2, index_size=900),),
)  # fmt: skip
SIGNED = sign(DESIRED, payload_type=DESIRED_TYPE, key=KEY)


def check(envelope: bytes, key: PublicKey = KEY.public, payload_type: str = DESIRED_TYPE) -> Verified[Desired]:
    return verify(
        envelope, payload_type=payload_type, key=key, kind=Desired, what="desired document", limit=MAX_DESIRED_BYTES
    )


def changed(**fields: Any) -> bytes:
    return json.dumps({**json.loads(SIGNED), **fields}).encode()


def test_a_signed_document_verifies_to_what_was_signed() -> None:
    verified = check(SIGNED)
    assert verified.document == DESIRED
    payload = base64.b64decode(json.loads(SIGNED)["payload"])
    assert verified.payload_digest == "sha256:" + hashlib.sha256(payload).hexdigest()


def test_the_signature_is_dsse_over_the_pre_authentication_encoding() -> None:
    """Checked with the cryptography library alone, by DSSE's protocol.md."""
    envelope = json.loads(SIGNED)
    payload = base64.b64decode(envelope["payload"])
    pae = b"DSSEv1 %d %b %d %b" % (len(DESIRED_TYPE), DESIRED_TYPE.encode(), len(payload), payload)
    [signature] = envelope["signatures"]
    public = Ed25519PublicKey.from_public_bytes(KEY.public.raw)
    public.verify(base64.b64decode(signature["sig"]), pae)
    assert signature["keyid"] == KEY.public.key_id
    assert envelope["payloadType"] == DESIRED_TYPE


def test_the_encoding_is_that_of_the_specifications_example() -> None:
    envelope = Envelope(b"hello world", "http://example.com/HelloWorld", {})
    assert envelope.pae() == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"


def test_the_same_document_is_signed_to_the_same_bytes() -> None:
    assert sign(DESIRED, payload_type=DESIRED_TYPE, key=KEY) == SIGNED


def test_a_document_by_another_key_is_refused() -> None:
    with pytest.raises(TrustError, match="no valid signature by the pinned key"):
        check(SIGNED, key=SigningKey.generate().public)


def test_a_signature_by_another_key_under_our_key_id_is_refused() -> None:
    other = json.loads(sign(DESIRED, payload_type=DESIRED_TYPE, key=SigningKey.generate()))
    other["signatures"][0]["keyid"] = KEY.public.key_id
    with pytest.raises(TrustError, match="no valid signature"):
        check(json.dumps(other).encode())


def test_a_document_of_another_type_is_refused() -> None:
    halt = sign(Halt(id="h", issuer="manager", term=1, version=1), payload_type=HALT_TYPE, key=KEY)
    with pytest.raises(TrustError, match="signed as"):
        check(halt)
    relabelled = json.dumps({**json.loads(halt), "payloadType": DESIRED_TYPE}).encode()
    with pytest.raises(TrustError, match="no valid signature"):
        check(relabelled)


def test_a_second_signature_does_no_harm() -> None:
    other = json.loads(sign(DESIRED, payload_type=DESIRED_TYPE, key=SigningKey.generate()))
    both = [*other["signatures"], *json.loads(SIGNED)["signatures"]]
    assert check(changed(signatures=both)).document == DESIRED


ONE = json.loads(SIGNED)["signatures"][0]


@pytest.mark.parametrize(
    ("envelope", "error", "word"),
    [
        (b"", InputError, "not valid"),
        (b"not json", InputError, "not valid"),
        (b"{}", InputError, "payload"),
        (b"[" * 5000, InputError, "not valid"),
        (b" " * (MAX_DESIRED_BYTES + 1), InputError, "at most 8192"),
        (changed(payload=5), InputError, "not valid"),
        (changed(payload="A"), InputError, "not valid"),
        (changed(payload="ä"), InputError, "not valid"),
        (changed(signatures=[]), TrustError, "no valid signature"),
        (changed(signatures=[{"keyid": "x"}]), InputError, "sig"),
        (changed(signatures=[{**ONE, "sig": "A"}]), InputError, "not valid"),
        (changed(signatures=[{**ONE, "sig": ""}]), TrustError, "no valid signature"),
        (changed(signatures=[{**ONE, "sig": "AAAA"}]), TrustError, "no valid signature"),
        (changed(signatures=[ONE, ONE]), InputError, "Multiple signatures"),
        (changed(signatures=[{**ONE, "keyid": str(n)} for n in range(9)]), InputError, "9 signatures"),
        (changed(payloadType="text/plain"), TrustError, "signed as 'text/plain'"),
        (changed(payload=base64.b64encode(b"{}").decode()), TrustError, "no valid signature"),
    ],
    ids=["empty", "no-json", "no-fields", "deep", "large", "payload-number", "payload-no-base64", "payload-no-ascii",
         "unsigned", "no-sig", "sig-no-base64", "sig-empty", "sig-short", "key-twice", "many", "type", "swapped"],
)  # fmt: skip
def test_a_bad_envelope_is_refused(envelope: bytes, error: type[EdgeServeError], word: str) -> None:
    with pytest.raises(error, match=word):
        check(envelope)


class Other(msgspec.Struct, frozen=True):
    device: str = "default.pi-1"


def test_what_is_signed_but_is_no_such_document_is_refused() -> None:
    with pytest.raises(InputError, match="desired document is not valid"):
        check(sign(Other(), payload_type=DESIRED_TYPE, key=KEY))


@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, len(SIGNED) - 1), value=st.integers(0, 255))
def test_no_changed_byte_makes_another_document(at: int, value: int) -> None:
    damaged = bytearray(SIGNED)
    damaged[at] = value
    try:
        verified = check(bytes(damaged))
    except (InputError, TrustError):
        return
    assert verified.document == DESIRED


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused_without_a_crash(data: bytes) -> None:
    with pytest.raises((InputError, TrustError)):
        check(data)


def test_trust_loads_no_heavy_library() -> None:
    program = (
        "import sys, edgeserve.trust.envelope, edgeserve.trust.verified\n"
        "print({'numpy', 'typer', 'rich', 'onnxruntime', 'requests'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "set()"
